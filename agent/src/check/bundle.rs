//! The support bundle: one archive with what somebody needs who helps from afar, and nothing secret.
//!
//! Secrets cannot get in: the configuration is taken as it is written, where they stand by reference only, and without
//! its comments; files that it names (keys, tokens, certificates) are not read. Job parameters and payloads are not
//! taken from the journal, only counts. Hosts, paths and names of resources are in it: an archive is for people whom
//! the operator trusts. Each part and the whole are bounded.

use super::{Report, machine, render};
use crate::{VERSION, clock, exit::Stop, local::ask::ask, settings::Settings, state::StateDir};
use flate2::{Compression, write::GzEncoder};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// The most that one file of the archive has.
const MAX_PART: usize = 512 * 1024;
/// The most that all of them have together, before they are packed.
const MAX_WHOLE: usize = 8 * 1024 * 1024;
/// What is taken of the end of a log file.
const LOG_TAIL: u64 = 256 * 1024;
/// How many log files are taken, the latest first.
const MAX_LOGS: usize = 4;

/// The archive's file: made, still empty. It is removed again if nothing comes of it.
pub struct Archive {
    path: PathBuf,
    file: File,
    done: bool,
}

/// One file of the archive.
struct Part {
    name: String,
    what: &'static str,
    content: Vec<u8>,
}

impl Archive {
    /// Makes the file, for its owner alone.
    ///
    /// # Errors
    /// If there is one already, or it cannot be made.
    pub fn create(path: &Path) -> Result<Self, Stop> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = made.map_err(|e| {
            let hint = match e.kind() {
                io::ErrorKind::AlreadyExists => {
                    "it is never overwritten: name another file, or remove this one"
                }
                _ => "name a file in a folder that can be written",
            };
            Stop::Failed(format!("--support-bundle {}: {e}: {hint}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), file, done: false })
    }

    /// Fills it, and gives a listing of what is in it. With a wrong configuration its findings take the place of the
    /// report.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn write(
        mut self,
        dir: &Path,
        found: Result<(&Settings, &Report), &Stop>,
    ) -> Result<String, Stop> {
        let parts = parts(dir, found).await;
        let listing = listing(&self.path, &parts);
        pack(&mut self.file, &listing, &parts)
            .map_err(|e| Stop::Failed(format!("{}: {e}: free some space there", self.path.display())))?;
        self.done = true;
        Ok(listing)
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if !self.done {
            // Half an archive helps nobody, and would be in the way of the next try.
            drop(fs::remove_file(&self.path));
        }
    }
}

fn listing(path: &Path, parts: &[Part]) -> String {
    let mut text = format!(
        "Support bundle of passerelle-agent {VERSION}, {}: {}\n\
         It holds no secrets; it does name hosts, paths and resources. Look through it before you pass it on.\n",
        clock::now(),
        path.display()
    );
    let width = parts.iter().map(|part| part.name.len()).max().unwrap_or(0);
    for part in parts {
        text.push_str(&format!("  {:width$}  {:>7} B  {}\n", part.name, part.content.len(), part.what));
    }
    text
}

fn pack(file: &mut File, listing: &str, parts: &[Part]) -> io::Result<()> {
    let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(clock::unix_seconds()).unwrap_or(0));
        tar.append_data(&mut header, format!("passerelle-support/{name}"), content)
    };
    add("README.txt", listing.as_bytes())?;
    for part in parts {
        add(&part.name, &part.content)?;
    }
    tar.into_inner()?.finish()?.sync_all()
}

/// Everything, each part and the whole bounded.
async fn parts(dir: &Path, found: Result<(&Settings, &Report), &Stop>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut left = MAX_WHOLE;
    let mut add = |name: &str, what: &'static str, content: Vec<u8>| {
        let mut content = content;
        content.truncate(MAX_PART.min(left));
        left -= content.len();
        parts.push(Part { name: name.to_owned(), what, content });
    };
    let pretty = |value: &Value| serde_json::to_vec_pretty(value).unwrap_or_default();
    match found {
        Ok((_, report)) => {
            add("check.txt", "what was looked at, for people", render(report, false).into_bytes());
            add("check.json", "the same for programs", serde_json::to_vec_pretty(report).unwrap_or_default());
            add(
                "config.json",
                "the configuration without comments; secrets by reference",
                pretty(&passerelle_config::redacted(dir)),
            );
        }
        // Not the files: what is wrong there may be a secret in the wrong place.
        Err(stop) => add(
            "configuration-findings.txt",
            "what is wrong with the configuration",
            stop.to_string().into_bytes(),
        ),
    }
    let settings = found.ok().map(|(settings, _)| settings);
    let listen = passerelle_config::listen_address(dir);
    for (path, name, what) in [
        ("/status.json", "status.json", "what the running agent shows of itself"),
        ("/metrics", "metrics.txt", "the running agent's metrics"),
    ] {
        match ask(listen, path).await {
            Ok((200, body)) => add(name, what, body),
            Ok((status, _)) => add(name, what, format!("HTTP status {status}\n").into_bytes()),
            Err(stop) => add(name, what, format!("{stop}\n").into_bytes()),
        }
    }
    let state = settings.map(Settings::state_dir);
    add("version.json", "version and platform", pretty(&version()));
    add(
        "machine.json",
        "system, limits, time, DNS servers, proxy variables",
        pretty(&machine::facts(dir, state.as_deref())),
    );
    if let Some(state) = &state {
        add(
            "journal.json",
            "sizes of the state folder's files, counts of the journal",
            pretty(&journal(state)),
        );
    }
    if let Some(logs) = settings.and_then(|settings| settings.config.log.classic.as_ref()) {
        for (name, tail) in log_tails(&logs.dir) {
            add(&format!("logs/{name}"), "the end of a log file", tail);
        }
    }
    parts
}

fn version() -> Value {
    json!({ "agent": VERSION, "os": std::env::consts::OS, "arch": std::env::consts::ARCH })
}

/// Sizes of the state folder's files; counts by state if no agent has the journal open.
fn journal(state: &Path) -> Value {
    let files: serde_json::Map<String, Value> = fs::read_dir(state)
        .into_iter()
        .flatten()
        .flatten()
        .take(200)
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), json!(meta.len())))
        })
        .collect();
    let attempts = if fs::exists(state.join("journal.db")).unwrap_or(false) {
        match StateDir::open(state) {
            Ok(locked) => counts(&locked.path().join("journal.db")).unwrap_or_else(|e| json!(e.to_string())),
            Err(stop) => json!(stop.to_string()),
        }
    } else {
        Value::Null
    };
    json!({ "files": files, "attempts_by_state": attempts })
}

fn counts(journal: &Path) -> rusqlite::Result<Value> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(journal, flags)?;
    // As the agent opens it: no shared memory beside the file, which mapped folders do not offer.
    connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA query_only = ON")?;
    let mut statement =
        connection.prepare("SELECT state, count(*) FROM attempts GROUP BY state ORDER BY state")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
    let mut counts = serde_json::Map::new();
    for row in rows {
        let (state, count) = row?;
        let name = match state {
            0 => "accepted",
            1 => "running",
            2 => "finished",
            3 => "reportable",
            4 => "acknowledged",
            _ => "other",
        };
        counts.insert(name.to_owned(), json!(count));
    }
    Ok(Value::Object(counts))
}

/// The ends of the latest classic log files.
fn log_tails(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let ours =
        |name: &str| (name.starts_with("err_") || name.starts_with("infos_")) && name.ends_with(".log");
    let mut logs: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let (name, meta) = (entry.file_name().to_string_lossy().into_owned(), entry.metadata().ok()?);
            let changed = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            (meta.is_file() && ours(&name)).then_some((changed, name))
        })
        .collect();
    logs.sort();
    let latest = logs.into_iter().rev().take(MAX_LOGS);
    latest.filter_map(|(_, name)| Some((name.clone(), tail(&folder.join(&name)).ok()?))).collect()
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(scrub(&String::from_utf8_lossy(&bytes)).into_bytes())
}

/// Logs hold no credentials. Should a library ever write one, it ends here.
fn scrub(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut hide = false;
    for word in text.split_inclusive([' ', '\n', '\t']) {
        let bare = word.trim_end();
        let lower = bare.to_ascii_lowercase();
        if hide && !bare.is_empty() {
            clean.push_str("[redacted]");
            clean.push_str(word.get(bare.len()..).unwrap_or_default());
        } else {
            clean.push_str(word);
        }
        hide = ["bearer", "basic"].iter().any(|scheme| lower.ends_with(scheme))
            || ["password=", "token=", "secret=", "password:", "token:", "secret:"]
                .iter()
                .any(|key| lower.ends_with(key));
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_a_log_are_blotted_out() {
        let log = "GET / authorization: Bearer abc.def\nx password: hunter2 y\nBasic income rises\n";
        let clean = scrub(log);
        assert!(!clean.contains("abc.def") && !clean.contains("hunter2"), "{clean}");
        assert!(clean.contains("y\n") && clean.lines().count() == 3, "{clean}");
    }

    #[test]
    fn an_archive_is_private_never_overwrites_and_leaves_nothing_half_done() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar.gz");
        drop(Archive::create(&path).unwrap());
        assert!(!path.exists());
        fs::write(&path, "mine").unwrap();
        let error = Archive::create(&path).err().unwrap().to_string();
        assert!(error.contains("never overwritten"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        fs::remove_file(&path).unwrap();
        let mut archive = Archive::create(&path).unwrap();
        let part = Part { name: "a.txt".into(), what: "x", content: b"hello".to_vec() };
        pack(&mut archive.file, "listing", &[part]).unwrap();
        archive.done = true;
        drop(archive);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut names = Vec::new();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        for entry in tar.entries().unwrap() {
            names.push(entry.unwrap().path().unwrap().display().to_string());
        }
        assert_eq!(names, ["passerelle-support/README.txt", "passerelle-support/a.txt"]);
    }
}
