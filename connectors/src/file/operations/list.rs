//! `list` and `stat`.
//!
//! A listing walks the folders depth first, each in the byte order of its names, so that a cursor is nothing but the
//! last item shown: it stays good while files come and go, and nothing is kept between pages.

use super::{
    super::{
        backend::{EntryKind, FsError, Links, Page, Problem, Stat},
        params::{Cursor, List},
        place::{Place, join},
        pool::{Lease, Pool},
    },
    item, plain,
};
use crate::{Call, Failure, Outcome};
use globset::GlobMatcher;
use serde_json::{Value, json};
use std::{collections::VecDeque, mem};

/// How many entries of a folder are held at once.
const BATCH: usize = 2000;
/// How deep a recursive listing goes; deeper folders are shown but not entered.
const MAX_DEPTH: usize = 64;
/// How long the items of a page may be as JSON. The agent takes results of up to 256 KiB; what is left holds the longest
/// cursor. One item always fits: 64 names below the longest path, each byte escaped, have some 120 KiB.
const MAX_ITEMS_JSON: usize = 224 * 1024;

/// One item.
pub(super) async fn stat(pool: &Pool, call: &Call, place: Place) -> Result<Outcome, Failure> {
    let mut lease = pool.lease_for(call).await?;
    let path = place.to_string();
    let found = lease.run(move |hands| hands.fs.stat(place.as_str(), Links::Follow)).await;
    lease.release().await;
    Ok(plain(item(&path, found?)))
}

/// One page of items.
pub(super) async fn list(pool: &Pool, call: &Call, params: List) -> Result<Outcome, Failure> {
    let List { folder, pattern, recursive, limit, cursor } = params;
    let matcher = pattern.map(|glob| glob.compile_matcher());
    let cursor = cursor.map(|cursor| Cursor { inside: cursor.inside && recursive, ..cursor });
    let way = Way {
        folder: folder.clone(),
        limit,
        cursor,
        // Before anything else counts: neither the page's size nor its cursor may tell of other names.
        shows: &|path, name, _| shown(matcher.as_ref(), name) && call.visible.shows(&join(&folder, path)),
        enters: &|_| recursive,
        weighs: &|path, stat| item(&join(&folder, path), *stat).to_string().len() + 1,
        beat: &|| call.progress.beat(),
    };
    let mut lease = pool.lease_for(call).await?;
    let walked = walk(&mut lease, way).await;
    lease.release().await;
    let Walked { items, next, unreadable } = walked?;
    let items = items.into_iter().map(|(path, stat)| item(&join(&folder, &path), stat)).collect();
    let tells = call.visible.is_everything();
    Ok(page(items, next.map(|cursor| cursor.encode()), if tells { unreadable } else { 0 }))
}

/// What a walk looks for. Paths are relative to its folder.
pub(in crate::file) struct Way<'a> {
    pub(in crate::file) folder: String,
    pub(in crate::file) limit: usize,
    pub(in crate::file) cursor: Option<Cursor>,
    /// Whether an item counts, by its path, its name, and what it is.
    pub(in crate::file) shows: &'a (dyn Fn(&str, &str, &Stat) -> bool + Send + Sync),
    /// Whether a folder is entered.
    pub(in crate::file) enters: &'a (dyn Fn(&str) -> bool + Send + Sync),
    /// What an item takes of the [`MAX_ITEMS_JSON`] that a page may have.
    pub(in crate::file) weighs: &'a (dyn Fn(&str, &Stat) -> usize + Send + Sync),
    /// Told of each piece that was read.
    pub(in crate::file) beat: &'a (dyn Fn() + Send + Sync),
}

/// What a walk found.
pub(in crate::file) struct Walked {
    /// Relative to the walk's folder.
    pub(in crate::file) items: Vec<(String, Stat)>,
    /// Where the next page begins, if there is more.
    pub(in crate::file) next: Option<Cursor>,
    /// How many names cannot be shown.
    pub(in crate::file) unreadable: u64,
}

/// A folder on the way down.
struct Level {
    /// Relative to the listed folder.
    folder: String,
    /// The last name taken from it.
    after: Option<String>,
    /// Entries read and not yet looked at.
    entries: VecDeque<(String, Stat)>,
    /// Whether it has been read to its end.
    exhausted: bool,
}

impl Level {
    fn new(folder: String, after: Option<String>) -> Self {
        Self { folder, after, entries: VecDeque::new(), exhausted: false }
    }
}

/// Walks until the page is full.
pub(in crate::file) async fn walk(lease: &mut Lease, way: Way<'_>) -> Result<Walked, Failure> {
    let Way { folder, limit, cursor, shows, enters, weighs, beat } = way;
    let mut levels = start(cursor);
    let mut items = Vec::new();
    let mut last: Option<Cursor> = None;
    let mut unreadable = 0;
    let mut weight = 0;
    while let Some(level) = levels.last_mut() {
        let Some((name, stat)) = level.entries.pop_front() else {
            if mem::replace(&mut level.exhausted, true) {
                levels.pop();
                continue;
            }
            let path = if level.folder.is_empty() { folder.clone() } else { join(&folder, &level.folder) };
            let is_first = level.folder.is_empty();
            let page = read(lease, path, level.after.clone()).await;
            beat();
            match page {
                Ok(page) => {
                    unreadable += if level.after.is_none() { page.unreadable } else { 0 };
                    level.exhausted = !page.more;
                    level.entries = page.entries.into();
                }
                // A folder below went away, is closed to us, or lies elsewhere: its entry was shown, its content cannot be.
                Err(error) if !is_first && skippable(error.problem) => {}
                Err(error) => return Err(error.into()),
            }
            continue;
        };
        let path = join(&level.folder, &name);
        let enters = stat.kind == EntryKind::Directory && enters(&path);
        if shows(&path, &name, &stat) {
            weight += weighs(&path, &stat);
            if items.len() == limit || (weight > MAX_ITEMS_JSON && !items.is_empty()) {
                return Ok(Walked { items, next: last, unreadable });
            }
            items.push((path.clone(), stat));
            last = Some(Cursor { last: path.clone(), inside: enters });
        }
        level.after = Some(name);
        if enters && levels.len() < MAX_DEPTH {
            levels.push(Level::new(path, None));
        }
    }
    Ok(Walked { items, next: None, unreadable })
}

/// The way down to where the cursor stands.
fn start(cursor: Option<Cursor>) -> Vec<Level> {
    let Some(Cursor { last, inside }) = cursor else {
        return vec![Level::new(String::new(), None)];
    };
    let mut levels = Vec::new();
    let mut folder = String::new();
    for name in last.split('/') {
        levels.push(Level::new(folder.clone(), Some(name.to_owned())));
        folder = join(&folder, name);
    }
    if inside {
        levels.push(Level::new(folder, None));
    }
    levels.truncate(MAX_DEPTH);
    levels
}

async fn read(lease: &mut Lease, path: String, after: Option<String>) -> Result<Page, FsError> {
    lease.run(move |hands| hands.fs.list(&path, after.as_deref(), BATCH)).await
}

fn skippable(problem: Problem) -> bool {
    matches!(
        problem,
        Problem::NotFound | Problem::NotAFolder | Problem::Refused | Problem::Escapes | Problem::DfsLink
    )
}

fn shown(matcher: Option<&GlobMatcher>, name: &str) -> bool {
    matcher.is_none_or(|matcher| matcher.is_match(name))
}

fn page(items: Vec<Value>, next_cursor: Option<String>, unreadable: u64) -> Outcome {
    let mut result = json!({ "items": items, "next_cursor": next_cursor });
    if unreadable > 0
        && let Some(result) = result.as_object_mut()
    {
        result.insert("unreadable_names".to_owned(), json!(unreadable));
    }
    plain(result)
}
