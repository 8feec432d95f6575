//! Which resources a rejection names. Written by our client and read by our server as
//! `google.rpc.BadRequest` details; from Envoy's free text by looking for the names in it.

/// One refused resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub name: String,
    /// What is wrong, with the field path where known.
    pub reason: String,
}
