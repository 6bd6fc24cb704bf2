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
    fs::File,
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
        if bytes.len() > MAX_SECRET {
            return Err(SecretError(format!("{place} is longer than 64 KiB: is it the right one?")));
        }
        if bytes.is_empty() {
            return Err(SecretError(format!("{place} is empty: write the secret into it")));
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
        let full = base.join(match self {
            Self::File(path) => path.as_path(),
            Self::Env(_) => Path::new(""),
        });
        let full = full.display();
        SecretError(match error.kind() {
            io::ErrorKind::NotFound => {
                format!("{place} does not exist: create or mount {full}")
            }
            io::ErrorKind::PermissionDenied => format!(
                "{place} is not readable for the agent's user: chown {full} to that user and chmod 0400 it"
            ),
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
    let file = File::open(path)?;
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
