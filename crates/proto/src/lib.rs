//! Protobuf descriptors of the Envoy API and JSON conversion through them.
