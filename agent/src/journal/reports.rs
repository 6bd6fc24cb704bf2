//! What is reported, read from the journal alone, and the end of an attempt once the hub has its report.

use super::{ACKED, FINISHED, Journal, JournalError, KEPT_REPORT, REPORTABLE, key, parse};
use crate::clock;
use passerelle_protocol::{Code, Effect, Failure, JobId, Outcome, Report, Verdict, session::Attempt};
use rusqlite::{OptionalExtension as _, params};
use std::sync::{Arc, atomic::Ordering};
use tokio::sync::futures::Notified;

/// Number, job, attempt and report.
type Row = (i64, [u8; 16], u32, String);

/// What is told of an attempt whose report cannot be read: without it, all reports that come after would wait for ever.
fn unreadable(attempt: Attempt, error: &JournalError) -> Report {
    tracing::error!(
        job_id = %attempt.job, attempt = attempt.number, %error,
        "A report cannot be read from the journal: its attempt is told as unknown"
    );
    let message = "how the attempt ended cannot be read from the agent's journal";
    let failure = Failure::new(Verdict::Permanent, Effect::Unknown, Code::Internal, message);
    Report {
        job: attempt.job,
        attempt: attempt.number,
        outcome: Outcome::Failed(failure),
        started_at: None,
        finished_at: clock::now(),
    }
}

impl Journal {
    /// The report of a finished attempt whose output waits to be uploaded.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn unsent_report(&self, attempt: Attempt) -> Result<Option<Report>, JournalError> {
        let key = key(attempt);
        let text: Option<String> = self
            .writer
            .read(move |c| {
                c.prepare_cached(
                    "SELECT report FROM attempts WHERE job = ?1 AND attempt = ?2 AND state = ?3",
                )?
                .query_row(params![key.0, key.1, FINISHED], |row| row.get(0))
                .optional()
            })
            .await?;
        text.map(|text| parse(&text)).transpose()
    }

    /// The reports after a cursor, oldest first, and the next cursor; from memory if they were committed just now. Without a
    /// cursor: all that are not acknowledged.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn reports_after(
        &self,
        cursor: Option<i64>,
        limit: usize,
    ) -> Result<(Vec<Arc<Report>>, i64), JournalError> {
        if let Some(cursor) = cursor {
            let fresh = self.fresh.after(cursor, limit);
            if let Some((last, _)) = fresh.last() {
                return Ok((fresh.iter().map(|(_, report)| Arc::clone(report)).collect(), *last));
            }
        }
        let (after, seq) = (cursor.unwrap_or(0), Arc::clone(&self.seq));
        let (rows, given): (Vec<Row>, i64) = self
            .writer
            .read(move |c| {
                let rows = c
                    .prepare_cached(
                        "SELECT seq, job, attempt, report FROM attempts WHERE state = 3 AND seq > ?1 ORDER BY seq LIMIT ?2",
                    )?
                    .query_map(params![after, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                    })?
                    .collect::<Result<_, _>>()?;
                // Numbers are given on this thread: all up to here are committed.
                Ok((rows, seq.load(Ordering::Relaxed)))
            })
            .await?;
        let next = if rows.len() < limit { Some(given) } else { rows.last().map(|(seq, ..)| *seq) };
        let reports = rows.iter().map(|(_, job, attempt, text)| {
            let attempt = Attempt::new(JobId::from(uuid::Uuid::from_bytes(*job)), *attempt);
            Arc::new(parse(text).unwrap_or_else(|error| unreadable(attempt, &error)))
        });
        Ok((reports.collect(), next.unwrap_or(given)))
    }

    /// Waits until a report has become ready, from this call on.
    pub fn reportable(&self) -> Notified<'_> {
        self.fresh.filled()
    }

    /// Notes that the hub has the report: the row becomes a tombstone. Where the effect is unknown
    /// the intent is kept: a later attempt of the job may decide by it what happened. Where that one has decided, the
    /// intents before it have had their day. Lazy.
    pub fn acked(&self, attempt: Attempt) {
        let (key, now) = (key(attempt), clock::unix_seconds());
        if attempt.number > 1 {
            self.writer.lazy(move |c| {
                c.prepare_cached(
                    "UPDATE attempts SET intent = NULL WHERE job = ?1 AND attempt < ?2 AND intent IS NOT NULL AND EXISTS (
                       SELECT 1 FROM attempts AS decided WHERE decided.job = ?1 AND decided.attempt = ?2 AND decided.state = ?3
                       AND coalesce(json_extract(decided.report, '$.outcome.effect'), '') != 'unknown'
                       AND (decided.intent IS NOT NULL OR json_extract(decided.report, '$.outcome.effect') IS NULL))",
                )?
                .execute(params![key.0, key.1, REPORTABLE])
            });
        }
        self.writer.lazy(move |c| {
            c.prepare_cached(
                "UPDATE attempts SET state = ?3, acked_at = ?4, seq = NULL, envelope = '',
                   intent = CASE WHEN json_extract(report, '$.outcome.effect') = 'unknown' THEN intent END,
                   report = CASE WHEN length(report) <= ?5 THEN report END
                 WHERE job = ?1 AND attempt = ?2 AND state = ?6",
            )?
            .execute(params![key.0, key.1, ACKED, now, KEPT_REPORT as i64, REPORTABLE])
        });
    }
}
