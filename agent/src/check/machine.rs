//! Facts of the machine and the process that explain why something behaves as it does there. Read from small files of
//! the kernel and the system, each bounded; what is not there is left out.

use crate::clock;
use rustix::process::{getgid, getuid};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
};
use url::Url;

/// The most that is read of one of these files.
const MAX: u64 = 64 * 1024;

pub(super) fn facts(config: &Path, state: Option<&Path>) -> Value {
    let mut mounts = vec![mount(config)];
    mounts.extend(state.map(mount));
    json!({
        "time": clock::now().to_string(),
        "time_zone": { "TZ": std::env::var("TZ").ok(), "localtime": fs::read_link("/etc/localtime").ok() },
        "kernel": read("/proc/version"),
        "system": line("/etc/os-release", "PRETTY_NAME="),
        "container": {
            "docker": Path::new("/.dockerenv").exists(),
            "podman": Path::new("/run/.containerenv").exists(),
            "cgroup": read("/proc/self/cgroup"),
            "memory_max": read("/sys/fs/cgroup/memory.max"),
        },
        "uid": getuid().as_raw(),
        "gid": getgid().as_raw(),
        "capabilities": line("/proc/self/status", "CapEff:"),
        "cpus": std::thread::available_parallelism().map(usize::from).ok(),
        "memory_total": line("/proc/meminfo", "MemTotal:"),
        "memory_available": line("/proc/meminfo", "MemAvailable:"),
        "limits": read("/proc/self/limits").map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()),
        "uptime": read("/proc/uptime"),
        "dns": lines("/etc/resolv.conf"),
        "mounts": mounts,
        "proxy_variables": proxy_variables(),
    })
}

fn read(path: &str) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX).read_to_string(&mut text).ok()?;
    Some(text.trim_end().to_owned())
}

/// What follows `start` on the first line that begins so.
fn line(path: &str, start: &str) -> Option<String> {
    let text = read(path)?;
    text.lines().find_map(|line| Some(line.strip_prefix(start)?.trim().trim_matches('"').to_owned()))
}

fn lines(path: &str) -> Option<Vec<String>> {
    let text = read(path)?;
    Some(
        text.lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect(),
    )
}

/// The file system below a path: its type, and whether it can be written. Not its other options: some name accounts.
fn mount(path: &Path) -> Value {
    let path = &std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mounts = read("/proc/self/mounts").unwrap_or_default();
    let found = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (at, kind, options) = (words.next()?, words.next()?, words.next()?);
        path.starts_with(at).then_some((at.len(), kind, options.split(',').next().unwrap_or_default()))
    });
    let deepest = found.max_by_key(|(length, ..)| *length);
    json!({ "path": path, "type": deepest.map(|(_, kind, _)| kind), "access": deepest.map(|(.., access)| access) })
}

/// The variables that name proxies, without the credentials in them.
fn proxy_variables() -> Value {
    let names = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"];
    let shown = |name: &str, value: String| {
        if name.eq_ignore_ascii_case("NO_PROXY") { value } else { without_credentials(&value) }
    };
    let set = names
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), json!(shown(name, std::env::var(name).ok()?)))));
    Value::Object(set.collect())
}

fn without_credentials(text: &str) -> String {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let Ok(mut url) = Url::parse(&full) else { return "set, but not a URL".to_owned() };
    let had = !url.username().is_empty() || url.password().is_some();
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return "set".to_owned();
    }
    if had { format!("{url} with credentials") } else { url.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_credentials_are_left_out() {
        assert_eq!(without_credentials("http://svc:geheim@p:3128"), "http://p:3128/ with credentials");
        assert_eq!(without_credentials("svc:geheim@p:3128"), "http://p:3128/ with credentials");
        assert_eq!(without_credentials("p:3128"), "http://p:3128/");
        assert!(!without_credentials("http://svc:geheim@").contains("geheim"));
        let facts = facts(Path::new("/"), None);
        assert!(facts["kernel"].as_str().is_some_and(|text| text.contains("Linux")), "{facts}");
        assert!(facts["mounts"][0]["type"].is_string(), "{facts}");
    }
}
