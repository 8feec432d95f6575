//! Envoy v3 resources compiled to the immutable runtime configuration of the proxy.
