//! Jobs as clients see them: submission, lists, cancel, retry, wait, output.

use super::{
    Content, Error, Store, Submitted,
    attempts::{self, AttemptRow, JobRow},
    dispatch, lines, received,
    row::{self, from_uuid, ms, to_json, whole_job},
    signed,
    transition::{Decision, Event, Resolution, next},
    writer::Tx,
};
use crate::{
    model::{Change, ChangeKind, Job, JobFilter, JobState, NewJob, OutputView, Page},
    tunnel::registry::{Command, QueueKey},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use passerelle_protocol::{
    BlobId, Envelope, JobId, Name, Sha256, limits::MAX_INLINE_PAYLOAD, session::Attempt,
};
use rusqlite::{OptionalExtension as _, named_params, params};
use std::time::Duration;
use tokio::sync::broadcast;

/// How many jobs a page holds, at most.
const MAX_PAGE: usize = 500;

impl Store {
    /// Stores a job; answers when it is on disk. Concurrent submissions share a sync.
    ///
    /// # Errors
    /// [`Error::SiteUnknown`], [`Error::NotFound`] for a payload that the tenant does not have,
    /// [`Error::IdempotencyMismatch`], [`Error::Full`].
    pub async fn submit(&self, mut job: NewJob) -> Result<Submitted, Error> {
        // Whole seconds, as in the envelope: hub and agent judge the same moment.
        let round = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil);
        job.deadline = job.deadline.round(round).unwrap_or(job.deadline);
        // Content that comes with a job is a blob of the job's own id: so its user is found without an index.
        if let Some(payload) = job.payload.as_mut().filter(|payload| payload.data.is_some()) {
            payload.blob = BlobId::from(job.id.uuid());
        }
        self.write(move |tx| submit(tx, job)).await
    }

    /// One job.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn job(&self, tenant: Name, id: JobId) -> Result<Job, Error> {
        self.read(move |conn| whole_job(conn, &tenant, id)).await
    }

    /// Jobs, newest first. A page starts where the one before ended, whatever was submitted since.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a cursor that no page gave.
    pub async fn list_jobs(&self, filter: JobFilter) -> Result<Page<Job>, Error> {
        let cursor = filter.cursor.as_deref().map(read_cursor).transpose()?;
        self.read(move |conn| {
            let limit = filter.limit.clamp(1, MAX_PAGE);
            let mut statement = conn.prepare_cached(&list_sql(&filter))?;
            let mut rows = statement.query(named_params! {
                ":tenant": filter.tenant.as_str(),
                ":site": filter.site.as_ref().map(Name::as_str),
                ":resource": filter.resource.as_ref().map(Name::as_str),
                ":state": filter.state.map(JobState::as_str),
                ":since": filter.since.map_or(i64::MIN, ms),
                ":until": filter.until.map_or(i64::MAX, ms),
                ":at": cursor.map_or(i64::MAX, |(at, _)| at),
                ":seq": cursor.map_or(i64::MAX, |(_, seq)| seq),
                ":limit": i64::try_from(limit + 1).unwrap_or(i64::MAX),
            })?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(row::job(row)?);
            }
            let more = found.len() > limit;
            found.truncate(limit);
            let next_cursor =
                found.last().filter(|_| more).map(|(seq, job)| write_cursor(ms(job.created_at), *seq));
            let mut items = Vec::with_capacity(found.len());
            for (seq, mut job) in found {
                row::add_attempts(conn, seq, &mut job)?;
                items.push(job);
            }
            Ok(Page { items, next_cursor })
        })
        .await
    }

    /// Cancels a job: at once if no agent has it, else by asking its agent; the state then follows from its report.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] if it has ended.
    pub async fn cancel(&self, tenant: Name, id: JobId) -> Result<Job, Error> {
        self.write(move |tx| {
            let job = find(tx, &tenant, id)?;
            match next(&job.facts, &Event::Cancel, tx.now, 0.0) {
                Decision::AskAgent => {
                    tx.conn
                        .prepare_cached("UPDATE jobs SET cancel_requested = 1 WHERE seq = ?1")?
                        .execute([job.seq])?;
                    let agent = tx
                        .conn
                        .prepare_cached(
                            "SELECT agent FROM attempts WHERE job = ?1 AND number = ?2 AND finished_at IS NULL",
                        )?
                        .query_row(params![job.seq, job.attempt], |row| from_uuid(row, 0))
                        .optional()?;
                    if let Some(agent) = agent {
                        let attempt = Attempt::new(job.id, job.attempt);
                        tx.effects.commands.push((agent, Command::Cancel(attempt)));
                    }
                }
                decision => {
                    attempts::apply(tx, &job, decision)?.ok_or_else(|| forbidden(&job, "cancelled"))?;
                }
            }
            whole_job(tx.conn, &tenant, id)
        })
        .await
    }

    /// Ends an attempt whose agent is lost: the job becomes `unknown`. One whose agent is there is cancelled as usual.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] if it has ended.
    pub async fn force_cancel(&self, tenant: Name, id: JobId) -> Result<Job, Error> {
        let lost = self
            .write({
                let tenant = tenant.clone();
                move |tx| {
                    let job = find(tx, &tenant, id)?;
                    let Some(row) = AttemptRow::find(tx.conn, job.seq, job.attempt)? else { return Ok(None) };
                    let under_way = matches!(job.facts.state, JobState::Offered | JobState::Running);
                    if !under_way || tx.shared.registry.online(row.agent).is_some() {
                        return Ok(None);
                    }
                    attempts::release(tx, row.agent, Attempt::new(job.id, row.number));
                    attempts::give_up(tx, &job, &row, Event::GivenUp)?;
                    whole_job(tx.conn, &tenant, id).map(Some)
                }
            })
            .await?;
        match lost {
            Some(job) => Ok(job),
            None => self.cancel(tenant, id).await,
        }
    }

    /// Closes an `unknown` job with what an operator found out. A job that failed, was denied or expired and holds its
    /// line can be skipped: it stays what it is, and those behind it go on.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] if there is nothing to resolve.
    pub async fn resolve(
        &self,
        tenant: Name,
        id: JobId,
        resolution: Resolution,
        note: Option<String>,
    ) -> Result<Job, Error> {
        self.write(move |tx| {
            let job = find(tx, &tenant, id)?;
            let holds = job.line.as_ref().filter(|line| line.blocks && job.facts.state.is_settled());
            match (next(&job.facts, &Event::Resolved(resolution), tx.now, 0.0), holds) {
                (Decision::Become(mut next), _) => {
                    if let (Some(error), Some(note)) = (&mut next.error, &note) {
                        error.message = format!("{}: {note}", error.message);
                    }
                    attempts::apply(tx, &job, Decision::Become(next))?;
                    tx.conn
                        .prepare_cached("UPDATE jobs SET granted = 0 WHERE seq = ?1")?
                        .execute([job.seq])?;
                    if resolution == Resolution::Applied {
                        attempts::adopt_output(tx, &job)?;
                    }
                    // However it was resolved, those behind it go on.
                    if let Some(line) = &job.line {
                        lines::leave(tx, &job, &line.key)?;
                    }
                }
                (_, Some(line)) if resolution == Resolution::Skipped => {
                    lines::leave(tx, &job, &line.key)?;
                    tx.effects.changes.push((tenant.clone(), ChangeKind::Job(id)));
                }
                _ => {
                    return Err(forbidden(
                        &job,
                        "resolved: only a job that is unknown, or holds its line, can be",
                    ));
                }
            }
            if let Some(note) = &note {
                tx.conn
                    .prepare_cached("UPDATE jobs SET note = ?2 WHERE seq = ?1")?
                    .execute(params![job.seq, note])?;
            }
            whole_job(tx.conn, &tenant, id)
        })
        .await
    }

    /// Gives a settled job a new deadline and more attempts, as far as whoever signs it allows.
    ///
    /// # Errors
    /// As [`Self::retry_renewed`].
    pub async fn retry(&self, tenant: Name, id: JobId) -> Result<Job, Error> {
        self.retry_renewed(tenant, id, None).await
    }

    /// The same; with `renewed` as far as the client's new envelope allows.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] unless it is failed, cancelled, expired or unknown, and for an envelope that
    /// is not of this job; [`Error::EnvelopeExpired`] where the one it has allows no more.
    pub async fn retry_renewed(
        &self,
        tenant: Name,
        id: JobId,
        renewed: Option<(String, Envelope)>,
    ) -> Result<Job, Error> {
        self.write(move |tx| retry_in(tx, &tenant, id, renewed)).await
    }

    /// The output payload.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such job, or it has no output (yet).
    pub async fn output(&self, tenant: Name, id: JobId) -> Result<(OutputView, Content), Error> {
        let files = self.files().clone();
        self.read(move |conn| {
            let job = whole_job(conn, &tenant, id)?;
            let output = job.output.ok_or_else(|| Error::NotFound(format!("job {id} has no output")))?;
            let data: Option<Vec<u8>> = conn
                .prepare_cached("SELECT data FROM outputs WHERE job = (SELECT seq FROM jobs WHERE id = ?1)")?
                .query_row([id.uuid().as_bytes()], |row| row.get(0))
                .optional()?;
            let content = match data {
                Some(data) => Content::Bytes(Bytes::from(data)),
                None if conn
                    .prepare_cached("SELECT 1 FROM files WHERE owner = ?1 AND sha256 = ?2")?
                    .exists(params![id.uuid().as_bytes(), output.sha256.bytes()])? =>
                {
                    Content::File(files.content(output.sha256))
                }
                None => {
                    let gone = format!("the output of job {id} was removed: its retention is over");
                    return Err(Error::NotFound(gone));
                }
            };
            Ok((output, content))
        })
        .await
    }

    /// Changes as they are committed. One that lags behind misses some: it then reads [`Self::events_since`].
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.shared().changes.subscribe()
    }

    /// The number of the newest change.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn last_event(&self) -> Result<u64, Error> {
        self.read(|conn| Ok(u64::try_from(super::events::last(conn)?).unwrap_or_default())).await
    }

    /// The changes of a tenant after `seq`, oldest first; those long past are gone.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn events_since(&self, tenant: Name, seq: u64, limit: usize) -> Result<Vec<Change>, Error> {
        self.read(move |conn| super::events::of_tenant(conn, &tenant, seq, limit)).await
    }
}

fn find(tx: &Tx<'_>, tenant: &Name, id: JobId) -> Result<JobRow, Error> {
    JobRow::by_id(tx.conn, id)?
        .filter(|job| job.tenant() == tenant)
        .ok_or_else(|| Error::NotFound(format!("no job {id}")))
}

/// Gives a settled job more attempts, in a transaction that does more.
pub(crate) fn retry_in(
    tx: &mut Tx<'_>,
    tenant: &Name,
    id: JobId,
    renewed: Option<(String, Envelope)>,
) -> Result<Job, Error> {
    let mut job = find(tx, tenant, id)?;
    let decision = next(&job.facts, &Event::Retry, tx.now, 0.0);
    if decision == Decision::Forbidden {
        return Err(forbidden(&job, "retried"));
    }
    tx.shared.shares.open_job(tx.conn, tenant)?;
    if signed::retry(tx, &mut job, renewed)? {
        attempts::apply(tx, &job, decision)?;
        return whole_job(tx.conn, tenant, id);
    }
    let round = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil);
    let deadline_s: u32 = tx
        .conn
        .prepare_cached("SELECT deadline_s FROM jobs WHERE seq = ?1")?
        .query_row([job.seq], |row| row.get(0))?;
    let deadline = tx.now.checked_add(Duration::from_secs(deadline_s.into())).unwrap_or(Timestamp::MAX);
    job.facts.deadline = deadline.round(round).unwrap_or(deadline);
    tx.conn
        .prepare_cached("UPDATE jobs SET deadline = ?2, allowed = counted + max_attempts WHERE seq = ?1")?
        .execute(params![job.seq, ms(job.facts.deadline)])?;
    attempts::apply(tx, &job, decision)?;
    whole_job(tx.conn, tenant, id)
}

fn forbidden(job: &JobRow, what: &str) -> Error {
    Error::Conflict(format!("job {} is {} and cannot be {what}", job.id, job.facts.state.as_str()))
}

pub(crate) fn submit(tx: &mut Tx<'_>, job: NewJob) -> Result<Submitted, Error> {
    if let Some((key, body)) = &job.idempotency {
        let seen: Option<(JobId, Sha256)> = tx
            .conn
            .prepare_cached(
                "SELECT id, idempotency_body FROM jobs WHERE tenant = ?1 AND idempotency_key = ?2",
            )?
            .query_row([job.tenant.as_str(), key], |row| Ok((from_uuid(row, 0)?, row::digest(row, 1)?)))
            .optional()?;
        match seen {
            Some((id, seen)) if seen == *body => {
                return Ok(Submitted { job: whole_job(tx.conn, &job.tenant, id)?, created: false });
            }
            Some(_) => return Err(Error::IdempotencyMismatch),
            None => {}
        }
    }
    if let Some(known) = signed::known(tx, &job)? {
        return Ok(known);
    }
    let site = tx
        .conn
        .prepare_cached("SELECT 1 FROM sites WHERE tenant = ?1 AND name = ?2")?
        .exists([job.tenant.as_str(), job.site.as_str()])?;
    if !site {
        return Err(Error::SiteUnknown(job.site));
    }
    tx.shared.shares.open_job(tx.conn, &job.tenant)?;
    store_payload(tx, &job)?;
    let (blocks, ready) = lines::on_submission(tx, &job)?;
    let first = if ready { dispatch::at_once(tx, &job)? } else { None };
    let labels = if job.labels.is_empty() { None } else { Some(to_json(&job.labels)?) };
    let attempts = u32::from(first.is_some());
    let state = if first.is_some() { JobState::Offered } else { JobState::Queued };
    let body = job.idempotency.as_ref().map(|(_, body)| body);
    let body = body.or(job.envelope.as_ref().map(|envelope| &envelope.submission));
    let inserted = tx
        .conn
        .prepare_cached(
            "INSERT INTO jobs (id, tenant, site, resource, operation, priority, created_at, deadline, allowed, \
             deadline_s, timeout_s, max_attempts, payload, idempotency_key, idempotency_body, order_key, on_failure, \
             traceparent, labels, params, payload_size, blocks, ready, state, attempt, counted, envelope, event) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?9, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, \
             ?21, ?22, ?23, ?24, ?24, ?25, ?26)",
        )?
        .execute(params![
            job.id.uuid().as_bytes(),
            job.tenant.as_str(),
            job.site.as_str(),
            job.resource.as_str(),
            job.operation.as_str(),
            job.priority,
            ms(job.created_at),
            ms(job.deadline),
            job.max_attempts,
            job.deadline_s,
            job.timeout_s,
            job.payload.as_ref().map(|p| *p.blob.uuid().as_bytes()),
            job.idempotency.as_ref().map(|(key, _)| key),
            body.map(|body| *body.bytes()),
            job.order_key,
            job.on_failure,
            job.traceparent,
            labels,
            to_json(&job.params)?,
            job.payload.as_ref().map(|p| i64::try_from(p.size).unwrap_or(i64::MAX)),
            blocks,
            ready,
            state.as_str(),
            attempts,
            job.envelope.as_ref().map(|envelope| &*envelope.text),
            job.event.map(|event| *event.uuid().as_bytes())
        ]);
    match inserted {
        Err(rusqlite::Error::SqliteFailure(e, _)) if e.code == rusqlite::ErrorCode::ConstraintViolation => {
            return Err(Error::Conflict(format!("there is a job {} already", job.id)));
        }
        inserted => inserted?,
    };
    tx.effects.changes.push((job.tenant.clone(), ChangeKind::Job(job.id)));
    let submitted = Submitted { job: row::submitted(&job), created: true };
    match first {
        Some(first) => first.store(tx, tx.conn.last_insert_rowid())?,
        None => {
            tx.effects.queues.push(QueueKey::of(&job));
            tx.effects.due_at(job.deadline);
        }
    }
    Ok(submitted)
}

/// Content that came with the job is stored with it; a blob must be the tenant's own.
fn store_payload(tx: &Tx<'_>, job: &NewJob) -> Result<(), Error> {
    let Some(payload) = &job.payload else { return Ok(()) };
    let id = *payload.blob.uuid().as_bytes();
    let Some(data) = &payload.data else {
        if let Some(event) = job.event {
            received::check_start(tx.conn, &job.tenant, event, payload.blob)?;
        }
        let own = tx
            .conn
            .prepare_cached("SELECT 1 FROM blobs WHERE id = ?1 AND tenant = ?2")?
            .exists(params![id, job.tenant.as_str()])?;
        if !own {
            return Err(Error::no_blob(payload.blob));
        }
        tx.conn
            .prepare_cached("INSERT INTO uses (blob, job) VALUES (?1, ?2)")?
            .execute(params![id, job.id.uuid().as_bytes()])?;
        return Ok(());
    };
    if data.len() > MAX_INLINE_PAYLOAD {
        return Err(Error::BadRequest("the payload is too large to come with the job".to_owned()));
    }
    tx.conn
        .prepare_cached(
            "INSERT INTO blobs (id, tenant, size, sha256, media_type, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            id,
            job.tenant.as_str(),
            i64::try_from(data.len()).unwrap_or(i64::MAX),
            Sha256::of(data).bytes(),
            payload.media_type,
            ms(tx.now)
        ])?;
    tx.conn
        .prepare_cached("INSERT INTO contents (blob, data) VALUES (?1, ?2)")?
        .execute(params![id, data.as_ref()])?;
    Ok(())
}

/// The list query for which keys are given. The index is named: without statistics SQLite might scan another one.
pub(super) fn list_sql(filter: &JobFilter) -> String {
    let mut sql = format!("SELECT {} FROM jobs INDEXED BY ", row::JOB);
    // Each of the two indexes for states holds some of them only: the query has to say so in the index's own words.
    let (index, condition) = match (filter.state, &filter.resource, &filter.site) {
        (Some(state), _, _) if !state.is_settled() => ("jobs_open", " AND finished_at IS NULL"),
        (Some(state), _, _) if state != JobState::Succeeded => {
            ("jobs_by_state", " AND state IN ('failed', 'denied', 'cancelled', 'expired', 'unknown')")
        }
        // Most jobs have succeeded: there the resource or the site tells more.
        (_, Some(_), _) => ("jobs_by_resource", ""),
        (_, None, Some(_)) => ("jobs_by_site", ""),
        (_, None, None) => ("jobs_by_tenant", ""),
    };
    sql.push_str(index);
    sql.push_str(" WHERE tenant = :tenant");
    sql.push_str(condition);
    // All parameters appear, so that one binding serves every form.
    let keys = [
        ("site", filter.site.is_some()),
        ("resource", filter.resource.is_some()),
        ("state", filter.state.is_some()),
    ];
    for (key, given) in keys {
        sql.push_str(&if given { format!(" AND {key} = :{key}") } else { format!(" AND :{key} IS NULL") });
    }
    sql.push_str(
        " AND created_at >= :since AND created_at < :until AND (created_at, seq) < (:at, :seq) \
         ORDER BY created_at DESC, seq DESC LIMIT :limit",
    );
    sql
}

pub(crate) fn write_cursor(at: i64, seq: i64) -> String {
    URL_SAFE_NO_PAD.encode(format!("{at}.{seq}"))
}

pub(crate) fn read_cursor(text: &str) -> Result<(i64, i64), Error> {
    let read = || {
        let decoded = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (at, seq) = decoded.split_once('.')?;
        Some((at.parse().ok()?, seq.parse().ok()?))
    };
    read().ok_or_else(|| Error::BadRequest("cursor: not one that a page of this list gave".to_owned()))
}
