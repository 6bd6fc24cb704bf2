//! A copy as a file of JSON lines.

use super::{Target, named};
use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

/// Appends to a file, which is opened anew each time: whoever rotates it need not tell the agent.
pub struct FileTarget {
    path: PathBuf,
}

impl FileTarget {
    /// The file at `path`; it is made if need be.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Target for FileTarget {
    fn send(&mut self, rows: &[(u64, String)]) -> io::Result<()> {
        let failed = |e: io::Error| named(&self.path, &e);
        let mut file =
            OpenOptions::new().create(true).append(true).mode(0o640).open(&self.path).map_err(failed)?;
        let before = file.metadata().map_err(failed)?.len();
        let mut text = String::with_capacity(rows.iter().map(|(_, row)| row.len() + 1).sum());
        for (_, row) in rows {
            text.push_str(row);
            text.push('\n');
        }
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // A full disk: no half line stays, and the rows come again.
            file.set_len(before).map_err(failed)?;
            return Err(failed(error));
        }
        Ok(())
    }

    fn confirmed(&mut self, sent: u64) -> io::Result<u64> {
        Ok(sent)
    }
}
