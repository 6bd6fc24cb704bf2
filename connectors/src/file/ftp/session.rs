//! A logged-in session: the commands beside transfers, and what the server says of files.
//!
//! Servers without facts (`MLST`) are asked by `LIST`, which was made for human eyes. A list of one name alone saves the
//! rest of a large folder, but servers understand it in several ways. Whatever is not clear is read from the whole list.

use super::{
    error::{from_ftp, refusal},
    listing::{self, Entry, Form, Reader},
    tls::Tls,
    transfer::{Lines, Transfer},
};
use crate::file::backend::{EntryKind, FsError, Interrupt, Problem, Stat};
use jiff::Timestamp;
use suppaftp::{FtpError, FtpResult, ImplFtpStream, Mode, Status, TransferStream, types::Response};

/// The library's client over our TLS; it speaks plainly too.
pub(super) type Client = ImplFtpStream<Tls>;

/// How many symbolic links are followed in a row.
const MAX_LINKS: usize = 8;

/// How folders are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lister {
    /// `MLSD` and `MLST`.
    Facts,
    /// `LIST -a`: names with a leading dot too.
    All,
    /// `LIST`, where that is refused.
    Plain,
}

pub(super) struct Session {
    pub(super) ftp: Client,
    pub(super) interrupt: Interrupt,
    pub(super) lister: Lister,
    /// Whether data connections are asked for by `EPSV` where `PASV` would do too.
    pub(super) extended: bool,
    /// The server's working folder, if it is known.
    pub(super) here: Option<String>,
}

impl Session {
    /// An error of the server or the session. A session that broke is cut at once: closing what is open on it would
    /// else wait for the same dead server again.
    pub(super) fn failed(&self, path: &str, error: &FtpError) -> FsError {
        let error = from_ftp(path, error);
        if error.is_broken() {
            self.interrupt.fire();
        }
        error
    }

    pub(super) fn command(&mut self, command: String, expected: &[Status]) -> FtpResult<Response> {
        self.ftp.custom_command(command, expected)
    }

    /// Opens a data connection for a command. What some servers announce as `EPSV`, a firewall before them refuses: then it
    /// is `PASV` for the rest of the connection.
    pub(super) fn data(
        &mut self,
        command: &str,
        expected: &[Status],
    ) -> FtpResult<(Response, TransferStream<Tls>)> {
        // It cannot be seen whether `EPSV` or the command was refused, which then has done nothing and is so again.
        let is_refused = |opened: &FtpResult<_>| {
            opened.as_ref().is_err_and(|error| matches!(refusal(error), Some(500..=502 | 522)))
        };
        let opened = self.ftp.custom_data_command(command, expected);
        if !self.extended || !is_refused(&opened) {
            return opened;
        }
        self.ftp.set_mode(Mode::Passive);
        let again = self.ftp.custom_data_command(command, expected);
        self.extended = is_refused(&again);
        if self.extended {
            self.ftp.set_mode(Mode::ExtendedPassive);
        }
        again
    }

    /// A command on a file or folder whose good answer says that it was done.
    pub(super) fn act(&mut self, verb: &str, path: &str, expected: &[Status]) -> Result<(), FsError> {
        let done = self.command(format!("{verb} {path}"), expected);
        done.map(drop).map_err(|error| self.failed(path, &error))
    }

    /// Goes into a folder; a refusal is the inner error.
    fn go(&mut self, folder: &str) -> Result<Result<(), FtpError>, FsError> {
        if self.here.as_deref() == Some(folder) {
            return Ok(Ok(()));
        }
        self.here = None;
        match self.command(format!("CWD {folder}"), &[Status::RequestedFileActionOk, Status::CommandOk]) {
            Ok(_) => Ok(Ok(())),
            Err(error @ FtpError::UnexpectedResponse(_)) if !from_ftp(folder, &error).is_broken() => {
                Ok(Err(error))
            }
            Err(error) => Err(self.failed(folder, &error)),
        }
    }

    fn enter(&mut self, folder: &str) -> Result<(), FsError> {
        self.go(folder)?.map_err(|error| self.failed(folder, &error))?;
        self.here = Some(folder.to_owned());
        Ok(())
    }

    /// Where a folder is, links in its path resolved as far as the server resolves them. `None` if it cannot be entered.
    pub(super) fn real(&mut self, folder: &str) -> Result<Option<String>, FsError> {
        if self.go(folder)?.is_err() {
            return Ok(None);
        }
        let reply = self.command("PWD".to_owned(), &[Status::PathCreated]);
        let reply = reply.map_err(|error| self.failed(folder, &error))?;
        let real = quoted(&reply.body).ok_or_else(|| {
            FsError::new(Problem::Unsupported, format!("{folder}: the server does not say where it is"))
        })?;
        self.here = Some(real.clone());
        Ok(Some(real))
    }

    /// The size of a regular file.
    pub(super) fn size(&mut self, path: &str) -> Result<u64, FsError> {
        match self.command(format!("SIZE {path}"), &[Status::File]) {
            Ok(reply) => parameter(&reply).and_then(|size| size.parse().ok()).ok_or_else(|| {
                FsError::new(
                    Problem::Unsupported,
                    format!("{path}: the server's answer to SIZE is no number"),
                )
            }),
            Err(error) => match (self.failed(path, &error), path.rsplit_once('/')) {
                (refused, Some((folder, name))) if refused.problem == Problem::Unsupported => {
                    let folder = if folder.is_empty() { "/" } else { folder };
                    let found = self.find(folder, name)?;
                    found.map(|entry| entry.stat.size).ok_or_else(|| FsError::new(Problem::NotFound, path))
                }
                (error, _) => Err(error),
            },
        }
    }

    /// When a regular file was changed, if the server says that.
    pub(super) fn modified(&mut self, path: &str) -> Result<Option<Timestamp>, FsError> {
        match self.command(format!("MDTM {path}"), &[Status::File]) {
            Ok(reply) => Ok(parameter(&reply).and_then(|time| listing::time(&time))),
            Err(error) if refusal(&error).is_some_and(|code| code >= 500) => Ok(None),
            Err(error) => Err(self.failed(path, &error)),
        }
    }

    /// What is at a place, the last name not followed.
    pub(super) fn find(&mut self, folder: &str, name: &str) -> Result<Option<Entry>, FsError> {
        let path = super::below(folder, name);
        match self.lister {
            Lister::Facts => match self.ask(&path)? {
                Some(entry) if entry.stat.kind == EntryKind::File => self.confirm(folder, name, entry),
                other => Ok(other),
            },
            Lister::All if is_plain(name) => self.find_alone(folder, name, &path),
            Lister::All | Lister::Plain => self.find_among(folder, name),
        }
    }

    fn ask(&mut self, path: &str) -> Result<Option<Entry>, FsError> {
        let reply = match self.command(format!("MLST {path}"), &[Status::RequestedFileActionOk]) {
            Ok(reply) => reply,
            Err(error) => return self.absent(path, &error).map(|()| None),
        };
        let mut lines = reply.body.split(|&byte| byte == b'\n');
        let line = lines.find_map(|line| line.strip_prefix(b" "));
        let line = line.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        match line.map(listing::facts) {
            Some(Ok(Some(entry))) => Ok(Some(entry)),
            // The folder itself.
            Some(Ok(None)) => {
                Ok(Some(Entry { name: Vec::new(), stat: directory(), target: None, cut: false }))
            }
            Some(Err(listing::Unreadable)) | None => Err(unreadable(path)),
        }
    }

    /// `MLST` may tell of what a link leads to, outside the root even, and call a pipe a file (seen: ProFTPD does both).
    /// Lists do not.
    fn confirm(&mut self, folder: &str, name: &str, told: Entry) -> Result<Option<Entry>, FsError> {
        let mut seen = None;
        if is_plain(name) {
            self.enter(folder)?;
            let listed = self.read_lines(&format!("LIST {name}"), folder, Form::Human, &mut |entry| {
                keep(&mut seen, name, entry);
            });
            match listed {
                Err(error) if error.is_broken() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        let seen = match seen {
            Some(seen) => Some(seen),
            None => self.find_among(folder, name)?,
        };
        Ok(seen.map(|seen| if seen.stat.kind == EntryKind::File { told } else { seen }))
    }

    /// Whether a server that tells of a name by a list only takes it for nothing, told by the first half of a rename: it is
    /// allowed for whatever is there, and is nothing without the second half.
    pub(super) fn is_free(&mut self, path: &str) -> Result<bool, FsError> {
        if self.lister == Lister::Facts {
            return Ok(false);
        }
        match self.command(format!("RNFR {path}"), &[Status::RequestFilePending]) {
            Ok(_) => Ok(false),
            Err(error) => match self.absent(path, &error) {
                Err(error) if error.is_broken() => Err(error),
                told => Ok(told.is_ok()),
            },
        }
    }

    /// Whether a refusal means that there is nothing; every other error is one.
    fn absent(&self, path: &str, error: &FtpError) -> Result<(), FsError> {
        let told = from_ftp(path, error);
        let denied = told.detail.to_lowercase().contains("denied");
        match (refusal(error), told.problem) {
            (Some(450 | 550 | 553), Problem::NotFound | Problem::Other) => Ok(()),
            (Some(450 | 550), Problem::Refused) if !denied => Ok(()),
            _ => Err(self.failed(path, error)),
        }
    }

    /// As a pattern a name finds folders and links themselves, not what they hold or lead to.
    fn find_alone(&mut self, folder: &str, name: &str, path: &str) -> Result<Option<Entry>, FsError> {
        self.enter(folder)?;
        let mut found = None;
        let listed = self.each(&format!("LIST -a {name}*"), folder, &mut |entry| {
            keep(&mut found, name, entry);
        });
        match (listed, found) {
            (Err(error), _) if error.is_broken() => Err(error),
            (Ok(_), Some(entry)) if entry.stat.kind == EntryKind::Directory && !entry.cut => Ok(Some(entry)),
            // Where patterns show what folders hold, it may be the file of that name in a folder of that name.
            (Ok(_), Some(entry)) if entry.stat.kind == EntryKind::File && self.has_size(path)? => {
                Ok(Some(entry))
            }
            // Where patterns mean nothing, nothing is found.
            (_, None) if !self.has_size(path)? && self.go(path)?.is_err() => Ok(None),
            (_, None | Some(_)) => self.find_among(folder, name),
        }
    }

    /// Whether the server takes it for a file.
    fn has_size(&mut self, path: &str) -> Result<bool, FsError> {
        match self.command(format!("SIZE {path}"), &[Status::File]) {
            Ok(_) => Ok(true),
            Err(error) => match self.failed(path, &error) {
                error if error.is_broken() => Err(error),
                _ => Ok(false),
            },
        }
    }

    fn find_among(&mut self, folder: &str, name: &str) -> Result<Option<Entry>, FsError> {
        let mut found = None;
        let skipped = self.list(folder, &mut |entry| keep(&mut found, name, entry))?;
        match found {
            Some(entry) if entry.cut => Ok(self.is_whole(folder, &entry)?.then_some(entry)),
            // It may be in a line that was skipped: then nobody may take its name for a free one.
            None if skipped > 0 && self.is_there(&super::below(folder, name))? => Err(unreadable(folder)),
            found => Ok(found),
        }
    }

    /// Whether an entry has its whole name: the beginning of one with a line end looks the same, and is nothing.
    pub(super) fn is_whole(&mut self, folder: &str, entry: &Entry) -> Result<bool, FsError> {
        let name = std::str::from_utf8(&entry.name).ok().filter(|name| super::wire(name).is_ok());
        match (name, entry.stat.kind) {
            (Some(name), EntryKind::File | EntryKind::Directory) => {
                match self.is_there(&super::below(folder, name)) {
                    // A server that does not say: then the list counts.
                    Err(error) if !error.is_broken() => Ok(true),
                    told => told,
                }
            }
            // Links and pipes have no size to ask for, and what no command can name is left out anyway.
            (Some(_) | None, _) => Ok(true),
        }
    }

    /// Whether a file or folder is there, asked for without a list.
    fn is_there(&mut self, path: &str) -> Result<bool, FsError> {
        match self.command(format!("SIZE {path}"), &[Status::File]) {
            Ok(_) => Ok(true),
            Err(error) => self.absent(path, &error).and_then(|()| Ok(self.go(path)?.is_ok())),
        }
    }

    /// Calls `each` with every entry of a folder. Gives how many lines are in no known form and were skipped.
    pub(super) fn list(&mut self, folder: &str, each: &mut dyn FnMut(Entry)) -> Result<u64, FsError> {
        self.enter(folder)?;
        if self.lister == Lister::Facts {
            return self.each("MLSD", folder, each);
        }
        if self.lister == Lister::All {
            match self.each("LIST -a", folder, each) {
                // Taken for a name.
                Err(error) if matches!(error.problem, Problem::Unsupported | Problem::NotFound) => {
                    self.lister = Lister::Plain;
                }
                other => return other,
            }
        }
        self.each("LIST", folder, each)
    }

    fn each(&mut self, command: &str, folder: &str, each: &mut dyn FnMut(Entry)) -> Result<u64, FsError> {
        let form = if self.lister == Lister::Facts { Form::Facts } else { Form::Human };
        self.read_lines(command, folder, form, each)
    }

    fn read_lines(
        &mut self,
        command: &str,
        folder: &str,
        form: Form,
        each: &mut dyn FnMut(Entry),
    ) -> Result<u64, FsError> {
        let transfer = Transfer::open(self, command).map_err(|error| self.failed(folder, &error))?;
        let mut reader = Reader::new(form);
        let whole = Lines::new(transfer).read(|line| reader.line(line).into_iter().for_each(&mut *each));
        let whole = whole.map_err(|error| self.failed(folder, &error))?;
        match reader.end() {
            Ok((last, skipped)) if whole => {
                last.into_iter().for_each(each);
                Ok(skipped)
            }
            Ok(_) | Err(_) => Err(unreadable(folder)),
        }
    }

    /// Where a symbolic link leads, if that is beneath `root`.
    pub(super) fn follow(
        &mut self,
        root: &str,
        folder: &str,
        link: Entry,
    ) -> Result<(String, Stat), FsError> {
        let (mut folder, mut link) = (folder.to_owned(), link);
        let escapes = |what: &str| FsError::new(Problem::Escapes, what);
        for _ in 0..MAX_LINKS {
            let target = link.target.take().and_then(|target| String::from_utf8(target).ok());
            let Some(target) = target.filter(|target| super::wire(target).is_ok()) else {
                return Err(escapes("the server does not say where the link leads"));
            };
            let path = if target.starts_with('/') { target } else { super::below(&folder, &target) };
            if let Some(real) = self.real(&path)? {
                return match super::beneath(&real, root) {
                    true => Ok((real, directory())),
                    false => Err(escapes(&real)),
                };
            }
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let parent = self.real(if parent.is_empty() { "/" } else { parent })?;
            let Some(parent) = parent.filter(|parent| super::beneath(parent, root)) else {
                return Err(escapes(&path));
            };
            let found = self.find(&parent, name)?;
            let found = found.ok_or_else(|| FsError::new(Problem::NotFound, &path))?;
            if found.stat.kind != EntryKind::Symlink {
                return Ok((super::below(&parent, name), found.stat));
            }
            (folder, link) = (parent, found);
        }
        Err(escapes("too many links in a row"))
    }
}

/// Keeps the entry that has this name: one that is whole rather than one that may be the beginning of another name.
fn keep(found: &mut Option<Entry>, name: &str, entry: Entry) {
    if entry.name == name.as_bytes() && found.as_ref().is_none_or(|found| found.cut || !entry.cut) {
        *found = Some(entry);
    }
}

pub(super) fn directory() -> Stat {
    Stat { kind: EntryKind::Directory, size: 0, modified: None, inode: None }
}

pub(super) fn unreadable(path: &str) -> FsError {
    FsError::new(Problem::Unsupported, format!("{path}: the server's list is in no known form"))
}

/// Whether a name in the argument of `LIST` means itself: no pattern, no option, no blank at its edges.
fn is_plain(name: &str) -> bool {
    !name.starts_with('-')
        && name.trim() == name
        && !name.contains(['*', '?', '[', ']', '{', '}', '\\', '~', '"'])
}

/// What the reply says after its code.
fn parameter(reply: &Response) -> Option<String> {
    let text = std::str::from_utf8(&reply.body).ok()?;
    text.get(4..).map(|text| text.trim().to_owned())
}

/// The quoted path of a reply; a doubled quote is one.
fn quoted(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once('"')?;
    let mut path = String::new();
    let mut characters = rest.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if characters.peek() == Some(&'"') => {
                characters.next();
                path.push('"');
            }
            '"' => return Some(path).filter(|path| path.starts_with('/')),
            other => path.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_reply_is_unquoted() {
        for (reply, path) in [
            ("257 \"/srv/in\" is the current directory\r\n", Some("/srv/in")),
            ("257 \"/it's \"\"x\"\"\"\r\n", Some("/it's \"x\"")),
            ("257 \"/\"", Some("/")),
            ("257 /srv", None),
            ("257 \"/open", None),
            ("257 \"C:\\in\" current", None),
        ] {
            assert_eq!(quoted(reply.as_bytes()).as_deref(), path, "{reply}");
        }
    }

    #[test]
    fn names_that_a_server_may_read_otherwise_are_not_plain() {
        for name in ["a.csv", "é ü.csv", ".hidden", "a-b"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["-l", "a*", "a?", "[a]", "{a}", " a", "a ", "a\\b", "~x"] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
