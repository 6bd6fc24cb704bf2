//! Reads changes by their time.
//!
//! A target that tells changes by time is read in the order of (time, id), always from the last time that was told, that
//! time included; what of it was told already is left out. When nothing more follows, the last two minutes are looked
//! through again for what appeared there late: a transaction that began early and was committed late carries an old
//! time. What was told is remembered in the cursor itself, as five bytes per change: the changes of the last two minutes, or
//! the last [`Recent::MOST`] of them. So a cursor needs no memory of the agent, and another agent of the site can go on with it.
//!
//! Offsets shift while records are edited. So a page begins with the record that the page before ended with; if it does
//! not, that record is looked for a page before, where the time is over; else the time is read again from its beginning. What
//! may then come twice is told twice: nothing is lost.
//!
//! A record that is dated ahead of the target's clock is told, and the reading does not go on from its time: what people
//! change today would be older. As many of those as a cursor has room for are remembered; what is left is told when its
//! time has come.
//!
//! A server that ignores the filter or the order would make a feed that looks whole and is not: such a page is refused.

use super::{Head, HeadKind, change};
use crate::{
    ChangeOp, Changes, Code, Failure,
    crm::{
        Crm,
        cursor::MAX_CONTENT,
        dialect::{Changed, Span},
        error::{CrmError, Problem},
        exchange::Talk,
        recent::{At, OVERLAP, Recent, floor_to},
        vocabulary::{Entity, Field, Record},
    },
};
use aws_lc_rs::digest;
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;

/// A record later than this past the target's clock is dated ahead of it, in microseconds.
const AHEAD: i64 = 600 * 1_000_000;
/// Requests for one page: more means that a target does not come forward.
const MAX_REQUESTS: usize = 60;
/// How long before now a time may be, in microseconds, and still be of an edit while a page was read.
const MEANWHILE: i64 = 120_000_000;

/// What is asked for at once.
#[derive(Clone, Copy, Default)]
struct Asked<'a> {
    /// As in [`Span`], in microseconds.
    since: Option<i64>,
    after: Option<(i64, &'a str)>,
    offset: usize,
    next: Option<&'a str>,
    limit: usize,
    /// What was told of this time, where the answer begins with it.
    told: Option<&'a At>,
}

/// One reading of a page.
pub(super) struct Reader<'a> {
    pub(super) crm: &'a Crm,
    pub(super) talk: &'a Talk,
    pub(super) entity: &'a Entity,
    pub(super) wanted: &'a [&'a Field],
    pub(super) shown: &'a [&'a Field],
    pub(super) granularity: Duration,
    pub(super) keyset: bool,
    pub(super) ties_ordered: bool,
    pub(super) limit: usize,
}

impl Reader<'_> {
    pub(super) async fn read(&self, mut at: At, mut recent: Recent) -> Result<Changes, Failure> {
        let mut found = Vec::new();
        self.hold_to_clock(&mut at).await?;
        // As far as the marks reach, and the requests of one page.
        if !self.ties_ordered && at.off <= (Recent::MOST / 2).min(MAX_REQUESTS / 3 * self.page_size()) {
            at.off = 0;
        }
        let ended = self.forward(&mut at, &mut recent, &mut found).await?;
        let mut more = !ended;
        if ended && found.len() < self.limit {
            more = self.late(&mut at, &mut recent, &mut found).await?;
        }
        recent.trim(&mut at);
        let tail = recent.to_bytes(at.high.unwrap_or_default());
        debug_assert!(tail.len() < MAX_CONTENT, "a cursor holds what is remembered");
        let head = Head { e: self.entity.name.clone(), kind: HeadKind::Time(at) };
        let next_cursor = self.crm.cursors.seal(&head, &tail)?;
        let items = found
            .into_iter()
            .map(|record| change(self.entity, self.shown, ChangeOp::Upsert, record))
            .collect();
        Ok(Changes { items, next_cursor, more, complete_deletes: false })
    }

    /// The last time that is not ahead of the target's clock.
    fn due(&self) -> i64 {
        self.crm.exchange.target_now().as_microsecond() + AHEAD
    }

    /// A cursor that stands ahead of the target's clock would tell nothing until then.
    async fn hold_to_clock(&self, at: &mut At) -> Result<(), Failure> {
        if at.high.is_none_or(|high| high <= self.due()) {
            return Ok(());
        }
        // Its clock may be ahead of ours, which no answer has told yet.
        self.crm.dialect.probe(self.talk).await?;
        if at.high.is_some_and(|high| high > self.due()) {
            at.high = Some(self.crm.exchange.target_now().as_microsecond());
            at.last.clear();
            at.off = 0;
            at.whole = None;
        }
        Ok(())
    }

    /// What follows the last time; whether the end is reached.
    async fn forward(
        &self,
        at: &mut At,
        recent: &mut Recent,
        found: &mut Vec<Record>,
    ) -> Result<bool, Failure> {
        // Whether to begin right after what is told, since a page held nothing but the record of the one before.
        let mut plain = false;
        let begun = (at.high, at.last.clone(), at.off);
        for _ in 0..MAX_REQUESTS {
            let last = at.last.clone();
            let after = at.high.filter(|_| self.keyset && !last.is_empty()).map(|high| (high, last.as_str()));
            // Begins with the record that the page before ended with, to see whether the offsets still hold.
            if !self.ties_ordered && at.off < self.page_size() {
                at.off = 0;
            }
            let grain = |record: &Record| floor_to(micros(record), self.granularity);
            let overlap = after.is_none() && at.off > 0 && !plain;
            let offset = if after.is_some() { 0 } else { at.off - usize::from(overlap) };
            let since = at.high.map(|high| floor_to(high, self.granularity)).or(at.floor);
            let told = Some(&*at).filter(|_| after.is_none() && offset == 0);
            let limit = self.page_size();
            let page = self.ask(Asked { since, after, offset, limit, told, ..Asked::default() }).await?;
            let mut records = page.records;
            let due = self.due();
            let dated = records.iter().position(|record| micros(record) > due);
            let ahead = dated.map(|first| records.split_off(first)).is_some();
            let mut records = records.into_iter().peekable();
            if overlap {
                // Edited later on, it is one of those that follow.
                let is_last = |first: &Record| first.id == last && Some(grain(first)) == since;
                match records.next_if(is_last) {
                    // It may have changed within the same grain of time.
                    Some(again) => {
                        let mark = mark(&again);
                        if !recent.met(second(&again), mark) {
                            recent.add(second(&again), mark, at);
                            found.push(again);
                        }
                    }
                    None if offset > 0 => {
                        at.off = self.moved_up(at, since, offset).await?.unwrap_or(0);
                        continue;
                    }
                    None => at.off = 0,
                }
            }
            let onwards = records.peek().is_some();
            for record in records {
                if found.len() >= self.limit {
                    return Ok(false);
                }
                self.advance(at, &record);
                let mark = mark(&record);
                if !recent.met(second(&record), mark) {
                    recent.add(second(&record), mark, at);
                    found.push(record);
                }
            }
            if ahead {
                return self.ahead(due, at, recent, found).await;
            }
            if page.end || (!onwards && !overlap) {
                return Ok(true);
            }
            plain = !onwards;
            if found.len() >= self.limit {
                return Ok(false);
            }
        }
        // To say that this is the end would hide what follows.
        if found.is_empty() && begun == (at.high, at.last.clone(), at.off) {
            let reason =
                format!("{MAX_REQUESTS} answers to a search for changes brought nothing new, and no end");
            return Err(CrmError::new(Problem::Protocol).reason(&reason).into());
        }
        Ok(false)
    }

    /// How many of a time are told, by where the record that was told last stands now. Records only leave a time that is
    /// over, by deletion or edit, so that what follows moves up; into one that may still get some nobody can look so. `None`:
    /// the time is to be read again.
    async fn moved_up(&self, at: &At, since: Option<i64>, offset: usize) -> Result<Option<usize>, Failure> {
        let over = self.crm.exchange.target_now().as_microsecond() - MEANWHILE;
        if !self.ties_ordered || since.is_none_or(|since| since >= floor_to(over, self.granularity)) {
            return Ok(None);
        }
        let limit = self.page_size();
        let mut from = offset.saturating_sub(limit);
        while from < offset {
            let page = self.ask(Asked { since, offset: from, limit, ..Asked::default() }).await?;
            let is_last = |record: &Record| {
                record.id == at.last && Some(floor_to(micros(record), self.granularity)) == since
            };
            if let Some(place) = page.records.iter().position(is_last) {
                return Ok(Some(from + place + 1));
            }
            if page.records.is_empty() {
                break;
            }
            from += page.records.len();
        }
        Ok(None)
    }

    /// What is dated ahead of the target's clock: told once, from where the reading does not go on. Whether the end is
    /// reached.
    async fn ahead(
        &self,
        due: i64,
        at: &mut At,
        recent: &mut Recent,
        found: &mut Vec<Record>,
    ) -> Result<bool, Failure> {
        let (mut offset, mut seen) = (0, Vec::new());
        for _ in 0..MAX_REQUESTS {
            let since = Some(floor_to(due, self.granularity));
            let limit = self.page_size();
            let page = self.ask(Asked { since, offset, limit, ..Asked::default() }).await?;
            let read = page.records.len();
            for record in page.records.into_iter().filter(|record| micros(record) > due) {
                let mark = mark(&record);
                seen.push(mark);
                if recent.has(mark) {
                    continue;
                }
                if found.len() >= self.limit {
                    return Ok(false);
                }
                if recent.is_full_ahead() {
                    return Ok(true);
                }
                tracing::warn!(
                    entity = self.entity.name,
                    record = record.id,
                    "the record is dated ahead of the target's clock: it is told, and the feed goes on from now"
                );
                recent.add(Recent::FUTURE, mark, at);
                found.push(record);
            }
            if page.end || read == 0 {
                recent.keep_ahead(&seen);
                return Ok(true);
            }
            offset += read;
        }
        Ok(true)
    }

    /// The record that was told last is itself of the time that is asked for. Where it does not come, and still is as it was
    /// told, the filter does not match what it should: what changed since would not come either.
    async fn hold_to_last(&self, at: &At, page: &Changed, begun: i64) -> Result<(), Failure> {
        let Some(high) = at.high.filter(|_| !at.last.is_empty()) else { return Ok(()) };
        let grain = |time: i64| floor_to(time, self.granularity);
        // Young ones may stand where they were before they were edited.
        let beyond = |record: &Record| grain(micros(record)) > grain(high) && micros(record) < begun;
        let passed = page.end || page.records.iter().any(beyond);
        if !passed || page.records.iter().any(|record| record.id == at.last) {
            return Ok(());
        }
        // Edited, deleted or out of reach: nothing is proven.
        let Ok(record) = self.crm.dialect.get(self.talk, self.entity, &at.last, &[]).await else {
            return Ok(());
        };
        if record.modified.is_none_or(|modified| grain(modified.as_microsecond()) != grain(high)) {
            return Ok(());
        }
        Err(refused("does not find by the time of the last change what has just that time"))
    }

    fn advance(&self, at: &mut At, record: &Record) {
        let modified = micros(record);
        let grain = |time: i64| floor_to(time, self.granularity);
        at.off = if at.high.is_some_and(|high| grain(high) == grain(modified)) { at.off + 1 } else { 1 };
        // Within a grain the order may be finer than the times that are told.
        at.high = Some(at.high.map_or(modified, |high| high.max(modified)));
        at.last.clone_from(&record.id);
    }

    /// What appeared late within the last two minutes; whether there is more of it.
    async fn late(&self, at: &mut At, recent: &mut Recent, found: &mut Vec<Record>) -> Result<bool, Failure> {
        let Some(high) = at.high else { return Ok(false) };
        recent.trim(at);
        let window = high.div_euclid(1_000_000) - OVERLAP;
        let from = window.max(at.whole.unwrap_or(i64::MIN)).saturating_mul(1_000_000);
        let from = from.max(at.floor.unwrap_or(i64::MIN));
        let since = Some(floor_to(from, self.granularity));
        // Most of it was told already and is left out: no page of ours bounds it.
        let limit = self.crm.dialect.abilities().max_page.max(2);
        let (mut offset, mut next) = (0, None::<String>);
        for _ in 0..MAX_REQUESTS {
            let page =
                self.ask(Asked { since, offset, next: next.as_deref(), limit, ..Asked::default() }).await?;
            let read = page.records.len();
            for record in page.records {
                let modified = micros(&record);
                if modified > high {
                    // The next reading forward tells it, if its time has come.
                    return Ok(modified <= self.due());
                }
                let mark = mark(&record);
                if modified < from || recent.has(mark) {
                    continue;
                }
                if found.len() >= self.limit {
                    return Ok(true);
                }
                recent.add(second(&record), mark, at);
                found.push(record);
            }
            if page.end || (read == 0 && page.next.is_none()) {
                return Ok(false);
            }
            offset += read;
            next = page.next;
        }
        Ok(false)
    }

    /// One more than is wanted, if the target gives so many: what was told last comes again in front.
    fn page_size(&self) -> usize {
        self.crm.dialect.abilities().max_page.min(self.limit + 1).max(2)
    }

    /// Asks for records and holds the answer to what was asked for, and to what was `told` of that time.
    async fn ask(&self, asked: Asked<'_>) -> Result<Changed, Failure> {
        let Asked { since, after, offset, next, limit, told } = asked;
        let time = |micros: i64| {
            Timestamp::from_microsecond(micros)
                .map_err(|e| Failure::from(CrmError::new(Problem::Protocol).detail(e)))
        };
        let since = since.map(time).transpose()?;
        let after = after.map(|(high, last)| Ok::<_, Failure>((time(high)?, last))).transpose()?;
        let span = Span { since, after, offset, next, limit };
        let begun = self.crm.exchange.target_now().as_microsecond() - MEANWHILE;
        let page = self.crm.dialect.changed(self.talk, self.entity, self.wanted, span).await;
        let mut page = page.map_err(|error| error.of_collection(&self.entity.name))?;
        if let Some(told) = told {
            self.hold_to_last(told, &page, begun).await?;
        }
        let given = page.records.len();
        leave_out_edited(&mut page, begun, self.granularity);
        if page.records.len() < given {
            // What was left out would not come again behind it.
            page.next = None;
        }
        let refuses = |what: &str| Err(refused(what));
        let mut before = i64::MIN;
        for record in &page.records {
            let Some(modified) = record.modified.map(|at| at.as_microsecond()) else {
                return refuses("gives records without the time of their last change");
            };
            if since.is_some_and(|since| modified < floor_to(since.as_microsecond(), self.granularity)) {
                return refuses("ignores the filter on the time of the last change");
            }
            if modified < before {
                return refuses("does not sort by the time of the last change");
            }
            before = floor_to(modified, self.granularity);
        }
        Ok(page)
    }
}

fn refused(what: &str) -> Failure {
    let reason = format!("it {what}, so that changes would be lost: this agent refuses to sync from it");
    Failure::permanent(Code::TargetProtocol, reason)
}

/// A target that looks records up first and reads them after shows what was edited in between at its old place with its
/// new time. Such records are left out: they come again at the place of that time, and what lies between is not
/// passed over.
fn leave_out_edited(page: &mut Changed, begun: i64, granularity: Duration) {
    let Changed { records, end, .. } = page;
    let mut least = i64::MAX;
    let mut displaced = Vec::new();
    for time in records.iter().rev().map(micros) {
        if floor_to(time, granularity) <= least {
            least = least.min(time);
        } else {
            displaced.push(time);
        }
    }
    if !displaced.is_empty() && displaced.iter().all(|time| *time >= begun) {
        // Whatever is as young may be so too.
        records.retain(|record| micros(record) < begun);
    }
    // At the end of a page that is followed by others there is nothing to tell them by but their time.
    let old = records.iter().rposition(|record| micros(record) < begun).map_or(0, |last| last + 1);
    if !*end && old < records.len() && old * 2 >= records.len() {
        records.truncate(old);
    }
}

fn micros(record: &Record) -> i64 {
    record.modified.map_or(0, |at| at.as_microsecond())
}

fn second(record: &Record) -> i64 {
    micros(record).div_euclid(1_000_000)
}

/// What tells a change from others: the record, its time, its version, and its content where versions are missing or too
/// coarse.
fn mark(record: &Record) -> [u8; 5] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(record.id.as_bytes());
    context.update(&[0]);
    context.update(&micros(record).to_be_bytes());
    context.update(record.version.as_deref().unwrap_or_default().as_bytes());
    context.update(&[0]);
    context.update(Value::Object(record.fields.clone()).to_string().as_bytes());
    let mut mark = [0; 5];
    for (to, from) in mark.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    mark
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    const NOW: i64 = 1_000;

    /// What is left of a page of records of these times.
    fn left(times: &[i64], end: bool) -> Vec<i64> {
        let record = |time: &i64| Record {
            id: time.to_string(),
            version: None,
            modified: Timestamp::from_microsecond(*time).ok(),
            fields: Map::new(),
        };
        let mut page = Changed { records: times.iter().map(record).collect(), end, ..Changed::default() };
        leave_out_edited(&mut page, NOW, Duration::from_micros(1));
        page.records.iter().map(micros).collect()
    }

    #[test]
    fn what_was_edited_while_the_page_was_read_comes_again_at_its_new_place() {
        assert_eq!(left(&[1, 2, 3], true), [1, 2, 3]);
        assert_eq!(left(&[1, 2_000, 3, 3_000, 4], false), [1, 3, 4], "in the midst of it");
        assert_eq!(left(&[1, 2_000, 3, 3_000], true), [1, 3], "there and at its end");
        assert_eq!(left(&[1, 2, 3, 2_000], false), [1, 2, 3], "at its end, where others follow");
        assert_eq!(left(&[1, 2, 3, 2_000], true), [1, 2, 3, 2_000], "at the end of all");
        assert_eq!(
            left(&[1, 2_000, 3_000, 4_000], false),
            [1, 2_000, 3_000, 4_000],
            "the feed has reached now"
        );
        // Out of order for another reason: the answer is refused as it is.
        assert_eq!(left(&[1, 9, 3, 4], true), [1, 9, 3, 4]);
    }
}
