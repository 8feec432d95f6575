//! Certificates and requests for them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    lateen_identity::fuzzing::x509(data);
    lateen_proxy::fuzzing::certificate(data);
});
