//! Folders on an FTP server, plainly or over TLS, through `suppaftp`.
//!
//! - `connect`: TCP, TLS, log-in, root; `settings`: what the operator writes; `tls`: rustls, with resumed sessions
//! - `session`: commands, and what the server says of files; `listing`: reading that
//! - `transfer`: content on its way; `error`: refusals as problems
//!
//! The protocol knows no folders by handle, no links, no sync and no exclusive anything. A folder is entered, and the
//! server asked where that is, before a path in it is used. A name is looked at before a rename that must not replace;
//! sessions of one resource do that one after the other, others may slip in between: `docs/connectors/file.md` says so.

mod connect;
mod error;
mod listing;
mod session;
mod settings;
mod tls;
mod transfer;

pub(super) use settings::{FtpSettings, Mode, check};

use super::{
    aside::{self, LinkNames},
    backend::{
        Backend, EntryKind, Existing, Features, FsError, Links, Page, PartFile, Problem, Renamed, Smallest,
        SourceFile, Stat, fits,
    },
    place::{Place, is_part, join},
};
use listing::Entry;
use serde_json::{Value, json};
use session::{Session, directory};
use std::{
    collections::HashMap,
    io,
    net::TcpStream,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use suppaftp::Status;
use tls::{Tickets, Versions};
use transfer::{Part, Source, Transfer};

/// One slice of a file on its way.
const SLICE: usize = 512 * 1024;
/// How long a parked session is trusted without asking the server.
const TRUSTED: Duration = Duration::from_secs(5);
/// How long a server may take to say that it is still there.
const CHECK: Duration = Duration::from_secs(5);
/// How many entries of a list that may be beginnings of other names are looked at one by one.
const MAX_DOUBTS: usize = 200;
/// What says that something was done; some servers answer 200 where 250 or 257 belongs.
const DONE: &[Status] = &[Status::RequestedFileActionOk, Status::CommandOk];

type SharedSession = Arc<Mutex<Session>>;

fn lock(session: &SharedSession) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long one read or write on any socket of a session may take.
#[derive(Debug, Clone)]
struct Limits(Arc<Mutex<Duration>>);

impl Limits {
    fn new(limit: Duration) -> Self {
        Self(Arc::new(Mutex::new(limit)))
    }

    fn set(&self, limit: Duration) {
        // The system takes no limit of zero.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = limit.max(Duration::from_millis(1));
    }

    fn get(&self) -> Duration {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, socket: &TcpStream) -> io::Result<()> {
        let limit = Some(self.get());
        socket.set_read_timeout(limit)?;
        socket.set_write_timeout(limit)
    }
}

/// A logged-in session and where it looks.
struct Remote {
    session: SharedSession,
    /// A second handle on the control connection's socket.
    socket: TcpStream,
    limits: Limits,
    /// The root as the server names it.
    root: String,
    /// Who logged in where.
    account: String,
    /// Folders of the current operation, found beneath the root.
    resolved: HashMap<String, String>,
    /// Held while a name is looked at and then taken.
    naming: Arc<Mutex<()>>,
    /// With TLS: what data connections resume, and what the sessions after this one learn from it.
    tickets: Option<(Arc<Tickets>, Arc<Versions>)>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        if self.has_no_tickets()
            && let Some((_, versions)) = &self.tickets
        {
            versions.learn(true);
        }
    }
}

impl Remote {
    fn session(&self) -> MutexGuard<'_, Session> {
        lock(&self.session)
    }

    /// The server's own path of a folder of ours, checked to be beneath the root.
    fn folder(&mut self, folder: &str) -> Result<String, FsError> {
        wire(folder)?;
        if let Some(real) = self.resolved.get(folder) {
            return Ok(real.clone());
        }
        let path = if folder.is_empty() { self.root.clone() } else { below(&self.root, folder) };
        fits(&path)?;
        let real = self.session().real(&path)?;
        let Some(real) = real else { return Err(self.why_not(folder)) };
        if !beneath(&real, &self.root) {
            let detail = format!("{path} is {real} on the server, outside {}", self.root);
            return Err(FsError::new(Problem::Escapes, detail));
        }
        self.resolved.insert(folder.to_owned(), real.clone());
        Ok(real)
    }

    /// The same, where nothing is asked of the root: connecting has resolved it, and a command in it says if it is gone.
    fn known(&mut self, folder: &str) -> Result<String, FsError> {
        if folder.is_empty() { Ok(self.root.clone()) } else { self.folder(folder) }
    }

    /// Why a folder cannot be entered: the first name on the way that is none.
    fn why_not(&self, folder: &str) -> FsError {
        let mut session = self.session();
        let mut here = self.root.clone();
        for name in folder.split('/').filter(|name| !name.is_empty()) {
            let path = below(&here, name);
            let stat = match session.find(&here, name) {
                Ok(Some(entry)) if entry.stat.kind == EntryKind::Symlink => {
                    session.follow(&self.root, &here, entry).map(|(_, stat)| Some(stat))
                }
                other => other.map(|entry| entry.map(|entry| entry.stat)),
            };
            match stat {
                Ok(Some(stat)) if stat.kind == EntryKind::Directory => {}
                Ok(Some(_)) => return FsError::new(Problem::NotAFolder, path),
                Ok(None) => return FsError::new(Problem::NotFound, path),
                Err(error) => return error,
            }
            match session.real(&path) {
                Ok(Some(real)) if beneath(&real, &self.root) => here = real,
                Ok(Some(real)) => return FsError::new(Problem::Escapes, real),
                Ok(None) => return FsError::new(Problem::Refused, path),
                Err(error) => return error,
            }
        }
        FsError::new(Problem::NotFound, format!("{here}: the resource's folder cannot be entered"))
    }

    fn path(&mut self, place: &Place) -> Result<(String, String), FsError> {
        wire(place.name())?;
        let folder = self.known(place.folder())?;
        let path = below(&folder, place.name());
        fits(&path)?;
        Ok((folder, path))
    }

    /// What is at a place; the last name not followed.
    fn find(&mut self, place: &Place) -> Result<Option<Entry>, FsError> {
        self.folder(place.folder())?;
        let (folder, _) = self.path(place)?;
        self.session().find(&folder, place.name())
    }

    /// What a refusal means, by what is there: its words mostly do not say.
    fn explain(&mut self, place: &Place, error: FsError) -> FsError {
        if !matches!(error.problem, Problem::Refused | Problem::Other | Problem::Unsupported) {
            return error;
        }
        match self.find(place) {
            Ok(None) => FsError::new(Problem::NotFound, error.detail),
            Ok(Some(entry)) if entry.stat.kind == EntryKind::Directory => {
                FsError::new(Problem::IsAFolder, error.detail)
            }
            Err(broken) if broken.is_broken() => broken,
            Ok(Some(_)) | Err(_) => error,
        }
    }

    /// The two commands of a rename.
    fn rename_now(&mut self, from: &Place, source: &str, target: &str) -> Result<(), FsError> {
        let asked = self.session().act("RNFR", source, &[Status::RequestFilePending]);
        asked.map_err(|error| self.explain(from, error))?;
        self.session().act("RNTO", target, DONE)
    }

    /// Whether it is good for no more data connections, where the server wants them to resume the TLS session.
    fn has_no_tickets(&self) -> bool {
        self.tickets.as_ref().is_some_and(|(tickets, _)| tickets.are_used_up())
    }

    /// One exchange with the server, within a time of its own.
    fn answers(&self) -> bool {
        let whole = self.limits.get();
        self.limits.set(whole.min(CHECK));
        let applied = self.limits.apply(&self.socket).is_ok();
        let mut session = self.session();
        let answered = applied && session.ftp.noop().is_ok();
        self.limits.set(whole);
        let answered = answered && self.limits.apply(&self.socket).is_ok();
        if !answered {
            session.interrupt.fire();
        }
        answered
    }
}

impl Backend for Remote {
    fn features(&self) -> Features {
        Features { read: SLICE, write: SLICE, rereads_parts: false, claims_names: false }
    }

    fn begin(&mut self, timeout: Duration) {
        self.resolved.clear();
        self.limits.set(timeout);
        // A socket that takes no limit is down: the next command says so.
        drop(self.limits.apply(&self.socket));
        let mut session = self.session();
        session.here = None;
        session.interrupt.arm_data(None);
    }

    fn alive(&mut self, idle: Duration) -> bool {
        if self.has_no_tickets() || self.socket.set_nonblocking(true).is_err() {
            return false;
        }
        let looked = self.socket.peek(&mut [0]);
        if self.socket.set_nonblocking(false).is_err() {
            return false;
        }
        match looked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => idle < TRUSTED || self.answers(),
            // Something came meanwhile: of TLS, or a goodbye.
            Ok(1..) => self.answers(),
            Ok(0) | Err(_) => false,
        }
    }

    fn keep_warm(&mut self) {
        self.answers();
    }

    fn create(&mut self, place: &Place) -> Result<Box<dyn PartFile>, FsError> {
        let (_, path) = self.path(place)?;
        // Storing replaces. Parts are the one thing created, and their names are nobody else's.
        let there = match is_part(place.name().as_bytes()) {
            true => match self.session().size(&path) {
                Ok(_) => true,
                Err(error) if error.is_broken() => return Err(error),
                Err(_) => false,
            },
            false => self.find(place)?.is_some(),
        };
        if there {
            return Err(FsError::new(Problem::Exists, path));
        }
        let mut session = self.session();
        let transfer = Transfer::open(&mut session, &format!("STOR {path}"));
        let failed = match transfer {
            Ok(transfer) => return Ok(Box::new(Part::new(transfer, Arc::clone(&self.session), path))),
            Err(error) => session.failed(&path, &error),
        };
        drop(session);
        if !failed.is_broken() {
            // It may be that the folder is gone.
            self.resolved.remove(place.folder());
            self.folder(place.folder())?;
        }
        Err(failed)
    }

    fn is_free(&mut self, place: &Place) -> Result<bool, FsError> {
        let (_, path) = self.path(place)?;
        self.session().is_free(&path)
    }

    fn open(&mut self, place: &Place) -> Result<Box<dyn SourceFile>, FsError> {
        let (path, stat) = self.look(place, Links::Follow)?;
        match stat.kind {
            EntryKind::File => Ok(Box::new(Source::new(Arc::clone(&self.session), path, stat))),
            EntryKind::Directory => Err(FsError::new(Problem::IsAFolder, path)),
            EntryKind::Symlink | EntryKind::Other => Err(FsError::new(Problem::NotAFile, path)),
        }
    }

    fn stat(&mut self, path: &str, links: Links) -> Result<Stat, FsError> {
        if path.is_empty() {
            return self.folder("").map(|_| directory());
        }
        self.look(&Place::own(path.to_owned()), links).map(|(_, stat)| stat)
    }

    fn list(&mut self, folder: &str, after: Option<&str>, max: usize) -> Result<Page, FsError> {
        let real = self.folder(folder)?;
        let mut smallest = Smallest::new(after, max);
        let mut doubtful = Vec::new();
        let mut session = self.session();
        let skipped = session.list(&real, &mut |entry| match entry.cut && doubtful.len() < MAX_DOUBTS {
            true => doubtful.push(entry),
            false => offer(&mut smallest, &entry),
        })?;
        for entry in doubtful {
            if session.is_whole(&real, &entry)? {
                offer(&mut smallest, &entry);
            }
        }
        let (kept, more, unreadable) = smallest.finish();
        Ok(Page { entries: kept.into_iter().collect(), more, unreadable: unreadable + skipped })
    }

    fn rename(&mut self, from: &Place, to: &Place, existing: Existing<'_>) -> Result<Renamed, FsError> {
        let ((_, source), (_, target)) = (self.path(from)?, self.path(to)?);
        let aside = match existing {
            Existing::Replace { aside } => aside,
            Existing::Refuse => {
                let naming = Arc::clone(&self.naming);
                let _one_at_a_time = naming.lock().unwrap_or_else(PoisonError::into_inner);
                if self.find(to)?.is_some() {
                    return Err(FsError::new(Problem::Exists, target));
                }
                return self.rename_now(from, &source, &target).map(|()| Renamed { atomic: false });
            }
        };
        let Err(error) = self.rename_now(from, &source, &target) else { return Ok(Renamed { atomic: true }) };
        if error.is_broken() {
            return Err(error);
        }
        // It may be a server that does not replace.
        match self.find(to)?.map(|entry| entry.stat.kind) {
            Some(EntryKind::Directory) => Err(FsError::new(Problem::IsAFolder, target)),
            Some(_) if self.find(from)?.is_some() => {
                aside::replace(self, from, to, aside, LinkNames::Doubtful)
            }
            Some(_) | None => Err(error),
        }
    }

    fn delete(&mut self, place: &Place) -> Result<(), FsError> {
        let (_, path) = self.path(place)?;
        let deleted = self.session().act("DELE", &path, DONE);
        deleted.map_err(|error| self.explain(place, error))
    }

    fn make_folder(&mut self, path: &str) -> Result<(), FsError> {
        let place = Place::own(path.to_owned());
        let (_, real) = self.path(&place)?;
        let made = self.session().act("MKD", &real, &[Status::PathCreated, Status::CommandOk]);
        match made {
            Err(error) if !error.is_broken() && self.find(&place)?.is_some() => {
                Err(FsError::new(Problem::Exists, error.detail))
            }
            other => other,
        }
    }

    fn sync_folder(&mut self, _: &str) -> Result<bool, FsError> {
        // The protocol has no such request; `docs/connectors/file.md` says what that means.
        Ok(false)
    }

    fn identity(&mut self, folder: &str) -> Result<Value, FsError> {
        let real = self.known(folder)?;
        Ok(json!({ "account": self.account, "folder": real }))
    }
}

impl Remote {
    /// Where a place is on the server, and what is there.
    fn look(&mut self, place: &Place, links: Links) -> Result<(String, Stat), FsError> {
        self.folder(place.folder())?;
        let (folder, path) = self.path(place)?;
        let mut session = self.session();
        let found = session.find(&folder, place.name())?;
        let found = found.ok_or_else(|| FsError::new(Problem::NotFound, &path))?;
        let (path, mut stat) = match (found.stat.kind, links) {
            (EntryKind::Symlink, Links::Follow) => session.follow(&self.root, &folder, found)?,
            _ => (path, found.stat),
        };
        if stat.kind == EntryKind::File && stat.modified.is_none() {
            stat.modified = session.modified(&path)?;
        }
        Ok((path, stat))
    }
}

/// Commands are lines: what would end one early is in no name.
fn wire(path: &str) -> Result<(), FsError> {
    match path.contains(['\r', '\n', '\0']) {
        true => Err(FsError::new(Problem::BadName, format!("{path:?}"))),
        false => Ok(()),
    }
}

/// Offers an entry under a name that commands can carry; any other is counted as one that cannot be shown.
fn offer(smallest: &mut Smallest<'_, Stat>, entry: &Entry) {
    let is_sendable = std::str::from_utf8(&entry.name).is_ok_and(|name| wire(name).is_ok());
    smallest.offer(if is_sendable { &entry.name } else { &[0xFF] }, entry.stat);
}

/// Whether `path` is `root` or lies in it.
fn beneath(path: &str, root: &str) -> bool {
    root == "/" || path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn below(folder: &str, name: &str) -> String {
    if folder == "/" { format!("/{name}") } else { join(folder, name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_command_is_no_name() {
        for path in ["a\r\nDELE b", "a\nb", "a\rb", "a\0b"] {
            assert_eq!(wire(path).unwrap_err().problem, Problem::BadName, "{path:?}");
        }
        wire("in/été \"x\" \t\u{1f980}.csv").unwrap();
    }

    #[test]
    fn only_what_lies_in_the_root_is_beneath_it() {
        for (path, root, expected) in
            [("/srv/in/a", "/srv/in", true), ("/srv/inside", "/srv/in", false), ("/etc", "/", true)]
        {
            assert_eq!(beneath(path, root), expected, "{path} {root}");
        }
    }
}
