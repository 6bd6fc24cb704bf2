//! Asks connector and policy of a configuration whether something may be done: the one way to a decision, for offers as for
//! `policy test`.

use super::{Allowed, Denied, Spent};
use crate::{dispatch::Judged, settings::Settings, translate};
use passerelle_connectors::Visible;
use passerelle_protocol::{Code, Effect, Envelope, Failure, Name, Verdict};
use serde_json::Value;
use std::sync::Arc;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The resource.
    pub resource: &'a Name,
    /// The operation.
    pub operation: &'a str,
    /// Its parameters.
    pub params: &'a Value,
    /// Whether there is a payload.
    pub has_payload: bool,
    /// Its size, where it is known.
    pub size: Option<u64>,
}

impl<'a> From<&'a Envelope> for Question<'a> {
    fn from(envelope: &'a Envelope) -> Self {
        Self {
            resource: &envelope.resource,
            operation: envelope.operation.as_str(),
            params: &envelope.params,
            has_payload: envelope.payload.is_some(),
            size: envelope.payload.as_ref().map(|payload| payload.size),
        }
    }
}

/// The answer no.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The outcome of the attempt: what the hub is told.
    pub failure: Failure,
    /// The rule that came nearest, counted from 1: the owner's alone to know.
    pub nearest: Option<usize>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, nearest: None }
    }
}

impl Settings {
    /// Decides. `spent` is what the rules of the resource have been used for today.
    ///
    /// # Errors
    /// `invalid_params`, `path_invalid`, `policy_denied` or `too_large`; `busy` if it is for another day.
    pub fn judge(&self, question: Question<'_>, spent: &Spent) -> Result<Judged, Refused> {
        let Question { resource: name, operation, params, has_payload, size } = question;
        let Some(resource) = self.resources.get(name).cloned() else {
            let message = format!("no resource {name} is configured at this agent");
            let denied = Failure::new(Verdict::Denied, Effect::NotApplied, Code::PolicyDenied, message);
            return Err(denied.into());
        };
        let invalid = |message: String| {
            Failure::new(Verdict::Permanent, Effect::NotApplied, Code::InvalidParams, message)
        };
        let Some(spec) = resource.operation(operation) else {
            let message = format!("a {} resource has no operation {operation}", resource.kind);
            return Err(invalid(message).into());
        };
        if has_payload && !spec.takes_payload {
            return Err(invalid(format!("operation {operation} takes no payload")).into());
        }
        let demands = resource.connector.demands(operation, params).map_err(|e| translate::failure(&e))?;
        match resource.policy.decide_after(operation, &demands, size, spent) {
            Ok(Allowed { rule, max_size, daily, filtered }) => {
                let visible = if filtered {
                    let resource = Arc::clone(&resource);
                    Visible::only(move |path| resource.policy.shows(rule, path))
                } else if !demands.entities.is_empty() {
                    let resource = Arc::clone(&resource);
                    Visible::only(move |field| resource.policy.shows_field(rule, field))
                } else {
                    Visible::default()
                };
                Ok(Judged { resource, rule, max_size, daily, visible })
            }
            Err(Denied { code, message, nearest, another_day: false }) => {
                Err(Refused { failure: translate::denial(code, &message), nearest })
            }
            Err(Denied { message, nearest, another_day: true, .. }) => {
                let failure = Failure::new(Verdict::Retry, Effect::NotApplied, Code::Busy, message);
                Err(Refused { failure: failure.retry_after(Some(super::volume::until_tomorrow())), nearest })
            }
        }
    }
}
