//! A unit's job: submitted once under its key, waited for, and what it means for the run.

use super::{StepContext, StepFailure};
use crate::{
    clock,
    mediations::{
        definition::JobSpec,
        runs::Flow,
        sandbox::Filled,
        store::jobs::{Noted, UnitKey},
        template::Wanted,
    },
    model::{Job, JobState, NewJob, PayloadRef},
    store::Submitted,
};
use bytes::Bytes;
use jiff::SignedDuration;
use passerelle_protocol::{BlobId, Effect, JobId, Name, Sha256, limits::MAX_INLINE_PAYLOAD};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, convert::Infallible, time::Duration};

/// The longest key of a unit's job.
const MAX_KEY: usize = 64;
/// What stands before a mistake in each of a job's templates.
const KEYS: [&str; 3] = ["params.", "order_key: ", "payload: "];
/// How long a wait for a job goes on before its state is read again.
const LOOK: Duration = Duration::from_secs(300);

/// A job to submit, its templates filled.
#[derive(Debug, Clone)]
pub struct JobRequest {
    /// The site.
    pub site: Name,
    /// The resource.
    pub resource: Name,
    /// The operation.
    pub operation: Name,
    /// Its parameters.
    pub params: Map<String, Value>,
    /// Its payload.
    pub payload: Option<JobPayload>,
    /// Jobs of the same key on a resource run in order.
    pub order_key: Option<String>,
    /// `hold` or `continue`.
    pub on_failure: Option<&'static str>,
    /// It starts by then, in seconds from its submission.
    pub deadline_s: u32,
    /// An attempt without progress for this many seconds ends.
    pub timeout_s: u32,
    /// How many attempts it may have.
    pub max_attempts: u32,
    /// 0 to 9; 9 first.
    pub priority: u8,
}

/// The payload of a unit's job.
#[derive(Debug, Clone)]
pub enum JobPayload {
    /// A flow of the run, under another media type perhaps.
    Flow(Flow, Option<String>),
    /// Bytes, and their media type.
    Bytes(Bytes, String),
}

impl JobSpec {
    /// The jobs for each of `items`, whose names are put over `names`: the templates filled, a `payload` of the definition
    /// too. Gives for each the job, or what does not fit, with the key.
    ///
    /// # Errors
    /// What ended all of it.
    pub(crate) async fn fill(
        &self,
        context: &StepContext,
        names: &Map<String, Value>,
        items: &[Map<String, Value>],
    ) -> Result<Vec<Result<JobRequest, StepFailure>>, StepFailure> {
        let text = |source: &Option<String>| match source {
            Some(source) => Wanted::Text(source.clone()),
            None => Wanted::Value(Value::Null),
        };
        let params = Wanted::Value(Value::Object(self.params.clone()));
        // As in KEYS.
        let wanted = [params, text(&self.order_key), text(&self.payload)];
        let filled = context.fill("the job could not be made: ", names, items, &wanted).await?;
        Ok(filled.into_iter().map(|filled| self.made(filled)).collect())
    }

    fn made(&self, filled: Filled) -> Result<JobRequest, StepFailure> {
        let wrong = |why: String| StepFailure::permanent(format!("the job could not be made: {why}"));
        let values = filled.map_err(|(at, why)| {
            // The path of the parameter, or what is wrong with the text.
            wrong(format!("{}{why}", KEYS.get(at).unwrap_or(&"")))
        })?;
        let mut values = values.into_iter().map(Option::unwrap_or_default);
        let params = match values.next() {
            Some(Value::Object(params)) => params,
            _ => Map::new(),
        };
        let mut text = || match values.next() {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let (order_key, payload) = (text(), text());
        if order_key.as_ref().is_some_and(|key| key.is_empty() || key.chars().count() > 200) {
            return Err(wrong("order_key: must be 1 to 200 characters".to_owned()));
        }
        let media_type = self.media_type.clone().unwrap_or_else(|| "application/octet-stream".to_owned());
        let payload = payload.map(|text| JobPayload::Bytes(text.into(), media_type));
        Ok(JobRequest {
            site: self.site.clone(),
            resource: self.resource.clone(),
            operation: self.operation.clone(),
            params,
            payload,
            order_key,
            on_failure: self.on_failure.map(|word| word.as_str()),
            deadline_s: self.deadline_s,
            timeout_s: self.timeout_s,
            max_attempts: self.max_attempts,
            priority: self.priority,
        })
    }
}

/// Submits the job unless it is noted, and waits for its end.
pub(super) async fn carry_out(
    context: &StepContext,
    key: &str,
    request: JobRequest,
) -> Result<Job, StepFailure> {
    if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(StepFailure::permanent(format!(
            "a job's key must be 1 to {MAX_KEY} printable characters"
        )));
    }
    let store = &context.app.store;
    let run = &context.run;
    let unit = UnitKey { run: run.seq, unit: context.unit.clone(), key: key.to_owned() };
    let first = match run.tries > 1 || run.restarts > 0 {
        // It may have been submitted before: no payload is stored for nothing.
        true => store.unit_job(unit.clone()).await?,
        false => None,
    };
    let (noted, waiting, created) = match first {
        Some(noted) => {
            let waiting = store.settled(noted.job.id);
            (noted, waiting, false)
        }
        None => {
            let new = new_job(context, key, request).await?;
            let waiting = store.settled(new.id);
            let Submitted { job, created } = store.submit_for_unit(unit.clone(), new).await?;
            context.app.metrics.submission(created);
            let waiting = if created { waiting } else { store.settled(job.id) };
            (Noted { job, passed: false }, waiting, created)
        }
    };
    let id = noted.job.id;
    if noted.passed {
        return Ok(noted.job);
    }
    let (mut waiting, mut look) = (Some(waiting), !created);
    loop {
        let until = tokio::time::Instant::now() + LOOK;
        // Looked at after the wait was begun: what settles meanwhile is not missed.
        let settled = waiting.take().unwrap_or_else(|| store.settled(id));
        if look {
            let job = store.job(run.tenant.clone(), id).await?;
            if job.state.is_settled() {
                return judge(context, job);
            }
        }
        look = true;
        tokio::select! {
            settled = settled.within(until) => if let Some(job) = settled {
                return judge(context, job);
            },
            () = context.app.stop.cancelled() => return Err(StepFailure::stopped()),
        }
    }
}

/// The job that a request asks for, its payload stored or with it.
async fn new_job(context: &StepContext, key: &str, request: JobRequest) -> Result<NewJob, StepFailure> {
    let run = &context.run;
    let created_at = clock::now();
    // The unit and the run are in the key: what an operator restarts on purpose is a new job only where the note of the
    // old one was taken back.
    let idempotency = format!("mediation-run/{}/{}/{key}/{}", run.guid, context.unit, run.restarts);
    let digest = Sha256::of(idempotency.as_bytes());
    let labels = BTreeMap::from([
        ("mediation".to_owned(), run.definition.name.to_string()),
        ("mediation_run".to_owned(), run.guid.to_string()),
        ("mediation_step".to_owned(), context.unit.to_string()),
    ]);
    Ok(NewJob {
        id: JobId::from(clock::new_uuid7()),
        tenant: run.tenant.clone(),
        site: request.site,
        resource: request.resource,
        operation: request.operation,
        params: Value::Object(request.params),
        payload: match request.payload {
            Some(payload) => Some(stored(context, payload).await?),
            None => None,
        },
        deadline: created_at + SignedDuration::from_secs(request.deadline_s.into()),
        deadline_s: request.deadline_s,
        timeout_s: request.timeout_s,
        max_attempts: request.max_attempts,
        order_key: request.order_key,
        on_failure: request.on_failure.map(str::to_owned),
        priority: request.priority,
        labels,
        idempotency: Some((idempotency, digest)),
        traceparent: None,
        created_at,
        envelope: None,
        event: None,
    })
}

async fn stored(context: &StepContext, payload: JobPayload) -> Result<PayloadRef, StepFailure> {
    Ok(match payload {
        JobPayload::Flow(flow, media_type) => PayloadRef {
            blob: flow.blob,
            size: flow.size,
            sha256: flow.sha256,
            media_type: media_type.unwrap_or(flow.media_type),
            data: None,
        },
        JobPayload::Bytes(bytes, media_type) if bytes.len() <= MAX_INLINE_PAYLOAD => PayloadRef {
            blob: BlobId::from(clock::new_uuid7()),
            size: bytes.len() as u64,
            sha256: Sha256::of(&bytes),
            media_type,
            data: Some(bytes),
        },
        JobPayload::Bytes(bytes, media_type) => {
            let whole = futures_util::stream::iter([Ok::<_, Infallible>(bytes)]);
            let tenant = context.run.tenant.clone();
            let info = context.app.blobs.put_stream(tenant, Some(media_type.clone()), None, whole).await?;
            PayloadRef { blob: info.id, size: info.size, sha256: info.sha256, media_type, data: None }
        }
    })
}

/// What a settled job means for its unit.
fn judge(context: &StepContext, job: Job) -> Result<Job, StepFailure> {
    if job.state == JobState::Succeeded {
        return Ok(job);
    }
    let why =
        job.error.as_ref().map_or_else(String::new, |error| format!(": {} ({})", error.message, code(error)));
    let unknown = job.state == JobState::Unknown;
    let message = if unknown {
        format!(
            "{} on {} at {}: nobody can tell whether it took effect{why}; find out, resolve job {}, then restart the run",
            job.operation, job.resource, job.site, job.id
        )
    } else {
        format!("{} on {} at {} ended {}{why}", job.operation, job.resource, job.site, job.state.as_str())
    };
    tracing::debug!(run = %context.run.guid, job_id = %job.id, state = job.state.as_str(), "A run's job did not succeed");
    Err(StepFailure { unknown, ..StepFailure::permanent(message) })
}

fn code(error: &crate::model::ErrorView) -> String {
    let code = serde_json::to_value(error.code).ok();
    let effect = if error.effect == Effect::Unknown { ", effect unknown" } else { "" };
    format!("{}{effect}", code.as_ref().and_then(Value::as_str).unwrap_or("internal"))
}
