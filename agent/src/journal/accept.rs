//! Accepting attempts: what is known of them already, how many there may be, and the intent that an earlier one left.

use super::{
    ACCEPTED, ACKED, Accepted, FINISHED, Journal, JournalError, Key, REPORTABLE, RUNNING, json, next,
    row::NewRow,
};
use crate::{
    audit::{Entry, chain},
    job::Job,
};
use bytes::Bytes;
use passerelle_protocol::{Outcome, Report};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::sync::{Arc, atomic::AtomicI64};

impl Journal {
    /// Writes an accepted attempt, unless it or a higher one is known, an earlier one took effect or is under way, or the
    /// envelope allows no more of them. With `looks_back` its connector can tell from an earlier attempt's intent whether
    /// that one's effect happened. `leftover` is what it may leave at its target, `rule` what allows it.
    ///
    /// # Errors
    /// If it could not be written; then it is not accepted.
    pub async fn accept(
        &self,
        job: &Job,
        looks_back: bool,
        leftover: Option<String>,
        rule: usize,
    ) -> Result<Accepted, JournalError> {
        let entry = Entry::accepted(job, rule);
        self.insert(NewRow { leftover, ..NewRow::of(job)? }, None, looks_back, entry).await
    }

    /// Writes an attempt that ended before it began (denied, say): accepted and finished in one.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub async fn accept_finished(
        &self,
        job: &Job,
        report: &Report,
        entry: Entry,
    ) -> Result<Accepted, JournalError> {
        self.insert(NewRow::of(job)?, Some(json(report)?), false, entry).await
    }

    async fn insert(
        &self,
        row: NewRow,
        report: Option<String>,
        looks_back: bool,
        entry: Entry,
    ) -> Result<Accepted, JournalError> {
        self.grow(row.envelope.len() + row.ticket.len() + row.payload.as_ref().map_or(0, Bytes::len));
        let (seq, cost) = (Arc::clone(&self.seq), self.writer.cost());
        self.writer
            .write(move |c| {
                if let Some(known) = known(c, row.key, &seq)? {
                    return Ok(known);
                }
                let report = match earlier(c, row.key, looks_back)? {
                    Earlier::None => report,
                    Earlier::UnderWay => return Ok(Accepted::Busy),
                    Earlier::Lost { attempt } => return Ok(Accepted::Replayed { highest: attempt }),
                    Earlier::Done(outcome) => {
                        let again = json(&Report { attempt: row.key.1, ..*outcome });
                        let again =
                            again.map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
                        insert(c, &row, Some(&again), None, &seq)?;
                        return Ok(Accepted::Done);
                    }
                };
                if row.key.1 > row.max_attempts && accepted_so_far(c, row.key)? >= row.max_attempts {
                    return Ok(Accepted::Spent { allowed: row.max_attempts });
                }
                let intent = match &row.intent {
                    None if looks_back => earlier_intent(c, row.key)?,
                    granted => granted.clone(),
                };
                chain::append(c, &entry, &cost)?;
                insert(c, &row, report.as_deref(), intent.as_deref(), &seq)?;
                let intent = intent.and_then(|text| serde_json::from_str(&text).ok());
                Ok(intent.map_or(Accepted::New, Accepted::Continues))
            })
            .await
    }
}

/// Writes an attempt: accepted, or with its report.
fn insert(
    c: &Connection,
    row: &NewRow,
    report: Option<&str>,
    intent: Option<&str>,
    seq: &AtomicI64,
) -> rusqlite::Result<()> {
    let (state, seq, finished_at) = match report {
        None => (ACCEPTED, None, None),
        Some(_) => (REPORTABLE, Some(next(seq)), Some(row.accepted_at)),
    };
    c.prepare_cached(
        "INSERT INTO attempts (job, attempt, state, resource, envelope, ticket, at_hub, payload,
           traceparent, expires, accepted_at, finished_at, report, seq, intent, part, signer)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
    )?
    .execute(params![
        row.key.0,
        row.key.1,
        state,
        row.resource,
        row.envelope,
        row.ticket,
        row.at_hub,
        row.payload.as_deref(),
        row.traceparent,
        row.expires,
        row.accepted_at,
        finished_at,
        report,
        seq,
        intent,
        row.leftover,
        row.signer,
    ])?;
    Ok(())
}

/// What became of the attempts before one that is about to be accepted, as far as it forbids that one.
enum Earlier {
    None,
    UnderWay,
    /// It took effect, and this is what it reported.
    Done(Box<Report>),
    /// It took effect, and what it gave is not here any more.
    Lost {
        attempt: u32,
    },
}

/// A hub that means well offers no further attempt of a job that took effect, unless it has lost that (a restored backup);
/// another one could have a client's job happen as often as its envelope allows attempts. An output that had been uploaded is not
/// here any more: what `looks_back` is done again for it, since that changes nothing.
fn earlier(c: &Connection, key: Key, looks_back: bool) -> rusqlite::Result<Earlier> {
    let mut statement = c.prepare_cached(
        "SELECT attempt, state, report FROM attempts WHERE job = ?1 AND attempt < ?2 ORDER BY attempt DESC",
    )?;
    let mut rows = statement.query(params![key.0, key.1])?;
    while let Some(row) = rows.next()? {
        let (attempt, state): (u32, i64) = (row.get(0)?, row.get(1)?);
        if matches!(state, ACCEPTED | RUNNING | FINISHED) {
            return Ok(Earlier::UnderWay);
        }
        let report =
            row.get::<_, Option<String>>(2)?.and_then(|text| serde_json::from_str::<Report>(&text).ok());
        let lost = match report.as_ref().map(|report| &report.outcome) {
            Some(Outcome::Succeeded { output: Some(output), .. }) => output.data.is_none(),
            Some(Outcome::Succeeded { output: None, .. } | Outcome::Failed(_)) => false,
            // Too large to be kept, as only a success can be.
            None => true,
        };
        match report {
            _ if lost && looks_back => {}
            _ if lost => return Ok(Earlier::Lost { attempt }),
            Some(report) if matches!(report.outcome, Outcome::Succeeded { .. }) => {
                return Ok(Earlier::Done(Box::new(report)));
            }
            Some(_) | None => {}
        }
    }
    Ok(Earlier::None)
}

/// What the journal knows of an attempt that is about to be accepted.
fn known(c: &Connection, key: Key, seq: &AtomicI64) -> rusqlite::Result<Option<Accepted>> {
    let highest: Option<u32> = c
        .prepare_cached("SELECT max(attempt) FROM attempts WHERE job = ?1")?
        .query_row(params![key.0], |row| row.get(0))?;
    let Some(highest) = highest else { return Ok(None) };
    let found: Option<(i64, bool)> = c
        .prepare_cached("SELECT state, report IS NOT NULL FROM attempts WHERE job = ?1 AND attempt = ?2")?
        .query_row(params![key.0, key.1], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match found {
        None if key.1 > highest => Ok(None),
        None | Some((ACKED, false)) => Ok(Some(Accepted::Replayed { highest })),
        Some((ACKED, true)) => {
            c.prepare_cached("UPDATE attempts SET state = ?3, seq = ?4 WHERE job = ?1 AND attempt = ?2")?
                .execute(params![key.0, key.1, REPORTABLE, next(seq)])?;
            Ok(Some(Accepted::Again))
        }
        Some(_) => Ok(Some(Accepted::Held)),
    }
}

/// How many attempts of the job were accepted here. Numbers alone do not tell: a declined offer uses one up.
fn accepted_so_far(c: &Connection, key: Key) -> rusqlite::Result<u32> {
    c.prepare_cached("SELECT count(*) FROM attempts WHERE job = ?1")?
        .query_row(params![key.0], |row| row.get(0))
}

/// The intent that an attempt before this one of the same job left behind.
fn earlier_intent(c: &Connection, key: Key) -> rusqlite::Result<Option<String>> {
    if key.1 <= 1 {
        return Ok(None);
    }
    c.prepare_cached(
        "SELECT intent FROM attempts WHERE job = ?1 AND attempt < ?2 AND intent IS NOT NULL
           ORDER BY attempt DESC LIMIT 1",
    )?
    .query_row(params![key.0, key.1], |row| row.get(0))
    .optional()
}
