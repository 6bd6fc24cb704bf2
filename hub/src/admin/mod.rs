//! `passerelle-hub admin`: tenants, keys, tokens, agents and backups, beside a serving hub; and the way back from one.

mod app;
pub(crate) mod backup;
mod print;
pub(crate) mod restore;
mod sender;
mod signing_key;

use crate::{
    api::auth::{SCOPES, tenant_scopes},
    cli::{Failure, Place},
    model::Tier,
    settings::{DEFAULT_DATA, File},
    store::{DATABASE, Store},
};
use clap::Subcommand;
use passerelle_config::HumanDuration;
use passerelle_protocol::{AgentId, Name};
use print::Printer;
use serde_json::json;
use std::path::PathBuf;

/// How many agents are read at a time.
const BATCH: usize = 500;

/// Arguments of `admin`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  passerelle-hub admin tenant create acme --tier enterprise
  passerelle-hub admin api-key create --tenant acme --scopes all
  passerelle-hub admin enrolment-token create --tenant acme --site paris --application orchestrator --ttl 2h
  passerelle-hub admin agent list --json
  passerelle-hub admin app create --tenant acme
  passerelle-hub admin sender create --tenant acme
  passerelle-hub admin signing-key rotate
  passerelle-hub admin backup /var/backups/hub.backup
  passerelle-hub admin restore /var/backups/hub.backup")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Prints JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tenants.
    #[command(subcommand)]
    Tenant(Tenant),
    /// API keys of clients.
    #[command(subcommand)]
    ApiKey(ApiKey),
    /// One-time tokens with which agents enrol.
    #[command(subcommand)]
    EnrolmentToken(EnrolmentToken),
    /// Enrolled agents.
    #[command(subcommand)]
    Agent(Agent),
    /// Applications of the vendor's API.
    #[command(subcommand)]
    App(app::App),
    /// Senders of business events that sign them.
    #[command(subcommand)]
    Sender(sender::Sender),
    /// The hub's own signing keys.
    #[command(subcommand)]
    SigningKey(signing_key::SigningKey),
    /// Writes a consistent copy of the database and the signing key into one new file, while the hub serves. Keep it as
    /// safe as the key. The files in blobs/ are not in it: copy them after it.
    Backup {
        /// The new file.
        file: PathBuf,
    },
    /// Puts a backup in the place of the database and the signing key; no hub serves meanwhile. What was there is kept
    /// beside it.
    Restore {
        /// What `admin backup` wrote.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Tenant {
    /// Makes a tenant.
    Create {
        /// Its name.
        name: Name,
        /// enterprise, professional or standard; hybrid mode needs enterprise.
        #[arg(long)]
        tier: Tier,
    },
    /// Changes a tenant's tier.
    SetTier {
        /// Its name.
        name: Name,
        /// enterprise, professional or standard.
        tier: Tier,
    },
    /// Lists the tenants.
    List,
}

#[derive(Debug, Subcommand)]
enum ApiKey {
    /// Makes a key; it is shown this once.
    #[command(after_help = "\
Scopes: jobs:read jobs:write sites:read agents:read agents:write blobs:write events:read events:write
mediations:read mediations:write subscriptions:read subscriptions:write metrics:read.
`all` stands for all of them but metrics:read, whose figures are of all tenants.")]
    Create {
        /// The tenant.
        #[arg(long)]
        tenant: Name,
        /// What it may do: scopes separated by commas, or `all`.
        #[arg(long, value_delimiter = ',', required = true)]
        scopes: Vec<String>,
    },
    /// Lists keys, without their secrets.
    List {
        /// Only of this tenant.
        #[arg(long)]
        tenant: Option<Name>,
    },
    /// Ends a key at once.
    Revoke {
        /// Its id.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum EnrolmentToken {
    /// Makes a token, and the site if it is new; the token is shown this once.
    Create {
        /// The tenant; its tier is enterprise.
        #[arg(long)]
        tenant: Name,
        /// The site.
        #[arg(long)]
        site: Name,
        /// orchestrator or hub.
        #[arg(long)]
        application: String,
        /// How long it is taken: 10m, 1h, 7d.
        #[arg(long, default_value = "1h", value_parser = duration)]
        ttl: HumanDuration,
        /// How many agents it enrols.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        uses: u32,
    },
    /// Lists tokens, without their secrets.
    List {
        /// Only of this tenant.
        #[arg(long)]
        tenant: Option<Name>,
    },
    /// Ends a token at once.
    Revoke {
        /// Its id.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum Agent {
    /// Lists agents.
    List {
        /// Only of this tenant.
        #[arg(long)]
        tenant: Option<Name>,
        /// Only of this site.
        #[arg(long)]
        site: Option<Name>,
    },
    /// Ends an agent's identity at once: it is disconnected within a second, what it had started ends `unknown`.
    Revoke {
        /// Its id.
        id: AgentId,
    },
}

fn duration(text: &str) -> Result<HumanDuration, String> {
    let duration = HumanDuration::try_from(text.to_owned())?;
    if duration.0.is_zero() {
        return Err("a token that is never taken; say for how long, as 1h".to_owned());
    }
    Ok(duration)
}

/// Carries out one command.
///
/// # Errors
/// See [`Failure`].
pub fn admin(args: Args) -> Result<(), Failure> {
    let file = match &args.place.config {
        Some(path) => File::read(path).map_err(Failure::Configuration)?,
        None => File::default(),
    };
    let data = args.place.data.or(file.data).unwrap_or_else(|| DEFAULT_DATA.into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let printer = Printer { json: args.json };
    if let Command::Restore { file } = &args.command {
        return printer.restored(&restore::restore(&data, file)?);
    }
    // A mistyped folder would look like a hub without anything.
    if !matches!(args.command, Command::Tenant(Tenant::Create { .. })) && !data.join(DATABASE).exists() {
        return Err(Failure::Configuration(format!(
            "no hub has its data in {}: name its folder with --data or --config, or begin with admin tenant create",
            data.display()
        )));
    }
    runtime.block_on(async {
        let store = Store::open(&data).map_err(|error| Failure::Configuration(error.to_string()))?;
        let done = Box::pin(carry_out(args.command, &store, &printer)).await;
        store.close().await;
        done
    })
}

async fn carry_out(command: Command, store: &Store, printer: &Printer) -> Result<(), Failure> {
    match command {
        Command::Tenant(command) => tenant(command, store, printer).await,
        Command::ApiKey(command) => api_key(command, store, printer).await,
        Command::EnrolmentToken(command) => enrolment_token(command, store, printer).await,
        Command::Agent(command) => agent(command, store, printer).await,
        Command::App(command) => app::carry_out(command, store, printer).await,
        Command::Sender(command) => sender::carry_out(command, store, printer).await,
        Command::SigningKey(command) => signing_key::carry_out(command, store, printer).await,
        // Carried out before any store is opened.
        Command::Restore { .. } => Ok(()),
        Command::Backup { file } => {
            let size = backup::backup(store.data_dir(), &file)?;
            printer.done(
                &format!("wrote {} ({size} bytes)", file.display()),
                &json!({"file": file.display().to_string(), "size": size}),
            )
        }
    }
}

async fn tenant(command: Tenant, store: &Store, printer: &Printer) -> Result<(), Failure> {
    match command {
        Tenant::Create { name, tier } => {
            store.create_tenant(name.clone(), tier).await?;
            printer.done(&format!("created tenant {name}"), &json!({"id": name, "tier": tier}))
        }
        Tenant::SetTier { name, tier } => {
            store.set_tier(name.clone(), tier).await?;
            let text = format!("tenant {name} has the tier {}", tier.as_str());
            printer.done(&text, &json!({"id": name, "tier": tier}))
        }
        Tenant::List => {
            let tenants = store.list_tenants().await?;
            printer.list(&["NAME", "TIER", "CREATED"], &tenants, |tenant| {
                vec![tenant.name.to_string(), tenant.tier.as_str().to_owned(), tenant.created_at.to_string()]
            })
        }
    }
}

async fn api_key(command: ApiKey, store: &Store, printer: &Printer) -> Result<(), Failure> {
    match command {
        ApiKey::Create { tenant, scopes } => {
            let (id, key) = store.create_api_key(tenant, checked(&scopes)?).await?;
            printer.secret("key", &id, &key)
        }
        ApiKey::List { tenant } => {
            let keys = store.list_api_keys(tenant).await?;
            printer.list(&["ID", "TENANT", "SCOPES", "CREATED", "REVOKED"], &keys, |key| {
                vec![
                    key.id.clone(),
                    key.tenant.to_string(),
                    key.scopes.join(","),
                    key.created_at.to_string(),
                    print::optional(key.revoked_at),
                ]
            })
        }
        ApiKey::Revoke { id } => {
            store.revoke_api_key(&id).await?;
            printer.done(&format!("revoked API key {id}"), &json!({"id": id}))
        }
    }
}

/// The scopes that were meant, each known.
fn checked(scopes: &[String]) -> Result<Vec<String>, Failure> {
    let mut meant: Vec<String> = Vec::new();
    for scope in scopes {
        let scope = scope.trim();
        if scope == "all" {
            meant.extend(tenant_scopes().map(str::to_owned));
        } else if SCOPES.contains(&scope) {
            meant.push(scope.to_owned());
        } else {
            let known = SCOPES.join(", ");
            return Err(Failure::Configuration(format!(
                "--scopes: {scope:?} is no scope; choose of all, {known}"
            )));
        }
    }
    meant.sort();
    meant.dedup();
    Ok(meant)
}

async fn enrolment_token(command: EnrolmentToken, store: &Store, printer: &Printer) -> Result<(), Failure> {
    match command {
        EnrolmentToken::Create { tenant, site, application, ttl, uses } => {
            let (id, token) = store.create_enrolment_token(tenant, site, application, ttl.0, uses).await?;
            printer.secret("token", &id, &token)
        }
        EnrolmentToken::List { tenant } => {
            let tokens = store.list_enrolment_tokens(tenant).await?;
            let head = ["ID", "TENANT", "SITE", "APPLICATION", "USES LEFT", "EXPIRES", "REVOKED"];
            printer.list(&head, &tokens, |token| {
                vec![
                    token.id.clone(),
                    token.tenant.to_string(),
                    token.site.to_string(),
                    token.application.clone(),
                    token.uses_left.to_string(),
                    token.expires_at.to_string(),
                    print::optional(token.revoked_at),
                ]
            })
        }
        EnrolmentToken::Revoke { id } => {
            store.revoke_enrolment_token(&id).await?;
            printer.done(&format!("revoked enrolment token {id}"), &json!({"id": id}))
        }
    }
}

async fn agent(command: Agent, store: &Store, printer: &Printer) -> Result<(), Failure> {
    match command {
        Agent::List { tenant, site } => {
            let (mut agents, mut cursor) = (Vec::new(), None);
            loop {
                let page = store.list_agents(tenant.clone(), site.clone(), BATCH, cursor).await?;
                agents.extend(page.items.into_iter().map(print::AgentRow::from));
                cursor = page.next_cursor;
                if cursor.is_none() {
                    break;
                }
            }
            let head = ["ID", "TENANT", "SITE", "NAME", "APPLICATION", "VERSION", "LAST SEEN", "REVOKED"];
            printer.list(&head, &agents, print::AgentRow::cells)
        }
        Agent::Revoke { id } => {
            store.revoke_agent(id).await?;
            printer.done(&format!("revoked agent {id}"), &json!({"id": id}))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::checked;

    #[test]
    fn scopes_are_checked_and_all_is_spelled_out() {
        let of = |text: &str| checked(&text.split(',').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(of("jobs:write,jobs:read,jobs:read").unwrap(), ["jobs:read", "jobs:write"]);
        assert!(of("all").unwrap().contains(&"events:read".to_owned()));
        assert!(!of("all").unwrap().contains(&"metrics:read".to_owned()));
        assert!(of("jobs:all").unwrap_err().to_string().contains("jobs:read"));
    }
}
