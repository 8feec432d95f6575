//! Istio and Kubernetes kinds: types, YAML with source locations, per-object validation.
