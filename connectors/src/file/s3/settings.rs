//! What the operator writes for an `s3://` resource, checked.

use super::{
    connect::ObjectStore,
    sign::{Keys, encode},
};
use crate::{
    BuildError,
    address::{BLOCKED_HERE, is_blocked_host},
    apart::Background,
    file::backend::Connect,
    http::client::tls_of,
};
use passerelle_config::{Secret, SecretError, SecretRef};
use percent_encoding::percent_decode_str;
use reqwest::Url;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What stores that know no regions are told.
const DEFAULT_REGION: &str = "us-east-1";

/// The keys of the resource that have a meaning here, as they are written.
pub(in crate::file) struct S3Keys {
    pub(in crate::file) endpoint: Option<String>,
    pub(in crate::file) region: Option<String>,
    pub(in crate::file) addressing: Option<String>,
    pub(in crate::file) access_key_id: Option<SecretRef>,
    pub(in crate::file) secret_access_key: Option<SecretRef>,
    pub(in crate::file) ca_file: Option<PathBuf>,
    pub(in crate::file) connect_timeout: Duration,
    pub(in crate::file) max_sessions: usize,
}

/// Checked settings.
#[derive(Debug)]
pub(in crate::file) struct S3Settings {
    /// The endpoint with the bucket in its host or path.
    base: Url,
    bucket: String,
    prefix: String,
    region: String,
    access_key_id: SecretRef,
    secret_access_key: SecretRef,
    ca_file: Option<PathBuf>,
    connect_timeout: Duration,
    max_sessions: usize,
}

/// Checks them; findings go to `wrong`, each with the key it is about.
pub(in crate::file) fn check(
    url: &Url,
    keys: S3Keys,
    wrong: &mut dyn FnMut(&str, String),
) -> Option<S3Settings> {
    let bucket = url.host_str().unwrap_or_default().to_owned();
    let named = (3..=63).contains(&bucket.len())
        && bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if !named || url.port().is_some() || !url.username().is_empty() || url.password().is_some() {
        let message = "must be s3://bucket/prefix, the bucket 3 to 63 letters, digits, dots and hyphens; the server goes into endpoint, the access key into access_key_id and secret_access_key";
        wrong("url", message.to_owned());
    }
    let prefix = prefix(url);
    if prefix.is_none() {
        let message = "the prefix must be UTF-8 text without line ends, and without empty names, `.` or `..` between its slashes";
        wrong("url", message.to_owned());
    }
    let region = match (keys.region, &keys.endpoint) {
        (Some(region), _) => Some(region),
        (None, Some(_)) => Some(DEFAULT_REGION.to_owned()),
        (None, None) => {
            let message = "missing; name the bucket's region, or the store's endpoint if it is not Amazon's";
            wrong("region", message.to_owned());
            None
        }
    };
    let in_words = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if region.as_ref().is_some_and(|region| region.is_empty() || !region.bytes().all(in_words)) {
        wrong("region", "must be a word of letters, digits and hyphens, as eu-west-3".to_owned());
        return None;
    }
    let region = region?;
    let endpoint = keys.endpoint.clone().unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    let base = endpoint_of(&endpoint, wrong);
    let in_path = match keys.addressing.as_deref() {
        // A certificate for `*.host` is good for one name in front of the host, and a dot makes two.
        None => keys.endpoint.is_some() || bucket.contains('.'),
        Some("path") => true,
        Some("virtual") => false,
        Some(_) => {
            let message =
                "must be \"path\" (https://host/bucket/key) or \"virtual\" (https://bucket.host/key)";
            wrong("addressing", message.to_owned());
            true
        }
    };
    if keys.ca_file.is_some() && base.as_ref().is_some_and(|base| base.scheme() != "https") {
        wrong("ca_file", "has no meaning without TLS; write https:// in the endpoint".to_owned());
    }
    let mut secret = |key: &str, found: Option<SecretRef>| {
        if found.is_none() {
            wrong(key, format!("missing; s3:// needs {key} = {{ file = \"secrets/…\" }}"));
        }
        found
    };
    let access_key_id = secret("access_key_id", keys.access_key_id);
    let secret_access_key = secret("secret_access_key", keys.secret_access_key);
    if !named {
        return None;
    }
    let base = base.and_then(|base| {
        let whole = with_bucket(base, &bucket, in_path);
        if whole.is_none() {
            wrong("addressing", "the bucket cannot stand in this endpoint's host; write \"path\"".to_owned());
        }
        whole
    });
    Some(S3Settings {
        base: base?,
        bucket,
        prefix: prefix?,
        region,
        access_key_id: access_key_id?,
        secret_access_key: secret_access_key?,
        ca_file: keys.ca_file,
        connect_timeout: keys.connect_timeout,
        max_sessions: keys.max_sessions,
    })
}

/// What every key begins with: empty, or with a slash at its end.
fn prefix(url: &Url) -> Option<String> {
    let path = percent_decode_str(url.path()).decode_utf8().ok()?;
    let path = path.trim_start_matches('/').trim_end_matches('/');
    if path.is_empty() {
        return Some(String::new());
    }
    let bad = |name: &str| matches!(name, "" | "." | "..");
    (!path.contains(['\0', '\r', '\n']) && !path.split('/').any(bad)).then(|| format!("{path}/"))
}

fn endpoint_of(text: &str, wrong: &mut dyn FnMut(&str, String)) -> Option<Url> {
    const RIGHT: &str = "must be https://host:port, or http://host:port where the network is protected";
    let url = match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => url,
        Ok(_) | Err(_) => {
            wrong("endpoint", RIGHT.to_owned());
            return None;
        }
    };
    if url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
    {
        wrong("endpoint", RIGHT.to_owned());
    }
    if url.host().is_some_and(|host| is_blocked_host(&host)) {
        wrong("endpoint", BLOCKED_HERE.to_owned());
    }
    Some(url)
}

/// The endpoint with the bucket in it.
fn with_bucket(mut base: Url, bucket: &str, in_path: bool) -> Option<Url> {
    if in_path {
        let path = format!("{}/{}", base.path().trim_end_matches('/'), encode(bucket));
        base.set_path(&path);
        return Some(base);
    }
    let host = format!("{bucket}.{}", base.host_str()?);
    base.set_host(Some(&host)).ok()?;
    Some(base)
}

impl S3Settings {
    /// How many connections there may be at once.
    pub(in crate::file) fn max_sessions(&self) -> usize {
        self.max_sessions
    }

    /// Reads the access key and the CA file; does not connect.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub(in crate::file) fn connect(&self, base: &Path) -> Result<Arc<dyn Connect>, BuildError> {
        let ca_file = self.ca_file.as_ref().map(|file| base.join(file));
        let tls = tls_of(self.base.scheme() == "https", ca_file.as_deref(), &[b"http/1.1"])
            .map_err(|(key, cause)| BuildError::at(key, cause))?;
        let secret = |key: &str, reference: &SecretRef| -> Result<Secret, BuildError> {
            reference.read(base).map_err(|SecretError(message)| BuildError::at(key, message))
        };
        let keys = Keys {
            id: secret("access_key_id", &self.access_key_id)?,
            secret: secret("secret_access_key", &self.secret_access_key)?,
            region: self.region.clone(),
        };
        let runtime = Background::start("object-store")
            .map_err(|error| BuildError::at("url", format!("the agent cannot start a thread: {error}")))?;
        let store = ObjectStore::new(
            self.base.clone(),
            &self.bucket,
            &self.prefix,
            keys,
            tls,
            self.connect_timeout,
            runtime,
        );
        Ok(Arc::new(store?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_goes_into_the_path_or_into_the_host() {
        let at = |endpoint: &str, in_path| {
            with_bucket(Url::parse(endpoint).unwrap(), "files", in_path).unwrap().to_string()
        };
        assert_eq!(at("https://s3.intra:9000", true), "https://s3.intra:9000/files");
        assert_eq!(at("https://gate.intra/s3/", true), "https://gate.intra/s3/files");
        assert_eq!(
            at("https://s3.eu-west-3.amazonaws.com", false),
            "https://files.s3.eu-west-3.amazonaws.com/"
        );
    }

    #[test]
    fn a_prefix_is_names_between_slashes() {
        let of = |url: &str| prefix(&Url::parse(url).unwrap());
        assert_eq!(of("s3://files").as_deref(), Some(""));
        assert_eq!(of("s3://files/").as_deref(), Some(""));
        assert_eq!(of("s3://files/a%20b/c/").as_deref(), Some("a b/c/"));
        assert_eq!(of("s3://files/a//b"), None);
        assert_eq!(of("s3://files/a%0Ab"), None);
    }
}
