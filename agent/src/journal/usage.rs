//! How much of the disk the journal takes, and how it gives some back before its time.

use super::{Journal, JournalError};
use rusqlite::{Connection, params};
use std::{fs, sync::atomic::Ordering};

/// How many tombstones are forgotten at once.
const AT_ONCE: u32 = 5_000;
/// What a row takes beside its texts, indexes included; generous.
const ROW: u64 = 512;
/// How many free pages are given back to a disk that is almost full, at once: moving others out of their way must fit into
/// what is left of it.
const GIVEN_BACK: u32 = 512;

impl Journal {
    /// Bytes in use, as of the last [`Self::measure`] and what was accepted since.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the file in which nothing is, as of the last [`Self::measure`].
    pub fn spare(&self) -> u64 {
        self.spare.load(Ordering::Relaxed)
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
            let (free, size) = (number("PRAGMA freelist_count")?, number("PRAGMA page_size")?);
            let used = number("PRAGMA page_count")?.saturating_sub(free);
            let bytes = |pages: i64| u64::try_from(pages.saturating_mul(size)).unwrap_or(0);
            Ok((bytes(used), bytes(free)))
        });
        let (pages, spare) = pages.await?;
        self.spare.store(spare, Ordering::Relaxed);
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
            vacuum(c, 2048)?;
            Ok(forgotten)
        });
        let forgotten = forget.await?;
        if forgotten > 0 {
            self.measure().await?;
        }
        Ok(forgotten)
    }

    /// Gives some free pages, and the WAL, back to the disk now.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub async fn give_back(&self) -> Result<(), JournalError> {
        // A read, since the WAL cannot be emptied inside a transaction.
        let give_back = self.writer.read(|c| {
            vacuum(c, GIVEN_BACK)?;
            c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        });
        give_back.await
    }
}

/// Gives so many free pages back. Each step of the statement is one page.
pub(super) fn vacuum(c: &Connection, pages: u32) -> rusqlite::Result<()> {
    let mut statement = c.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut steps = statement.query([])?;
    while steps.next()?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn free_pages_and_the_wal_are_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap().journal;
        let fill = "CREATE TABLE filler (bytes BLOB);
            INSERT INTO filler WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)
              SELECT zeroblob(100000) FROM n;
            DELETE FROM filler";
        journal.writer.write(|c| c.execute_batch(fill)).await.unwrap();
        journal.measure().await.unwrap();
        let (before, file) = (journal.spare(), dir.path().join(super::super::FILE));
        let size = fs::metadata(&file).unwrap().len();
        journal.give_back().await.unwrap();
        journal.measure().await.unwrap();
        let given = u64::from(GIVEN_BACK) * 4096;
        assert!(before > given && journal.spare() <= before - given, "{before} {}", journal.spare());
        assert!(fs::metadata(&file).unwrap().len() <= size - given);
        assert_eq!(fs::metadata(&*journal.wal).unwrap().len(), 0);
    }
}
