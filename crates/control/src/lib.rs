//! Wires the control plane: store, model, translate, xDS server, REST API, monitoring.
