//! Jobs as clients see them: submission, lists, cancel, retry, wait, output.

use super::{
    Content, Error, Store, Submitted,
    attempts::{self, AttemptRow, JobRow},
    cursor::{read_cursor, write_cursor},
    lines,
    row::{self, from_uuid, ms, whole_job},
    signed, submission,
    transition::{Decision, Event, Resolution, next},
    writer::Tx,
};
use crate::{
    model::{Change, ChangeKind, Job, JobFilter, JobState, NewJob, OutputView, Page},
    tunnel::registry::Command,
};
use bytes::Bytes;
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use passerelle_protocol::{BlobId, Envelope, JobId, Name, session::Attempt};
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
        self.write(move |tx| submission::submit(tx, job)).await
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
    /// line stays what it is, and those behind it go on.
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
                // How it ended stays as it is: whatever an operator found out, those behind it go on.
                (_, Some(line)) => {
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
