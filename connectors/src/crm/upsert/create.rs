//! The record of a key that nothing was found for: it is created, then looked for again.
//!
//! A race with another agent or a person shows there; which of several records stays is said in the [module](super). What
//! came without its key is taken back, since every repetition would make another one. But targets also answer a creation
//! with a record that was there before (found by its e-mail, say): only what is surely new is ever taken back ([`own`](super::own)).

use super::{Engine, Finished, WITHDRAWAL, WITHDRAWALS, after_write, written};
use crate::{
    Failure,
    crm::{
        dialect::{Done, Written},
        error::{Clash, CrmError, FieldError, Problem},
        exchange::request::leads_astray,
        key::{conflict, shows},
        vocabulary::Record,
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
        if leads_astray(&created.id) {
            return Err(CrmError::new(Problem::Ambiguous).reason("the record that it made has no id").into());
        }
        if self.crm.dialect.abilities().unique_keys {
            if self.trusted {
                return Ok(Some(Finished::new(created, Done::Created)));
            }
            match self.crm.dialect.get(&self.talk, self.entity(), &created.id, &self.wanted()).await {
                Ok(record) if shows(&record, self.key()) => {
                    self.look_for_lost(None, &record)?;
                    return Ok(Some(Finished::new(written(&record), Done::Created)));
                }
                // A key that stands in the id shows by its search alone, as does what an answer named wrongly.
                Ok(_) => {}
                Err(error) if error.problem == Problem::NotFound => {}
                Err(error) => return Err(after_write(error)),
            }
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
                // Records without the key, or with one like it: is it ours that has lost it?
                Err(error) if matches!(error.problem, Problem::Protocol | Problem::Conflict { .. }) => {
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
                [one] => return self.named_wrongly(&created, one).await,
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
            // Creating once more would make one more each time, where an answer names the wrong id.
            Err(error) if error.problem == Problem::NotFound => {
                let reason = "the record that it said it made is not there";
                return Err(CrmError::new(Problem::Ambiguous).reason(reason).into());
            }
            Err(error) => return Err(after_write(error)),
        };
        if shows(&record, self.key()) {
            if let Some(error) = search {
                return Err(after_write(error));
            }
            self.look_for_lost(None, &record)?;
            return Ok(Some(Finished::new(written(&record), Done::Created)));
        }
        Err(self.without_key(created, &record).await)
    }

    /// The key finds another record than the one that the answer named.
    async fn named_wrongly(&self, created: &Written, one: &Record) -> Result<Option<Finished>, Failure> {
        let named = self.crm.dialect.get(&self.talk, self.entity(), &created.id, &self.wanted()).await;
        let is_none_of_ours = match &named {
            Ok(named) => !shows(named, self.key()),
            Err(error) => error.problem == Problem::NotFound,
        };
        if is_none_of_ours && self.differing(one).is_empty() {
            return Ok(Some(Finished::new(written(one), Done::Created)));
        }
        // Ours went, or shows late: begin again with what is there.
        Ok(None)
    }

    /// Takes back the record that we have just made, which came without its key: every repetition would make another one.
    async fn without_key(&self, created: &Written, record: &Record) -> Failure {
        if !self.is_surely_new(&created.id).await {
            return self.of_somebody(record);
        }
        if let Err(failure) = self.withdraw(created, &[]).await {
            return failure;
        }
        let name = self.key().field.name.clone();
        CrmError::invalid(vec![FieldError::new(name, "the target dropped it: is it misspelt in the mapping")])
            .into()
    }

    /// The target answered the creation with a record that may have been there before. What it changed of it is not known.
    fn of_somebody(&self, record: &Record) -> Failure {
        let name = &self.key().field.name;
        let shown = record.fields.get(name).is_some_and(|key| !super::own::is_empty(key));
        let reason = if shown {
            format!("the target answered the creation with a record of another {name}, which stays")
        } else {
            format!(
                "the target answered the creation with a record without {name}, which stays, since it may be \
                 somebody's: is {name} misspelt in the mapping"
            )
        };
        let error = CrmError::conflict(Clash::Duplicate, vec![record.id.clone()]).reason(&reason);
        Failure::from(error).effect_unknown()
    }

    /// Deletes the record that we have just made, since there are several of its key; unless it may be somebody's: it does
    /// not show the key and what was sent, or has been written since it was read first.
    async fn take_back(
        &self,
        created: &Written,
        first: Option<&Record>,
        several: &[Record],
    ) -> Result<(), Failure> {
        let ours = match several.iter().find(|record| record.id == created.id) {
            Some(ours) => Some(ours.clone()),
            // Of more than two the look shows two; or the answer named the wrong one.
            None => {
                let named =
                    self.crm.dialect.get(&self.talk, self.entity(), &created.id, &self.wanted()).await;
                named.ok().filter(|named| shows(named, self.key()))
            }
        };
        let changed =
            |now: &Record, first: &Record| now.fields != first.fields || now.version != first.version;
        let is_ours = ours.is_some_and(|ours| {
            self.looks_as_sent(&ours) && !first.is_some_and(|first| changed(&ours, first))
        });
        // One that was there without a key may have got ours by being merged with what was sent.
        if !is_ours || self.was_made_now(&created.id).await == Some(false) {
            return Err(conflict(several).effect_unknown());
        }
        self.withdraw(created, several).await
    }

    async fn withdraw(&self, created: &Written, several: &[Record]) -> Result<(), Failure> {
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
