//! Jobs whose envelope the client signed: submitted again, retried, and the blob that an envelope means.
//!
//! The hub can widen nothing: deadline and attempts are those that were signed, and a retry past them needs an envelope
//! signed anew. Agents judge all of it once more, with a key that the hub does not have.

use super::{
    Error, Store, Submitted,
    attempts::JobRow,
    row::{self, ms, to_json, whole_job},
    writer::Tx,
};
use crate::model::{BlobInfo, NewJob};
use jiff::Timestamp;
use passerelle_protocol::{Envelope, JobId, Name, Sha256};
use rusqlite::{Connection, OptionalExtension as _, params};

/// What is said of every id that a client may not give a job, whatever is wrong with it.
pub(crate) const WRONG_ID: &str =
    "job: expected a new UUID of version 7 (RFC 9562), whose time lies at most a day ahead";

impl Store {
    /// The envelope that a job's client signed.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such job, or the hub signs it.
    pub async fn envelope(&self, tenant: Name, id: JobId) -> Result<String, Error> {
        self.read(move |conn| {
            let found: Option<Option<String>> = conn
                .prepare_cached("SELECT envelope FROM jobs WHERE id = ?1 AND tenant = ?2")?
                .query_row(params![id.uuid().as_bytes(), tenant.as_str()], |row| row.get(0))
                .optional()?;
            match found {
                Some(Some(envelope)) => Ok(envelope),
                Some(None) => Err(Error::NotFound(format!("job {id} is signed by the hub at each offer"))),
                None => Err(Error::NotFound(format!("no job {id}"))),
            }
        })
        .await
    }

    /// The tenant's uploaded blob of this size and digest, the newest if there are several.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn blob_by_digest(
        &self,
        tenant: Name,
        size: u64,
        sha256: Sha256,
    ) -> Result<Option<BlobInfo>, Error> {
        self.read(move |conn| blob_by_digest(conn, &tenant, size, sha256)).await
    }
}

pub(super) fn blob_by_digest(
    conn: &Connection,
    tenant: &Name,
    size: u64,
    sha256: Sha256,
) -> Result<Option<BlobInfo>, Error> {
    // What was uploaded is a file: small content that came with another job is that job's alone.
    let sql = format!(
        "SELECT {} FROM files f CROSS JOIN blobs ON blobs.id = f.owner WHERE f.sha256 = ?1 AND f.output = 0 \
         AND tenant = ?2 AND size = ?3 ORDER BY f.owner DESC LIMIT 1",
        "blobs.id, blobs.size, blobs.sha256, blobs.media_type"
    );
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    Ok(conn
        .prepare_cached(&sql)?
        .query_row(params![sha256.bytes(), tenant.as_str(), size], row::blob)
        .optional()?)
}

/// The job that this submission of a signed envelope made before.
pub(super) fn known(tx: &Tx<'_>, job: &NewJob) -> Result<Option<Submitted>, Error> {
    let Some(envelope) = &job.envelope else { return Ok(None) };
    let seen: Option<Option<Sha256>> = tx
        .conn
        .prepare_cached("SELECT idempotency_body FROM jobs WHERE id = ?1 AND tenant = ?2")?
        .query_row(params![job.id.uuid().as_bytes(), job.tenant.as_str()], |row| row::opt_digest(row, 0))
        .optional()?;
    match seen {
        None => Ok(None),
        Some(submission) if submission == Some(envelope.submission) => {
            Ok(Some(Submitted { job: whole_job(tx.conn, &job.tenant, job.id)?, created: false }))
        }
        Some(_) => Err(Error::Conflict(format!(
            "there is a job {} already, from another submission: each job needs an id of its own",
            job.id
        ))),
    }
}

/// Refuses the id of another tenant's job. Asked after all else that is wrong, and answered as an id that no job may have:
/// nobody is to find out which jobs others have.
pub(super) fn check_free(tx: &Tx<'_>, job: &NewJob) -> Result<(), Error> {
    if job.envelope.is_none() {
        return Ok(());
    }
    let taken =
        tx.conn.prepare_cached("SELECT 1 FROM jobs WHERE id = ?1")?.exists([job.id.uuid().as_bytes()])?;
    if taken { Err(Error::BadRequest(format!("envelope.{WRONG_ID}"))) } else { Ok(()) }
}

/// Prepares the retry of a job that its client signed; whether it is one.
pub(super) fn retry(
    tx: &Tx<'_>,
    job: &mut JobRow,
    renewed: Option<(String, Envelope)>,
) -> Result<bool, Error> {
    let stored: Option<String> = tx
        .conn
        .prepare_cached("SELECT envelope FROM jobs WHERE seq = ?1")?
        .query_row([job.seq], |row| row.get(0))?;
    let claims = match (stored, renewed) {
        (None, None) => return Ok(false),
        (None, Some(_)) => {
            let message = format!("job {} is signed by the hub: retry it without an envelope", job.id);
            return Err(Error::Conflict(message));
        }
        (Some(stored), None) => {
            let (_, claims) = Envelope::read_unverified(&stored)
                .map_err(|e| Error::Internal(format!("a stored envelope cannot be read: {e}")))?;
            claims
        }
        (Some(stored), Some((text, claims))) => {
            let (_, before) = Envelope::read_unverified(&stored)
                .map_err(|e| Error::Internal(format!("a stored envelope cannot be read: {e}")))?;
            if let Some(field) = changed(&before, &claims) {
                let message = format!("envelope.{field}: a retry does what the job's first envelope says");
                return Err(Error::Conflict(message));
            }
            tx.conn
                .prepare_cached(
                    "UPDATE jobs SET envelope = ?2, timeout_s = ?3, max_attempts = ?4 WHERE seq = ?1",
                )?
                .execute(params![job.seq, text, claims.timeout_s, claims.max_attempts])?;
            claims
        }
    };
    let used: u32 = tx
        .conn
        .prepare_cached("SELECT count(*) FROM attempts WHERE job = ?1 AND accepted_at IS NOT NULL")?
        .query_row([job.seq], |row| row.get(0))?;
    let now = tx.now.as_second();
    let spent = if claims.exp <= now || claims.deadline <= now {
        Some("has expired".to_owned())
    } else if used >= claims.max_attempts {
        Some(format!("allows {} attempts in all, {used} were made", claims.max_attempts))
    } else {
        None
    };
    if let Some(spent) = spent {
        return Err(Error::EnvelopeExpired(format!(
            "the envelope of job {} {spent}: retry it with {{\"envelope\"}}, signed anew for the same job",
            job.id
        )));
    }
    job.facts.deadline = Timestamp::from_second(claims.deadline)
        .map_err(|e| Error::Internal(format!("a deadline out of range: {e}")))?;
    tx.conn
        .prepare_cached("UPDATE jobs SET deadline = ?2, allowed = counted + ?3 WHERE seq = ?1")?
        .execute(params![job.seq, ms(job.facts.deadline), claims.max_attempts - used])?;
    Ok(true)
}

/// The first field of what a job does that differs.
fn changed(before: &Envelope, after: &Envelope) -> Option<&'static str> {
    // Compared as text: numbers that are written alike are alike.
    let params = |envelope: &Envelope| to_json(&envelope.params).ok();
    [
        ("job", before.job != after.job),
        ("tenant", before.tenant != after.tenant),
        ("site", before.site != after.site),
        ("resource", before.resource != after.resource),
        ("operation", before.operation != after.operation),
        ("params", params(before) != params(after)),
        ("payload", before.payload != after.payload),
        ("order_key", before.order_key != after.order_key),
    ]
    .into_iter()
    .find_map(|(field, differs)| differs.then_some(field))
}
