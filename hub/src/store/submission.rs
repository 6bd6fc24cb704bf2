//! One submission in its transaction: seen before or new, its payload, its place in line, and its first offer.

use super::{
    Error, Submitted, dispatch, lines, received,
    row::{self, from_uuid, ms, to_json, whole_job},
    signed,
    writer::Tx,
};
use crate::{
    model::{ChangeKind, JobState, NewJob},
    tunnel::registry::QueueKey,
};
use passerelle_protocol::{JobId, Sha256, limits::MAX_INLINE_PAYLOAD};
use rusqlite::{OptionalExtension as _, params};

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
    signed::check_free(tx, &job)?;
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
