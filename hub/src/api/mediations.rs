//! `/v1/mediations/definitions`: what mediations there are, and what they do.

use super::{
    App, List,
    auth::{Allowed, MediationsRead, MediationsWrite},
    body::{JsonBytes, StrictQuery, parse},
    jobs::find_payload,
    mediation_reading::{read, read_all, read_text},
    page_size,
    problem::{Problem, ProblemDocument},
    submission,
};
use crate::{
    clock,
    mediations::{
        DefinitionId, InputFlow, Occurrence, Started,
        definition::file,
        runs::RunSummary,
        store::definitions::{Applied, StoredDefinition},
        trigger::{self, TriggerProblem},
    },
    model::PayloadRef,
    store,
};
use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use jiff::Timestamp;
use passerelle_protocol::Name;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A mediation definition as the hub keeps it.
#[derive(Serialize, utoipa::ToSchema)]
pub struct DefinitionView {
    /// What was said: as `PUT` takes it.
    #[schema(value_type = Object)]
    definition: Value,
    /// The number of this version, from 1.
    version: u32,
    /// When the definition was created.
    #[schema(value_type = String, format = "date-time")]
    created_at: Timestamp,
    /// When it was changed last.
    #[schema(value_type = String, format = "date-time")]
    changed_at: Timestamp,
    /// Since when it is enabled; null: it is not.
    #[schema(value_type = Option<String>, format = "date-time")]
    enabled_at: Option<Timestamp>,
    /// When a run of it succeeded last.
    #[schema(value_type = Option<String>, format = "date-time")]
    succeeded_at: Option<Timestamp>,
    /// When a run was due that did not succeed in time; null: it is not late.
    #[schema(value_type = Option<String>, format = "date-time")]
    late_since: Option<Timestamp>,
    /// Its newest run.
    last_run: Option<RunSummary>,
    /// What kept its trigger from starting a run last, since it was changed or the trigger worked again.
    trigger_problem: Option<TriggerProblem>,
}

impl DefinitionView {
    async fn of(app: &App, stored: StoredDefinition) -> Result<Self, Problem> {
        let last_run = app.store.last_run(stored.tenant.clone(), stored.definition.guid).await?;
        let trigger_problem =
            app.store.trigger_problem(stored.tenant.clone(), stored.definition.guid).await?;
        Ok(Self {
            definition: stored.definition.to_json(),
            version: stored.version,
            created_at: stored.created_at,
            changed_at: stored.changed_at,
            enabled_at: stored.enabled_at,
            succeeded_at: stored.succeeded_at,
            late_since: stored.late_since,
            last_run,
            trigger_problem,
        })
    }
}

/// The definition that a path names, by its guid or its name.
///
/// # Errors
/// 404.
pub(super) async fn find(app: &App, tenant: &Name, text: &str) -> Result<StoredDefinition, Problem> {
    if let Ok(guid) = text.parse::<DefinitionId>() {
        return Ok(app.store.definition(tenant.clone(), guid).await?);
    }
    let missing = || Problem::not_found(format!("there is no mediation definition {text}"));
    let name: Name = text.parse().map_err(|_| missing())?;
    Ok(app.store.definition_by_name(tenant.clone(), name).await?)
}

/// Which definitions to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// At most so many, 1 to 500; default 50.
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<DefinitionId>,
}

/// Lists definitions.
#[utoipa::path(
    get, path = "/v1/mediations/definitions", tag = "mediations", params(ListQuery),
    responses((status = 200, body = List<DefinitionView>), (status = "default", body = ProblemDocument))
)]
pub async fn list(
    caller: Allowed<MediationsRead>,
    State(app): State<App>,
    StrictQuery(query): StrictQuery<ListQuery>,
) -> Result<Json<List<DefinitionView>>, Problem> {
    let limit = page_size(query.limit)?;
    let mut found = app.store.definitions(caller.tenant, query.cursor, limit + 1).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more).map(|stored| stored.definition.guid.to_string());
    let mut items = Vec::with_capacity(found.len());
    for stored in found {
        items.push(DefinitionView::of(&app, stored).await?);
    }
    Ok(Json(List { items, next_cursor: last }))
}

/// One definition, by its guid or its name.
#[utoipa::path(
    get, path = "/v1/mediations/definitions/{guid}", tag = "mediations", params(("guid" = String, Path)),
    responses((status = 200, body = DefinitionView), (status = "default", body = ProblemDocument))
)]
pub async fn show(
    caller: Allowed<MediationsRead>,
    State(app): State<App>,
    Path(definition): Path<String>,
) -> Result<Json<DefinitionView>, Problem> {
    let stored = find(&app, &caller.tenant, &definition).await?;
    Ok(Json(DefinitionView::of(&app, stored).await?))
}

/// What a write asks for beside the definition.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WriteQuery {
    /// Only tells what would come of it.
    #[serde(default)]
    dry_run: bool,
}

/// Creates a definition under a guid, or changes one, by its guid or its name; the body is the whole definition.
#[utoipa::path(
    put, path = "/v1/mediations/definitions/{guid}", tag = "mediations",
    params(("guid" = String, Path), WriteQuery), request_body = Object,
    responses(
        (status = 200, body = Applied, description = "Changed, or unchanged"),
        (status = 201, body = Applied, description = "Created"),
        (status = 400, body = ProblemDocument, description = "`bad_request`: all that is wrong, one finding a line"),
        (status = 409, body = ProblemDocument, description = "`conflict`: another has the name, or it is a system one"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn put(
    caller: Allowed<MediationsWrite>,
    State(app): State<App>,
    Path(guid): Path<String>,
    StrictQuery(query): StrictQuery<WriteQuery>,
    JsonBytes(body): JsonBytes,
) -> Result<Response, Problem> {
    let guid = match guid.parse::<DefinitionId>() {
        Ok(guid) => guid,
        Err(_) => match find(&app, &caller.tenant, &guid).await {
            Ok(stored) => stored.definition.guid,
            Err(problem) if problem.status_code() == StatusCode::NOT_FOUND => {
                return Err(Problem::not_found(format!(
                    "there is no mediation definition {guid}; a new one is made under a UUID of your choice, or by POST"
                )));
            }
            Err(problem) => return Err(problem),
        },
    };
    let mut written = read(&app, &caller.tenant, &parse(&body)?).await?;
    if written.guid.is_some_and(|other| other != guid) {
        return Err(Problem::bad_request("guid: another one stands in the path; leave it out of the body"));
    }
    written.guid = Some(guid);
    written.definition.guid = guid;
    let mut applied = app.store.apply_definitions(caller.tenant, vec![written], query.dry_run).await?;
    let applied = applied.pop().ok_or_else(|| Problem::internal(&"nothing was applied"))?;
    let created = applied.outcome == "created" && !query.dry_run;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(applied)).into_response())
}

/// Definitions to apply together: a file's text, or a list.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// The text of a TOML file with `[[mediation]]` tables.
    toml: Option<String>,
    /// How findings call that file.
    file: Option<String>,
    /// Definitions as `PUT` takes them.
    #[schema(value_type = Option<Vec<Object>>)]
    definitions: Option<Vec<Value>>,
}

/// What came of definitions that were applied.
#[derive(Serialize, utoipa::ToSchema)]
pub struct AppliedAll {
    /// One for each, in their order.
    items: Vec<Applied>,
    /// Nothing was changed: it was only told what would be.
    dry_run: bool,
}

/// Creates and changes definitions, all or none. One without a guid is that of the same name.
#[utoipa::path(
    post, path = "/v1/mediations/definitions", tag = "mediations", params(WriteQuery), request_body = Apply,
    responses(
        (status = 200, body = AppliedAll),
        (status = 400, body = ProblemDocument, description = "`bad_request`: all that is wrong, one finding a line, with \
          file, line and column for a text"),
        (status = 409, body = ProblemDocument, description = "`conflict`"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn apply(
    caller: Allowed<MediationsWrite>,
    State(app): State<App>,
    StrictQuery(query): StrictQuery<WriteQuery>,
    JsonBytes(body): JsonBytes,
) -> Result<Json<AppliedAll>, Problem> {
    let apply: Apply = parse(&body)?;
    let written = match (apply.toml, apply.definitions) {
        (Some(text), None) => {
            let name = apply.file.unwrap_or_else(|| "mediations.toml".to_owned());
            read_text(&app, &caller.tenant, name, text).await?
        }
        (None, Some(definitions)) => {
            if definitions.len() > file::MAX_DEFINITIONS {
                return Err(Problem::bad_request(format!("definitions: at most {}", file::MAX_DEFINITIONS)));
            }
            read_all(&app, &caller.tenant, &definitions).await?
        }
        _ => return Err(Problem::bad_request("body: send either toml or definitions")),
    };
    let items = app.store.apply_definitions(caller.tenant, written, query.dry_run).await?;
    Ok(Json(AppliedAll { items, dry_run: query.dry_run }))
}

/// Deletes a definition. Its runs stay as long as they are kept; those under way go on.
#[utoipa::path(
    delete, path = "/v1/mediations/definitions/{guid}", tag = "mediations", params(("guid" = String, Path)),
    responses(
        (status = 204, description = "Deleted"),
        (status = 409, body = ProblemDocument, description = "`conflict`: it is a system one"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn delete(
    caller: Allowed<MediationsWrite>,
    State(app): State<App>,
    Path(definition): Path<String>,
) -> Result<StatusCode, Problem> {
    let stored = find(&app, &caller.tenant, &definition).await?;
    app.store.delete_definition(caller.tenant, stored.definition.guid).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets runs of a definition begin.
#[utoipa::path(
    post, path = "/v1/mediations/definitions/{guid}/enable", tag = "mediations", params(("guid" = String, Path)),
    responses((status = 200, body = DefinitionView), (status = "default", body = ProblemDocument))
)]
pub async fn enable(
    caller: Allowed<MediationsWrite>,
    State(app): State<App>,
    Path(definition): Path<String>,
) -> Result<Json<DefinitionView>, Problem> {
    set_enabled(&app, &caller.tenant, &definition, true).await
}

/// Lets no more runs of a definition begin; those under way go on.
#[utoipa::path(
    post, path = "/v1/mediations/definitions/{guid}/disable", tag = "mediations", params(("guid" = String, Path)),
    responses((status = 200, body = DefinitionView), (status = "default", body = ProblemDocument))
)]
pub async fn disable(
    caller: Allowed<MediationsWrite>,
    State(app): State<App>,
    Path(definition): Path<String>,
) -> Result<Json<DefinitionView>, Problem> {
    set_enabled(&app, &caller.tenant, &definition, false).await
}

async fn set_enabled(
    app: &App,
    tenant: &Name,
    definition: &str,
    enabled: bool,
) -> Result<Json<DefinitionView>, Problem> {
    let guid = find(app, tenant, definition).await?.definition.guid;
    app.store.enable_definition(tenant.clone(), guid, enabled).await?;
    let stored = app.store.definition(tenant.clone(), guid).await?;
    Ok(Json(DefinitionView::of(app, stored).await?))
}

/// What a run is started with.
#[derive(Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Tells this start from others: the same key starts no second run. Without one each call starts a run.
    key: Option<String>,
    /// What templates see as `trigger.data`; at most 256 KiB as JSON.
    #[schema(value_type = Value)]
    #[serde(default)]
    data: Value,
    /// The run's first flows; at most 100.
    #[serde(default)]
    flows: Vec<StartFlow>,
}

/// A flow that a run is started with.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartFlow {
    /// Its label, often the name of a file.
    label: String,
    /// Its content, as a job's payload.
    payload: submission::SubmittedPayload,
}

/// Starts a run.
#[utoipa::path(
    post, path = "/v1/mediations/definitions/{guid}/run", tag = "mediations", params(("guid" = String, Path)),
    request_body = Start,
    responses(
        (status = 201, body = RunSummary, description = "Started"),
        (status = 200, body = RunSummary, description = "The key was seen: the run of then; or it was skipped"),
        (status = 409, body = ProblemDocument, description = "`conflict`: the definition is disabled"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn start(
    caller: Allowed<MediationsWrite>,
    State(app): State<App>,
    Path(definition): Path<String>,
    JsonBytes(body): JsonBytes,
) -> Result<Response, Problem> {
    let start: Start = if body.is_empty() { Start::default() } else { parse(&body)? };
    let tenant = caller.tenant;
    let stored = find(&app, &tenant, &definition).await?;
    if start.flows.len() > trigger::MAX_FLOWS {
        return Err(Problem::bad_request(format!("flows: at most {}", trigger::MAX_FLOWS)));
    }
    let mut flows = Vec::with_capacity(start.flows.len());
    for (index, flow) in start.flows.into_iter().enumerate() {
        let at = format!("flows[{}]", index + 1);
        if flow.label.is_empty()
            || flow.label.chars().count() > 255
            || flow.label.chars().any(char::is_control)
        {
            return Err(Problem::bad_request(format!("{at}.label: must be 1 to 255 characters on one line")));
        }
        let payload = flow.payload.check().map_err(|problem| problem.within(&at))?;
        let found = find_payload(&app, &tenant, &payload).await.map_err(|problem| problem.within(&at))?;
        let media_type = Some(found.media_type.clone());
        flows.push(InputFlow { label: flow.label, blob: kept(&app, &tenant, found).await?, media_type });
    }
    let occurrence = Occurrence {
        key: start.key.unwrap_or_else(|| format!("api-{}", clock::new_uuid7())),
        kind: "api",
        at: clock::now(),
        data: start.data,
        flows,
    };
    let started = app.store.start_run(tenant.clone(), stored.definition.guid, occurrence).await?;
    let (status, run) = match started {
        Started::New(run) => (StatusCode::CREATED, run),
        Started::Known(run) | Started::Skipped(run) => (StatusCode::OK, run),
        Started::Disabled => {
            let name = &stored.definition.name;
            let said = format!("mediation {name} is disabled: enable it first");
            return Err(store::Error::Conflict(said).into());
        }
    };
    Ok((status, Json(app.store.run_summary(tenant, run).await?)).into_response())
}

/// The blob of content that came with a request.
async fn kept(app: &App, tenant: &Name, found: PayloadRef) -> Result<passerelle_protocol::BlobId, Problem> {
    let Some(data) = found.data else { return Ok(found.blob) };
    let whole = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(data)]);
    let info = app.blobs.put_stream(tenant.clone(), Some(found.media_type), None, whole).await?;
    Ok(info.id)
}
