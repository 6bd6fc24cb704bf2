//! `/v1/sites`: the tenant's sites, and the resources that their agents announce.

use super::{
    App, List,
    auth::{Allowed, SitesRead},
    problem::{Problem, ProblemDocument},
};
use crate::{
    model::{ResourceView, SiteSummary},
    store,
};
use axum::{
    Json,
    extract::{Path, State},
};
use passerelle_protocol::{ApiCode, Name};

/// Lists the sites.
#[utoipa::path(
    get, path = "/v1/sites", tag = "sites",
    responses((status = 200, body = List<SiteSummary>), (status = "default", body = ProblemDocument))
)]
pub async fn list(
    caller: Allowed<SitesRead>,
    State(app): State<App>,
) -> Result<Json<List<SiteSummary>>, Problem> {
    Ok(Json(List { items: app.store.sites(caller.tenant).await?, next_cursor: None }))
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
