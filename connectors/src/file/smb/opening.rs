//! How files and folders are opened, and what the server says of what it has opened.

use super::wire::Reply;
use crate::file::backend::{EntryKind, FsError, Stat};
use jiff::Timestamp;
use smb2::{
    msg::{
        create::{CreateDisposition, CreateRequest, CreateResponse, ImpersonationLevel, ShareAccess},
        create_context::{NAME_QFID, OnDiskId, find, pack_contexts, parse_contexts},
    },
    pack::FileTime,
    types::{
        FileId, OplockLevel,
        flags::{FileAccessMask, FileAttributes},
    },
};

const DIRECTORY_FILE: u32 = 0x0000_0001;
const NON_DIRECTORY_FILE: u32 = 0x0000_0040;
const OPEN_REPARSE_POINT: u32 = 0x0020_0000;
const SHARE_ALL: u32 =
    ShareAccess::FILE_SHARE_READ | ShareAccess::FILE_SHARE_WRITE | ShareAccess::FILE_SHARE_DELETE;

/// The bit of a reparse tag that says that it stands for another name.
const NAME_SURROGATE: u32 = 0x2000_0000;
/// A link, pipe or device that an NFS server has put on the share.
const TAG_NFS: u32 = 0x8000_0014;
/// Ticks of 100 ns from 1601 to 1970.
const EPOCH: i128 = 116_444_736_000_000_000;

/// How something is opened.
pub(super) struct Opening {
    access: u32,
    share: u32,
    disposition: CreateDisposition,
    options: u32,
}

impl Opening {
    const fn existing(access: u32, options: u32) -> Self {
        Self {
            access: access | FileAccessMask::FILE_READ_ATTRIBUTES | FileAccessMask::SYNCHRONIZE,
            share: SHARE_ALL,
            disposition: CreateDisposition::FileOpen,
            options,
        }
    }

    pub(super) const LOOK: Self = Self::existing(0, OPEN_REPARSE_POINT);
    pub(super) const LOOK_AT_FOLDER: Self = Self::existing(0, OPEN_REPARSE_POINT | DIRECTORY_FILE);
    pub(super) const LIST: Self =
        Self::existing(FileAccessMask::FILE_READ_DATA, OPEN_REPARSE_POINT | DIRECTORY_FILE);
    pub(super) const RENAME: Self =
        Self::existing(FileAccessMask::DELETE, OPEN_REPARSE_POINT | NON_DIRECTORY_FILE);
    /// Adding files is what a folder must be opened for to be flushed.
    pub(super) const FLUSH_FOLDER: Self = Self::existing(FileAccessMask::FILE_WRITE_DATA, DIRECTORY_FILE);
    /// What storage filters keep elsewhere is read through them.
    pub(super) const READ: Self = Self::existing(FileAccessMask::FILE_READ_DATA, NON_DIRECTORY_FILE);
    /// A link is opened itself, so that it can be told and left alone.
    pub(super) const READ_ITSELF: Self =
        Self::existing(FileAccessMask::FILE_READ_DATA, OPEN_REPARSE_POINT | NON_DIRECTORY_FILE);
    pub(super) const MAKE_FOLDER: Self =
        Self { disposition: CreateDisposition::FileCreate, ..Self::existing(0, DIRECTORY_FILE) };
    /// Alone with it, which fails if anybody else has it open.
    pub(super) const ALONE: Self =
        Self { share: 0, ..Self::existing(FileAccessMask::DELETE, OPEN_REPARSE_POINT | NON_DIRECTORY_FILE) };
    /// The resource's own folder is the operator's choice, wherever it leads.
    pub(super) const LOOK_AT_ROOT: Self = Self::existing(0, DIRECTORY_FILE);
    pub(super) const CREATE: Self = Self {
        share: ShareAccess::FILE_SHARE_READ | ShareAccess::FILE_SHARE_DELETE,
        disposition: CreateDisposition::FileCreate,
        ..Self::existing(
            FileAccessMask::FILE_WRITE_DATA | FileAccessMask::FILE_WRITE_ATTRIBUTES,
            NON_DIRECTORY_FILE,
        )
    };

    pub(super) fn request(&self, name: &str) -> CreateRequest {
        CreateRequest {
            requested_oplock_level: OplockLevel::None,
            impersonation_level: ImpersonationLevel::Impersonation,
            desired_access: FileAccessMask::new(self.access),
            file_attributes: 0,
            share_access: ShareAccess(self.share),
            create_disposition: self.disposition,
            create_options: self.options,
            name: name.to_owned(),
            create_contexts: pack_contexts(&[OnDiskId::request()]),
        }
    }
}

/// What was opened or looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) handle: FileId,
    pub(super) size: u64,
    pub(super) modified: Option<Timestamp>,
    pub(super) attributes: u32,
    /// Of a reparse point, what kind it is.
    pub(super) tag: Option<u32>,
    /// The file's number on its volume.
    pub(super) number: Option<u64>,
}

impl Found {
    pub(super) fn read(reply: &Reply) -> Result<Self, FsError> {
        let opened: CreateResponse = reply.read()?;
        let contexts = parse_contexts(&opened.create_contexts).unwrap_or_default();
        let number = find(&contexts, NAME_QFID).and_then(|context| OnDiskId::from_bytes(&context.data).ok());
        Ok(Self {
            handle: opened.file_id,
            size: opened.end_of_file,
            modified: time(opened.last_write_time),
            attributes: opened.file_attributes,
            tag: None,
            number: number.map(|id| id.disk_file_id).filter(|id| !matches!(*id, 0 | u64::MAX)),
        })
    }

    pub(super) fn has(&self, attribute: u32) -> bool {
        self.attributes & attribute != 0
    }

    pub(super) fn is_folder(&self) -> bool {
        self.has(FileAttributes::DIRECTORY)
    }

    pub(super) fn is_link(&self) -> bool {
        self.tag.is_some_and(|tag| tag & NAME_SURROGATE != 0)
    }

    pub(super) fn stat(&self) -> Stat {
        Stat {
            kind: kind(self.attributes, self.tag),
            size: if self.is_folder() { 0 } else { self.size },
            modified: self.modified,
            inode: self.number.map(|number| (0, number)),
        }
    }
}

/// What attributes and reparse tag make of something.
pub(super) fn kind(attributes: u32, tag: Option<u32>) -> EntryKind {
    match tag {
        Some(tag) if tag & NAME_SURROGATE != 0 => EntryKind::Symlink,
        Some(TAG_NFS) => EntryKind::Other,
        _ if attributes & FileAttributes::DIRECTORY != 0 => EntryKind::Directory,
        _ => EntryKind::File,
    }
}

/// A time of the protocol; 0 and what is before 1970 are none.
pub(super) fn time(time: FileTime) -> Option<Timestamp> {
    let ticks = i128::from(time.0) - EPOCH;
    if ticks < 0 { None } else { Timestamp::from_nanosecond(ticks * 100).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_told_from_files_kept_elsewhere() {
        for (attributes, tag, expected) in [
            (0x20, None, EntryKind::File),
            (0x10, None, EntryKind::Directory),
            (0x410, Some(0xA000_0003), EntryKind::Symlink),
            (0x400, Some(0xA000_000C), EntryKind::Symlink),
            (0x400, Some(0xA000_001D), EntryKind::Symlink),
            (0x420, Some(0x8000_0013), EntryKind::File),
            (0x410, Some(0x9000_101A), EntryKind::Directory),
            (0x400, Some(0x8000_0014), EntryKind::Other),
        ] {
            assert_eq!(kind(attributes, tag), expected, "{attributes:#x} {tag:x?}");
        }
    }

    #[test]
    fn times_are_read() {
        let at = |ticks| time(FileTime(ticks)).map(|time| time.to_string());
        assert_eq!(at(0), None);
        assert_eq!(at(116_444_736_000_000_000).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(at(134_000_000_001_234_567).unwrap(), "2025-08-18T14:13:20.1234567Z");
        assert_eq!(at(u64::MAX), None);
    }
}
