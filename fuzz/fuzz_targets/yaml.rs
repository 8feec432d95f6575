//! Objects in YAML.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    lateen_api::fuzzing::yaml(data);
});
