//! What makes a mediation run.

pub mod cron;
pub mod schedule;
