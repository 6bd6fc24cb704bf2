//! `passerelle-hub admin sender`: who may send business events with signatures.

use super::print::{self, Printer};
use crate::{cli::Failure, store::Store};
use passerelle_protocol::Name;
use serde_json::json;

/// Senders of business events that sign them (Standard Webhooks).
#[derive(Debug, clap::Subcommand)]
pub(super) enum Sender {
    /// Makes a sender; its secret is shown this once.
    #[command(after_help = "\
It posts to /v1/events/in?sender=ID and signs with the secret. An application that has HTTP Basic or an API key needs none.

Examples:
  passerelle-hub admin sender create --tenant acme
  passerelle-hub admin sender create --tenant acme --json")]
    Create {
        /// The tenant that the events are for.
        #[arg(long)]
        tenant: Name,
    },
    /// Lists senders, without their secrets.
    List {
        /// Only of this tenant.
        #[arg(long)]
        tenant: Option<Name>,
    },
    /// Takes no more events of a sender.
    Revoke {
        /// Its id.
        id: String,
    },
}

pub(super) async fn carry_out(command: Sender, store: &Store, printer: &Printer) -> Result<(), Failure> {
    match command {
        Sender::Create { tenant } => {
            let (id, secret) = store.create_sender(tenant).await?;
            printer.pair(&id, &secret)
        }
        Sender::List { tenant } => {
            let senders = store.list_senders(tenant).await?;
            printer.list(&["ID", "TENANT", "CREATED", "REVOKED"], &senders, |sender| {
                vec![
                    sender.id.clone(),
                    sender.tenant.to_string(),
                    sender.created_at.to_string(),
                    print::optional(sender.revoked_at),
                ]
            })
        }
        Sender::Revoke { id } => {
            store.revoke_sender(&id).await?;
            printer.done(&format!("revoked sender {id}"), &json!({"id": id}))
        }
    }
}
