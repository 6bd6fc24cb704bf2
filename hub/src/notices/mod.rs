//! What the hub tells those who subscribed: mediations, jobs, lateness, agents that are away, certificates.
//!
//! `store/notices.rs` writes a notice and its deliveries in the transaction of what happened. Here they are sent
//! (`deliver.rs`), and looked for where nothing happens by itself: agents that stay silent (`absence.rs`), the hub's own
//! certificate (`certificate.rs`).

mod absence;
mod certificate;
pub mod deliver;
pub mod settings;
pub mod sign;

pub use certificate::Watched;
pub use settings::Settings;

use crate::{api::App, clock};
use std::time::Duration;

/// How often what is told no longer is removed, and the certificate is looked at.
const SELDOM: Duration = Duration::from_secs(600);

/// Does all of it until the hub ends. `certificate`: the hub's own, if it speaks TLS itself.
pub async fn run(app: App, certificate: Option<Watched>) {
    let (stop, settings) = (app.stop.clone(), &app.notices);
    let forever = async {
        tokio::join!(
            deliver::run(&app, settings),
            absence::run(&app, settings.agent_away),
            seldom(&app, settings, certificate.as_ref()),
        );
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = forever => {}
    }
}

async fn seldom(app: &App, settings: &Settings, certificate: Option<&Watched>) {
    loop {
        if let Some(certificate) = certificate
            && let Err(error) = app.store.look_at_certificate(certificate.clone()).await
        {
            tracing::warn!(%error, "Could not tell of the hub's certificate; the next look goes on");
        }
        let before = clock::now().checked_sub(settings.keep).unwrap_or(jiff::Timestamp::MIN);
        if let Err(error) = app.store.remove_notices(before).await {
            tracing::warn!(%error, "Could not remove old notices; the next pass goes on");
        }
        if let Err(error) = app.store.remove_standard_requests(before).await {
            tracing::warn!(%error, "Could not remove old requests for files; the next pass goes on");
        }
        tokio::time::sleep(SELDOM).await;
    }
}
