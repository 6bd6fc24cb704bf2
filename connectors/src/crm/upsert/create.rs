//! The record of a key that nothing was found for: it is created, then looked for again.
//!
//! A race with another agent or a person shows there; which of several records stays is said in the [module](super). What
//! came without its key is taken back, since every repetition would make another one.

use super::{Engine, Finished, WITHDRAWAL, WITHDRAWALS, after_write, written};
use crate::{
    Failure,
    crm::{
        dialect::{Done, Written},
        error::{Clash, CrmError, FieldError, Problem},
        key::{conflict, shows},
        vocabulary::{Given, Record},
    },
};
use std::cmp::Ordering;

impl Engine<'_> {
    /// Creates the record. `None`: look again.
    pub(super) async fn create(&self, duplicate: &mut Option<CrmError>) -> Result<Option<Finished>, Failure> {
        let all = self.all();
        let created = match self.crm.dialect.create(&self.talk, self.entity(), &all).await {
            Ok(created) => created,
            // Somebody else was quicker.
            Err(error) if matches!(error.problem, Problem::Conflict { clash: Clash::Duplicate, .. }) => {
                *duplicate = Some(error);
                return Ok(None);
            }
            Err(error) if error.is_ambiguous() => {
                // A look that fails leaves the doubt.
                let found = self.find().await.map_err(after_write)?;
                return match found.as_slice() {
                    [one] if self.differing(one).is_empty() => {
                        Ok(Some(Finished::new(written(one), Done::Created)))
                    }
                    [_, _, ..] => Err(conflict(&found).effect_unknown()),
                    _ => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        };
        if self.crm.dialect.abilities().unique_keys {
            if self.trusted {
                return Ok(Some(Finished::new(created, Done::Created)));
            }
            let record = self
                .crm
                .dialect
                .get(&self.talk, self.entity(), &created.id, &self.wanted())
                .await
                .map_err(after_write)?;
            // A key that stands in the id shows by its search alone.
            if !shows(&record, self.key()) {
                match self.find().await {
                    Ok(found) if found.iter().any(|found| found.id == created.id) => {}
                    Ok(_) => return Err(self.without_key(&created, &record).await),
                    Err(error) if error.problem == Problem::Protocol => {
                        return Err(self.without_key(&created, &record).await);
                    }
                    Err(error) => return Err(after_write(error)),
                }
            }
            self.look_for_lost(None, &record)?;
            return Ok(Some(Finished::new(written(&record), Done::Created)));
        }
        self.after_creating(created).await
    }

    /// Looks again for the key after creating: is ours the only one?
    async fn after_creating(&self, created: Written) -> Result<Option<Finished>, Failure> {
        // Ours as it was read back first: a target may write values in its own way.
        let mut first = None;
        for _ in 0..=WITHDRAWALS {
            let found = match self.find().await {
                Ok(found) => found,
                // Records without the key: is it ours that has lost it?
                Err(error) if error.problem == Problem::Protocol => {
                    return self.not_found_again(&created, Some(error)).await;
                }
                Err(error) => return Err(after_write(error)),
            };
            if first.is_none() {
                first = found.iter().find(|record| record.id == created.id).cloned();
            }
            match found.as_slice() {
                [one] if one.id == created.id => {
                    self.look_for_lost(None, one)?;
                    return Ok(Some(Finished::new(written(one), Done::Created)));
                }
                // Ours went (the other side of a race took it for the later one): begin again with what is there.
                [_] => return Ok(None),
                [] => return self.not_found_again(&created, None).await,
                several => {
                    let lowest = several.iter().map(|record| record.id.as_str()).min_by(|a, b| by_id(a, b));
                    if lowest != Some(created.id.as_str()) {
                        self.take_back(&created, first.as_ref(), several).await?;
                        return Ok(None);
                    }
                    // Ours stays; the other one's owner sees the same and withdraws it.
                    tokio::time::sleep(WITHDRAWAL).await;
                }
            }
        }
        // Nobody withdrew: the other record is no agent's. It was there first in all but its number.
        let found = self.find().await.map_err(after_write)?;
        if found.len() > 1 && found.iter().any(|record| record.id == created.id) {
            self.take_back(&created, first.as_ref(), &found).await?;
        }
        Ok(None)
    }

    /// The record was created and its key does not find it, or the search failed: the target dropped the key, or shows
    /// new records late.
    async fn not_found_again(
        &self,
        created: &Written,
        search: Option<CrmError>,
    ) -> Result<Option<Finished>, Failure> {
        let dialect = &self.crm.dialect;
        let record = match dialect.get(&self.talk, self.entity(), &created.id, &self.wanted()).await {
            Ok(record) => record,
            Err(error) if error.problem == Problem::NotFound => return Ok(None),
            Err(error) => return Err(after_write(error)),
        };
        let Given { field, value } = self.key();
        if record.fields.get(&field.name).is_some_and(|kept| field.kind.same(kept, value)) {
            if let Some(error) = search {
                return Err(after_write(error));
            }
            self.look_for_lost(None, &record)?;
            return Ok(Some(Finished::new(written(&record), Done::Created)));
        }
        Err(self.without_key(created, &record).await)
    }

    /// Takes back the record that we have just made, which came without its key: every repetition would make another one.
    async fn without_key(&self, created: &Written, record: &Record) -> Failure {
        if let Err(failure) = self.take_back(created, Some(record), &[]).await {
            return failure;
        }
        let name = self.key().field.name.clone();
        CrmError::invalid(vec![FieldError::new(name, "the target dropped it: is it misspelt in the mapping")])
            .into()
    }

    /// Deletes the record that we have just made, unless somebody has written into it since it was read first.
    async fn take_back(
        &self,
        created: &Written,
        first: Option<&Record>,
        several: &[Record],
    ) -> Result<(), Failure> {
        let ours = several.iter().find(|record| record.id == created.id);
        let changed =
            |now: &Record, first: &Record| now.fields != first.fields || now.version != first.version;
        if ours.zip(first).is_some_and(|(now, first)| changed(now, first)) {
            return Err(conflict(several).effect_unknown());
        }
        match self.crm.dialect.delete(&self.talk, self.entity(), &created.id, None).await {
            Ok(()) => Ok(()),
            Err(error) if error.problem == Problem::NotFound => Ok(()),
            Err(error) => {
                let ids = several.iter().map(|record| record.id.clone()).collect();
                let failure = Failure::from(CrmError::conflict(Clash::Duplicate, ids));
                Err(failure.effect_unknown().detail(format!("the later one could not be deleted: {error:?}")))
            }
        }
    }
}

/// Numbers by their value, everything else by its bytes.
fn by_id(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        _ => a.cmp(b),
    }
}
