//! Watches over a walk through a target's pages.
//!
//! A page that brings nothing new is no progress: a walk that finds no more ends with the attempt's own time, however fast the
//! target answers. A link that was followed already, or a page that repeats the one before, has no end, which is told at once.

use super::{
    cursor::digest_of,
    error::{CrmError, Problem},
    exchange::Talk,
    vocabulary::Record,
};
use crate::{Code, Progress};
use std::{collections::HashSet, time::Instant};

/// What tells a record from others, and from what it was before.
type Seen = (String, Option<i64>);

/// One walk.
pub(super) struct Pages {
    heard: Talk,
    /// For the requests, which say nothing of progress by themselves.
    pub(super) talk: Talk,
    since: Instant,
    seen: HashSet<Seen>,
    before: Vec<Seen>,
    followed: HashSet<String>,
}

impl Pages {
    pub(super) fn new(talk: &Talk) -> Self {
        Self {
            heard: talk.clone(),
            talk: Talk { progress: Progress::default(), ..talk.clone() },
            since: Instant::now(),
            seen: HashSet::new(),
            before: Vec::new(),
            followed: HashSet::new(),
        }
    }

    /// Begins the same walk anew: what it brought before is nothing new.
    pub(super) fn again(&mut self) {
        self.before.clear();
        self.followed.clear();
    }

    /// A page was read; whether it repeats the one before.
    ///
    /// # Errors
    /// `target_timeout` once nothing new has come for as long as an attempt may take.
    pub(super) fn read(&mut self, records: &[Record]) -> Result<bool, CrmError> {
        let page: Vec<Seen> = records
            .iter()
            .map(|record| (record.id.clone(), record.modified.map(|at| at.as_microsecond())))
            .collect();
        let known = self.seen.len();
        self.seen.extend(page.iter().cloned());
        if self.seen.len() > known {
            self.since = Instant::now();
            self.heard.progress.beat();
        } else if self.since.elapsed() >= self.heard.timeout {
            let reason = "the pages that the target gives bring nothing new";
            return Err(CrmError::new(Problem::Ours(Code::TargetTimeout)).reason(reason));
        }
        let repeats = page.len() > 1 && page == self.before;
        self.before = page;
        Ok(repeats)
    }

    /// A link, or cursor, is followed.
    ///
    /// # Errors
    /// [`Problem::Protocol`] if it was followed before.
    pub(super) fn follow(&mut self, link: &str) -> Result<(), CrmError> {
        if self.followed.insert(link.to_owned()) { Ok(()) } else { Err(endless()) }
    }
}

/// A digest of the ids of a page; `None` of an empty one.
pub(super) fn print(records: &[Record]) -> Option<String> {
    let ids: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
    (!ids.is_empty()).then(|| digest_of(&format!("{ids:?}")))
}

/// The target goes round in a circle.
pub(super) fn endless() -> CrmError {
    CrmError::new(Problem::Protocol)
        .reason("its list has no end: the link to its next page leads to one that was given before")
}

#[cfg(test)]
mod tests {
    use super::Pages;
    use crate::{
        Code,
        crm::{error::Problem, exchange::Talk, vocabulary::Record},
    };
    use std::time::Duration;

    fn page(ids: &[&str]) -> Vec<Record> {
        ids.iter().map(|id| Record { id: (*id).to_owned(), ..Record::default() }).collect()
    }

    #[test]
    fn only_what_is_new_is_progress() {
        let talk = Talk::within(Duration::ZERO);
        let mut pages = Pages::new(&talk);
        assert!(!pages.read(&page(&["1", "2"])).unwrap());
        assert!(!pages.read(&page(&["2", "3"])).unwrap());
        assert_eq!((talk.progress.beats(), pages.talk.progress.beats()), (2, 0));
        let late = pages.read(&page(&["1"])).unwrap_err();
        assert_eq!(late.problem, Problem::Ours(Code::TargetTimeout));
        assert!(pages.read(&[]).is_err());
        assert_eq!(talk.progress.beats(), 2);
        let mut pages = Pages::new(&Talk::within(Duration::from_secs(60)));
        for (ids, repeats) in [(["1", "2"], false), (["1", "2"], true), (["2", "1"], false)] {
            assert_eq!(pages.read(&page(&ids)).unwrap(), repeats);
        }
        pages.follow("a").unwrap();
        pages.follow("b").unwrap();
        assert!(pages.follow("a").is_err());
        pages.again();
        pages.follow("a").unwrap();
    }
}
