//! Mediations: a trigger, steps, a transfer.

pub mod trigger;
