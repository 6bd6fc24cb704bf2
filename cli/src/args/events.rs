//! The command line of `events`.

use super::{Connection, Page};
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Events {
    /// List events, newest first
    List(ListEvents),
    /// Show an event, with the jobs that were started from it
    Show(ShowEvent),
    /// Write an event's payload to a file
    Payload(EventPayload),
    /// Print events as they come in, until Ctrl-C
    Follow(FollowEvents),
}

/// Which events.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Only of this site
    #[arg(long)]
    pub(crate) site: Option<String>,
    /// Only of this resource
    #[arg(long)]
    pub(crate) resource: Option<String>,
    /// Only of triggers of this name
    #[arg(long)]
    pub(crate) trigger: Option<String>,
    /// Only of this kind: pickup, watch
    #[arg(long)]
    pub(crate) kind: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle events list --site paris --resource compta
  passerelle events list --kind pickup --since 2026-11-21T06:00:00Z --json")]
pub(crate) struct ListEvents {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Stored at the hub at this time or later, as 2026-11-21T06:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Stored before this time
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    #[command(flatten)]
    pub(crate) page: Page,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  passerelle events show a89cd353-0b7a-8a51-bd26-aeab567b8e14")]
pub(crate) struct ShowEvent {
    /// The event's id
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle events payload a89cd353-0b7a-8a51-bd26-aeab567b8e14 --output commande-1042.csv
  passerelle jobs submit --site paris --resource orders-app --operation notify \\
      --param path=imports --event a89cd353-0b7a-8a51-bd26-aeab567b8e14
      A job with the payload of the event: nothing has to be downloaded

The file is written only if it has the size and digest that the hub tells.")]
pub(crate) struct EventPayload {
    /// The event's id
    pub(crate) id: String,
    /// Write the payload to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  passerelle events follow --resource compta
  passerelle events follow --json | while read -r event; do …; done
      One JSON object a line
  passerelle events follow --last-event-id 4711
      Goes on after that one: nothing that came meanwhile is missed

After a cut it connects again and goes on where it was.")]
pub(crate) struct FollowEvents {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Begin after the event of this number in the hub's stream
    #[arg(long, value_name = "N")]
    pub(crate) last_event_id: Option<u64>,
    /// End after so many events
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}
