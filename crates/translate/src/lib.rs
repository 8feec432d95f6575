//! MeshSnapshot and proxy to Envoy v3 resources: pure, incremental, cached.
