//! Buckets of an S3-compatible object store, through the workspace's HTTP client.
//!
//! - `connect`: name, TLS, access key, bucket; `settings`: what the operator writes
//! - `exchange`: requests and what their answers mean; `sign`: Signature Version 4; `xml`: what stores answer
//! - `upload`: uploads in pieces, which are what parts are here; `source`: reading; `list`: folders; `moving`: copy and delete
//!
//! A store knows no rename. What takes its place in a drop is the completion of an upload: one step, before which nothing
//! can be seen. A move is a copy and a delete, and the copy says what it was made from, so that a later attempt knows it.

mod answer;
mod connect;
mod exchange;
mod list;
mod moving;
mod settings;
mod sign;
mod source;
mod upload;
mod xml;

pub(super) use settings::{S3Keys, S3Settings, check};

use super::{
    backend::{
        Backend, EntryKind, Existing, Features, FsError, Links, Page, PartFile, Problem, Renamed, SourceFile,
        Stat,
    },
    place::{Place, is_part},
};
use crate::http::answer::http_date;
use exchange::{Request, Session};
use jiff::Timestamp;
use list::FOLDER;
use moving::MADE_FROM_FILE;
use reqwest::{
    Method,
    header::{CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, LAST_MODIFIED},
};
use serde_json::{Value, json};
use source::Source;
use std::{
    cell::Cell,
    collections::HashSet,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};
use upload::{MADE_FROM_PART, Marker, Part};

/// One read and one write.
const SLICE: usize = 512 * 1024;
/// How long an idle session is trusted without asking the store.
const TRUSTED: Duration = Duration::from_secs(5);

/// What a store says of an object.
#[derive(Debug, Clone)]
struct Head {
    size: u64,
    modified: Option<Timestamp>,
    etag: Option<String>,
    headers: HeaderMap,
}

impl Head {
    /// Asks about an object; `NotFound` if there is none.
    fn of(session: &Session, key: &str) -> Result<Self, FsError> {
        let response = session.succeed(&Request::new(Method::HEAD, key))?;
        let headers = response.headers().clone();
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let size = text(CONTENT_LENGTH).and_then(|size| size.parse().ok());
        let size =
            size.ok_or_else(|| FsError::new(Problem::Protocol, format!("{key}: its size is not told")))?;
        let modified = text(LAST_MODIFIED).and_then(http_date);
        let etag = text(ETAG).map(str::to_owned);
        Ok(Self { size, modified, etag, headers })
    }

    fn stat(&self) -> Stat {
        // The entity tag does what an inode does elsewhere: it tells a file from its successor of the same size and second.
        let inode = self.etag.as_ref().and_then(|etag| {
            let digest = sign::hex_digest(etag.as_bytes());
            let half = |at: usize| u64::from_str_radix(digest.get(at..at + 16)?, 16).ok();
            Some((half(0)?, half(16)?))
        });
        Stat { kind: EntryKind::File, size: self.size, modified: self.modified, inode }
    }

    fn says(&self, header: &str, value: &str) -> bool {
        self.headers.get(header).is_some_and(|found| found == value)
    }
}

/// A session with a bucket.
struct Remote {
    session: Arc<Session>,
    /// The names that this session has set aside.
    mine: HashSet<String>,
    /// Whether the current operation could not take a marker away.
    untidy: Cell<bool>,
}

impl Remote {
    fn key(&self, place: &Place) -> Result<String, FsError> {
        self.session.bucket.key(place.as_str())
    }

    fn head(&self, place: &Place) -> Result<Option<Head>, FsError> {
        match Head::of(&self.session, &self.key(place)?) {
            Ok(head) => Ok(Some(head)),
            Err(error) if error.problem == Problem::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same where a folder may lie there instead: some stores answer `500` to the `HEAD` of one, and so would be asked in
    /// vain again and again.
    fn object(&self, place: &Place) -> Result<Option<Head>, FsError> {
        match self.head(place) {
            Err(error) if error.problem == Problem::Other && self.session.has_below(place.as_str())? => {
                Ok(None)
            }
            other => other,
        }
    }

    fn marker(&self, place: &Place) -> Result<Option<Marker>, FsError> {
        match self.session.marker(place) {
            Err(error) if error.problem == Problem::NotFound => Ok(None),
            other => other,
        }
    }

    fn let_go(&mut self) {
        let mut reserved = self.session.bucket.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        for name in self.mine.drain() {
            reserved.remove(&name);
        }
    }

    /// Completes the upload that a part is.
    fn complete(&mut self, part: &Place, to: &Place, existing: Existing<'_>) -> Result<Renamed, FsError> {
        let marker = self.session.marker(part)?;
        let Some(marker) = marker.filter(|marker| marker.target == to.as_str()) else {
            let detail = format!("what was written for {part} cannot become {to}");
            return Err(FsError::new(Problem::Unsupported, detail));
        };
        let key = self.key(to)?;
        let sent = self.session.sent().get(part.as_str()).cloned();
        let pieces = match sent {
            Some(pieces) => pieces,
            None => self.session.pieces(&key, &marker.upload)?,
        };
        let only_if_free = existing == Existing::Refuse;
        let conditional = only_if_free && self.session.obeys_conditions()?;
        let bucket = Arc::clone(&self.session.bucket);
        let held = only_if_free.then(|| bucket.careful.lock().unwrap_or_else(PoisonError::into_inner));
        if only_if_free && self.head(to)?.is_some() {
            return Err(FsError::new(Problem::Exists, to));
        }
        let completed = self.session.complete_upload(&key, &marker.upload, &pieces, conditional);
        drop(held);
        match completed {
            Ok(()) => {}
            Err(error) if matches!(error.problem, Problem::NotFound | Problem::Other | Problem::Protocol) => {
                // It failed half-way, perhaps after the deed, or was asked twice.
                if !self.came_from(to, part, None)? {
                    let problem =
                        if error.problem == Problem::NotFound { Problem::Lost } else { error.problem };
                    let there = self.session.pieces(&key, &marker.upload);
                    let untouched = there.is_ok() && error.problem != Problem::Protocol;
                    return Err(FsError {
                        problem: if untouched { problem } else { Problem::Lost },
                        ..error
                    });
                }
            }
            Err(error) => return Err(error),
        }
        self.forget(part);
        Ok(Renamed { atomic: !only_if_free || conditional })
    }

    /// Takes away the marker of an upload that has become an object. One that stays is harmless, and cleaned up later.
    fn forget(&self, part: &Place) {
        let taken = self.key(part).and_then(|key| self.session.tell(&Request::new(Method::DELETE, &key)));
        if let Err(error) = taken {
            tracing::debug!(detail = %error.detail, "the marker of a finished upload stays for now");
            self.untidy.set(true);
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Backend for Remote {
    fn features(&self) -> Features {
        let tried = *self.session.bucket.conditional.lock().unwrap_or_else(PoisonError::into_inner);
        Features { read: SLICE, write: SLICE, rereads_parts: false, claims_names: tried == Some(true) }
    }

    fn binds_parts(&self) -> bool {
        true
    }

    fn begin(&mut self, timeout: Duration) {
        self.let_go();
        self.untidy.set(false);
        self.session.sent().clear();
        let patience = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        self.session.patience.store(patience, Ordering::Relaxed);
    }

    fn alive(&mut self, idle: Duration) -> bool {
        !self.session.fired.is_cancelled() && (idle < TRUSTED || self.session.has_below("").is_ok())
    }

    fn leaves_part(&self) -> bool {
        self.untidy.get()
    }

    fn create(&mut self, place: &Place) -> Result<Box<dyn PartFile>, FsError> {
        Err(FsError::new(
            Problem::Unsupported,
            format!("{place}: an upload is begun with its target and its size"),
        ))
    }

    fn create_for(&mut self, place: &Place, target: &Place, size: u64) -> Result<Box<dyn PartFile>, FsError> {
        let (marker_key, key) = (self.key(place)?, self.key(target)?);
        upload::piece_size(size)?;
        if self.marker(place)?.is_some() {
            return Err(FsError::new(Problem::Exists, place));
        }
        let mut headers = HeaderMap::new();
        let name =
            HeaderValue::from_str(place.name()).map_err(|error| FsError::new(Problem::Other, error))?;
        headers.insert(MADE_FROM_PART, name);
        headers.insert("content-type", HeaderValue::from_static("application/octet-stream"));
        let upload = self.session.begin_upload(&key, headers)?;
        let marker = Marker { upload: upload.clone(), target: target.to_string() };
        let made = self
            .session
            .put_marker(&marker_key, &marker)
            .and_then(|()| Part::new(Arc::clone(&self.session), place, key.clone(), upload.clone(), size));
        match made {
            Ok(part) => Ok(Box::new(part)),
            Err(error) => {
                drop(self.session.abort_upload(&key, &upload));
                Err(error)
            }
        }
    }

    fn reserve(&mut self, target: &Place) -> bool {
        let free = self
            .session
            .bucket
            .reserved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(target.to_string());
        if free {
            self.mine.insert(target.to_string());
        }
        free
    }

    fn has_folders(&self) -> bool {
        false
    }

    /// A copy has another time, and that of a large object another version.
    fn renames_keep_files(&self) -> bool {
        false
    }

    fn came_from(
        &mut self,
        target: &Place,
        from: &Place,
        was: Option<(u64, Option<&str>)>,
    ) -> Result<bool, FsError> {
        let Some(head) = self.head(target)? else { return Ok(false) };
        if is_part(from.name().as_bytes()) {
            let came = head.says(MADE_FROM_PART, from.name());
            if came {
                self.forget(from);
            }
            return Ok(came);
        }
        let Some((size, modified)) = was else { return Ok(false) };
        Ok(head.says(MADE_FROM_FILE, &moving::mark(from, size, modified)))
    }

    fn open(&mut self, place: &Place) -> Result<Box<dyn SourceFile>, FsError> {
        let key = self.key(place)?;
        let Some(head) = self.object(place)? else {
            let problem =
                if self.session.has_below(place.as_str())? { Problem::IsAFolder } else { Problem::NotFound };
            return Err(FsError::new(problem, place));
        };
        Ok(Box::new(Source::open(Arc::clone(&self.session), key, head)?))
    }

    fn stat(&mut self, path: &str, _: Links) -> Result<Stat, FsError> {
        let place = Place::own(path.to_owned());
        if path.is_empty() {
            return Ok(FOLDER);
        }
        if is_part(place.name().as_bytes())
            && let Some(marker) = self.marker(&place)?
        {
            let key = self.session.bucket.key(&marker.target)?;
            let pieces = match self.session.pieces(&key, &marker.upload) {
                Err(error) if error.problem == Problem::NotFound => {
                    // Completed or given up: what names it is of no more use.
                    self.forget(&place);
                    return Err(error);
                }
                other => other?,
            };
            if pieces.is_empty() {
                // Even an empty file is one piece: being completed at this moment, or gone with a store that does not say so.
                return Err(FsError::new(Problem::NotFound, format!("{path}: its upload has no pieces")));
            }
            let size = pieces.iter().map(|piece| piece.size).sum();
            return Ok(Stat { kind: EntryKind::File, size, modified: None, inode: None });
        }
        if let Some(head) = self.object(&place)? {
            return Ok(head.stat());
        }
        if self.session.has_below(path)? {
            return Ok(FOLDER);
        }
        Err(FsError::new(Problem::NotFound, path))
    }

    fn list(&mut self, folder: &str, after: Option<&str>, max: usize) -> Result<Page, FsError> {
        let (page, seen) = self.session.names(folder, after, max)?;
        if !seen && !folder.is_empty() && after.is_none() {
            let there = self.head(&Place::own(folder.to_owned()))?;
            let problem = if there.is_some() { Problem::NotAFolder } else { Problem::NotFound };
            return Err(FsError::new(problem, folder));
        }
        Ok(page)
    }

    fn rename(&mut self, from: &Place, to: &Place, existing: Existing<'_>) -> Result<Renamed, FsError> {
        if is_part(from.name().as_bytes()) {
            return self.complete(from, to, existing);
        }
        self.move_object(from, to, existing)
    }

    fn delete(&mut self, place: &Place) -> Result<(), FsError> {
        let key = self.key(place)?;
        if is_part(place.name().as_bytes()) {
            // `NotFound` is told to those who clean up; anything but a marker is deleted as it is.
            if let Some(marker) = self.session.marker(place)? {
                let target = self.session.bucket.key(&marker.target)?;
                self.session.abort_upload(&target, &marker.upload)?;
            }
        }
        self.session.tell(&Request::new(Method::DELETE, &key))
    }

    fn make_folder(&mut self, _: &str) -> Result<(), FsError> {
        // There are none to make: a folder is there as soon as something is in it.
        Ok(())
    }

    fn sync_folder(&mut self, _: &str) -> Result<bool, FsError> {
        Ok(true)
    }

    fn identity(&mut self, folder: &str) -> Result<Value, FsError> {
        let bucket = &self.session.bucket;
        Ok(json!({ "bucket": bucket.base, "folder": format!("{}{folder}", bucket.prefix) }))
    }
}
