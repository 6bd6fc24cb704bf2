//! What is remembered of files that stay where they are, until they are gone.

use super::{DEAD, Key};
use crate::journal::{Journal, JournalError, json, parse};
use passerelle_connectors::Seen;
use passerelle_protocol::{Name, Sha256};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::collections::HashSet;

/// How many remembered files are looked at in one write.
const AT_ONCE: u32 = 2000;

impl Journal {
    /// Remembers a file without an event: its content is the one that was sent last.
    ///
    /// # Errors
    /// If it could not be written.
    pub async fn remember(
        &self,
        key: Key,
        kind: Name,
        seen: &Seen,
        sha256: Sha256,
    ) -> Result<(), JournalError> {
        let (text, path) = (json(seen)?, seen.path.clone());
        self.writer.write(move |c| remember_file(c, &key, kind.as_str(), &path, &text, sha256.bytes())).await
    }

    /// What is remembered of a path.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn remembered(
        &self,
        resource: Name,
        kind: Name,
        path: String,
    ) -> Result<Option<(Seen, Sha256)>, JournalError> {
        let found: Option<(String, [u8; 32])> = self
            .writer
            .read(move |c| {
                c.prepare_cached(
                    "SELECT seen, sha256 FROM remembered WHERE resource = ?1 AND kind = ?2 AND path = ?3",
                )?
                .query_row(params![resource.as_str(), kind.as_str(), path], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()
            })
            .await?;
        found.map(|(seen, sha256)| Ok((parse(&seen)?, Sha256::from(sha256)))).transpose()
    }

    /// Leaves out the files that were taken before, exactly as they are.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn unknown(
        &self,
        resource: Name,
        kind: Name,
        files: Vec<Seen>,
    ) -> Result<Vec<Seen>, JournalError> {
        let texts = files.iter().map(json).collect::<Result<Vec<_>, _>>()?;
        self.writer
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM events WHERE resource = ?1 AND path = ?3 AND kind = ?2 AND seen = ?4)
                       OR EXISTS (SELECT 1 FROM remembered WHERE resource = ?1 AND kind = ?2 AND path = ?3 AND seen = ?4)",
                )?;
                let mut unknown = Vec::new();
                for (file, text) in files.into_iter().zip(texts) {
                    let row = params![resource.as_str(), kind.as_str(), file.path, text];
                    if !statement.query_row(row, |row| row.get::<_, bool>(0))? {
                        unknown.push(file);
                    }
                }
                Ok(unknown)
            })
            .await
    }

    /// Forgets what is remembered or was refused of files that are not there any more; `there` tells paths. Says how many
    /// are left.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub async fn forget_gone(
        &self,
        key: Key,
        kind: Name,
        there: HashSet<u64>,
        hash: fn(&str) -> u64,
    ) -> Result<u64, JournalError> {
        let there = std::sync::Arc::new(there);
        let (mut after, mut left) = (Some(String::new()), 0);
        while let Some(from) = after.take() {
            let (key, kind, there) = (key.clone(), kind.clone(), std::sync::Arc::clone(&there));
            let (next, kept) = self
                .writer
                .write(move |c| {
                    let rows: Vec<String> = c
                        .prepare_cached(
                            "SELECT path FROM remembered WHERE resource = ?1 AND kind = ?2 AND path > ?3 AND trigger = ?4
                             ORDER BY path LIMIT ?5",
                        )?
                        .query_map(
                            params![key.resource.as_str(), kind.as_str(), from, key.trigger.as_str(), AT_ONCE],
                            |row| row.get(0),
                        )?
                        .collect::<Result<_, _>>()?;
                    let mut kept = 0;
                    for path in &rows {
                        if there.contains(&hash(path)) {
                            kept += 1;
                            continue;
                        }
                        c.prepare_cached("DELETE FROM remembered WHERE resource = ?1 AND kind = ?2 AND path = ?3")?
                            .execute(params![key.resource.as_str(), kind.as_str(), path])?;
                    }
                    let full = rows.len() == AT_ONCE as usize;
                    Ok((rows.into_iter().next_back().filter(|_| full), kept))
                })
                .await?;
            left += kept;
            after = next;
        }
        let dead = move |c: &Connection| {
            let rows: Vec<(i64, String)> = c
                .prepare_cached(
                    "SELECT seq, path FROM events WHERE state = ?1 AND resource = ?2 AND trigger = ?3 AND kind = ?4",
                )?
                .query_map(params![DEAD, key.resource.as_str(), key.trigger.as_str(), kind.as_str()], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?
                .collect::<Result<_, _>>()?;
            for (seq, _) in rows.iter().filter(|(_, path)| !there.contains(&hash(path))) {
                c.prepare_cached("DELETE FROM events WHERE seq = ?1")?.execute([seq])?;
            }
            Ok(())
        };
        self.writer.write(dead).await?;
        Ok(left)
    }
}

/// In the place of what was remembered under its path.
pub(super) fn remember_file(
    c: &Connection,
    key: &Key,
    kind: &str,
    path: &str,
    seen: &str,
    sha256: &[u8; 32],
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "INSERT OR REPLACE INTO remembered (resource, kind, path, trigger, seen, sha256)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![key.resource.as_str(), kind, path, key.trigger.as_str(), seen, sha256])
    .map(drop)
}
