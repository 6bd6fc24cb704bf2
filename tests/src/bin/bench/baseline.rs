//! What the machine itself can do: the yardsticks beside which the figures stand.

use crate::line::Sorted;
use std::{
    fs::File,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

/// Times of `fdatasync` after appending 4 KiB to a file in `folder`.
pub fn fdatasync(folder: &Path, repetitions: usize) -> Sorted {
    let mut file = File::create(folder.join("fdatasync")).expect("a file");
    let block = [7; 4096];
    Sorted::new((0..repetitions).map(|_| {
        file.write_all(&block).expect("room on the disk");
        let start = Instant::now();
        file.sync_data().expect("fdatasync");
        start.elapsed()
    }))
}

/// Commits a second of one connection that inserts a row of 1 KiB per transaction with `synchronous=FULL`.
#[derive(Debug, Clone, Copy)]
pub struct Commits {
    /// With SQLite's default rollback journal: what targets are compared with.
    pub plain: f64,
    /// With a write-ahead log.
    pub wal: f64,
}

/// Measures both.
pub fn sqlite_commits(folder: &Path, repetitions: usize) -> Commits {
    Commits { plain: commits(folder, repetitions, "DELETE"), wal: commits(folder, repetitions, "WAL") }
}

fn commits(folder: &Path, repetitions: usize, journal: &str) -> f64 {
    let database =
        rusqlite::Connection::open(folder.join(format!("baseline-{journal}.db"))).expect("a database");
    database
        .execute_batch(&format!(
            "PRAGMA journal_mode={journal}; PRAGMA synchronous=FULL;
             CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body BLOB);"
        ))
        .expect("a table");
    let mut insert = database.prepare("INSERT INTO t (body) VALUES (?1)").expect("a statement");
    let body = [7u8; 1024];
    let start = Instant::now();
    for _ in 0..repetitions {
        insert.execute([&body[..]]).expect("a commit");
    }
    repetitions as f64 / start.elapsed().as_secs_f64()
}

/// Times from the start to the end of `/bin/true`.
pub fn bin_true(repetitions: usize) -> Sorted {
    Sorted::new((0..repetitions).map(|_| {
        let start = Instant::now();
        let status = Command::new("/bin/true").stdin(Stdio::null()).status().expect("/bin/true");
        assert!(status.success());
        start.elapsed()
    }))
}
