//! Folders on a WebDAV server, through the workspace's HTTP client.
//!
//! - `connect`: name, TLS, log-in, root; `settings`: what the operator writes
//! - `exchange`: requests and what their answers mean; `auth`: Basic and Digest
//! - `multistatus`: the XML that servers answer; `names`: places as URLs and back
//!
//! Redirections are never followed. The protocol has no request that brings a file to the disk, none that looks at
//! symbolic links, and lets a server replace in two steps: `docs/connectors/file.md` says what follows from that.

mod auth;
mod connect;
mod exchange;
mod multistatus;
mod names;
mod settings;

pub(super) use settings::{WebDavKeys, WebDavSettings, check};

use super::{
    backend::{
        Backend, EntryKind, Existing, Features, FsError, Links, Page, PartFile, Problem, Renamed, Smallest,
        SourceFile, Stat,
    },
    place::Place,
};
use bytes::Bytes;
use exchange::{Body, Session, lost, method};
use futures_util::stream;
use multistatus::Item;
use names::Member;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{
        ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue,
        IF_MATCH, IF_NONE_MATCH, RANGE,
    },
};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle};

/// One read and one write: large enough that the change of hands between two threads costs nothing.
const SLICE: usize = 1024 * 1024;
/// How long an idle session is trusted without asking the server.
const TRUSTED: Duration = Duration::from_secs(5);
/// How often a rename is repeated that met somebody else's.
const MAX_REPEATED: u32 = 5;
/// How often a download goes on after its connection was lost.
const MAX_RESUMED: u32 = 3;

/// A logged-in session.
struct Remote {
    session: Arc<Session>,
    /// Taken for renames to places that may be taken: servers look first and rename then, so that two of ours could meet.
    careful: Arc<Mutex<()>>,
    /// Folders of the current operation that are known to be there.
    folders: HashSet<String>,
    /// Places of the current operation where there was nothing.
    free: HashSet<String>,
}

impl Remote {
    fn item(&mut self, path: &str) -> Result<Item, FsError> {
        let url = self.session.root.file(path)?;
        match self.session.look_at(path, &url) {
            // Some servers send whoever leaves out the slash of a folder to the place with it. Wherever they send us,
            // that is the only other place that is asked.
            Err(error) if error.problem == Problem::Protocol => {
                let with_slash = self.session.root.folder(path)?;
                match self.session.look_at(path, &with_slash) {
                    Ok(item) if item.collection => Ok(item),
                    Ok(_) | Err(_) => Err(error),
                }
            }
            // What Apache says of a place below a file.
            Err(error) if error.problem == Problem::Other && !path.is_empty() => {
                match self.folder(Place::own(path.to_owned()).folder()) {
                    Err(above) if above.problem == Problem::NotAFolder => Err(above),
                    Ok(()) | Err(_) => Err(error),
                }
            }
            other => other,
        }
    }

    /// Checks that a folder is there.
    fn folder(&mut self, folder: &str) -> Result<(), FsError> {
        if folder.is_empty() || self.folders.contains(folder) {
            return Ok(());
        }
        if !self.item(folder)?.collection {
            return Err(FsError::new(Problem::NotAFolder, folder));
        }
        self.folders.insert(folder.to_owned());
        Ok(())
    }

    /// `409 Conflict` says that something is wrong with the folder above: is it missing, or no folder?
    fn explain(&mut self, error: FsError, place: &Place) -> FsError {
        if error.problem != Problem::NotFound {
            return error;
        }
        self.folders.remove(place.folder());
        match self.folder(place.folder()) {
            Err(found) if found.problem == Problem::NotAFolder => found,
            Ok(()) | Err(_) => error,
        }
    }

    fn change(&self, method: &Method, url: &Url, headers: &HeaderMap) -> Result<StatusCode, FsError> {
        let response = self.session.ask(method, url, headers, None)?;
        let status = response.status();
        if status == StatusCode::MULTI_STATUS {
            self.session.first_failure(response)?;
        } else if status.is_success() {
            self.session.drain(response);
        } else {
            return Err(self.session.refused(method, url, response));
        }
        Ok(status)
    }

    fn put(&mut self, place: &Place, size: Option<u64>) -> Result<Box<dyn PartFile>, FsError> {
        self.folder(place.folder())?;
        let url = self.session.root.file(place.as_str())?;
        // Not every server obeys `If-None-Match`. This also makes sure that the log-in holds: a body that is streamed
        // cannot be sent again.
        match self.item(place.as_str()) {
            Ok(_) => return Err(FsError::new(Problem::Exists, place)),
            Err(error) if error.problem == Problem::NotFound => {}
            Err(error) => return Err(error),
        }
        let (mut request, _) = self.session.request(&Method::PUT, &url)?;
        request = request.header(IF_NONE_MATCH, "*");
        // What is not announced is sent in chunks.
        if let Some(size) = size {
            request = request.header(CONTENT_LENGTH, size);
        }
        let (slices, received) = mpsc::channel::<io::Result<Bytes>>(1);
        let body = stream::unfold(received, async |mut received| {
            received.recv().await.map(|slice| (slice, received))
        });
        let sending = request.body(reqwest::Body::wrap_stream(body)).send();
        let answer = self.session.runtime.spawn(sending);
        Ok(Box::new(Part {
            session: Arc::clone(&self.session),
            place: place.to_string(),
            url,
            slices: Some(slices),
            answer: Some(answer),
            left: size,
            etag: None,
        }))
    }

    /// Whether the file is still at its old place after a rename that failed.
    fn stayed(&mut self, from: &Place) -> bool {
        self.item(from.as_str()).is_ok()
    }
}

impl Backend for Remote {
    fn features(&self) -> Features {
        Features { read: SLICE, write: SLICE, rereads_parts: false }
    }

    fn begin(&mut self, timeout: Duration) {
        self.folders.clear();
        self.free.clear();
        let patience = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        self.session.patience.store(patience, Ordering::Relaxed);
    }

    fn alive(&mut self, idle: Duration) -> bool {
        if self.session.fired.is_cancelled() {
            return false;
        }
        self.session.look_around();
        idle < TRUSTED || self.item("").is_ok()
    }

    fn create(&mut self, place: &Place) -> Result<Box<dyn PartFile>, FsError> {
        self.put(place, None)
    }

    fn create_sized(&mut self, place: &Place, size: u64) -> Result<Box<dyn PartFile>, FsError> {
        self.put(place, Some(size))
    }

    fn open(&mut self, place: &Place) -> Result<Box<dyn SourceFile>, FsError> {
        let url = self.session.root.file(place.as_str())?;
        let item = self.item(place.as_str())?;
        if item.collection {
            return Err(FsError::new(Problem::IsAFolder, place));
        }
        let mut source = Source {
            session: Arc::clone(&self.session),
            place: place.to_string(),
            url,
            etag: item.etag.clone(),
            stat: stat_of(&item),
            body: None,
            done: 0,
            resumed: 0,
        };
        source.ask()?;
        Ok(Box::new(source))
    }

    fn stat(&mut self, path: &str, _: Links) -> Result<Stat, FsError> {
        match self.item(path) {
            Ok(item) => {
                if item.collection {
                    self.folders.insert(path.to_owned());
                }
                Ok(stat_of(&item))
            }
            Err(error) => {
                if error.problem == Problem::NotFound {
                    self.free.insert(path.to_owned());
                }
                Err(error)
            }
        }
    }

    fn list(&mut self, folder: &str, after: Option<&str>, max: usize) -> Result<Page, FsError> {
        let url = self.session.root.folder(folder)?;
        let mut smallest = Smallest::new(after, max);
        let mut is_folder = true;
        let listed = self.session.propfind(&url, "1", |item| {
            match self.session.root.member(folder, &item.href) {
                Member::Itself => is_folder = item.collection,
                // An item that failed is shown without its size rather than left out.
                Member::Child(name) => smallest.offer(&name, stat_of(&item)),
                Member::Elsewhere => {
                    let detail = format!("asked about {}, it tells of {}", url.path(), item.href);
                    return Err(FsError::new(Problem::Protocol, detail));
                }
            }
            Ok(())
        });
        match listed {
            Ok(()) if is_folder => {}
            Ok(()) => return Err(FsError::new(Problem::NotAFolder, folder)),
            // A file, asked for with the slash of a folder.
            Err(error) if error.is_broken() => return Err(error),
            Err(error) => {
                return match self.item(folder) {
                    Ok(item) if !item.collection => Err(FsError::new(Problem::NotAFolder, folder)),
                    Ok(_) | Err(_) => Err(error),
                };
            }
        }
        let (kept, more, unreadable) = smallest.finish();
        Ok(Page { entries: kept.into_iter().collect(), more, unreadable })
    }

    fn rename(&mut self, from: &Place, to: &Place, existing: Existing) -> Result<Renamed, FsError> {
        let (source, target) = (self.session.root.file(from.as_str())?, self.session.root.file(to.as_str())?);
        let mut headers = HeaderMap::new();
        let destination = HeaderValue::from_str(target.as_str())
            .map_err(|error| FsError::new(Problem::BadName, format!("{to}: {error}")))?;
        headers.insert("destination", destination);
        let overwrite = match existing {
            Existing::Replace => "T",
            Existing::Refuse => "F",
        };
        headers.insert("overwrite", HeaderValue::from_static(overwrite));
        // nginx makes a folder that is missing, and Apache says nothing of use about it.
        self.folder(to.folder())?;
        let careful = Arc::clone(&self.careful);
        let alone = existing == Existing::Refuse || !self.free.contains(to.as_str());
        let held = alone.then(|| careful.lock().unwrap_or_else(PoisonError::into_inner));
        let mut moved = self.change(&method("MOVE"), &source, &headers);
        for _ in 0..MAX_REPEATED {
            // Somebody else replaced the target at the same moment, in the two steps that the protocol allows.
            if !matches!(&moved, Err(error) if error.problem == Problem::NotFound) || !self.stayed(from) {
                break;
            }
            moved = self.change(&method("MOVE"), &source, &headers);
        }
        drop(held);
        match moved {
            // Only a place that was free is known to have been taken in one step: the protocol lets a server delete
            // what is there first.
            Ok(status) => Ok(Renamed {
                atomic: status == StatusCode::CREATED
                    || existing == Existing::Refuse
                    || self.free.contains(to.as_str()),
            }),
            Err(error) => match error.problem {
                // The server failed half-way, perhaps after the deed.
                Problem::Other if !self.stayed(from) => Err(FsError::new(Problem::Lost, error.detail)),
                Problem::NotFound => Err(self.explain(error, to)),
                _ => Err(error),
            },
        }
    }

    fn delete(&mut self, place: &Place) -> Result<(), FsError> {
        let url = self.session.root.file(place.as_str())?;
        let mut headers = HeaderMap::new();
        // A folder put in the file's place meanwhile is refused with this, instead of being deleted with all in it.
        headers.insert("depth", HeaderValue::from_static("0"));
        self.change(&Method::DELETE, &url, &headers).map(drop)
    }

    fn tag(&mut self, place: &Place) -> Result<Option<String>, FsError> {
        Ok(self.item(place.as_str())?.etag.as_deref().map(plain))
    }

    fn make_folder(&mut self, path: &str) -> Result<(), FsError> {
        let url = self.session.root.folder(path)?;
        match self.change(&method("MKCOL"), &url, &HeaderMap::new()) {
            Ok(_) => {
                self.folders.insert(path.to_owned());
                Ok(())
            }
            // What `405` means for this method.
            Err(error) if error.problem == Problem::Unsupported && self.item(path).is_ok() => {
                Err(FsError::new(Problem::Exists, error.detail))
            }
            Err(error) => Err(self.explain(error, &Place::own(path.to_owned()))),
        }
    }

    fn sync_folder(&mut self, _: &str) -> Result<bool, FsError> {
        Ok(false)
    }

    fn identity(&mut self, folder: &str) -> Result<Value, FsError> {
        self.folder(folder)?;
        let (server, folder) = self.session.root.identity(folder);
        Ok(json!({ "server": server, "folder": folder }))
    }
}

fn stat_of(item: &Item) -> Stat {
    Stat {
        kind: if item.collection { EntryKind::Directory } else { EntryKind::File },
        size: item.size.unwrap_or_default(),
        modified: item.modified,
        inode: None,
    }
}

/// A PUT under way.
struct Part {
    session: Arc<Session>,
    place: String,
    url: Url,
    /// How much of the announced size was not written yet.
    left: Option<u64>,
    /// Closed when all has been written.
    slices: Option<mpsc::Sender<io::Result<Bytes>>>,
    /// Taken when the server has answered.
    answer: Option<JoinHandle<reqwest::Result<Response>>>,
    /// What the server called the content that it stored.
    etag: Option<String>,
}

impl Part {
    /// Waits for the server's word on the whole PUT.
    fn settle(&mut self) -> Result<(), FsError> {
        self.slices = None;
        let Some(answer) = &mut self.answer else { return Ok(()) };
        let answer = self.session.wait("PUT", answer)?;
        self.answer = None;
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(lost(error)),
            Err(error) => return Err(FsError::new(Problem::Lost, error)),
        };
        if response.status() == StatusCode::UNAUTHORIZED
            && self.session.challenged(response.headers(), true)?
        {
            // The next attempt has a fresh one.
            return Err(FsError::new(Problem::Lost, format!("{}: the log-in grew too old", self.url.path())));
        }
        if !response.status().is_success() {
            return Err(self.session.refused(&Method::PUT, &self.url, response));
        }
        self.etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        self.session.drain(response);
        Ok(())
    }
}

impl PartFile for Part {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        let slice = Bytes::copy_from_slice(bytes);
        if let Some(slices) = &self.slices
            && self.session.wait("PUT", slices.send(Ok(slice)))?.is_ok()
        {
            self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
            return Ok(());
        }
        // Nobody takes it any more: the server has answered early, or is gone.
        self.settle()?;
        Err(FsError::new(Problem::Protocol, format!("{}: the server took only a part", self.url.path())))
    }

    fn sync(&mut self) -> Result<bool, FsError> {
        // There is no such request: whether what is stored survives a power cut is the server's secret.
        self.settle().map(|()| false)
    }

    fn size(&mut self) -> Result<u64, FsError> {
        self.settle()?;
        let found = self.session.look_at(&self.place, &self.url)?;
        let changed = |stored: &str, now: &str| is_strong(stored) && is_strong(now) && stored != now;
        if let (Some(stored), Some(now)) = (&self.etag, &found.etag)
            && changed(stored, now)
        {
            let detail = format!("{} was {stored} when stored and is {now}", self.url.path());
            return Err(FsError::new(Problem::Other, detail));
        }
        Ok(found.size.unwrap_or_default())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // All that was announced is under way: the server has a whole file, which must be there before it is deleted.
        if self.left == Some(0) && !self.session.fired.is_cancelled() {
            drop(self.settle());
        }
        let Some(answer) = self.answer.take() else { return };
        // Given up half-way: the connection has to end with an error, since an orderly end would make it a whole file.
        if let Some(slices) = self.slices.take() {
            drop(slices.try_send(Err(io::ErrorKind::Interrupted.into())));
        }
        answer.abort();
        self.session.look_around();
    }
}

/// Whether an entity tag stands for the very bytes. A server calls one weak while the file may still change unseen.
fn is_strong(etag: &str) -> bool {
    etag.starts_with('"')
}

/// An entity tag without the mark of a weak one, which falls away once the file has been left alone for a second.
fn plain(etag: &str) -> String {
    etag.trim_start_matches("W/").to_owned()
}

/// A GET under way.
struct Source {
    session: Arc<Session>,
    place: String,
    url: Url,
    etag: Option<String>,
    stat: Stat,
    body: Option<Body>,
    done: u64,
    resumed: u32,
}

impl Source {
    /// Asks for the content from where it stopped.
    fn ask(&mut self) -> Result<(), FsError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if self.done > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.done));
            headers.insert(RANGE, range.map_err(|error| FsError::new(Problem::Other, error))?);
            if let Some(etag) = self.etag.as_ref().and_then(|etag| HeaderValue::from_str(etag).ok()) {
                headers.insert(IF_MATCH, etag);
            }
        }
        let response = self.session.ask(&Method::GET, &self.url, &headers, None)?;
        let path = self.url.path();
        let begins = format!("bytes {}-", self.done);
        let goes_on = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|range| range.to_str().ok())
            .is_some_and(|range| range.starts_with(&begins));
        match (response.status(), self.done) {
            (StatusCode::OK, 0) => {}
            (StatusCode::PARTIAL_CONTENT, 1..) if goes_on => {}
            (StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::PRECONDITION_FAILED, 1..) => {
                return Err(FsError::new(Problem::Changed, format!("{path}: cannot go on at {}", self.done)));
            }
            _ => return Err(self.session.refused(&Method::GET, &self.url, response)),
        }
        if let Some(coding) = response.headers().get(CONTENT_ENCODING)
            && coding != "identity"
        {
            return Err(FsError::new(
                Problem::Protocol,
                format!("{path}: the server sends it as {coding:?}"),
            ));
        }
        self.body = Some(Body::new(Arc::clone(&self.session), response));
        Ok(())
    }
}

impl SourceFile for Source {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FsError> {
        loop {
            let Some(body) = &mut self.body else {
                return Err(FsError::new(Problem::Lost, "the download has ended"));
            };
            match body.fill(buffer) {
                Ok(n) => {
                    self.done += n as u64;
                    return Ok(n);
                }
                // Only where it is certain that the rest belongs to what came before.
                Err(error)
                    if error.problem == Problem::Lost
                        && self.resumed < MAX_RESUMED
                        && self.done > 0
                        && self.etag.as_deref().is_some_and(is_strong) =>
                {
                    self.resumed += 1;
                    self.body = None;
                    self.ask().map_err(|second| FsError {
                        detail: format!("{}; then {}", error.detail, second.detail),
                        ..second
                    })?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn stat(&mut self) -> Result<Stat, FsError> {
        // At the beginning it is what was asked right before.
        if self.done == 0 {
            return Ok(self.stat);
        }
        let now = self.session.look_at(&self.place, &self.url)?;
        if let (Some(before), Some(after)) = (&self.etag, &now.etag)
            && plain(before) != plain(after)
        {
            let detail = format!("{}: {before}, then {after}", self.url.path());
            return Err(FsError::new(Problem::Changed, detail));
        }
        Ok(stat_of(&now))
    }

    fn tag(&self) -> Option<String> {
        self.etag.as_deref().map(plain)
    }
}
