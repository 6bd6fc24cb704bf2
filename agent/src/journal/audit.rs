//! The journal's side of the audit: rows written with the journal's transactions, and read back for the files.

use super::{Journal, JournalError};
use crate::audit::{
    Entry,
    chain::{self, Cost},
};
use std::{sync::Arc, time::Instant};

impl Journal {
    /// Writes a row of the audit; it is on disk when this returns.
    ///
    /// # Errors
    /// If it could not be written.
    pub async fn audit(&self, entry: Entry) -> Result<(), JournalError> {
        let cost = self.writer.cost();
        self.writer.write(move |c| chain::append(c, &entry, &cost)).await
    }

    /// Has a row of the audit written with the next transaction, or within a second.
    pub fn note(&self, entry: Entry) {
        self.writer.audit().note(entry);
    }

    /// The same for a call, of which there may be thousands a second: many together get a transaction of their own.
    pub fn note_call(&self, entry: Entry) {
        if self.writer.audit().note_and_count(entry) {
            self.writer.commit_soon();
        }
    }

    /// Whether the rows of the audit come faster than they can be written.
    pub fn audit_is_behind(&self) -> bool {
        self.writer.audit().is_almost_full()
    }

    /// The same for what others can cause in any number: the like of it is counted instead of repeated.
    pub fn refused(&self, entry: Entry) {
        self.writer.audit().refused(entry, Instant::now());
    }

    /// The rows of the audit after `seq`, oldest first.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn audit_after(&self, seq: u64, limit: usize) -> Result<Vec<(u64, String)>, JournalError> {
        self.writer.read(move |c| chain::after(c, seq, limit)).await
    }

    /// Forgets rows of the audit that are safe in a file. Lazy.
    pub fn audit_filed(&self, through: u64) {
        self.writer.lazy(move |c| chain::forget(c, through));
    }

    /// What the audit has cost so far.
    pub fn audit_cost(&self) -> Arc<Cost> {
        self.writer.cost()
    }
}
