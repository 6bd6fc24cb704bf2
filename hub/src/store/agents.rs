//! Agents: enrolment, lists, revocation.

use super::{
    Error, Store,
    admin::enterprise,
    agent_keys,
    attempts::{self, AttemptRow, JobRow},
    clones,
    row::{from_uuid, is_secret, ms, name, opt_time, opt_uuid, parsed, split_secret, time},
    writer::Tx,
};
use crate::{
    clock,
    model::{AgentRecord, ChangeKind, Page, Tier},
    tunnel::registry::Command,
};
use passerelle_protocol::{
    AgentId, AgentKey, Name, Repeat,
    http::{EnrolRequest, EnrolResponse},
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::sync::Arc;

/// How many identities in a row stand for one agent.
const MAX_REPLACED: usize = 64;

const AGENT: &str = "id, tenant, site, application, name, version, enrolled_at, revoked_at, connected_at, \
    last_seen_at, replaced_by, (SELECT tier FROM tenants WHERE tenants.name = tenant)";

fn read(row: &Row<'_>) -> rusqlite::Result<AgentRecord> {
    Ok(AgentRecord {
        id: from_uuid(row, 0)?,
        tenant: name(row, 1)?,
        site: name(row, 2)?,
        application: row.get(3)?,
        name: name(row, 4)?,
        keys: Vec::new(),
        version: row.get(5)?,
        enrolled_at: time(row, 6)?,
        revoked_at: opt_time(row, 7)?,
        connected_at: opt_time(row, 8)?,
        last_seen_at: opt_time(row, 9)?,
        replaced_by: opt_uuid(row, 10)?,
        clones: None,
        enterprise: parsed::<Tier>(row, 11)? == Tier::Enterprise,
    })
}

/// Adds what other tables hold of it.
fn complete(conn: &Connection, mut agent: AgentRecord) -> Result<AgentRecord, Error> {
    agent.keys = agent_keys::of(conn, agent.id)?;
    agent.clones = clones::of(conn, agent.id)?;
    Ok(agent)
}

pub(super) fn agent(conn: &Connection, id: AgentId) -> Result<Option<AgentRecord>, Error> {
    let sql = format!("SELECT {AGENT} FROM agents WHERE id = ?1");
    let found = conn.prepare_cached(&sql)?.query_row([id.uuid().as_bytes()], read).optional()?;
    found.map(|agent| complete(conn, agent)).transpose()
}

/// Why an agent that was welcome is so no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwelcome {
    Revoked,
    /// Its tenant's tier has no hybrid mode any more: what it holds stays its own, for when the tier is back.
    Tier,
}

/// Which of these agents are not welcome any more.
pub(super) fn unwelcome(conn: &Connection, agents: &[AgentId]) -> Result<Vec<(AgentId, Unwelcome)>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT revoked_at IS NOT NULL, tier <> 'enterprise' FROM agents JOIN tenants ON tenants.name = tenant \
         WHERE id = ?1",
    )?;
    let mut found = Vec::new();
    for agent in agents {
        let reasons: Option<(bool, bool)> = statement
            .query_row([agent.uuid().as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match reasons {
            Some((true, _)) => found.push((*agent, Unwelcome::Revoked)),
            Some((false, true)) => found.push((*agent, Unwelcome::Tier)),
            Some((false, false)) | None => {}
        }
    }
    Ok(found)
}

impl Store {
    /// Enrolled agents by age, oldest first. The cursor is the last id of the page before.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a cursor that no page gave.
    pub async fn list_agents(
        &self,
        tenant: Option<Name>,
        site: Option<Name>,
        limit: usize,
        cursor: Option<String>,
    ) -> Result<Page<AgentRecord>, Error> {
        let after: Option<AgentId> = cursor
            .map(|text| text.parse())
            .transpose()
            .map_err(|_| Error::BadRequest("cursor: not one that a page of this list gave".to_owned()))?;
        self.read(move |conn| {
            let limit = limit.clamp(1, 500);
            let sql = format!(
                "SELECT {AGENT} FROM agents WHERE (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR site = ?2) \
                 AND (?3 IS NULL OR id > ?3) ORDER BY id LIMIT ?4"
            );
            let mut statement = conn.prepare_cached(&sql)?;
            let rows = statement.query_map(
                params![
                    tenant.as_ref().map(Name::as_str),
                    site.as_ref().map(Name::as_str),
                    after.map(|id| *id.uuid().as_bytes()),
                    i64::try_from(limit + 1).unwrap_or(i64::MAX)
                ],
                read,
            )?;
            let mut items = rows.collect::<Result<Vec<_>, _>>()?;
            let more = items.len() > limit;
            items.truncate(limit);
            let items =
                items.into_iter().map(|agent| complete(conn, agent)).collect::<Result<Vec<_>, _>>()?;
            let next_cursor = items.last().filter(|_| more).map(|agent| agent.id.to_string());
            Ok(Page { items, next_cursor })
        })
        .await
    }

    /// One agent.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn agent(&self, id: AgentId) -> Result<Option<AgentRecord>, Error> {
        self.read(move |conn| agent(conn, id)).await
    }

    /// One agent, as far as its identity goes: kept in memory until an agent changes, in any process.
    pub(crate) async fn identity(&self, id: AgentId) -> Result<Option<Arc<AgentRecord>>, Error> {
        let caches = &self.shared().caches;
        if let Some(agent) = caches.agent(id) {
            return Ok(Some(agent));
        }
        let generation = caches.generation();
        let found = self.agent(id).await?.map(Arc::new);
        if let Some(agent) = &found {
            caches.keep_agent(generation, agent);
        }
        Ok(found)
    }

    /// Enrols an agent. The same token with the same key again gets the same answer: the first one may have been lost.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] for a token that is unknown, expired, revoked or used up; [`Error::TierRequired`];
    /// [`Error::Conflict`] for a key that is enrolled already.
    pub async fn enrol(&self, request: EnrolRequest) -> Result<EnrolResponse, Error> {
        let audience = self.audience().to_owned();
        let (agent, replaced) = self.write(move |tx| enrol(tx, &request, &audience)).await?;
        Ok(EnrolResponse {
            agent: agent.id,
            tenant: agent.tenant,
            site: agent.site,
            application: agent.application,
            audience: self.audience().to_owned(),
            job_keys: vec![self.signing_key().public().clone()],
            replaced,
            server_time: clock::now(),
        })
    }

    /// Revokes an agent: its session ends, what it had accepted ends `unknown` (`agent_lost`), what it had not is queued
    /// again. Again is no error.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn revoke_agent(&self, id: AgentId) -> Result<(), Error> {
        self.write(move |tx| {
            let found = agent(tx.conn, id)?.ok_or_else(|| Error::NotFound(format!("no agent {id}")))?;
            end_identity(tx, &found)
        })
        .await
    }
}

/// Ends an agent's identity, unless it has ended already.
fn end_identity(tx: &mut Tx<'_>, found: &AgentRecord) -> Result<(), Error> {
    if found.revoked_at.is_some() {
        return Ok(());
    }
    let id = found.id;
    tx.conn.execute(
        "UPDATE agents SET revoked_at = ?2 WHERE id = ?1",
        params![id.uuid().as_bytes(), ms(tx.now)],
    )?;
    tx.effects.forget = true;
    tx.shared.registry.send(id, Command::Revoked);
    tx.shared.registry.forget(id);
    for (job, row) in open_attempts(tx.conn, id)? {
        attempts::not_held(tx, &job, &row, Repeat::Never)?;
    }
    tx.effects.changes.push((found.tenant.clone(), ChangeKind::Agent(id)));
    Ok(())
}

/// Whether a site has no second enrolled, unrevoked agent.
pub(super) fn is_lone(conn: &Connection, tenant: &Name, site: &Name) -> Result<bool, Error> {
    let agents: u32 = conn
        .prepare_cached("SELECT count(*) FROM agents WHERE tenant = ?1 AND site = ?2 AND revoked_at IS NULL")?
        .query_row([tenant.as_str(), site.as_str()], |row| row.get(0))?;
    Ok(agents <= 1)
}

/// Whether what `old` held is now `agent`'s: it was enrolled in its place, directly or over others in between.
pub(super) fn stands_for(conn: &Connection, agent: AgentId, old: AgentId) -> Result<bool, Error> {
    let mut statement = conn.prepare_cached("SELECT replaced_by FROM agents WHERE id = ?1")?;
    let mut next = Some(old);
    for _ in 0..MAX_REPLACED {
        match next {
            None => return Ok(false),
            Some(id) if id == agent => return Ok(true),
            Some(id) => {
                let found: Option<Option<AgentId>> =
                    statement.query_row([id.uuid().as_bytes()], |row| opt_uuid(row, 0)).optional()?;
                next = found.flatten();
            }
        }
    }
    Ok(false)
}

/// The attempts of an agent that have not ended.
pub(super) fn open_attempts(conn: &Connection, agent: AgentId) -> Result<Vec<(JobRow, AttemptRow)>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT job, number FROM attempts WHERE agent = ?1 AND finished_at IS NULL ORDER BY job, number",
    )?;
    let keys: Vec<(i64, u32)> = statement
        .query_map([agent.uuid().as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut open = Vec::with_capacity(keys.len());
    for (seq, number) in keys {
        if let Some(job) = JobRow::by_seq(conn, seq)?
            && let Some(attempt) = AttemptRow::find(conn, seq, number)?
        {
            open.push((job, attempt));
        }
    }
    Ok(open)
}

/// The agent whose place a new one takes: it says so itself, with a key that the hub knows of it.
fn replaces(
    conn: &Connection,
    request: &EnrolRequest,
    (tenant, site): (&Name, &Name),
    audience: &str,
    now: i64,
) -> Result<Option<AgentRecord>, Error> {
    let Some(statement) = &request.replaces else { return Ok(None) };
    let Some(claimed) = crate::tunnel::claims::<AgentKey>(statement) else { return Ok(None) };
    let Some(old) = agent(conn, claimed.agent)? else { return Ok(None) };
    // Only those that count: an old copy of a key must not end the agent that has followed with another one.
    let said = AgentKey::verify(old.keys_at(clock::now()), statement);
    let good = said.is_ok_and(|said| {
        said.agent == old.id && said.public_key == request.public_key && said.check(audience, now).is_ok()
    });
    let same = (&old.tenant, &old.site) == (tenant, site);
    Ok(Some(old).filter(|old| good && same && old.replaced_by.is_none()))
}

type Enrolment = (AgentRecord, Option<AgentId>);

fn enrol(tx: &mut Tx<'_>, request: &EnrolRequest, audience: &str) -> Result<Enrolment, Error> {
    let refused = |why: &str| Error::Unauthorized(format!("the enrolment token {why}: ask for a new one"));
    let (id, secret) = split_secret("et", &request.token).ok_or_else(|| refused("is malformed"))?;
    let sql = "SELECT tenant, site, application, secret, uses_left, expires_at, revoked_at FROM enrolment_tokens WHERE id = ?1";
    let token = tx
        .conn
        .prepare_cached(sql)?
        .query_row([id], |row| {
            let names = (name(row, 0)?, name(row, 1)?, row.get::<_, String>(2)?);
            let uses: u32 = row.get(4)?;
            Ok((names, row.get::<_, [u8; 32]>(3)?, uses, time(row, 5)?, opt_time(row, 6)?))
        })
        .optional()?;
    let Some(((tenant, site, application), digest, uses_left, expires_at, revoked_at)) = token else {
        return Err(refused("is unknown"));
    };
    if !is_secret(secret, &digest) {
        return Err(refused("is unknown"));
    }
    let public_key = String::from(request.public_key.clone());
    if let Some(owner) = agent_keys::owner(tx.conn, &public_key)? {
        return enrolled_before(tx, owner, id, &public_key);
    }
    if revoked_at.is_some() {
        return Err(refused("is revoked"));
    }
    if tx.now > expires_at {
        return Err(refused("has expired"));
    }
    if uses_left == 0 {
        return Err(refused("is used up"));
    }
    enterprise(tx.conn, &tenant)?;
    tx.shared.shares.agent(tx.conn, &tenant)?;
    let record = AgentRecord {
        id: AgentId::from(clock::new_uuid7()),
        tenant,
        site,
        application,
        name: request.name.clone(),
        keys: Vec::new(),
        version: request.agent_version.chars().take(64).collect(),
        enrolled_at: tx.now,
        revoked_at: None,
        connected_at: None,
        last_seen_at: None,
        replaced_by: None,
        clones: None,
        enterprise: true,
    };
    tx.conn
        .prepare_cached("UPDATE enrolment_tokens SET uses_left = uses_left - 1 WHERE id = ?1")?
        .execute([id])?;
    tx.conn
        .prepare_cached(
            "INSERT INTO agents (id, tenant, site, application, name, public_key, token, version, enrolled_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            record.id.uuid().as_bytes(),
            record.tenant.as_str(),
            record.site.as_str(),
            record.application,
            record.name.as_str(),
            public_key,
            id,
            record.version,
            ms(tx.now)
        ])?;
    agent_keys::add(tx, record.id, &public_key, true)?;
    let old = replaces(tx.conn, request, (&record.tenant, &record.site), audience, tx.now.as_second())?;
    if let Some(old) = &old {
        end_identity(tx, old)?;
        tx.conn
            .prepare_cached("UPDATE agents SET replaced_by = ?2 WHERE id = ?1")?
            .execute(params![old.id.uuid().as_bytes(), record.id.uuid().as_bytes()])?;
        tracing::info!(agent_id = %record.id, replaced = %old.id, "An agent was enrolled in the place of another");
    }
    tx.effects.changes.push((record.tenant.clone(), ChangeKind::Agent(record.id)));
    Ok((record, old.map(|old| old.id)))
}

/// The same token with the same key again: the first answer was lost.
fn enrolled_before(tx: &Tx<'_>, owner: AgentId, token: &str, public_key: &str) -> Result<Enrolment, Error> {
    let same = tx
        .conn
        .prepare_cached("SELECT 1 FROM agents WHERE id = ?1 AND token = ?2 AND public_key = ?3")?
        .exists(params![owner.uuid().as_bytes(), token, public_key])?;
    let found = agent(tx.conn, owner)?.filter(|agent| same && agent.revoked_at.is_none());
    let record = found.ok_or_else(|| {
        Error::Conflict("this public key is enrolled already: make a new key and enrol with it".to_owned())
    })?;
    let replaced = tx
        .conn
        .prepare_cached("SELECT id FROM agents WHERE replaced_by = ?1")?
        .query_row([owner.uuid().as_bytes()], |row| from_uuid(row, 0))
        .optional()?;
    Ok((record, replaced))
}
