//! Rules on a message's fields beyond their types: what makes every message finite.

use crate::{
    call::{Call, CallCancel, CallDeclined, CallResult},
    event::{Event, EventAck, EventRefused, TriggerCursor, Triggers},
    limits::{
        MAX_CURSOR, MAX_EVENT_DATA, MAX_HUB_KEYS, MAX_INLINE_PAYLOAD, MAX_INTENT_PATH, MAX_INTENT_STATE,
        MAX_JSON, MAX_LISTENERS, MAX_RESOURCES, MAX_TEXT, MAX_TRIGGERS,
    },
    message::{
        Accept, Cancel, Commit, CommitGranted, Decline, Draining, Hello, HubKeys, Offer, PayloadSource,
        Progress, Refuse, Report, ReportAck, Unsupported, Welcome,
    },
    outcome::{Effect, Outcome, cut, cut_message},
};
use std::collections::BTreeSet;

/// The rules of one message.
pub(crate) trait Bounded {
    /// What both sides must keep to: checked before sending and after receiving.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
    /// Cuts sentences meant for people to their longest.
    fn cut(&mut self) {}
}

fn short(field: &str, text: &str) -> Result<(), String> {
    if text.len() > MAX_TEXT {
        return Err(format!("{field} has {} bytes, more than {MAX_TEXT}", text.len()));
    }
    Ok(())
}

fn few(field: &str, count: usize) -> Result<(), String> {
    if count > MAX_HUB_KEYS {
        return Err(format!("{field} has {count} entries, more than {MAX_HUB_KEYS}"));
    }
    Ok(())
}

fn cursor(text: &str) -> Result<(), String> {
    if text.len() > MAX_CURSOR {
        return Err(format!("a cursor of {} bytes is longer than {MAX_CURSOR}", text.len()));
    }
    Ok(())
}

fn inline(data: &str) -> Result<(), String> {
    if data.len() > MAX_INLINE_PAYLOAD.div_ceil(3) * 4 {
        return Err(format!("an inline payload is larger than {MAX_INLINE_PAYLOAD} bytes"));
    }
    Ok(())
}

impl Bounded for Hello {
    fn check(&self) -> Result<(), String> {
        if self.resources.len() > MAX_RESOURCES {
            return Err(format!("{} resources, more than {MAX_RESOURCES}", self.resources.len()));
        }
        short("agent_version", &self.agent_version)?;
        short("instance", &self.instance)?;
        few("hub_keys", self.hub_keys.len())?;
        let mut names = BTreeSet::new();
        if let Some(r) = self.resources.iter().find(|r| !names.insert(&r.name)) {
            return Err(format!("resource {} is announced twice", r.name));
        }
        if let Some(r) = self.resources.iter().find(|r| !self.connectors.contains_key(&r.connector)) {
            return Err(format!("resource {} names a connector that is not announced", r.name));
        }
        if let Some(r) = self.resources.iter().find(|r| r.max_concurrent == 0 || r.rate_per_minute == Some(0))
        {
            return Err(format!("resource {} announces a limit of 0: nothing could ever run", r.name));
        }
        for pause in self.resources.iter().filter_map(|r| r.paused.as_ref()) {
            short("reason of a pause", pause.reason.as_deref().unwrap_or_default())?;
            short("by of a pause", &pause.by)?;
        }
        if self.triggers.len() > MAX_TRIGGERS {
            return Err(format!("{} triggers, more than {MAX_TRIGGERS}", self.triggers.len()));
        }
        let mut triggers = BTreeSet::new();
        if let Some(t) = self.triggers.iter().find(|t| !triggers.insert((&t.resource, &t.name))) {
            return Err(format!("trigger {} of {} is announced twice", t.name, t.resource));
        }
        if let Some(t) = self.triggers.iter().find(|t| !names.contains(&t.resource)) {
            return Err(format!("trigger {} names a resource that is not announced", t.name));
        }
        if self.listeners.len() > MAX_LISTENERS {
            return Err(format!("{} listeners, more than {MAX_LISTENERS}", self.listeners.len()));
        }
        // A resource may not bear the name of a listener: their events are told apart by it.
        if let Some(l) = self.listeners.iter().find(|l| !names.insert(&l.name)) {
            return Err(format!("listener {} has the name of a resource or of another listener", l.name));
        }
        Ok(())
    }
}
impl Bounded for Triggers {
    fn check(&self) -> Result<(), String> {
        if self.leases.len() > MAX_TRIGGERS {
            return Err(format!("{} leases, more than {MAX_TRIGGERS}", self.leases.len()));
        }
        self.leases.iter().filter_map(|lease| lease.cursor.as_deref()).try_for_each(cursor)
    }
}
impl Bounded for TriggerCursor {
    fn check(&self) -> Result<(), String> {
        cursor(&self.cursor)
    }
}
impl Bounded for Event {
    fn check(&self) -> Result<(), String> {
        if !self.data.is_object() {
            return Err("the data of an event is an object".to_owned());
        }
        let data = self.data.to_string().len();
        if data > MAX_EVENT_DATA {
            return Err(format!("an event's data of {data} bytes is larger than {MAX_EVENT_DATA}"));
        }
        match self.payload.as_ref().map(|payload| &payload.source) {
            Some(PayloadSource::Inline { data }) => inline(data),
            Some(PayloadSource::Hub) | None => Ok(()),
        }
    }
    fn cut(&mut self) {
        if let Some(payload) = &mut self.payload {
            cut(&mut payload.media_type, MAX_TEXT);
        }
    }
}
impl Bounded for EventRefused {
    fn check(&self) -> Result<(), String> {
        short("code", &self.code)
    }
    fn cut(&mut self) {
        cut_message(&mut self.message);
    }
}
impl Bounded for EventAck {}
impl Bounded for HubKeys {
    fn check(&self) -> Result<(), String> {
        few("statements", self.statements.len())
    }
}
impl Bounded for Offer {
    fn check(&self) -> Result<(), String> {
        if self.attempt == 0 {
            return Err("attempts count from 1".to_owned());
        }
        match &self.payload {
            Some(PayloadSource::Inline { data }) => inline(data),
            Some(PayloadSource::Hub) | None => Ok(()),
        }
    }
}
impl Bounded for Refuse {
    fn check(&self) -> Result<(), String> {
        short("code", &self.code)
    }
    fn cut(&mut self) {
        cut_message(&mut self.message);
    }
}
impl Bounded for Decline {
    fn cut(&mut self) {
        cut_message(&mut self.message);
    }
}
impl Bounded for Report {
    fn check(&self) -> Result<(), String> {
        self.outcome.check()
    }
    fn cut(&mut self) {
        self.outcome.cut();
    }
}
impl Bounded for CallResult {
    fn check(&self) -> Result<(), String> {
        self.outcome.check()
    }
    fn cut(&mut self) {
        self.outcome.cut();
    }
}
impl Bounded for CallDeclined {
    fn cut(&mut self) {
        cut_message(&mut self.message);
    }
}
impl Bounded for Call {
    fn check(&self) -> Result<(), String> {
        match &self.payload {
            Some(PayloadSource::Inline { data }) => inline(data),
            Some(PayloadSource::Hub) | None => Ok(()),
        }
    }
}
impl Bounded for CallCancel {}
impl Bounded for Outcome {
    fn check(&self) -> Result<(), String> {
        match self {
            Outcome::Succeeded { result, output, .. } => {
                let json = serde_json::to_string(result).map_err(|e| e.to_string())?.len();
                if json > MAX_JSON {
                    return Err(format!("a result of {json} bytes is larger than {MAX_JSON}"));
                }
                inline(output.as_ref().and_then(|output| output.data.as_deref()).unwrap_or_default())
            }
            Outcome::Failed(failure) if failure.effect == Effect::Applied => {
                Err("a failure was not applied, or it is not known".to_owned())
            }
            Outcome::Failed(_) => Ok(()),
        }
    }
    fn cut(&mut self) {
        match self {
            // It comes from the private system, so it may be anything; an end must be told all the same.
            Outcome::Succeeded { output: Some(output), .. } => cut(&mut output.media_type, MAX_TEXT),
            Outcome::Succeeded { output: None, .. } => {}
            Outcome::Failed(failure) => cut_message(&mut failure.message),
        }
    }
}
impl Bounded for Commit {
    fn check(&self) -> Result<(), String> {
        let state = self.intent.state.as_ref().map_or(0, |state| state.to_string().len());
        if state > MAX_INTENT_STATE {
            return Err(format!("an intent's state of {state} bytes is larger than {MAX_INTENT_STATE}"));
        }
        for (field, path) in [("part", &self.intent.part), ("target", &self.intent.target)] {
            let length = path.as_ref().map_or(0, String::len);
            if length > MAX_INTENT_PATH {
                return Err(format!("an intent's {field} has {length} bytes, more than {MAX_INTENT_PATH}"));
            }
        }
        Ok(())
    }
}
impl Bounded for Welcome {}
impl Bounded for CommitGranted {}
impl Bounded for ReportAck {}
impl Bounded for Cancel {}
impl Bounded for Unsupported {}
impl Bounded for Accept {}
impl Bounded for Progress {}
impl Bounded for Draining {}
