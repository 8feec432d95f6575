//! The data plane: thread-per-core workers, HTTP/1.1, HTTP/2 and TCP proxying, admin.
