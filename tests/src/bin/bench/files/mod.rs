//! Every kind of file resource beside the tools that an operator would script instead, on the same server in the same run:
//! one large file and many small ones, by the connector alone and as jobs through hub and agent.
//!
//! What each syncs is part of its line. Drops sync wherever the server can; of the peers only `sftp`'s `put -f` and
//! `dd conv=fsync` do, so a sync of what it wrote stands behind every other peer whose target we sync too.

mod alone;
mod jobs;
mod peers;
mod place;
mod timed;

use crate::{
    Effort,
    line::{Line, Target},
};
use passerelle_tests::Content;
use serde_json::{Value, json};
use std::{fs, path::Path};
use timed::{Cost, Runs};

pub use alone::{ARGUMENT as ALONE, run as alone};
pub use place::Kind;

/// The size of a small file.
const SMALL: u64 = 20 << 10;

/// What is copied.
pub struct Load {
    /// The files, in a folder of their own.
    files: Vec<Content>,
    /// Whether it is one large file.
    large: bool,
}

impl Load {
    fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The files as lines of source, target, size and digest.
    fn manifest(&self) -> String {
        let line = |file: &Content| {
            format!("{}\t{}\t{}\t{}\n", file.path.display(), peers::name(file), file.size, file.sha256)
        };
        self.files.iter().map(line).collect()
    }

    /// Megabytes a second for a large file, files a second for small ones.
    fn speed(&self, cost: &Cost) -> f64 {
        let amount = if self.large { self.bytes() as f64 / 1e6 } else { self.files.len() as f64 };
        amount / cost.seconds
    }
}

/// Measures the kinds that are named, or all of them, and tells each line when it is known.
pub async fn measure(effort: Effort, kinds: &[&str], mut tell: impl FnMut(Vec<Line>)) {
    let source = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, count: usize, size: u64| {
        let folder = source.path().join(name);
        fs::create_dir(&folder).expect("a folder");
        let one = |n: usize| {
            let own = folder.join(n.to_string());
            fs::create_dir(&own).expect("a folder");
            let made = Content::write(&own, size);
            let path = folder.join(format!("file-{n:04}.bin"));
            fs::rename(&made.path, &path).expect("a file");
            fs::remove_dir(&own).expect("an empty folder");
            Content { path, ..made }
        };
        (0..count).map(one).collect()
    };
    let many = if effort.quick { 200 } else { 2000 };
    let loads = [
        Load { files: write("large", 1, effort.file_size), large: true },
        Load { files: write("small", many, SMALL), large: false },
    ];
    for kind in Kind::ALL.into_iter().filter(|kind| kinds.is_empty() || kinds.contains(&kind.name())) {
        let place = place::start(kind);
        for load in &loads {
            let mut lines = beside_peers(kind, &place, load, effort);
            lines.push(through_hub(kind, &place, load, &lines).await);
            tell(lines);
        }
    }
}

/// The connector alone and its peers, one after the other in each round.
fn beside_peers(kind: Kind, place: &place::Place, load: &Load, effort: Effort) -> Vec<Line> {
    let manifest = place.scratch().join("manifest");
    fs::write(&manifest, load.manifest()).expect("a manifest");
    let peers = peers::all(place, load, kind.syncs());
    // Written once before anything counts: otherwise the first one also pays for the machine's memory.
    timed::run(&alone::command(place, &manifest));
    place.empty();
    let mut ours = Runs::default();
    let mut theirs: Vec<Runs> = peers.iter().map(|_| Runs::default()).collect();
    for _ in 0..effort.rounds {
        ours.add(timed::run(&alone::command(place, &manifest)));
        check(place.root(), load);
        place.empty();
        for (peer, runs) in peers.iter().zip(&mut theirs) {
            runs.add(timed::run(&peer.command));
            check(place.root(), load);
            place.empty();
        }
    }
    let best = peers.iter().zip(&theirs).max_by(|a, b| {
        let speed = |runs: &Runs| load.speed(runs.best());
        speed(a.1).total_cmp(&speed(b.1))
    });
    let Some((fastest, fastest_runs)) = best else { return Vec::new() };
    let judged = peers.iter().zip(&theirs).find(|(peer, _)| peer.judged).unwrap_or((fastest, fastest_runs));
    let (size, unit) = if load.large { ("large", "mb_per_s") } else { ("small", "files_per_s") };
    let gib = load.bytes() as f64 / f64::from(1 << 30);
    let table: Value = peers
        .iter()
        .zip(&theirs)
        .map(|(peer, runs)| {
            let cost = runs.best();
            let round = |figure: f64| (figure * 100.0).round() / 100.0;
            let row = json!({
                unit: round(load.speed(cost)), "syncs": peer.syncs, "peak_mib": round(cost.peak_mib),
                "cpu_s_per_gib": peer.counted.then(|| round(cost.cpu / gib)),
            });
            (peer.name.to_owned(), row)
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    let (cost, baseline) = (ours.best(), load.speed(judged.1.best()));
    let factor = kind.target(load.large);
    let mut lines = vec![Line {
        name: format!("files_{}_{size}_alone_{unit}", kind.name()),
        value: load.speed(cost),
        baseline: (format!("{}_{unit}", judged.0.name), baseline),
        target: factor
            .map(|factor| (Target::AtLeast(factor * baseline), format!("{factor} × {}", judged.0.name))),
        more: json!({
            "syncs": kind.syncs(), "fastest_peer": fastest.name, "cpu_s_per_gib": cost.cpu / gib,
            "peak_mib": cost.peak_mib, "all": ours.all(|cost| load.speed(cost)), "peers": table,
        }),
    }];
    if load.large {
        let counted = peers.iter().zip(&theirs).filter(|(peer, _)| peer.counted);
        let least = counted.map(|(_, runs)| runs.least_cpu()).fold(f64::INFINITY, f64::min);
        lines.push(Line {
            name: format!("files_{}_{size}_alone_cpu_s_per_gib", kind.name()),
            value: ours.least_cpu() / gib,
            baseline: ("best_peer_cpu_s_per_gib".to_owned(), least / gib),
            target: kind.has_target().then(|| (Target::AtMost(least / gib), "the best peer's".to_owned())),
            more: json!({}),
        });
    }
    if let Some((_, rclone)) = peers.iter().zip(&theirs).find(|(peer, _)| peer.name == "rclone") {
        lines.push(Line {
            name: format!("files_{}_{size}_alone_peak_mib", kind.name()),
            value: ours.peak_mib(),
            baseline: ("rclone_peak_mib".to_owned(), rclone.peak_mib()),
            target: Some((Target::AtMost(rclone.peak_mib() / 2.0), "half of rclone's".to_owned())),
            more: json!({}),
        });
    }
    lines
}

/// The same files as jobs, their blobs already at the hub.
async fn through_hub(kind: Kind, place: &place::Place, load: &Load, so_far: &[Line]) -> Line {
    let (size, unit) = if load.large { ("large", "mb_per_s") } else { ("small", "files_per_s") };
    let measured = jobs::measure(place, load).await;
    check(place.root(), load);
    place.empty();
    let alone = format!("files_{}_{size}_alone_{unit}", kind.name());
    let alone = so_far.iter().find(|line| line.name == alone).map_or(f64::NAN, |line| line.value);
    let (name, baseline, factor) = match (kind, measured.download) {
        (Kind::Sftp, _) | (_, None) => ("alone", alone, 0.6),
        (_, Some(download)) => ("slower_of_alone_and_download", alone.min(download), 0.7),
    };
    Line {
        name: format!("files_{}_{size}_through_hub_{unit}", kind.name()),
        value: measured.speed,
        baseline: (format!("{name}_{unit}"), baseline),
        target: load
            .large
            .then(|| (Target::AtLeast(factor * baseline), format!("{factor} × {}", name.replace('_', " ")))),
        more: json!({
            "agent_peak_mib": measured.agent_peak_mib, "hub_peak_mib": measured.hub_peak_mib,
            "download_mb_per_s": measured.download,
        }),
    }
}

/// Everything arrived: a peer that failed half-way is no baseline.
fn check(root: &Path, load: &Load) {
    for file in &load.files {
        let arrived = fs::metadata(root.join(peers::name(file))).map(|found| found.len()).ok();
        assert_eq!(arrived, Some(file.size), "{}", file.path.display());
    }
}
