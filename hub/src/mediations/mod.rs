//! Mediations: a trigger, steps, a transfer.

pub mod expression;
pub mod trigger;
