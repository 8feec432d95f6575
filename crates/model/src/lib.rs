//! Registry (services, workloads, endpoints) and the immutable MeshSnapshot with its indexes.
