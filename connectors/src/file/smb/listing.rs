//! The entries of a folder as servers send them.

use super::opening::{kind, time};
use crate::file::backend::{EntryKind, FsError, Problem, Smallest, Stat};
use smb2::{
    pack::{FileTime, ReadCursor},
    types::flags::FileAttributes,
};

/// Offers what one answer holds: a chain of FileIdFullDirectoryInformation.
pub(super) fn read(mut answer: &[u8], entries: &mut Smallest<'_, Stat>) -> Result<(), FsError> {
    while !answer.is_empty() {
        let (next, name, stat) = entry(answer).map_err(|error| FsError::new(Problem::Protocol, error))?;
        match name {
            Some(name) => entries.offer(name.as_bytes(), stat),
            // Counted as one that cannot be shown.
            None => entries.offer(&[0xFF], stat),
        }
        answer = match next {
            0 => &[],
            _ => answer.get(next..).ok_or_else(|| FsError::new(Problem::Protocol, "a listing is cut off"))?,
        };
    }
    Ok(())
}

/// One entry, and where the next one begins. No name is one that is no text, or leads elsewhere.
fn entry(bytes: &[u8]) -> smb2::Result<(usize, Option<String>, Stat)> {
    let mut cursor = ReadCursor::new(bytes);
    let next = cursor.read_u32_le()? as usize;
    // An index and two times.
    cursor.skip(4 + 16)?;
    let written = FileTime(cursor.read_u64_le()?);
    cursor.skip(8)?;
    let size = cursor.read_u64_le()?;
    cursor.skip(8)?;
    let attributes = cursor.read_u32_le()?;
    let length = cursor.read_u32_le()? as usize;
    // Of a reparse point its tag.
    let extra = cursor.read_u32_le()?;
    cursor.skip(4)?;
    let number = cursor.read_u64_le()?;
    let name = cursor.read_bytes(length)?;
    let units: Vec<u16> = name.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    let name =
        String::from_utf16(&units).ok().filter(|name| !name.is_empty() && !name.contains(['/', '\\', '\0']));
    let tag = (attributes & FileAttributes::REPARSE_POINT != 0).then_some(extra);
    let kind = kind(attributes, tag);
    let stat = Stat {
        kind,
        size: if kind == EntryKind::Directory { 0 } else { size },
        modified: time(written),
        inode: Some((0, number)).filter(|(_, number)| !matches!(*number, 0 | u64::MAX)),
    };
    Ok((next, name, stat))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(next: u32, name: &[u16], attributes: u32, tag: u32) -> Vec<u8> {
        let mut entry = Vec::new();
        entry.extend_from_slice(&next.to_le_bytes());
        entry.extend_from_slice(&[0; 20]);
        entry.extend_from_slice(&116_444_736_000_000_000_u64.to_le_bytes());
        entry.extend_from_slice(&[0; 8]);
        entry.extend_from_slice(&7_u64.to_le_bytes());
        entry.extend_from_slice(&[0; 8]);
        entry.extend_from_slice(&attributes.to_le_bytes());
        entry.extend_from_slice(&u32::try_from(name.len() * 2).unwrap().to_le_bytes());
        entry.extend_from_slice(&tag.to_le_bytes());
        entry.extend_from_slice(&[0; 4]);
        entry.extend_from_slice(&42_u64.to_le_bytes());
        entry.extend(name.iter().flat_map(|unit| unit.to_le_bytes()));
        entry.resize(entry.len().max(next as usize), 0);
        entry
    }

    fn units(name: &str) -> Vec<u16> {
        name.encode_utf16().collect()
    }

    #[test]
    fn entries_are_read_and_what_cannot_be_shown_is_counted() {
        let mut answer = packed(96, &units("b.csv"), 0x20, 0);
        answer.extend(packed(96, &units("link"), 0x400, 0xA000_000C));
        answer.extend(packed(96, &[0xD800], 0x20, 0));
        answer.extend(packed(96, &units("../x"), 0x20, 0));
        answer.extend(packed(96, &units(".."), 0x10, 0));
        answer.extend(packed(0, &units("é"), 0x10, 0));
        let mut entries = Smallest::new(None, 10);
        read(&answer, &mut entries).unwrap();
        let (kept, more, unreadable) = entries.finish();
        let shown: Vec<_> = kept.iter().map(|(name, stat)| (name.as_str(), stat.kind, stat.size)).collect();
        assert_eq!(
            shown,
            [("b.csv", EntryKind::File, 7), ("link", EntryKind::Symlink, 7), ("é", EntryKind::Directory, 0)]
        );
        assert_eq!((more, unreadable), (false, 2));
    }

    #[test]
    fn a_listing_that_lies_is_refused() {
        let mut long = packed(0, &units("a"), 0x20, 0);
        if let Some(field) = long.get_mut(60..64) {
            field.copy_from_slice(&u32::MAX.to_le_bytes());
        }
        for answer in [long, packed(0, &units("a"), 0x20, 0)[..70].to_vec(), {
            let mut far = packed(0, &units("a"), 0x20, 0);
            far[..4].copy_from_slice(&5000_u32.to_le_bytes());
            far
        }] {
            let error = read(&answer, &mut Smallest::new(None, 10)).unwrap_err();
            assert_eq!(error.problem, Problem::Protocol);
        }
    }
}
