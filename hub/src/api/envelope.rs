//! A job that its client signed: everything that a hub can check of an envelope that it cannot verify.
//!
//! The signature is for the agent, which has the client's key pinned (`[trust] job_keys`). Here the shape, the bounds, the
//! tenant, the times and the payload are looked at, so that what no agent would take is refused at once, with a reason.

use super::{
    App,
    auth::{Allowed, JobsRead},
    body, id,
    problem::{Problem, ProblemDocument},
    submission::{
        Checked, MAX_DEADLINE_S, MAX_TIMEOUT_S, OnFailure, Submission, check_labels, check_order_key,
        check_params, check_priority, is_media_type, on_failure,
    },
};
use crate::{
    clock,
    model::{ClientEnvelope, NewJob, PayloadRef},
    store::{Error, signed::WRONG_ID},
};
use axum::{
    Json,
    extract::{Path, State},
};
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::{
    ApiCode, Envelope, Name, Sha256,
    limits::{CALL_LIFE, CLOCK_SKEW, MAX_ENVELOPE},
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The most attempts that an envelope may allow: those of all retries count.
const MAX_ATTEMPTS_IN_ALL: u32 = 1000;
/// How long after its deadline an envelope may stay valid, for retries. Agents remember the job as long.
const MAX_LIFE_AFTER: i64 = 30 * 24 * 3600;
/// The most agents that an envelope may list.
const MAX_AGENTS: usize = 100;
/// How far in the future an id may say that it was made: outputs are kept by the time in the id.
const MAX_AHEAD_MS: i64 = 24 * 3600 * 1000;

/// The body of `POST /v1/jobs` for a job that its client signed. What decides the effect is in the envelope alone.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedSubmission {
    /// A compact JWS (EdDSA) of typ `passerelle-job+jws`; its claims are in `docs/protocol.md` section 14.
    envelope: String,
    /// What a failure does to the jobs behind it with the same `order_key`.
    on_failure: Option<OnFailure>,
    /// 0 to 9; 9 first; default 4.
    priority: Option<u8>,
    /// At most 32 labels of 64 and 256 characters.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// The body of `POST /v1/jobs`, either way: only for the OpenAPI document.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "its schema is all that is used of it")]
pub enum AnySubmission {
    /// The hub signs.
    #[schema(title = "Signed by the hub")]
    Hub(Box<Submission>),
    /// The client has signed.
    #[schema(title = "Signed by the client")]
    Client(SignedSubmission),
}

/// A read submission.
pub enum Read {
    /// The hub signs it at each offer.
    Plain(Checked),
    /// The client has signed it.
    Signed(SignedSubmission),
}

/// Reads the body of a submission.
///
/// # Errors
/// 400 `bad_request` naming the field, 413 `too_large`.
pub fn read(bytes: &[u8]) -> Result<Read, Problem> {
    #[derive(Deserialize)]
    struct Signed {
        #[serde(rename = "envelope")]
        _envelope: serde::de::IgnoredAny,
    }
    match Checked::read(bytes) {
        Ok(checked) => Ok(Read::Plain(checked)),
        // Looked for only now: most submissions have none.
        Err(_) if serde_json::from_slice::<Signed>(bytes).is_ok() => body::parse(bytes).map(Read::Signed),
        Err(refused) => Err(refused),
    }
}

/// An envelope, as its client signed it.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct EnvelopeView {
    /// The compact JWS.
    envelope: String,
}

/// The envelope that the job's client signed: what a retry past its end has to be signed anew from.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/envelope", tag = "jobs", params(("id" = String, Path)),
    responses(
        (status = 200, body = EnvelopeView),
        (status = 404, body = ProblemDocument, description = "`not_found`: also for a job that the hub signs"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn show(
    caller: Allowed<JobsRead>,
    State(app): State<App>,
    Path(job): Path<String>,
) -> Result<Json<EnvelopeView>, Problem> {
    let envelope = app.store.envelope(caller.tenant, id("job", &job)?).await?;
    Ok(Json(EnvelopeView { envelope }))
}

/// What is longer could not be offered to any agent.
///
/// # Errors
/// 413 `too_large`.
pub(super) fn check_length(envelope: &str) -> Result<(), Problem> {
    if envelope.len() > MAX_ENVELOPE {
        let detail = format!("envelope: at most {MAX_ENVELOPE} bytes; send content as a payload");
        return Err(Problem::new(ApiCode::TooLarge, detail));
    }
    Ok(())
}

/// The claims of a well-formed envelope.
///
/// # Errors
/// 400 `bad_request`.
fn claims(text: &str) -> Result<Envelope, Problem> {
    check_length(text)?;
    Envelope::read_unverified(text)
        .map(|(_, claims)| claims)
        .map_err(|error| Problem::bad_request(format!("envelope: {error}")))
}

/// An envelope for the retry of a job, checked as far as it can be.
///
/// # Errors
/// As for a submission.
pub fn renewed(app: &App, tenant: &Name, text: String) -> Result<(String, Envelope), Problem> {
    let claims = claims(&text)?;
    check(app, tenant, &claims)?;
    Ok((text, claims))
}

impl SignedSubmission {
    /// The job that it asks for.
    ///
    /// # Errors
    /// 400 naming the field, 403 for another tenant, 404 for a payload that was not uploaded, 409 `envelope_expired`,
    /// 413 `too_large`.
    pub async fn job(
        self,
        app: &App,
        tenant: &Name,
        key: Option<String>,
        traceparent: Option<String>,
    ) -> Result<NewJob, Problem> {
        let priority = check_priority(self.priority)?;
        check_labels(&self.labels)?;
        let claims = claims(&self.envelope)?;
        check(app, tenant, &claims)?;
        let payload = payload(app, tenant, &claims).await?;
        let on_failure = on_failure(self.on_failure);
        let submission = serde_json::json!({
            "envelope": &self.envelope, "priority": priority, "labels": &self.labels, "on_failure": &on_failure,
        });
        let submission = Sha256::of(submission.to_string().as_bytes());
        let created_at = clock::now();
        let deadline = second("deadline", claims.deadline)?;
        let left = claims.deadline.saturating_sub(created_at.as_second());
        Ok(NewJob {
            id: claims.job,
            tenant: tenant.clone(),
            envelope: Some(ClientEnvelope::new(&self.envelope, &claims, submission)),
            site: claims.site,
            resource: claims.resource,
            operation: claims.operation,
            params: claims.params,
            payload,
            deadline,
            deadline_s: u32::try_from(left).unwrap_or(1).max(1),
            timeout_s: claims.timeout_s,
            max_attempts: claims.max_attempts,
            order_key: claims.order_key,
            on_failure,
            priority,
            labels: self.labels,
            idempotency: key.map(|key| (key, submission)),
            traceparent,
            created_at,
            event: None,
        })
    }
}

fn second(field: &str, at: i64) -> Result<Timestamp, Problem> {
    Timestamp::from_second(at)
        .map_err(|_| Problem::bad_request(format!("envelope.{field}: expected seconds since 1970")))
}

/// Everything but the signature and the payload.
fn check(app: &App, tenant: &Name, claims: &Envelope) -> Result<(), Problem> {
    let bad = |text: String| Err(Problem::bad_request(format!("envelope.{text}")));
    if claims.tenant != *tenant {
        let detail = format!("envelope.tenant: {} is not the tenant of this API key", claims.tenant);
        return Err(Problem::new(ApiCode::Forbidden, detail));
    }
    let uuid = claims.job.uuid();
    let now = clock::now();
    let made = i64::try_from(uuid.as_u128() >> 80).unwrap_or(i64::MAX);
    if uuid.get_version_num() != 7 || made > now.as_millisecond().saturating_add(MAX_AHEAD_MS) {
        return bad(WRONG_ID.to_owned());
    }
    if !claims.params.is_object() {
        return bad("params: expected an object".to_owned());
    }
    check_params(&claims.params).map_err(|e| e.within("envelope"))?;
    for (field, value, most) in [
        ("timeout_s", claims.timeout_s, MAX_TIMEOUT_S),
        ("max_attempts", claims.max_attempts, MAX_ATTEMPTS_IN_ALL),
    ] {
        if !(1..=most).contains(&value) {
            return bad(format!("{field}: must be 1 to {most}, found {value}"));
        }
    }
    check_order_key(claims.order_key.as_deref()).map_err(|e| e.within("envelope"))?;
    if let Some(agents) = &claims.agents
        && !(1..=MAX_AGENTS).contains(&agents.len())
    {
        return bad(format!("agents: 1 to {MAX_AGENTS}; leave it out for every agent of the site"));
    }
    if let Some(payload) = &claims.payload {
        if !is_media_type(&payload.media_type) {
            return bad("payload.media_type: expected a media type, as text/csv".to_owned());
        }
        if payload.size > app.max_blob {
            let detail = format!("envelope.payload.size: at most {} bytes", app.max_blob);
            return Err(Problem::new(ApiCode::TooLarge, detail));
        }
    }
    check_times(claims, now)
}

fn check_times(claims: &Envelope, now: Timestamp) -> Result<(), Problem> {
    let bad = |text: &str| Err(Problem::bad_request(format!("envelope.{text}")));
    for (field, at) in
        [("iat", claims.iat), ("nbf", claims.nbf), ("exp", claims.exp), ("deadline", claims.deadline)]
    {
        second(field, at)?;
    }
    if claims.exp < claims.deadline {
        return bad("exp: must not lie before the deadline, or agents refuse what may still start");
    }
    if claims.exp > claims.deadline.saturating_add(MAX_LIFE_AFTER) {
        return bad("exp: must lie at most 30 days after the deadline");
    }
    let now_s = now.as_second();
    if claims.exp <= now_s || claims.deadline <= now_s {
        let message = "the envelope has expired, or its deadline has passed: sign a new one";
        return Err(Error::EnvelopeExpired(message.to_owned()).into());
    }
    if now + SignedDuration::from_secs(MAX_DEADLINE_S.into()) < second("deadline", claims.deadline)? {
        return bad("deadline: must lie at most 30 days ahead");
    }
    let tolerated = now_s.saturating_add(CLOCK_SKEW.as_secs().cast_signed());
    if claims.nbf > tolerated || claims.iat > tolerated {
        return bad("nbf: lies in the future by this hub's clock: submit it when it is valid");
    }
    Ok(())
}

/// Everything of a call's envelope but the signature and the payload.
///
/// # Errors
/// 400 naming the field, 403 for another tenant, 409 `envelope_expired`, 413 `too_large`.
pub(super) fn check_call(app: &App, tenant: &Name, claims: &Envelope) -> Result<(), Problem> {
    let bad = |text: &str| Err(Problem::bad_request(format!("envelope.{text}")));
    let most = CALL_LIFE.as_secs().cast_signed();
    if !(1..=most).contains(&claims.exp.saturating_sub(claims.iat)) {
        return bad(&format!("exp: must lie 1 to {most} s after iat"));
    }
    if claims.order_key.is_some() {
        return bad("order_key: a call stands in no line");
    }
    // The deadline of a call is judged as how long it may wait.
    check(app, tenant, &Envelope { deadline: claims.exp, ..claims.clone() })
}

/// The tenant's blob with the content that was signed.
pub(super) async fn payload(
    app: &App,
    tenant: &Name,
    claims: &Envelope,
) -> Result<Option<PayloadRef>, Problem> {
    let Some(signed) = &claims.payload else { return Ok(None) };
    let found = app.store.blob_by_digest(tenant.clone(), signed.size, signed.sha256).await?;
    let blob = found.ok_or_else(|| {
        Problem::not_found(format!(
            "envelope.payload: no blob of {} bytes with SHA-256 {} is there: upload it first with POST /v1/blobs",
            signed.size, signed.sha256
        ))
    })?;
    Ok(Some(PayloadRef {
        blob: blob.id,
        size: signed.size,
        sha256: signed.sha256,
        media_type: signed.media_type.clone(),
        data: None,
    }))
}
