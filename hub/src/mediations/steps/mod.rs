//! What a run does: the kinds of step, each in a file of its own, and the border between them and the engine.
//!
//! A step gets a [`StepContext`] and gives a [`StepDone`] or a [`StepFailure`]; the engine commits what it gave. A hub may die
//! at any moment, and then the step runs again from its beginning with the same context: it must come to the same jobs under
//! the same keys ([`StepContext::job`]), and whatever else has an effect outside must be noted ([`StepContext::note`]) or be
//! harmless when repeated.

mod content;
mod context;
mod convert;
mod filter;
mod for_each;
mod job;
mod job_call;
mod places;
mod render;
pub(crate) mod transfer;
mod webhook;

pub use context::StepContext;
pub use convert::ConvertStep;
pub use filter::FilterStep;
pub use for_each::ForEachStep;
pub use job::JobStep;
pub use job_call::{JobPayload, JobRequest};
pub use places::Place;
pub(crate) use places::Places;
pub use render::RenderStep;
pub use webhook::WebhookStep;

use crate::{model::BlobInfo, store};
use bytes::Bytes;
use passerelle_config::{Diagnostics, Section};
use passerelle_protocol::{JobId, Sha256};
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

use super::runs::{Direction, MessageKind};

/// What one step does. In a file and as JSON its keys stand beside `name` and `input`, `kind` among them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Step {
    /// Records in another format.
    Convert(ConvertStep),
    /// Some of the records.
    Filter(FilterStep),
    /// A job for each record or flow.
    ForEach(Box<ForEachStep>),
    /// An operation of a site's resource; its output becomes a flow.
    Job(JobStep),
    /// A file out of a template.
    Render(RenderStep),
    /// Requests to the cloud side.
    Webhook(WebhookStep),
}

/// The words of `kind`.
const KINDS: &[&str] = &["convert", "filter", "for_each", "job", "render", "webhook"];

impl Step {
    /// Reads one from its section: `kind` and the kind's own keys.
    pub fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let kind = section.word("kind", KINDS, diagnostics)?;
        let (_, rest) = section.split(&["kind"]);
        match kind {
            "convert" => ConvertStep::read(rest, diagnostics).map(Self::Convert),
            "filter" => FilterStep::read(rest, diagnostics).map(Self::Filter),
            "for_each" => ForEachStep::read(rest, diagnostics).map(|step| Self::ForEach(Box::new(step))),
            "job" => JobStep::read(rest, diagnostics).map(Self::Job),
            "render" => RenderStep::read(rest, diagnostics).map(Self::Render),
            "webhook" => WebhookStep::read(rest, diagnostics).map(Self::Webhook),
            _ => None,
        }
    }

    /// The word of its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Convert(_) => "convert",
            Self::Filter(_) => "filter",
            Self::ForEach(_) => "for_each",
            Self::Job(_) => "job",
            Self::Render(_) => "render",
            Self::Webhook(_) => "webhook",
        }
    }

    /// Whether it reads the flows of the step before it where its entry says nothing of `input`.
    #[must_use]
    pub fn reads_by_default(&self) -> bool {
        match self {
            Self::Job(_) => false,
            Self::Convert(_) | Self::Filter(_) | Self::ForEach(_) | Self::Render(_) | Self::Webhook(_) => {
                true
            }
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// Why it could not, in words that may be public.
    pub async fn run(&self, context: &StepContext) -> Result<StepDone, StepFailure> {
        match self {
            Self::Convert(step) => step.run(context).await,
            Self::Filter(step) => step.run(context).await,
            Self::ForEach(step) => step.run(context).await,
            Self::Job(step) => step.run(context).await,
            Self::Render(step) => step.run(context).await,
            Self::Webhook(step) => step.run(context).await,
        }
    }
}

/// What a step gave.
#[derive(Debug, Clone, Default)]
pub struct StepDone {
    /// Its flows, in this order.
    pub flows: Vec<NewFlow>,
    /// Lines for the run's log.
    pub messages: Vec<(MessageKind, String)>,
    /// What the definition is to remember once the run has succeeded; null forgets.
    pub watermarks: BTreeMap<String, Value>,
    /// What templates of later steps see as `steps.NAME.result`.
    pub result: Option<Value>,
}

/// A flow that a step made.
#[derive(Debug, Clone)]
pub struct NewFlow {
    /// Its label, often the name of a file.
    pub label: String,
    /// Its media type.
    pub media_type: String,
    /// Whether it came in or is to go out.
    pub direction: Direction,
    /// The content.
    pub content: FlowContent,
}

/// Where the content of a new flow is.
#[derive(Debug, Clone)]
pub enum FlowContent {
    /// Here.
    Bytes(Bytes),
    /// In a blob of the tenant, put there by the step (`context.app.blobs.put_stream`).
    Blob(BlobInfo),
    /// The output of a job of this run.
    Output {
        /// The job.
        job: JobId,
        /// Size of its output.
        size: u64,
        /// Digest of its output.
        sha256: Sha256,
    },
}

impl NewFlow {
    /// A flow that a step made of bytes, to go out.
    #[must_use]
    pub fn of_bytes(
        label: impl Into<String>,
        media_type: impl Into<String>,
        bytes: impl Into<Bytes>,
    ) -> Self {
        let content = FlowContent::Bytes(bytes.into());
        Self { label: label.into(), media_type: media_type.into(), direction: Direction::Out, content }
    }
}

/// Why a step could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StepFailure {
    /// One sentence for the operator: lower-case, no full stop, nothing secret.
    pub message: String,
    /// The same might go well in a while: the engine tries a few times more.
    pub retryable: bool,
    /// When it asks to be tried again, at the earliest.
    pub after: Option<Duration>,
    /// Something may have happened outside, and nobody knows: the run ends `unknown`.
    pub unknown: bool,
    /// The hub ends, or the run was taken back: nothing is noted, the unit begins anew later.
    pub stopped: bool,
}

impl StepFailure {
    /// It would fail again.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: false, after: None, unknown: false, stopped: false }
    }

    /// It may go well the next time.
    pub fn retryable(message: impl Into<String>) -> Self {
        Self { retryable: true, ..Self::permanent(message) }
    }

    pub(crate) fn stopped() -> Self {
        Self { stopped: true, ..Self::permanent("the hub ends") }
    }
}

impl From<store::Error> for StepFailure {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Internal(cause) => {
                tracing::warn!(cause, "A step of a mediation run met a fault of the hub");
                Self::retryable("the hub had an internal fault: its log says more")
            }
            error @ (store::Error::Full | store::Error::Quota(_)) => Self::retryable(error.to_string()),
            error => Self::permanent(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
