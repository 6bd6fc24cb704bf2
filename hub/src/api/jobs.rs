//! `/v1/jobs`: submitting, reading and steering jobs.

use super::{
    App, List,
    auth::{Allowed, JobsRead, JobsWrite},
    body::{self, JsonBytes, OptionalJson, StrictQuery},
    envelope::{self, AnySubmission},
    id, page_size,
    problem::{Problem, ProblemDocument},
    range::Download,
    submission::{self, Checked, PayloadContent},
    with_header,
};
use crate::{
    clock,
    model::{Job, JobFilter, JobState, NewJob, PayloadRef},
    store::{self, Resolution},
};
use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::{BlobId, JobId, Name, Sha256};
use serde::Deserialize;
use std::{convert::Infallible, time::Duration};

/// The longest note of an operator, in characters.
const MAX_NOTE: usize = 1024;
/// The longest `?wait`.
const MAX_WAIT_S: u64 = 60;

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SubmitQuery {
    /// Waits so many seconds, 1 to 60, for the job to come to a final or settled state.
    wait: Option<u64>,
}

/// Submits a job. With an `Idempotency-Key` the same job is stored once.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs", request_body = AnySubmission,
    params(SubmitQuery, ("Idempotency-Key" = Option<String>, Header, description = "At most 255 printable characters")),
    responses(
        (status = 201, body = Job, description = "Stored; with `wait`: it ended in time"),
        (status = 200, body = Job, description = "The same job: its idempotency key or its envelope was seen"),
        (status = 202, body = Job, description = "The wait ended before the job did"),
        (status = 400, body = ProblemDocument, description = "`bad_request`, naming the field"),
        (status = 403, body = ProblemDocument, description = "`forbidden`: the envelope is of another tenant"),
        (status = 404, body = ProblemDocument, description = "`site_unknown`, or `not_found` for the blob or event"),
        (status = 409, body = ProblemDocument, description = "`envelope_expired`, or `conflict`: the id is taken"),
        (status = 413, body = ProblemDocument, description = "`too_large`"),
        (status = 422, body = ProblemDocument, description = "`idempotency_mismatch`"),
        (status = 507, body = ProblemDocument, description = "`quota`: the disk is full, or the tenant's share used up"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn submit(
    caller: Allowed<JobsWrite>,
    State(app): State<App>,
    StrictQuery(query): StrictQuery<SubmitQuery>,
    headers: HeaderMap,
    JsonBytes(body): JsonBytes,
) -> Result<Response, Problem> {
    let wait = match query.wait {
        None => None,
        Some(seconds @ 1..=MAX_WAIT_S) => Some(Duration::from_secs(seconds)),
        Some(other) => {
            return Err(Problem::bad_request(format!(
                "wait: must be 1 to {MAX_WAIT_S} seconds, found {other}"
            )));
        }
    };
    let key = submission::idempotency_key(&headers)?;
    let traceparent = submission::traceparent(&headers);
    let job = match envelope::read(&body)? {
        envelope::Read::Plain(checked) => plain(&app, &caller.tenant, checked, key, traceparent).await?,
        envelope::Read::Signed(signed) => signed.job(&app, &caller.tenant, key, traceparent).await?,
    };
    let waiting = wait.map(|wait| (tokio::time::Instant::now() + wait, app.store.settled(job.id)));
    let store::Submitted { mut job, created } = app.store.submit(job).await?;
    app.metrics.submission(created);
    let mut status = if created { StatusCode::CREATED } else { StatusCode::OK };
    if let Some((until, settled)) = waiting {
        let waited = async {
            if created && let Some(job) = settled.within(until).await {
                return Ok(job);
            }
            let rest = until.saturating_duration_since(tokio::time::Instant::now());
            app.store.wait(caller.tenant.clone(), job.id, rest).await
        };
        job = tokio::select! {
            waited = waited => waited?,
            () = app.stop.cancelled() => app.store.job(caller.tenant.clone(), job.id).await?,
        };
        if !job.state.is_settled() {
            status = StatusCode::ACCEPTED;
        }
    }
    let location = format!("/v1/jobs/{}", job.id);
    Ok(with_header((status, Json(job)).into_response(), header::LOCATION, &location))
}

/// The job that a submission asks for which the hub is to sign.
async fn plain(
    app: &App,
    tenant: &Name,
    checked: Checked,
    key: Option<String>,
    traceparent: Option<String>,
) -> Result<NewJob, Problem> {
    // Where nothing is stored or looked up before the job, its own transaction tells.
    if checked.payload.as_ref().is_some_and(|payload| !payload.is_small())
        && !app.store.site_exists(tenant.clone(), checked.site.clone()).await?
    {
        return Err(store::Error::SiteUnknown(checked.site).into());
    }
    let payload = payload(app, tenant, &checked).await?;
    let event = checked.payload.as_ref().and_then(|payload| payload.event());
    let digest = checked.digest(payload.as_ref().map(|payload| &payload.sha256));
    let created_at = clock::now();
    Ok(NewJob {
        id: JobId::from(clock::new_uuid7()),
        tenant: tenant.clone(),
        site: checked.site,
        resource: checked.resource,
        operation: checked.operation,
        params: checked.params,
        payload,
        deadline: created_at + SignedDuration::from_secs(checked.deadline_s.into()),
        deadline_s: checked.deadline_s,
        timeout_s: checked.timeout_s,
        max_attempts: checked.max_attempts,
        order_key: checked.order_key,
        on_failure: checked.on_failure,
        priority: checked.priority,
        labels: checked.labels,
        idempotency: key.map(|key| (key, digest)),
        traceparent,
        created_at,
        envelope: None,
        event,
    })
}

/// Finds or stores a submission's payload.
async fn payload(app: &App, tenant: &Name, checked: &Checked) -> Result<Option<PayloadRef>, Problem> {
    match &checked.payload {
        Some(payload) => find_payload(app, tenant, payload).await.map(Some),
        None => Ok(None),
    }
}

/// The same for one payload.
pub(super) async fn find_payload(
    app: &App,
    tenant: &Name,
    payload: &submission::Payload,
) -> Result<PayloadRef, Problem> {
    let media_type = payload.media_type.clone();
    let stored = match &payload.content {
        PayloadContent::Inline(bytes) if payload.is_small() => PayloadRef {
            blob: BlobId::from(clock::new_uuid7()),
            size: bytes.len() as u64,
            sha256: Sha256::of(bytes),
            media_type,
            data: Some(Bytes::copy_from_slice(bytes)),
        },
        PayloadContent::Inline(bytes) => {
            let whole = futures_util::stream::iter([Ok::<_, Infallible>(Bytes::copy_from_slice(bytes))]);
            let info = app.blobs.put_stream(tenant.clone(), Some(media_type.clone()), None, whole).await?;
            PayloadRef { blob: info.id, size: info.size, sha256: info.sha256, media_type, data: None }
        }
        PayloadContent::Event { event, as_told } => {
            let found = app.store.received_payload(tenant.clone(), *event).await;
            let (blob, info, _) = found.map_err(|error| match error {
                store::Error::NotFound(why) => Problem::not_found(format!("payload.event: {why}")),
                error => error.into(),
            })?;
            let media_type = if *as_told { info.media_type } else { media_type };
            PayloadRef { blob, size: info.size, sha256: info.sha256, media_type, data: None }
        }
        PayloadContent::Blob(blob) => {
            let info = app.blobs.info(tenant.clone(), *blob).await.map_err(|error| match error {
                store::Error::NotFound(why) => Problem::not_found(format!("payload.blob: {why}")),
                error => error.into(),
            })?;
            PayloadRef { blob: info.id, size: info.size, sha256: info.sha256, media_type, data: None }
        }
    };
    Ok(stored)
}

/// Which jobs to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only of this site.
    #[param(value_type = Option<String>)]
    site: Option<Name>,
    /// Only of this resource.
    #[param(value_type = Option<String>)]
    resource: Option<Name>,
    /// Only in this state.
    #[param(inline)]
    state: Option<JobState>,
    /// Only submitted at this time or later.
    #[param(value_type = Option<String>, format = "date-time")]
    since: Option<Timestamp>,
    /// Only submitted before this time.
    #[param(value_type = Option<String>, format = "date-time")]
    until: Option<Timestamp>,
    /// At most so many, 1 to 500; default 50.
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists jobs, newest first.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", params(ListQuery),
    responses((status = 200, body = List<Job>), (status = "default", body = ProblemDocument))
)]
pub async fn list(
    caller: Allowed<JobsRead>,
    State(app): State<App>,
    StrictQuery(query): StrictQuery<ListQuery>,
) -> Result<Json<List<Job>>, Problem> {
    let filter = JobFilter {
        tenant: caller.tenant,
        site: query.site,
        resource: query.resource,
        state: query.state,
        since: query.since,
        until: query.until,
        limit: page_size(query.limit)?,
        cursor: query.cursor,
    };
    let page = app.store.list_jobs(filter).await?;
    Ok(Json(List { items: page.items, next_cursor: page.next_cursor }))
}

/// One job.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Job), (status = "default", body = ProblemDocument))
)]
pub async fn show(
    caller: Allowed<JobsRead>,
    State(app): State<App>,
    Path(job): Path<String>,
) -> Result<Json<Job>, Problem> {
    Ok(Json(app.store.job(caller.tenant, id("job", &job)?).await?))
}

/// What `cancel` takes.
#[derive(Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// Ends the attempt of an agent that is away as `unknown`, instead of waiting for its answer.
    #[serde(default)]
    force: bool,
}

/// Cancels a job: at once if no agent has it, else as soon as the agent has stopped.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", tag = "jobs", params(("id" = String, Path)),
    request_body = Option<Cancel>,
    responses(
        (status = 200, body = Job),
        (status = 409, body = ProblemDocument, description = "`conflict`: it has ended already"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn cancel(
    caller: Allowed<JobsWrite>,
    State(app): State<App>,
    Path(job): Path<String>,
    OptionalJson(wish): OptionalJson<Cancel>,
) -> Result<Json<Job>, Problem> {
    let job = id("job", &job)?;
    let cancelled = match wish.force {
        true => app.store.force_cancel(caller.tenant, job).await?,
        false => app.store.cancel(caller.tenant, job).await?,
    };
    Ok(Json(cancelled))
}

/// What `retry` takes.
#[derive(Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// For a job that its client signed: an envelope signed anew, of the same job and for the same effect.
    envelope: Option<String>,
}

/// Gives a settled job a new deadline and new attempts. Of a job that its client signed these are the client's to give: as
/// long as its envelope allows, or as the new one says.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/retry", tag = "jobs", params(("id" = String, Path)),
    request_body = Option<Retry>,
    responses(
        (status = 200, body = Job),
        (status = 409, body = ProblemDocument, description = "`conflict`: its state forbids it, or the envelope is not of \
          this job; `envelope_expired`: it needs a new envelope"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn retry(
    caller: Allowed<JobsWrite>,
    State(app): State<App>,
    Path(job): Path<String>,
    OptionalJson(wish): OptionalJson<Retry>,
) -> Result<Json<Job>, Problem> {
    let renewed = wish.envelope.map(|text| envelope::renewed(&app, &caller.tenant, text)).transpose()?;
    Ok(Json(app.store.retry_renewed(caller.tenant, id("job", &job)?, renewed).await?))
}

/// What an operator found out about a job.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// `applied`: it took effect; `not_applied`: it did not; `skipped`: it does not matter any more.
    outcome: ResolveOutcome,
    /// Why, for whoever reads the job later; at most 1024 characters.
    note: Option<String>,
}

/// What an operator found out.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
enum ResolveOutcome {
    Applied,
    NotApplied,
    Skipped,
}

/// Closes an `unknown` job, and lets those behind it in its line go on: `applied` makes it `succeeded`, `not_applied`
/// `failed`, `skipped` `cancelled`. A job that failed, was denied or expired stays what it is; if it holds its line, those
/// behind it go on.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/resolve", tag = "jobs", params(("id" = String, Path)), request_body = Resolve,
    responses(
        (status = 200, body = Job),
        (status = 400, body = ProblemDocument, description = "`bad_request`, naming the field"),
        (status = 409, body = ProblemDocument, description = "`conflict`: there is nothing to resolve"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn resolve(
    caller: Allowed<JobsWrite>,
    State(app): State<App>,
    Path(job): Path<String>,
    JsonBytes(body): JsonBytes,
) -> Result<Json<Job>, Problem> {
    let job = id("job", &job)?;
    app.store.job(caller.tenant.clone(), job).await?;
    let resolve: Resolve = body::parse(&body)?;
    if resolve.note.as_ref().is_some_and(|note| note.chars().count() > MAX_NOTE) {
        return Err(Problem::bad_request(format!("note: must be at most {MAX_NOTE} characters")));
    }
    let resolution = match resolve.outcome {
        ResolveOutcome::Applied => Resolution::Applied,
        ResolveOutcome::NotApplied => Resolution::NotApplied,
        ResolveOutcome::Skipped => Resolution::Skipped,
    };
    Ok(Json(app.store.resolve(caller.tenant, job, resolution, resolve.note).await?))
}

/// The output payload.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/output", tag = "jobs",
    params(("id" = String, Path), ("Range" = Option<String>, Header)),
    responses(
        (status = 200, description = "The whole", content_type = "*/*"),
        (status = 206, description = "The range", content_type = "*/*"),
        (status = 416, body = ProblemDocument, description = "The range lies outside"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn output(
    caller: Allowed<JobsRead>,
    State(app): State<App>,
    Path(job): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (output, content) = app.store.output(caller.tenant, id("job", &job)?).await?;
    Download { content, size: output.size, sha256: output.sha256, media_type: &output.media_type }
        .answer(&headers)
        .await
}
