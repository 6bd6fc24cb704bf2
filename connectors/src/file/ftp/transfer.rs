//! Content on its way: a data connection, and the file at this end of it.

use super::{Session, SharedSession, error::from_io, lock, tls::Tls};
use crate::file::backend::{FsError, Interrupt, PartFile, Problem, SourceFile, Stat};
use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    time::{Duration, Instant},
};
use suppaftp::{DataStream, FtpError, FtpResult, Status, TransferStream};

/// How long one read waits for more than the first bytes.
const FILLING: Duration = Duration::from_secs(1);

/// A data connection, and the command that it belongs to.
pub(super) struct Transfer {
    stream: Option<TransferStream<Tls>>,
    interrupt: Interrupt,
    at_end: bool,
}

impl Transfer {
    /// Opens a data connection and sends `command`.
    pub(super) fn open(session: &mut Session, command: &str) -> FtpResult<Self> {
        let begun = [Status::AlreadyOpen, Status::AboutToSend];
        match session.data(command, &begun) {
            Ok((_, stream)) => {
                Ok(Self { stream: Some(stream), interrupt: session.interrupt.clone(), at_end: false })
            }
            Err(error) => {
                session.interrupt.arm_data(None);
                Err(error)
            }
        }
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(stream) = &mut self.stream else { return Ok(0) };
        let n = stream.read(buffer)?;
        self.at_end |= n == 0 && !buffer.is_empty();
        Ok(n)
    }

    /// Closes the data connection and hears how it went.
    pub(super) fn end(&mut self) -> FtpResult<()> {
        let Some(stream) = self.stream.take() else { return Ok(()) };
        // Not left to closing: the handle for interrupts is another one on the same socket.
        if let DataStream::Tcp(socket) = stream.get_ref() {
            drop(socket.shutdown(if self.at_end { Shutdown::Both } else { Shutdown::Write }));
        }
        self.interrupt.arm_data(None);
        stream.finish()
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Given up half-way. A server that refuses the rest of it says so, and goes on; one that says nothing is cut.
        if let Err(error) = self.end()
            && !matches!(error, FtpError::UnexpectedResponse(_))
        {
            self.interrupt.fire();
        }
    }
}

/// A part that is being uploaded.
pub(super) struct Part {
    transfer: Transfer,
    session: SharedSession,
    path: String,
}

impl Part {
    pub(super) fn new(transfer: Transfer, session: SharedSession, path: String) -> Self {
        Self { transfer, session, path }
    }

    fn end(&mut self) -> Result<(), FsError> {
        if let Some(stream) = &mut self.transfer.stream {
            // An upload of nothing ends in order too; what goes wrong here, the server's answer tells.
            drop(stream.flush());
        }
        self.transfer.end().map_err(|error| lock(&self.session).failed(&self.path, &error))
    }
}

impl PartFile for Part {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        let Some(stream) = &mut self.transfer.stream else {
            return Err(FsError::new(Problem::Other, "the part was closed already"));
        };
        let Err(error) = stream.write_all(bytes) else { return Ok(()) };
        let lost = from_io(&self.path, &error);
        if lost.problem == Problem::TimedOut {
            lock(&self.session).interrupt.fire();
            return Err(lost);
        }
        // The server closed the data connection: on the control connection it says why.
        match self.transfer.end() {
            Err(error @ FtpError::UnexpectedResponse(_)) => {
                Err(lock(&self.session).failed(&self.path, &error))
            }
            Ok(()) | Err(_) => {
                lock(&self.session).interrupt.fire();
                Err(lost)
            }
        }
    }

    fn sync(&mut self) -> Result<bool, FsError> {
        self.end()?;
        // The protocol has no such request: `docs/connectors/file.md` says what that means.
        Ok(false)
    }

    fn size(&mut self) -> Result<u64, FsError> {
        self.end()?;
        lock(&self.session).size(&self.path)
    }
}

/// A file that is being downloaded, once its first bytes are asked for.
pub(super) struct Source {
    transfer: Option<Transfer>,
    session: SharedSession,
    path: String,
    found: Stat,
    begun: bool,
}

impl Source {
    pub(super) fn new(session: SharedSession, path: String, found: Stat) -> Self {
        Self { transfer: None, session, path, found, begun: false }
    }

    fn begin(&mut self) -> Result<(), FsError> {
        let mut session = lock(&self.session);
        let opened = Transfer::open(&mut session, &format!("RETR {}", self.path));
        self.transfer = Some(opened.map_err(|error| session.failed(&self.path, &error))?);
        self.begun = true;
        Ok(())
    }
}

impl SourceFile for Source {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FsError> {
        if !self.begun {
            self.begin()?;
        }
        let Some(transfer) = &mut self.transfer else { return Ok(0) };
        let since = Instant::now();
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match transfer.read(rest) {
                Ok(0) => {
                    let ended = transfer.end();
                    self.transfer = None;
                    ended.map_err(|error| lock(&self.session).failed(&self.path, &error))?;
                    break;
                }
                Ok(n) => filled += n,
                Err(error) => {
                    lock(&self.session).interrupt.fire();
                    return Err(from_io(&self.path, &error));
                }
            }
            if since.elapsed() > FILLING {
                break;
            }
        }
        Ok(filled)
    }

    fn stat(&mut self) -> Result<Stat, FsError> {
        // While content is under way, the server takes no other command.
        if self.begun && self.transfer.is_none() {
            let mut session = lock(&self.session);
            let size = session.size(&self.path)?;
            let modified = session.modified(&self.path)?;
            return Ok(Stat { size, modified, ..self.found });
        }
        Ok(self.found)
    }
}

/// The lines of a list, one at a time and each of bounded length.
pub(super) struct Lines {
    transfer: Transfer,
    buffer: Vec<u8>,
    /// Where in the buffer the next line begins.
    from: usize,
}

impl Lines {
    const CHUNK: usize = 64 * 1024;
    /// The longest line: a path of 4,096 bytes, a link's target as long, and what else is said of it.
    const MAX: usize = 16 * 1024;

    pub(super) fn new(transfer: Transfer) -> Self {
        Self { transfer, buffer: Vec::new(), from: 0 }
    }

    /// Calls `each` with every line, without its end. Gives `false` as soon as a line is too long.
    pub(super) fn read(mut self, mut each: impl FnMut(&[u8])) -> FtpResult<bool> {
        loop {
            let rest = self.buffer.get(self.from..).unwrap_or_default();
            if let Some(length) = rest.iter().position(|&byte| byte == b'\n') {
                let line = rest.get(..length).unwrap_or_default();
                each(line.strip_suffix(b"\r").unwrap_or(line));
                self.from += length + 1;
                continue;
            }
            if rest.len() > Self::MAX {
                return Ok(false);
            }
            self.buffer.drain(..self.from);
            self.from = 0;
            let held = self.buffer.len();
            self.buffer.resize(held + Self::CHUNK, 0);
            let n = self.transfer.read(self.buffer.get_mut(held..).unwrap_or_default());
            let n = n.map_err(FtpError::ConnectionError)?;
            self.buffer.truncate(held + n);
            if n == 0 {
                if !self.buffer.is_empty() {
                    each(self.buffer.strip_suffix(b"\r").unwrap_or(&self.buffer));
                }
                return self.transfer.end().map(|()| true);
            }
        }
    }
}
