//! Folders, which a store does not have: a name before a slash in the keys of objects.

use super::{
    answer::Root,
    exchange::{Request, Session},
    xml,
};
use crate::file::{
    backend::{EntryKind, FsError, Page, Smallest, Stat},
    place::join,
};
use jiff::Timestamp;
use reqwest::Method;

/// What a list is called, and what every list has in it.
pub(super) const LIST: Root = Root("ListBucketResult", "IsTruncated");
/// How many items a store gives at once.
const PAGE: &str = "1000";

/// What is known of a folder.
pub(super) const FOLDER: Stat = Stat { kind: EntryKind::Directory, size: 0, modified: None, inode: None };

/// One request's worth of a listing.
struct Chunk {
    /// Names in the folder, as they came.
    entries: Vec<(String, Stat)>,
    /// Whether there was anything at all, the folder's own marker among it.
    seen: bool,
    next: Option<String>,
}

impl Session {
    /// Whether there is any key below the folder.
    pub(super) fn has_below(&self, folder: &str) -> Result<bool, FsError> {
        let prefix = self.prefix_of(folder)?;
        Ok(self.chunk(&prefix, None, None, "1")?.seen)
    }

    fn prefix_of(&self, folder: &str) -> Result<String, FsError> {
        if folder.is_empty() {
            Ok(self.bucket.prefix.clone())
        } else {
            self.bucket.key(&format!("{folder}/"))
        }
    }

    /// The first names of a folder after `after`, in byte order; whether there is such a folder.
    ///
    /// Stores sort a folder as if its name ended with a slash: `b.csv` comes before what is in `b`. So when enough names
    /// have come, a folder may still be missing whose name begins the last of them; those few are asked for.
    pub(super) fn names(
        &self,
        folder: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<(Page, bool), FsError> {
        let prefix = self.prefix_of(folder)?;
        let start = after.map(|after| format!("{prefix}{after}"));
        let mut smallest = Smallest::new(after, max);
        let (mut next, mut seen) = (None::<String>, false);
        loop {
            let chunk = self.chunk(&prefix, start.as_deref(), next.as_deref(), PAGE)?;
            seen |= chunk.seen;
            for (name, stat) in chunk.entries {
                smallest.offer(name.as_bytes(), stat);
            }
            if chunk.next.is_some() && chunk.next == next {
                return Err(xml::wrong("a list does not go on"));
            }
            next = chunk.next;
            if next.is_none() || smallest.has_more() {
                break;
            }
        }
        if next.is_some() {
            let last = smallest.last().unwrap_or_default().to_owned();
            for (at, _) in last.match_indices(|character: char| character < '/') {
                if let Some(begin) = last.get(..at).filter(|begin| !begin.is_empty())
                    && self.has_below(&join(folder, begin))?
                {
                    smallest.offer(begin.as_bytes(), FOLDER);
                }
            }
        }
        let (kept, more, unreadable) = smallest.finish();
        Ok((Page { entries: kept.into_iter().collect(), more, unreadable }, seen))
    }

    fn chunk(
        &self,
        prefix: &str,
        start: Option<&str>,
        token: Option<&str>,
        max: &str,
    ) -> Result<Chunk, FsError> {
        let mut query = vec![("list-type", "2"), ("prefix", prefix), ("delimiter", "/"), ("max-keys", max)];
        query.extend(start.map(|start| ("start-after", start)));
        query.extend(token.map(|token| ("continuation-token", token)));
        let request = Request { key: None, ..Request::new(Method::GET, "") }.query(&query);
        let mut chunk = Chunk { entries: Vec::new(), seen: false, next: None };
        let (mut key, mut stat) = (String::new(), None);
        let (mut size, mut modified, mut truncated) = (0, None, false);
        self.xml(&request, LIST, |path, text| {
            match path {
                [_, "IsTruncated"] => truncated = text.trim() == "true",
                [_, "NextContinuationToken"] => {
                    chunk.next = Some(text.to_owned()).filter(|text| !text.is_empty())
                }
                [_, "Contents", "Key"] | [_, "CommonPrefixes", "Prefix"] => text.clone_into(&mut key),
                [_, "Contents", "Size"] => size = text.trim().parse().map_err(xml::wrong)?,
                [_, "Contents", "LastModified"] => modified = text.trim().parse::<Timestamp>().ok(),
                [_, "Contents"] => {
                    let modified = modified.take();
                    stat = Some(Stat { kind: EntryKind::File, size, modified, inode: None });
                }
                [_, "CommonPrefixes"] => stat = Some(FOLDER),
                _ => {}
            }
            let Some(stat) = stat.take() else { return Ok(()) };
            chunk.seen = true;
            let Some(rest) = key.strip_prefix(prefix) else {
                return Err(xml::wrong(format!("asked about {prefix}, it tells of {key}")));
            };
            let name = match stat.kind {
                EntryKind::Directory => rest.strip_suffix('/').unwrap_or(rest),
                _ => rest,
            };
            // The folder's own marker, and keys with an empty name in them, which no path here can say.
            if !name.is_empty() && !name.contains('/') {
                chunk.entries.push((name.to_owned(), stat));
            }
            Ok(())
        })?;
        if !truncated {
            chunk.next = None;
        } else if chunk.next.is_none() {
            return Err(xml::wrong("a list says neither its end nor how it goes on"));
        }
        Ok(chunk)
    }
}
