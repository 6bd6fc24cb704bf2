//! What is stored of mediations. `start.rs` begins runs, `runs.rs` carries them on, `operate.rs` is what operators do with
//! them, `jobs.rs` ties their jobs to them, `changes.rs` is the sequence of what happened, `told.rs` tells
//! subscribers of it, `retention.rs` removes them.

pub mod changes;
pub mod definitions;
pub mod flows;
pub mod jobs;
pub mod lists;
mod operate;
mod queue;
pub(crate) mod retention;
pub mod runs;
mod start;
pub(crate) mod told;

pub(crate) use queue::{OpenRun, RunQueue};
pub use start::Started;
pub(crate) use start::start_in;
