//! What a worker may take: its address space and its computing time, fitted to the memory that the hub's container has.

use std::{fs, path::Path, time::Duration};

const MIB: u64 = 1024 * 1024;
/// Below this, hardly a template could be filled.
const LEAST: u64 = 64 * MIB;

/// What a worker may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Its address space, in bytes.
    pub(super) memory: u64,
    /// How long it may compute for one message.
    pub(super) computing: Duration,
}

/// The sizes of a hub's workers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Of one that fills short templates.
    pub(super) small: Size,
    /// Of one that renders files, or columns.
    pub(super) large: Size,
}

impl Sizes {
    /// Those that fit where this process runs.
    pub(super) fn here() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::within(limit(Path::new("/sys/fs/cgroup"), &groups))
    }

    /// A container's memory is for the hub first: half of it for a large worker, a quarter for a small one.
    fn within(limit: Option<u64>) -> Self {
        let part = |most: u64, divisor: u64| limit.map_or(most, |limit| (limit / divisor).clamp(LEAST, most));
        Self {
            small: Size { memory: part(256 * MIB, 4), computing: Duration::from_secs(5) },
            large: Size { memory: part(1024 * MIB, 2), computing: Duration::from_secs(60) },
        }
    }
}

impl Size {
    /// As arguments of a worker.
    pub(super) fn words(self) -> [String; 2] {
        [self.memory.to_string(), self.computing.as_secs().to_string()]
    }

    pub(super) fn of_words(words: &[&str]) -> Option<Self> {
        let [memory, seconds] = words else { return None };
        Some(Self { memory: memory.parse().ok()?, computing: Duration::from_secs(seconds.parse().ok()?) })
    }
}

/// The memory that the control groups of a process leave it, if they set a limit: `groups` is its `/proc/PID/cgroup`, `root`
/// where they are mounted (cgroups(7), both versions). What stands in a container is often its own group as the root.
fn limit(root: &Path, groups: &str) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(kinds), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, file) = match kinds {
            "" => (root.to_owned(), "memory.max"),
            kinds if kinds.split(',').any(|kind| kind == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        if path.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            continue;
        }
        for group in path.ancestors() {
            let said = fs::read_to_string(mount.join(group).join(file)).ok();
            // Without a limit it is the word "max", or in the first version a number beyond all memory.
            let found = said.and_then(|text| text.trim().parse::<u64>().ok());
            least = least.into_iter().chain(found).min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_of_all_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        put("memory.max", "max\n");
        put("system.slice/memory.max", "536870912\n");
        put("system.slice/hub.service/memory.max", "1073741824\n");
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        put("memory/docker/memory.limit_in_bytes", "268435456\n");
        for (groups, expected) in [
            ("0::/\n", None),
            ("0::/system.slice/hub.service\n", Some(536_870_912)),
            ("0::/elsewhere/hub.service\n", None),
            ("9:name=systemd:/\n4:cpu,memory:/docker\n0::/\n", Some(268_435_456)),
            ("0::/../../etc\nnonsense\n", None),
            ("", None),
        ] {
            assert_eq!(limit(root.path(), groups), expected, "{groups}");
        }
    }

    #[test]
    fn a_worker_leaves_its_hub_most_of_a_small_container() {
        let mib = |sizes: Sizes| (sizes.small.memory / MIB, sizes.large.memory / MIB);
        assert_eq!(mib(Sizes::within(None)), (256, 1024));
        assert_eq!(mib(Sizes::within(Some(512 * MIB))), (128, 256));
        assert_eq!(mib(Sizes::within(Some(64 * MIB))), (64, 64));
        assert_eq!(mib(Sizes::within(Some(u64::MAX))), (256, 1024));
        let words = Sizes::within(None).small.words();
        assert_eq!(Size::of_words(&[&words[0], &words[1]]), Some(Sizes::within(None).small));
        assert_eq!(Size::of_words(&["small"]), None);
    }
}
