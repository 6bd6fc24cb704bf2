//! How much of the disk the journal takes, and how it gives some back before its time.

use super::{Journal, JournalError};
use rusqlite::params;
use std::{fs, sync::atomic::Ordering};

/// How many tombstones are forgotten at once.
const AT_ONCE: u32 = 5_000;
/// What a row takes beside its texts, indexes included; generous.
const ROW: u64 = 512;

impl Journal {
    /// Bytes in use, as of the last [`Self::measure`] and what was accepted since.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Calls that wait for the journal's thread.
    pub fn queue(&self) -> usize {
        self.writer.queue_len()
    }

    /// Counts what is about to be written, until it is measured.
    pub(super) fn grow(&self, text: usize) {
        self.bytes.fetch_add(ROW + text as u64, Ordering::Relaxed);
    }

    /// Measures the bytes in use: pages that hold something, and the WAL.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn measure(&self) -> Result<(), JournalError> {
        let pages = self.writer.read(|c| {
            let number = |sql: &str| c.prepare_cached(sql)?.query_row([], |row| row.get::<_, i64>(0));
            let used = number("PRAGMA page_count")?.saturating_sub(number("PRAGMA freelist_count")?);
            Ok(u64::try_from(used.saturating_mul(number("PRAGMA page_size")?)).unwrap_or(0))
        });
        let pages = pages.await?;
        let wal = fs::metadata(&*self.wal).map_or(0, |meta| meta.len());
        self.bytes.store(pages.saturating_add(wal), Ordering::Relaxed);
        Ok(())
    }

    /// Forgets the oldest tombstones that only serve to tell an outcome again: their envelopes have expired, so they
    /// cannot be replayed; they hold no intent and no leftover. Says how many.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub async fn relieve(&self, now: i64) -> Result<usize, JournalError> {
        let forget = self.writer.write(move |c| {
            let forgotten = c
                .prepare_cached(
                    "DELETE FROM attempts WHERE rowid IN (SELECT rowid FROM attempts WHERE state = 4 AND expires < ?1
                       AND part IS NULL AND intent IS NULL ORDER BY acked_at LIMIT ?2)",
                )?
                .execute(params![now, AT_ONCE])?;
            c.execute_batch("PRAGMA incremental_vacuum(2048)")?;
            Ok(forgotten)
        });
        let forgotten = forget.await?;
        if forgotten > 0 {
            self.measure().await?;
        }
        Ok(forgotten)
    }
}
