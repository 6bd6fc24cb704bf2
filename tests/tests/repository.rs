//! What holds of the repository itself: who may depend on whom, and documents that name what is there.

use cargo_metadata::{DependencyKind, MetadataCommand};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

#[test]
fn crates_depend_downwards_only() {
    let allowed = BTreeMap::from([
        ("passerelle-protocol", BTreeSet::new()),
        ("passerelle-config", BTreeSet::new()),
        ("passerelle-connectors", BTreeSet::from(["passerelle-config"])),
        (
            "passerelle-agent",
            BTreeSet::from(["passerelle-protocol", "passerelle-config", "passerelle-connectors"]),
        ),
        ("passerelle-hub", BTreeSet::from(["passerelle-protocol", "passerelle-config"])),
        (
            "passerelle",
            BTreeSet::from([
                "passerelle-protocol",
                "passerelle-config",
                "passerelle-connectors",
                "passerelle-agent",
                "passerelle-hub",
            ]),
        ),
        (
            "passerelle-tests",
            BTreeSet::from([
                "passerelle-protocol",
                "passerelle-config",
                "passerelle-connectors",
                "passerelle-agent",
                "passerelle-hub",
                "passerelle",
            ]),
        ),
    ]);
    let metadata = MetadataCommand::new().current_dir(root()).no_deps().exec().unwrap();
    let mut seen = 0;
    for package in &metadata.packages {
        let name = package.name.to_string();
        let allowed = allowed
            .get(name.as_str())
            .unwrap_or_else(|| panic!("{name} has no place in the order of crates"));
        seen += 1;
        for dependency in package.dependencies.iter().filter(|d| d.name.starts_with("passerelle")) {
            // Tests of a crate follow the same order: what they reach for shows where it belongs.
            let kind = match dependency.kind {
                DependencyKind::Development => "in its tests",
                _ => "",
            };
            assert!(
                allowed.contains(dependency.name.as_str()),
                "{name} must not depend on {} {kind}",
                dependency.name
            );
        }
    }
    assert_eq!(seen, allowed.len(), "a crate is missing");
}

#[test]
fn the_protocol_and_the_connectors_reach_for_no_network_or_disk_of_their_own_kind() {
    let metadata = MetadataCommand::new().current_dir(root()).no_deps().exec().unwrap();
    let forbidden = BTreeMap::from([
        (
            "passerelle-protocol",
            ["tokio", "reqwest", "hyper", "axum", "rusqlite", "tokio-tungstenite"].as_slice(),
        ),
        (
            "passerelle-config",
            ["reqwest", "hyper", "axum", "rusqlite", "tokio-tungstenite", "ssh2"].as_slice(),
        ),
        ("passerelle-connectors", ["axum", "rusqlite", "tokio-tungstenite", "ed25519-dalek"].as_slice()),
        ("passerelle-hub", ["ssh2"].as_slice()),
    ]);
    for package in &metadata.packages {
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            let wrong =
                forbidden.get(package.name.as_str()).is_some_and(|f| f.contains(&dependency.name.as_str()));
            assert!(!wrong, "{} must not depend on {}", package.name, dependency.name);
        }
    }
}

/// The documents that speak of files.
fn documents() -> Vec<PathBuf> {
    let root = root();
    let mut all: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
        .iter()
        .map(|name| root.join(name))
        .filter(|path| path.exists())
        .collect();
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                all.push(path);
            }
        }
    }
    all
}

#[test]
fn documents_name_only_files_that_are_there() {
    let root = root();
    let tops: BTreeSet<String> = fs::read_dir(&root)
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.path().is_dir())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "target" && name != ".git")
        .collect();
    let mut checked = 0;
    let mut missing = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for (number, line) in text.lines().enumerate() {
            let spans = line.split('`').skip(1).step_by(2).map(str::to_owned);
            let links = line.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned);
            for (named, is_link) in spans.map(|s| (s, false)).chain(links.map(|l| (l, true))) {
                let path = named.split('#').next().unwrap_or_default().trim_end_matches('/');
                let plain = !path.is_empty()
                    && path.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
                if !plain {
                    continue;
                }
                let first = path.split('/').next().unwrap_or_default();
                let beside = document.parent().unwrap().join(path);
                // In text, only what begins with one of our folders is meant as a path of ours.
                let ours = is_link || (path.contains('/') && tops.contains(first));
                if ours {
                    checked += 1;
                    if !root.join(path).exists() && !beside.exists() {
                        missing.push(format!("{}:{}: {named}", document.display(), number + 1));
                    }
                }
            }
        }
    }
    assert!(checked > 0, "no path found in any document");
    assert!(missing.is_empty(), "named, but not there:\n{}", missing.join("\n"));
}

/// All functions of the repository's Rust files.
fn functions() -> BTreeSet<String> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() && name != "target" && name != ".git" {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let names = text.lines().filter_map(|line| {
                    let (_, rest) = line.split_once("fn ")?;
                    rest.split(['(', '<']).next().map(str::to_owned)
                });
                found.extend(names);
            }
        }
    }
    found
}

#[test]
fn every_row_about_delivery_names_a_test_that_is_there() {
    let (functions, mut rows) = (functions(), 0);
    let text = fs::read_to_string(root().join("docs/delivery.md")).unwrap();
    for (number, line) in text.lines().enumerate() {
        let Some(row) =
            line.strip_prefix('|').filter(|row| !row.starts_with("--") && !row.contains("| test |"))
        else {
            continue;
        };
        let proof = row.trim_end().trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let named: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "docs/delivery.md:{}: no test is named", number + 1);
        for test in named {
            assert!(functions.contains(test), "docs/delivery.md:{}: there is no test {test}", number + 1);
        }
        rows += 1;
    }
    assert!(rows > 20, "only {rows} rows were found");
}

#[test]
fn the_readme_is_short_enough_to_be_read() {
    let lines = fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(lines <= 150, "README.md has {lines} lines, more than 150");
}

#[test]
fn shell_scripts_are_executable_and_sound() {
    use std::os::unix::fs::PermissionsExt as _;
    for script in [
        "tests/run",
        "tests/bench",
        "tests/chaos",
        "tests/docker",
        "tests/docker.d/bases",
        "tests/upgrade/make",
        "deploy/release",
        ".ci/run",
    ] {
        let path = root().join(script);
        let mode = fs::metadata(&path).unwrap_or_else(|e| panic!("{script}: {e}")).permissions().mode();
        assert_ne!(mode & 0o111, 0, "{script} is not executable");
        let checked = passerelle_tests::run(std::process::Command::new("bash").arg("-n").arg(&path));
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}
