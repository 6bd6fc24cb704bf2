//! The record of a key that was found: what differs is written, on condition that nobody else changed it meanwhile.

use super::{Engine, Finished, after_write, written};
use crate::{
    Failure,
    crm::{
        dialect::{Done, Written},
        error::{Clash, CrmError, Problem},
        vocabulary::Record,
    },
};

impl Engine<'_> {
    /// Changes what differs. `None`: somebody else changed or deleted it meanwhile, look again.
    pub(super) async fn update(
        &self,
        record: &Record,
        passed: &mut bool,
    ) -> Result<Option<Finished>, Failure> {
        let versions = self.crm.dialect.abilities().versions;
        if let Some(version) = &self.upsert.if_version {
            if !versions {
                let reason = "its records have no versions; leave if_version out";
                return Err(CrmError::new(Problem::Unsupported).reason(reason).into());
            }
            if record.version.as_deref() != Some(version) && !self.already_done(record) {
                return Err(CrmError::conflict(Clash::Version, vec![record.id.clone()]).into());
            }
        }
        let (changed, superseded) = self.to_write(record);
        if changed.is_empty() {
            return Ok(Some(Finished { written: written(record), done: Done::Unchanged, superseded }));
        }
        if !*passed {
            self.pass(Some(record)).await?;
            *passed = true;
        }
        let if_version = if versions { record.version.as_deref() } else { None };
        let dialect = &self.crm.dialect;
        let updated = match dialect.update(&self.talk, self.entity(), &record.id, &changed, if_version).await
        {
            Ok(updated) => updated,
            Err(error) if error.problem == Problem::NotFound => return Ok(None),
            Err(error) if matches!(error.problem, Problem::Conflict { clash: Clash::Version, .. }) => {
                return if self.upsert.if_version.is_some() { Err(error.into()) } else { Ok(None) };
            }
            Err(error) if error.is_ambiguous() => {
                let now = dialect.get(&self.talk, self.entity(), &record.id, &self.wanted()).await;
                return match now {
                    Ok(now) if self.differing(&now).is_empty() => {
                        Ok(Some(Finished { written: written(&now), done: Done::Updated, superseded }))
                    }
                    Ok(_) | Err(_) => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        };
        if self.trusted && (updated.version.is_some() || !versions) {
            let id = record.id.clone();
            return Ok(Some(Finished {
                written: Written { id, ..updated },
                done: Done::Updated,
                superseded,
            }));
        }
        let now =
            dialect.get(&self.talk, self.entity(), &record.id, &self.wanted()).await.map_err(after_write)?;
        self.look_for_lost(Some((record, &changed)), &now)?;
        Ok(Some(Finished { written: written(&now), done: Done::Updated, superseded }))
    }
}
