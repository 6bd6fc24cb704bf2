//! The zone of a Dolibarr server: its answers tell seconds since 1970, its filters compare local times, and nothing says what
//! lies between.
//!
//! It is found out on the record that changed last, whose second is known: the offset for which a filter finds that
//! record at that very second. It counts for a quarter of an hour, so that a change of the clocks shows.

use super::{Dolibarr, Filter, Operator, Window, modified};
use crate::crm::{
    error::{CrmError, Problem},
    exchange::Talk,
    shape,
    vocabulary::Entity,
};
use jiff::Timestamp;
use std::{
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

/// What is known of it.
#[derive(Debug)]
pub(super) struct Zone {
    configured: Option<i64>,
    found: Mutex<Option<(Instant, i64)>>,
}

impl Zone {
    pub(super) fn new(configured: Option<i64>) -> Self {
        Self { configured, found: Mutex::new(None) }
    }

    fn known(&self) -> Option<i64> {
        let found = *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        self.configured.or_else(|| found.filter(|(at, _)| at.elapsed() < FRESH).map(|(_, offset)| offset))
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
    /// How far east of UTC the server's times are, in seconds.
    pub(super) async fn zone_of(&self, talk: &Talk, entity: &Entity) -> Result<i64, CrmError> {
        if let Some(offset) = self.zone.known() {
            return Ok(offset);
        }
        for _ in 0..TRIES {
            let window = Window { filter: None, order: "t.tms", descending: true, size: 1, number: 0 };
            let rows = self.list(talk, entity, window).await?;
            let Some(row) = rows.first() else { return Ok(0) };
            let id = row.get("id").and_then(shape::id).and_then(|id| id.parse::<i64>().ok());
            let (Some(id), Some(at)) = (id, modified(row)) else {
                return Err(
                    CrmError::new(Problem::Unsupported).reason("its records do not tell date_modification")
                );
            };
            if let Some(offset) = self.search(talk, entity, id, at).await? {
                *self.zone.found.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((Instant::now(), offset));
                return Ok(offset);
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
