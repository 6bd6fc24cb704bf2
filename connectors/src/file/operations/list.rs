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
    let mut lease = pool.lease_for(call).await?;
    let listed = walk(&mut lease, call, params).await;
    lease.release().await;
    listed
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

async fn walk(lease: &mut Lease, call: &Call, params: List) -> Result<Outcome, Failure> {
    let List { folder, pattern, recursive, limit, cursor } = params;
    let matcher = pattern.map(|glob| glob.compile_matcher());
    let mut levels = start(cursor, recursive);
    let mut items: Vec<Value> = Vec::new();
    let mut last: Option<Cursor> = None;
    let mut unreadable = 0;
    while let Some(level) = levels.last_mut() {
        let Some((name, stat)) = level.entries.pop_front() else {
            if mem::replace(&mut level.exhausted, true) {
                levels.pop();
                continue;
            }
            let path = if level.folder.is_empty() { folder.clone() } else { join(&folder, &level.folder) };
            let is_first = level.folder.is_empty();
            let page = read(lease, path, level.after.clone()).await;
            call.progress.beat();
            match page {
                Ok(page) => {
                    let tells = level.after.is_none() && call.visible.is_everything();
                    unreadable += if tells { page.unreadable } else { 0 };
                    level.exhausted = !page.more;
                    level.entries = page.entries.into();
                }
                // A folder below went away, or is closed to us: its entry was shown, its content cannot be.
                Err(error) if !is_first && skippable(error.problem) => {}
                Err(error) => return Err(error.into()),
            }
            continue;
        };
        let path = join(&level.folder, &name);
        let enters = recursive && stat.kind == EntryKind::Directory;
        // Before anything else counts: neither the page's size nor its cursor may tell of other names.
        if shown(matcher.as_ref(), &name) && call.visible.shows(&join(&folder, &path)) {
            if items.len() == limit {
                return Ok(page(items, last.map(|cursor| cursor.encode()), unreadable));
            }
            items.push(item(&join(&folder, &path), stat));
            last = Some(Cursor { last: path.clone(), inside: enters });
        }
        level.after = Some(name);
        if enters && levels.len() < MAX_DEPTH {
            levels.push(Level::new(path, None));
        }
    }
    Ok(page(items, None, unreadable))
}

/// The way down to where the cursor stands.
fn start(cursor: Option<Cursor>, recursive: bool) -> Vec<Level> {
    let Some(Cursor { last, inside }) = cursor else {
        return vec![Level::new(String::new(), None)];
    };
    let mut levels = Vec::new();
    let mut folder = String::new();
    for name in last.split('/') {
        levels.push(Level::new(folder.clone(), Some(name.to_owned())));
        folder = join(&folder, name);
    }
    if inside && recursive {
        levels.push(Level::new(folder, None));
    }
    levels.truncate(MAX_DEPTH);
    levels
}

async fn read(lease: &mut Lease, path: String, after: Option<String>) -> Result<Page, FsError> {
    lease.run(move |hands| hands.fs.list(&path, after.as_deref(), BATCH)).await
}

fn skippable(problem: Problem) -> bool {
    matches!(problem, Problem::NotFound | Problem::NotAFolder | Problem::Refused | Problem::Escapes)
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
