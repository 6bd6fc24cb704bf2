//! The chain's files: `audit/NNNNNNNNNNNN.jsonl` in the state folder, named by the number of their first row.
//!
//! Rows are appended to the newest file a moment after their commit and synced a little later; only then does the journal
//! forget them. A file that is large enough is closed for good and the next one begun, whose first row names the hash
//! of the last one before it. `head` beside them is the newest row ever filed.

use super::line::{self, Head};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// The folder in the state folder.
pub const DIR: &str = "audit";
/// The file that names the newest row.
const HEAD: &str = "head";
/// The smallest and the largest file.
const SIZES: (u64, u64) = (64 << 10, 64 << 20);
/// A longer line is none of ours: what is bounded in a row, escaped at its worst.
pub const MAX_LINE: usize = 16 * 1024;

/// One of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The number of its first row.
    pub first: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

/// The files there are, oldest first.
///
/// # Errors
/// If the folder cannot be read; one that is not there has none.
pub fn list(dir: &Path) -> io::Result<Vec<Segment>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let first = name.to_str().and_then(|name| name.strip_suffix(".jsonl")).and_then(|n| n.parse().ok());
        if let Some(first) = first {
            found.push(Segment { first, path: entry.path(), size: entry.metadata()?.len() });
        }
    }
    found.sort_by_key(|segment| segment.first);
    Ok(found)
}

/// What the files say of the chain, at the start. What cannot be read says nothing.
pub fn known(state: &Path) -> super::chain::Known {
    let dir = state.join(DIR);
    let newest = list(&dir).unwrap_or_default();
    let filed = newest.iter().rev().find_map(|segment| last(&segment.path).ok().flatten());
    super::chain::Known { filed, seen: seen(state).map(|head| head.seq) }
}

/// The newest row that was ever filed.
pub fn seen(state: &Path) -> Option<Head> {
    fs::read_to_string(state.join(DIR).join(HEAD)).ok()?.parse().ok()
}

/// The last whole row of a file.
fn last(path: &Path) -> io::Result<Option<Head>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(2 * MAX_LINE as u64)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|b| *b == b'\n').and_then(|end| tail.get(..end)).unwrap_or_default();
    let newest = whole.rsplit(|b| *b == b'\n').next().and_then(|line| std::str::from_utf8(line).ok());
    Ok(newest.and_then(|text| line::read(text).ok()).map(|(_, head)| head))
}

/// The files, open for the next row.
#[derive(Debug)]
pub struct Segments {
    dir: PathBuf,
    file: Option<(File, u64)>,
    /// The newest row that is in a file.
    pub filed: Head,
}

impl Segments {
    /// Opens the folder, makes it if need be, and takes off what a crash left of a line.
    ///
    /// # Errors
    /// If the folder cannot be read or written.
    pub fn open(state: &Path) -> io::Result<Self> {
        let dir = state.join(DIR);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut filed = Head::START;
        let mut file = None;
        if let Some(newest) = list(&dir)?.pop() {
            let open = OpenOptions::new().append(true).read(true).open(&newest.path)?;
            let whole = whole_lines(&newest.path)?;
            if whole < newest.size {
                open.set_len(whole)?;
            }
            filed = last(&newest.path)?.unwrap_or(Head { seq: newest.first.saturating_sub(1), ..filed });
            file = Some((open, whole));
        }
        Ok(Self { dir, file, filed })
    }

    /// Appends rows, those that are there already left out. A file past `size` is closed first.
    ///
    /// # Errors
    /// If it cannot be written: then what was written of the last line is taken off again, as far as that goes.
    pub fn append(&mut self, rows: &[(u64, String)], size: u64) -> io::Result<()> {
        let filed = self.filed.seq;
        for (seq, row) in rows.iter().filter(|(seq, _)| *seq > filed).map(|(s, r)| (*s, r)) {
            if self.file.as_ref().is_none_or(|(_, used)| *used >= size) {
                self.sync()?;
                self.file = Some((self.begin(seq)?, 0));
            }
            let Some((file, used)) = &mut self.file else { continue };
            let line = format!("{row}\n");
            if let Err(error) = file.write_all(line.as_bytes()) {
                file.set_len(*used)?;
                return Err(error);
            }
            *used += line.len() as u64;
            let (_, head) = line::read(row).map_err(io::Error::other)?;
            self.filed = head;
        }
        Ok(())
    }

    fn begin(&self, seq: u64) -> io::Result<File> {
        let path = self.dir.join(format!("{seq:012}.jsonl"));
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(file)
    }

    /// Has the disk take what was appended.
    ///
    /// # Errors
    /// If it does not.
    pub fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |(file, _)| file.sync_data())
    }

    /// Writes down the newest row. Not synced: after a power cut an older one does no harm.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note_head(&self) -> io::Result<()> {
        let temporary = self.dir.join(".head.tmp");
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{}", self.filed)?;
        fs::rename(temporary, self.dir.join(HEAD))
    }
}

/// How large a file may become, by what all of them may take.
pub fn size(quota: u64) -> u64 {
    (quota / 8).clamp(SIZES.0, SIZES.1)
}

/// The length of a file without a line that was cut off.
fn whole_lines(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let from = size.saturating_sub(2 * MAX_LINE as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(tail.iter().rposition(|b| *b == b'\n').map_or(from, |at| from + at as u64 + 1))
}

/// Reads a file line by line; stops calling when told so. A line that has no end yet is given with `false`.
///
/// # Errors
/// If the file cannot be read.
pub fn each_line(path: &Path, mut take: impl FnMut(&str, bool) -> bool) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(128 * 1024, File::open(path)?);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        let whole = bytes.strip_suffix(b"\n");
        let text = String::from_utf8_lossy(whole.unwrap_or(&bytes));
        if !take(&text, whole.is_some()) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Entry, Kind};

    fn rows(from: Head, count: u64) -> Vec<(u64, String)> {
        let mut head = from;
        let mut rows = Vec::new();
        for _ in 0..count {
            let (line, next) = line::write(&Entry::new(Kind::Started), head, head.seq + 1).unwrap();
            head = next;
            rows.push((head.seq, line));
        }
        rows
    }

    #[test]
    fn files_are_closed_when_they_are_large_and_go_on_after_a_crash_in_a_line() {
        let state = tempfile::tempdir().unwrap();
        let rows = rows(Head::START, 40);
        let mut segments = Segments::open(state.path()).unwrap();
        segments.append(&rows[..20], 1000).unwrap();
        segments.note_head().unwrap();
        let files = list(&segments.dir).unwrap();
        assert!(files.len() > 3, "{files:?}");
        // A crash in the middle of a line.
        let newest = files.last().unwrap().path.clone();
        drop(segments);
        let mut text = fs::read_to_string(&newest).unwrap();
        text.push_str("{\"seq\":21,\"at\":");
        fs::write(&newest, text).unwrap();
        assert_eq!(known(state.path()).filed.unwrap().seq, 20);
        let mut segments = Segments::open(state.path()).unwrap();
        assert_eq!((segments.filed.seq, seen(state.path()).unwrap()), (20, segments.filed));
        // The journal may still have rows that are here.
        segments.append(&rows[15..], 1000).unwrap();
        let mut lines = Vec::new();
        for segment in list(&segments.dir).unwrap() {
            each_line(&segment.path, |line, whole| {
                assert!(whole);
                lines.push(line.to_owned());
                true
            })
            .unwrap();
        }
        assert_eq!(lines, rows.into_iter().map(|(_, line)| line).collect::<Vec<_>>());
    }
}
