//! Walks through the lists of a REST interface, however they page.
//!
//! A short page is no end: servers cap pages below the size that they are asked for. A list that is paged by numbers or
//! offsets ends with an empty page, one that repeats the page before, a 404 after the first page, or where the answer says
//! that nothing follows. Page numbers count in the size that the server really gives, which its first page shows.
//!
//! Where records of one time do not come in the order of ids, nobody knows whether the next request has them in the same
//! order: all of that time are then read in one go, again until as many different ones are there as the list has.

use super::{
    Rest,
    shape::{Paging, Shape, at, plain},
};
use crate::{
    Code,
    crm::{
        dialect::{Changed, Listed, Page},
        error::{CrmError, Problem},
        exchange::{Talk, request::Request},
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

/// What follows a page.
enum Next {
    End,
    Page(String),
    /// The page was short, which may be the server's own measure.
    Perhaps(String),
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
    /// The ids of the page before.
    before: Vec<String>,
}

impl<'a> List<'a> {
    fn walk(self, size: usize, at: Option<String>) -> Walk<'a> {
        Walk { list: self, size, at, ended: false, doubt: false, before: Vec::new() }
    }

    /// Whether pages follow one another by a number of ours.
    fn counts(&self) -> bool {
        matches!(self.shape.paging, Paging::Page { .. } | Paging::Offset { .. })
    }

    /// A page; `cursor` as a page before gave it.
    async fn page(&self, limit: usize, cursor: Option<&str>) -> Result<(Vec<Record>, Next), CrmError> {
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
        let answer = rest.exchange.send(self.talk, request).await?;
        // The collection is there: its first page was.
        let is_further = self.counts() && number > 0;
        if answer.status.as_u16() == 404 && (shape.empty_page_is_404 || is_further) {
            return Ok((Vec::new(), Next::End));
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
            // No server's pages are of one record: searches for a key need no second request.
            (count @ 0..=1, _) if count < limit => Next::End,
            (_, Some(link)) if matches!(link.as_str(), "" | "false") => Next::End,
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
        Ok((records, next))
    }

    /// A page of a search.
    pub(super) async fn find(self, page: Page<'_>) -> Result<Listed, CrmError> {
        let (mut skip, at) = opened(page.cursor)?;
        let mut walk = self.walk(page.limit, at);
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
                return Ok(Listed { records, next: walk.at.filter(|_| !walk.ended) });
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
                (self.walk(max_page, Some((offset / size).to_string())), offset % size)
            }
            Paging::Page { .. } | Paging::None | Paging::Link { .. } | Paging::Cursor { .. } => {
                (self.walk(max_page, None), offset)
            }
        };
        let mut records = Vec::new();
        for _ in 0..MAX_WALKED {
            let Some(read) = walk.more().await? else { break };
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
        let end = walk.ended && records.len() <= limit;
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
        for _ in 0..MAX_READINGS {
            let mut walk = self.walk(self.shape.max_page, None);
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
                let end = walk.ended && records.len() <= offset + limit;
                return Ok(Some(Changed {
                    records: records.into_iter().skip(offset).take(limit).collect(),
                    end,
                    ..Changed::default()
                }));
            }
            if too_many {
                break;
            }
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
        let (records, next) = self.list.page(self.size, self.at.as_deref()).await?;
        let ids: Vec<String> = records.iter().map(|record| record.id.clone()).collect();
        // A server that knows no pages gives the first one for ever.
        if self.list.counts() && !ids.is_empty() && ids == self.before {
            self.ended = true;
            return Ok(None);
        }
        self.before = ids;
        self.doubt = matches!(next, Next::Perhaps(_));
        match next {
            Next::End => self.ended = true,
            Next::Page(next) | Next::Perhaps(next) => self.at = Some(next),
        }
        Ok(Some(records))
    }
}

/// Where a search goes on: how many records of which page are given.
fn opened(cursor: Option<&str>) -> Result<(usize, Option<String>), CrmError> {
    let Some(within) = cursor.and_then(|cursor| cursor.strip_prefix(WITHIN)) else {
        return Ok((0, cursor.map(str::to_owned)));
    };
    let opened = within.split_once(WITHIN).and_then(|(skip, at)| Some((skip.parse().ok()?, at)));
    let (skip, at) =
        opened.ok_or_else(|| CrmError::new(Problem::Protocol).reason("a page's cursor makes no sense"))?;
    Ok((skip, Some(at.to_owned()).filter(|at| !at.is_empty())))
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
