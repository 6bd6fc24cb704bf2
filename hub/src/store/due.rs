//! What the outbox has to deliver now, and to whom the places go that are free.
//!
//! Tenants share the places: one whose subscribers never answer must not hold up the notices of the others. So each tenant
//! and each subscription has a bound, and a free place goes to the tenant with the fewest under way.

use super::{
    Error, Store, notices,
    row::{from_uuid, ms, name, time},
    subscriptions::target,
};
use crate::model::DueDelivery;
use jiff::Timestamp;
use passerelle_protocol::Name;
use rusqlite::{Connection, OptionalExtension as _, params};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};
use uuid::Uuid;

/// How many deliveries may be under way at once.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// To one subscriber.
    pub per_subscription: usize,
    /// To all subscribers of a tenant.
    pub per_tenant: usize,
    /// Altogether.
    pub in_all: usize,
}

/// The deliveries under way, by subscription; with the tenant, as a subscription may have ended meanwhile.
pub type UnderWay = HashMap<Uuid, (Name, Vec<i64>)>;

/// Of a tenant: a delivery that is due, after what comes before it there.
type Candidate = Reverse<(usize, i64, i64, Uuid)>;

impl Store {
    /// What is to be delivered at `now`, without what is under way: as many as there are free places, tenants with the
    /// fewest under way first; and when to look again if nothing rings before.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn due_deliveries(
        &self,
        now: Timestamp,
        under_way: UnderWay,
        places: Places,
    ) -> Result<(Vec<DueDelivery>, Option<Timestamp>), Error> {
        self.read(move |conn| due(conn, now, &under_way, places)).await
    }
}

fn due(
    conn: &Connection,
    now: Timestamp,
    under_way: &UnderWay,
    places: Places,
) -> Result<(Vec<DueDelivery>, Option<Timestamp>), Error> {
    let mut busy: HashMap<Name, usize> = HashMap::new();
    for (tenant, seqs) in under_way.values() {
        *busy.entry(tenant.clone()).or_default() += seqs.len();
    }
    let waiting: Vec<(Uuid, Name)> = {
        let mut statement = conn.prepare_cached("SELECT id, tenant FROM subscriptions WHERE pending > 0")?;
        let rows = statement.query_map([], |row| Ok((from_uuid(row, 0)?, name(row, 1)?)))?;
        rows.collect::<Result<_, _>>()?
    };
    let later = "SELECT min(next_at) FROM deliveries INDEXED BY deliveries_due \
                 WHERE subscription = ?1 AND head = 1 AND dead_at IS NULL AND next_at > ?2";
    let mut candidates: HashMap<Name, BinaryHeap<Candidate>> = HashMap::new();
    let mut next: Option<i64> = None;
    for (subscription, tenant) in waiting {
        // Without a place, nothing is to be read: the end of a delivery leads here again.
        if busy.get(&tenant).is_none_or(|count| *count < places.per_tenant) {
            let found = heads(conn, now, subscription, under_way, places.per_subscription)?;
            candidates.entry(tenant).or_default().extend(found);
        }
        let at: Option<i64> = conn
            .prepare_cached(later)?
            .query_row(params![subscription.as_bytes(), ms(now)], |row| row.get(0))?;
        next = [next, at].into_iter().flatten().min();
    }
    let free = places.in_all.saturating_sub(busy.values().sum());
    let mut turns: BinaryHeap<Reverse<(usize, Name)>> = candidates
        .keys()
        .map(|tenant| Reverse((busy.get(tenant).copied().unwrap_or(0), tenant.clone())))
        .collect();
    let mut found = Vec::new();
    while found.len() < free
        && let Some(Reverse((count, tenant))) = turns.pop()
    {
        if count >= places.per_tenant {
            break;
        }
        let Some(Reverse((.., seq, subscription))) = candidates.get_mut(&tenant).and_then(BinaryHeap::pop)
        else {
            continue;
        };
        found.extend(read(conn, seq, subscription, &tenant)?);
        turns.push(Reverse((count + 1, tenant)));
    }
    Ok((found, next.and_then(|at| Timestamp::from_millisecond(at).ok())))
}

/// The heads of lines of a subscription that are due and not under way, as many as may be.
fn heads(
    conn: &Connection,
    now: Timestamp,
    subscription: Uuid,
    under_way: &UnderWay,
    room: usize,
) -> Result<Vec<Candidate>, Error> {
    let busy = under_way.get(&subscription).map_or(&[][..], |(_, seqs)| seqs.as_slice());
    if busy.len() >= room {
        return Ok(Vec::new());
    }
    let sql = "SELECT seq, next_at FROM deliveries INDEXED BY deliveries_due \
               WHERE subscription = ?1 AND head = 1 AND dead_at IS NULL AND next_at <= ?2 ORDER BY next_at LIMIT ?3";
    // Those under way are due as well: they come along, and are left out.
    let most = i64::try_from(room + busy.len()).unwrap_or(i64::MAX);
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params![subscription.as_bytes(), ms(now), most], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
    })?;
    let due: Vec<(i64, i64)> = rows.collect::<Result<_, _>>()?;
    // One with fewer under way comes first, so that the subscriptions of a tenant share its places as well.
    let fresh = due.into_iter().filter(|(seq, _)| !busy.contains(seq));
    Ok((busy.len()..room)
        .zip(fresh)
        .map(|(rank, (seq, at))| Reverse((rank, at, seq, subscription)))
        .collect())
}

/// All that an attempt needs.
fn read(
    conn: &Connection,
    seq: i64,
    subscription: Uuid,
    tenant: &Name,
) -> Result<Option<DueDelivery>, Error> {
    let sql = format!(
        "SELECT d.attempts, d.queued_at, s.url, s.auth, s.secret, {} \
         FROM deliveries d CROSS JOIN notices n ON n.seq = d.notice \
         CROSS JOIN subscriptions s ON s.id = d.subscription WHERE d.seq = ?1",
        notices::NOTICE
    );
    let found = conn.prepare_cached(&sql)?.query_row([seq], |row| {
        Ok(DueDelivery {
            seq,
            subscription,
            tenant: tenant.clone(),
            attempts: row.get(0)?,
            queued_at: time(row, 1)?,
            target: target(row, 2)?,
            notice: notices::read(row, 5)?,
        })
    });
    Ok(found.optional()?)
}
