//! Mediations: a trigger, steps and a transfer, defined in the cloud and carried out at sites.

pub mod expression;
pub mod formats;
pub mod template;
