//! The sample CRM: contacts over a small REST interface, kept in memory.

use super::sample::sha256;
use crate::Failure;
use axum::{
    Router,
    body::Bytes,
    extract::{OriginalUri, Path, State},
    http::Method,
    response::{IntoResponse, Response},
    routing::any,
};
use reqwest::{
    StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap},
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{net::TcpListener, task::JoinHandle};
use uuid::Uuid;

/// It is a sample: past this it takes no more.
const MAX_KEPT: usize = 10_000;
const FIELDS: [&str; 4] = ["guid", "nom", "prenom", "email"];

/// The running CRM; it ends with this value.
pub(super) struct Crm {
    url: String,
    shared: Shared,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    token: String,
    contacts: Arc<Mutex<BTreeMap<u64, Map<String, Value>>>>,
}

impl Crm {
    /// Starts it on a free port, with a token of its own.
    pub(super) async fn start() -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::hub(format!("the sample CRM cannot listen: {e}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let url = format!("http://{}/api/", listener.local_addr().map_err(failed)?);
        let shared = Shared { token: Uuid::new_v4().simple().to_string(), contacts: Arc::default() };
        let router = Router::new()
            .route("/api/contacts", any(collection))
            .route("/api/contacts/{id}", any(item))
            .with_state(shared.clone());
        let task = tokio::spawn(async move {
            // Ends only when it is aborted.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, shared, task })
    }

    /// The agent's resource, in TOML.
    pub(super) fn resource(&self, name: &str) -> String {
        format!(
            "\n[resources.{name}]\nconnector = \"crm\"\ndialect = \"rest\"\nurl = \"{}\"\n\
             auth = {{ kind = \"bearer\", token = {{ file = \"secrets/crm-token\" }} }}\n\n\
             [resources.{name}.rest]\nunique_keys = true\n\n\
             [resources.{name}.entities.contact]\ntarget = \"contacts\"\n\
             fields = {{ external_id = \"guid\", last_name = \"nom\", first_name = \"prenom\", email = \"email\" }}\n\
             masked = [\"last_name\", \"first_name\", \"email\"]\n\n\
             [[resources.{name}.allow]]\noperations = [\"upsert\", \"get\", \"find\", \"delete\"]\n\
             entities = [\"contact\"]\nfields = [\"*\"]\n",
            self.url
        )
    }

    /// What a caller must send as its bearer token.
    pub(super) fn token(&self) -> &str {
        &self.shared.token
    }

    /// Where the contact of a guid is, and what it is.
    pub(super) fn contact(&self, guid: &str) -> Option<(String, Map<String, Value>)> {
        let contacts = self.shared.contacts();
        let (id, contact) = contacts.iter().find(|(_, contact)| contact["guid"] == guid)?;
        Some((format!("{}contacts/{id}", self.url), contact.clone()))
    }
}

impl Drop for Crm {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn contacts(&self) -> MutexGuard<'_, BTreeMap<u64, Map<String, Value>>> {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let expected = format!("Bearer {}", self.token);
        // Digests, so that the time of the comparison tells nothing.
        headers
            .get(AUTHORIZATION)
            .is_some_and(|given| sha256(given.as_bytes()) == sha256(expected.as_bytes()))
    }
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn shown(id: u64, contact: &Map<String, Value>) -> Value {
    let mut shown = contact.clone();
    shown.insert("id".to_owned(), json!(id));
    Value::Object(shown)
}

/// Takes the fields of a body into a contact.
///
/// # Errors
/// What it does not know, by name.
fn take(contact: &mut Map<String, Value>, body: &[u8]) -> Result<(), Value> {
    let refused = |errors: Value| json!({ "errors": errors });
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else {
        return Err(refused(json!({})));
    };
    for (name, value) in fields {
        if !FIELDS.contains(&name.as_str()) || !(value.is_string() || value.is_null()) {
            return Err(refused(json!({ name: "no text, or no field of a contact" })));
        }
        contact.insert(name, value);
    }
    Ok(())
}

/// Searches by fields, or creates.
async fn collection(
    State(shared): State<Shared>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !shared.knows(&headers) {
        return answer(StatusCode::UNAUTHORIZED, &json!({ "message": "unknown token" }));
    }
    let mut contacts = shared.contacts();
    if method == Method::GET {
        let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        let filter: Vec<_> = query.filter(|(name, _)| FIELDS.contains(&name.as_ref())).collect();
        let fits = |contact: &Map<String, Value>| {
            filter
                .iter()
                .all(|(name, value)| contact.get(name.as_ref()).is_some_and(|own| own == value.as_ref()))
        };
        let found: Vec<Value> = contacts
            .iter()
            .filter(|(_, contact)| fits(contact))
            .map(|(id, contact)| shown(*id, contact))
            .collect();
        return answer(StatusCode::OK, &Value::Array(found));
    }
    if method != Method::POST || contacts.len() >= MAX_KEPT {
        return answer(StatusCode::METHOD_NOT_ALLOWED, &json!({}));
    }
    let mut contact: Map<String, Value> =
        FIELDS.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
    if let Err(errors) = take(&mut contact, &body) {
        return answer(StatusCode::BAD_REQUEST, &errors);
    }
    if contacts.values().any(|other| other["guid"] == contact["guid"]) {
        return answer(StatusCode::CONFLICT, &json!({ "message": "there is a contact of this guid" }));
    }
    let id = contacts.keys().next_back().map_or(1, |last| last + 1);
    let created = shown(id, &contact);
    contacts.insert(id, contact);
    answer(StatusCode::CREATED, &created)
}

/// Reads, changes or deletes one.
async fn item(
    State(shared): State<Shared>,
    method: Method,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !shared.knows(&headers) {
        return answer(StatusCode::UNAUTHORIZED, &json!({ "message": "unknown token" }));
    }
    let mut contacts = shared.contacts();
    let known = id.parse::<u64>().ok().and_then(|id| Some((id, contacts.get(&id)?.clone())));
    let Some((id, mut contact)) = known else {
        return answer(StatusCode::NOT_FOUND, &json!({ "message": "no such contact" }));
    };
    match method {
        Method::GET => answer(StatusCode::OK, &shown(id, &contact)),
        Method::PATCH => match take(&mut contact, &body) {
            Ok(()) => {
                let changed = shown(id, &contact);
                contacts.insert(id, contact);
                answer(StatusCode::OK, &changed)
            }
            Err(errors) => answer(StatusCode::BAD_REQUEST, &errors),
        },
        Method::DELETE => {
            contacts.remove(&id);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => answer(StatusCode::METHOD_NOT_ALLOWED, &json!({})),
    }
}
