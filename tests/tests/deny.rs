//! `deny.toml` against the lock file: licences, bans and sources, without `cargo-deny`, which takes minutes to build.
//!
//! The tool itself is run before a release (`CONTRIBUTING.md`): it also reads licence files and knows of advisories.

use cargo_metadata::{Metadata, MetadataCommand};
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path, process::Command};

fn metadata() -> Metadata {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    MetadataCommand::new()
        .current_dir(root)
        .other_options(["--locked".to_owned()])
        .exec()
        .expect("cargo metadata")
}

/// The names that `cargo tree` lists: what some feature of ours asks for, on any platform. The lock file names more.
fn tree(arguments: &[&str]) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(root)
        .args(["tree", "--locked", "--target", "all", "--prefix", "none", "--format", "{p}"]);
    let listed = passerelle_tests::run(command.args(arguments));
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn rules() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deny.toml");
    toml::from_str(&fs::read_to_string(path).expect("deny.toml")).expect("deny.toml in TOML")
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether an SPDX expression can be met with the allowed licences; `/` is an old way to write `OR`.
fn may_use(expression: &str, allowed: &[&str]) -> bool {
    let spaced =
        expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "_WITH_");
    let words: Vec<String> = spaced.split_whitespace().map(|word| word.replace("_WITH_", " WITH ")).collect();
    let mut at = 0;
    let met = any(&words, &mut at, allowed);
    met && at == words.len()
}

fn any(words: &[String], at: &mut usize, allowed: &[&str]) -> bool {
    let mut met = all(words, at, allowed);
    while words.get(*at).is_some_and(|word| word == "OR") {
        *at += 1;
        met |= all(words, at, allowed);
    }
    met
}

fn all(words: &[String], at: &mut usize, allowed: &[&str]) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at).is_some_and(|word| word == "AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[String], at: &mut usize, allowed: &[&str]) -> bool {
    let word = words.get(*at).map(String::as_str);
    *at += 1;
    match word {
        Some("(") => {
            let met = any(words, at, allowed);
            let closed = words.get(*at).is_some_and(|word| word == ")");
            *at += 1;
            met && closed
        }
        Some(licence) => allowed.contains(&licence),
        None => false,
    }
}

#[test]
fn expressions_of_licences_are_understood() {
    let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "ISC"];
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("MIT/Apache-2.0", true),
        ("ISC AND (GPL-3.0 OR Apache-2.0)", true),
        ("ISC AND (GPL-3.0 OR LGPL-2.1)", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("GPL-2.0 WITH Classpath-exception-2.0", false),
        ("GPL-3.0 OR ISC AND MIT", true),
        ("", false),
        ("(MIT", false),
    ] {
        assert_eq!(may_use(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn every_dependency_has_a_licence_that_is_allowed() {
    let (metadata, rules) = (metadata(), rules());
    let allowed = texts(&rules["licenses"]["allow"]);
    let wrong: Vec<String> = metadata
        .packages
        .iter()
        .filter(|package| !may_use(package.license.as_deref().unwrap_or_default(), &allowed))
        .map(|package| format!("{} {}: {:?}", package.name, package.version, package.license))
        .collect();
    assert!(metadata.packages.len() > 200, "only {} packages", metadata.packages.len());
    assert!(wrong.is_empty(), "not allowed by deny.toml:\n{}", wrong.join("\n"));
}

#[test]
fn no_banned_dependency_comes_in() {
    let (linked, rules) = (tree(&["--workspace", "--edges", "all"]), rules());
    assert!(linked.len() > 200, "only {} packages", linked.len());
    let bans = rules["bans"]["deny"].as_array().expect("bans");
    assert!(bans.len() > 3);
    for ban in bans {
        let banned = ban["crate"].as_str().expect("a name");
        let wrappers = texts(&ban["wrappers"]);
        if wrappers.is_empty() {
            assert!(
                !linked.contains(banned),
                "{banned} is banned by deny.toml: see `cargo tree -i {banned}`"
            );
            continue;
        }
        let mut users = tree(&["--workspace", "--invert", banned, "--depth", "1"]);
        users.remove(banned);
        assert!(!users.is_empty(), "{banned} is not there any more: take it off deny.toml");
        assert!(users.iter().all(|user| wrappers.contains(&user.as_str())), "{banned} is used by {users:?}");
    }
}

#[test]
fn everything_comes_from_the_registry() {
    let (metadata, rules) = (metadata(), rules());
    let registries = texts(&rules["sources"]["allow-registry"]);
    for package in &metadata.packages {
        let Some(source) = &package.source else {
            assert!(package.name.starts_with("passerelle"), "{} lies in this repository", package.name);
            continue;
        };
        let known = registries.iter().any(|registry| source.repr == format!("registry+{registry}"));
        assert!(known, "{} comes from {source}", package.name);
    }
}
