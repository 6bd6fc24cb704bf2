//! Tells of agents that were not heard for some time, and of their return: each once, over restarts of the hub.

use crate::{api::App, store::absences::Absences};
use std::time::Duration;

/// How often is looked.
const LOOK: Duration = Duration::from_secs(5);

/// Looks for ever.
pub(super) async fn run(app: &App, away: Duration) {
    let look = LOOK.min(away / 4).max(Duration::from_millis(250));
    loop {
        tokio::time::sleep(look).await;
        let found = match app.store.absences(away).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "Could not look for agents that are away; the next look goes on");
                continue;
            }
        };
        let Absences { away: gone, back } = &found;
        if (!gone.is_empty() || !back.is_empty())
            && let Err(error) = app.store.tell_absences(found, away).await
        {
            tracing::warn!(%error, "Could not tell of agents that are away; the next look goes on");
        }
    }
}
