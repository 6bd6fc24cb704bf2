//! The signals that the agent hears.

use crate::exit::Stop;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// See the [module](self).
pub struct Signals {
    term: Signal,
    interrupt: Signal,
    /// Asks for a reload. Heard from the start on: unheard, it would end the process.
    pub hangup: Option<Signal>,
}

impl Signals {
    /// Hears them from now on.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn listen() -> Result<Self, Stop> {
        let listen = |kind| signal(kind).map_err(|e| Stop::Bug(format!("signals: {e}")));
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: Some(listen(SignalKind::hangup())?),
        })
    }

    /// Waits until the agent is asked to stop.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
