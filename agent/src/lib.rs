//! The running thing in the private network: it dials the hub, takes jobs, carries them out on private resources
//! through connectors, and reports how they ended.
//!
//! One way through: `tunnel` hands an offer to `dispatch`, which verifies it, asks `policy`, writes it to the
//! `journal` and starts a `runner`; the runner journals the outcome, and `report` reads only the journal. So a
//! reconnect touches tunnel and report alone, and a crash resumes from the journal alone.

mod agent;
mod audit;
mod calls;
mod check;
mod classic;
mod cli;
mod clock;
mod config_schema;
mod control;
mod daemon;
mod dispatch;
mod drain;
mod enrol;
mod exit;
mod footprint;
mod hub;
mod identity;
mod init;
mod job;
mod journal;
mod listeners;
mod local;
mod logs;
mod metrics;
mod outbox;
mod pause;
pub mod policy;
mod pressure;
mod probe;
mod public_key;
mod re_enrol;
mod registry;
mod reload;
mod report;
mod rotate;
mod runner;
mod settings;
mod signals;
mod state;
mod status;
mod sweep;
mod translate;
mod triggers;
mod trust;
mod tunnel;

pub use cli::run;
pub use exit::{BUG, CONFIGURATION, DRAINED, FAILED, REFUSED};

/// The agent's version, as it tells the hub.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
