//! Walks through the lists of a REST interface, however they page.
//!
//! A short page is no end: servers cap pages below the size that they are asked for. A list that is paged by numbers or
//! offsets ends with an empty page, one that repeats the page before, a 404 after the first page, or where the answer says
//! that nothing follows. Page numbers count in the size that the server really gives, which its first page shows.
//!
//! Without pages, what follows is asked for by its time until nothing new comes. An answer that says that there is more, or
//! looks so, is no end: it is told which setting is wrong ([`hints`]).
//!
//! Where records of one time do not come in the order of ids, nobody knows whether the next request has them in the same
//! order: all of that time are then read in one go, again until as many different ones are there as the list has.

use super::{
    Rest, hints,
    shape::{Paging, Shape, at, plain},
};
use crate::{
    Code,
    crm::{
        dialect::{Changed, Listed, Page},
        error::{CrmError, Problem},
        exchange::{Talk, request::Request},
        pages::{self, Pages, endless},
        recent::floor_to,
        vocabulary::{Entity, Field, Record},
    },
};
use http::Method;
use std::{cmp::Ordering, collections::BTreeMap, sync::PoisonError};

/// Pages of a list that can only be walked from its beginning.
const MAX_WALKED: usize = 200;
/// Records of one time that are read in one go.
const MAX_SORTED: usize = 10_000;
/// How often they are read until none is missing.
const MAX_READINGS: usize = 20;
/// Parts a cursor within a page from the place of that page.
const WITHIN: char = '\u{1}';
/// Parts the digest of the page before from the cursor of the next one.
const AFTER: char = '\u{2}';

/// What follows a page.
enum Next {
    End,
    Page(String),
    /// The page was short, which may be the server's own measure.
    Perhaps(String),
}

/// A page.
struct Read {
    records: Vec<Record>,
    next: Next,
    /// The answer says that it is not all.
    says_more: bool,
}

/// A list to be read.
#[derive(Clone, Copy)]
pub(super) struct List<'a> {
    pub(super) rest: &'a Rest,
    pub(super) talk: &'a Talk,
    pub(super) entity: &'a Entity,
    pub(super) shape: &'a Shape,
    pub(super) wanted: &'a [&'a Field],
    pub(super) query: &'a [(String, String)],
}

/// Where a walk through a list stands.
struct Walk<'a> {
    list: List<'a>,
    size: usize,
    /// The next page; `None` is the first.
    at: Option<String>,
    ended: bool,
    /// The page before was short: whether more follows shows the next one.
    doubt: bool,
    /// A digest of the page before, where pages are counted.
    before: Option<String>,
    pages: Pages,
}

impl<'a> List<'a> {
    fn walk(self, size: usize, at: Option<String>) -> Walk<'a> {
        let pages = Pages::new(self.talk);
        Walk { list: self, size, at, ended: false, doubt: false, before: None, pages }
    }

    /// Whether pages follow one another by a number of ours.
    fn counts(&self) -> bool {
        matches!(self.shape.paging, Paging::Page { .. } | Paging::Offset { .. })
    }

    /// A page; `cursor` as a page before gave it.
    async fn page(&self, talk: &Talk, limit: usize, cursor: Option<&str>) -> Result<Read, CrmError> {
        let Self { rest, shape, .. } = *self;
        let stale = || CrmError::new(Problem::Protocol).reason("a page's cursor makes no sense");
        let number = match cursor {
            Some(text) if self.counts() => text.parse::<usize>().map_err(|_| stale())?,
            _ => 0,
        };
        let first = Rest::request(shape, Method::GET, self.entity.target.clone());
        let first = self.query.iter().fold(first, |request, (key, value)| request.query(key, value));
        let request = match (&shape.paging, cursor) {
            (Paging::None, _) => first,
            (Paging::Page { page, size, first: first_page }, _) => {
                first.query(page, (number + first_page).to_string()).query(size, limit.to_string())
            }
            (Paging::Offset { offset, size }, _) => {
                first.query(offset, number.to_string()).query(size, limit.to_string())
            }
            (Paging::Link { .. }, Some(link)) => Request::link(rest.exchange.link(link)?),
            (Paging::Link { size, .. } | Paging::Cursor { size, .. }, None) => {
                first.query(size, limit.to_string())
            }
            (Paging::Cursor { cursor: param, size, .. }, Some(cursor)) => {
                first.query(size, limit.to_string()).query(param, cursor)
            }
        };
        let answer = rest.exchange.send(talk, request).await?;
        // The collection is there: its first page was.
        let is_further = self.counts() && number > 0;
        if answer.status.as_u16() == 404 && (shape.empty_page_is_404 || is_further) {
            return Ok(Read { records: Vec::new(), next: Next::End, says_more: false });
        }
        shape.check(&answer, Some(self.entity)).map_err(|error| {
            // Some say so of a search that finds nothing.
            let hint = "; if it answers 404 where nothing is found, set empty_page_is_404 = true";
            let error = error.of_collection(&self.entity.name);
            let reason =
                error.reason.as_ref().filter(|_| error.problem == Problem::Ours(Code::TargetNotFound));
            CrmError { reason: reason.map(|reason| format!("{reason}{hint}")).or(error.reason), ..error }
        })?;
        let body = answer.json()?;
        let records = shape.many(&body, &answer, self.wanted)?;
        let told =
            |path: &str| at(&body, path).map(|next| if next.is_null() { String::new() } else { plain(next) });
        let by_count = |next: usize, path: &str| match (records.len(), told(path)) {
            (_, Some(link)) if matches!(link.as_str(), "" | "false") => Next::End,
            // What is filtered after paging may leave the first page empty.
            (0, told) if number > 0 || next == number || told.is_none() => Next::End,
            (count, told) if count >= limit || told.is_some() => Next::Page(next.to_string()),
            _ => Next::Perhaps(next.to_string()),
        };
        let next = match &shape.paging {
            Paging::None => Next::End,
            Paging::Page { .. } => by_count(number + 1, &shape.next),
            Paging::Offset { .. } => by_count(number + records.len(), &shape.next),
            Paging::Link { .. } => {
                let link = told(&shape.next).filter(|link| !link.is_empty());
                let link = link.map(|link| rest.exchange.link(&link)).transpose()?;
                link.and_then(|link| rest.exchange.relative(&link)).map_or(Next::End, Next::Page)
            }
            Paging::Cursor { .. } => {
                told(&shape.next).filter(|next| !next.is_empty()).map_or(Next::End, Next::Page)
            }
        };
        let says_more = hints::says_more(&body, &answer, &shape.next, records.len());
        let missing = match (&shape.paging, &next) {
            (Paging::None, _) => Some("it says that there is more than it gives at once: set paging"),
            (Paging::Link { .. } | Paging::Cursor { .. }, Next::End) if cursor.is_none() => {
                Some("it says that there is more, and has nothing that leads there: check next, and paging")
            }
            _ => None,
        };
        match missing.filter(|_| says_more) {
            Some(reason) => Err(CrmError::new(Problem::Protocol).reason(reason)),
            None => Ok(Read { records, next, says_more }),
        }
    }

    /// A page that repeats the one before is the end where the server gives its only page, or its last one, whatever is asked
    /// for after it. One that heeds the size and not the number has more than that.
    async fn hold_to_numbers(&self, talk: &Talk, repeated: &[Record]) -> Result<(), CrmError> {
        let count = repeated.len();
        let first = |records: &[Record]| records.first().map(|record| record.id.clone());
        // Its second half; of one record: whether another one comes with it.
        let (size, number) = match (&self.shape.paging, count) {
            (_, 0 | 1) => (2, 0),
            (Paging::Offset { .. }, _) => (count / 2, count / 2),
            _ => (count / 2, 1),
        };
        let read = self.page(talk, size, Some(&number.to_string())).await?;
        if first(&read.records) != first(repeated) {
            return Ok(());
        }
        let heeds_size = match count {
            0 | 1 => read.records.len() > count,
            _ => read.records.len() < count,
        };
        if heeds_size || read.says_more || hints::is_full(&read.records, self.shape) {
            return Err(CrmError::new(Problem::Protocol).reason(self.ignored()));
        }
        Ok(())
    }

    fn ignored(&self) -> &'static str {
        match self.shape.paging {
            Paging::Offset { .. } => {
                "it gives the same records whatever the offset: check paging, offset_param and size_param"
            }
            Paging::Page { .. } | Paging::Link { .. } | Paging::Cursor { .. } | Paging::None => {
                "it gives the same records whatever the page: check paging, page_param and size_param"
            }
        }
    }

    /// Whether an answer without pages is surely all that follows: else what comes after its last time is asked for.
    fn is_whole(&self, rows: &[Record]) -> Result<bool, CrmError> {
        if self.shape.paging != Paging::None || rows.len() < 2 {
            return Ok(true);
        }
        if hints::is_full(rows, self.shape) {
            let reason = format!(
                "{} records of one time at once look like the first page of more: set paging; if it knows no pages, set \
                 max_page above that",
                rows.len()
            );
            return Err(CrmError::new(Problem::Protocol).reason(&reason));
        }
        Ok(hints::is_one_time(rows, self.shape))
    }

    /// A page of a search.
    pub(super) async fn find(self, page: Page<'_>) -> Result<Listed, CrmError> {
        let (mut skip, before, at) = opened(page.cursor)?;
        let mut walk = Walk { before, ..self.walk(page.limit, at) };
        let mut records: Vec<Record> = Vec::new();
        loop {
            let here = walk.at.clone();
            let Some(read) = walk.more().await? else { return Ok(Listed { records, next: None }) };
            let room = page.limit - records.len();
            // A server that gives more than it was asked for is asked for the same page again.
            let rest = read.len().saturating_sub(skip);
            records.extend(read.into_iter().skip(skip).take(room));
            if rest > room {
                let next = format!("{WITHIN}{}{WITHIN}{}", skip + room, here.unwrap_or_default());
                return Ok(Listed { records, next: Some(next) });
            }
            skip = 0;
            if walk.ended || !walk.doubt || records.len() >= page.limit {
                let next = walk.at.filter(|_| !walk.ended);
                let next = next.map(|next| match walk.before.filter(|_| self.counts()) {
                    Some(before) => format!("{AFTER}{before}{AFTER}{next}"),
                    None => next,
                });
                return Ok(Listed { records, next });
            }
        }
    }

    /// Records from an offset on.
    pub(super) async fn starting_at(self, offset: usize, limit: usize) -> Result<Changed, CrmError> {
        if self.is_disordered()
            && let Some(changed) = self.in_order(offset, limit).await?
        {
            return Ok(changed);
        }
        let changed = self.as_it_comes(offset, limit).await?;
        let grain = |record: &Record| time(record).map(|time| floor_to(time, self.shape.granularity));
        let disordered = changed.records.windows(2).any(|pair| match pair {
            [a, b] => grain(a) == grain(b) && order(a, b) != Ordering::Less,
            _ => false,
        });
        if disordered && !self.is_disordered() {
            self.note_disordered();
            return Ok(self.in_order(offset, limit).await?.unwrap_or(changed));
        }
        Ok(changed)
    }

    fn note_disordered(&self) {
        let mut known = self.rest.disordered.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(self.entity.name.clone());
    }

    fn is_disordered(&self) -> bool {
        let known = self.rest.disordered.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&self.entity.name)
    }

    async fn as_it_comes(self, offset: usize, limit: usize) -> Result<Changed, CrmError> {
        let max_page = self.shape.max_page;
        let (mut walk, mut skip) = match &self.shape.paging {
            Paging::Offset { .. } => (self.walk(limit, Some(offset.to_string())), 0),
            // A far page can only be named in the size that the server really gives.
            Paging::Page { .. } if offset >= max_page => {
                let mut walk = self.walk(max_page, None);
                let size = walk.more().await?.map_or(0, |first| first.len());
                if walk.ended || size == 0 {
                    return Ok(Changed { records: Vec::new(), end: true, ..Changed::default() });
                }
                let before = walk.before.take().filter(|_| offset >= size);
                (Walk { at: Some((offset / size).to_string()), before, ..walk }, offset % size)
            }
            Paging::Page { .. } | Paging::None | Paging::Link { .. } | Paging::Cursor { .. } => {
                (self.walk(max_page, None), offset)
            }
        };
        let mut records = Vec::new();
        let mut whole = true;
        for _ in 0..MAX_WALKED {
            let Some(read) = walk.more().await? else { break };
            whole = self.is_whole(&read)?;
            let count = read.len();
            records.extend(read.into_iter().skip(skip));
            skip = skip.saturating_sub(count);
            let enough = match self.counts() {
                true => records.len() >= limit || (!walk.doubt && !records.is_empty()),
                false => records.len() > limit,
            };
            if walk.ended || enough {
                break;
            }
        }
        let end = walk.ended && records.len() <= limit && (whole || records.is_empty());
        if !end && records.is_empty() {
            return Err(CrmError::new(Problem::Protocol).reason("its list has no end"));
        }
        records.truncate(limit);
        Ok(Changed { records, end, ..Changed::default() })
    }

    /// Records from an offset on, in the order of (time, id), whatever order the server gives those of one time in. `None`
    /// if there are too many of one time, or the times themselves are not in order, which is the reader's to judge.
    async fn in_order(self, offset: usize, limit: usize) -> Result<Option<Changed>, CrmError> {
        let grain = |record: &Record| time(record).map(|time| floor_to(time, self.shape.granularity));
        let mut known: BTreeMap<String, Record> = BTreeMap::new();
        let mut seen = Pages::new(self.talk);
        for _ in 0..MAX_READINGS {
            seen.again();
            let mut walk = Walk { pages: seen, ..self.walk(self.shape.max_page, None) };
            let mut rows: Vec<Record> = Vec::new();
            let mut pages = 0;
            let is_whole = |rows: &[Record]| {
                let wanted = (offset + limit).checked_sub(1).and_then(|last| rows.get(last));
                wanted.zip(rows.last()).is_some_and(|(wanted, last)| grain(wanted) < grain(last))
            };
            while !walk.ended && !is_whole(&rows) && pages < MAX_WALKED && rows.len() < MAX_SORTED {
                pages += 1;
                match walk.more().await? {
                    Some(read) => rows.extend(read),
                    None => break,
                }
            }
            let sorted = rows.windows(2).all(|pair| match pair {
                [a, b] => grain(a).is_some() && grain(a) <= grain(b),
                _ => true,
            });
            if !sorted {
                return Ok(None);
            }
            let whole = self.is_whole(&rows)?;
            let too_many = !walk.ended && !is_whole(&rows);
            // What is of the last time may go on.
            let bound = if walk.ended { None } else { rows.last().and_then(grain) };
            let inside = |record: &Record| bound.is_none() || too_many || grain(record) < bound;
            rows.retain(inside);
            let count = rows.len();
            known.extend(rows.into_iter().map(|record| (record.id.clone(), record)));
            if known.values().filter(|record| inside(record)).count() >= count {
                if too_many {
                    return Ok(None);
                }
                let mut records: Vec<Record> = known.into_values().filter(inside).collect();
                records.sort_by(order);
                let end = walk.ended && records.len() <= offset + limit && (whole || records.len() <= offset);
                return Ok(Some(Changed {
                    records: records.into_iter().skip(offset).take(limit).collect(),
                    end,
                    ..Changed::default()
                }));
            }
            if too_many {
                break;
            }
            seen = walk.pages;
        }
        let reason = "it sorts records of one time differently with each request, so that changes would be lost: \
                      let since_order sort by the last change, then by id";
        Err(CrmError::new(Problem::Protocol).reason(reason))
    }
}

impl Walk<'_> {
    /// The next page; `None` at the end.
    async fn more(&mut self) -> Result<Option<Vec<Record>>, CrmError> {
        if self.ended {
            return Ok(None);
        }
        let counts = self.list.counts();
        if let Some(at) = self.at.as_deref().filter(|_| !counts) {
            self.pages.follow(at)?;
        }
        let Read { records, next, .. } =
            self.list.page(&self.pages.talk, self.size, self.at.as_deref()).await?;
        let repeats = self.pages.read(&records)?;
        let print = pages::print(&records);
        // A server that knows no pages gives the first one for ever.
        if counts && print.is_some() && print == self.before {
            self.list.hold_to_numbers(&self.pages.talk, &records).await?;
            self.ended = true;
            return Ok(None);
        }
        if let (false, Next::Page(next)) = (counts, &next)
            && (repeats || Some(next) == self.at.as_ref())
        {
            return Err(endless());
        }
        self.before = print;
        self.doubt = matches!(next, Next::Perhaps(_));
        match next {
            Next::End => self.ended = true,
            Next::Page(next) | Next::Perhaps(next) => self.at = Some(next),
        }
        Ok(Some(records))
    }
}

/// Where a search goes on: how many records of which page are given, and the digest of the page before.
fn opened(cursor: Option<&str>) -> Result<(usize, Option<String>, Option<String>), CrmError> {
    let after = cursor.and_then(|cursor| cursor.strip_prefix(AFTER)?.split_once(AFTER));
    if let Some((before, at)) = after {
        return Ok((0, Some(before.to_owned()), Some(at.to_owned())));
    }
    let Some(within) = cursor.and_then(|cursor| cursor.strip_prefix(WITHIN)) else {
        return Ok((0, None, cursor.map(str::to_owned)));
    };
    let opened = within.split_once(WITHIN).and_then(|(skip, at)| Some((skip.parse().ok()?, at)));
    let (skip, at) =
        opened.ok_or_else(|| CrmError::new(Problem::Protocol).reason("a page's cursor makes no sense"))?;
    Ok((skip, None, Some(at.to_owned()).filter(|at| !at.is_empty())))
}

fn time(record: &Record) -> Option<i64> {
    record.modified.map(|at| at.as_microsecond())
}

/// By time, then by id as interfaces sort them: as numbers where they are such.
fn order(a: &Record, b: &Record) -> Ordering {
    let ids = || match (a.id.parse::<u64>(), b.id.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        _ => a.id.cmp(&b.id),
    };
    time(a).cmp(&time(b)).then_with(ids)
}
