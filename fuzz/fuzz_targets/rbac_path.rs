//! Policies on paths and callers, compiled and as a plain reading of the rules.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    lateen_proxy_config::fuzzing::rbac_path(data);
});
