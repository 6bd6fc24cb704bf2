//! Runs as clients see them: lists by day, one run with all that belongs to it, its log.

use super::{definitions, flows, runs::head};
use crate::{
    mediations::{
        ids::{DefinitionId, RunId},
        runs::{
            DefinitionRef, Message, MessageKind, OccurrenceView, RunState, RunSummary, RunView, UnitJob,
            UnitView,
        },
    },
    model::Page,
    store::{
        Error, Store, cursor,
        row::{self, from_uuid, ms, name, opt_time, opt_uuid, parsed, time},
    },
};
use jiff::Timestamp;
use passerelle_protocol::{JobId, Name};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};

/// How many runs a page holds, at most.
const MAX_PAGE: usize = 500;
const MAX_FLOWS_SHOWN: usize = 1000;
const MAX_MESSAGES_SHOWN: i64 = 1000;
const MAX_JOBS_SHOWN: i64 = 100;

/// Which runs to list; newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFilter {
    /// Of this tenant.
    pub tenant: Name,
    /// Of this definition.
    pub definition: Option<DefinitionId>,
    /// In this state.
    pub state: Option<RunState>,
    /// Begun at this time or later.
    pub since: Option<Timestamp>,
    /// Begun before this time.
    pub until: Option<Timestamp>,
    /// At most so many (1 to 500; others are cut to it).
    pub limit: usize,
    /// Where the page before ended: its [`Page::next_cursor`].
    pub cursor: Option<String>,
}

const SUMMARY: &str = "r.seq, r.guid, r.definition, d.name, d.label, r.version, d.system, r.state, r.detail, r.kind, \
    r.created_at, r.finished_at, r.last_step, r.restarts";
const JOIN: &str = "JOIN mediation_definitions d ON d.tenant = r.tenant AND d.guid = r.definition";

fn summary(row: &Row<'_>) -> rusqlite::Result<RunSummary> {
    let state: RunState = parsed(row, 7)?;
    Ok(RunSummary {
        seq: row.get(0)?,
        guid: from_uuid(row, 1)?,
        definition: DefinitionRef {
            guid: from_uuid(row, 2)?,
            name: name(row, 3)?,
            label: row.get(4)?,
            version: row.get(5)?,
            system: opt_uuid(row, 6)?,
        },
        state,
        label: state.labels(),
        detail: row.get(8)?,
        trigger: row.get(9)?,
        created_at: time(row, 10)?,
        finished_at: opt_time(row, 11)?,
        last_finished_step: row.get_ref(12)?.as_str_or_null()?.and_then(|text| text.parse().ok()),
        restarts: row.get(13)?,
    })
}

/// The list query for which keys are given.
pub(crate) fn list_sql(filter: &RunFilter) -> String {
    let (index, condition) = match (filter.state, filter.definition) {
        (Some(state), _) if state != RunState::Succeeded => {
            ("mediation_runs_by_state", " AND r.state <> 'succeeded'")
        }
        (_, Some(_)) => ("mediation_runs_by_definition", ""),
        (_, None) => ("mediation_runs_by_tenant", ""),
    };
    let mut sql = format!(
        "SELECT {SUMMARY} FROM mediation_runs r INDEXED BY {index} {JOIN} WHERE r.tenant = :tenant{condition}"
    );
    // All parameters appear, so that one binding serves every form.
    for (key, given) in [("definition", filter.definition.is_some()), ("state", filter.state.is_some())] {
        sql.push_str(&if given { format!(" AND r.{key} = :{key}") } else { format!(" AND :{key} IS NULL") });
    }
    sql.push_str(
        " AND r.created_at >= :since AND r.created_at < :until AND (r.created_at, r.seq) < (:at, :seq) \
         ORDER BY r.created_at DESC, r.seq DESC LIMIT :limit",
    );
    sql
}

fn messages(conn: &Connection, run: i64, after: i64) -> Result<Vec<Message>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, at, kind, text FROM mediation_messages WHERE run = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let rows = statement.query_map(params![run, after, MAX_MESSAGES_SHOWN], |row| {
        Ok(Message {
            seq: row.get(0)?,
            at: time(row, 1)?,
            kind: if row.get_ref(2)?.as_str()? == "error" {
                MessageKind::Error
            } else {
                MessageKind::Information
            },
            text: row.get(3)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn unit_jobs(conn: &Connection, run: i64, unit: &Name) -> Result<Vec<UnitJob>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT job FROM mediation_jobs WHERE run = ?1 AND unit = ?2 ORDER BY job LIMIT ?3",
    )?;
    let rows = statement.query_map(params![run, unit.as_str(), MAX_JOBS_SHOWN], |row| from_uuid(row, 0))?;
    let ids: Vec<JobId> = rows.collect::<Result<_, _>>()?;
    let view = |id: JobId| match row::job_of_any_tenant(conn, id) {
        Ok(job) => Ok(UnitJob { id, state: Some(job.state), error: job.error }),
        Err(Error::NotFound(_)) => Ok(UnitJob { id, state: None, error: None }),
        Err(error) => Err(error),
    };
    ids.into_iter().map(view).collect()
}

impl Store {
    /// Runs, newest first. A page starts where the one before ended, whatever began since.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a cursor that no page gave.
    pub async fn list_runs(&self, filter: RunFilter) -> Result<Page<RunSummary>, Error> {
        let cursor = filter.cursor.as_deref().map(cursor::read_cursor).transpose()?;
        self.read(move |conn| {
            let limit = filter.limit.clamp(1, MAX_PAGE);
            let mut statement = conn.prepare_cached(&list_sql(&filter))?;
            let rows = statement.query_map(
                named_params! {
                    ":tenant": filter.tenant.as_str(),
                    ":definition": filter.definition.map(|guid| *guid.uuid().as_bytes()),
                    ":state": filter.state.map(RunState::as_str),
                    ":since": filter.since.map_or(i64::MIN, ms),
                    ":until": filter.until.map_or(i64::MAX, ms),
                    ":at": cursor.map_or(i64::MAX, |(at, _)| at),
                    ":seq": cursor.map_or(i64::MAX, |(_, seq)| seq),
                    ":limit": i64::try_from(limit + 1).unwrap_or(i64::MAX),
                },
                summary,
            )?;
            let mut items: Vec<RunSummary> = rows.collect::<Result<_, _>>()?;
            let more = items.len() > limit;
            items.truncate(limit);
            let next_cursor =
                items.last().filter(|_| more).map(|last| cursor::write_cursor(ms(last.created_at), last.seq));
            Ok(Page { items, next_cursor })
        })
        .await
    }

    /// One run with all that belongs to it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn run_view(&self, tenant: Name, run: RunId) -> Result<RunView, Error> {
        self.read(move |conn| {
            let (seq, guid, version, state, position) = head(conn, &tenant, run)?;
            let sql = format!(
                "SELECT {SUMMARY}, r.occurrence, r.occurred_at, r.data, r.watermarks FROM mediation_runs r {JOIN} \
                 WHERE r.seq = ?1"
            );
            let (summary, occurrence, watermarks) = conn.prepare_cached(&sql)?.query_row([seq], |row| {
                let occurrence = OccurrenceView {
                    kind: row.get(9)?,
                    key: row.get(14)?,
                    at: time(row, 15)?,
                    data: row::opt_json(row, 16)?.unwrap_or_default(),
                };
                Ok((summary(row)?, occurrence, row::opt_json(row, 17)?.unwrap_or_default()))
            })?;
            let definition = definitions::version(conn, &tenant, guid, version)?;
            let mut steps = Vec::with_capacity(definition.units());
            for unit in 0..definition.units() {
                let Some(name) = definition.unit_name(unit) else { continue };
                let kind = definition.steps.get(unit).map_or("transfer", |entry| entry.step.kind());
                let stands = match () {
                    () if unit < position => "finished",
                    () if unit > position || state == RunState::Queued || state == RunState::Skipped => "pending",
                    () if state == RunState::Running => "running",
                    () => "failed",
                };
                let jobs = unit_jobs(conn, seq, name)?;
                steps.push(UnitView {
                    name: name.clone(),
                    kind: kind.to_owned(),
                    state: stands.to_owned(),
                    jobs,
                });
            }
            let flows = flows::of_run(conn, seq, MAX_FLOWS_SHOWN)?;
            Ok(RunView { summary, occurrence, steps, flows, messages: messages(conn, seq, 0)?, watermarks })
        })
        .await
    }

    /// One run as lists show it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn run_summary(&self, tenant: Name, run: RunId) -> Result<RunSummary, Error> {
        self.read(move |conn| {
            let (seq, ..) = head(conn, &tenant, run)?;
            let sql = format!("SELECT {SUMMARY} FROM mediation_runs r {JOIN} WHERE r.seq = ?1");
            Ok(conn.prepare_cached(&sql)?.query_row([seq], summary)?)
        })
        .await
    }

    /// The messages of a run after the one numbered `after`, oldest first; at most 1000.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn run_messages(&self, tenant: Name, run: RunId, after: i64) -> Result<Vec<Message>, Error> {
        self.read(move |conn| {
            let (seq, ..) = head(conn, &tenant, run)?;
            messages(conn, seq, after)
        })
        .await
    }

    /// The newest run of a definition.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn last_run(
        &self,
        tenant: Name,
        definition: DefinitionId,
    ) -> Result<Option<RunSummary>, Error> {
        self.read(move |conn| {
            let sql = format!(
                "SELECT {SUMMARY} FROM mediation_runs r INDEXED BY mediation_runs_by_definition {JOIN} \
                 WHERE r.tenant = ?1 AND r.definition = ?2 ORDER BY r.created_at DESC, r.seq DESC LIMIT 1"
            );
            let key = *definition.uuid().as_bytes();
            Ok(conn.prepare_cached(&sql)?.query_row(params![tenant.as_str(), key], summary).optional()?)
        })
        .await
    }
}
