//! What is in the images, and what is not.

use passerelle_tests::docker::{AGENT, CLIENT, Container, HUB, docker, docker_output, said};
use serde_json::Value;
use std::process::Stdio;

/// The images, with their programs and the folders that belong to their account.
const IMAGES: [(&str, &str, &[&str]); 3] = [
    (AGENT, "passerelle-agent", &["config/", "state/"]),
    (HUB, "passerelle-hub", &["bootstrap/", "data/"]),
    (CLIENT, "passerelle", &["data/", "tmp/"]),
];

/// What the engine itself lays into every container.
const ENGINE: [&str; 13] = [
    ".dockerenv",
    "dev/",
    "dev/console",
    "dev/pts/",
    "dev/shm/",
    "etc/",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "proc/",
    "sys/",
    "var/",
];

fn inspect(image: &str) -> Value {
    let mut all: Vec<Value> = serde_json::from_str(&docker(&["image", "inspect", image])).unwrap();
    all.pop().unwrap()
}

/// The files of an image as `tar` lists them: mode, owner, path.
fn files(image: &str) -> Vec<(String, String, String)> {
    let container = Container::create("files", &[image]);
    let mut export = passerelle_tests::docker::command()
        .args(["export", container.name()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let listed = std::process::Command::new("tar")
        .args(["--list", "--verbose", "--numeric-owner"])
        .stdin(export.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(export.wait().unwrap().success() && listed.status.success(), "{}", said(&listed));
    let text = String::from_utf8(listed.stdout).unwrap();
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (mode, owner) = (words.next().unwrap(), words.next().unwrap());
        let path = words.nth(3).unwrap();
        (mode.to_owned(), owner.to_owned(), path.to_owned())
    };
    text.lines().map(entry).collect()
}

#[test]
fn an_image_holds_its_program_its_libraries_certificates_and_time_zones_alone() {
    for (image, program, owned) in IMAGES {
        let files = files(image);
        let mut programs = Vec::new();
        for (mode, owner, path) in &files {
            let is_library =
                |name: &str| name.starts_with("lib") && name.contains(".so.") || name.starts_with("ld-linux");
            let name = path.rsplit('/').next().unwrap();
            let expected = ENGINE.contains(&path.as_str())
                || owned.contains(&path.as_str())
                || ["usr/", "usr/bin/", "usr/share/", "lib/", "lib64/", "etc/ssl/", "etc/ssl/certs/"]
                    .contains(&path.as_str())
                || ["etc/group", "etc/nsswitch.conf", "etc/passwd", "etc/ssl/certs/ca-certificates.crt"]
                    .contains(&path.as_str())
                || path.starts_with("usr/share/zoneinfo/")
                || *path == format!("usr/bin/{program}")
                || (path.starts_with("lib") && (path.ends_with('/') || is_library(name)));
            assert!(expected, "{image} has {mode} {owner} {path}");
            assert!(!mode.contains(['s', 'S']), "{image}: {path} changes who runs it: {mode}");
            let wanted = if owned.contains(&path.as_str()) { "10001/10001" } else { "0/0" };
            assert_eq!(owner, wanted, "{image}: {path}");
            if path.starts_with("usr/bin/") && !path.ends_with('/') {
                programs.push(path.clone());
            }
        }
        assert_eq!(programs, [format!("usr/bin/{program}")]);
        for needed in ["etc/ssl/certs/ca-certificates.crt", "usr/share/zoneinfo/Europe/Paris", "etc/passwd"] {
            assert!(files.iter().any(|(_, _, path)| path == needed), "{image} lacks {needed}");
        }
    }
}

#[test]
fn there_is_no_shell_to_run() {
    for (image, _, _) in IMAGES {
        for shell in ["/bin/sh", "/bin/bash", "/bin/busybox", "/usr/bin/env"] {
            let output = docker_output(&["run", "--rm", "--entrypoint", shell, image, "-c", "true"]);
            assert!(!output.status.success(), "{image} runs {shell}");
            assert!(said(&output).contains("no such file or directory"), "{}", said(&output));
        }
    }
}

#[test]
fn an_image_says_what_it_is_and_runs_as_nobody_special() {
    for (image, program, _) in IMAGES {
        let told = inspect(image);
        let config = &told["Config"];
        assert_eq!(config["User"], "10001:10001", "{image}");
        assert_eq!(config["StopSignal"], "SIGTERM", "{image}");
        assert_eq!(config["Entrypoint"][0], format!("/usr/bin/{program}"));
        assert!(config["Volumes"].is_null(), "{image} makes volumes that nobody asked for");
        let label =
            |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].as_str().unwrap_or("");
        assert_eq!(label("version"), env!("CARGO_PKG_VERSION"), "{image}");
        assert_eq!(label("licenses"), "Apache-2.0", "{image}");
        for name in ["title", "description", "vendor", "revision"] {
            assert!(!label(name).is_empty(), "{image} has no label {name}");
        }
        let version = docker(&["run", "--rm", image, "--version"]);
        assert_eq!(version, format!("{program} {}", env!("CARGO_PKG_VERSION")));
        if program != "passerelle" {
            let check: Vec<&str> =
                config["Healthcheck"]["Test"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            assert_eq!(check, ["CMD", &format!("/usr/bin/{program}"), "health"], "{image}");
        }
    }
    let env = inspect(AGENT)["Config"]["Env"].clone();
    assert!(env.as_array().unwrap().iter().any(|one| one == "PASSERELLE_LISTEN=[::]:9464"), "{env}");
}

#[test]
fn the_history_of_an_image_has_no_secrets() {
    let words = ["token", "password", "secret", "private key", "api_key", "apikey", "bearer", "proxy="];
    for (image, _, _) in IMAGES {
        let history = docker(&["history", "--no-trunc", "--format", "{{.CreatedBy}}", image]);
        assert!(history.contains("ENTRYPOINT"), "{history}");
        let told = inspect(image);
        let all = format!("{history}\n{}\n{}", told["Config"], told["ContainerConfig"]).to_lowercase();
        for word in words {
            assert!(!all.contains(word), "{image} tells of a {word}: {history}");
        }
        // Nothing of the machine that built it either.
        for (name, value) in std::env::vars() {
            let secret =
                ["TOKEN", "KEY", "SECRET", "PASSWORD"].iter().any(|word| name.to_uppercase().contains(word));
            assert!(
                !secret || value.len() < 8 || !all.contains(&value.to_lowercase()),
                "{image} tells ${name}"
            );
        }
    }
}

#[test]
fn the_agents_image_is_small() {
    const MOST: usize = 30_000_000;
    let saved =
        passerelle_tests::docker::command().args(["save", AGENT]).stdout(Stdio::piped()).spawn().unwrap();
    let packed = std::process::Command::new("gzip").stdin(saved.stdout.unwrap()).output().unwrap();
    println!("{AGENT}: {:.1} MB compressed", packed.stdout.len() as f64 / 1e6);
    assert!(packed.status.success() && packed.stdout.len() > 1_000_000);
    assert!(packed.stdout.len() <= MOST, "{} bytes compressed", packed.stdout.len());
}
