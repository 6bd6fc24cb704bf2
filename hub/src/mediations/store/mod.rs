//! What is stored of mediations. `start.rs` begins runs, `runs.rs` carries them on, `operate.rs` is what operators do with
//! them, `jobs.rs` ties their jobs to them, `changes.rs` is the sequence of what happened, `retention.rs` removes them.

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

pub(crate) use queue::{OpenRun, RunQueue};
pub use start::Started;
#[expect(
    unused_imports,
    reason = "for triggers that store their event in the same transaction: take this line out then"
)]
pub(crate) use start::start_in;
