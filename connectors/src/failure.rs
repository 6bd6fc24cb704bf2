//! How an attempt fails: verdict and effect, a stable code, one public sentence, and the detail for the local log.

use std::{fmt, time::Duration};

/// What should happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Worth another attempt.
    Retry,
    /// Another attempt would end the same way.
    Permanent,
    /// A rule of ours forbids it.
    Denied,
    /// [`crate::Call::cancel`] fired.
    Cancelled,
}

/// What the attempt did to the private system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Certainly nothing.
    NotApplied,
    /// Nobody can tell from here.
    Unknown,
}

/// The stable codes that a connector may give; the agent maps them onto the protocol's closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the meanings are those of the protocol's codes of the same names")]
pub enum Code {
    PolicyDenied,
    PathInvalid,
    InvalidParams,
    TooLarge,
    DigestMismatch,
    TargetUnreachable,
    TargetTimeout,
    TargetAuth,
    TargetRefused,
    TargetNotFound,
    TargetConflict,
    TargetFull,
    TargetThrottled,
    TargetUnsupported,
    TargetProtocol,
    Deadline,
    Cancelled,
    Internal,
}

/// A failed attempt.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What should happen next.
    pub verdict: Verdict,
    /// What it did.
    pub effect: Effect,
    /// The stable code.
    pub code: Code,
    /// One public sentence for the cloud: lower case, no full stop, no host, no path outside the root, no secret.
    pub message: String,
    /// The target's own hint when to come back.
    pub retry_after: Option<Duration>,
    /// Host, path, cause: for the local log only.
    pub detail: Option<String>,
}

impl Failure {
    /// A failure that certainly had no effect.
    #[must_use]
    pub fn new(verdict: Verdict, code: Code, message: impl Into<String>) -> Self {
        Self {
            verdict,
            effect: Effect::NotApplied,
            code,
            message: message.into(),
            retry_after: None,
            detail: None,
        }
    }

    /// Worth another attempt, nothing was done.
    #[must_use]
    pub fn retry(code: Code, message: impl Into<String>) -> Self {
        Self::new(Verdict::Retry, code, message)
    }

    /// Final, nothing was done.
    #[must_use]
    pub fn permanent(code: Code, message: impl Into<String>) -> Self {
        Self::new(Verdict::Permanent, code, message)
    }

    /// Forbidden by a rule of ours, nothing was done.
    #[must_use]
    pub fn denied(code: Code, message: impl Into<String>) -> Self {
        Self::new(Verdict::Denied, code, message)
    }

    /// Stopped because [`crate::Call::cancel`] fired, nothing was done.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new(Verdict::Cancelled, Code::Cancelled, "cancelled before its effect")
    }

    /// Says that the effect may have happened.
    #[must_use]
    pub fn effect_unknown(mut self) -> Self {
        self.effect = Effect::Unknown;
        self
    }

    /// Adds the detail for the local log.
    #[must_use]
    pub fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string());
        self
    }

    /// Adds the target's hint when to come back.
    #[must_use]
    pub fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}
