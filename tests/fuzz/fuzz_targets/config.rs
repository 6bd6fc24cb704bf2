//! Explores `passerelle_fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| passerelle_fuzz::config::run(data));
