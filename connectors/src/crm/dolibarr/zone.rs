//! The zone of a Dolibarr server: its answers tell seconds since 1970, its filters compare local times, and nothing says what
//! lies between.
//!
//! It is found out on a record, whose second is known: the offset for which a filter finds that record at that very
//! second. It is the first record that changed after the time in question, or a day before: which offset counts depends on the
//! time of the year. As the clocks may change just then, records are asked for from an hour earlier on, and what is
//! too early is left out here. An offset counts for a quarter of an hour, for times of its day.

use super::{DAY, Dolibarr, Filter, MAX_PAGE, Operator, Window, modified};
use crate::crm::{
    error::{CrmError, Problem},
    exchange::Talk,
    shape,
    vocabulary::Entity,
};
use jiff::Timestamp;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const FRESH: Duration = Duration::from_secs(15 * 60);
const QUARTER: i64 = 15 * 60;
/// Offsets in use lie between −12 and +14 hours, at quarters.
const LOWEST: i64 = -12 * 4;
const HIGHEST: i64 = 14 * 4;
/// The record may change while it is looked at.
const TRIES: usize = 3;
/// How far the clocks are put back at once.
const CHANGE: i64 = 3600;
/// Days of which the offset is remembered.
const DAYS: usize = 64;

/// What is known of it.
#[derive(Debug)]
pub(super) struct Zone {
    configured: Option<i64>,
    /// By day, counted from 1970.
    found: Mutex<BTreeMap<i64, (Instant, i64)>>,
}

impl Zone {
    pub(super) fn new(configured: Option<i64>) -> Self {
        Self { configured, found: Mutex::default() }
    }

    fn known(&self, day: i64) -> Option<i64> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(&day).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, offset)| *offset)
    }

    fn remember(&self, day: i64, offset: i64) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() >= DAYS {
            found.clear();
        }
        found.insert(day, (Instant::now(), offset));
    }
}

/// `+01:00`, in seconds.
pub(super) fn parse(text: &str) -> Option<i64> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes) = (hours.parse::<i64>().ok()?, minutes.parse::<i64>().ok()?);
    let offset = sign * (hours * 3600 + minutes * 60);
    ((0..60).contains(&minutes) && (LOWEST * QUARTER..=HIGHEST * QUARTER).contains(&offset)).then_some(offset)
}

impl Dolibarr {
    /// Records that changed at a time or later, in that order; whether they are the last ones.
    pub(super) async fn rows_since(
        &self,
        talk: &Talk,
        entity: &Entity,
        since: Timestamp,
        offset: usize,
        limit: usize,
    ) -> Result<(Vec<Value>, bool), CrmError> {
        if let Some(offset_s) = self.zone.configured {
            let filter = Filter::time("t.tms", Operator::AtLeast, since, offset_s);
            return self.rows(talk, entity, Some(&filter), offset, limit).await;
        }
        let Some(offset_s) = self.zone_of(talk, entity, since).await? else { return Ok((Vec::new(), true)) };
        let filter = Filter::time("t.tms", Operator::AtLeast, since, offset_s - CHANGE);
        let early = |row: &Value| modified(row).is_some_and(|at| at < since);
        for _ in 0..TRIES {
            let (mut rows, end) = self.rows(talk, entity, Some(&filter), 0, MAX_PAGE).await?;
            let count = rows.iter().take_while(|row| early(row)).count();
            let from = count + offset;
            if end || from + limit <= rows.len() {
                let end = end && from + limit >= rows.len();
                rows.drain(..from.min(rows.len()));
                rows.truncate(limit);
                return Ok((rows, end));
            }
            let count =
                if count < rows.len() { count } else { self.early(talk, entity, &filter, since).await? };
            if count == 0 {
                return self.rows(talk, entity, Some(&filter), offset, limit).await;
            }
            // The one before shows that nothing moved up meanwhile; further on the caller looks itself. Pages by number hold
            // more or less of a window, but always two records of one of two.
            let start = count + offset - 1;
            let held = |window: &usize| {
                let (size, _, skip) = shape::numbered(start, *window, MAX_PAGE);
                (*window).min(size - skip)
            };
            let window = (2..=limit + 1).max_by_key(held).unwrap_or(2);
            let (mut rows, end) = self.rows(talk, entity, Some(&filter), start, window).await?;
            if offset > 0 || rows.first().is_some_and(early) {
                rows.drain(..rows.len().min(1));
                // Edited meanwhile into what is too early: nothing is.
                let still = rows.iter().take_while(|row| early(row)).count();
                rows.drain(..still);
                return Ok((rows, end));
            }
        }
        let reason = "its records change faster than they can be read";
        Err(CrmError::new(Problem::Unavailable).reason(reason))
    }

    /// How many of the records that a filter finds changed before a time.
    async fn early(
        &self,
        talk: &Talk,
        entity: &Entity,
        filter: &Filter,
        since: Timestamp,
    ) -> Result<usize, CrmError> {
        let (mut low, mut high, mut ended) = (0, 2 * MAX_PAGE, false);
        while low < high {
            let middle = if ended { low.midpoint(high) } else { high };
            let (rows, _) = self.rows(talk, entity, Some(filter), middle, 1).await?;
            if rows.first().and_then(modified).is_some_and(|at| at < since) {
                low = middle + 1;
                if !ended {
                    high = high.saturating_mul(2);
                }
            } else {
                (high, ended) = (middle, true);
            }
        }
        Ok(low)
    }

    /// How far east of UTC the server's times are at a time, in seconds; `None` if nothing changed since then.
    async fn zone_of(&self, talk: &Talk, entity: &Entity, since: Timestamp) -> Result<Option<i64>, CrmError> {
        let day = since.as_second().div_euclid(DAY);
        if let Some(offset) = self.zone.known(day) {
            return Ok(Some(offset));
        }
        // Earlier than the time, whatever the offset is.
        let filter = Filter::time("t.tms", Operator::AtLeast, since, LOWEST * QUARTER);
        for _ in 0..TRIES {
            let (rows, _) = self.rows(talk, entity, Some(&filter), 0, 1).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let id = row.get("id").and_then(shape::id).and_then(|id| id.parse::<i64>().ok());
            let (Some(id), Some(at)) = (id, modified(row)) else {
                return Err(
                    CrmError::new(Problem::Unsupported).reason("its records do not tell date_modification")
                );
            };
            if let Some(offset) = self.search(talk, entity, id, at).await? {
                self.zone.remember(day, offset);
                return Ok(Some(offset));
            }
        }
        let reason = "its time zone could not be found out; set options.utc_offset";
        Err(CrmError::new(Problem::Unsupported).reason(reason))
    }

    /// The greatest offset for which the record is not earlier than its time, if the two are then the same.
    async fn search(
        &self,
        talk: &Talk,
        entity: &Entity,
        id: i64,
        at: Timestamp,
    ) -> Result<Option<i64>, CrmError> {
        let (mut low, mut high) = (LOWEST, HIGHEST);
        while low < high {
            let middle = (low + high + 1).div_euclid(2);
            if self.holds(talk, entity, id, Operator::AtLeast, at, middle * QUARTER).await? {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        let offset = low * QUARTER;
        Ok(self.holds(talk, entity, id, Operator::Is, at, offset).await?.then_some(offset))
    }

    async fn holds(
        &self,
        talk: &Talk,
        entity: &Entity,
        id: i64,
        operator: Operator,
        at: Timestamp,
        offset_s: i64,
    ) -> Result<bool, CrmError> {
        let both =
            vec![Filter::number("t.rowid", Operator::Is, id), Filter::time("t.tms", operator, at, offset_s)];
        let filter = Filter::all(both);
        let window =
            Window { filter: filter.as_ref(), order: "t.rowid", descending: false, size: 1, number: 0 };
        Ok(!self.list(talk, entity, window).await?.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn offsets_are_read_as_they_are_written() {
        for (text, seconds) in [
            ("+01:00", Some(3600)),
            ("-03:30", Some(-12_600)),
            ("+00:00", Some(0)),
            ("+14:00", Some(50_400)),
            ("+15:00", None),
            ("01:00", None),
            ("+1", None),
            ("", None),
            ("+01:75", None),
        ] {
            assert_eq!(parse(text), seconds, "{text}");
        }
    }
}
