//! `serve --bootstrap DIR`: writes, once, what a demonstration or a Compose file needs.
//!
//! A file that is there stays as it is, so a restart changes nothing. The CA's key is never written: nobody, the
//! operator included, can make another certificate under it.

use crate::{api::auth::tenant_scopes, cli::Failure, model::Tier, store, store::Store};
use passerelle_protocol::Name;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long the enrolment token is taken.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The names under which the development certificate is good: `hub` is the service's name in a Compose file.
const NAMES: [&str; 4] = ["localhost", "127.0.0.1", "::1", "hub"];
/// Years that the development CA and certificate live.
const YEARS: i32 = 10;

const CA: &str = "ca.pem";
const CERTIFICATE: &str = "server.pem";
const KEY: &str = "server-key.pem";
const TENANT: &str = "tenant";
const SITE: &str = "site";
const API_KEY: &str = "api-key";
const TOKEN: &str = "enrolment-token";
const URL: &str = "hub.url";

/// What is asked for.
#[derive(Debug)]
pub struct Wishes {
    /// Where the files go.
    pub dir: PathBuf,
    /// The tenant.
    pub tenant: Name,
    /// The site.
    pub site: Name,
    /// How many agents the token takes.
    pub uses: u32,
}

/// Where the development certificate and its key are.
#[must_use]
pub fn certificate_files(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join(CERTIFICATE), dir.join(KEY))
}

/// Makes what is missing.
///
/// # Errors
/// See [`Failure`].
pub async fn prepare(wishes: &Wishes, store: &Store) -> Result<(), Failure> {
    let Wishes { dir, tenant, site, uses } = wishes;
    fs::create_dir_all(dir).map_err(|error| unwritable(dir, &error))?;
    if [CA, CERTIFICATE, KEY].iter().any(|name| !dir.join(name).exists()) {
        certificate(dir)?;
    }
    match store.create_tenant(tenant.clone(), Tier::Enterprise).await {
        Ok(()) => tracing::info!(%tenant, "Created the bootstrap tenant"),
        Err(store::Error::Conflict(_)) => {}
        Err(error) => return Err(error.into()),
    }
    // A key that this store does not know belongs to an older data folder: key and token are made anew.
    let known = match fs::read_to_string(dir.join(API_KEY)) {
        Ok(key) => store.authenticate(key.trim()).await?.is_some_and(|caller| caller.tenant == *tenant),
        Err(_) => false,
    };
    if !known {
        let scopes = tenant_scopes().map(str::to_owned).collect();
        let (_, key) = store.create_api_key(tenant.clone(), scopes).await?;
        write(dir, API_KEY, &key, SECRET)?;
    }
    if !known || !dir.join(TOKEN).exists() {
        let application = "orchestrator".to_owned();
        let (_, token) = store
            .create_enrolment_token(tenant.clone(), site.clone(), application, TOKEN_LIFE, *uses)
            .await?;
        write(dir, TOKEN, &token, SECRET)?;
    }
    write(dir, TENANT, tenant.as_str(), PUBLIC)?;
    write(dir, SITE, site.as_str(), PUBLIC)
}

/// Writes where the hub is reached: the last file, so whoever waits for it finds all of them.
///
/// # Errors
/// If it cannot be written.
pub fn write_url(wishes: &Wishes, url: &str) -> Result<(), Failure> {
    write(&wishes.dir, URL, url, PUBLIC)
}

fn certificate(dir: &Path) -> Result<(), Failure> {
    let fault = |error: rcgen::Error| Failure::Fault(format!("making the development certificate: {error}"));
    let year = i32::from(jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).year());
    let (from, until) = (rcgen::date_time_ymd(year - 1, 1, 1), rcgen::date_time_ymd(year + YEARS, 1, 1));

    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "Passerelle development CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (ca.not_before, ca.not_after) = (from, until);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().map_err(fault)?).map_err(fault)?;

    let mut server = CertificateParams::new(NAMES.map(str::to_owned).to_vec()).map_err(fault)?;
    server.distinguished_name.push(DnType::CommonName, "passerelle-hub");
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    (server.not_before, server.not_after) = (from, until);
    let key = KeyPair::generate().map_err(fault)?;
    let certificate = server.signed_by(&key, &ca).map_err(fault)?;

    write(dir, KEY, &key.serialize_pem(), SECRET)?;
    write(dir, CERTIFICATE, &certificate.pem(), PUBLIC)?;
    write(dir, CA, &ca.pem(), PUBLIC)
}

const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// Writes a file so that it is there whole or not at all; one line of text ends with a line break.
fn write(dir: &Path, name: &str, content: &str, mode: u32) -> Result<(), Failure> {
    let part = dir.join(format!(".{name}.part"));
    let written = || -> io::Result<()> {
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        writeln!(file, "{}", content.trim_end())?;
        file.sync_all()?;
        fs::rename(&part, dir.join(name))?;
        fs::File::open(dir)?.sync_all()
    };
    written().map_err(|error| unwritable(&dir.join(name), &error))
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::Configuration(format!("bootstrap: cannot write {}: {error}", path.display()))
}
