//! What the journal held at the start: the rows that are not acknowledged.

use super::{FINISHED, Found, JournalError, REPORTABLE, RUNNING, parse};
use crate::job::{Job, Payload};
use jiff::Timestamp;
use passerelle_protocol::{HeldState, JobId, KeyId, Name, session::Attempt};
use rusqlite::{Connection, Row};

/// Reads the rows that are not acknowledged.
pub(super) fn find(c: &Connection) -> Result<Vec<Found>, JournalError> {
    let mut statement = c.prepare(
        "SELECT job, attempt, state, resource, envelope, ticket, at_hub, payload, traceparent, accepted_at, started_at,
           intent, signer FROM attempts WHERE state < 4 ORDER BY rowid",
    )?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        match read(row) {
            Ok(one) => found.push(one),
            // One unreadable row must not keep the others from going on. The hub still holds its job.
            Err(error) => tracing::error!(%error, "A row of the journal cannot be read and is left alone"),
        }
    }
    Ok(found)
}

fn read(row: &Row<'_>) -> Result<Found, JournalError> {
    let job = JobId::from(uuid::Uuid::from_bytes(row.get("job")?));
    let attempt = Attempt::new(job, row.get("attempt")?);
    let state: i64 = row.get("state")?;
    let text = |column: &str| row.get::<_, String>(column);
    let resource: Name =
        text("resource")?.parse().map_err(|e| JournalError::Storage(format!("resource: {e}")))?;
    match state {
        FINISHED => return Ok(Found::Upload(attempt, resource)),
        REPORTABLE => return Ok(Found::Report(attempt, resource)),
        _ => {}
    }
    let time = |millis: i64| {
        Timestamp::from_millisecond(millis).map_err(|e| JournalError::Storage(format!("time: {e}")))
    };
    let payload: Option<Vec<u8>> = row.get("payload")?;
    let intent: Option<String> = row.get("intent")?;
    let job = Job {
        attempt,
        envelope: parse(&text("envelope")?)?,
        signer: row.get::<_, Option<String>>("signer")?.map(KeyId),
        ticket: parse(&text("ticket")?)?,
        payload: match (row.get("at_hub")?, payload) {
            (true, _) => Payload::AtHub,
            (false, Some(bytes)) => Payload::Inline(bytes.into()),
            (false, None) => Payload::None,
        },
        traceparent: row.get("traceparent")?,
        accepted_at: time(row.get("accepted_at")?)?,
        started_at: row.get::<_, Option<i64>>("started_at")?.map(time).transpose()?,
        intent: intent.map(|text| parse(&text)).transpose()?,
        resumed: true,
        call: None,
    };
    let held = if state == RUNNING { HeldState::Running } else { HeldState::Accepted };
    Ok(Found::Job(Box::new(job), held))
}
