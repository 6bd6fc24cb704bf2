//! Explores `passerelle_fuzz::session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| passerelle_fuzz::session::run(data));
