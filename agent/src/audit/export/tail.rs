//! Reads the chain's files from a row on, as they grow.

use crate::audit::segments::{self, MAX_LINE};
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

/// A place in the files.
#[derive(Debug)]
pub struct Tail {
    dir: PathBuf,
    /// The last row that was given.
    after: u64,
    /// In which file, and from which byte on, the next one is.
    at: Option<(PathBuf, u64)>,
}

impl Tail {
    /// From the row after this one on.
    pub fn new(state: &Path, after: u64) -> Self {
        Self { dir: state.join(segments::DIR), after, at: None }
    }

    /// Goes back to the row after this one.
    pub fn rewind(&mut self, after: u64) {
        (self.after, self.at) = (after, None);
    }

    /// The next rows, at most `limit`; none if there is nothing new.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub fn next(&mut self, limit: usize) -> io::Result<Vec<(u64, String)>> {
        let mut rows = Vec::new();
        if let Some((path, from)) = self.at.take() {
            if path.exists() {
                let end = self.read(&path, from, limit, &mut rows)?;
                self.at = Some((path, end));
            }
            if !rows.is_empty() {
                return Ok(rows);
            }
        }
        let files = segments::list(&self.dir)?;
        // The file with the next row is the last that begins with it or before it; else the oldest there is.
        let start = files.iter().rposition(|file| file.first <= self.after + 1).unwrap_or(0);
        for file in files.get(start..).unwrap_or_default() {
            if self.at.as_ref().is_some_and(|(path, _)| *path == file.path) {
                continue;
            }
            let end = self.read(&file.path, 0, limit, &mut rows)?;
            self.at = Some((file.path.clone(), end));
            if !rows.is_empty() {
                break;
            }
        }
        Ok(rows)
    }

    fn read(
        &mut self,
        path: &Path,
        from: u64,
        limit: usize,
        rows: &mut Vec<(u64, String)>,
    ) -> io::Result<u64> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        let (mut end, mut bytes) = (from, Vec::new());
        while rows.len() < limit {
            bytes.clear();
            let read = reader.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut bytes)?;
            let Some(line) = bytes.strip_suffix(b"\n") else { break };
            end += read as u64;
            let Some(seq) = number(line) else { continue };
            if seq > self.after {
                self.after = seq;
                rows.push((seq, String::from_utf8_lossy(line).into_owned()));
            }
        }
        Ok(end)
    }
}

/// The number with which a row begins.
fn number(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"{\"seq\":")?.split(|b| *b == b',').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn rows_are_given_once_and_in_order_over_files_that_grow_and_go() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join(segments::DIR);
        fs::create_dir(&dir).unwrap();
        let file = |first: u64, rows: std::ops::RangeInclusive<u64>, end: &str| {
            let text: String = rows.map(|seq| format!("{{\"seq\":{seq},\"x\":1}}\n")).collect();
            fs::write(dir.join(format!("{first:012}.jsonl")), text + end).unwrap();
        };
        let numbers = |tail: &mut Tail, limit| -> Vec<u64> {
            tail.next(limit).unwrap().into_iter().map(|(seq, _)| seq).collect()
        };
        let mut tail = Tail::new(state.path(), 2);
        assert_eq!(numbers(&mut tail, 5), [0; 0]);
        file(1, 1..=4, "");
        file(5, 5..=6, "{\"seq\":7");
        assert_eq!(numbers(&mut tail, 5), [3, 4]);
        assert_eq!(numbers(&mut tail, 1), [5]);
        assert_eq!(numbers(&mut tail, 5), [6]);
        assert_eq!(numbers(&mut tail, 5), [0; 0]);
        file(5, 5..=8, "");
        file(9, 9..=9, "");
        assert_eq!((numbers(&mut tail, 5), numbers(&mut tail, 5)), (vec![7, 8], vec![9]));
        tail.rewind(3);
        assert_eq!(numbers(&mut tail, 1), [4]);
        // The oldest files went before they were copied.
        fs::remove_file(dir.join("000000000001.jsonl")).unwrap();
        tail.rewind(1);
        assert_eq!(numbers(&mut tail, 2), [5, 6]);
    }
}
