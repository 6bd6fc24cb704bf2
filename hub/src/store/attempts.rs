//! What agents tell about attempts, carried out inside a transaction of the writer.
//!
//! Everything here is idempotent by job and attempt: a message that comes twice, or over two connections, changes
//! nothing the second time. An attempt belongs to the agent it was offered to; what another one says of it is ignored.

pub(crate) use super::facts::{AttemptRow, JobRow};

use super::{
    Error,
    lines::{self},
    row::{as_word, from_uuid, ms, name, to_json},
    transition::{Decision, Event, Next, next},
    writer::Tx,
};
use crate::{
    model::{ChangeKind, JobState},
    tunnel::{
        breaker::Health,
        registry::{Command, QueueKey},
    },
};
use bytes::Bytes;
use jiff::Timestamp;
use passerelle_protocol::{
    AgentId, Code, CommitMode, Decline, Effect, Failure, JobId, Outcome, Progress, Repeat, Report, Sha256,
    Verdict, session::Attempt,
};
use rusqlite::{Connection, OptionalExtension as _, params};

/// All attempts that have not ended, with their agents and queues.
pub(super) fn all_open(conn: &Connection) -> Result<Vec<(AgentId, Attempt, QueueKey)>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT a.agent, j.id, a.number, j.tenant, j.site, j.resource FROM attempts a INDEXED BY attempts_open \
         JOIN jobs j ON j.seq = a.job WHERE a.finished_at IS NULL",
    )?;
    let rows = statement.query_map([], |row| {
        let queue = QueueKey { tenant: name(row, 3)?, site: name(row, 4)?, resource: name(row, 5)? };
        Ok((from_uuid(row, 0)?, Attempt::new(from_uuid(row, 1)?, row.get(2)?), queue))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A report whose output has been looked at.
#[derive(Debug)]
pub(crate) struct CheckedReport {
    pub(crate) report: Report,
    /// Small output that came with it, of the size and digest it says.
    pub(crate) data: Option<Bytes>,
}

/// The job and its attempt, if the attempt is this agent's, or of one that it was enrolled in the place of.
pub(super) fn own(
    tx: &Tx<'_>,
    agent: AgentId,
    attempt: Attempt,
) -> Result<Option<(JobRow, AttemptRow)>, Error> {
    let Some(job) = JobRow::by_id(tx.conn, attempt.job)? else { return Ok(None) };
    let Some(row) = AttemptRow::find(tx.conn, job.seq, attempt.number)? else { return Ok(None) };
    let own = row.agent == agent || super::agents::stands_for(tx.conn, agent, row.agent)?;
    Ok(own.then_some((job, row)))
}

/// The attempt is in the agent's journal.
pub(crate) fn accepted(tx: &mut Tx<'_>, agent: AgentId, attempt: Attempt) -> Result<(), Error> {
    if let Some((job, row)) = own(tx, agent, attempt)?
        && row.finished_at.is_none()
    {
        mark_accepted(tx, &job, row.number)?;
    }
    Ok(())
}

pub(crate) fn mark_accepted(tx: &mut Tx<'_>, job: &JobRow, number: u32) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE attempts SET accepted_at = ?3 WHERE job = ?1 AND number = ?2 AND accepted_at IS NULL",
        )?
        .execute(params![job.seq, number, ms(tx.now)])?;
    tx.effects.changes.push((job.tenant().clone(), ChangeKind::Job(job.id)));
    Ok(())
}

/// The connector has started, or has come further.
pub(crate) fn progressed(tx: &mut Tx<'_>, agent: AgentId, progress: &Progress) -> Result<(), Error> {
    let attempt = Attempt::new(progress.job, progress.attempt);
    let Some((job, row)) = own(tx, agent, attempt)? else { return Ok(()) };
    if row.finished_at.is_some() {
        return Ok(());
    }
    mark_started(tx, &job, row.number, progress.started_at)?;
    let total = progress.bytes_total.and_then(|n| i64::try_from(n).ok());
    let done = i64::try_from(progress.bytes_done).unwrap_or(i64::MAX);
    tx.conn
        .prepare_cached(
            "UPDATE attempts SET bytes_done = ?3, bytes_total = ?4 WHERE job = ?1 AND number = ?2",
        )?
        .execute(params![job.seq, row.number, done, total])?;
    tx.effects.changes.push((job.tenant().clone(), ChangeKind::Job(job.id)));
    Ok(())
}

pub(crate) fn mark_started(tx: &mut Tx<'_>, job: &JobRow, number: u32, at: Timestamp) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE attempts SET started_at = coalesce(started_at, ?3), accepted_at = coalesce(accepted_at, ?4) \
             WHERE job = ?1 AND number = ?2",
        )?
        .execute(params![job.seq, number, ms(at), ms(tx.now)])?;
    if number == job.attempt {
        apply(tx, job, next(&job.facts, &Event::Started, tx.now, 0.0))?;
    }
    Ok(())
}

/// The attempt was not taken.
pub(crate) fn declined(tx: &mut Tx<'_>, agent: AgentId, decline: &Decline) -> Result<(), Error> {
    let attempt = Attempt::new(decline.job, decline.attempt);
    release(tx, agent, attempt);
    let Some((job, row)) = own(tx, agent, attempt)? else { return Ok(()) };
    if row.finished_at.is_some() {
        return Ok(());
    }
    let event = Event::Declined {
        code: decline.code,
        message: &decline.message,
        retry_after_ms: decline.retry_after_ms,
    };
    let decision =
        if row.number == job.attempt { next(&job.facts, &event, tx.now, 0.0) } else { Decision::Ignore };
    let Some(next) = apply(tx, &job, decision)? else {
        // The job has ended meanwhile: nothing was done, and nobody waits for it.
        tx.effects.changes.push((job.tenant().clone(), ChangeKind::Job(job.id)));
        return withdraw(tx, job.seq, row.number);
    };
    if let Some(hold) = next.hold {
        tx.shared.registry.hold(agent, &job.queue.resource, hold);
    }
    if !next.withdraw {
        let verdict = if next.state == JobState::Denied { Verdict::Denied } else { Verdict::Permanent };
        let failure = Failure::new(verdict, Effect::NotApplied, decline.code, decline.message.clone());
        finish(tx, &job, row.number, &failure, tx.now, true)?;
    }
    Ok(())
}

/// The attempt has ended. What is not known here, or not the agent's, changes nothing and is acknowledged all the same:
/// the agent would tell it for ever.
pub(crate) fn reported(tx: &mut Tx<'_>, agent: AgentId, checked: &CheckedReport) -> Result<(), Error> {
    let report = &checked.report;
    let attempt = Attempt::new(report.job, report.attempt);
    let found = own(tx, agent, attempt)?;
    if let Some((job, row)) = &found
        && !row.reported
    {
        told_of(tx, job, report);
    }
    release(tx, agent, attempt);
    let Some((job, row)) = found else {
        tracing::warn!(agent_id = %agent, job_id = %report.job, attempt = report.attempt, "Report of an unknown attempt");
        return Ok(());
    };
    if row.reported {
        return Ok(());
    }
    match &report.outcome {
        Outcome::Succeeded { .. } if found_undone(tx.conn, &job, &row)? => {
            tracing::warn!(
                agent_id = %agent, job_id = %report.job, attempt = report.attempt,
                "A success does not count: a later attempt had found that it did not happen"
            );
            let message = "told as succeeded after a later attempt had found that it did not happen, and that it cannot happen any more";
            let failure = Failure::new(Verdict::Permanent, Effect::Unknown, Code::AgentLost, message);
            failed(tx, &job, &row, &failure, report)
        }
        Outcome::Succeeded { result, output, receipt } => {
            let output = output.as_ref();
            if let Some(output) = output
                && checked.data.is_none()
                && !uploaded(tx.conn, report.job, output.size, output.sha256)?
            {
                let failure = Failure::new(
                    Verdict::Retry,
                    Effect::Unknown,
                    Code::DigestMismatch,
                    "the agent reported an output that it had not uploaded whole",
                );
                return failed(tx, &job, &row, &failure, report);
            }
            tx.conn
                .prepare_cached(
                    "UPDATE attempts SET reported = 1, withdrawn = 0, accepted_at = coalesce(accepted_at, ?3), \
                     started_at = coalesce(started_at, ?5), finished_at = ?4, \
                     verdict = NULL, effect = 'applied', code = NULL, message = NULL, \
                     bytes_done = coalesce(?6, bytes_done), bytes_total = coalesce(?6, bytes_total) \
                     WHERE job = ?1 AND number = ?2",
                )?
                // A payload that took effect has moved whole, also where the job was too fast to tell of its progress.
                .execute(params![
                    job.seq,
                    row.number,
                    ms(tx.now),
                    ms(report.finished_at),
                    report.started_at.map(ms),
                    job.payload_size
                ])?;
            let decision = next(&job.facts, &Event::Succeeded, tx.now, 0.0);
            if apply(tx, &job, decision)?.is_none() {
                return Ok(());
            }
            tx.conn
                .prepare_cached(
                    "UPDATE jobs SET result = ?2, receipt = ?3, output_size = ?4, output_sha256 = ?5, \
                     output_media_type = ?6 WHERE seq = ?1",
                )?
                .execute(params![
                    job.seq,
                    to_json(result)?,
                    receipt,
                    output.map(|o| i64::try_from(o.size).unwrap_or(i64::MAX)),
                    output.map(|o| *o.sha256.bytes()),
                    output.map(|o| o.media_type.as_str()),
                ])?;
            if let Some(data) = &checked.data {
                tx.conn
                    .prepare_cached("INSERT OR REPLACE INTO outputs (job, data) VALUES (?1, ?2)")?
                    .execute(params![job.seq, data.as_ref()])?;
            }
            if job.attempt > 1 { stop_others(tx, &job, row.number) } else { Ok(()) }
        }
        Outcome::Failed(failure) => failed(tx, &job, &row, failure, report),
    }
}

/// Whether a later attempt that was granted what this one had been granted has told that it did not happen. It has taken away
/// what this one had prepared then: that it is gone says nothing to the agent of this one, which may take it for its own work.
/// One that was declined has looked at nothing; and what left no part is not told by one that is gone.
fn found_undone(conn: &Connection, job: &JobRow, row: &AttemptRow) -> Result<bool, Error> {
    if row.number == job.attempt || row.commit != CommitMode::Ask || row.repeat != Repeat::Safe {
        return Ok(false);
    }
    let sql = "SELECT 1 FROM attempts a WHERE a.job = ?1 AND a.number > ?2 AND a.reported = 1 AND a.effect = 'not_applied' \
               AND a.accepted_at IS NOT NULL AND EXISTS (SELECT 1 FROM attempts g WHERE g.job = ?1 AND g.number = ?2 \
               AND json_extract(g.intent, '$.part') IS NOT NULL)";
    Ok(conn.prepare_cached(sql)?.exists(params![job.seq, row.number])?)
}

fn failed(
    tx: &mut Tx<'_>,
    job: &JobRow,
    row: &AttemptRow,
    failure: &Failure,
    report: &Report,
) -> Result<(), Error> {
    let given_up = row.finished_at.is_some();
    finish(tx, job, row.number, failure, report.finished_at, true)?;
    if let Some(started_at) = report.started_at {
        tx.conn
            .prepare_cached(
                "UPDATE attempts SET started_at = coalesce(started_at, ?3) WHERE job = ?1 AND number = ?2",
            )?
            .execute(params![job.seq, row.number, ms(started_at)])?;
    }
    if row.number == job.attempt && !given_up {
        let mut facts = job.facts.clone();
        if facts.granted && failure.effect == Effect::NotApplied {
            // Whoever was granted the effect before: this attempt has found out that it did not happen.
            facts.granted = false;
            tx.conn.prepare_cached("UPDATE jobs SET granted = 0 WHERE seq = ?1")?.execute([job.seq])?;
        }
        let event = Event::Failed { failure, repeat: row.repeat };
        apply(tx, job, next(&facts, &event, tx.now, random()))?;
    }
    Ok(())
}

/// What the outcome says of the target behind the resource, for its circuit breaker.
fn told_of(tx: &mut Tx<'_>, job: &JobRow, report: &Report) {
    let attempt = Attempt::new(report.job, report.attempt);
    let health = match &report.outcome {
        Outcome::Succeeded { .. } => Health::Up,
        Outcome::Failed(failure) => Health::of(failure.code),
    };
    if tx.shared.registry.told_of(&job.queue, attempt, health) {
        tx.effects.queues.push(job.queue.clone());
    }
}

/// Whether an attempt of the job has uploaded this output; its upload is then used up. An earlier one's counts as well: what
/// it was made from may be gone since, so that a later one can only finish what that one began. So does an output that the
/// job has already.
fn uploaded(conn: &Connection, job: JobId, size: u64, sha256: Sha256) -> Result<bool, Error> {
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let job = job.uuid();
    let output = params![job.as_bytes(), size, sha256.bytes()];
    let used = conn
        .prepare_cached(
            "DELETE FROM uploads WHERE job = ?1 AND complete = 1 AND length = ?2 AND sha256 = ?3",
        )?
        .execute(output)?;
    Ok(used > 0
        || conn
            .prepare_cached("SELECT 1 FROM jobs WHERE id = ?1 AND output_size = ?2 AND output_sha256 = ?3")?
            .exists(output)?)
}

/// Gives the job the output that its last attempt to come so far had stored before it was lost.
pub(crate) fn adopt_output(tx: &mut Tx<'_>, job: &JobRow) -> Result<(), Error> {
    let stored: Option<(u32, i64, [u8; 32])> = tx
        .conn
        .prepare_cached(
            "SELECT attempt, length, sha256 FROM uploads WHERE job = ?1 AND complete = 1 ORDER BY attempt DESC LIMIT 1",
        )?
        .query_row([job.id.uuid().as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((attempt, size, sha256)) = stored else { return Ok(()) };
    tx.conn
        .prepare_cached("DELETE FROM uploads WHERE job = ?1 AND attempt = ?2")?
        .execute(params![job.id.uuid().as_bytes(), attempt])?;
    tx.conn
        .prepare_cached(
            "UPDATE jobs SET output_size = ?2, output_sha256 = ?3, output_media_type = 'application/octet-stream' \
             WHERE seq = ?1 AND output_sha256 IS NULL",
        )?
        .execute(params![job.seq, size, sha256])?;
    Ok(())
}

/// After a success, attempts of the same job that are still under way are asked to stop.
fn stop_others(tx: &mut Tx<'_>, job: &JobRow, but: u32) -> Result<(), Error> {
    let mut statement = tx.conn.prepare_cached(
        "SELECT number, agent FROM attempts WHERE job = ?1 AND number <> ?2 AND finished_at IS NULL",
    )?;
    let mut rows = statement.query(params![job.seq, but])?;
    while let Some(row) = rows.next()? {
        let attempt = Attempt::new(job.id, row.get(0)?);
        tx.effects.commands.push((from_uuid(row, 1)?, Command::Cancel(attempt)));
    }
    Ok(())
}

/// Ends the current attempt because its agent does not hold it (any more).
pub(crate) fn not_held(tx: &mut Tx<'_>, job: &JobRow, row: &AttemptRow, repeat: Repeat) -> Result<(), Error> {
    release(tx, row.agent, Attempt::new(job.id, row.number));
    if row.accepted_at.is_none() {
        if row.number == job.attempt && !job.facts.state.is_settled() {
            apply(tx, job, next(&job.facts, &Event::NotHeld, tx.now, 0.0))?;
        } else {
            withdraw(tx, job.seq, row.number)?;
        }
        return Ok(());
    }
    give_up(tx, job, row, Event::Lost { repeat, asked: row.commit == CommitMode::Ask })
}

/// Ends an attempt without its agent's word; its report, if it ever comes, still counts.
pub(crate) fn give_up(
    tx: &mut Tx<'_>,
    job: &JobRow,
    row: &AttemptRow,
    event: Event<'_>,
) -> Result<(), Error> {
    let decision = match row.number == job.attempt {
        true => next(&job.facts, &event, tx.now, 0.0),
        false => Decision::Ignore,
    };
    let message = "the agent lost the attempt; whether it took effect is not known";
    let mut failure = Failure::new(Verdict::Permanent, Effect::Unknown, Code::AgentLost, message);
    if let Decision::Become(Next { state, error: Some(error), .. }) = &decision {
        (failure.effect, failure.message) = (error.effect, error.message.clone());
        if *state == JobState::Queued {
            failure.verdict = Verdict::Retry;
        }
    }
    finish(tx, job, row.number, &failure, tx.now, false)?;
    apply(tx, job, decision)?;
    Ok(())
}

/// Writes a failed attempt's end. `reported`: by the agent; else the hub gives it up, and a later report still counts.
fn finish(
    tx: &mut Tx<'_>,
    job: &JobRow,
    number: u32,
    failure: &Failure,
    at: Timestamp,
    reported: bool,
) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE attempts SET reported = ?3, finished_at = ?4, verdict = ?5, effect = ?6, code = ?7, message = ?8 \
             WHERE job = ?1 AND number = ?2",
        )?
        .execute(params![
            job.seq,
            number,
            reported,
            ms(at),
            as_word(&failure.verdict),
            as_word(&failure.effect),
            failure.code.as_str(),
            failure.message
        ])?;
    tx.effects.changes.push((job.tenant().clone(), ChangeKind::Job(job.id)));
    Ok(())
}

fn withdraw(tx: &Tx<'_>, job: i64, number: u32) -> Result<(), Error> {
    tx.conn
        .prepare_cached("UPDATE attempts SET withdrawn = 1, finished_at = ?3 WHERE job = ?1 AND number = ?2")?
        .execute(params![job, number, ms(tx.now)])?;
    Ok(())
}

/// Frees the agent's place, and looks again at what waits for one.
pub(crate) fn release(tx: &mut Tx<'_>, agent: AgentId, attempt: Attempt) {
    let queues = tx.shared.registry.release(agent, attempt);
    tx.effects.queues.extend(queues);
}

/// Carries out a decision; what the job became, if it changed.
pub(crate) fn apply(tx: &mut Tx<'_>, job: &JobRow, decision: Decision) -> Result<Option<Next>, Error> {
    let Decision::Become(next) = decision else { return Ok(None) };
    let settled = next.state.is_settled();
    let error = next.error.as_ref();
    tx.conn
        .prepare_cached(
            "UPDATE jobs SET state = ?2, finished_at = ?3, next_attempt_at = ?4, \
             error_code = CASE WHEN ?11 THEN error_code ELSE ?5 END, \
             error_message = CASE WHEN ?11 THEN error_message ELSE ?6 END, \
             error_effect = CASE WHEN ?11 THEN error_effect ELSE ?7 END, counted = counted - ?8, refused = ?9, \
             cancel_requested = CASE WHEN ?10 THEN 0 ELSE cancel_requested END WHERE seq = ?1",
        )?
        .execute(params![
            job.seq,
            next.state.as_str(),
            settled.then_some(ms(tx.now)),
            next.next_attempt_at.map(ms),
            error.map(|e| e.code.as_str()),
            error.map(|e| e.message.as_str()),
            error.and_then(|e| as_word(&e.effect)),
            u32::from(next.withdraw || next.uncounted),
            next.refused,
            settled,
            next.keep_error
        ])?;
    if next.withdraw {
        withdraw(tx, job.seq, job.attempt)?;
    }
    lines::on_state(tx, job, next.state)?;
    tx.effects.changes.push((job.tenant().clone(), ChangeKind::Job(job.id)));
    match next.state {
        JobState::Queued => {
            tx.effects.queues.push(job.queue.clone());
            tx.effects.due_at(job.facts.deadline);
        }
        JobState::Waiting => {
            tx.effects.due_at(next.next_attempt_at.unwrap_or(tx.now));
            tx.effects.due_at(job.facts.deadline);
        }
        state if state.is_settled() => tx.effects.settled.push(job.id),
        _ => {}
    }
    Ok(Some(next))
}

/// Random in 0..1, for the jitter.
fn random() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}
