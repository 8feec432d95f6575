//! Identities of workloads.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    lateen_identity::fuzzing::spiffe(data);
});
