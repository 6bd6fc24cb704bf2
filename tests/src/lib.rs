//! End-to-end harness: the real programs as processes, real servers around them, and faults between them.
//!
//! Everything is started on loopback ports of its own, in temporary folders, and ends with the value that stands for
//! it. A test that fails prints the logs of its processes.

mod agent;
mod api;
mod app;
mod bucket;
mod certificate;
mod content;
#[path = "../../connectors/tests/support/dav.rs"]
pub mod dav;
mod disk;
pub mod docker;
pub mod documents;
mod fake_agent;
mod fake_hub;
mod frames;
mod front;
mod hub;
mod machine;
mod memory;
mod mitmproxy;
mod network;
mod nginx;
#[path = "../../connectors/tests/support/odata.rs"]
pub mod odata;
#[path = "../../connectors/tests/support/port.rs"]
pub mod port;
mod process;
mod proxy;
pub mod reference;
pub mod resources;
mod rsyslog;
#[path = "../../connectors/tests/support/s3.rs"]
pub mod s3;
#[path = "../../connectors/tests/support/samba.rs"]
pub mod samba;
#[path = "../../connectors/tests/support/server.rs"]
pub mod server;
mod share;
mod smb;
mod squid;
mod ssh;
#[path = "../../connectors/tests/support/sshd.rs"]
pub mod sshd;
#[path = "../../connectors/tests/support/tryton.rs"]
pub mod tryton;
#[path = "../../connectors/tests/support/vsftpd.rs"]
pub mod vsftpd;

pub use agent::{Agent, shifted_clock};
pub use api::{Answer, Api, code, ended, events};
pub use app::{App, Reply, Request};
pub use bucket::ObjectStore;
pub use certificate::by_openssl;
pub use content::{Content, Random, hex};
pub use disk::{SmallDisk, is_root};
pub use fake_agent::{FakeAgent, FakeIdentity};
pub use fake_hub::{Draft, FakeHub, Session};
pub use front::{Front, FrontOptions};
pub use hub::{Hub, TENANT};
pub use machine::Machine;
pub use memory::MemoryBound;
pub use mitmproxy::Mitmproxy;
pub use network::Network;
pub use nginx::Nginx;
pub use port::free_port;
pub use process::{Process, binary, cpu_time, run};
pub use proxy::Proxy;
pub use rsyslog::Rsyslog;
pub use share::{Protocol, Share};
pub use smb::SmbServer;
pub use squid::{FORBIDDEN_NAME, PROXY_ONLY_NAME, PROXY_PASSWORD, PROXY_USER, Squid};
pub use ssh::SshServer;

use passerelle_connectors::trust;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long the ordinary steps may take on a busy two-core machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Asks `check` again and again until it gives a value.
///
/// # Panics
/// When `within` has passed; the message names `what` was waited for.
pub async fn until<T>(what: &str, within: Duration, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(start.elapsed() < within, "waited {within:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An HTTP client that keeps connections, ignores the machine's proxy settings and trusts no certificate.
#[must_use]
pub fn http_client() -> reqwest::Client {
    http_client_trusting(None)
}

/// The same, trusting this certificate (PEM) too.
///
/// # Panics
/// If TLS cannot be set up.
#[must_use]
pub fn http_client_trusting(certificate: Option<&str>) -> reqwest::Client {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // Another test of this process may have installed it already.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // Well before a hub closes an idle connection, ten seconds after its last request: one that meets its end is lost.
    let mut builder = reqwest::Client::builder().pool_idle_timeout(Duration::from_secs(5));
    if let Some(pem) = certificate {
        let named = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        let verifier = trust::verifier(vec![named], Arc::clone(&provider)).expect("roots");
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        builder = builder.tls_backend_preconfigured(tls);
    } else {
        builder = builder.tls_certs_only([]);
    }
    builder.no_proxy().timeout(Duration::from_secs(600)).build().expect("an HTTP client")
}
