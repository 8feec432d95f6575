//! Aggregated discovery, delta and state-of-the-world, server and client.
