//! Folders of the host that are mapped into the agent's container: where a path is on the host, whose it is, and the
//! command that gives the agent access. Without a container the same commands are for the path itself.

use crate::DEFAULT_DIR;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A folder that the operator may map what the messages are about from.
const EXAMPLE: &str = "/srv/passerelle";

/// Where a path of this process is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// On this machine: there is no container, or it shows the machine's own files.
    Here,
    /// In a folder that is mapped to `at`; `host` is that folder on the host, if it can be told.
    Mapped { at: PathBuf, host: Option<PathBuf> },
    /// In the container's own files, where the operator's folder should be.
    Unmapped,
}

impl Place {
    fn of(path: &Path) -> Self {
        let container = ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| Path::new(mark).exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::find(path, &mounts, container)
    }

    /// Reads it from `mounts` (proc_pid_mountinfo(5)); `container`: this is one, whatever its files lie on.
    fn find(path: &Path, mounts: &str, container: bool) -> Self {
        let mut best: Option<Mount> = None;
        let mut container = container;
        for mount in mounts.lines().filter_map(Mount::read) {
            container |= mount.at == Path::new("/") && mount.overlay;
            let deeper = |best: &Mount| mount.at.components().count() >= best.at.components().count();
            if path.starts_with(&mount.at) && best.as_ref().is_none_or(deeper) {
                best = Some(mount);
            }
        }
        match best {
            _ if !container => Self::Here,
            Some(mount) if mount.at != Path::new("/") => {
                let host = (mount.root != Path::new("/")).then_some(mount.root);
                Self::Mapped { at: mount.at, host }
            }
            _ if path.starts_with(DEFAULT_DIR) => Self::Unmapped,
            Some(_) | None => Self::Here,
        }
    }
}

/// One line of mountinfo.
struct Mount {
    root: PathBuf,
    at: PathBuf,
    overlay: bool,
}

impl Mount {
    fn read(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut words = mount.split(' ').skip(3);
        let (root, at) = (plain(words.next()?), plain(words.next()?));
        Some(Self { root, at, overlay: file_system.split(' ').next()?.contains("overlay") })
    }
}

/// Takes the octal escapes out of a path.
fn plain(text: &str) -> PathBuf {
    let spaces = text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n");
    PathBuf::from(spaces.replace("\\134", "\\"))
}

/// The account that this process runs as: uid and gid.
#[must_use]
pub fn account() -> (u32, u32) {
    owner(Path::new("/proc/self")).unwrap_or((0, 0))
}

#[cfg(unix)]
fn owner(path: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).ok().map(|meta| (meta.uid(), meta.gid()))
}

#[cfg(not(unix))]
fn owner(_: &Path) -> Option<(u32, u32)> {
    None
}

/// The command that makes `path` the agent's own.
#[must_use]
pub fn give(path: &Path) -> String {
    let existing = path.ancestors().find(|path| path.exists());
    give_at(&Place::of(path), path, account(), existing.and_then(owner))
}

fn give_at(place: &Place, path: &Path, (uid, gid): (u32, u32), owner: Option<(u32, u32)>) -> String {
    let or_as = match owner {
        Some((uid, gid)) if uid != 0 => format!(", or start the container with `--user {uid}:{gid}`"),
        Some(_) | None => String::new(),
    };
    match place {
        Place::Here => format!("run `mkdir -p {0} && chown -R {uid}:{gid} {0}`", path.display()),
        Place::Mapped { host: Some(host), .. } => {
            format!("run `chown -R {uid}:{gid} {}` on the host{or_as}", host.display())
        }
        Place::Mapped { at, host: None } => {
            let at = at.display();
            format!("run `chown -R {uid}:{gid} …` on the host with the folder that is mapped to {at}{or_as}")
        }
        Place::Unmapped => map_it(),
    }
}

fn map_it() -> String {
    format!("nothing is mapped to {DEFAULT_DIR}: start the container with `-v {EXAMPLE}:{DEFAULT_DIR}`")
}

/// What makes a path writable that lies on a read-only file system.
#[must_use]
pub fn writable(path: &Path) -> String {
    match Place::of(path) {
        Place::Here => "mount it writable".to_owned(),
        Place::Mapped { .. } | Place::Unmapped => {
            "map it writable, or start the container with a volume of its own, `-v passerelle-state:/state`, and write \
             `state_dir = \"/state\"` below [agent] in agent.toml"
                .to_owned()
        }
    }
}

/// Why a file or folder cannot be read, and the command that mends it.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return format!("can't be read: {error}");
    }
    let existing = path.ancestors().find_map(|path| Some((path, owner(path)?)));
    let whose = existing
        .map_or(String::new(), |(path, (uid, _))| format!("; {} belongs to uid {uid}", path.display()));
    let (uid, gid) = account();
    // A file whose rights can be seen is in the way itself; else a folder on the way to it. Who only reads need not own it.
    let mend = match (Place::of(path), &existing) {
        (Place::Here, Some((file, _))) if *file == path && path.is_file() => {
            format!("run `chgrp {gid} {0} && chmod g+r {0}`", path.display())
        }
        (Place::Here, Some((folder, _))) => {
            format!("run `chgrp {gid} {0} && chmod g+rx {0}`", folder.display())
        }
        (Place::Here | Place::Mapped { .. } | Place::Unmapped, _) => give(path),
    };
    format!("not readable for uid {uid}{whose}: {mend}")
}

/// What to do about a configuration folder without `agent.toml`.
pub(crate) fn no_configuration(dir: &Path) -> String {
    let init = match Place::of(dir) {
        Place::Unmapped => return map_it(),
        Place::Mapped { at, host } if at == dir => {
            let host = host.unwrap_or_else(|| EXAMPLE.into());
            format!("docker run --rm -v {}:{} passerelle/agent init", host.display(), at.display())
        }
        Place::Mapped { .. } | Place::Here => "passerelle-agent init".to_owned(),
    };
    format!("write one with `{init}`, or name another folder with --config")
}

/// What to say of a path as Windows writes it, which means nothing where the agent runs.
pub(crate) fn windows(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let path = text.strip_prefix("file:///").map_or(bytes, str::as_bytes);
    match path {
        [drive, b':', b'/' | b'\\', ..] if drive.is_ascii_alphabetic() => Some(
            "a path of Windows, which the agent cannot see: map the folder into its container, as \
             `-v c:\\programdata\\cpoint:/config`, and name it as it is there: \"logs\" or \"/config/logs\""
                .to_owned(),
        ),
        [b'\\', b'\\', host, ..] if host.is_ascii_alphanumeric() => {
            Some("a share as Windows writes it: write smb://server/share/folder".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = "\
530 421 0:48 / / rw,relatime master:150 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/A
531 530 0:51 / /proc rw,nosuid - proc proc rw
540 530 254:0 /srv/passe\\040relle /config rw,relatime - ext4 /dev/vda rw
541 540 254:0 /var/lib/docker/volumes/state/_data /config/state rw,relatime - ext4 /dev/vda rw
542 530 0:60 / /mnt/share rw - 9p C:\\134 rw
";
    const HOST: &str =
        "28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n29 28 0:5 / /dev rw - devtmpfs udev rw\n";

    fn place(path: &str) -> Place {
        Place::find(Path::new(path), DOCKER, false)
    }

    #[test]
    fn a_mapped_folder_is_found_on_the_host() {
        let mapped =
            |at: &str, host: Option<&str>| Place::Mapped { at: at.into(), host: host.map(PathBuf::from) };
        assert_eq!(place("/config/agent.toml"), mapped("/config", Some("/srv/passe relle")));
        assert_eq!(
            place("/config/state/lock"),
            mapped("/config/state", Some("/var/lib/docker/volumes/state/_data"))
        );
        assert_eq!(place("/mnt/share/x"), mapped("/mnt/share", None));
        assert_eq!(place("/opt/x"), Place::Here);
        assert_eq!(Place::find(Path::new("/config/x"), HOST, false), Place::Here);
        assert_eq!(Place::find(Path::new("/config/x"), HOST, true), Place::Unmapped);
    }

    #[test]
    fn the_command_is_for_where_the_folder_is() {
        let give = |path: &str, owner| give_at(&place(path), Path::new(path), (10_001, 10_001), owner);
        assert_eq!(
            give("/config/state2", Some((1000, 1000))),
            "run `chown -R 10001:10001 /srv/passe relle` on the host, or start the container with `--user 1000:1000`"
        );
        assert_eq!(
            give("/mnt/share", Some((0, 0))),
            "run `chown -R 10001:10001 …` on the host with the folder that is mapped to /mnt/share"
        );
        assert_eq!(give("/opt/x", None), "run `mkdir -p /opt/x && chown -R 10001:10001 /opt/x`");
        let unmapped = give_at(&Place::Unmapped, Path::new("/config"), (1, 1), None);
        assert!(
            unmapped.contains("nothing is mapped to /config") && unmapped.contains("-v /srv"),
            "{unmapped}"
        );
    }

    #[test]
    fn paths_of_windows_are_told_from_others() {
        for text in ["c:\\programdata\\cpoint", "C:/ProgramData/cpoint", "file:///c:/exports", "d:\\"] {
            assert!(windows(text).is_some_and(|told| told.contains("/config")), "{text}");
        }
        assert!(windows("\\\\server\\share").is_some_and(|told| told.contains("smb://")));
        for text in [
            "logs",
            "/config/logs",
            "file:///srv/x",
            "s3://bucket",
            "c",
            "c:",
            "a:b",
            "ab:/c",
            "\\\\",
            "DOMAIN\\user",
        ] {
            assert_eq!(windows(text), None, "{text}");
        }
    }
}
