//! Key sets, as the proxy and as the authority read them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    lateen_proxy_config::fuzzing::jwks(data);
    lateen_identity::fuzzing::jwks(data);
});
