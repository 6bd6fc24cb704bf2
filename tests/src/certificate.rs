//! Certificates as operators make them.

use crate::run;
use std::{fs, path::Path, process::Command};

/// A self-signed certificate for a name and its key, both PEM, as `openssl req -x509` makes them: it says that it is a CA.
///
/// # Panics
/// If `openssl` cannot be run.
#[must_use]
pub fn by_openssl(folder: &Path, name: &str) -> (String, String) {
    let (certificate, key) = (folder.join("own.pem"), folder.join("own.key"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj"]);
    command.arg(format!("/CN={name}")).args(["-addext", &format!("subjectAltName=DNS:{name}")]);
    let made = run(command.arg("-keyout").arg(&key).arg("-out").arg(&certificate));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |path| fs::read_to_string(path).expect("a PEM file");
    (read(&certificate), read(&key))
}
