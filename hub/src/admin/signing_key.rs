//! `admin signing-key`: the keys with which the hub signs jobs and tickets.

use super::print::Printer;
use crate::{cli::Failure, store::Store};
use clap::Subcommand;
use serde_json::json;

/// The hub's own signing keys.
#[derive(Debug, Subcommand)]
pub enum SigningKey {
    /// Makes a new key, signed by the one before, which is destroyed. Agents follow by themselves, also those that are away
    /// now. Make a new backup afterwards: agents do not trust a hub that is restored from an older one.
    #[command(after_help = "\
Examples:
  passerelle-hub admin signing-key rotate
  passerelle-hub admin signing-key rotate && passerelle-hub admin backup /var/backups/hub.backup")]
    Rotate,
    /// Lists the keys, without the private ones.
    List,
}

/// Carries one out.
///
/// # Errors
/// See [`Failure`].
pub async fn carry_out(command: SigningKey, store: &Store, printer: &Printer) -> Result<(), Failure> {
    match command {
        SigningKey::Rotate => {
            let made = store.rotate_signing_key().await?;
            let text =
                format!("the hub signs with key {} ({}) from now on; make a new backup", made.seq, made.id);
            printer.done(&text, &json!({"id": made.id, "seq": made.seq, "public_key": made.public_key}))
        }
        SigningKey::List => {
            let keys = store.signing_keys().await?;
            printer.list(&["SEQ", "ID", "PUBLIC KEY", "MADE", "SIGNS"], &keys, |key| {
                vec![
                    key.seq.to_string(),
                    key.id.to_string(),
                    String::from(key.public_key.clone()),
                    key.made_at.to_string(),
                    if key.signs { "yes" } else { "no" }.to_owned(),
                ]
            })
        }
    }
}
