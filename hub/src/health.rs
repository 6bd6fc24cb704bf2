//! `passerelle-hub health`: asks the hub that serves from a data folder whether it takes work, for the health checks of
//! containers.
//!
//! A serving hub leaves in its data folder where it listens and, with TLS, the digest of its certificate. So the question
//! needs nothing but that folder, and only this very hub can answer it, whatever its certificate is good for.

use crate::{
    cli::{Failure, Place},
    settings::{DEFAULT_DATA, File},
};
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use passerelle_protocol::Sha256;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    fs,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer.
const MAX_ANSWER: usize = 64 * 1024;
/// The file in the data folder.
const FILE: &str = "serving.json";

/// Arguments of `health`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  passerelle-hub health --data /var/lib/passerelle-hub
  docker exec hub passerelle-hub health

Exit codes: 0 the hub takes work, 1 it does not or none serves from this data folder, 64 configuration.")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Where a hub serves.
#[derive(Debug, Serialize, Deserialize)]
pub struct Serving {
    address: SocketAddr,
    certificate: Option<Sha256>,
}

impl Serving {
    /// What a hub that listens on `address` says of itself; `certificate` is the file of its chain.
    ///
    /// # Errors
    /// If that file cannot be read.
    pub fn new(address: SocketAddr, certificate: Option<&Path>) -> Result<Self, Failure> {
        let digest = |file: &Path| -> Result<Sha256, String> {
            let pem = passerelle_config::read_file(file).map_err(|error| error.to_string())?;
            let mut chain = CertificateDer::pem_slice_iter(&pem);
            let leaf = chain.next().ok_or("no certificate in it")?.map_err(|error| error.to_string())?;
            Ok(Sha256::of(&leaf))
        };
        let told = |file: &Path| {
            digest(file).map_err(|error| Failure::Configuration(format!("{}: {error}", file.display())))
        };
        Ok(Self { address, certificate: certificate.map(told).transpose()? })
    }

    /// Leaves it in the data folder. A hub serves without it as well: a failure is only logged.
    pub fn leave(&self, data: &Path) {
        let part = data.join(format!("{FILE}.part"));
        let left = serde_json::to_vec(self)
            .map_err(io::Error::other)
            .and_then(|text| fs::write(&part, text))
            .and_then(|()| fs::rename(&part, data.join(FILE)));
        if let Err(error) = left {
            tracing::warn!(%error, "Could not note where the hub listens: `passerelle-hub health` will not find it");
        }
    }

    /// Takes it away again.
    pub fn remove(data: &Path) {
        if let Err(error) = fs::remove_file(data.join(FILE)) {
            tracing::debug!(%error, "Where the hub listened is still noted");
        }
    }

    fn read(data: &Path) -> Result<Self, Failure> {
        let nobody = |why: &dyn std::fmt::Display| {
            Failure::Unwell(format!("no hub serves from the data folder {}: {why}", data.display()))
        };
        let text = fs::read(data.join(FILE)).map_err(|error| nobody(&error))?;
        serde_json::from_slice(&text).map_err(|error| nobody(&error))
    }

    /// The same address as this machine reaches it.
    fn near(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            // An address of both families may be reached by the older one alone, as in most containers.
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port())
    }
}

/// Asks, and prints what the hub says.
///
/// # Errors
/// If the hub does not take work.
pub fn health(args: Args) -> Result<(), Failure> {
    let file = match &args.place.config {
        Some(path) => File::read(path).map_err(Failure::Configuration)?,
        None => File::default(),
    };
    let data = args.place.data.or(file.data).unwrap_or_else(|| DEFAULT_DATA.into());
    let serving = Serving::read(&data)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(async { timeout(PATIENCE, ask(&serving)).await });
    let address = serving.address;
    let (status, answer) = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(Failure::Unwell(format!("no answer of the hub at {address}: {error}"))),
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            return Err(Failure::Unwell(format!("no answer of the hub at {address} within {seconds} s")));
        }
    };
    let ready = status == 200;
    let why = answer["detail"].as_str().unwrap_or("it does not say why");
    if args.json {
        let text = json!({ "ready": ready, "reason": (!ready).then_some(why) });
        io::stdout().lock().write_all(format!("{text:#}\n").as_bytes())?;
    } else if ready {
        io::stdout().lock().write_all(b"ready\n")?;
    }
    if ready { Ok(()) } else { Err(Failure::Unwell(format!("the hub is not ready: {why}"))) }
}

async fn ask(serving: &Serving) -> io::Result<(u16, Value)> {
    let address = serving.near();
    let stream = match (TcpStream::connect(address).await, serving.address.ip()) {
        (Err(_), IpAddr::V6(ip)) if ip.is_unspecified() => {
            TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).await?
        }
        (connected, _) => connected?,
    };
    let Some(certificate) = serving.certificate else { return get(stream, address).await };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OneCertificate { certificate, provider }))
        .with_no_client_auth();
    let name = ServerName::from(address.ip());
    get(TlsConnector::from(Arc::new(config)).connect(name, stream).await?, address).await
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: SocketAddr,
) -> io::Result<(u16, Value)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::get("/readyz")
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(io::Error::other)?;
    let asked = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status().as_u16();
        let body =
            Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(io::Error::other)?;
        Ok((status, serde_json::from_slice(&body.to_bytes()).unwrap_or_default()))
    };
    tokio::pin!(asked);
    tokio::select! {
        answer = &mut asked => answer,
        // The connection may be through before the answer has been looked at.
        _ = connection => asked.await,
    }
}

/// Trusts one certificate, by its digest.
#[derive(Debug)]
struct OneCertificate {
    certificate: Sha256,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OneCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if Sha256::of(end_entity) == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("another certificate than that of the hub of this data folder".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
