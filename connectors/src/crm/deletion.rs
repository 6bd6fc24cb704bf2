//! Deleting a record: that it is gone already is a success, also after a lost reply.

use super::{
    Crm,
    error::{Clash, CrmError, Problem},
    exchange::Talk,
    key::id_of,
    params::Which,
    upsert::pass,
    vocabulary::Entity,
};
use crate::{Call, Failure, Outcome};
use serde_json::{Value, json};

/// Performs it, or says what it would do.
pub(super) async fn run(
    crm: &Crm,
    call: &Call,
    entity: &Entity,
    which: &Which<'_>,
    if_version: Option<&str>,
    dry_run: bool,
) -> Result<Outcome, Failure> {
    let talk = Talk::from(call);
    let versions = crm.dialect.abilities().versions;
    if if_version.is_some() && !versions {
        let reason = "its records have no versions; leave if_version out";
        return Err(CrmError::new(Problem::Unsupported).reason(reason).into());
    }
    // The same turn as the upserts of this key, so that none of them recreates what goes, unseen.
    let _turn = match which {
        Which::Key((_, value)) => crm.turn(entity, value).await,
        Which::Id(_) => None,
    };
    // An earlier run of this job was after that very record: one that has the key by now is somebody's new one.
    let before = call.prior_intent.as_ref().and_then(|intent| intent.state.get("id")?.as_str());
    let id = match (which, before) {
        (_, Some(id)) => Some(id.to_owned()),
        (Which::Id(id), None) => Some(id.clone()),
        (Which::Key(key), None) => id_of(crm, &talk, entity, key).await?.map(|record| record.id),
    };
    if dry_run {
        return look(crm, &talk, entity, id, if_version).await;
    }
    let Some(id) = id else { return Ok(outcome("already_absent")) };
    pass(call, json!({ "crm": "delete", "id": id })).await?;
    match crm.dialect.delete(&talk, entity, &id, if_version).await {
        Ok(()) => Ok(outcome("deleted")),
        // An earlier run of this very job may have done it.
        Err(error) if error.problem == Problem::NotFound => Ok(outcome("already_absent")),
        Err(error) if error.is_ambiguous() => {
            let key: Vec<_> = entity.key().into_iter().collect();
            match crm.dialect.get(&talk, entity, &id, &key).await {
                Err(gone) if gone.problem == Problem::NotFound => Ok(outcome("deleted")),
                Ok(_) | Err(_) => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

fn outcome(what: &str) -> Outcome {
    Outcome { result: json!({ "outcome": what }), synced: None, leaves: false }
}

async fn look(
    crm: &Crm,
    talk: &Talk,
    entity: &Entity,
    id: Option<String>,
    if_version: Option<&str>,
) -> Result<Outcome, Failure> {
    let key: Vec<_> = entity.key().into_iter().collect();
    let record = match &id {
        None => None,
        Some(id) => match crm.dialect.get(talk, entity, id, &key).await {
            Ok(record) => Some(record),
            Err(error) if error.problem == Problem::NotFound => None,
            Err(error) => return Err(error.into()),
        },
    };
    let mut result = json!({ "dry_run": true, "would": "already_absent", "errors": [] });
    if let Some(record) = record {
        let stale = if_version.is_some() && record.version.as_deref() != if_version;
        if stale {
            let failure = Failure::from(CrmError::conflict(Clash::Version, Vec::new()));
            result["errors"] = json!([{ "field": "if_version", "reason": failure.message }]);
        }
        result["would"] = json!(if stale { "conflict" } else { "deleted" });
        result["id"] = Value::String(record.id);
    }
    Ok(Outcome { result, synced: None, leaves: false })
}
