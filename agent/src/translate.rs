//! The one file that turns connectors' words into the protocol's: connectors know nothing of the wire, and the wire
//! is a promise to the hub that connectors must not change by accident.

use passerelle_connectors as connectors;
use passerelle_protocol::{
    Code, Effect, Failure, Intent, OperationAnnouncement, Repeat, Sha256, Verdict, limits::MAX_MESSAGE,
};

/// How an operation repeats.
pub fn repeat(repeat: connectors::Repeat) -> Repeat {
    match repeat {
        connectors::Repeat::Safe => Repeat::Safe,
        connectors::Repeat::WithKey => Repeat::WithKey,
        connectors::Repeat::Never => Repeat::Never,
    }
}

/// An operation, as announced; `None` if its name cannot travel (a fault of the connector).
pub fn operation(spec: &connectors::OperationSpec) -> Option<OperationAnnouncement> {
    Some(OperationAnnouncement {
        name: spec.name.parse().ok()?,
        params_schema: spec.params_schema.clone(),
        repeat: repeat(spec.repeat),
    })
}

/// What travels of an intent. Its state is made to be shared.
pub fn intent(intent: &connectors::Intent) -> Intent {
    Intent {
        part: intent.part.clone(),
        target: intent.target.clone(),
        size: intent.size,
        sha256: intent.sha256.map(Sha256::from),
        state: Some(intent.state.clone()).filter(|state| !state.is_null()),
    }
}

/// What an earlier attempt was granted, as the connector wrote it, wherever it ran.
pub fn granted(intent: &Intent) -> connectors::Intent {
    connectors::Intent {
        part: intent.part.clone(),
        target: intent.target.clone(),
        size: intent.size,
        sha256: intent.sha256.map(|sha256| *sha256.bytes()),
        state: intent.state.clone().unwrap_or_default(),
    }
}

/// What the hub may know of a failure: not its detail.
pub fn failure(failure: &connectors::Failure) -> Failure {
    let verdict = match failure.verdict {
        connectors::Verdict::Retry => Verdict::Retry,
        connectors::Verdict::Permanent => Verdict::Permanent,
        connectors::Verdict::Denied => Verdict::Denied,
        connectors::Verdict::Cancelled => Verdict::Cancelled,
    };
    Failure::new(verdict, effect(failure.effect), code(failure.code), failure.message.as_str())
        .retry_after(failure.retry_after)
}

/// What an attempt did.
pub fn effect(effect: connectors::Effect) -> Effect {
    match effect {
        connectors::Effect::NotApplied => Effect::NotApplied,
        connectors::Effect::Unknown => Effect::Unknown,
    }
}

/// A policy's no.
pub fn denial(code: connectors::Code, message: &str) -> Failure {
    debug_assert!(message.len() <= MAX_MESSAGE);
    Failure::new(Verdict::Denied, Effect::NotApplied, self::code(code), message)
}

/// The code of the same name.
pub fn code(code: connectors::Code) -> Code {
    match code {
        connectors::Code::PolicyDenied => Code::PolicyDenied,
        connectors::Code::PathInvalid => Code::PathInvalid,
        connectors::Code::InvalidParams => Code::InvalidParams,
        connectors::Code::TooLarge => Code::TooLarge,
        connectors::Code::DigestMismatch => Code::DigestMismatch,
        connectors::Code::TargetUnreachable => Code::TargetUnreachable,
        connectors::Code::TargetTimeout => Code::TargetTimeout,
        connectors::Code::TargetAuth => Code::TargetAuth,
        connectors::Code::TargetRefused => Code::TargetRefused,
        connectors::Code::TargetNotFound => Code::TargetNotFound,
        connectors::Code::TargetConflict => Code::TargetConflict,
        connectors::Code::TargetFull => Code::TargetFull,
        connectors::Code::TargetThrottled => Code::TargetThrottled,
        connectors::Code::TargetUnsupported => Code::TargetUnsupported,
        connectors::Code::TargetProtocol => Code::TargetProtocol,
        connectors::Code::Deadline => Code::Deadline,
        connectors::Code::Cancelled => Code::Cancelled,
        connectors::Code::Internal => Code::Internal,
    }
}
