//! Content on its way: several writes or reads under way at once.

use super::{
    SLICE, SharedSession,
    files::succeeded,
    lock,
    opening::Found,
    wire::{Reply, Request},
};
use crate::file::backend::{FsError, PartFile, Problem, SourceFile, Stat};
use smb2::{
    msg::{read::ReadRequest, write::WriteResponse},
    pack::{Pack, WriteCursor},
    types::{Command, FileId, status::NtStatus},
};
use std::collections::VecDeque;

/// How many slices may be under way.
const WINDOW: usize = 4;

/// A write request without its content.
struct Write {
    handle: FileId,
    offset: u64,
    length: u32,
}

impl Pack for Write {
    fn pack(&self, cursor: &mut WriteCursor) {
        const CONTENT: u16 = 64 + 48;
        cursor.write_u16_le(49);
        cursor.write_u16_le(CONTENT);
        cursor.write_u32_le(self.length);
        cursor.write_u64_le(self.offset);
        cursor.write_u64_le(self.handle.persistent);
        cursor.write_u64_le(self.handle.volatile);
        // No channel, no hint of what follows, no flags.
        cursor.write_zeros(16);
    }
}

/// A file that is being written.
pub(super) struct Part {
    session: SharedSession,
    path: String,
    handle: FileId,
    offset: u64,
    under_way: VecDeque<(u64, u32)>,
    /// The size that the server saw when it had brought the content to its disk.
    size: Option<u64>,
}

impl Part {
    pub(super) fn new(session: SharedSession, path: String, found: &Found) -> Self {
        Self { session, path, handle: found.handle, offset: 0, under_way: VecDeque::new(), size: None }
    }

    /// Waits for the oldest writes until at most `left` are under way.
    fn confirm(&mut self, left: usize) -> Result<(), FsError> {
        while self.under_way.len() > left {
            let Some((id, length)) = self.under_way.pop_front() else { break };
            let reply = lock(&self.session).wire.receive(id)?;
            succeeded(&self.path, &reply)?;
            let written = reply.read::<WriteResponse>()?.count;
            if written != length {
                let detail = format!("{}: {written} bytes of {length} were written", self.path);
                return Err(FsError::new(Problem::Full, detail));
            }
        }
        Ok(())
    }
}

impl PartFile for Part {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), FsError> {
        self.size = None;
        while !bytes.is_empty() {
            self.confirm(WINDOW - 1)?;
            let mut session = lock(&self.session);
            let most = session.max_write.min(SLICE);
            let length = session.wire.fundable(bytes.len().min(most));
            let (slice, rest) = bytes.split_at(length);
            let body = Write {
                handle: self.handle,
                offset: self.offset,
                length: u32::try_from(length).unwrap_or(u32::MAX),
            };
            let request = Request { command: Command::Write, body: &body, data: slice, bytes: length };
            let ids = session.wire.send(&[request])?;
            drop(session);
            self.under_way.extend(ids.into_iter().map(|id| (id, body.length)));
            self.offset += length as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<bool, FsError> {
        self.confirm(0)?;
        let (synced, size) = lock(&self.session).flush(&self.path, self.handle)?;
        self.size = Some(size);
        Ok(synced)
    }

    fn size(&mut self) -> Result<u64, FsError> {
        self.confirm(0)?;
        match self.size {
            Some(size) => Ok(size),
            None => lock(&self.session).size(&self.path, self.handle),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut session = lock(&self.session);
        for (id, _) in self.under_way.drain(..) {
            session.wire.ignore(id);
        }
        if !session.wire.is_broken() {
            // Waited for, so that whoever deletes the part finds it closed. The server closes what a broken connection left.
            drop(session.close(self.handle));
        }
    }
}

/// A file that is being read.
pub(super) struct Source {
    session: SharedSession,
    path: String,
    found: Found,
    /// Where the next slice to ask for begins.
    asked: u64,
    under_way: VecDeque<(u64, usize)>,
    /// The slice that is being handed out, and how far.
    slice: Option<(Reply, std::ops::Range<usize>)>,
    done: u64,
}

impl Source {
    pub(super) fn new(session: SharedSession, path: String, found: Found) -> Self {
        Self { session, path, found, asked: 0, under_way: VecDeque::new(), slice: None, done: 0 }
    }

    /// Asks for more, up to the size that the file had when it was opened.
    fn ask_ahead(&mut self) -> Result<(), FsError> {
        let mut session = lock(&self.session);
        while self.under_way.len() < WINDOW && self.asked < self.found.size {
            let left = usize::try_from(self.found.size - self.asked).unwrap_or(usize::MAX);
            let length = session.wire.fundable(left.min(session.max_read).min(SLICE));
            let body = ReadRequest {
                padding: 0x50,
                flags: 0,
                length: u32::try_from(length).unwrap_or(u32::MAX),
                offset: self.asked,
                file_id: self.found.handle,
                minimum_count: 0,
                channel: 0,
                remaining_bytes: 0,
                read_channel_info: Vec::new(),
            };
            let request = Request { bytes: length, ..Request::new(Command::Read, &body) };
            let ids = session.wire.send(&[request])?;
            self.under_way.extend(ids.into_iter().map(|id| (id, length)));
            self.asked += length as u64;
        }
        Ok(())
    }

    /// Takes the next slice: `false` at the end of the file.
    fn next(&mut self) -> Result<bool, FsError> {
        self.ask_ahead()?;
        let Some((id, length)) = self.under_way.pop_front() else { return Ok(false) };
        let reply = lock(&self.session).wire.receive(id)?;
        if reply.status == NtStatus::END_OF_FILE {
            return Ok(false);
        }
        succeeded(&self.path, &reply)?;
        let content = content(&reply)?;
        if content.len() != length {
            // The file has become shorter meanwhile: where the rest would lie nobody knows.
            let detail = format!("{}: {} bytes of {length} came", self.path, content.len());
            return Err(FsError::new(Problem::Changed, detail));
        }
        self.slice = Some((reply, content));
        Ok(true)
    }
}

/// Where the content of a read lies in the answer.
fn content(reply: &Reply) -> Result<std::ops::Range<usize>, FsError> {
    let message = reply.message();
    let field = |at: usize| message.get(64 + at).copied().map(usize::from);
    let read = || {
        let start = field(2)?;
        let length = field(4)? | field(5)? << 8 | field(6)? << 16 | field(7)? << 24;
        let range = start..start.checked_add(length)?;
        message.get(range.clone()).map(|_| range)
    };
    read().ok_or_else(|| FsError::new(Problem::Protocol, "what was read lies outside the answer"))
}

impl SourceFile for Source {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FsError> {
        if self.slice.is_none() && !self.next()? {
            return Ok(0);
        }
        let Some((reply, range)) = &mut self.slice else { return Ok(0) };
        let n = (range.end - range.start).min(buffer.len());
        let taken = range.start..range.start + n;
        if let (Some(from), Some(to)) = (reply.message().get(taken), buffer.get_mut(..n)) {
            to.copy_from_slice(from);
        }
        range.start += n;
        self.done += n as u64;
        if range.start >= range.end
            && let Some((reply, _)) = self.slice.take()
        {
            lock(&self.session).wire.recycle(reply);
        }
        Ok(n)
    }

    fn stat(&mut self) -> Result<Stat, FsError> {
        // At the beginning it is what was found right before.
        if self.done == 0 {
            return Ok(self.found.stat());
        }
        let now = lock(&self.session).refresh(&self.path, &self.found)?;
        Ok(now.stat())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let mut session = lock(&self.session);
        for (id, _) in self.under_way.drain(..) {
            session.wire.ignore(id);
        }
        if !session.wire.is_broken() {
            drop(session.close_later(self.found.handle));
        }
    }
}
