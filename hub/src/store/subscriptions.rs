//! Subscriptions, and the deliveries of their outbox.

use super::{
    Error, Store,
    notices::{self, NOTICE},
    row::{from_uuid, ms, opt_json, opt_time, size, time, to_json},
    writer::Tx,
};
use crate::{
    clock,
    model::{
        Delivery, DeliveryAuth, DeliveryTarget, NewSubscription, Notice, NoticeKind, Page, Subscription,
    },
};
use jiff::Timestamp;
use passerelle_protocol::Name;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

/// How many subscriptions a tenant may have.
pub const MAX_SUBSCRIPTIONS: i64 = 50;
/// How many dead deliveries of a subscription are kept; older ones go.
const MAX_DEAD: i64 = 10_000;

const SUBSCRIPTION: &str =
    "id, label, url, kinds, auth, created_at, pending, dead, dropped, delivered_at, failed_at, failure";

fn read(row: &Row<'_>) -> rusqlite::Result<Subscription> {
    let auth: DeliveryAuth = opt_json(row, 4)?.unwrap_or_default();
    Ok(Subscription {
        id: from_uuid(row, 0)?,
        label: row.get(1)?,
        url: row.get(2)?,
        kinds: opt_json(row, 3)?.unwrap_or_default(),
        auth: match auth {
            DeliveryAuth::None => "none",
            DeliveryAuth::Basic { .. } => "basic",
            DeliveryAuth::Bearer { .. } => "bearer",
        },
        created_at: time(row, 5)?,
        pending: size(row, 6)?,
        dead: size(row, 7)?,
        dropped: size(row, 8)?,
        delivered_at: opt_time(row, 9)?,
        failed_at: opt_time(row, 10)?,
        failure: row.get(11)?,
    })
}

fn subscription(conn: &Connection, tenant: &Name, id: Uuid) -> Result<Subscription, Error> {
    let sql = format!("SELECT {SUBSCRIPTION} FROM subscriptions WHERE id = ?1 AND tenant = ?2");
    let found = conn.prepare_cached(&sql)?.query_row(params![id.as_bytes(), tenant.as_str()], read);
    found.optional()?.ok_or_else(|| Error::NotFound(format!("no subscription {id}")))
}

const DELIVERY: &str = "d.seq, d.attempts, d.next_at, d.dead_at, d.status, d.failure";

fn read_delivery(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    let notice: Notice = notices::read(row, 6)?;
    let dead_at = opt_time(row, 3)?;
    Ok(Delivery {
        id: size(row, 0)?,
        notice: notice.id,
        kind: notice.kind,
        at: notice.at,
        state: if dead_at.is_some() { "dead" } else { "pending" },
        attempts: row.get(1)?,
        next_attempt_at: if dead_at.is_some() { None } else { Some(time(row, 2)?) },
        dead_at,
        status: row.get(4)?,
        failure: row.get(5)?,
        body: notice.envelope(),
    })
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// One public sentence.
    pub failure: String,
    /// When it is tried again; `None`: it is given up.
    pub again_at: Option<Timestamp>,
}

impl Store {
    /// Subscribes a tenant.
    ///
    /// # Errors
    /// [`Error::Quota`] if it has as many subscriptions as it may.
    pub async fn create_subscription(
        &self,
        tenant: Name,
        new: NewSubscription,
    ) -> Result<Subscription, Error> {
        let id = clock::new_uuid7();
        self.write(move |tx| {
            let sql = "SELECT count(*) FROM subscriptions WHERE tenant = ?1";
            let has: i64 = tx.conn.prepare_cached(sql)?.query_row([tenant.as_str()], |row| row.get(0))?;
            if has >= MAX_SUBSCRIPTIONS {
                return Err(Error::Quota(format!(
                    "tenant {tenant} has {MAX_SUBSCRIPTIONS} subscriptions, as many as it may: delete some first"
                )));
            }
            tx.conn
                .prepare_cached(
                    "INSERT INTO subscriptions (id, tenant, label, url, kinds, auth, secret, created_at) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                )?
                .execute(params![
                    id.as_bytes(),
                    tenant.as_str(),
                    new.label,
                    new.url,
                    to_json(&new.kinds)?,
                    to_json(&new.auth)?,
                    new.secret,
                    ms(tx.now)
                ])?;
            tx.shared.outbox.subscribed();
            subscription(tx.conn, &tenant, id)
        })
        .await
    }

    /// The subscriptions of a tenant, oldest first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn list_subscriptions(&self, tenant: Name) -> Result<Vec<Subscription>, Error> {
        self.read(move |conn| {
            let sql = format!("SELECT {SUBSCRIPTION} FROM subscriptions WHERE tenant = ?1 ORDER BY id");
            let mut statement = conn.prepare_cached(&sql)?;
            let rows = statement.query_map([tenant.as_str()], read)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// One subscription.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn subscription(&self, tenant: Name, id: Uuid) -> Result<Subscription, Error> {
        self.read(move |conn| subscription(conn, &tenant, id)).await
    }

    /// Where a subscription's deliveries go.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn subscription_target(&self, tenant: Name, id: Uuid) -> Result<DeliveryTarget, Error> {
        self.read(move |conn| {
            let sql = "SELECT url, auth, secret FROM subscriptions WHERE id = ?1 AND tenant = ?2";
            let read = |row: &Row<'_>| target(row, 0);
            let found = conn
                .prepare_cached(sql)?
                .query_row(params![id.as_bytes(), tenant.as_str()], read)
                .optional()?;
            found.ok_or_else(|| Error::NotFound(format!("no subscription {id}")))
        })
        .await
    }

    /// Ends a subscription, with all that was not delivered.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete_subscription(&self, tenant: Name, id: Uuid) -> Result<(), Error> {
        self.write(move |tx| {
            subscription(tx.conn, &tenant, id)?;
            tx.conn
                .prepare_cached("DELETE FROM deliveries WHERE subscription = ?1")?
                .execute([id.as_bytes()])?;
            tx.conn.prepare_cached("DELETE FROM subscriptions WHERE id = ?1")?.execute([id.as_bytes()])?;
            Ok(())
        })
        .await
    }

    /// The deliveries of a subscription, oldest first: the dead ones, or those that are still tried.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::BadRequest`] for a cursor that no page gave.
    pub async fn list_deliveries(
        &self,
        tenant: Name,
        id: Uuid,
        dead: bool,
        limit: usize,
        cursor: Option<String>,
    ) -> Result<Page<Delivery>, Error> {
        let after: i64 = match cursor {
            None => 0,
            Some(text) => text
                .parse()
                .map_err(|_| Error::BadRequest("cursor: not one that a page of this list gave".to_owned()))?,
        };
        self.read(move |conn| {
            subscription(conn, &tenant, id)?;
            let limit = limit.clamp(1, 500);
            let which = if dead { "IS NOT NULL" } else { "IS NULL" };
            let sql = format!(
                "SELECT {DELIVERY}, {NOTICE} FROM deliveries d JOIN notices n ON n.seq = d.notice \
                 WHERE d.subscription = ?1 AND d.dead_at {which} AND d.seq > ?2 ORDER BY d.seq LIMIT ?3"
            );
            let mut statement = conn.prepare_cached(&sql)?;
            let most = i64::try_from(limit + 1).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![id.as_bytes(), after, most], read_delivery)?;
            let mut items: Vec<Delivery> = rows.collect::<Result<_, _>>()?;
            let more = items.len() > limit;
            items.truncate(limit);
            let next_cursor = items.last().filter(|_| more).map(|last| last.id.to_string());
            Ok(Page { items, next_cursor })
        })
        .await
    }

    /// Has dead deliveries tried again: one, or all of the subscription. Answers how many.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`] for one that is still tried.
    pub async fn resend(&self, tenant: Name, id: Uuid, delivery: Option<u64>) -> Result<u64, Error> {
        self.write(move |tx| {
            subscription(tx.conn, &tenant, id)?;
            let wanted = delivery.map(|seq| i64::try_from(seq).unwrap_or(i64::MAX));
            if let Some(seq) = wanted {
                let sql = "SELECT dead_at IS NULL FROM deliveries WHERE seq = ?1 AND subscription = ?2";
                let mut statement = tx.conn.prepare_cached(sql)?;
                match statement.query_row(params![seq, id.as_bytes()], |row| row.get(0)).optional()? {
                    None => return Err(Error::NotFound(format!("no delivery {seq}"))),
                    Some(true) => {
                        return Err(Error::Conflict(format!("delivery {seq} is still tried by itself")));
                    }
                    Some(false) => {}
                }
            }
            let dead: Vec<(i64, [u8; 16])> = {
                let mut statement = tx.conn.prepare_cached(
                    "SELECT seq, line FROM deliveries INDEXED BY deliveries_dead \
                     WHERE subscription = ?1 AND dead_at IS NOT NULL AND (?2 IS NULL OR seq = ?2) ORDER BY seq",
                )?;
                let rows = statement
                    .query_map(params![id.as_bytes(), wanted], |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect::<Result<_, _>>()?
            };
            for (seq, line) in &dead {
                tx.conn
                    .prepare_cached(
                        "UPDATE deliveries SET dead_at = NULL, attempts = 0, queued_at = ?2, next_at = ?2, \
                         head = NOT EXISTS (SELECT 1 FROM deliveries INDEXED BY deliveries_in_line \
                         WHERE subscription = ?3 AND line = ?4 AND dead_at IS NULL) WHERE seq = ?1",
                    )?
                    .execute(params![seq, ms(tx.now), id.as_bytes(), line])?;
            }
            let count = i64::try_from(dead.len()).unwrap_or(i64::MAX);
            tx.conn
                .prepare_cached(
                    "UPDATE subscriptions SET dead = dead - ?2, pending = pending + ?2 WHERE id = ?1",
                )?
                .execute(params![id.as_bytes(), count])?;
            tx.effects.deliveries = true;
            Ok(dead.len() as u64)
        })
        .await
    }

    /// A delivery came through.
    ///
    /// # Errors
    /// If the database cannot be written: it is delivered again.
    pub async fn delivered(&self, seq: i64) -> Result<(), Error> {
        self.write(move |tx| {
            let Some((subscription, line, notice)) = place(tx.conn, seq)? else { return Ok(()) };
            tx.conn.prepare_cached("DELETE FROM deliveries WHERE seq = ?1")?.execute([seq])?;
            tx.conn
                .prepare_cached(
                    "UPDATE subscriptions SET pending = pending - 1, delivered_at = ?2 WHERE id = ?1",
                )?
                .execute(params![subscription, ms(tx.now)])?;
            forget(tx, notice)?;
            next_in_line(tx, subscription, line)
        })
        .await
    }

    /// A delivery did not come through.
    ///
    /// # Errors
    /// If the database cannot be written: it is tried again.
    pub async fn not_delivered(&self, seq: i64, failed: Failed) -> Result<(), Error> {
        self.write(move |tx| {
            let Some((subscription, line, _)) = place(tx.conn, seq)? else { return Ok(()) };
            let dead_at = failed.again_at.is_none().then_some(ms(tx.now));
            tx.conn
                .prepare_cached(
                    "UPDATE deliveries SET attempts = attempts + 1, status = ?2, failure = ?3, \
                     next_at = coalesce(?4, next_at), dead_at = ?5 WHERE seq = ?1",
                )?
                .execute(params![seq, failed.status, failed.failure, failed.again_at.map(ms), dead_at])?;
            let dead = i64::from(dead_at.is_some());
            tx.conn
                .prepare_cached(
                    "UPDATE subscriptions SET failed_at = ?2, failure = ?3, pending = pending - ?4, dead = dead + ?4 \
                     WHERE id = ?1",
                )?
                .execute(params![subscription, ms(tx.now), failed.failure, dead])?;
            if dead == 1 {
                bury(tx, subscription)?;
                next_in_line(tx, subscription, line)?;
            }
            Ok(())
        })
        .await
    }
}

pub(super) fn target(row: &Row<'_>, column: usize) -> rusqlite::Result<DeliveryTarget> {
    Ok(DeliveryTarget {
        url: row.get(column)?,
        auth: opt_json(row, column + 1)?.unwrap_or_default(),
        secret: row.get(column + 2)?,
    })
}

type Place = ([u8; 16], [u8; 16], i64);

/// The subscription, line and notice of a delivery that is still tried.
fn place(conn: &Connection, seq: i64) -> Result<Option<Place>, Error> {
    let sql = "SELECT subscription, line, notice FROM deliveries WHERE seq = ?1 AND dead_at IS NULL";
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    Ok(conn.prepare_cached(sql)?.query_row([seq], read).optional()?)
}

/// The oldest of the line is the one to send now.
fn next_in_line(tx: &mut Tx<'_>, subscription: [u8; 16], line: [u8; 16]) -> Result<(), Error> {
    tx.effects.deliveries = true;
    tx.conn
        .prepare_cached(
            "UPDATE deliveries SET head = 1 WHERE seq = (SELECT seq FROM deliveries INDEXED BY deliveries_in_line \
             WHERE subscription = ?1 AND line = ?2 AND dead_at IS NULL ORDER BY seq LIMIT 1)",
        )?
        .execute(params![subscription, line])?;
    Ok(())
}

/// A notice that was only made for subscribers goes with its last delivery.
fn forget(tx: &Tx<'_>, notice: i64) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "DELETE FROM notices WHERE seq = ?1 AND kind = ?2 AND NOT EXISTS \
             (SELECT 1 FROM deliveries WHERE notice = ?1)",
        )?
        .execute(params![notice, NoticeKind::JobTermine.as_str()])?;
    Ok(())
}

/// Keeps the dead of a subscription within their bound: the oldest go.
fn bury(tx: &Tx<'_>, subscription: [u8; 16]) -> Result<(), Error> {
    let removed = tx
        .conn
        .prepare_cached(
            "DELETE FROM deliveries WHERE seq IN (SELECT seq FROM deliveries INDEXED BY deliveries_dead \
             WHERE subscription = ?1 AND dead_at IS NOT NULL ORDER BY seq \
             LIMIT max(0, (SELECT dead FROM subscriptions WHERE id = ?1) - ?2))",
        )?
        .execute(params![subscription, MAX_DEAD])?;
    if removed > 0 {
        let sql = "UPDATE subscriptions SET dead = dead - ?2, dropped = dropped + ?2 WHERE id = ?1";
        tx.conn
            .prepare_cached(sql)?
            .execute(params![subscription, i64::try_from(removed).unwrap_or_default()])?;
    }
    Ok(())
}
