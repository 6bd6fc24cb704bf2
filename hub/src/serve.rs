//! `passerelle-hub serve`: from the operator's words to a running hub, and its polite end.

use crate::{
    api::{App, vendor},
    bootstrap,
    cli::{Failure, Place},
    health::Serving,
    mediations,
    notices::{self, Watched},
    outbound::Outbound,
    retention,
    server::{self, Server},
    settings::{self, DEFAULT_DATA, DEFAULT_LISTEN, File, Log, Transport},
    store::Store,
};
use passerelle_config::{HumanDuration, LogFormat};
use passerelle_protocol::Name;
use std::{
    io::IsTerminal as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// What nests in a definition is bounded (`mediations/nesting.rs`) far below what this holds; unused it takes no memory.
const STACK: usize = 16 << 20;

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  passerelle-hub serve
  passerelle-hub serve --data /var/lib/passerelle-hub --listen 0.0.0.0:443 --tls-cert hub.pem --tls-key hub-key.pem
  passerelle-hub serve --listen 0.0.0.0:8443 --bootstrap ./bootstrap")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Address to listen on [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR", env = "PASSERELLE_HUB_LISTEN")]
    listen: Option<String>,
    /// Certificate chain (PEM).
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Serves plain HTTP beyond loopback: a proxy in front speaks TLS.
    #[arg(long)]
    behind_proxy: bool,
    /// How long an agent may be silent before its attempts move to another agent of the site, as 30s [default: 30s].
    #[arg(long, value_name = "DURATION", env = "PASSERELLE_LEASE", value_parser = lease)]
    lease: Option<HumanDuration>,
    /// Writes, once, into DIR what a demonstration needs: a CA and certificate, a tenant, an API key, an enrolment token.
    #[arg(long, value_name = "DIR")]
    bootstrap: Option<PathBuf>,
    /// Tenant that --bootstrap makes.
    #[arg(long, value_name = "NAME", default_value = "dev", requires = "bootstrap")]
    bootstrap_tenant: Name,
    /// Site that --bootstrap makes.
    #[arg(long, value_name = "NAME", default_value = "dev", requires = "bootstrap")]
    bootstrap_site: Name,
    /// How many agents the enrolment token of --bootstrap takes.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "bootstrap",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    uses: u32,
    /// What --bootstrap writes as hub.url [default: the address that is listened on].
    #[arg(long, value_name = "URL", requires = "bootstrap")]
    bootstrap_url: Option<url::Url>,
}

fn lease(text: &str) -> Result<HumanDuration, String> {
    let lease = HumanDuration::try_from(text.to_owned())?;
    settings::check_lease(lease)?;
    Ok(lease)
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// See [`Failure`].
pub fn serve(args: Args) -> Result<(), Failure> {
    let file = match &args.place.config {
        Some(path) => File::read(path).map_err(Failure::Configuration)?,
        None => File::default(),
    };
    log(&file.log)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK).build()?;
    runtime.block_on(Box::pin(run(args, file)))
}

async fn run(args: Args, file: File) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let listen = args.listen.or(file.listen).unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
    let address = settings::address(&listen).map_err(Failure::Configuration)?;
    let behind_proxy = args.behind_proxy || file.behind_proxy;
    let own = args.bootstrap.as_deref().map(bootstrap::certificate_files);
    let transport = settings::transport(
        address,
        args.tls_cert.or(file.tls_cert),
        args.tls_key.or(file.tls_key),
        behind_proxy,
        own,
    )
    .map_err(Failure::Configuration)?;

    let data = args.place.data.or(file.data).unwrap_or_else(|| DEFAULT_DATA.into());
    let store = Store::open_to_serve(&data).map_err(|error| Failure::Configuration(error.to_string()))?;
    store.set_quotas(file.quotas.checked());
    store.set_lease(args.lease.unwrap_or(file.limits.lease).0);
    let doubtful =
        store.settle_restored().await.map_err(|error| Failure::Configuration(error.to_string()))?;
    if doubtful > 0 {
        tracing::warn!(
            jobs = doubtful,
            "Restored from a backup: of the open jobs of sites with several agents it is not known whether they took effect since"
        );
    }
    let wishes = args.bootstrap.map(|dir| bootstrap::Wishes {
        dir,
        tenant: args.bootstrap_tenant,
        site: args.bootstrap_site,
        uses: args.uses,
    });
    if let Some(wishes) = &wishes {
        bootstrap::prepare(wishes, &store).await?;
    }
    let tls = match &transport {
        Transport::Plain => None,
        Transport::Tls { certificate, key } => {
            Some(server::tls(certificate, key).map_err(|error| Failure::Configuration(error.to_string()))?)
        }
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::Configuration(format!(
            "listen: cannot listen on {address}: {error}; choose another with --listen"
        ))
    })?;
    let bound = listener.local_addr()?;
    let url = url(&transport, bound);
    if let Some(wishes) = &wishes {
        let told = args.bootstrap_url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned());
        bootstrap::write_url(wishes, told.as_deref().unwrap_or(&url))?;
    }

    let certificate = match &transport {
        Transport::Tls { certificate, .. } => Some(certificate.as_path()),
        Transport::Plain => None,
    };
    Serving::new(bound, certificate)?.leave(&data);

    let stop = CancellationToken::new();
    // Behind a proxy, a request from this machine may come from anywhere.
    let open_metrics = bound.ip().is_loopback() && !behind_proxy;
    let mut app = App::new(store.clone(), file.limits.max_blob.0, open_metrics, stop.clone());
    app.behind_proxy = behind_proxy;
    app.outbound = Outbound::new(file.outbound.rules());
    app.notices = file.notices.checked();
    app.tasks.spawn(mediations::engine::run(app.clone()));
    app.tasks.spawn(mediations::trigger::poll::run(app.clone()));
    app.tasks.spawn(retention::run(app.clone(), file.retention.checked()));
    let watched = match &transport {
        Transport::Tls { certificate, .. } => Watched::read(certificate),
        Transport::Plain => None,
    };
    app.tasks.spawn(vendor::fetch::run(app.clone()));
    app.tasks.spawn(notices::run(app.clone(), watched));
    let max_connections = file.limits.max_connections;
    // All that a proxy hands on comes from its address.
    let per_address = if behind_proxy { max_connections } else { file.limits.max_connections_per_address };
    let server = Server { listener, tls, max_connections, per_address };
    tracing::info!(data = %Absolute(&data), "listening on {url}");
    let ending = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("Ending: no new requests are taken");
        stop.cancel();
        app.tunnel.shutdown().await;
    };
    tokio::join!(server.run(app.router(), stop.clone()), ending);
    app.tasks.close();
    // Uploads whose request was cut: what arrived is being stored.
    let _ = timeout(server::SHUTDOWN_GRACE, app.tasks.wait()).await;
    Serving::remove(&data);
    store.close().await;
    tracing::info!("Ended");
    Ok(())
}

/// The address under which this machine reaches the hub.
fn url(transport: &Transport, bound: SocketAddr) -> String {
    let scheme = match transport {
        Transport::Plain => "http",
        Transport::Tls { .. } => "https",
    };
    if bound.ip().is_unspecified() {
        format!("{scheme}://localhost:{}", bound.port())
    } else {
        format!("{scheme}://{bound}")
    }
}

/// A path as the log shows it, whatever the working folder was.
struct Absolute<'a>(&'a Path);

impl std::fmt::Display for Absolute<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let absolute = std::path::absolute(self.0);
        write!(f, "{}", absolute.as_deref().unwrap_or(self.0).display())
    }
}

fn log(log: &Log) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&log.level)
        .map_err(|error| Failure::Configuration(format!("log.level: {error}")))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A subscriber that is there already, as in a process that runs more than the hub, stays.
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}
