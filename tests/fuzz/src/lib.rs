//! What the fuzzer feeds: one function per place where bytes of a stranger, or of an operator, are read.
//!
//! Each takes any bytes and panics if a promise is broken. `cargo fuzz` explores them (docs/testing.md); the committed
//! corpora are replayed by `tests/tests/corpora.rs` in every test run.

pub mod config;
pub mod envelope;
pub mod frames;
pub mod policy;
pub mod session;

/// What takes the bytes.
pub type Run = fn(&[u8]);

/// Every target, with the name of its corpus.
pub const TARGETS: [(&str, Run); 5] = [
    ("config", config::run),
    ("envelope", envelope::run),
    ("frames", frames::run),
    ("policy", policy::run),
    ("session", session::run),
];
