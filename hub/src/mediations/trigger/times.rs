//! When schedules are due: a row for each, in the store, so that a restart neither repeats a time nor leaves one out.
//!
//! The store's writer wakes at the nearest of these times, as it does for deadlines: nothing is polled, however many
//! definitions there are. A time and the run that it starts are committed together. The next time is counted from the last one
//! that was dealt with, never from the clock: set back, it makes nothing due again.

use super::{
    Occurrence, Trigger, arrivals,
    deliver::{fire, load},
    problems,
    schedule::Rule,
};
use crate::{
    mediations::{
        Definition, DefinitionId, Missed,
        store::definitions::{StoredDefinition, mark_late_in},
    },
    store::{
        Error,
        row::{from_uuid, ms, name, time, to_json},
        writer::Tx,
    },
};
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::Name;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::json;

/// How many are dealt with in one transaction: other writes wait behind it.
const AT_ONCE: i64 = 100;
/// A time that is seen later than this was missed.
const MISSED_AFTER: SignedDuration = SignedDuration::from_secs(60);
/// A last time that lies farther in the future than this comes from a clock that was wrong.
const WRONG_CLOCK: SignedDuration = SignedDuration::from_hours(25);
/// The row that says which trigger the arrivals are for.
const ARRIVALS: i64 = -1;
/// The row of when the definition would be late.
const LATENESS: i64 = -2;

/// For the test of their plans.
#[cfg(test)]
pub(crate) const QUERIES: &[&str] = &[DUE, NEXT];

const DUE: &str = "SELECT definition, clause, tenant, due_at, last_at FROM trigger_times WHERE due_at <= ?1 AND poll = 0 \
    ORDER BY due_at LIMIT ?2";
const NEXT: &str =
    "SELECT due_at FROM trigger_times WHERE due_at IS NOT NULL AND poll = 0 ORDER BY due_at LIMIT 1";

/// Has a definition's trigger watch for what it says, from now on. Schedules that stay the same go on.
pub(crate) fn watch(tx: &mut Tx<'_>, tenant: &Name, definition: &Definition) -> Result<(), Error> {
    if !definition.enabled {
        return forget(tx, tenant, definition.guid);
    }
    let id = definition.guid;
    problems::clear(tx, tenant, id)?;
    tx.conn
        .prepare_cached("DELETE FROM trigger_topics WHERE tenant = ?1 AND definition = ?2")?
        .execute(params![tenant.as_str(), id.uuid().as_bytes()])?;
    let mut kept = Vec::new();
    for (clause, trigger) in definition.trigger.clauses().into_iter().enumerate() {
        let clause = i64::try_from(clause).unwrap_or(i64::MAX);
        match trigger {
            Trigger::Event(event) => topic(tx, tenant, id, clause, &event.topic())?,
            Trigger::Resource(resource) => topic(tx, tenant, id, clause, &resource.topic())?,
            Trigger::Schedule(schedule) => {
                kept.push(clause);
                let what = to_json(&json!([schedule, definition.timezone]))?;
                let rule = schedule.rule(Some(&definition.timezone)).map_err(|wrong| {
                    let text: Vec<_> = wrong.iter().map(|(key, why)| format!("{key}: {why}")).collect();
                    Error::BadRequest(format!("trigger: {}", text.join("; ")))
                })?;
                begin(tx, tenant, id, clause, &what, false, rule.next_after(tx.now))?;
            }
            Trigger::Url(url) => {
                kept.push(clause);
                begin(tx, tenant, id, clause, &to_json(url)?, true, Some(tx.now))?;
            }
            Trigger::Manual(_) | Trigger::All(_) | Trigger::Any(_) => {}
        }
    }
    if let Trigger::All(all) = &definition.trigger {
        kept.push(ARRIVALS);
        if begin(tx, tenant, id, ARRIVALS, &to_json(all)?, false, None)? {
            forget_arrivals(tx, tenant, id)?;
        }
    } else {
        forget_arrivals(tx, tenant, id)?;
    }
    if let Some(seconds) = definition.max_interval_s {
        kept.push(LATENESS);
        let due = tx.now.checked_add(SignedDuration::from_secs(i64::from(seconds))).ok();
        begin(tx, tenant, id, LATENESS, &seconds.to_string(), false, due)?;
    }
    let mut others =
        tx.conn.prepare_cached("SELECT clause FROM trigger_times WHERE tenant = ?1 AND definition = ?2")?;
    let others: Vec<i64> = others
        .query_map(params![tenant.as_str(), id.uuid().as_bytes()], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for clause in others.iter().filter(|clause| !kept.contains(clause)) {
        tx.conn
            .prepare_cached(
                "DELETE FROM trigger_times WHERE tenant = ?1 AND definition = ?2 AND clause = ?3",
            )?
            .execute(params![tenant.as_str(), id.uuid().as_bytes(), clause])?;
    }
    Ok(())
}

/// Watches for nothing any more.
pub(crate) fn forget(tx: &mut Tx<'_>, tenant: &Name, id: DefinitionId) -> Result<(), Error> {
    problems::clear(tx, tenant, id)?;
    for table in ["trigger_topics", "trigger_times"] {
        let sql = format!("DELETE FROM {table} WHERE tenant = ?1 AND definition = ?2");
        tx.conn.prepare_cached(&sql)?.execute(params![tenant.as_str(), id.uuid().as_bytes()])?;
    }
    forget_arrivals(tx, tenant, id)
}

fn forget_arrivals(tx: &Tx<'_>, tenant: &Name, id: DefinitionId) -> Result<(), Error> {
    tx.conn
        .prepare_cached("DELETE FROM trigger_arrivals WHERE tenant = ?1 AND definition = ?2")?
        .execute(params![tenant.as_str(), id.uuid().as_bytes()])?;
    Ok(())
}

fn topic(tx: &Tx<'_>, tenant: &Name, id: DefinitionId, clause: i64, topic: &str) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT INTO trigger_topics (tenant, topic, definition, clause) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![tenant.as_str(), topic, id.uuid().as_bytes(), clause])?;
    Ok(())
}

/// Begins with a clause, unless it is the one that was there; true if it is new.
fn begin(
    tx: &mut Tx<'_>,
    tenant: &Name,
    id: DefinitionId,
    clause: i64,
    what: &str,
    poll: bool,
    due_at: Option<Timestamp>,
) -> Result<bool, Error> {
    let new = tx
        .conn
        .prepare_cached(
            "INSERT INTO trigger_times (definition, clause, tenant, what, poll, last_at, due_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (tenant, definition, clause) DO UPDATE SET \
             what = excluded.what, poll = excluded.poll, last_at = excluded.last_at, due_at = excluded.due_at, state = NULL \
             WHERE what <> excluded.what",
        )?
        .execute(params![
            id.uuid().as_bytes(),
            clause,
            tenant.as_str(),
            what,
            poll,
            ms(tx.now),
            due_at.map(ms)
        ])?;
    if let Some(due_at) = due_at.filter(|_| !poll) {
        tx.effects.due_at(due_at);
    }
    Ok(new == 1)
}

/// Starts what is due, and tells what is late.
pub(crate) fn run(tx: &mut Tx<'_>) -> Result<(), Error> {
    mend(tx)?;
    let due: Vec<(DefinitionId, i64, Name, Timestamp, Timestamp)> = {
        let mut statement = tx.conn.prepare_cached(DUE)?;
        let rows = statement.query_map(params![ms(tx.now), AT_ONCE], |row| {
            Ok((from_uuid(row, 0)?, row.get(1)?, name(row, 2)?, time(row, 3)?, time(row, 4)?))
        })?;
        rows.collect::<Result<_, _>>()?
    };
    for (id, clause, tenant, first, begun) in due {
        match load(tx, &tenant, id)?.filter(|stored| stored.definition.enabled) {
            // Nobody watches it any more, or nobody can read it: saved or enabled, it begins anew.
            None => dealt_with(tx, &tenant, id, clause, first, None)?,
            Some(stored) if clause == LATENESS => look_whether_late(tx, &tenant, &stored, begun)?,
            Some(stored) => planned(tx, &tenant, &stored.definition, clause, first)?,
        }
    }
    arrivals::give_up(tx)
}

/// A planned time, or several of them, came.
fn planned(
    tx: &mut Tx<'_>,
    tenant: &Name,
    definition: &Definition,
    clause: i64,
    first: Timestamp,
) -> Result<(), Error> {
    let id = definition.guid;
    let Some((place, rule)) = rule(definition, clause) else {
        // A time zone that this hub's database does not have any more, say.
        problems::note(tx, tenant, id, "the schedule cannot be read any more: save the definition anew")?;
        return dealt_with(tx, tenant, id, clause, first, None);
    };
    // All that were missed together; what comes after them is not late, and each for itself.
    let missed_until = tx.now.checked_sub(MISSED_AFTER).unwrap_or(Timestamp::MIN);
    let late = first < missed_until;
    let last = if late { rule.last_until(first, missed_until) } else { first };
    dealt_with(tx, tenant, id, clause, last, rule.next_after(last))?;
    if late && definition.missed == Missed::Skip {
        tracing::info!(definition = %definition.name, planned = %last, "A planned time was missed and is skipped");
        return Ok(());
    }
    let mut data = json!({"planned_at": last});
    if late {
        data["missed_since"] = json!(first);
    }
    let occurrence =
        Occurrence { key: format!("schedule:{last}"), kind: "schedule", at: last, data, flows: Vec::new() };
    match fire(tx, tenant, definition, place, occurrence) {
        Err(error @ (Error::Full | Error::Internal(_))) => Err(error),
        Err(error) => {
            problems::note(tx, tenant, id, &format!("the run of {last} could not be started: {error}"))
        }
        Ok(()) => Ok(()),
    }
}

/// The schedule of a clause.
fn rule(definition: &Definition, clause: i64) -> Option<(usize, Rule)> {
    let place = usize::try_from(clause).ok()?;
    match definition.trigger.clause(place)? {
        Trigger::Schedule(schedule) => Some((place, schedule.rule(Some(&definition.timezone)).ok()?)),
        _ => None,
    }
}

/// Says that a definition is late if nothing succeeded for its interval, counted from `begun` at the earliest. The next look is
/// when it could be late next: after a success that comes from now on, that is an interval from now at the earliest.
fn look_whether_late(
    tx: &mut Tx<'_>,
    tenant: &Name,
    stored: &StoredDefinition,
    begun: Timestamp,
) -> Result<(), Error> {
    let id = stored.definition.guid;
    let Some(seconds) = stored.definition.max_interval_s else {
        return dealt_with(tx, tenant, id, LATENESS, begun, None);
    };
    let interval = SignedDuration::from_secs(i64::from(seconds));
    let after = |at: Timestamp| at.checked_add(interval).unwrap_or(Timestamp::MAX);
    let since = [stored.succeeded_at, stored.enabled_at].into_iter().flatten().fold(begun, Timestamp::max);
    let expected = after(since);
    if expected > tx.now {
        return dealt_with(tx, tenant, id, LATENESS, begun, Some(expected));
    }
    mark_late_in(tx, tenant, id, expected)?;
    dealt_with(tx, tenant, id, LATENESS, begun, Some(after(tx.now)))
}

fn dealt_with(
    tx: &mut Tx<'_>,
    tenant: &Name,
    id: DefinitionId,
    clause: i64,
    last: Timestamp,
    next: Option<Timestamp>,
) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE trigger_times SET last_at = ?4, due_at = ?5 WHERE tenant = ?1 AND definition = ?2 AND clause = ?3",
        )?
        .execute(params![tenant.as_str(), id.uuid().as_bytes(), clause, ms(last), next.map(ms)])?;
    if let Some(next) = next {
        tx.effects.due_at(next);
    }
    Ok(())
}

/// Schedules whose last time a wrong clock put far into the future go on from now. A run that was started then is not started
/// again: its planned time is its key.
fn mend(tx: &mut Tx<'_>) -> Result<(), Error> {
    let horizon = tx.now.checked_add(WRONG_CLOCK).unwrap_or(Timestamp::MAX);
    let ahead: Vec<(DefinitionId, i64, Name)> = {
        let mut statement = tx.conn.prepare_cached(
            "SELECT definition, clause, tenant FROM trigger_times INDEXED BY trigger_times_last WHERE last_at > ?1 \
             LIMIT ?2",
        )?;
        let rows = statement.query_map(params![ms(horizon), AT_ONCE], |row| {
            Ok((from_uuid(row, 0)?, row.get(1)?, name(row, 2)?))
        })?;
        rows.collect::<Result<_, _>>()?
    };
    for (id, clause, tenant) in ahead {
        let stored = load(tx, &tenant, id)?;
        let rule = stored.as_ref().and_then(|stored| rule(&stored.definition, clause));
        // What is no schedule is looked at now, and goes on from there.
        let next = rule.map_or(Some(tx.now), |(_, rule)| rule.next_after(tx.now));
        tracing::warn!(definition = %id, "The clock was set back by more than a day: a schedule goes on from now");
        dealt_with(tx, &tenant, id, clause, tx.now, next.filter(|_| clause != ARRIVALS))?;
    }
    Ok(())
}

/// When [`run`] is next due.
pub(crate) fn next(conn: &Connection) -> Result<Option<Timestamp>, Error> {
    let due = conn.prepare_cached(NEXT)?.query_row([], |row| time(row, 0)).optional()?;
    let over = arrivals::next(conn)?;
    Ok(match (due, over) {
        (Some(due), Some(over)) => Some(due.min(over)),
        (due, over) => due.or(over),
    })
}
