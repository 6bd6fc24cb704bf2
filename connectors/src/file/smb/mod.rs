//! Folders on an SMB share: SMB 2.0.2 to 3.1.1, NTLMv2, always signed or encrypted.
//!
//! - `connect`: name, TCP, log-in, share, folder; `settings`: what the operator writes; `handshake`: dialect, keys, share
//! - `wire`: requests and answers on the socket; `protection`: signatures and encryption
//! - `opening`: how files are opened and what they are then; `files`: requests about them; `listing`: reading folders;
//!   `transfer`: content on its way
//! - `names`: names that stay what they are; `error`: statuses as problems
//!
//! The messages themselves, NTLM and the derivation of keys come from `smb2`. Its client is not used: it cannot enter
//! shares that demand encryption, and it reconnects and repeats by itself where a rename must never be sent twice.

mod connect;
mod error;
mod files;
mod handshake;
mod listing;
mod names;
mod opening;
mod protection;
mod settings;
mod transfer;
mod wire;

pub(super) use settings::{SmbSettings, check};

use super::{
    backend::{
        Backend, Existing, Features, FsError, Links, Page, PartFile, Problem, Renamed, Smallest, SourceFile,
        Stat,
    },
    place::Place,
};
use files::Session;
use opening::{Found, Opening};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use transfer::{Part, Source};

/// One slice of a file on its way.
const SLICE: usize = 1024 * 1024;
/// How long an idle session is trusted without asking the server.
const TRUSTED: Duration = Duration::from_secs(5);
/// How long a server may take to say that it is still there.
const CHECK: Duration = Duration::from_secs(5);

type SharedSession = Arc<Mutex<Session>>;

fn lock(session: &SharedSession) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session in a share.
struct Remote {
    session: SharedSession,
    /// Folders of the current operation that are known to be folders and no links.
    folders: HashSet<String>,
    /// Held during renames: Samba looks first and renames then, so that two sessions of ours could meet.
    naming: Arc<Mutex<()>>,
}

impl Remote {
    fn new(session: Session, naming: Arc<Mutex<()>>) -> Self {
        Self { session: Arc::new(Mutex::new(session)), folders: HashSet::new(), naming }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        lock(&self.session)
    }

    /// Checks every folder on the way: servers follow some kinds of links by themselves, out of the root too.
    fn enter(&mut self, folder: &str) -> Result<(), FsError> {
        let mut unknown = Vec::new();
        let ends = folder.match_indices('/').map(|(at, _)| at).chain([folder.len()]);
        for end in ends {
            match folder.get(..end) {
                Some(path) if !path.is_empty() && !self.folders.contains(path) => unknown.push(path),
                Some(_) | None => {}
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        self.session().look_at_folders(&unknown)?;
        self.folders.extend(unknown.into_iter().map(str::to_owned));
        Ok(())
    }

    fn find(&mut self, path: &str) -> Result<Found, FsError> {
        self.enter(Place::own(path.to_owned()).folder())?;
        self.session().look(path)
    }

    /// One exchange with the server, within a time of its own.
    fn answers(&self) -> bool {
        let mut session = self.session();
        let whole = session.wire.timeout();
        session.wire.set_timeout(whole.min(CHECK));
        let answered = session.echo();
        session.wire.set_timeout(whole);
        answered && !session.wire.is_broken()
    }
}

impl Backend for Remote {
    fn features(&self) -> Features {
        Features { read: SLICE, write: SLICE, rereads_parts: false, claims_names: false }
    }

    fn begin(&mut self, timeout: Duration) {
        self.folders.clear();
        self.session().wire.set_timeout(timeout);
    }

    fn alive(&mut self, idle: Duration) -> bool {
        let (broken, silent) = {
            let session = self.session();
            (session.wire.is_broken(), session.wire.is_silent())
        };
        // Something that came meanwhile is the answer to a close, or a goodbye.
        !broken && (silent && idle < TRUSTED || self.answers())
    }

    fn keep_warm(&mut self) {
        self.answers();
    }

    fn create(&mut self, place: &Place) -> Result<Box<dyn PartFile>, FsError> {
        self.enter(place.folder())?;
        let path = place.as_str();
        let found = self.session().open(path, &Opening::CREATE)?;
        Ok(Box::new(Part::new(Arc::clone(&self.session), path.to_owned(), &found)))
    }

    fn open(&mut self, place: &Place) -> Result<Box<dyn SourceFile>, FsError> {
        self.enter(place.folder())?;
        let path = place.as_str();
        let found = self.session().open_file(path)?;
        Ok(Box::new(Source::new(Arc::clone(&self.session), path.to_owned(), found)))
    }

    fn stat(&mut self, path: &str, links: Links) -> Result<Stat, FsError> {
        let found = self.find(path)?;
        if links == Links::Follow && found.is_link() {
            // Where it leads is not looked at.
            return Err(FsError::new(Problem::Escapes, format!("{path}: a link on the server")));
        }
        Ok(found.stat())
    }

    fn list(&mut self, folder: &str, after: Option<&str>, max: usize) -> Result<Page, FsError> {
        self.enter(folder)?;
        let mut smallest = Smallest::new(after, max);
        self.session().list(folder, &mut smallest)?;
        let (kept, more, unreadable) = smallest.finish();
        Ok(Page { entries: kept.into_iter().collect(), more, unreadable })
    }

    fn rename(&mut self, from: &Place, to: &Place, existing: Existing<'_>) -> Result<Renamed, FsError> {
        self.enter(from.folder())?;
        self.enter(to.folder())?;
        let replace = existing != Existing::Refuse;
        let _turn = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        self.session().rename(from.as_str(), to.as_str(), replace)?;
        // Windows takes a free name in one step and Samba does not: which of the two this is nothing tells for sure.
        Ok(Renamed { atomic: replace })
    }

    fn delete(&mut self, place: &Place) -> Result<(), FsError> {
        self.enter(place.folder())?;
        self.session().delete(place.as_str())
    }

    fn make_folder(&mut self, path: &str) -> Result<(), FsError> {
        self.enter(Place::own(path.to_owned()).folder())?;
        self.session().make_folder(path)
    }

    fn sync_folder(&mut self, folder: &str) -> Result<bool, FsError> {
        self.enter(folder)?;
        self.session().flush_folder(folder)
    }

    fn identity(&mut self, folder: &str) -> Result<Value, FsError> {
        self.enter(folder)?;
        let mut session = self.session();
        let found = session.look(folder)?;
        let path = session.name(folder)?;
        Ok(json!({ "server": session.server, "folder": path, "number": found.number }))
    }
}
