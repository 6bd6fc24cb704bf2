//! What happened and is told, and the outbox: written in the transaction of what it tells of, so that neither can be there
//! without the other.
//!
//! Within a subscription, deliveries with the same line (a run, a job, an agent) go one after the other: only the *head* of
//! a line is sent. When it is delivered or given up, the next one becomes the head. A subscription's queue is bounded; what
//! there is no room for is counted.

use super::{
    Error, Store,
    row::{from_uuid, job_of_any_tenant, ms, opt_json, parsed, time, to_json},
    writer::Tx,
};
use crate::{
    clock,
    model::{ChangeKind, Job, Notice, NoticeKind},
    store::row::as_word,
};
use passerelle_protocol::{JobId, Name};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use uuid::Uuid;

/// How many deliveries of a subscription may be pending.
pub const MAX_PENDING: i64 = 20_000;

/// What the hub keeps in memory of notices.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// Whether there may be a subscription at all: without one, jobs cost nothing more than before.
    subscribed: AtomicBool,
    /// Rung when something became due.
    pub(crate) bell: Notify,
}

impl Outbox {
    pub(crate) fn read(conn: &Connection) -> Result<Self, Error> {
        let subscribed = conn.prepare("SELECT 1 FROM subscriptions")?.exists([])?;
        Ok(Self { subscribed: AtomicBool::new(subscribed), bell: Notify::new() })
    }

    pub(crate) fn is_subscribed(&self) -> bool {
        self.subscribed.load(Ordering::Relaxed)
    }

    pub(super) fn subscribed(&self) {
        self.subscribed.store(true, Ordering::Relaxed);
    }
}

/// Something that happened.
pub(crate) struct NewNotice<'a> {
    pub(crate) tenant: &'a Name,
    pub(crate) kind: NoticeKind,
    /// What it happened to: notices of the same line are delivered in order.
    pub(crate) line: Uuid,
    /// The vendor's `Data`.
    pub(crate) data: Value,
}

/// Tells of something: on the event stream, and to those who subscribed to it.
pub(crate) fn tell(tx: &mut Tx<'_>, new: &NewNotice<'_>) -> Result<(), Error> {
    let wanted = match tx.shared.outbox.is_subscribed() {
        true => subscribers(tx.conn, new.tenant, new.kind)?,
        false => Vec::new(),
    };
    if wanted.is_empty() && !new.kind.is_streamed() {
        return Ok(());
    }
    let id = clock::new_uuid7();
    let notice = tx
        .conn
        .prepare_cached(
            "INSERT INTO notices (id, tenant, kind, line, at, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .insert(params![
            id.as_bytes(),
            new.tenant.as_str(),
            new.kind.as_str(),
            new.line.as_bytes(),
            ms(tx.now),
            to_json(&new.data)?
        ])?;
    if new.kind.is_streamed() {
        tx.effects.changes.push((new.tenant.clone(), ChangeKind::Notice(id)));
    }
    for (subscription, pending) in wanted {
        if pending >= MAX_PENDING {
            let sql = "UPDATE subscriptions SET dropped = dropped + 1 WHERE id = ?1";
            tx.conn.prepare_cached(sql)?.execute([subscription])?;
            continue;
        }
        tx.conn
            .prepare_cached(
                // Its number is not that of one which is gone, and which somebody may still want sent again.
                "INSERT INTO deliveries (seq, subscription, notice, line, head, queued_at, next_at) \
                 VALUES (MAX(?4 * 1000, (SELECT COALESCE(MAX(seq), 0) + 1 FROM deliveries)), ?1, ?2, ?3, NOT EXISTS (SELECT 1 FROM deliveries INDEXED BY deliveries_in_line \
                 WHERE subscription = ?1 AND line = ?3 AND dead_at IS NULL), ?4, ?4)",
            )?
            .execute(params![subscription, notice, new.line.as_bytes(), ms(tx.now)])?;
        let sql = "UPDATE subscriptions SET pending = pending + 1 WHERE id = ?1";
        tx.conn.prepare_cached(sql)?.execute([subscription])?;
        tx.effects.deliveries = true;
    }
    Ok(())
}

/// Who wants this kind, and how many deliveries wait there.
fn subscribers(conn: &Connection, tenant: &Name, kind: NoticeKind) -> Result<Vec<([u8; 16], i64)>, Error> {
    let mut statement =
        conn.prepare_cached("SELECT id, pending, kinds FROM subscriptions WHERE tenant = ?1 ORDER BY id")?;
    let mut rows = statement.query([tenant.as_str()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let kinds: Vec<NoticeKind> = opt_json(row, 2)?.unwrap_or_default();
        if kinds.is_empty() || kinds.contains(&kind) {
            found.push((row.get(0)?, row.get(1)?));
        }
    }
    Ok(found)
}

/// Tells of jobs that came to a settled state in this transaction.
pub(super) fn jobs_settled(tx: &mut Tx<'_>, jobs: &[JobId]) -> Result<(), Error> {
    for id in jobs {
        let job = match job_of_any_tenant(tx.conn, *id) {
            Ok(job) if job.state.is_settled() => job,
            Ok(_) | Err(Error::NotFound(_)) => continue,
            Err(error) => return Err(error),
        };
        let new = NewNotice {
            tenant: &job.tenant,
            kind: NoticeKind::JobTermine,
            line: id.uuid(),
            data: job_data(&job),
        };
        tell(tx, &new)?;
    }
    Ok(())
}

/// What is told of a job: neither its parameters nor its result, which may be anything; both are at `GET /v1/jobs/{id}`.
fn job_data(job: &Job) -> Value {
    json!({
        "Guid": job.id,
        "Site": job.site,
        "Ressource": job.resource,
        "Operation": job.operation,
        "EtatCode": job.state,
        "DateCreation": job.created_at,
        "DateFin": job.finished_at,
        "Tentatives": job.attempts.len(),
        "Etiquettes": job.labels,
        "Erreur": job.error.as_ref().map(|error| json!({
            "Code": error.code, "Message": error.message, "Effet": as_word(&error.effect),
        })),
        "Sortie": job.output.as_ref().map(|output| json!({"Taille": output.size, "Sha256": output.sha256})),
    })
}

/// The columns that [`read`] reads, from `column` on.
pub(super) const NOTICE: &str = "n.id, n.kind, n.at, n.data";

pub(super) fn read(row: &Row<'_>, column: usize) -> rusqlite::Result<Notice> {
    Ok(Notice {
        id: from_uuid(row, column)?,
        kind: parsed(row, column + 1)?,
        at: time(row, column + 2)?,
        data: opt_json(row, column + 3)?.unwrap_or_default(),
    })
}

/// Removes, of all that was told before `before`, what nobody waits for: a few; true if there may be more. What was given
/// up before then goes as well.
fn remove_old(tx: &mut Tx<'_>, before: i64) -> Result<bool, Error> {
    const AT_ONCE: i64 = 500;
    let dead: Vec<(i64, [u8; 16])> = {
        let mut statement = tx.conn.prepare_cached(
            "DELETE FROM deliveries WHERE seq IN (SELECT seq FROM deliveries WHERE dead_at < ?1 LIMIT ?2) \
             RETURNING seq, subscription",
        )?;
        let rows = statement.query_map([before, AT_ONCE], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<Result<_, _>>()?
    };
    for (_, subscription) in &dead {
        let sql = "UPDATE subscriptions SET dead = dead - 1 WHERE id = ?1";
        tx.conn.prepare_cached(sql)?.execute([subscription])?;
    }
    let removed = tx
        .conn
        .prepare_cached(
            "DELETE FROM notices WHERE seq IN (SELECT n.seq FROM notices n WHERE n.at < ?1 AND NOT EXISTS \
             (SELECT 1 FROM deliveries d INDEXED BY deliveries_of_notice WHERE d.notice = n.seq) LIMIT ?2)",
        )?
        .execute([before, AT_ONCE])?;
    Ok(dead.len() as i64 == AT_ONCE || removed as i64 == AT_ONCE)
}

impl Store {
    /// A notice of a tenant.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn notice(&self, tenant: Name, id: Uuid) -> Result<Notice, Error> {
        self.read(move |conn| {
            let sql = format!("SELECT {NOTICE} FROM notices n WHERE n.id = ?1 AND n.tenant = ?2");
            let found = conn
                .prepare_cached(&sql)?
                .query_row(params![id.as_bytes(), tenant.as_str()], |row| read(row, 0))
                .optional()?;
            found.ok_or_else(|| Error::NotFound(format!("no notice {id}")))
        })
        .await
    }

    /// Removes what was told, or given up, before `before`.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub async fn remove_notices(&self, before: jiff::Timestamp) -> Result<(), Error> {
        while self.write(move |tx| remove_old(tx, ms(before))).await? {}
        Ok(())
    }
}
