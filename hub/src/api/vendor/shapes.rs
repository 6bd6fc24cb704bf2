//! What the vendor's API shows, in its own spelling.

use crate::{
    mediations::{
        DefinitionId, Message, RunState,
        runs::RunSummary,
        store::{
            definitions::StoredDefinition,
            told::{self, LastRun},
        },
    },
    store::standard::StandardRequest,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// `MediationDefinition`
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DefinitionShape {
    guid: DefinitionId,
    label: String,
    last_run: Option<Timestamp>,
    last_run_result: Option<String>,
    last_run_status: Option<RunState>,
}

impl DefinitionShape {
    pub(super) fn new(stored: &StoredDefinition, last: Option<&LastRun>) -> Self {
        Self {
            guid: stored.definition.guid,
            label: stored.definition.label.clone(),
            last_run: last.map(|last| last.created_at),
            last_run_result: last.map(|last| words(last.state, last.detail.as_deref())),
            last_run_status: last.map(|last| last.state),
        }
    }
}

/// `MediationStatus`
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StatusShape {
    definition_libelle: String,
    definition_standard_guid: Option<Uuid>,
    definition_guid: DefinitionId,
    mediation_guid: Uuid,
    debut: Timestamp,
    etat: String,
    etat_details: String,
    is_completed: bool,
    messages: Vec<Value>,
}

impl StatusShape {
    pub(super) fn of_run(run: &RunSummary, messages: &[Message]) -> Self {
        Self {
            definition_libelle: run.definition.label.clone(),
            definition_standard_guid: run.definition.system,
            definition_guid: run.definition.guid,
            mediation_guid: run.guid.uuid(),
            debut: run.created_at,
            etat: run.state.as_str().to_owned(),
            etat_details: words(run.state, run.detail.as_deref()),
            is_completed: run.state.is_finished(),
            messages: messages.iter().map(told::message).collect(),
        }
    }

    /// A request whose file is not here, or could not be fetched.
    pub(super) fn of_request(request: &StandardRequest, definition: &StoredDefinition) -> Self {
        let (etat, details) = match (request.waiting, &request.failure) {
            (true, None) => ("queued", "Récupération du fichier en cours".to_owned()),
            (true, Some(why)) => ("queued", format!("Récupération du fichier en cours : {why}")),
            (false, why) => ("failed", why.clone().unwrap_or_default()),
        };
        let messages = request.failure.iter().map(|why| {
            let kind = i32::from(!request.waiting);
            json!({"Date": request.requested_at, "Message": why, "Kind": kind})
        });
        Self {
            definition_libelle: definition.definition.label.clone(),
            definition_standard_guid: definition.definition.system,
            definition_guid: definition.definition.guid,
            mediation_guid: request.guid,
            debut: request.requested_at,
            etat: etat.to_owned(),
            etat_details: details,
            is_completed: !request.waiting,
            messages: messages.collect(),
        }
    }

    /// Under the guid that its client knows.
    pub(super) fn known_as(mut self, guid: Uuid) -> Self {
        self.mediation_guid = guid;
        self
    }
}

/// The state in words: what went wrong, or the vendor's label.
fn words(state: RunState, detail: Option<&str>) -> String {
    match detail {
        Some(detail) if state.is_error() => detail.to_owned(),
        _ => state.labels().fr.to_owned(),
    }
}
