//! Content on its way: an open file on the server, and what of it is not confirmed yet.

use super::{
    error::{from_ssh, is_status},
    from_attributes,
};
use crate::file::backend::{FsError, Interrupt, PartFile, Problem, SourceFile, Stat};
use std::io::{self, Read as _, Write as _};

/// How much of a part is under way to the server without its confirmation: 50 of libssh2's write requests. Enough for
/// a distant server, and less than the 2 MiB that OpenSSH lets a channel send ahead.
const UNDER_WAY: usize = 50 * 30_000;
/// How often libssh2 may say in a row that it could not send a whole request.
const MAX_UNCONFIRMED_CALLS: usize = 1000;

/// A part that is being written.
pub(super) struct Part {
    file: ssh2::File,
    path: String,
    interrupt: Interrupt,
    /// What libssh2 was given, from the oldest byte on that the server has not confirmed, after `confirmed` others.
    ahead: Vec<u8>,
    confirmed: usize,
}

impl Part {
    pub(super) fn new(file: ssh2::File, path: String, interrupt: Interrupt) -> Self {
        Self { file, path, interrupt, ahead: Vec::new(), confirmed: 0 }
    }

    fn under_way(&self) -> usize {
        self.ahead.len() - self.confirmed
    }

    /// Sends what was not sent yet, and waits until the server has confirmed at least one request. libssh2 wants to be
    /// shown all that is under way, and passes over what it has sent.
    fn push(&mut self) -> io::Result<()> {
        for _ in 0..MAX_UNCONFIRMED_CALLS {
            match self.file.write(self.ahead.get(self.confirmed..).unwrap_or_default()) {
                // Only a part of the oldest request fitted into the channel's window.
                Ok(0) => {}
                Ok(n) => {
                    self.confirmed = self.ahead.len().min(self.confirmed + n);
                    return Ok(());
                }
                Err(error) => {
                    // libssh2 has forgotten what was under way: it must not be sent again.
                    self.ahead.clear();
                    self.confirmed = 0;
                    return Err(error);
                }
            }
        }
        Err(io::ErrorKind::WriteZero.into())
    }

    /// Waits until the server has confirmed everything.
    fn settle(&mut self) -> Result<(), FsError> {
        while self.under_way() > 0 {
            let wanted = self.under_way();
            self.push().map_err(|error| self.explain(&error, wanted))?;
        }
        Ok(())
    }

    /// The crate tells of a failed write only in words. Whether the session still answers tells a refusal from a lost
    /// connection; free space tells why it was refused.
    fn explain(&mut self, error: &io::Error, wanted: usize) -> FsError {
        let detail = format!("{}: {error}", self.path);
        if error.kind() == io::ErrorKind::TimedOut {
            self.interrupt.fire();
            return FsError::new(Problem::TimedOut, detail);
        }
        if let Err(answer) = self.file.stat()
            && from_ssh(&self.path, &answer).is_broken()
        {
            self.interrupt.fire();
            return FsError::new(Problem::Lost, detail);
        }
        let problem = match self.file.statvfs() {
            Ok(space) if space.f_bavail.saturating_mul(space.f_frsize) < wanted as u64 => Problem::Full,
            Ok(_) | Err(_) => Problem::Other,
        };
        FsError::new(problem, detail)
    }
}

impl PartFile for Part {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), FsError> {
        while !bytes.is_empty() {
            let room = UNDER_WAY.saturating_sub(self.under_way()).min(bytes.len());
            if self.ahead.len() + room > 2 * UNDER_WAY {
                self.ahead.drain(..self.confirmed);
                self.confirmed = 0;
            }
            let (now, later) = bytes.split_at(room);
            self.ahead.extend_from_slice(now);
            self.push().map_err(|error| self.explain(&error, bytes.len()))?;
            bytes = later;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<bool, FsError> {
        self.settle()?;
        match self.file.fsync() {
            Ok(()) => Ok(true),
            // Not offered, or forbidden to this account: the content is whole but nobody vouches for the disk.
            Err(error)
                if is_status(&error, libssh2_sys::LIBSSH2_FX_OP_UNSUPPORTED)
                    || is_status(&error, libssh2_sys::LIBSSH2_FX_PERMISSION_DENIED) =>
            {
                Ok(false)
            }
            Err(error) => Err(cut(&self.interrupt, from_ssh(&self.path, &error))),
        }
    }

    fn size(&mut self) -> Result<u64, FsError> {
        self.settle()?;
        let found = self.file.stat().map_err(|error| cut(&self.interrupt, from_ssh(&self.path, &error)))?;
        Ok(found.size.unwrap_or_default())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Given up half-way. What follows on the session must not come between the halves of a request.
        if self.settle().is_err() {
            self.interrupt.fire();
        }
    }
}

/// A file that is being read.
pub(super) struct Source {
    file: ssh2::File,
    path: String,
    interrupt: Interrupt,
}

impl Source {
    pub(super) fn new(file: ssh2::File, path: String, interrupt: Interrupt) -> Self {
        Self { file, path, interrupt }
    }
}

impl SourceFile for Source {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FsError> {
        self.file.read(buffer).map_err(|error| {
            let problem =
                if error.kind() == io::ErrorKind::TimedOut { Problem::TimedOut } else { Problem::Lost };
            cut(&self.interrupt, FsError::new(problem, format!("{}: {error}", self.path)))
        })
    }

    fn stat(&mut self) -> Result<Stat, FsError> {
        let found = self.file.stat().map_err(|error| cut(&self.interrupt, from_ssh(&self.path, &error)))?;
        Ok(from_attributes(&found))
    }
}

fn cut(interrupt: &Interrupt, error: FsError) -> FsError {
    if error.is_broken() {
        interrupt.fire();
    }
    error
}
