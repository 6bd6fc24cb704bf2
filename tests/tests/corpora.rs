//! Replays everything the fuzzer has found worth keeping, and every fixture of the protocol, in the fuzzer's targets.
#![expect(clippy::unwrap_used, reason = "what cannot be read fails the test")]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

fn inputs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Runs a target on every file; gives the files that broke a promise.
fn replay(run: fuzz::Run, files: &[PathBuf]) -> Vec<String> {
    let broken = |path: &&PathBuf| {
        let data = fs::read(path).unwrap();
        catch_unwind(AssertUnwindSafe(|| run(&data))).is_err()
    };
    files.iter().filter(broken).map(|path| path.display().to_string()).collect()
}

#[test]
fn every_input_that_the_fuzzer_kept_is_borne() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, run) in fuzz::TARGETS {
        let files = inputs(&corpora.join(name));
        assert!(files.len() >= 10, "the corpus of {name} has {} inputs", files.len());
        let broken = replay(run, &files);
        assert!(broken.is_empty(), "{name}: {broken:#?}");
    }
}

#[test]
fn every_fixture_of_the_protocol_is_borne_as_a_frame() {
    let fixtures = inputs(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/fixtures/v1"));
    assert!(fixtures.len() >= 30, "{} fixtures", fixtures.len());
    assert!(replay(fuzz::frames::run, &fixtures).is_empty());
}
