//! `/v1/sites`: the tenant's sites, and the resources that their agents announce.

use super::{
    App, List,
    auth::{Allowed, SitesRead},
    body::StrictQuery,
    page_size,
    problem::{Problem, ProblemDocument},
    with_header,
};
use crate::{
    model::{ResourceView, SiteSummary},
    store,
};
use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use http::HeaderName;
use passerelle_protocol::{ApiCode, Name};
use serde::Deserialize;

/// Names the tenant of the key that asks.
const TENANT: HeaderName = HeaderName::from_static("passerelle-tenant");

/// Which sites to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// At most so many, 1 to 500; default 500.
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists the sites by name; the header `Passerelle-Tenant` names the tenant they belong to.
#[utoipa::path(
    get, path = "/v1/sites", tag = "sites", params(ListQuery),
    responses((status = 200, body = List<SiteSummary>), (status = "default", body = ProblemDocument))
)]
pub async fn list(
    caller: Allowed<SitesRead>,
    State(app): State<App>,
    StrictQuery(query): StrictQuery<ListQuery>,
) -> Result<Response, Problem> {
    let limit = page_size(query.limit.or(Some(500)))?;
    let after = query.cursor.map(|cursor| cursor.parse()).transpose();
    let after = after.map_err(|_| Problem::bad_request("cursor: not one that a page of this list gave"))?;
    let tenant = caller.tenant.clone();
    let page = app.store.sites(caller.tenant, limit, after).await?;
    let list = Json(List { items: page.items, next_cursor: page.next_cursor });
    // What a client that signs its own jobs has to put into them.
    Ok(with_header(list.into_response(), TENANT, tenant.as_str()))
}

/// Lists the resources that the site's connected agents announce: never a host, path or secret.
#[utoipa::path(
    get, path = "/v1/sites/{site}/resources", tag = "sites", params(("site" = String, Path)),
    responses(
        (status = 200, body = List<ResourceView>),
        (status = 404, body = ProblemDocument, description = "`site_unknown`"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn resources(
    caller: Allowed<SitesRead>,
    State(app): State<App>,
    Path(site): Path<String>,
) -> Result<Json<List<ResourceView>>, Problem> {
    let site: Name = site.parse().map_err(|_| {
        Problem::new(ApiCode::SiteUnknown, format!("site {site:?} is unknown: that is no name"))
    })?;
    if !app.store.site_exists(caller.tenant.clone(), site.clone()).await? {
        return Err(store::Error::SiteUnknown(site).into());
    }
    Ok(Json(List { items: app.tunnel.resources(&caller.tenant, &site), next_cursor: None }))
}
