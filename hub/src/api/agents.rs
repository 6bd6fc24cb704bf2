//! `/v1/agents`: the tenant's enrolled agents and whether they are connected.

use super::{
    App, List,
    auth::{AgentsRead, AgentsWrite, Allowed},
    body::StrictQuery,
    id, page_size,
    problem::{Problem, ProblemDocument},
};
use crate::model::{AgentKeyRecord, AgentRecord, CloneRecord, Live};
use axum::{
    Json,
    extract::{Path, State},
};
use jiff::Timestamp;
use passerelle_protocol::{AgentId, Name};
use serde::{Deserialize, Serialize};

/// An agent, as the API shows it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AgentView {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    id: AgentId,
    /// Its name.
    #[schema(value_type = String)]
    name: Name,
    /// Its site.
    #[schema(value_type = String)]
    site: Name,
    /// `orchestrator` or `hub`.
    application: String,
    /// Whether its tunnel is open.
    online: bool,
    /// Its software version.
    version: String,
    /// When its current or last connection began.
    #[schema(value_type = Option<String>, format = "date-time")]
    connected_at: Option<Timestamp>,
    /// When it was last heard.
    #[schema(value_type = Option<String>, format = "date-time")]
    last_seen_at: Option<Timestamp>,
    /// How many jobs it holds.
    jobs_running: u64,
    /// When it enrolled.
    #[schema(value_type = String, format = "date-time")]
    enrolled_at: Timestamp,
    /// When it was revoked.
    #[schema(value_type = Option<String>, format = "date-time")]
    revoked_at: Option<Timestamp>,
    /// The agent that was enrolled in its place.
    #[schema(value_type = Option<String>, format = "uuid")]
    replaced_by: Option<AgentId>,
    /// Its public keys, oldest first: its receipts verify with the one that they name.
    keys: Vec<AgentKeyRecord>,
    /// Set once another live process used its identity.
    clones: Option<CloneRecord>,
}

impl AgentView {
    /// Joins what is stored with what is live.
    #[must_use]
    pub fn new(agent: AgentRecord, live: Option<Live>) -> Self {
        Self {
            id: agent.id,
            name: agent.name,
            site: agent.site,
            application: agent.application,
            online: live.is_some(),
            version: agent.version,
            connected_at: live.map_or(agent.connected_at, |live| Some(live.connected_at)),
            last_seen_at: live.map_or(agent.last_seen_at, |live| Some(live.last_seen_at)),
            jobs_running: live.map_or(0, |live| live.jobs_running),
            enrolled_at: agent.enrolled_at,
            revoked_at: agent.revoked_at,
            replaced_by: agent.replaced_by,
            keys: agent.keys,
            clones: agent.clones,
        }
    }
}

/// Which agents to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only of this site.
    #[param(value_type = Option<String>)]
    site: Option<Name>,
    /// At most so many, 1 to 500; default 50.
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists the agents.
#[utoipa::path(
    get, path = "/v1/agents", tag = "agents", params(ListQuery),
    responses((status = 200, body = List<AgentView>), (status = "default", body = ProblemDocument))
)]
pub async fn list(
    caller: Allowed<AgentsRead>,
    State(app): State<App>,
    StrictQuery(query): StrictQuery<ListQuery>,
) -> Result<Json<List<AgentView>>, Problem> {
    let limit = page_size(query.limit)?;
    let page = app.store.list_agents(Some(caller.tenant), query.site, limit, query.cursor).await?;
    let view = |agent: AgentRecord| {
        let live = app.tunnel.online(agent.id);
        AgentView::new(agent, live)
    };
    Ok(Json(List { items: page.items.into_iter().map(view).collect(), next_cursor: page.next_cursor }))
}

/// Ends an agent's identity at once: its tunnel is closed, what it had started ends `unknown`, what it had not accepted is
/// queued again. Again is no error.
#[utoipa::path(
    post, path = "/v1/agents/{id}/revoke", tag = "agents", params(("id" = String, Path)),
    responses((status = 200, body = AgentView), (status = "default", body = ProblemDocument))
)]
pub async fn revoke(
    caller: Allowed<AgentsWrite>,
    State(app): State<App>,
    Path(agent): Path<String>,
) -> Result<Json<AgentView>, Problem> {
    let agent: AgentId = id("agent", &agent)?;
    let unknown = || Problem::not_found(format!("there is no agent {agent}"));
    match app.store.agent(agent).await? {
        Some(found) if found.tenant == caller.tenant => {}
        _ => return Err(unknown()),
    }
    app.store.revoke_agent(agent).await?;
    let found = app.store.agent(agent).await?.ok_or_else(unknown)?;
    let live = app.tunnel.online(agent);
    Ok(Json(AgentView::new(found, live)))
}
