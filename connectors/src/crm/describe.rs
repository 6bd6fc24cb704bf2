//! What targets say of their entities, kept for a while: it shows a misspelt field before anything is written.

use super::{
    Crm,
    dialect::Description,
    error::{CrmError, FieldError, Problem},
    exchange::Talk,
    vocabulary::{Entity, Field, Given},
};
use crate::Failure;
use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

/// How long a description counts: as long as an operator who has just added a field may be let wait.
const FRESH: Duration = Duration::from_secs(5 * 60);

/// What a target said of an entity, if it said anything.
#[derive(Debug, Clone, Default)]
pub(super) struct Known(Arc<Option<Description>>);

impl Crm {
    /// What the target says of an entity.
    ///
    /// # Errors
    /// If it cannot be asked; that it does not tell, or not this account, is no error.
    pub(super) async fn described(&self, talk: &Talk, entity: &Entity) -> Result<Known, Failure> {
        {
            let descriptions = self.descriptions.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((since, known)) = descriptions.get(&entity.name)
                && since.elapsed() < FRESH
            {
                return Ok(known.clone());
            }
        }
        let known = match self.dialect.describe(talk, entity).await {
            Ok(description) => Known(Arc::new(description)),
            Err(CrmError {
                problem: Problem::Forbidden | Problem::Unsupported | Problem::NotFound, ..
            }) => Known::default(),
            Err(error) => return Err(error.into()),
        };
        let mut descriptions = self.descriptions.lock().unwrap_or_else(PoisonError::into_inner);
        descriptions.insert(entity.name.clone(), (Instant::now(), known.clone()));
        Ok(known)
    }
}

impl Known {
    /// Every field of the target is known.
    pub(super) fn is_complete(&self) -> bool {
        self.0.as_ref().as_ref().is_some_and(|description| description.complete)
    }

    /// The target certainly has no such field.
    pub(super) fn is_missing(&self, field: &Field) -> bool {
        self.is_complete() && self.of(field).is_none()
    }

    fn of(&self, field: &Field) -> Option<&super::dialect::Described> {
        let description = self.0.as_ref().as_ref()?;
        description.fields.iter().find(|described| described.target == field.target)
    }

    /// What speaks against writing these.
    pub(super) fn writable(&self, key: &Field, fields: &[Given<'_>]) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut refuse =
            |field: &Field, reason: &str| errors.push(FieldError::new(field.name.clone(), reason));
        if self.is_missing(key) {
            refuse(key, "the target has no such field: is it misspelt in the mapping");
        }
        for Given { field, value } in fields {
            match self.of(field) {
                None if self.is_complete() => {
                    refuse(field, "the target has no such field: is it misspelt in the mapping");
                }
                None => {}
                Some(described) if described.read_only => {
                    refuse(field, "the target does not let it be written")
                }
                Some(described) if described.required && field.kind.same(value, &serde_json::Value::Null) => {
                    refuse(field, "the target needs it");
                }
                Some(described) => {
                    let length = value.as_str().map_or(0, |text| text.chars().count());
                    if let Some(most) = described.max_length.filter(|most| length > *most) {
                        refuse(field, &format!("the target takes at most {most} characters"));
                    }
                }
            }
        }
        errors
    }

    /// What a new record needs and is not given.
    pub(super) fn required_missing(
        &self,
        entity: &Entity,
        key: &Field,
        fields: &[Given<'_>],
    ) -> Vec<FieldError> {
        let Some(description) = self.0.as_ref() else { return Vec::new() };
        let is_given =
            |target: &str| key.target == target || fields.iter().any(|given| given.field.target == target);
        description
            .fields
            .iter()
            .filter(|described| described.required && !is_given(&described.target))
            // Fields that the mapping does not name cannot be asked for by name.
            .filter_map(|described| entity.of_target(&described.target))
            .map(|field| FieldError::new(field.name.clone(), "the target needs it"))
            .collect()
    }

    /// The failure for fields that cannot be written.
    pub(super) fn refusal(&self, errors: Vec<FieldError>) -> Failure {
        CrmError::invalid(errors).into()
    }
}
