//! Asking the running agent at its local port, for the commands that tell of it.

use crate::exit::Stop;
use passerelle_connectors::causes::chain;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

/// Asks the running agent at its local port.
pub(crate) async fn ask(listen: SocketAddr, path: &str) -> Result<(u16, Vec<u8>), Stop> {
    // All addresses of both families: which of them this machine has, the agent's container above all, is not known here.
    let near = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
        }
        ip => vec![ip],
    };
    let failed =
        |e: reqwest::Error| Stop::Failed(format!("no answer of a running agent at {listen}: {}", chain(&e)));
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(no_tls()?)
        .timeout(Duration::from_secs(5))
        .build()
        .map_err(failed)?;
    let mut asked = Err(Stop::Bug("no address to ask".to_owned()));
    for ip in near {
        let url = format!("http://{}{path}", SocketAddr::new(ip, listen.port()));
        asked = client.get(url).send().await.map_err(failed);
        if asked.is_ok() {
            break;
        }
    }
    let response = asked?;
    let status = response.status().as_u16();
    Ok((status, response.bytes().await.map_err(failed)?.to_vec()))
}

/// The local port has no TLS; without this the client would read the system's certificates for nothing.
fn no_tls() -> Result<rustls::ClientConfig, Stop> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Stop::Bug(format!("TLS: {e}")))?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth())
}

pub(crate) fn not_an_agent(listen: SocketAddr) -> Stop {
    Stop::Failed(format!("what listens on {listen} is not a passerelle-agent"))
}

/// Nobody answered, perhaps because the wrong address was asked: a mistyped folder names none.
pub(crate) fn without_folder(folder: &Path, stop: Stop) -> Stop {
    match stop {
        Stop::Failed(message) if !folder.join("agent.toml").exists() => Stop::Failed(format!(
            "{message}; {} has no agent.toml, so the usual address was asked: name the agent's folder with --config",
            folder.display()
        )),
        stop => stop,
    }
}
