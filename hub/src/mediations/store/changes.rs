//! The durable sequence of what happened to runs and definitions: written in the transaction of the change, ordered, read
//! by a cursor. Whoever tells others of it (subscriptions) hangs on [`record`], or reads on from the last number it told.

use crate::{
    mediations::{
        ids::{DefinitionId, RunId},
        runs::RunState,
    },
    model::ChangeKind,
    store::{
        Error, Store,
        row::{from_uuid, ms, name, opt_uuid, time},
        writer::Tx,
    },
};
use jiff::Timestamp;
use passerelle_protocol::Name;
use rusqlite::params;
use serde::Serialize;

/// How many changes a page holds, at most.
const MAX_PAGE: usize = 500;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunChange {
    /// Grows with each change, over all tenants.
    pub seq: u64,
    /// The tenant.
    pub tenant: Name,
    /// The definition.
    pub definition: DefinitionId,
    /// The run; nothing for lateness, which is the definition's.
    pub run: Option<RunId>,
    /// What happened.
    pub kind: RunChangeKind,
    /// The run's state after it.
    pub state: Option<RunState>,
    /// When.
    pub at: Timestamp,
}

/// What happened to a run or definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunChangeKind {
    /// A run began.
    Created,
    /// An operator restarted it.
    Restarted,
    /// It succeeded.
    Succeeded,
    /// It failed, or its effect is unknown: the state says which.
    Failed,
    /// An operator ignored it.
    Ignored,
    /// A newer run closed it.
    Superseded,
    /// It did not begin, because an earlier one was under way.
    Skipped,
    /// No run succeeded in time.
    Late,
}

impl RunChangeKind {
    const ALL: [Self; 8] = [
        Self::Created,
        Self::Restarted,
        Self::Succeeded,
        Self::Failed,
        Self::Ignored,
        Self::Superseded,
        Self::Skipped,
        Self::Late,
    ];

    /// The word of it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Restarted => "restarted",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Ignored => "ignored",
            Self::Superseded => "superseded",
            Self::Skipped => "skipped",
            Self::Late => "late",
        }
    }
}

impl std::str::FromStr for RunChangeKind {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(())
    }
}

/// Writes a change of a run, and tells of it after the commit.
pub(crate) fn record(
    tx: &mut Tx<'_>,
    tenant: &Name,
    definition: DefinitionId,
    run: Option<(RunId, RunState)>,
    kind: RunChangeKind,
) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT INTO mediation_changes (tenant, definition, run, kind, state, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            tenant.as_str(),
            definition.uuid().as_bytes(),
            run.map(|(run, _)| *run.uuid().as_bytes()),
            kind.as_str(),
            run.map(|(_, state)| state.as_str()),
            ms(tx.now)
        ])?;
    let told = run.map_or(ChangeKind::Definition(definition), |(run, _)| ChangeKind::Run(run));
    tx.effects.changes.push((tenant.clone(), told));
    super::told::tell(tx, tenant, definition, run, kind)
}

impl Store {
    /// What happened after the change `seq`, oldest first; of one tenant or of all. At most 500.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn run_changes(
        &self,
        tenant: Option<Name>,
        seq: u64,
        limit: usize,
    ) -> Result<Vec<RunChange>, Error> {
        self.read(move |conn| {
            let by = if tenant.is_some() { "tenant = ?1 AND" } else { "?1 IS NULL AND" };
            let sql = format!(
                "SELECT seq, tenant, definition, run, kind, state, at FROM mediation_changes WHERE {by} seq > ?2 \
                 ORDER BY seq LIMIT ?3"
            );
            let mut statement = conn.prepare_cached(&sql)?;
            let limit = i64::try_from(limit.clamp(1, MAX_PAGE)).unwrap_or(1);
            let after = i64::try_from(seq).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![tenant.as_ref().map(Name::as_str), after, limit], |row| {
                Ok(RunChange {
                    seq: row.get::<_, i64>(0)?.unsigned_abs(),
                    tenant: name(row, 1)?,
                    definition: from_uuid(row, 2)?,
                    run: opt_uuid(row, 3)?,
                    kind: crate::store::row::parsed(row, 4)?,
                    state: row.get_ref(5)?.as_str_or_null()?.and_then(|word| word.parse().ok()),
                    at: time(row, 6)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The number of the newest change; 0: there is none.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn last_run_change(&self) -> Result<u64, Error> {
        self.read(|conn| {
            let last: i64 =
                conn.query_row("SELECT coalesce(max(seq), 0) FROM mediation_changes", [], |row| row.get(0))?;
            Ok(last.unsigned_abs())
        })
        .await
    }
}
