//! What admin commands print: a table or a line for people, JSON for scripts.

use super::restore::Restored;
use crate::{
    cli::Failure,
    model::{AgentKeyRecord, AgentRecord, CloneRecord},
};
use jiff::Timestamp;
use passerelle_protocol::{AgentId, Name};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{self, Write as _};

/// Prints to standard output.
pub struct Printer {
    /// JSON instead of text.
    pub json: bool,
}

impl Printer {
    /// One thing was done.
    ///
    /// # Errors
    /// If nobody reads.
    pub fn done(&self, text: &str, json: &Value) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        if self.json { writeln!(out, "{json}") } else { writeln!(out, "{text}") }.map_err(Failure::from)
    }

    /// A secret, shown this once: alone on standard output, so that a script can take it.
    ///
    /// # Errors
    /// If nobody reads.
    pub fn secret(&self, kind: &str, id: &str, secret: &str) -> Result<(), Failure> {
        if !self.json {
            writeln!(io::stderr().lock(), "{kind} {id}, shown this once:")?;
        }
        self.done(secret, &json!({"id": id, kind: secret}))
    }

    /// An id and its secret, both of which the user has to write down; shown this once.
    ///
    /// # Errors
    /// If nobody reads.
    pub fn pair(&self, id: &str, secret: &str) -> Result<(), Failure> {
        if !self.json {
            writeln!(io::stderr().lock(), "id and secret, shown this once:")?;
        }
        self.done(&format!("{id}\n{secret}"), &json!({"id": id, "secret": secret}))
    }

    /// A backup was restored.
    ///
    /// # Errors
    /// If nobody reads.
    pub fn restored(&self, done: &Restored) -> Result<(), Failure> {
        let mut text = format!("restored the backup of {} ({} jobs)", done.made_at, done.jobs);
        for kept in &done.kept {
            text.push_str(&format!("\nkept {kept}"));
        }
        if done.kept_keys > 0 {
            text.push_str(&format!(
                "\n{} signing keys are newer than the backup and were taken over from the folder",
                done.kept_keys
            ));
        }
        if done.doubtful_jobs > 0 {
            text.push_str(&format!(
                "\n{} open jobs of sites with several agents become `unknown` when the hub starts: they may have taken effect \
                 since the backup",
                done.doubtful_jobs
            ));
        }
        if done.missing_files > 0 {
            text.push_str(&format!(
                "\n{} files of payloads or outputs are not in blobs/: copy them there from their backup before the hub \
                 serves",
                done.missing_files
            ));
        }
        self.done(&text, &serde_json::to_value(done).unwrap_or_default())
    }

    /// A list.
    ///
    /// # Errors
    /// If nobody reads.
    pub fn list<T: Serialize>(
        &self,
        head: &[&str],
        items: &[T],
        cells: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), Failure> {
        if self.json {
            return self.done("", &json!({"items": items}));
        }
        let head = head.iter().map(|&title| title.to_owned()).collect();
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(items.iter().map(cells)).collect();
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let mut out = io::stdout().lock();
        for row in &rows {
            let pad = |(column, cell): (usize, &String)| {
                let width = width(column);
                format!("{cell:<width$}")
            };
            let padded: Vec<String> = row.iter().enumerate().map(pad).collect();
            writeln!(out, "{}", padded.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A time that may be missing.
pub fn optional(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| time.to_string())
}

/// An agent, as it is listed.
#[derive(Debug, Serialize)]
pub struct AgentRow {
    id: AgentId,
    tenant: Name,
    site: Name,
    name: Name,
    application: String,
    version: String,
    enrolled_at: Timestamp,
    connected_at: Option<Timestamp>,
    last_seen_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    replaced_by: Option<AgentId>,
    keys: Vec<AgentKeyRecord>,
    clones: Option<CloneRecord>,
}

impl From<AgentRecord> for AgentRow {
    fn from(agent: AgentRecord) -> Self {
        Self {
            id: agent.id,
            tenant: agent.tenant,
            site: agent.site,
            name: agent.name,
            application: agent.application,
            version: agent.version,
            enrolled_at: agent.enrolled_at,
            connected_at: agent.connected_at,
            last_seen_at: agent.last_seen_at,
            revoked_at: agent.revoked_at,
            replaced_by: agent.replaced_by,
            keys: agent.keys,
            clones: agent.clones,
        }
    }
}

impl AgentRow {
    /// Its cells in the table.
    pub fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.tenant.to_string(),
            self.site.to_string(),
            self.name.to_string(),
            self.application.clone(),
            self.version.clone(),
            optional(self.last_seen_at),
            optional(self.revoked_at),
        ]
    }
}
