//! Applications that call the vendor's API, and post business events, with HTTP Basic: an id and a secret of their tenant.

use super::{
    Error, Store,
    admin::known_tenant,
    row::{is_secret, ms, name, new_secret, opt_time, time},
};
use crate::{clock, model::AppRecord};
use passerelle_protocol::Name;
use rusqlite::{OptionalExtension as _, params};
use uuid::Uuid;

impl Store {
    /// Makes an application; answers its id and its secret, which is stored nowhere.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant.
    pub async fn create_app(&self, tenant: Name) -> Result<(String, String), Error> {
        let id = clock::new_uuid7().hyphenated().to_string();
        let (secret, digest) = new_secret()?;
        self.write(move |tx| {
            known_tenant(tx.conn, &tenant)?;
            tx.conn.execute(
                "INSERT INTO apps (id, tenant, secret, created_at) VALUES (?1, ?2, ?3, ?4)",
                params![id, tenant.as_str(), digest, ms(tx.now)],
            )?;
            Ok((id, secret))
        })
        .await
    }

    /// The tenant of the application with this id and secret; `None` if it is none, or revoked. The id may be written with
    /// or without hyphens or braces, in any case.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn authenticate_app(&self, id: &str, secret: &str) -> Result<Option<Name>, Error> {
        let Ok(id) = Uuid::parse_str(id) else { return Ok(None) };
        let id = id.hyphenated().to_string();
        let found: Option<(Name, [u8; 32])> = self
            .read(move |conn| {
                let sql = "SELECT tenant, secret FROM apps WHERE id = ?1 AND revoked_at IS NULL";
                let mut statement = conn.prepare_cached(sql)?;
                Ok(statement.query_row([id], |row| Ok((name(row, 0)?, row.get(1)?))).optional()?)
            })
            .await?;
        Ok(found.filter(|(_, digest)| is_secret(secret, digest)).map(|(tenant, _)| tenant))
    }

    /// The applications of a tenant, or all.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn list_apps(&self, tenant: Option<Name>) -> Result<Vec<AppRecord>, Error> {
        self.read(move |conn| {
            let mut statement = conn.prepare_cached(
                "SELECT id, tenant, created_at, revoked_at FROM apps WHERE ?1 IS NULL OR tenant = ?1 ORDER BY id",
            )?;
            let rows = statement.query_map([tenant.as_ref().map(Name::as_str)], |row| {
                Ok(AppRecord {
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

    /// Revokes an application; again is no error.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn revoke_app(&self, id: &str) -> Result<(), Error> {
        self.revoke("apps", "application", id).await
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Hub, name};

    #[tokio::test]
    async fn an_application_is_known_by_its_secret_until_it_is_revoked() {
        let hub = Hub::new().await;
        let (id, secret) = hub.store.create_app(name("acme")).await.unwrap();
        let of = async |id: &str, secret: &str| hub.store.authenticate_app(id, secret).await.unwrap();
        assert_eq!(of(&id, &secret).await, Some(name("acme")));
        let upper = format!("{{{}}}", id.to_uppercase());
        assert_eq!(of(&upper, &secret).await, Some(name("acme")));
        assert_eq!(of(&id.replace('-', ""), &secret).await, Some(name("acme")));
        for (id, secret) in [(id.as_str(), "other"), ("nobody", &secret), (&id, ""), ("", "")] {
            assert_eq!(of(id, secret).await, None, "{id}");
        }
        assert!(hub.store.create_app(name("nobody")).await.is_err());

        hub.store.revoke_app(&id).await.unwrap();
        hub.store.revoke_app(&id).await.unwrap();
        assert_eq!(of(&id, &secret).await, None);
        let listed = hub.store.list_apps(Some(name("acme"))).await.unwrap();
        assert!(listed.len() == 1 && listed[0].revoked_at.is_some(), "{listed:?}");
        assert!(hub.store.list_apps(Some(name("other"))).await.unwrap().is_empty());
        assert!(hub.store.revoke_app("nobody").await.is_err());
    }
}
