//! Keys that sign jobs: made here, or with OpenSSL, and read for a submission.

use crate::{
    Failure,
    args::{CreateKey, Keys},
    out::Out,
};
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::{SigningKey, VerifyingKey};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::json;
use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// SubjectPublicKeyInfo of an Ed25519 key up to the 32 bytes of the key itself (RFC 8410 §4 and §10.1).
const PUBLIC: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

pub(crate) fn run(command: &Keys, out: &Out) -> Result<(), Failure> {
    let Keys::Create(command) = command;
    create(command, out)
}

fn create(command: &CreateKey, out: &Out) -> Result<(), Failure> {
    let (private, public) = (&command.file, public_name(&command.file));
    let failed = |_| Failure::usage("the system's random source failed");
    let pair = Ed25519KeyPair::generate().map_err(failed)?;
    // Version 1 of PKCS#8, without the public half: every OpenSSL reads it.
    let document = pair.to_pkcs8v1().map_err(failed)?;
    let key = SigningKey::from_pkcs8(document.as_ref()).map_err(|e| Failure::usage(e.to_string()))?;
    let id = key.public().id();
    write_new(private, &pem("PRIVATE KEY", document.as_ref()), 0o600)?;
    let written = write_new(&public, &public_pem(key.public()), 0o644);
    if written.is_err() {
        // Half a pair is of no use, and in the way of the next try.
        let _ = fs::remove_file(private);
    }
    written?;
    if command.json {
        out.json(&json!({ "private_key": private, "public_key": public, "key_id": id }));
    } else {
        out.text(&format!(
            "private key {}: keep it where jobs are signed, and nowhere else\n\
             public key  {}: for the agents, [trust] job_keys\nkey id      {id}\n",
            private.display(),
            public.display()
        ));
    }
    Ok(())
}

/// `orchestrator.pem` → `orchestrator.pub.pem`.
fn public_name(private: &Path) -> PathBuf {
    private.with_extension("pub.pem")
}

/// A PEM document (RFC 7468) of a key, which is shorter than two lines of 64 characters.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let (first, rest) = text.split_at_checked(64).unwrap_or((&text, ""));
    let lines = if rest.is_empty() { first.to_owned() } else { format!("{first}\n{rest}") };
    format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
}

fn public_pem(key: &VerifyingKey) -> String {
    pem("PUBLIC KEY", &[PUBLIC.as_slice(), key.bytes()].concat())
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::usage(format!("{}: cannot write the key: {e}", path.display()));
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

/// Reads the private key that signs jobs.
///
/// # Errors
/// A usage failure if there is none.
pub(crate) fn read(path: &Path) -> Result<SigningKey, Failure> {
    let wrong = |why: String| Failure::usage(format!("--sign-key: {}: {why}", path.display()));
    let text = fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let document = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|_| {
        wrong("no private key in PEM (BEGIN PRIVATE KEY); make one with `passerelle keys create`".to_owned())
    })?;
    let mode = fs::metadata(path).map_err(|e| wrong(e.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        eprintln!("warning: {} can be read by others: run `chmod 600` on it", path.display());
    }
    SigningKey::from_pkcs8(document.secret_pkcs8_der()).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::SubjectPublicKeyInfoDer;

    #[test]
    fn a_pair_is_written_once_private_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("orchestrator.pem");
        let command = CreateKey { file: file.clone(), json: true };
        create(&command, &Out::stdout()).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let key = read(&file).unwrap();
        let public = fs::read(dir.path().join("orchestrator.pub.pem")).unwrap();
        let public = SubjectPublicKeyInfoDer::from_pem_slice(&public).unwrap();
        assert_eq!(public.as_ref(), [PUBLIC.as_slice(), key.public().bytes()].concat());
        let again = create(&command, &Out::stdout()).unwrap_err();
        assert!(again.message.contains("orchestrator.pem"), "{}", again.message);
        assert_eq!(read(&file).unwrap().public(), key.public(), "the key was replaced");
    }

    #[test]
    fn what_is_no_private_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        assert!(read(&file).unwrap_err().message.starts_with("--sign-key: "));
        fs::write(&file, public_pem(SigningKey::generate().unwrap().0.public())).unwrap();
        assert!(read(&file).unwrap_err().message.contains("no private key"));
        fs::write(&file, pem("PRIVATE KEY", b"x")).unwrap();
        assert!(read(&file).unwrap_err().message.contains("Ed25519"));
    }
}
