//! What one tenant may have: open jobs, stored bytes, agents. One tenant cannot fill the hub for the others.
//!
//! Counting takes time in proportion to what is counted, so an upper bound is kept in memory that only grows, and counted
//! anew when it reaches the quota. What ended meanwhile is then found out; a tenant at its quota costs a count a second.

use super::{Error, Store};
use passerelle_protocol::Name;
use rusqlite::Connection;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often a tenant at its quota is counted anew.
const AGAIN: Duration = Duration::from_secs(1);

/// How many mediation runs of a tenant may be open: each takes a little memory while it waits.
const OPEN_RUNS: u64 = 100_000;

/// How many uploads of a tenant may be open: each is a file, however few bytes it announces.
const OPEN_UPLOADS: u64 = 10_000;

/// What a tenant may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// Jobs that have not ended.
    pub open_jobs: u64,
    /// Bytes of its blobs and of uploads under way.
    pub blob_bytes: u64,
    /// Enrolled agents that are not revoked.
    pub agents: u64,
    /// Stored events of triggers.
    pub events: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { open_jobs: 1_000_000, blob_bytes: 1 << 40, agents: 1000, events: 10_000_000 }
    }
}

/// An upper bound of what there is.
#[derive(Debug, Default)]
struct Bound {
    most: u64,
    counted_at: Option<Instant>,
}

impl Bound {
    /// Adds `more` if that stays within `quota`; counts when it has to.
    fn add(
        &mut self,
        more: u64,
        quota: u64,
        count: impl FnOnce() -> Result<u64, Error>,
    ) -> Result<bool, Error> {
        let fits = |most: u64| most.saturating_add(more) <= quota;
        let stale = self.counted_at.is_none_or(|at| at.elapsed() >= AGAIN);
        if self.counted_at.is_none() || (!fits(self.most) && stale) {
            self.most = count()?;
            self.counted_at = Some(Instant::now());
        }
        if !fits(self.most) {
            return Ok(false);
        }
        self.most = self.most.saturating_add(more);
        Ok(true)
    }
}

/// Quotas and bounds, of all tenants.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    quotas: Quotas,
    open_jobs: HashMap<Name, Bound>,
    blob_bytes: HashMap<Name, Bound>,
    events: HashMap<Name, Bound>,
    open_runs: HashMap<Name, Bound>,
    open_uploads: HashMap<Name, Bound>,
}

impl Shares {
    /// Takes a place for a job that is about to be open.
    pub(super) fn open_job(&self, conn: &Connection, tenant: &Name) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { quotas, open_jobs, .. } = &mut *state;
        let jobs = open_jobs.entry(tenant.clone()).or_default();
        let sql = "SELECT count(*) FROM jobs INDEXED BY jobs_open WHERE tenant = ?1 AND finished_at IS NULL";
        if jobs.add(1, quotas.open_jobs, || number(conn, sql, tenant))? {
            return Ok(());
        }
        let most = quotas.open_jobs;
        Err(Error::Quota(format!(
            "tenant {tenant} has {most} open jobs, as many as it may: let some end first"
        )))
    }

    /// Takes room for content.
    pub(crate) fn bytes(&self, conn: &Connection, tenant: &Name, more: u64) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { quotas, blob_bytes, .. } = &mut *state;
        let bytes = blob_bytes.entry(tenant.clone()).or_default();
        let count = || {
            let blobs = number(conn, "SELECT coalesce(sum(size), 0) FROM blobs WHERE tenant = ?1", tenant)?;
            let open = "SELECT coalesce(sum(length), 0) FROM uploads WHERE tenant = ?1 AND job IS NULL";
            Ok(blobs.saturating_add(number(conn, open, tenant)?))
        };
        if bytes.add(more, quotas.blob_bytes, count)? {
            return Ok(());
        }
        let most = quotas.blob_bytes;
        Err(Error::Quota(format!(
            "the blobs of tenant {tenant} may have {most} bytes together, and this would be more: what no job needs goes \
             with its retention"
        )))
    }

    /// Takes a place for a mediation run that is about to be open.
    pub(crate) fn open_run(&self, conn: &Connection, tenant: &Name) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = state.open_runs.entry(tenant.clone()).or_default();
        let sql = "SELECT count(*) FROM mediation_runs INDEXED BY mediation_runs_open \
                   WHERE tenant = ?1 AND finished_at IS NULL";
        if runs.add(1, OPEN_RUNS, || number(conn, sql, tenant))? {
            return Ok(());
        }
        Err(Error::Quota(format!(
            "tenant {tenant} has {OPEN_RUNS} open mediation runs, as many as it may: let some end first"
        )))
    }

    /// Takes a place for an upload of a client.
    pub(crate) fn open_upload(&self, conn: &Connection, tenant: &Name) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let uploads = state.open_uploads.entry(tenant.clone()).or_default();
        let sql = "SELECT count(*) FROM uploads WHERE tenant = ?1 AND job IS NULL AND event IS NULL";
        if uploads.add(1, OPEN_UPLOADS, || number(conn, sql, tenant))? {
            return Ok(());
        }
        Err(Error::Quota(format!(
            "tenant {tenant} has {OPEN_UPLOADS} open uploads, as many as it may: finish some; those that stand still go after \
             retention.uploads"
        )))
    }

    /// Takes a place for an event.
    pub(super) fn event(&self, conn: &Connection, tenant: &Name) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { quotas, events, .. } = &mut *state;
        let bound = events.entry(tenant.clone()).or_default();
        let sql = "SELECT (SELECT count(*) FROM received_events WHERE tenant = ?1) \
                   + (SELECT count(*) FROM business_events WHERE tenant = ?1)";
        if bound.add(1, quotas.events, || number(conn, sql, tenant))? {
            return Ok(());
        }
        let most = quotas.events;
        Err(Error::Quota(format!(
            "tenant {tenant} has {most} events, as many as it may: the oldest go with their retention"
        )))
    }

    /// Refuses an agent too many.
    pub(super) fn agent(&self, conn: &Connection, tenant: &Name) -> Result<(), Error> {
        let most = self.state.lock().unwrap_or_else(PoisonError::into_inner).quotas.agents;
        let sql = "SELECT count(*) FROM agents WHERE tenant = ?1 AND revoked_at IS NULL";
        if number(conn, sql, tenant)? < most {
            return Ok(());
        }
        Err(Error::Quota(format!("tenant {tenant} has {most} agents, as many as it may: revoke some first")))
    }
}

fn number(conn: &Connection, sql: &str, tenant: &Name) -> Result<u64, Error> {
    let found: i64 = conn.prepare_cached(sql)?.query_row([tenant.as_str()], |row| row.get(0))?;
    Ok(u64::try_from(found).unwrap_or_default())
}

impl Store {
    /// What each tenant may have from now on.
    pub fn set_quotas(&self, quotas: Quotas) {
        self.shared().shares.state.lock().unwrap_or_else(PoisonError::into_inner).quotas = quotas;
    }

    /// Takes room for so many bytes of a tenant's content, before they come.
    ///
    /// # Errors
    /// [`Error::Quota`].
    pub async fn room_for(&self, tenant: Name, bytes: u64) -> Result<(), Error> {
        let shared = self.shared_handle();
        self.read(move |conn| shared.shares.bytes(conn, &tenant, bytes)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_makes_room_when_it_is_counted_again() {
        let mut bound = Bound::default();
        assert!(bound.add(2, 3, || Ok(1)).unwrap());
        let never = || panic!("counted without need");
        assert!(!bound.add(1, 3, never).unwrap(), "full, and counted a moment ago");
        bound.counted_at = Instant::now().checked_sub(AGAIN);
        assert!(!bound.add(1, 3, || Ok(3)).unwrap());
        bound.counted_at = Instant::now().checked_sub(AGAIN);
        assert!(bound.add(1, 3, || Ok(2)).unwrap());
    }
}
