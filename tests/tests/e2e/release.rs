//! What a release consists of, made by the one command from the programs of this build; and the reference of the
//! configuration and its schema, which are made of the same programs.

use passerelle_tests::{binary, reference, run};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

/// Makes a release of the programs beside this one.
pub fn make(out: &Path) {
    let programs = binary("passerelle-agent");
    let mut command = Command::new(root().join("deploy/release"));
    command.arg("--out").arg(out).arg("--binaries").arg(programs.parent().expect("its folder"));
    let made = run(&mut command);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Python with packages that tests/run installed.
fn python(script: &str, arguments: &[&Path]) {
    let python = root().join("target/test-schemas/bin/python3");
    assert!(python.exists(), "{} is missing: tests/run makes it", python.display());
    let told = run(Command::new(python).arg("-c").arg(script).args(arguments));
    assert!(
        told.status.success(),
        "{}{}",
        String::from_utf8_lossy(&told.stdout),
        String::from_utf8_lossy(&told.stderr)
    );
}

#[test]
fn one_command_makes_the_archive_with_checksums_and_bills_of_materials() {
    let out = tempfile::tempdir().expect("a temporary folder");
    make(out.path());
    let checked =
        run(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(out.path()));
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));

    let names: BTreeSet<String> = fs::read_dir(out.path())
        .expect("what was made")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    let archive = names.iter().find(|name| name.ends_with("-linux.tar.gz")).expect("an archive");
    assert_eq!(names.len(), 5, "{names:?}");
    let listed = run(Command::new("tar").arg("-tzf").arg(out.path().join(archive)));
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for wanted in [
        "/passerelle-agent\n",
        "/passerelle-hub\n",
        "/passerelle\n",
        "/systemd/passerelle-agent.service\n",
        "/systemd/passerelle-hub.service\n",
        "/systemd/passerelle.sysusers.conf\n",
        "/LICENSE\n",
        "/sbom/passerelle-hub.cdx.json\n",
    ] {
        assert!(listed.contains(wanted), "{wanted} is not in:\n{listed}");
    }

    // Valid by the schema of the format, and true to the lock file.
    let bill = names.iter().find(|name| name.starts_with("passerelle-agent-")).expect("the agent's bill");
    let bill = out.path().join(bill);
    python(
        "import sys\nfrom cyclonedx.validation.json import JsonStrictValidator\nfrom cyclonedx.schema import SchemaVersion\n\
         wrong = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read())\nassert wrong is None, wrong",
        &[&bill],
    );
    let bill: Value = serde_json::from_slice(&fs::read(bill).expect("a bill")).expect("JSON");
    let has = |name: &str| {
        bill["components"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == name))
    };
    assert!(has("rustls") && has("ssh2") && has("openssl-src"), "what is linked is not listed");
    assert!(!has("proptest") && !has("passerelle-hub"), "what is not linked is listed");
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("the lock file");
    for component in bill["components"].as_array().into_iter().flatten() {
        let Some(digest) = component["hashes"][0]["content"].as_str() else { continue };
        assert!(lock.contains(digest), "{component}");
    }
}

#[test]
fn the_reference_of_the_configuration_is_what_the_programs_say() {
    let there = fs::read_to_string(reference::path()).expect("the reference");
    let right = reference::text();
    let differs = there.lines().zip(right.lines()).find(|(there, right)| there != right);
    assert!(
        there == right,
        "docs/en/configuration-reference.md is out of date ({differs:?}): run `cargo run -p passerelle-tests --bin reference`"
    );
    // Made of what is there, and of all of it.
    for key in [
        "`passphrase`",
        "`token_url`",
        "`dialect`",
        "`since_param`",
        "done_marker",
        "`quotas`",
        "`lease`",
        "`open_jobs`",
    ] {
        assert!(right.contains(key), "{key} is not in it");
    }
}

/// Every example is right by the schema, and what is wrong is wrong by it: a validator that is not ours says so.
#[test]
fn the_schema_of_the_configuration_takes_the_examples_and_refuses_mistakes() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let (agent, hub) = (home.path().join("agent.json"), home.path().join("hub.json"));
    fs::write(&agent, reference::schema("passerelle-agent").to_string()).expect("a file");
    fs::write(&hub, reference::schema("passerelle-hub").to_string()).expect("a file");
    python(include_str!("schemas.py"), &[&agent, &hub, &root().join("config/examples")]);
}
