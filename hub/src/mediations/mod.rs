//! Mediations: what starts them, what they do, where their results go, and what an operator sees of each run.
//!
//! A *definition* ([`definition`]) is a trigger, steps and transfers. Whatever a trigger sees becomes an [`Occurrence`], and
//! `start_run` is the one door through which a *run* begins: once per definition and occurrence. The engine ([`engine`])
//! takes runs from the store and works through their *units*: the steps in their order, then the transfers. What a unit gave
//! (flows, messages, marks) is committed with the note that it is finished, so a hub that dies goes on with the first unit
//! that is not. Jobs of units are ordinary jobs, noted under a key in the transaction that submits them: a unit that is
//! worked through again finds its jobs again.
//!
//! To add a kind of step: a file under `steps`, a variant of [`Step`]. To add a kind of trigger: a file under `trigger`, a
//! variant of [`Trigger`], and something that calls `start_run`.

pub mod definition;
pub mod engine;
pub mod expression;
pub(crate) mod formats;
mod ids;
mod nesting;
pub(crate) mod rendering;
pub mod runs;
pub mod sandbox;
pub mod steps;
pub mod store;
pub mod template;
pub mod trigger;

pub use definition::{Definition, JobSpec, Missed, Overlap, StepEntry, Transfer};
pub use ids::{DefinitionId, FlowId, RunId};
pub use runs::{Direction, Flow, Message, MessageKind, Run, RunState};
pub use steps::{FlowContent, NewFlow, Step, StepContext, StepDone, StepFailure};
pub use store::{Started, changes::RunChange, changes::RunChangeKind};
pub use trigger::{InputFlow, Occurrence, Trigger};
