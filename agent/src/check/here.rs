//! This machine: configuration, secrets, state folder, disk, identity.

use super::Item;
use crate::{
    clock, enrol,
    exit::Stop,
    identity::{Identity, key_path},
    settings::Settings,
    state::{IN_USE, StateDir, free_bytes, unwritable},
};
use rustix::{
    fs::{Access, access},
    process::geteuid,
};
use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Less free space than this is worth a word.
const LITTLE: u64 = 512 * 1024 * 1024;
/// With less than this the agent declines every job.
const TOO_LITTLE: u64 = 8 * 1024 * 1024;

/// Looks at this machine; gives the identity too, if there is one that can be read.
pub(super) fn check(settings: &Settings) -> (Vec<Item>, Option<Identity>) {
    let config = &settings.config;
    let found = format!("{} with {} resources", config.dir.display(), settings.resources.len());
    let mut items = vec![Item::ok("configuration", found)];
    items.extend(config.warnings.iter().map(|warning| {
        let text = warning.to_string();
        Item::warn("configuration", text, "see the message")
    }));
    items.extend(secrets(settings));
    let path = settings.state_dir();
    let identity = state(settings, &path, &mut items);
    items.push(disk(&path));
    (items, identity)
}

/// Secret files that every user of this machine may read.
fn secrets(settings: &Settings) -> Vec<Item> {
    let folder = settings.config.dir.join("secrets");
    let mut open: Vec<&PathBuf> = settings
        .files()
        .filter(|file| file.starts_with(&folder))
        .filter(|file| fs::metadata(file).is_ok_and(|meta| meta.mode() & 0o004 != 0))
        .collect();
    open.dedup();
    let item = |file: &PathBuf| {
        let detail = format!("every user of this machine may read {}", file.display());
        Item::warn("secrets", detail, format!("run `chmod o-rwx {}`", file.display()))
    };
    open.into_iter().map(item).collect()
}

fn state(settings: &Settings, path: &Path, items: &mut Vec<Item>) -> Option<Identity> {
    const LINK: &str = "state folder";
    let me = geteuid().as_raw();
    let Ok(meta) = fs::metadata(path) else {
        items.push(match path.ancestors().skip(1).find(|parent| parent.exists()) {
            Some(parent) if access(parent, Access::WRITE_OK | Access::EXEC_OK).is_ok() => Item::ok(
                LINK,
                format!("{} is not there yet; the agent makes it at its start", path.display()),
            ),
            _ => not_writable(&unwritable(path, &std::io::ErrorKind::PermissionDenied.into())),
        });
        items.push(not_enrolled(settings));
        return None;
    };
    let opened = if me == 0 && meta.uid() != 0 {
        // A file that root makes here would be in the agent's way.
        let whose =
            format!("{} belongs to uid {}, and this command runs as root", path.display(), meta.uid());
        let fix = format!(
            "run it as the agent's own user: `docker exec -u {} …`, or `setpriv --reuid={0} …`",
            meta.uid()
        );
        items.push(Item::warn(LINK, whose, fix));
        Ok(StateDir::look(path))
    } else {
        match StateDir::open(path) {
            Ok(state) => {
                items.push(Item::ok(LINK, format!("{} can be written", path.display())));
                Ok(state)
            }
            Err(Stop::Configuration(message)) if message.starts_with(IN_USE) => {
                items.push(Item::ok(LINK, format!("{} is in use by the running agent", path.display())));
                Ok(StateDir::look(path))
            }
            Err(stop) => Err(stop),
        }
    };
    let state = match opened {
        Ok(state) => state,
        Err(stop) => {
            items.push(not_writable(&stop.to_string()));
            items.push(Item::skipped("identity", "the state folder cannot be used"));
            return None;
        }
    };
    match Identity::load(&state) {
        Ok(Some(identity)) => {
            let enrolled = &identity.enrolled;
            let age = key_age(path).map_or(String::new(), |days| format!(", key made {days} days ago"));
            let found =
                format!("agent {} of site {} ({}){age}", enrolled.agent, enrolled.site, enrolled.tenant);
            items.push(Item::ok("identity", found));
            items.extend(open_key(path));
            Some(identity)
        }
        Ok(None) => {
            items.push(not_enrolled(settings));
            None
        }
        Err(stop) => {
            items.push(Item::fail_with_fix("identity", &stop.to_string()));
            None
        }
    }
}

/// The message ends with the command that mends it.
fn not_writable(message: &str) -> Item {
    match message.rsplit_once(": ") {
        Some((detail, fix)) => Item::fail("state folder", detail, fix),
        None => Item::fail("state folder", message, "see the message"),
    }
}

fn not_enrolled(settings: &Settings) -> Item {
    if settings.config.hub.enrolment_token.is_some() {
        return Item::ok("identity", "not enrolled yet; `run` or `enrol` does it with the configured token");
    }
    Item::fail("identity", "not enrolled and no hub.enrolment_token", enrol::how_to_get_a_token())
}

fn key_age(state: &Path) -> Option<i64> {
    let made = fs::metadata(key_path(state)).ok()?.mtime();
    Some(clock::unix_seconds().saturating_sub(made).max(0) / 86_400)
}

fn open_key(state: &Path) -> Option<Item> {
    let file = key_path(state);
    let mode = fs::metadata(&file).ok()?.mode() & 0o777;
    let detail =
        format!("others than the agent may read its private key ({} has mode {mode:o})", file.display());
    (mode & 0o077 != 0).then(|| Item::warn("identity", detail, format!("run `chmod 600 {}`", file.display())))
}

fn disk(path: &Path) -> Item {
    let mib = |bytes: u64| bytes / (1024 * 1024);
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    match free_bytes(there) {
        Ok(free) if free < TOO_LITTLE => Item::fail(
            "disk",
            format!("{} MiB free for {}", mib(free), path.display()),
            "free some space: the agent declines every job without it",
        ),
        Ok(free) if free < LITTLE => Item::warn(
            "disk",
            format!("{} MiB free for {}", mib(free), path.display()),
            "free some space: large payloads pass through it",
        ),
        Ok(free) => Item::ok("disk", format!("{} MiB free for {}", mib(free), path.display())),
        Err(e) => Item::fail("disk", format!("{}: {e}", there.display()), "see the message"),
    }
}
