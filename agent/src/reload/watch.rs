//! What the configuration folder looks like, for telling whether it changed. Polled rather than notified of: that works
//! on mapped folders, NFS and CIFS too, where no notification comes.
//!
//! Contents count, not times: a file that was touched, or replaced by its like, is no change. What lies unchanged for
//! a while by size, times and inode is not read again.

use passerelle_protocol::Sha256;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Metadata},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use zeroize::Zeroizing;

/// The most that is read of a file: what a configuration file may have.
const MAX_READ: u64 = 1024 * 1024;
/// A file that was changed within so long of the last look may change again without showing it: some file systems
/// count time in steps of two seconds.
const SETTLED: Duration = Duration::from_secs(10);

/// How a file looks from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outside {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Outside {
    fn from(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    outside: Outside,
    settled: bool,
    content: Option<Sha256>,
}

/// The files of the configuration as they were at one look.
#[derive(Debug, Clone, Default)]
pub struct Folder {
    files: BTreeMap<PathBuf, Option<Seen>>,
}

impl Folder {
    /// Looks at `agent.toml`, `resources.d/*.toml` and the files that the configuration `named`. Blocks.
    pub fn look<'a>(dir: &Path, named: impl Iterator<Item = &'a PathBuf>, before: &Self) -> Self {
        let mut paths: BTreeSet<PathBuf> = named.cloned().collect();
        paths.insert(dir.join("agent.toml"));
        // A folder that cannot be read shows as one without files: a change, which the load then explains.
        if let Ok(entries) = fs::read_dir(dir.join("resources.d")) {
            let toml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "toml");
            paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(toml));
        }
        let seen = paths.into_iter().map(|path| {
            let old = before.files.get(&path).copied().flatten();
            let seen = look(&path, old);
            (path, seen)
        });
        Self { files: seen.collect() }
    }

    /// Knows of the files of `now` from here on. What was seen before stays as it was seen: a change since is not missed.
    pub fn watch_those_of(&mut self, now: Self) {
        self.files.retain(|path, _| now.files.contains_key(path));
        for (path, seen) in now.files {
            self.files.entry(path).or_insert(seen);
        }
    }

    /// Whether both looks saw the same files with the same content.
    pub fn same(&self, other: &Self) -> bool {
        let content = |folder: &Self| -> Vec<(PathBuf, Option<Option<Sha256>>)> {
            folder.files.iter().map(|(path, seen)| (path.clone(), seen.map(|seen| seen.content))).collect()
        };
        content(self) == content(other)
    }
}

fn look(path: &Path, old: Option<Seen>) -> Option<Seen> {
    let meta = fs::metadata(path).ok()?;
    let outside = Outside::from(&meta);
    if let Some(old) = old.filter(|old| old.outside == outside && old.settled) {
        return Some(old);
    }
    let age = meta.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    let settled = age.is_some_and(|age| age > SETTLED);
    // Asked before opening: opening a named pipe would wait for a writer.
    let content = if meta.is_file() { content(path) } else { None };
    Some(Seen { outside, settled, content })
}

/// The digest of a file; `None` if it cannot be read.
fn content(path: &Path) -> Option<Sha256> {
    // It may be a secret: wiped, and never moved by growing.
    let size = fs::metadata(path).ok()?.len().min(MAX_READ);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).ok()?.saturating_add(64)));
    File::open(path).ok()?.take(size + 32).read_to_end(&mut bytes).ok()?;
    Some(Sha256::of(&bytes))
}

/// Tells one state of some settings from another: their text, and the content of the files that they name.
pub fn mark(text: &str, files: &BTreeSet<PathBuf>) -> Sha256 {
    let mut all = text.to_owned();
    for file in files {
        let content = fs::metadata(file).ok().filter(Metadata::is_file).and_then(|_| content(file));
        all += &format!("\n{} {content:?}", file.display());
    }
    Sha256::of(all.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_count_and_times_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("resources.d")).unwrap();
        fs::write(path("agent.toml"), "a").unwrap();
        fs::write(path("secret"), "one").unwrap();
        let named = [path("secret"), path("missing")];
        let look = |before: &Folder| Folder::look(dir.path(), named.iter(), before);
        let first = look(&Folder::default());
        assert!(first.same(&look(&first)));

        fs::write(path("agent.toml"), "a").unwrap();
        assert!(first.same(&look(&first)), "rewriting the same is no change");
        // Same size, and within the clock's step: only the content tells.
        fs::write(path("secret"), "two").unwrap();
        let second = look(&first);
        assert!(!first.same(&second));
        for (name, content) in [("missing", "here"), ("resources.d/a.toml", "")] {
            fs::write(path(name), content).unwrap();
            assert!(!second.same(&look(&second)), "{name}");
            fs::remove_file(path(name)).unwrap();
            assert!(second.same(&look(&second)), "{name}");
        }
        fs::write(path("resources.d/notes.txt"), "").unwrap();
        assert!(second.same(&look(&second)), "a file that is none of ours");
        fs::remove_file(path("agent.toml")).unwrap();
        assert!(!second.same(&look(&second)));
    }

    #[test]
    fn newly_named_files_are_watched_and_earlier_changes_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("agent.toml"), "a").unwrap();
        fs::write(path("new"), "n").unwrap();
        let mut seen = Folder::look(dir.path(), [path("old")].iter(), &Folder::default());
        fs::write(path("agent.toml"), "b").unwrap();
        let now = Folder::look(dir.path(), [path("new")].iter(), &seen);
        seen.watch_those_of(now.clone());
        assert!(!seen.same(&now), "the change of agent.toml was forgotten");
        fs::write(path("agent.toml"), "a").unwrap();
        assert!(seen.same(&Folder::look(dir.path(), [path("new")].iter(), &seen)));
        fs::write(path("new"), "x").unwrap();
        assert!(!seen.same(&Folder::look(dir.path(), [path("new")].iter(), &seen)));
    }

    #[test]
    fn a_link_that_is_pointed_elsewhere_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("one"), "1").unwrap();
        fs::write(path("two"), "2").unwrap();
        std::os::unix::fs::symlink(path("one"), path("agent.toml")).unwrap();
        let first = Folder::look(dir.path(), [].iter(), &Folder::default());
        fs::remove_file(path("agent.toml")).unwrap();
        std::os::unix::fs::symlink(path("two"), path("agent.toml")).unwrap();
        assert!(!first.same(&Folder::look(dir.path(), [].iter(), &first)));
    }

    #[test]
    fn a_mark_tells_texts_and_contents_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = BTreeSet::from([dir.path().join("key")]);
        let absent = mark("a", &file);
        assert_eq!(absent, mark("a", &file));
        assert_ne!(absent, mark("b", &file));
        fs::write(dir.path().join("key"), "1").unwrap();
        let one = mark("a", &file);
        assert_ne!(absent, one);
        fs::write(dir.path().join("key"), "2").unwrap();
        assert_ne!(one, mark("a", &file));
    }
}
