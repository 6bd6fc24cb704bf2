//! Folders on a WebDAV server, through the workspace's HTTP client.
//!
//! - `connect`: name, TLS, log-in, root; `settings`: what the operator writes
//! - `exchange`: requests and what their answers mean; `auth`: Basic and Digest
//! - `transfer`: content on its way
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
mod transfer;

pub(super) use settings::{WebDavKeys, WebDavSettings, check};

use super::{
    aside::{self, LinkNames},
    backend::{
        Backend, EntryKind, Existing, Features, FsError, Links, Page, PartFile, Problem, Renamed, Smallest,
        SourceFile, Stat,
    },
    place::{Place, is_part},
};
use bytes::Bytes;
use exchange::{Session, method};
use futures_util::stream;
use multistatus::Item;
use names::Member;
use reqwest::{
    Method, StatusCode, Url,
    header::{CONTENT_LENGTH, HeaderMap, HeaderValue, IF_NONE_MATCH},
};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};
use tokio::sync::mpsc;
use transfer::{Part, Source, plain};

/// One read and one write: large enough that the change of hands between two threads costs nothing.
const SLICE: usize = 1024 * 1024;
/// How long an idle session is trusted without asking the server.
const TRUSTED: Duration = Duration::from_secs(5);
/// How often a rename is repeated that met somebody else's.
const MAX_REPEATED: u32 = 5;

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

    /// `409 Conflict`, and Apache's `400`, say that something is wrong with the folder above: is it missing, or no folder?
    fn explain(&mut self, error: FsError, place: &Place) -> FsError {
        if !matches!(error.problem, Problem::NotFound | Problem::Other) {
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
        } else if status == StatusCode::ACCEPTED {
            // RFC 9110 §15.3.3: it may be done later, or never.
            let message = format!("{method} was accepted for later (202): whether it is done is not known");
            return Err(FsError::new(Problem::Lost, message));
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
        Features { read: SLICE, write: SLICE, rereads_parts: false, claims_names: false }
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
        let item = self.item(place.as_str()).map_err(|error| self.explain(error, place))?;
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

    fn rename(&mut self, from: &Place, to: &Place, existing: Existing<'_>) -> Result<Renamed, FsError> {
        // Some servers (Apache) delete what is there before they see that they may not move the other file. A part lies in the
        // same folder, and is never the target itself.
        if let Existing::Replace { aside } = existing
            && !is_part(from.name().as_bytes())
            && !self.free.contains(to.as_str())
        {
            return aside::replace(self, from, to, aside, LinkNames::Movable);
        }
        let (source, target) = (self.session.root.file(from.as_str())?, self.session.root.file(to.as_str())?);
        let mut headers = HeaderMap::new();
        let destination = HeaderValue::from_str(target.as_str())
            .map_err(|error| FsError::new(Problem::BadName, format!("{to}: {error}")))?;
        headers.insert("destination", destination);
        let overwrite = match existing {
            Existing::Replace { aside: _ } => "T",
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
        let was_free = self.free.remove(to.as_str());
        match moved {
            // Only a place that was free is known to have been replaced in one step: the protocol lets a server delete
            // what is there first. And no server is known not to look first where nothing may be replaced.
            Ok(status) => Ok(Renamed {
                atomic: existing != Existing::Refuse && (status == StatusCode::CREATED || was_free),
            }),
            Err(error) => match error.problem {
                // The server failed half-way, perhaps after the deed.
                Problem::Other | Problem::NameTooLong if !self.stayed(from) => {
                    Err(FsError::new(Problem::Lost, error.detail))
                }
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
            // What `405` means for this method; of a file Apache says `400`.
            Err(error)
                if matches!(error.problem, Problem::Unsupported | Problem::Other)
                    && self.item(path).is_ok() =>
            {
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
