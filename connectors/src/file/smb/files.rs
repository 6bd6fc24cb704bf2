//! Requests about files and folders, most of them an open, the deed and a close in one round trip.
//!
//! A link (a reparse point that stands for another name) is opened itself, never followed by the server for us.

use super::{
    error::from_status,
    handshake::Agreed,
    listing, names,
    opening::{Found, Opening, time},
    wire::{Reply, Request, Wire},
};
use crate::file::backend::{EntryKind, FsError, Problem, Smallest, Stat};
use smb2::{
    msg::{
        close::CloseRequest,
        echo::EchoRequest,
        flush::FlushRequest,
        query_directory::{
            FileInformationClass, QueryDirectoryFlags, QueryDirectoryRequest, QueryDirectoryResponse,
        },
        query_info::{InfoType, QueryInfoRequest, QueryInfoResponse},
        set_info::SetInfoRequest,
    },
    pack::{FileTime, WriteCursor},
    types::{Command, FileId, flags::FileAttributes, status::NtStatus},
};

// Classes of information about a file (MS-FSCC 2.4).
const STANDARD: u8 = 5;
const STANDARD_LENGTH: u32 = 24;
const RENAME: u8 = 10;
const DISPOSITION: u8 = 13;
const NETWORK_OPEN: u8 = 34;
const ATTRIBUTE_TAG: u8 = 35;

/// How much of a listing is asked for at a time.
const LISTING: usize = 256 * 1024;
/// A session in a share.
pub(super) struct Session {
    pub(super) wire: Wire,
    pub(super) max_write: usize,
    pub(super) max_read: usize,
    max_transact: usize,
    /// Which share of which server this is.
    pub(super) server: String,
    /// The resource's folder in the share.
    pub(super) root: String,
}

impl Session {
    pub(super) fn new(wire: Wire, agreed: &Agreed, server: String, root: String) -> Self {
        let Agreed { max_write, max_read, max_transact, .. } = *agreed;
        Self { wire, max_write, max_read, max_transact, server, root }
    }

    /// The name of a place on the wire.
    pub(super) fn name(&self, path: &str) -> Result<String, FsError> {
        names::wire(&self.root, path)
    }

    /// Whether the server still answers.
    pub(super) fn echo(&mut self) -> bool {
        self.wire.ask(Command::Echo, &EchoRequest).is_ok()
    }

    /// Opens, and leaves open.
    pub(super) fn open(&mut self, path: &str, opening: &Opening) -> Result<Found, FsError> {
        let request = opening.request(&self.name(path)?);
        let reply = self.wire.ask(Command::Create, &request)?;
        succeeded(path, &reply)?;
        Found::read(&reply)
    }

    /// Opens a file for reading: not what a link leads to.
    pub(super) fn open_file(&mut self, path: &str) -> Result<Found, FsError> {
        let mut found = self.open(path, &Opening::READ_ITSELF)?;
        if !found.has(FileAttributes::REPARSE_POINT) {
            return Ok(found);
        }
        let tag = self.tag(path, found.handle);
        self.close(found.handle)?;
        found.tag = Some(tag?);
        match found.stat().kind {
            EntryKind::Symlink => {
                Err(FsError::new(Problem::Escapes, format!("{path}: a link on the server")))
            }
            EntryKind::Other => Err(FsError::new(Problem::NotAFile, path)),
            EntryKind::File | EntryKind::Directory => self.open(path, &Opening::READ),
        }
    }

    /// Closes, and waits until that is done.
    pub(super) fn close(&mut self, handle: FileId) -> Result<(), FsError> {
        let reply = self.wire.ask(Command::Close, &CloseRequest { flags: 0, file_id: handle })?;
        succeeded("closing", &reply)
    }

    /// Closes some time before the next request is looked at.
    pub(super) fn close_later(&mut self, handle: FileId) -> Result<(), FsError> {
        let request = CloseRequest { flags: 0, file_id: handle };
        for id in self.wire.send(&[Request::new(Command::Close, &request)])? {
            self.wire.ignore(id);
        }
        Ok(())
    }

    /// What is at a place; of a link the link itself.
    pub(super) fn look(&mut self, path: &str) -> Result<Found, FsError> {
        let opening = if path.is_empty() { Opening::LOOK_AT_ROOT } else { Opening::LOOK };
        self.look_by(path, &opening)
    }

    fn look_by(&mut self, path: &str, opening: &Opening) -> Result<Found, FsError> {
        let open = opening.request(&self.name(path)?);
        let replies = self.wire.chain(&[Request::new(Command::Create, &open), CLOSE])?;
        let mut found = opened(path, &replies)?;
        if found.has(FileAttributes::REPARSE_POINT) && !path.is_empty() {
            let again = self.open(path, &Opening::LOOK)?;
            let tag = self.tag(path, again.handle);
            self.close_later(again.handle)?;
            found.tag = Some(tag?);
        }
        Ok(found)
    }

    /// Looks at folders in one round trip: that they are folders, and no links.
    pub(super) fn look_at_folders(&mut self, folders: &[&str]) -> Result<(), FsError> {
        let mut asked = Vec::with_capacity(folders.len());
        for folder in folders {
            let open = Opening::LOOK_AT_FOLDER.request(&self.name(folder)?);
            asked.push(self.wire.send(&[Request::new(Command::Create, &open), CLOSE])?);
        }
        let mut answers = Vec::with_capacity(folders.len());
        for ids in asked {
            let replies: Result<Vec<Reply>, FsError> =
                ids.into_iter().map(|id| self.wire.receive(id)).collect();
            answers.push(replies?);
        }
        for (folder, replies) in folders.iter().zip(answers) {
            let found = opened(folder, &replies)?;
            if found.has(FileAttributes::REPARSE_POINT) && self.look(folder)?.is_link() {
                return Err(FsError::new(Problem::Escapes, format!("{folder}: a link on the server")));
            }
        }
        Ok(())
    }

    fn query(&mut self, path: &str, handle: FileId, class: u8, length: u32) -> Result<Vec<u8>, FsError> {
        let reply = self.wire.ask(Command::QueryInfo, &query_info(handle, class, length))?;
        succeeded(path, &reply)?;
        Ok(reply.read::<QueryInfoResponse>()?.output_buffer)
    }

    fn tag(&mut self, path: &str, handle: FileId) -> Result<u32, FsError> {
        let answer = self.query(path, handle, ATTRIBUTE_TAG, 8)?;
        number(&answer, 4..8).map(|tag| u32::try_from(tag).unwrap_or_default())
    }

    /// The size of an open file.
    pub(super) fn size(&mut self, path: &str, handle: FileId) -> Result<u64, FsError> {
        let answer = self.query(path, handle, STANDARD, STANDARD_LENGTH)?;
        number(&answer, 8..16)
    }

    /// Size and time of an open file.
    pub(super) fn refresh(&mut self, path: &str, found: &Found) -> Result<Found, FsError> {
        let answer = self.query(path, found.handle, NETWORK_OPEN, 56)?;
        let modified = time(FileTime(number(&answer, 16..24)?));
        Ok(Found { size: number(&answer, 40..48)?, modified, ..*found })
    }

    /// Brings an open file to the disk, `false` if the server does not offer that, and asks for its size.
    pub(super) fn flush(&mut self, path: &str, handle: FileId) -> Result<(bool, u64), FsError> {
        let flush = FlushRequest { file_id: handle };
        let query = query_info(handle, STANDARD, STANDARD_LENGTH);
        let mut ids = self.wire.send(&[Request::new(Command::Flush, &flush)])?;
        ids.extend(self.wire.send(&[Request::new(Command::QueryInfo, &query)])?);
        let replies: Result<Vec<Reply>, FsError> = ids.into_iter().map(|id| self.wire.receive(id)).collect();
        let [flushed, queried] =
            replies?.try_into().map_err(|_| FsError::new(Problem::Protocol, "answers are missing"))?;
        let synced = match succeeded(path, &flushed) {
            Err(error) if error.problem == Problem::Unsupported => false,
            other => other.map(|()| true)?,
        };
        succeeded(path, &queried)?;
        let size = number(&queried.read::<QueryInfoResponse>()?.output_buffer, 8..16)?;
        Ok((synced, size))
    }

    /// Brings the names in a folder to the disk: `false` if the server does not offer that.
    pub(super) fn flush_folder(&mut self, folder: &str) -> Result<bool, FsError> {
        let open = Opening::FLUSH_FOLDER.request(&self.name(folder)?);
        let flush = FlushRequest { file_id: FileId::SENTINEL };
        let requests = [Request::new(Command::Create, &open), Request::new(Command::Flush, &flush)];
        let replies = self.wire.chain(&requests)?;
        let Ok(found) = opened(folder, &replies) else { return Ok(false) };
        self.close_later(found.handle)?;
        Ok(refusal(folder, &replies).is_ok())
    }

    /// Gives a file another name in one step.
    pub(super) fn rename(&mut self, from: &str, to: &str, replace: bool) -> Result<(), FsError> {
        let target = self.name(to)?;
        let open = Opening::RENAME.request(&self.name(from)?);
        let set = set_info(RENAME, rename_info(&target, replace), FileId::SENTINEL);
        let replies =
            self.wire.chain(&[Request::new(Command::Create, &open), Request::new(Command::SetInfo, &set)])?;
        let found = opened(from, &replies)?;
        let renamed = refusal(format!("{from} to {to}"), &replies);
        // It has happened, or not, whatever becomes of the handle.
        drop(self.close_later(found.handle));
        match renamed {
            // What somebody has open cannot be replaced, which servers call a lack of permission.
            Err(error) if error.problem == Problem::Refused && replace && self.is_in_use(to) => {
                Err(FsError::new(Problem::Locked, error.detail))
            }
            other => other,
        }
    }

    fn is_in_use(&mut self, path: &str) -> bool {
        let Ok(name) = self.name(path) else { return false };
        let open = Opening::ALONE.request(&name);
        let replies = self.wire.chain(&[Request::new(Command::Create, &open), CLOSE]);
        let first = replies.ok().and_then(|replies| replies.first().map(|reply| reply.status));
        first == Some(NtStatus::SHARING_VIOLATION)
    }

    /// Deletes a file or a link itself.
    pub(super) fn delete(&mut self, path: &str) -> Result<(), FsError> {
        let open = Opening::RENAME.request(&self.name(path)?);
        let set = set_info(DISPOSITION, vec![1], FileId::SENTINEL);
        let replies = self.wire.chain(&[
            Request::new(Command::Create, &open),
            Request::new(Command::SetInfo, &set),
            CLOSE,
        ])?;
        refusal(path, &replies)
    }

    /// Makes one folder.
    pub(super) fn make_folder(&mut self, path: &str) -> Result<(), FsError> {
        let open = Opening::MAKE_FOLDER.request(&self.name(path)?);
        let replies = self.wire.chain(&[Request::new(Command::Create, &open), CLOSE])?;
        refusal(path, &replies)
    }

    /// Offers all entries of a folder.
    pub(super) fn list(&mut self, folder: &str, entries: &mut Smallest<'_, Stat>) -> Result<(), FsError> {
        let found = self.open(folder, &Opening::LIST)?;
        let listed = self.read_entries(folder, found.handle, entries);
        self.close_later(found.handle)?;
        listed
    }

    fn read_entries(
        &mut self,
        folder: &str,
        handle: FileId,
        entries: &mut Smallest<'_, Stat>,
    ) -> Result<(), FsError> {
        loop {
            let length = self.wire.fundable(LISTING.min(self.max_transact));
            let request = QueryDirectoryRequest {
                file_information_class: FileInformationClass::FileIdFullDirectoryInformation,
                flags: QueryDirectoryFlags(0),
                file_index: 0,
                file_id: handle,
                output_buffer_length: u32::try_from(length).unwrap_or(u32::MAX),
                file_name: "*".to_owned(),
            };
            let asked = Request { bytes: length, ..Request::new(Command::QueryDirectory, &request) };
            let replies = self.wire.chain(&[asked])?;
            for reply in replies {
                if matches!(reply.status, NtStatus::NO_MORE_FILES | NtStatus::NO_SUCH_FILE) {
                    return Ok(());
                }
                succeeded(folder, &reply)?;
                let answer: QueryDirectoryResponse = reply.read()?;
                listing::read(&answer.output_buffer, entries)?;
                self.wire.recycle(reply);
            }
        }
    }
}

/// Closes what the requests before it in a chain have opened.
const CLOSE: Request<'static> = Request {
    command: Command::Close,
    body: &CloseRequest { flags: 0, file_id: FileId::SENTINEL },
    data: &[],
    bytes: 0,
};

fn query_info(handle: FileId, class: u8, length: u32) -> QueryInfoRequest {
    QueryInfoRequest {
        info_type: InfoType::File,
        file_info_class: class,
        output_buffer_length: length,
        additional_information: 0,
        flags: 0,
        file_id: handle,
        input_buffer: Vec::new(),
    }
}

fn set_info(class: u8, buffer: Vec<u8>, handle: FileId) -> SetInfoRequest {
    SetInfoRequest {
        info_type: InfoType::File,
        file_info_class: class,
        additional_information: 0,
        file_id: handle,
        buffer,
    }
}

/// FileRenameInformation for SMB 2.
fn rename_info(target: &str, replace: bool) -> Vec<u8> {
    let mut cursor = WriteCursor::with_capacity(24 + 2 * target.len());
    cursor.write_u8(u8::from(replace));
    cursor.write_zeros(7);
    // The root directory that the name is relative to: the share.
    cursor.write_u64_le(0);
    cursor.write_u32_le(u32::try_from(2 * target.encode_utf16().count()).unwrap_or(u32::MAX));
    cursor.write_utf16_le(target);
    // Some servers want the whole structure even for short names.
    cursor.write_zeros(24_usize.saturating_sub(cursor.position()));
    cursor.into_inner()
}

/// A number in a fixed place of an answer.
fn number(answer: &[u8], at: std::ops::Range<usize>) -> Result<u64, FsError> {
    let field = answer.get(at).ok_or_else(|| FsError::new(Problem::Protocol, "an answer is too short"))?;
    Ok(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Refusals as errors.
pub(super) fn succeeded(what: impl std::fmt::Display, reply: &Reply) -> Result<(), FsError> {
    match reply.status {
        NtStatus::SUCCESS => Ok(()),
        status => Err(from_status(what, status)),
    }
}

/// The first refusal in a chain.
fn refusal(what: impl std::fmt::Display, replies: &[Reply]) -> Result<(), FsError> {
    replies.iter().try_for_each(|reply| succeeded(&what, reply))
}

/// What the first request of a chain has opened.
fn opened(path: &str, replies: &[Reply]) -> Result<Found, FsError> {
    let first = replies.first().ok_or_else(|| FsError::new(Problem::Protocol, "no answer"))?;
    succeeded(path, first)?;
    Found::read(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_is_written_as_the_protocol_wants_it() {
        let info = rename_info("in\\é", true);
        assert_eq!(info.len(), 28);
        assert_eq!(info[..20], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0]);
        assert_eq!(rename_info("a", false)[..1], [0]);
        assert_eq!(rename_info("a", false).len(), 24);
    }
}
