//! Upserts by alternate key: the record is read by its key, and what differs is written in one PATCH.
//!
//! - A record that was not there is written whole, without a condition: the service creates or updates it, atomically.
//! - One that was there gets only what differs, with `If-Match`, so that a part of the fields makes no record anew.

use super::{OData, edm, literal, of, place, query, unfit};
use crate::crm::{
    dialect::{Done, Written},
    error::{Clash, CrmError, Problem},
    exchange::Talk,
    key::hold_to_key,
    vocabulary::{Entity, Field, Given, Record},
};
use http::{Method, header};
use serde_json::Value;

/// How often a record that others change is read again.
const TRIES: usize = 4;

impl OData {
    pub(super) async fn upsert_by_key(
        &self,
        talk: &Talk,
        entity: &Entity,
        key: Given<'_>,
        fields: &[Given<'_>],
    ) -> Result<(Written, Done), CrmError> {
        let place = place(entity)?;
        let model = self.model(talk).await?;
        let literal = literal::literal(edm(&model, &place, key.field), key.field.kind, key.value)
            .map_err(|reason| unfit(key.field, reason))?;
        let path = place.by(&key.field.target, &literal);
        let mut given = of(fields);
        given.push(key.field);
        let mut tries = 0;
        let answer = loop {
            tries += 1;
            let known = self.known(talk, entity, &path, key, &given).await?;
            let differing: Vec<Given<'_>> = match &known {
                Some(record) => fields.iter().copied().filter(|given| differs(record, given)).collect(),
                None => fields.to_vec(),
            };
            if let (Some(record), true) = (&known, differing.is_empty()) {
                let written = Written { id: record.id.clone(), version: record.version.clone() };
                return Ok((written, Done::Unchanged));
            }
            let body = self.body(talk, &place, &differing).await?;
            let mut request = self.write(Method::PATCH, &path, &body);
            if let Some(record) = &known {
                request = request.header(header::IF_MATCH, record.version.as_deref().unwrap_or("*"));
            }
            match self.send(talk, request, &given).await {
                Ok(answer) => break answer,
                Err(error) if known.is_some() && tries < TRIES && has_moved(&error) => {}
                Err(error) if known.is_none() && error.problem == Problem::NotFound => {
                    let reason = "it does not create by alternate key; set options.upsert to \"find\"";
                    return Err(CrmError::new(Problem::Unsupported).reason(reason));
                }
                Err(error) => return Err(error),
            }
        };
        let done = if answer.status == 201 { Done::Created } else { Done::Updated };
        Ok((self.written(&place, &answer)?, done))
    }

    /// The record of an alternate key, as far as the service tells it.
    async fn known(
        &self,
        talk: &Talk,
        entity: &Entity,
        path: &str,
        key: Given<'_>,
        wanted: &[&Field],
    ) -> Result<Option<Record>, CrmError> {
        let place = place(entity)?;
        let path = query(path, &[("$select", self.select(&place, wanted))]);
        let answer = match self.send(talk, self.request(Method::GET, path), wanted).await {
            Ok(answer) => answer,
            // None yet; or keys serve writing alone, which the write then shows.
            Err(CrmError { problem: Problem::NotFound | Problem::Unsupported, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let record = self.record(&place, &answer.json()?, wanted, answer.text(header::ETAG.as_str()));
        let record = record.ok_or_else(|| answer.nonsense("an answer holds no record"))?;
        hold_to_key(std::slice::from_ref(&record), key)?;
        Ok(Some(record))
    }
}

/// Whether a field is not as wanted; a link is written by another name than it is read by, so it always may be.
fn differs(record: &Record, given: &Given<'_>) -> bool {
    let found = record.fields.get(&given.field.name).unwrap_or(&Value::Null);
    given.field.target.contains('@') || !given.field.kind.same(found, given.value)
}

/// The record was changed or deleted since it was read.
fn has_moved(error: &CrmError) -> bool {
    matches!(error.problem, Problem::NotFound | Problem::Conflict { clash: Clash::Version, .. })
}
