//! Who may send business events with signatures by Standard Webhooks: an id, and a secret that both sides know.

use super::{
    Error, Store,
    admin::known_tenant,
    row::{ms, name, new_id, opt_time, time},
};
use crate::model::SenderRecord;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::Name;
use rusqlite::{OptionalExtension as _, params};

/// How long a secret is, in bytes: that of the digest that it keys.
const SECRET: usize = 32;

impl Store {
    /// Makes a sender; answers its id and its secret as Standard Webhooks writes it (`whsec_…`).
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant.
    pub async fn create_sender(&self, tenant: Name) -> Result<(String, String), Error> {
        let id = new_id();
        let mut secret = [0; SECRET];
        aws_lc_rs::rand::fill(&mut secret)
            .map_err(|_| Error::Internal("the system's random source failed".to_owned()))?;
        self.write(move |tx| {
            known_tenant(tx.conn, &tenant)?;
            tx.conn.execute(
                "INSERT INTO event_senders (id, tenant, secret, created_at) VALUES (?1, ?2, ?3, ?4)",
                params![id, tenant.as_str(), secret, ms(tx.now)],
            )?;
            Ok((id, format!("whsec_{}", STANDARD.encode(secret))))
        })
        .await
    }

    /// The tenant and the secret of a sender that is not revoked.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn sender(&self, id: &str) -> Result<Option<(Name, Vec<u8>)>, Error> {
        let id = id.to_owned();
        self.read(move |conn| {
            let sql = "SELECT tenant, secret FROM event_senders WHERE id = ?1 AND revoked_at IS NULL";
            let mut statement = conn.prepare_cached(sql)?;
            Ok(statement.query_row([id], |row| Ok((name(row, 0)?, row.get(1)?))).optional()?)
        })
        .await
    }

    /// The senders of a tenant, or all.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn list_senders(&self, tenant: Option<Name>) -> Result<Vec<SenderRecord>, Error> {
        self.read(move |conn| {
            let mut statement = conn.prepare_cached(
                "SELECT id, tenant, created_at, revoked_at FROM event_senders WHERE ?1 IS NULL OR tenant = ?1 ORDER BY id",
            )?;
            let rows = statement.query_map([tenant.as_ref().map(Name::as_str)], |row| {
                Ok(SenderRecord {
                    id: row.get(0)?,
                    tenant: name(row, 1)?,
                    created_at: time(row, 2)?,
                    revoked_at: opt_time(row, 3)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Revokes a sender; again is no error.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn revoke_sender(&self, id: &str) -> Result<(), Error> {
        self.revoke("event_senders", "sender", id).await
    }
}
