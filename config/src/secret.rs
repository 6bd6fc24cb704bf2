//! Secrets by reference: `{ file = "…" }` or `{ env = "…" }`. A literal is refused.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use std::{
    borrow::Cow,
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// The longest secret: a large private key with a chain has a few KiB.
const MAX_SECRET: usize = 64 * 1024;

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// In a file; relative paths start from the configuration folder. One trailing line end is taken off.
    File(PathBuf),
    /// In an environment variable.
    Env(String),
}

/// Why a secret could not be read; never its value.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SecretError(pub String);

/// A secret: `Debug` is `[redacted]`, wiped on drop, never serialised.
pub struct Secret(SecretString);

impl Secret {
    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl SecretRef {
    /// Reads the secret.
    ///
    /// # Errors
    /// If it is not there, not readable, empty, or not text.
    pub fn read(&self, base: &Path) -> Result<Secret, SecretError> {
        let bytes = match self {
            Self::File(path) => read_file(&base.join(path)).map_err(|error| self.explain(base, &error))?,
            Self::Env(name) => {
                let value = std::env::var_os(name).ok_or_else(|| {
                    SecretError(format!(
                        "environment variable {name} is not set: set it for the agent's process"
                    ))
                })?;
                Zeroizing::new(value.into_encoded_bytes())
            }
        };
        self.check(
            bytes.strip_suffix(b"\n").map_or(&bytes[..], |rest| rest.strip_suffix(b"\r").unwrap_or(rest)),
        )
    }

    /// What is unsafe about where the secret lies: a file that every user of the machine may read. Files that the
    /// container engine mounts under `/run/secrets` are exempt: there nobody else is.
    #[must_use]
    pub fn warning(&self, base: &Path) -> Option<String> {
        let Self::File(path) = self else { return None };
        let path = base.join(path);
        let others_may_read = world_readable(&path) && !path.starts_with("/run/secrets");
        others_may_read
            .then(|| format!("every user may read secret file {0}: run chmod o-rwx {0}", path.display()))
    }

    fn check(&self, bytes: &[u8]) -> Result<Secret, SecretError> {
        let place = self.place();
        // Editors of Windows put it there; no secret begins with it.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        if bytes.len() > MAX_SECRET {
            return Err(SecretError(format!("{place} is longer than 64 KiB: is it the right one?")));
        }
        if bytes.is_empty() {
            return Err(SecretError(format!("{place} is empty: write the secret into it")));
        }
        if [[0xff, 0xfe], [0xfe, 0xff]].iter().any(|mark| bytes.starts_with(mark)) {
            return Err(SecretError(format!("{place} is text in UTF-16: save it as UTF-8")));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|_| SecretError(format!("{place} is not text in UTF-8: is it the right one?")))?;
        // A string of the exact capacity, so that no reallocation leaves a copy behind.
        let mut owned = String::with_capacity(text.len());
        owned.push_str(text);
        Ok(Secret(SecretString::from(owned)))
    }

    fn place(&self) -> String {
        match self {
            Self::File(path) => format!("secret file {}", path.display()),
            Self::Env(name) => format!("environment variable {name}"),
        }
    }

    fn explain(&self, base: &Path, error: &io::Error) -> SecretError {
        let place = self.place();
        let path = base.join(match self {
            Self::File(path) => path.as_path(),
            Self::Env(_) => Path::new(""),
        });
        let full = path.display();
        SecretError(match error.kind() {
            io::ErrorKind::NotFound => {
                format!("{place} does not exist: create or mount {full}")
            }
            io::ErrorKind::PermissionDenied => {
                format!("{place} is {}", crate::mapped::unreadable(&path, error))
            }
            io::ErrorKind::IsADirectory => {
                format!(
                    "{place} is a folder: name the file itself (a bind mount of a missing file makes a folder)"
                )
            }
            _ => format!("{place} can't be read: {error}"),
        })
    }
}

/// Reads at most one byte more than the limit, into memory that is wiped and never reallocated.
fn read_file(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = crate::open_file(path)?;
    let limit = MAX_SECRET + 3;
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    file.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(unix)]
fn world_readable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
fn world_readable(_: &Path) -> bool {
    false
}

const KEYS: &[&str] = &["file", "env"];

/// Reads `{ file = … }` or `{ env = … }`; no message ever holds what stood there instead.
struct RefVisitor;

impl<'de> Visitor<'de> for RefVisitor {
    type Value = SecretRef;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret by reference: { file = \"secrets/…\" } or { env = \"…\" }")
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<SecretRef, E> {
        Err(E::custom(
            "a secret is never written here: put it into a file and write { file = \"secrets/…\" }, or { env = \"…\" }",
        ))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<SecretRef, E> {
        self.visit_str("")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretRef, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if !KEYS.contains(&key.as_str()) {
                return Err(de::Error::unknown_field(&key, KEYS));
            }
            let value: String = map.next_value()?;
            if found.is_some() {
                return Err(de::Error::custom("expected exactly one of \"file\" and \"env\", found both"));
            }
            if value.is_empty() || value.contains(['\0', if key == "env" { '=' } else { '\0' }]) {
                return Err(de::Error::custom(format!("expected the name of a secret in \"{key}\"")));
            }
            found = Some(if key == "file" { SecretRef::File(value.into()) } else { SecretRef::Env(value) });
        }
        found.ok_or_else(|| de::Error::custom("expected exactly one of \"file\" and \"env\", found neither"))
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RefVisitor)
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A secret by reference; never the secret itself.",
            "oneOf": [
                { "type": "object", "required": ["file"], "additionalProperties": false,
                  "properties": { "file": { "type": "string", "description": "A file; one trailing line end is taken off." } } },
                { "type": "object", "required": ["env"], "additionalProperties": false,
                  "properties": { "env": { "type": "string", "description": "An environment variable of the agent." } } }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(content: &[u8]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("s"), content).unwrap();
        let secret = SecretRef::File("s".into()).read(dir.path());
        secret.map(|secret| secret.expose().to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn one_line_end_is_taken_off() {
        for (content, secret) in [
            ("geheim", "geheim"),
            ("geheim\n", "geheim"),
            ("geheim\r\n", "geheim"),
            ("geheim\n\n", "geheim\n"),
            (" geheim \n", " geheim "),
            ("geheim\r", "geheim\r"),
            ("a\nb\n", "a\nb"),
            ("\u{feff}geheim\r\n", "geheim"),
        ] {
            assert_eq!(read(content.as_bytes()).as_deref(), Ok(secret), "{content:?}");
        }
        assert_eq!(read(&[b'x'; MAX_SECRET]).map(|secret| secret.len()), Ok(MAX_SECRET));
        let longest = [&[b'x'; MAX_SECRET][..], b"\r\n"].concat();
        assert_eq!(read(&longest).map(|secret| secret.len()), Ok(MAX_SECRET));
    }

    #[test]
    fn what_is_no_secret_is_refused_without_its_content() {
        for (content, message) in [
            (&b""[..], "secret file s is empty: write the secret into it"),
            (b"\n", "secret file s is empty: write the secret into it"),
            (b"\r\n", "secret file s is empty: write the secret into it"),
            (b"geheim\xff", "secret file s is not text in UTF-8: is it the right one?"),
            (b"\xff\xfeg\0", "secret file s is text in UTF-16: save it as UTF-8"),
            (&[b'x'; MAX_SECRET + 1], "secret file s is longer than 64 KiB: is it the right one?"),
            (&[b'x'; MAX_SECRET * 2], "secret file s is longer than 64 KiB: is it the right one?"),
        ] {
            assert_eq!(read(content), Err(message.to_owned()));
        }
    }

    #[test]
    fn what_cannot_be_read_says_what_to_do() {
        let base = Path::new("/config");
        let file = SecretRef::File("secrets/x".into());
        for (kind, message) in [
            (
                io::ErrorKind::NotFound,
                "secret file secrets/x does not exist: create or mount /config/secrets/x",
            ),
            (io::ErrorKind::PermissionDenied, "secret file secrets/x is not readable for uid "),
        ] {
            let told = file.explain(base, &kind.into()).to_string();
            assert!(told.starts_with(message), "{told}");
        }
        let dir = tempfile::tempdir().unwrap();
        let told = |path: &str| SecretRef::File(path.into()).read(dir.path()).unwrap_err().to_string();
        assert!(told("none").starts_with("secret file none does not exist: create or mount "));
        fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(told("folder").starts_with("secret file folder is a folder: name the file itself"));
        // Opening it would wait for whoever writes there.
        let made = std::process::Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap();
        assert!(made.success());
        assert!(
            told("pipe").ends_with("can't be read: a pipe, socket or device, not a file"),
            "{}",
            told("pipe")
        );
        let unset = SecretRef::Env("PASSERELLE_TEST_OF_AN_UNSET_VARIABLE".to_owned()).read(base).unwrap_err();
        assert_eq!(
            unset.to_string(),
            "environment variable PASSERELLE_TEST_OF_AN_UNSET_VARIABLE is not set: set it for the agent's process"
        );
    }

    #[test]
    fn environment_variables_serve_too_and_debug_shows_nothing() {
        let secret = SecretRef::Env("CARGO_PKG_NAME".to_owned()).read(Path::new("")).unwrap();
        assert_eq!(secret.expose(), "passerelle-config");
        assert_eq!(format!("{secret:?}"), "[redacted]");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_everybody_may_read_is_warned_of() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s");
        fs::write(&file, "geheim").unwrap();
        let warning = |mode| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            SecretRef::File("s".into()).warning(dir.path())
        };
        assert_eq!(warning(0o600), None);
        let path = file.display();
        let expected = format!("every user may read secret file {path}: run chmod o-rwx {path}");
        assert_eq!(warning(0o644), Some(expected));
    }
}
