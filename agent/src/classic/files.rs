//! The two files that are written at the moment, and those that have become too old or too many.

use super::{Level, Line};
use jiff::{Zoned, tz::TimeZone};
use passerelle_config::ClassicLog;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Readable by the owner's group, which is often the one that looks at logs; by nobody else, since logs name hosts.
const MODE: u32 = 0o640;

/// The folder of the classic log.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    keep: Duration,
    quota: u64,
    zone: TimeZone,
    pid: u32,
    errors: Current,
    everything: Current,
    /// Lines that could not be written since the last one that could.
    missing: u64,
}

/// The file that is written at the moment.
#[derive(Debug, Default)]
struct Current {
    name: String,
    file: Option<File>,
}

impl Files {
    /// Makes the folder, and tries whether files can be made in it.
    pub fn open(settings: &ClassicLog) -> io::Result<Self> {
        fs::create_dir_all(&settings.dir)?;
        let mut files = Self {
            dir: settings.dir.clone(),
            keep: settings.keep.0,
            quota: settings.quota.0,
            zone: TimeZone::system(),
            pid: std::process::id(),
            errors: Current::default(),
            everything: Current::default(),
            missing: 0,
        };
        let now = crate::clock::now().to_zoned(files.zone.clone());
        files.everything.turn(&files.dir, everything_name(&now))?;
        Ok(files)
    }

    /// Writes a line into the files where it belongs.
    pub fn write(&mut self, line: &Line) {
        let at = line.at.to_zoned(self.zone.clone());
        if self.missing > 0 {
            let message = format!("{} lines are missing here: they could not be written", self.missing);
            let told = text(&at, Level::Warning, self.pid, "log", &message);
            if self.put(&at, Level::Warning, &told).is_err() {
                self.missing += 1;
                return;
            }
            self.missing = 0;
        }
        let text = text(&at, line.level, self.pid, line.zone, &line.message);
        if let Err(error) = self.put(&at, line.level, &text) {
            if self.missing == 0 {
                // The log itself cannot be used to tell of it: this very thread writes it.
                let dir = self.dir.display();
                let _nobody_reads =
                    writeln!(io::stderr(), "the classic log files in {dir} cannot be written: {error}");
            }
            self.missing += 1;
        }
    }

    fn put(&mut self, at: &Zoned, level: Level, text: &str) -> io::Result<()> {
        self.everything.append(&self.dir, everything_name(at), text)?;
        if level == Level::Info { Ok(()) } else { self.errors.append(&self.dir, errors_name(at), text) }
    }

    /// Removes files that are older than they are to be kept, and the oldest ones past the quota.
    pub fn tend(&mut self) {
        // Removed from outside, a file would be written on unseen.
        for current in [&mut self.errors, &mut self.everything] {
            if !self.dir.join(&current.name).exists() {
                current.file = None;
            }
        }
        let mut files: Vec<(SystemTime, u64, String)> = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let (name, meta) = (entry.file_name().into_string().ok()?, entry.metadata().ok()?);
                (meta.is_file() && is_ours(&name)).then_some((meta.modified().ok()?, meta.len(), name))
            })
            .collect();
        files.sort();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        let oldest = SystemTime::now().checked_sub(self.keep).unwrap_or(SystemTime::UNIX_EPOCH);
        for (changed, size, name) in files {
            let current = name == self.errors.name || name == self.everything.name;
            if !current
                && (changed < oldest || total > self.quota)
                && fs::remove_file(self.dir.join(&name)).is_ok()
            {
                total = total.saturating_sub(size);
            }
        }
        // One hour may be more than all of the quota: what is written now is begun anew.
        if total > self.quota {
            for current in [&mut self.everything, &mut self.errors] {
                if let Some(file) = &current.file {
                    drop(file.set_len(0));
                }
            }
        }
    }
}

impl Current {
    fn append(&mut self, dir: &Path, name: String, text: &str) -> io::Result<()> {
        self.turn(dir, name)?;
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = file.write_all(text.as_bytes());
        if written.is_err() {
            // Perhaps the folder was mounted anew: the next line opens it again.
            self.file = None;
        }
        written
    }

    fn turn(&mut self, dir: &Path, name: String) -> io::Result<()> {
        if self.file.is_none() || self.name != name {
            self.file = None;
            let file = OpenOptions::new().create(true).append(true).mode(MODE).open(dir.join(&name))?;
            (self.name, self.file) = (name, Some(file));
        }
        Ok(())
    }
}

fn errors_name(at: &Zoned) -> String {
    format!("err_{}.log", at.strftime("%Y%m%d"))
}

fn everything_name(at: &Zoned) -> String {
    format!("infos_{}.log", at.strftime("%Y%m%d-%H"))
}

/// Whether a file of the folder is one of the classic log's: nothing else is ever removed.
fn is_ours(name: &str) -> bool {
    let digits = |text: &str, form: &str| {
        text.len() == form.len()
            && text.bytes().zip(form.bytes()).all(|(found, wanted)| match wanted {
                b'0' => found.is_ascii_digit(),
                other => found == other,
            })
    };
    digits(name, "err_00000000.log") || digits(name, "infos_00000000-00.log")
}

fn text(at: &Zoned, level: Level, pid: u32, zone: &str, message: &str) -> String {
    format!("{}|{}|pid:{pid}|{zone}|{message}|\n", at.strftime("%Y-%m-%d %H:%M:%S"), level.as_str())
}
