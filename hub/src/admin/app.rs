//! `passerelle-hub admin app`: the credentials of applications that use the vendor's API.

use super::print::{self, Printer};
use crate::{cli::Failure, store::Store};
use passerelle_protocol::Name;
use serde_json::json;

/// Applications of the vendor's API.
#[derive(Debug, clap::Subcommand)]
pub(super) enum App {
    /// Makes an application; its secret is shown this once.
    #[command(after_help = "\
The id and the secret are user name and password of HTTP Basic, for app/mediations/… and POST /v1/events/in.

Examples:
  passerelle-hub admin app create --tenant acme
  passerelle-hub admin app create --tenant acme --json")]
    Create {
        /// The tenant, all of whose mediations it sees and handles.
        #[arg(long)]
        tenant: Name,
    },
    /// Lists applications, without their secrets.
    List {
        /// Only of this tenant.
        #[arg(long)]
        tenant: Option<Name>,
    },
    /// Ends an application's access at once.
    Revoke {
        /// Its id.
        id: String,
    },
}

pub(super) async fn carry_out(command: App, store: &Store, printer: &Printer) -> Result<(), Failure> {
    match command {
        App::Create { tenant } => {
            let (id, secret) = store.create_app(tenant).await?;
            printer.pair(&id, &secret)
        }
        App::List { tenant } => {
            let apps = store.list_apps(tenant).await?;
            printer.list(&["ID", "TENANT", "CREATED", "REVOKED"], &apps, |app| {
                vec![
                    app.id.clone(),
                    app.tenant.to_string(),
                    app.created_at.to_string(),
                    print::optional(app.revoked_at),
                ]
            })
        }
        App::Revoke { id } => {
            store.revoke_app(&id).await?;
            printer.done(&format!("revoked application {id}"), &json!({"id": id}))
        }
    }
}
