//! The dry run of an upsert: it looks, and writes nothing.

use super::Upsert;
use crate::{
    Failure, Outcome,
    crm::{
        Crm,
        error::Problem,
        exchange::Talk,
        key::look,
        params::given,
        vocabulary::{Field, Given},
    },
};
use serde_json::{Value, json};

/// What would be done, and what the target would say against it.
pub(in crate::crm) async fn run(crm: &Crm, talk: &Talk, upsert: &Upsert<'_>) -> Result<Outcome, Failure> {
    let fields = given(&upsert.fields);
    let described = crm.described(talk, upsert.entity).await?;
    let mut errors = described.writable(upsert.key.0, &fields);
    let key = Given { field: upsert.key.0, value: &upsert.key.1 };
    let wanted: Vec<&Field> =
        fields.iter().map(|given| given.field).filter(|field| !described.is_missing(field)).collect();
    let wanted = [&[upsert.key.0][..], &wanted].concat();
    let mut result = json!({ "dry_run": true });
    let (found, alike) = match look(crm, talk, upsert.entity, &wanted, key).await {
        Ok(found) => (found, Vec::new()),
        Err(error) => match error.problem {
            Problem::Conflict { candidates, .. } if !candidates.is_empty() => (Vec::new(), candidates),
            _ => return Err(error.into()),
        },
    };
    let would = match found.as_slice() {
        [] if !alike.is_empty() => {
            result["candidates"] = json!(alike);
            "conflict"
        }
        [] if upsert.if_version.is_some() => "conflict",
        [] => {
            errors.extend(described.required_missing(upsert.entity, upsert.key.0, &fields));
            "created"
        }
        [one] => {
            result["id"] = Value::String(one.id.clone());
            let same = fields.iter().all(|given| {
                let found = one.fields.get(&given.field.name).unwrap_or(&Value::Null);
                given.field.kind.same(found, given.value)
            });
            let stale = upsert.if_version.is_some() && one.version != upsert.if_version;
            if stale {
                "conflict"
            } else if same {
                "unchanged"
            } else {
                "updated"
            }
        }
        several => {
            result["candidates"] = several.iter().map(|record| json!(record.id)).collect();
            "conflict"
        }
    };
    result["would"] = json!(if errors.is_empty() { would } else { "refused" });
    result["errors"] =
        errors.iter().map(|error| json!({ "field": error.field, "reason": error.reason })).collect();
    Ok(Outcome { result, synced: None, leaves: false })
}
