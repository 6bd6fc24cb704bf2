//! Tenants, API keys and enrolment tokens.

use super::{
    Error, Store,
    row::{is_secret, ms, name, new_id, new_secret, opt_json, opt_time, parsed, split_secret, time, to_json},
    writer::Tx,
};
use crate::model::{ApiKeyRecord, Caller, EnrolmentTokenRecord, Page, SiteSummary, TenantRecord, Tier};
use passerelle_protocol::Name;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::{sync::Arc, time::Duration};

/// The applications that have a hybrid mode.
pub const APPLICATIONS: &[&str] = &["orchestrator", "hub"];

impl Store {
    /// Creates a tenant.
    ///
    /// # Errors
    /// [`Error::Conflict`] if there is one of that name.
    pub async fn create_tenant(&self, name: Name, tier: Tier) -> Result<(), Error> {
        self.write(move |tx| {
            let new = tx.conn.execute(
                "INSERT INTO tenants (name, tier, created_at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                params![name.as_str(), tier.as_str(), ms(tx.now)],
            )?;
            if new == 1 { Ok(()) } else { Err(Error::Conflict(format!("there is a tenant {name} already"))) }
        })
        .await
    }

    /// Changes a tenant's tier. Where the new one has no hybrid mode, its agents are disconnected; what they hold stays theirs.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn set_tier(&self, name: Name, tier: Tier) -> Result<(), Error> {
        self.write(move |tx| {
            tx.effects.forget = true;
            tx.effects.dismiss = true;
            let found = tx.conn.execute(
                "UPDATE tenants SET tier = ?2 WHERE name = ?1",
                params![name.as_str(), tier.as_str()],
            )?;
            if found == 1 { Ok(()) } else { Err(no_tenant(&name)) }
        })
        .await
    }

    /// One tenant.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn tenant(&self, name: Name) -> Result<Option<TenantRecord>, Error> {
        self.read(move |conn| tenant(conn, &name)).await
    }

    /// All tenants, by name.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn list_tenants(&self) -> Result<Vec<TenantRecord>, Error> {
        self.read(|conn| {
            let mut statement =
                conn.prepare_cached("SELECT name, tier, created_at FROM tenants ORDER BY name")?;
            let rows = statement.query_map([], read_tenant)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Makes an API key; answers its id and the key itself, which is stored nowhere.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant.
    pub async fn create_api_key(&self, tenant: Name, scopes: Vec<String>) -> Result<(String, String), Error> {
        let (id, (secret, digest)) = (new_id(), new_secret()?);
        let key = format!("pk_{id}_{secret}");
        self.write(move |tx| {
            known_tenant(tx.conn, &tenant)?;
            tx.conn.execute(
                "INSERT INTO api_keys (id, tenant, scopes, secret, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![id, tenant.as_str(), to_json(&scopes)?, digest, ms(tx.now)],
            )?;
            Ok((id, key))
        })
        .await
    }

    /// Who holds this key; `None` if nobody (any more). Kept in memory until a key changes, in any process.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn authenticate(&self, bearer: &str) -> Result<Option<Arc<Caller>>, Error> {
        let Some((id, secret)) = split_secret("pk", bearer) else { return Ok(None) };
        let caches = &self.shared().caches;
        let entry = match caches.key(id) {
            Some(entry) => entry,
            None => {
                let generation = caches.generation();
                let wanted = id.to_owned();
                let found = self
                    .read(move |conn| {
                        let sql = "SELECT id, tenant, scopes, secret FROM api_keys WHERE id = ?1 AND revoked_at IS NULL";
                        let read = |row: &Row<'_>| {
                            let caller = Caller {
                                key: row.get(0)?,
                                tenant: name(row, 1)?,
                                scopes: opt_json(row, 2)?.unwrap_or_default(),
                            };
                            Ok((Arc::new(caller), row.get(3)?))
                        };
                        Ok(conn.prepare_cached(sql)?.query_row([wanted], read).optional()?)
                    })
                    .await?;
                let Some(entry) = found else { return Ok(None) };
                caches.keep_key(generation, &entry);
                entry
            }
        };
        let (caller, digest): (Arc<Caller>, [u8; 32]) = entry;
        Ok(is_secret(secret, &digest).then_some(caller))
    }

    /// The API keys of a tenant, or all.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn list_api_keys(&self, tenant: Option<Name>) -> Result<Vec<ApiKeyRecord>, Error> {
        self.read(move |conn| {
            let mut statement = conn.prepare_cached(
                "SELECT id, tenant, scopes, created_at, revoked_at FROM api_keys \
                 WHERE ?1 IS NULL OR tenant = ?1 ORDER BY id",
            )?;
            let rows = statement.query_map([tenant.as_ref().map(Name::as_str)], |row| {
                Ok(ApiKeyRecord {
                    id: row.get(0)?,
                    tenant: name(row, 1)?,
                    scopes: opt_json(row, 2)?.unwrap_or_default(),
                    created_at: time(row, 3)?,
                    revoked_at: opt_time(row, 4)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Revokes an API key; again is no error.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn revoke_api_key(&self, id: &str) -> Result<(), Error> {
        self.revoke("api_keys", "API key", id).await
    }

    /// Makes an enrolment token, and the site if it is new; answers the token's id and the token itself, which is stored
    /// nowhere.
    ///
    /// # Errors
    /// [`Error::ApplicationIncompatible`], [`Error::TierRequired`], [`Error::NotFound`] for an unknown tenant.
    pub async fn create_enrolment_token(
        &self,
        tenant_name: Name,
        site: Name,
        application: String,
        ttl: Duration,
        uses: u32,
    ) -> Result<(String, String), Error> {
        compatible(&application)?;
        let (id, (secret, digest)) = (new_id(), new_secret()?);
        let token = format!("et_{id}_{secret}");
        self.write(move |tx| {
            enterprise(tx.conn, &tenant_name)?;
            let expires_at = tx.now.checked_add(ttl).unwrap_or(jiff::Timestamp::MAX);
            tx.conn.execute(
                "INSERT INTO sites (tenant, name, created_at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                params![tenant_name.as_str(), site.as_str(), ms(tx.now)],
            )?;
            tx.conn.execute(
                "INSERT INTO enrolment_tokens (id, tenant, site, application, secret, uses_left, created_at, expires_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id,
                    tenant_name.as_str(),
                    site.as_str(),
                    application,
                    digest,
                    uses,
                    ms(tx.now),
                    ms(expires_at)
                ],
            )?;
            Ok((id, token))
        })
        .await
    }

    /// The enrolment tokens of a tenant, or all.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn list_enrolment_tokens(
        &self,
        tenant: Option<Name>,
    ) -> Result<Vec<EnrolmentTokenRecord>, Error> {
        self.read(move |conn| {
            let mut statement = conn.prepare_cached(
                "SELECT id, tenant, site, application, uses_left, created_at, expires_at, revoked_at \
                 FROM enrolment_tokens WHERE ?1 IS NULL OR tenant = ?1 ORDER BY id",
            )?;
            let rows = statement.query_map([tenant.as_ref().map(Name::as_str)], |row| {
                Ok(EnrolmentTokenRecord {
                    id: row.get(0)?,
                    tenant: name(row, 1)?,
                    site: name(row, 2)?,
                    application: row.get(3)?,
                    uses_left: row.get(4)?,
                    created_at: time(row, 5)?,
                    expires_at: time(row, 6)?,
                    revoked_at: opt_time(row, 7)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Revokes an enrolment token; again is no error. Agents that it enrolled stay.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn revoke_enrolment_token(&self, id: &str) -> Result<(), Error> {
        self.revoke("enrolment_tokens", "enrolment token", id).await
    }

    pub(super) async fn revoke(
        &self,
        table: &'static str,
        what: &'static str,
        id: &str,
    ) -> Result<(), Error> {
        let id = id.to_owned();
        self.write(move |tx: &mut Tx<'_>| {
            tx.effects.forget = true;
            let sql = format!("UPDATE {table} SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1");
            match tx.conn.execute(&sql, params![id, ms(tx.now)])? {
                1 => Ok(()),
                _ => Err(Error::NotFound(format!("no {what} {id}"))),
            }
        })
        .await
    }

    /// A page of the sites of a tenant, by name: at most `limit`, those after a name.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn sites(
        &self,
        tenant: Name,
        limit: usize,
        after: Option<Name>,
    ) -> Result<Page<SiteSummary>, Error> {
        let wanted = tenant.clone();
        let mut sites: Vec<SiteSummary> = self
            .read(move |conn| {
                let mut statement = conn.prepare_cached(
                    "SELECT name, \
                     (SELECT count(*) FROM agents a WHERE a.tenant = s.tenant AND a.site = s.name \
                      AND a.revoked_at IS NULL), \
                     (SELECT count(*) FROM jobs j WHERE j.tenant = s.tenant AND j.site = s.name AND j.state = 'queued' \
                      AND j.ready = 1) + (SELECT count(*) FROM jobs j WHERE j.tenant = s.tenant AND j.site = s.name \
                      AND j.blocks = 1 AND j.ready = 0 AND j.state = 'queued') \
                     FROM sites s WHERE s.tenant = ?1 AND (?2 IS NULL OR name > ?2) ORDER BY name LIMIT ?3",
                )?;
                let most = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
                let given = params![wanted.as_str(), after.as_ref().map(Name::as_str), most];
                let rows = statement.query_map(given, |row| {
                    Ok(SiteSummary {
                        name: name(row, 0)?,
                        agents: super::row::size(row, 1)?,
                        agents_online: 0,
                        jobs_queued: super::row::size(row, 2)?,
                    })
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await?;
        let more = sites.len() > limit;
        sites.truncate(limit);
        for site in &mut sites {
            site.agents_online = self.shared().registry.online_at(&tenant, &site.name);
        }
        let next_cursor = sites.last().filter(|_| more).map(|site| site.name.to_string());
        Ok(Page { items: sites, next_cursor })
    }

    /// Whether the tenant has this site.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn site_exists(&self, tenant: Name, site: Name) -> Result<bool, Error> {
        self.read(move |conn| {
            let sql = "SELECT 1 FROM sites WHERE tenant = ?1 AND name = ?2";
            Ok(conn.prepare_cached(sql)?.exists([tenant.as_str(), site.as_str()])?)
        })
        .await
    }
}

fn read_tenant(row: &Row<'_>) -> rusqlite::Result<TenantRecord> {
    Ok(TenantRecord { name: name(row, 0)?, tier: parsed(row, 1)?, created_at: time(row, 2)? })
}

fn no_tenant(name: &Name) -> Error {
    Error::NotFound(format!("no tenant {name}: create it first"))
}

pub(super) fn tenant(conn: &Connection, name: &Name) -> Result<Option<TenantRecord>, Error> {
    let sql = "SELECT name, tier, created_at FROM tenants WHERE name = ?1";
    Ok(conn.prepare_cached(sql)?.query_row([name.as_str()], read_tenant).optional()?)
}

pub(super) fn known_tenant(conn: &Connection, name: &Name) -> Result<TenantRecord, Error> {
    tenant(conn, name)?.ok_or_else(|| no_tenant(name))
}

/// Hybrid mode is for the Enterprise tier alone.
pub(super) fn enterprise(conn: &Connection, name: &Name) -> Result<(), Error> {
    match known_tenant(conn, name)?.tier {
        Tier::Enterprise => Ok(()),
        Tier::Professional | Tier::Standard => Err(Error::TierRequired(name.clone())),
    }
}

/// Hybrid mode exists for two applications.
fn compatible(application: &str) -> Result<(), Error> {
    if APPLICATIONS.contains(&application) {
        return Ok(());
    }
    Err(Error::ApplicationIncompatible(match application {
        "office" | "commerce" | "store" | "signage" => {
            format!(
                "application {application} is not compatible with hybrid mode: only orchestrator and hub are"
            )
        }
        _ => format!("application {application:?} is unknown: use orchestrator or hub"),
    }))
}
