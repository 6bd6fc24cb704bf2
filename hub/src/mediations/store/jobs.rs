//! The jobs of units: noted under a key in the transaction that submits them, so that no crash makes a second one.

use crate::{
    model::{Job, JobState, NewJob},
    store::{
        Error, Store, Submitted,
        attempts::JobRow,
        jobs, lines,
        row::{self, from_uuid, to_json},
        submission,
        writer::Tx,
    },
};
use passerelle_protocol::{Effect, JobId, Name};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::Value;

/// What tells a unit's job from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitKey {
    /// The run's row.
    pub run: i64,
    /// The unit.
    pub unit: Name,
    /// Its own key for the job.
    pub key: String,
}

/// A job that was submitted under a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Noted {
    /// The job as it stands.
    pub job: Job,
    /// An operator decided that it does not matter whether it took effect.
    pub passed: bool,
}

fn noted(conn: &Connection, unit: &UnitKey) -> Result<Option<Noted>, Error> {
    let found: Option<(JobId, bool)> = conn
        .prepare_cached("SELECT job, passed FROM mediation_jobs WHERE run = ?1 AND unit = ?2 AND key = ?3")?
        .query_row(params![unit.run, unit.unit.as_str(), unit.key], |row| {
            Ok((from_uuid(row, 0)?, row.get(1)?))
        })
        .optional()?;
    let Some((id, passed)) = found else { return Ok(None) };
    Ok(Some(Noted { job: row::job_of_any_tenant(conn, id)?, passed }))
}

/// Whether a run is one that works: neither an operator nor a newer run has taken it back meanwhile.
fn is_open(conn: &Connection, run: i64) -> Result<bool, Error> {
    Ok(conn
        .prepare_cached("SELECT 1 FROM mediation_runs WHERE seq = ?1 AND finished_at IS NULL")?
        .exists([run])?)
}

impl Store {
    pub(crate) async fn unit_job(&self, unit: UnitKey) -> Result<Option<Noted>, Error> {
        self.read(move |conn| noted(conn, &unit)).await
    }

    /// Submits a unit's job, or finds the one of the same key.
    pub(crate) async fn submit_for_unit(&self, unit: UnitKey, job: NewJob) -> Result<Submitted, Error> {
        self.write(move |tx| {
            if let Some(Noted { job, .. }) = noted(tx.conn, &unit)? {
                return Ok(Submitted { job, created: false });
            }
            if !is_open(tx.conn, unit.run)? {
                return Err(Error::Conflict("the mediation run has come to its end".to_owned()));
            }
            let submitted = submission::submit(tx, job)?;
            tx.conn
                .prepare_cached("INSERT INTO mediation_jobs (run, unit, key, job) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![
                    unit.run,
                    unit.unit.as_str(),
                    unit.key,
                    submitted.job.id.uuid().as_bytes()
                ])?;
            Ok(submitted)
        })
        .await
    }

    pub(crate) async fn unit_note(&self, run: i64, unit: Name, key: String) -> Result<Option<Value>, Error> {
        self.read(move |conn| {
            let sql = "SELECT value FROM mediation_notes WHERE run = ?1 AND unit = ?2 AND key = ?3";
            let found = conn
                .prepare_cached(sql)?
                .query_row(params![run, unit.as_str(), key], |row| row::opt_json(row, 0))
                .optional()?;
            Ok(found.flatten())
        })
        .await
    }

    pub(crate) async fn note_unit(
        &self,
        run: i64,
        unit: Name,
        key: String,
        value: Value,
    ) -> Result<(), Error> {
        self.write(move |tx| {
            tx.conn
                .prepare_cached(
                    "INSERT INTO mediation_notes (run, unit, key, value) VALUES (?1, ?2, ?3, ?4) \
                     ON CONFLICT (run, unit, key) DO UPDATE SET value = excluded.value",
                )?
                .execute(params![run, unit.as_str(), key, to_json(&value)?])?;
            Ok(())
        })
        .await
    }
}

/// A noted job, its row if it is still there.
struct OfUnit {
    key: String,
    id: JobId,
    passed: bool,
    row: Option<JobRow>,
}

fn of_unit(conn: &Connection, run: i64, unit: Option<&str>) -> Result<Vec<(String, OfUnit)>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT unit, key, job, passed FROM mediation_jobs WHERE run = ?1 AND (?2 IS NULL OR unit = ?2)",
    )?;
    let rows = statement.query_map(params![run, unit], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, from_uuid(row, 2)?, row.get::<_, bool>(3)?))
    })?;
    let found: Vec<_> = rows.collect::<Result<_, _>>()?;
    let with_row =
        |(unit, key, id, passed)| Ok((unit, OfUnit { key, id, passed, row: JobRow::by_id(conn, id)? }));
    found.into_iter().map(with_row).collect()
}

/// Makes the failed jobs of a unit ready for another time: those that did nothing are tried again as the same job (so that
/// the target still knows their key), denied ones are forgotten and submitted anew, and nothing is done about one whose
/// effect nobody knows.
pub(super) fn again(
    tx: &mut Tx<'_>,
    tenant: &Name,
    run: i64,
    unit: &str,
    was_unknown: bool,
) -> Result<(), Error> {
    let found = of_unit(tx.conn, run, Some(unit))?;
    for (_, job) in &found {
        let gone = job.row.is_none() && was_unknown;
        if gone || job.row.as_ref().is_some_and(|row| row.facts.state == JobState::Unknown) {
            return Err(Error::Conflict(format!(
                "{unit}: nobody can tell whether job {} took effect: find out, say so with POST \
                 /v1/jobs/{}/resolve, and then restart the run; or ignore the run",
                job.id, job.id
            )));
        }
    }
    for (unit, job) in found {
        if job.passed {
            continue;
        }
        let Some(row) = &job.row else {
            forget(tx, run, &unit, &job.key)?;
            continue;
        };
        match row.facts.state {
            JobState::Cancelled if row.facts.last_effect == Some(Effect::Unknown) => {
                tx.conn
                    .prepare_cached(
                        "UPDATE mediation_jobs SET passed = 1 WHERE run = ?1 AND unit = ?2 AND key = ?3",
                    )?
                    .execute(params![run, unit, job.key])?;
            }
            JobState::Failed | JobState::Cancelled | JobState::Expired => {
                jobs::retry_in(tx, tenant, job.id, None)?;
            }
            JobState::Denied => {
                leave_line(tx, row)?;
                forget(tx, run, &unit, &job.key)?;
            }
            JobState::Queued
            | JobState::Offered
            | JobState::Running
            | JobState::Waiting
            | JobState::Succeeded
            | JobState::Unknown => {}
        }
    }
    Ok(())
}

fn forget(tx: &Tx<'_>, run: i64, unit: &str, key: &str) -> Result<(), Error> {
    tx.conn
        .prepare_cached("DELETE FROM mediation_jobs WHERE run = ?1 AND unit = ?2 AND key = ?3")?
        .execute(params![run, unit, key])?;
    Ok(())
}

fn leave_line(tx: &mut Tx<'_>, job: &JobRow) -> Result<(), Error> {
    match job.line.as_ref().filter(|line| line.blocks) {
        Some(line) => lines::leave(tx, job, &line.key),
        None => Ok(()),
    }
}

/// A run is closed for good: its failed jobs hold no line any more. Those whose effect is unknown do, until somebody says.
pub(super) fn let_go(tx: &mut Tx<'_>, run: i64) -> Result<(), Error> {
    for (_, job) in of_unit(tx.conn, run, None)? {
        if let Some(row) = &job.row
            && matches!(
                row.facts.state,
                JobState::Failed | JobState::Denied | JobState::Expired | JobState::Cancelled
            )
        {
            leave_line(tx, row)?;
        }
    }
    Ok(())
}

/// Whether a unit has a job that took effect, or may have.
pub(super) fn has_effect(conn: &Connection, run: i64, unit: &str) -> Result<Option<JobId>, Error> {
    let found = of_unit(conn, run, Some(unit))?;
    let had = |job: &OfUnit| {
        job.row.as_ref().is_none_or(|row| {
            !row.facts.state.is_settled()
                || matches!(row.facts.state, JobState::Succeeded | JobState::Unknown)
        })
    };
    Ok(found.into_iter().find(|(_, job)| had(job)).map(|(_, job)| job.id))
}
