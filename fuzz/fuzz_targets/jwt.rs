//! Tokens, of end users and of workloads.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    lateen_proxy_config::fuzzing::jwt(data);
    lateen_identity::fuzzing::token(data);
});
