//! Checks a chain: each row's own hash, that it names the row before it, and that none is missing.

use super::{
    DATABASE_IN_USE, chain,
    line::{self, Head, Row},
    segments,
};
use crate::journal;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use std::{
    fs::{File, TryLockError},
    path::Path,
};

/// What a check found.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// Whether the chain holds.
    pub ok: bool,
    /// How many rows were checked.
    pub rows: u64,
    /// The first row's number; 0 if there is none.
    pub first: u64,
    /// The newest row, as `NUMBER:HASH`: kept elsewhere it proves later that nothing was cut off.
    pub head: String,
    /// When the newest row was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_at: Option<jiff::Timestamp>,
    /// The first place that does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<Broken>,
    /// What is worth knowing beside.
    pub notes: Vec<String>,
}

/// Where a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The file and the line, or the database.
    pub place: String,
    /// The number of the row, or of the one that should be there.
    pub seq: u64,
    /// What is wrong.
    pub why: String,
}

/// Follows a chain row by row.
#[derive(Debug, Default)]
pub struct Walk {
    head: Option<Head>,
    first: Option<(Head, Row)>,
    newest: Option<jiff::Timestamp>,
    rows: u64,
    /// The newest cut that the chain tells of: through which row, with which hash.
    cut: Option<(u64, String)>,
    expected: Vec<Head>,
    met: Vec<Head>,
    broken: Option<Broken>,
}

impl Walk {
    /// A walk that must meet these rows.
    pub fn expecting(expected: Vec<Head>) -> Self {
        Self { expected, ..Self::default() }
    }

    /// Takes the next line; `false` once something is wrong.
    pub fn step(&mut self, line: &str, place: impl FnOnce() -> String) -> bool {
        if let Err((seq, why)) = self.try_step(line) {
            self.broken = Some(Broken { place: place(), seq, why });
        }
        self.broken.is_none()
    }

    fn try_step(&mut self, line: &str) -> Result<(), (u64, String)> {
        let due = self.head.map_or(1, |head| head.seq + 1);
        let (row, head) = line::read(line).map_err(|why| (due, why))?;
        match self.head {
            Some(before) if head.seq <= before.seq => {
                return Err((head.seq, format!("its number does not follow {}", before.seq)));
            }
            Some(before) if *row.prev.bytes() != before.hash => {
                return Err((
                    head.seq,
                    format!("it does not follow row {}: a row was removed, put in or changed", before.seq),
                ));
            }
            Some(before) => {
                let skipped = head.seq - before.seq - 1;
                if skipped > 0 && !(row.kind == "rows_missing" && row.count == Some(skipped)) {
                    return Err((head.seq, format!("{skipped} numbers before it are missing")));
                }
            }
            None => self.first = Some((head, row.clone())),
        }
        if row.kind == "cut"
            && let (Some(through), Some(detail)) = (row.count, &row.detail)
        {
            self.cut = detail.rsplit(' ').next().map(|hash| (through, hash.to_owned()));
        }
        if self.expected.contains(&head) {
            self.met.push(head);
        }
        self.head = Some(head);
        self.newest = Some(row.at);
        self.rows += 1;
        Ok(())
    }

    /// The newest row so far.
    pub fn head(&self) -> Head {
        self.head.unwrap_or(Head::START)
    }

    fn end(mut self, seen: Option<Head>, notes: Vec<String>) -> Verdict {
        let head = self.head();
        if self.broken.is_none() {
            self.broken = self.beginning().or_else(|| self.end_of_chain(head, seen)).or_else(|| {
                let missed = self.expected.iter().find(|expected| !self.met.contains(expected))?;
                let why =
                    "the chain does not hold the row that --expect names: it was cut off, or is another one";
                Some(Broken { place: "the whole".to_owned(), seq: missed.seq, why: why.to_owned() })
            });
        }
        Verdict {
            ok: self.broken.is_none(),
            rows: self.rows,
            first: self.first.as_ref().map_or(0, |(head, _)| head.seq),
            head: head.to_string(),
            head_at: self.newest,
            broken: self.broken,
            notes,
        }
    }

    /// What is before the first row must have been cut by the quota, and a later row says so.
    fn beginning(&self) -> Option<Broken> {
        let (first, row) = self.first.as_ref()?;
        let prev = row.prev.to_string();
        let whole = first.seq == 1 && *row.prev.bytes() == line::GENESIS;
        let told = self.cut.as_ref().is_some_and(|(through, hash)| through + 1 == first.seq && *hash == prev);
        if whole || told {
            return None;
        }
        let why = "rows before it are missing, and no row tells of a cut";
        Some(Broken { place: "the beginning".to_owned(), seq: first.seq, why: why.to_owned() })
    }

    fn end_of_chain(&self, head: Head, seen: Option<Head>) -> Option<Broken> {
        let seen = seen.filter(|seen| seen.seq > head.seq)?;
        let why = format!("the chain ends before it: rows up to {} had been written", seen.seq);
        Some(Broken { place: "the end".to_owned(), seq: head.seq + 1, why })
    }
}

/// Checks the chain in a state folder. Rows that a running agent has not filed yet are left out, which a note says.
///
/// # Errors
/// If it cannot be read.
pub fn state_folder(state: &Path, expected: Vec<Head>) -> Result<Verdict, String> {
    let unreadable =
        |path: &Path, e: &dyn std::fmt::Display| format!("{} cannot be read: {e}", path.display());
    // Before the files: a row seen then is in them by now.
    let seen = segments::seen(state);
    let dir = state.join(segments::DIR);
    let mut walk = Walk::expecting(expected);
    let mut notes = Vec::new();
    let files = segments::list(&dir).map_err(|e| unreadable(&dir, &e))?;
    if seen.is_none() && !files.is_empty() {
        notes.push(
            "audit/head is missing or unreadable: rows cut off the end would not show; compare with a copy or the head of an \
             earlier verify"
                .to_owned(),
        );
    }
    'files: for (index, segment) in files.iter().enumerate() {
        let mut number = 0;
        let mut going = true;
        let newest = index + 1 == files.len();
        segments::each_line(&segment.path, |line, whole| {
            number += 1;
            // The end of the newest file may just be written, or be what a crash left of a line.
            if !whole && newest {
                return false;
            }
            going = walk.step(line, || format!("{}:{number}", segment.path.display()));
            going
        })
        .map_err(|e| unreadable(&segment.path, &e))?;
        if !going {
            break 'files;
        }
    }
    if walk.broken.is_none() {
        match database(state) {
            Ok(Some(rows)) => {
                for (seq, line) in rows {
                    if seq <= walk.head().seq {
                        // In a file as well, and the same.
                        let same =
                            seq < walk.head().seq || line::read(&line).is_ok_and(|(_, h)| h == walk.head());
                        if same {
                            continue;
                        }
                        let place = state.join(journal::FILE).display().to_string();
                        let why = "it is another one in the journal than in the files".to_owned();
                        walk.broken = Some(Broken { place, seq, why });
                        break;
                    }
                    if !walk.step(&line, || format!("{}: row {seq}", state.join(journal::FILE).display())) {
                        break;
                    }
                }
            }
            Ok(None) => notes.push("there is no journal; only the files were checked".to_owned()),
            Err(why) if why == DATABASE_IN_USE => {
                notes.push("the agent is running: rows of the last moments are in the files soon".to_owned());
            }
            Err(why) => return Err(why),
        }
    }
    Ok(walk.end(seen, notes))
}

/// Checks lines that were exported.
///
/// # Errors
/// If the file cannot be read.
pub fn exported(path: &Path, expected: Vec<Head>) -> Result<Verdict, String> {
    let mut walk = Walk::expecting(expected);
    let (mut number, mut seen) = (0, None::<String>);
    segments::each_line(path, |line, _| {
        number += 1;
        // What was sent twice: exports are at-least-once.
        if seen.as_deref() == Some(line) {
            return true;
        }
        seen = Some(line.to_owned());
        match line::read(line) {
            Ok((_, head)) if walk.head.is_some_and(|before| head.seq <= before.seq) => true,
            Ok(_) | Err(_) => walk.step(line, || format!("{}:{number}", path.display())),
        }
    })
    .map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
    let mut notes = Vec::new();
    if let Some((first, _)) = &walk.first
        && first.seq > 1
    {
        notes.push(format!("the file begins with row {}", first.seq));
        // A part of a chain is as good as its rows.
        walk.cut = walk.first.as_ref().map(|(head, row)| (head.seq - 1, row.prev.to_string()));
    }
    Ok(walk.end(None, notes))
}

/// The rows that the journal holds; `None` if there is no journal.
///
/// # Errors
/// [`DATABASE_IN_USE`], or why it cannot be read.
pub fn database(state: &Path) -> Result<Option<Vec<(u64, String)>>, String> {
    let path = state.join(journal::FILE);
    if !path.exists() {
        return Ok(None);
    }
    let failed = |e: &dyn std::fmt::Display| format!("{} cannot be read: {e}", path.display());
    let lock = state.join("lock");
    let _held = match File::open(&lock) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Some(file),
            Err(TryLockError::WouldBlock) => return Err(DATABASE_IN_USE.to_owned()),
            Err(TryLockError::Error(e)) => return Err(failed(&e)),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(failed(&e)),
    };
    // For writing, since what a killed agent left has to be taken in before it can be read.
    let connection =
        Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(|e| failed(&e))?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(|e| failed(&e))?;
    let has_chain: bool = connection
        .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'audit'", [], |row| row.get(0))
        .map_err(|e| failed(&e))?;
    if !has_chain {
        return Ok(Some(Vec::new()));
    }
    chain::after(&connection, 0, usize::MAX).map(Some).map_err(|e| failed(&e))
}
