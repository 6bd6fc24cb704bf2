//! The tunnel session as two state machines without I/O, one per side.
//!
//! The owner of a socket feeds received frames into `handle_frame`, calls `handle_timeout` when the time of
//! `poll_timeout` has come, sends what `poll_frame` gives, and acts on what `poll_event` gives. Time is always
//! passed in. Either machine bears loss, duplication and reordering of frames (a hostile or broken peer may do
//! anything): what is unanswered is sent again after [`RESEND`](crate::limits::RESEND), and what comes twice is
//! answered again without a second event.
//!
//! ```text
//! agent:  AwaitWelcome ── welcome ──► Open ── refuse, silence, garbage ──► Closed
//! hub:    AwaitHello ── hello ──► AwaitDecision ── welcome()/refuse() ──► Open ──► Closed
//! ```

mod agent;
mod events;
mod hub;
mod link;
#[cfg(test)]
mod tests;

pub use agent::{AgentEvent, AgentSession};
pub use hub::{HubEvent, HubSession, NoCredit, NotOffered};
pub use link::{CloseReason, Frame, Initiator};

use crate::JobId;

/// One attempt of a job: what both sides count, offer and report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    /// The job.
    pub job: JobId,
    /// The attempt, counted from 1.
    pub number: u32,
}

impl Attempt {
    /// Names attempt `number` of `job`.
    #[must_use]
    pub fn new(job: JobId, number: u32) -> Self {
        Self { job, number }
    }
}
