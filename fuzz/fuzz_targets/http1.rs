//! HTTP/1 requests with their bodies, and answers.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    lateen_proxy::fuzzing::http1(data);
});
