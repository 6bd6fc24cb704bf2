//! Grants: the stored permission of an attempt to go on with its final effect, in a site of several agents.
//!
//! A path of a resource is granted to one attempt at a time. Not every server can create a file only where none is, or rename
//! in one step: two agents of a site that acted on one path at the same moment could overwrite each other's file there.

use super::{
    Error,
    attempts::{JobRow, own},
    row::{from_uuid, opt_json, to_json},
    writer::Tx,
};
use crate::{model::JobState, tunnel::registry::QueueKey};
use passerelle_protocol::{AgentId, Commit, Intent, session::Attempt};
use rusqlite::{OptionalExtension as _, params};

/// An agent is at another job of the resource that was granted the path. One that waits for its next attempt holds nothing:
/// those who wait here may have the places that it needs.
pub(super) const HELD: &str = "SELECT 1 FROM jobs j INDEXED BY jobs_granted \
     JOIN attempts a ON a.job = j.seq AND a.number = j.granted \
     WHERE j.tenant = ?1 AND j.site = ?2 AND j.resource = ?3 AND j.granted > 0 \
     AND j.state IN ('offered', 'running') AND j.seq <> ?4 \
     AND json_extract(a.intent, '$.target') = ?5 LIMIT 1";

/// What became of the wish for a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It is stored.
    Granted,
    /// Another attempt acts on the same path: ask again a little later.
    Later,
    /// The attempt may no longer act.
    Never,
}

/// The attempt asks for its final effect.
pub(crate) fn commit_requested(tx: &mut Tx<'_>, agent: AgentId, commit: &Commit) -> Result<Asked, Error> {
    let attempt = Attempt::new(commit.job, commit.attempt);
    let Some((job, row)) = own(tx, agent, attempt)? else { return Ok(Asked::Never) };
    let active = matches!(job.facts.state, JobState::Offered | JobState::Running);
    if row.number != job.attempt || row.finished_at.is_some() || !active || job.facts.cancel_requested {
        return Ok(Asked::Never);
    }
    let before: Option<Intent> = tx
        .conn
        .prepare_cached("SELECT intent FROM attempts WHERE job = ?1 AND number = ?2")?
        .query_row(params![job.seq, row.number], |row| opt_json(row, 0))?;
    if job.facts.granted && before.is_some_and(|before| before.target == commit.intent.target) {
        return Ok(Asked::Granted);
    }
    if let Some(target) = &commit.intent.target
        && is_held(tx, &job, target)?
    {
        return Ok(Asked::Later);
    }
    // One that was granted another path before found it taken, and goes on with the next.
    tx.conn
        .prepare_cached("UPDATE attempts SET intent = ?3 WHERE job = ?1 AND number = ?2")?
        .execute(params![job.seq, row.number, to_json(&commit.intent)?])?;
    tx.conn
        .prepare_cached("UPDATE jobs SET granted = ?2 WHERE seq = ?1")?
        .execute(params![job.seq, row.number])?;
    Ok(Asked::Granted)
}

fn is_held(tx: &Tx<'_>, job: &JobRow, target: &str) -> Result<bool, Error> {
    let QueueKey { tenant, site, resource } = &job.queue;
    let key = params![tenant.as_str(), site.as_str(), resource.as_str(), job.seq, target];
    Ok(tx.conn.prepare_cached(HELD)?.exists(key)?)
}

/// Whether a grant of the attempt's effect is stored.
pub(crate) fn was_granted(tx: &Tx<'_>, agent: AgentId, attempt: Attempt) -> Result<bool, Error> {
    let of: Option<AgentId> = tx
        .conn
        .prepare_cached(
            "SELECT agent FROM attempts WHERE job = (SELECT seq FROM jobs WHERE id = ?1) AND number = ?2 \
             AND intent IS NOT NULL",
        )?
        .query_row(params![attempt.job.uuid().as_bytes(), attempt.number], |row| from_uuid(row, 0))
        .optional()?;
    of.map_or(Ok(false), |of| super::agents::stands_for(tx.conn, agent, of))
}
