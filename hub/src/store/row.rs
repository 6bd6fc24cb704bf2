//! Between rows and the hub's types.

use super::Error;
use crate::{
    clock,
    model::{
        AttemptView, BlobInfo, ClientEnvelope, ErrorView, Job, JobState, NewJob, OutputView, PayloadRef,
        ProgressView,
    },
};
use jiff::Timestamp;
use passerelle_protocol::{JobId, Name, Sha256};
use rusqlite::{Connection, OptionalExtension as _, Row, types::Type};
use serde::{Serialize, de::DeserializeOwned, de::IntoDeserializer as _};
use std::{fmt::Display, str::FromStr};
use uuid::Uuid;

pub(crate) fn ms(at: Timestamp) -> i64 {
    at.as_millisecond()
}

fn corrupt(column: usize, error: impl Display) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.to_string().into())
}

pub(crate) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(row.get(column)?).map_err(|e| corrupt(column, e))
}

pub(crate) fn opt_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    let at: Option<i64> = row.get(column)?;
    at.map(Timestamp::from_millisecond).transpose().map_err(|e| corrupt(column, e))
}

pub(crate) fn from_uuid<T: From<Uuid>>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let bytes: [u8; 16] = row.get(column)?;
    Ok(T::from(Uuid::from_bytes(bytes)))
}

pub(crate) fn opt_uuid<T: From<Uuid>>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    let bytes: Option<[u8; 16]> = row.get(column)?;
    Ok(bytes.map(|bytes| T::from(Uuid::from_bytes(bytes))))
}

pub(crate) fn name(row: &Row<'_>, column: usize) -> rusqlite::Result<Name> {
    parsed(row, column)
}

pub(crate) fn parsed<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|_| corrupt(column, format_args!("{text:?} is not what belongs here")))
}

pub(crate) fn digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Sha256> {
    let bytes: [u8; 32] = row.get(column)?;
    Ok(Sha256::from(bytes))
}

pub(crate) fn opt_digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Sha256>> {
    let bytes: Option<[u8; 32]> = row.get(column)?;
    Ok(bytes.map(Sha256::from))
}

pub(crate) fn size(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let size: i64 = row.get(column)?;
    u64::try_from(size).map_err(|e| corrupt(column, e))
}

/// A word of one of the protocol's enums (`retry`, `applied`, `with_key`).
pub(crate) fn word<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    opt_word(row, column)?.ok_or_else(|| corrupt(column, "a word is missing"))
}

pub(crate) fn opt_word<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    let deserialize = |text: &str| {
        let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
            text.into_deserializer();
        T::deserialize(deserializer).map_err(|e| corrupt(column, e))
    };
    row.get_ref(column)?.as_str_or_null()?.map(deserialize).transpose()
}

/// The word of such an enum.
pub(crate) fn as_word<T: Serialize>(value: &T) -> Option<String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => Some(word),
        _ => None,
    }
}

pub(crate) fn opt_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    let read = |text: &str| serde_json::from_str(text).map_err(|e| corrupt(column, e));
    row.get_ref(column)?.as_str_or_null()?.map(read).transpose()
}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|e| Error::Internal(format!("cannot write JSON: {e}")))
}

/// The columns that [`job`] reads.
pub(crate) const JOB: &str = "seq, id, tenant, site, resource, operation, state, priority, created_at, deadline, \
    finished_at, next_attempt_at, error_code, error_message, error_effect, timeout_s, max_attempts, order_key, labels, \
    output_size, output_sha256, output_media_type, receipt, result, params, on_failure, note, blocks, ready";

/// A job without its attempts, and its row id.
pub(crate) fn job(row: &Row<'_>) -> rusqlite::Result<(i64, Job)> {
    let error = match opt_word(row, 12)? {
        Some(code) => Some(ErrorView { code, message: row.get(13)?, effect: word(row, 14)? }),
        None => None,
    };
    let output = match opt_digest(row, 20)? {
        Some(sha256) => Some(OutputView { size: size(row, 19)?, sha256, media_type: row.get(21)? }),
        None => None,
    };
    let job = Job {
        id: from_uuid(row, 1)?,
        tenant: name(row, 2)?,
        site: name(row, 3)?,
        resource: name(row, 4)?,
        operation: name(row, 5)?,
        state: parsed(row, 6)?,
        priority: row.get(7)?,
        created_at: time(row, 8)?,
        deadline: time(row, 9)?,
        finished_at: opt_time(row, 10)?,
        next_attempt_at: opt_time(row, 11)?,
        error,
        timeout_s: row.get(15)?,
        max_attempts: row.get(16)?,
        order_key: row.get(17)?,
        labels: opt_json(row, 18)?.unwrap_or_default(),
        output,
        receipt: row.get(22)?,
        result: opt_json(row, 23)?,
        params: opt_json(row, 24)?.unwrap_or_default(),
        on_failure: row.get(25)?,
        note: row.get(26)?,
        holds_line: row.get::<_, bool>(27)? && row.get::<_, bool>(28)?,
        attempts: Vec::new(),
        progress: None,
    };
    Ok((row.get(0)?, job))
}

/// Adds the attempts, and the progress of the last one.
pub(crate) fn add_attempts(conn: &Connection, seq: i64, job: &mut Job) -> Result<(), Error> {
    let mut statement = conn.prepare_cached(
        "SELECT number, agent, accepted_at, started_at, finished_at, verdict, effect, code, message, bytes_done, \
         bytes_total FROM attempts WHERE job = ?1 AND withdrawn = 0 ORDER BY number",
    )?;
    let mut rows = statement.query([seq])?;
    while let Some(row) = rows.next()? {
        let (heard, started_at) = (opt_time(row, 2)?, opt_time(row, 3)?);
        job.attempts.push(AttemptView {
            number: row.get(0)?,
            agent: from_uuid(row, 1)?,
            // The acceptance is noted when it is heard, the start by the agent's clock: a start proves an acceptance.
            accepted_at: heard.map(|heard| started_at.map_or(heard, |started| heard.min(started))),
            started_at,
            finished_at: opt_time(row, 4)?,
            verdict: opt_word(row, 5)?,
            effect: opt_word(row, 6)?,
            code: opt_word(row, 7)?,
            message: row.get(8)?,
        });
        let done: Option<i64> = row.get(9)?;
        job.progress = done.map(|_| size(row, 9)).transpose()?.map(|bytes_done| ProgressView {
            bytes_done,
            bytes_total: row.get::<_, Option<i64>>(10).ok().flatten().and_then(|n| u64::try_from(n).ok()),
        });
    }
    Ok(())
}

/// A whole job of a tenant.
pub(crate) fn whole_job(conn: &Connection, tenant: &Name, id: JobId) -> Result<Job, Error> {
    let job = job_of_any_tenant(conn, id)?;
    if job.tenant == *tenant { Ok(job) } else { Err(no_job(id)) }
}

/// A whole job, for those who know already that they may see it.
pub(crate) fn job_of_any_tenant(conn: &Connection, id: JobId) -> Result<Job, Error> {
    let sql = format!("SELECT {JOB} FROM jobs WHERE id = ?1");
    let found = conn.prepare_cached(&sql)?.query_row([id.uuid().as_bytes()], job).optional()?;
    let (seq, mut job) = found.ok_or_else(|| no_job(id))?;
    add_attempts(conn, seq, &mut job)?;
    Ok(job)
}

fn no_job(id: JobId) -> Error {
    Error::NotFound(format!("no job {id}"))
}

/// A job as it stands right after its submission.
pub(crate) fn submitted(new: &NewJob) -> Job {
    Job {
        id: new.id,
        tenant: new.tenant.clone(),
        site: new.site.clone(),
        resource: new.resource.clone(),
        operation: new.operation.clone(),
        params: new.params.clone(),
        state: JobState::Queued,
        created_at: new.created_at,
        deadline: new.deadline,
        finished_at: None,
        next_attempt_at: None,
        priority: new.priority,
        max_attempts: new.max_attempts,
        timeout_s: new.timeout_s,
        order_key: new.order_key.clone(),
        labels: new.labels.clone(),
        on_failure: new.on_failure.clone(),
        note: None,
        holds_line: false,
        attempts: Vec::new(),
        progress: None,
        result: None,
        output: None,
        receipt: None,
        error: None,
    }
}

/// The columns that [`to_offer`] reads; `b` is the payload's blob, `c` its small content.
pub(crate) const TO_OFFER: &str = "j.seq, j.id, j.tenant, j.site, j.resource, j.operation, j.params, j.deadline, \
    j.deadline_s, j.timeout_s, j.allowed, j.order_key, j.priority, j.traceparent, j.created_at, j.attempt, \
    b.id, b.size, b.sha256, b.media_type, c.data, j.granted, j.envelope, j.idempotency_body";

/// What a queued job is offered from: its row id, the job, its last attempt's number, and which one was granted.
pub(crate) fn to_offer(row: &Row<'_>) -> rusqlite::Result<(i64, NewJob, u32, u32)> {
    let payload = match opt_uuid(row, 16)? {
        Some(blob) => Some(PayloadRef {
            blob,
            size: size(row, 17)?,
            sha256: digest(row, 18)?,
            media_type: row.get::<_, Option<String>>(19)?.unwrap_or_else(default_media_type),
            data: row.get::<_, Option<Vec<u8>>>(20)?.map(Into::into),
        }),
        None => None,
    };
    let job = NewJob {
        id: from_uuid(row, 1)?,
        tenant: name(row, 2)?,
        site: name(row, 3)?,
        resource: name(row, 4)?,
        operation: name(row, 5)?,
        params: opt_json(row, 6)?.unwrap_or_default(),
        payload,
        deadline: time(row, 7)?,
        deadline_s: row.get(8)?,
        timeout_s: row.get(9)?,
        max_attempts: row.get(10)?,
        order_key: row.get(11)?,
        on_failure: None,
        priority: row.get(12)?,
        labels: Default::default(),
        idempotency: None,
        traceparent: row.get(13)?,
        created_at: time(row, 14)?,
        envelope: envelope(row, 22)?,
        event: None,
    };
    Ok((row.get(0)?, job, row.get(15)?, row.get(21)?))
}

/// The envelope that a client signed, and after it the digest of the submission that brought it.
fn envelope(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<ClientEnvelope>> {
    let Some(text) = row.get_ref(column)?.as_str_or_null()? else { return Ok(None) };
    let submission = digest(row, column + 1)?;
    ClientEnvelope::read(text, submission).map(Some).map_err(|e| corrupt(column, e))
}

/// The media type of content that nobody described (RFC 9110 §8.3).
pub(crate) fn default_media_type() -> String {
    "application/octet-stream".to_owned()
}

/// The columns that [`blob`] reads.
pub(crate) const BLOB: &str = "id, size, sha256, media_type";

pub(crate) fn blob(row: &Row<'_>) -> rusqlite::Result<BlobInfo> {
    Ok(BlobInfo {
        id: from_uuid(row, 0)?,
        size: size(row, 1)?,
        sha256: digest(row, 2)?,
        media_type: row.get(3)?,
    })
}

/// A random secret as text, with the digest that is stored of it.
pub(crate) fn new_secret() -> Result<(String, [u8; 32]), Error> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Error::Internal("the system's random source failed".to_owned()))?;
    let text = URL_SAFE_NO_PAD.encode(bytes);
    let digest = *Sha256::of(text.as_bytes()).bytes();
    Ok((text, digest))
}

/// Whether `secret` has the stored digest; takes the same time whatever differs.
pub(crate) fn is_secret(secret: &str, stored: &[u8]) -> bool {
    let digest = Sha256::of(secret.as_bytes());
    aws_lc_rs::constant_time::verify_slices_are_equal(digest.bytes(), stored).is_ok()
}

/// An id for a key or token: its text goes into the bearer text.
pub(crate) fn new_id() -> String {
    clock::new_uuid7().simple().to_string()
}

/// Splits `pk_<id>_<secret>`.
pub(crate) fn split_secret<'t>(prefix: &str, text: &'t str) -> Option<(&'t str, &'t str)> {
    text.strip_prefix(prefix)?.strip_prefix('_')?.split_once('_')
}

/// Fails for a tenant that does not exist.
pub(crate) fn known_tenant(conn: &Connection, tenant: &Name) -> Result<(), Error> {
    super::admin::known_tenant(conn, tenant).map(drop)
}
