//! `/v1/subscriptions`: where the hub delivers its notices to.

use super::{
    App, List,
    auth::{Allowed, SubscriptionsRead, SubscriptionsWrite},
    body::{JsonBytes, StrictQuery, parse},
    id, page_size,
    problem::{Problem, ProblemDocument},
};
use crate::{
    clock,
    model::{Delivery, DeliveryAuth, NewSubscription, Notice, NoticeKind, Subscription},
    notices::{deliver, sign},
    outbound::{self, Refusal},
};
use axum::{
    Json,
    extract::{Path, State},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The longest label, user name, password or token.
const MAX_TEXT: usize = 1024;

/// What a tenant wants to be told.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Where to: `https://…`; `http://…` and private addresses where the hub's operator allows them.
    url: String,
    /// Which kinds; none: all.
    #[serde(default)]
    kinds: Vec<NoticeKind>,
    /// A name for people.
    #[serde(default)]
    label: Option<String>,
    /// How deliveries prove who sends them, beside their signature.
    #[serde(default)]
    auth: DeliveryAuth,
    /// What they are signed with, by Standard Webhooks: `whsec_` and 24 to 64 bytes in base64. Left out: the hub makes one.
    #[serde(default)]
    secret: Option<String>,
}

/// A new subscription, with its secret.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Created {
    /// The subscription.
    #[serde(flatten)]
    subscription: Subscription,
    /// What its deliveries are signed with; shown this once.
    secret: String,
}

/// How the test of an endpoint ended.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Tested {
    /// Whether the endpoint took the notice.
    delivered: bool,
    /// Its HTTP status, if it answered.
    status: Option<u16>,
    /// Why it was not delivered.
    failure: Option<String>,
}

/// How many deliveries are sent again.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Resent {
    /// So many.
    resent: u64,
}

/// Which deliveries to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveriesQuery {
    /// `dead` (the default) or `pending`.
    state: Option<String>,
    /// At most so many, 1 to 500; default 50.
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Subscribes.
#[utoipa::path(
    post, path = "/v1/subscriptions", tag = "subscriptions", request_body = Wish,
    responses(
        (status = 201, body = Created),
        (status = 400, body = ProblemDocument, description = "`bad_request`: also for a URL that the hub does not call"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn create(
    caller: Allowed<SubscriptionsWrite>,
    State(app): State<App>,
    JsonBytes(body): JsonBytes,
) -> Result<(StatusCode, Json<Created>), Problem> {
    let wish: Wish = parse(&body)?;
    let new = checked(wish)?;
    let url = outbound::read(&new.url).map_err(refused)?;
    app.outbound.judge(&url).await.map_err(refused)?;
    let secret = new.secret.clone();
    let subscription = app.store.create_subscription(caller.tenant, new).await?;
    Ok((StatusCode::CREATED, Json(Created { subscription, secret })))
}

fn refused(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Malformed(why) => Problem::bad_request(why),
        Refusal::Forbidden(_) | Refusal::NotResolved => Problem::bad_request(format!("url: {refusal}")),
    }
}

fn checked(wish: Wish) -> Result<NewSubscription, Problem> {
    let fits = |text: &str| text.chars().count() <= MAX_TEXT && !text.chars().any(char::is_control);
    if wish.label.as_ref().is_some_and(|label| !fits(label)) {
        return Err(Problem::bad_request("label: at most 1024 characters, none of them a control character"));
    }
    let wrong = match &wish.auth {
        DeliveryAuth::None => None,
        DeliveryAuth::Basic { username, .. } if username.contains(':') => {
            Some("auth.username: HTTP Basic allows no colon in it")
        }
        DeliveryAuth::Basic { username, password } if !fits(username) || !fits(password) => {
            Some("auth: at most 1024 characters, none of them a control character")
        }
        DeliveryAuth::Bearer { token }
            if token.is_empty() || !fits(token) || !token.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Some("auth.token: expected 1 to 1024 printable ASCII characters without spaces")
        }
        DeliveryAuth::Basic { .. } | DeliveryAuth::Bearer { .. } => None,
    };
    if let Some(wrong) = wrong {
        return Err(Problem::bad_request(wrong));
    }
    let secret = match wish.secret {
        Some(secret) => {
            sign::key(&secret).map_err(|why| Problem::bad_request(format!("secret: {why}")))?;
            secret
        }
        None => sign::new_secret().map_err(|error| Problem::internal(&error))?,
    };
    let mut kinds = wish.kinds;
    let mut seen = std::collections::HashSet::new();
    kinds.retain(|kind| seen.insert(*kind));
    Ok(NewSubscription { label: wish.label, url: wish.url, kinds, auth: wish.auth, secret })
}

/// Lists the subscriptions, oldest first; a tenant has 50 at most.
#[utoipa::path(
    get, path = "/v1/subscriptions", tag = "subscriptions",
    responses((status = 200, body = List<Subscription>), (status = "default", body = ProblemDocument))
)]
pub async fn list(
    caller: Allowed<SubscriptionsRead>,
    State(app): State<App>,
) -> Result<Json<List<Subscription>>, Problem> {
    let items = app.store.list_subscriptions(caller.tenant).await?;
    Ok(Json(List { items, next_cursor: None }))
}

/// One subscription.
#[utoipa::path(
    get, path = "/v1/subscriptions/{id}", tag = "subscriptions", params(("id" = String, Path)),
    responses((status = 200, body = Subscription), (status = "default", body = ProblemDocument))
)]
pub async fn show(
    caller: Allowed<SubscriptionsRead>,
    State(app): State<App>,
    Path(subscription): Path<String>,
) -> Result<Json<Subscription>, Problem> {
    Ok(Json(app.store.subscription(caller.tenant, id("subscription", &subscription)?).await?))
}

/// Ends a subscription; what it was not told yet is dropped.
#[utoipa::path(
    delete, path = "/v1/subscriptions/{id}", tag = "subscriptions", params(("id" = String, Path)),
    responses((status = 204, description = "Ended"), (status = "default", body = ProblemDocument))
)]
pub async fn delete(
    caller: Allowed<SubscriptionsWrite>,
    State(app): State<App>,
    Path(subscription): Path<String>,
) -> Result<StatusCode, Problem> {
    app.store.delete_subscription(caller.tenant, id("subscription", &subscription)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sends a notice of the kind `Test` at once, and tells how the endpoint took it. It is not tried again.
#[utoipa::path(
    post, path = "/v1/subscriptions/{id}/test", tag = "subscriptions", params(("id" = String, Path)),
    responses((status = 200, body = Tested), (status = "default", body = ProblemDocument))
)]
pub async fn test(
    caller: Allowed<SubscriptionsWrite>,
    State(app): State<App>,
    Path(subscription): Path<String>,
) -> Result<Json<Tested>, Problem> {
    let wanted = id("subscription", &subscription)?;
    let target = app.store.subscription_target(caller.tenant, wanted).await?;
    let notice = Notice {
        id: clock::new_uuid7(),
        kind: NoticeKind::Test,
        at: clock::now(),
        data: json!({"Abonnement": wanted}),
    };
    let done = deliver::attempt(&app.outbound, app.notices.timeout, &target, &notice).await;
    Ok(Json(Tested { delivered: done.delivered, status: done.status, failure: done.failure }))
}

/// Lists the deliveries of a subscription that were given up, or are still tried; oldest first.
#[utoipa::path(
    get, path = "/v1/subscriptions/{id}/deliveries", tag = "subscriptions",
    params(("id" = String, Path), DeliveriesQuery),
    responses((status = 200, body = List<Delivery>), (status = "default", body = ProblemDocument))
)]
pub async fn deliveries(
    caller: Allowed<SubscriptionsRead>,
    State(app): State<App>,
    Path(subscription): Path<String>,
    StrictQuery(query): StrictQuery<DeliveriesQuery>,
) -> Result<Json<List<Delivery>>, Problem> {
    let dead = match query.state.as_deref() {
        None | Some("dead") => true,
        Some("pending") => false,
        Some(other) => {
            return Err(Problem::bad_request(format!("state: expected dead or pending, found {other:?}")));
        }
    };
    let wanted = id("subscription", &subscription)?;
    let limit = page_size(query.limit)?;
    let page = app.store.list_deliveries(caller.tenant, wanted, dead, limit, query.cursor).await?;
    Ok(Json(List { items: page.items, next_cursor: page.next_cursor }))
}

/// Has all dead deliveries of a subscription tried again.
#[utoipa::path(
    post, path = "/v1/subscriptions/{id}/resend", tag = "subscriptions", params(("id" = String, Path)),
    responses((status = 202, body = Resent), (status = "default", body = ProblemDocument))
)]
pub async fn resend_all(
    caller: Allowed<SubscriptionsWrite>,
    State(app): State<App>,
    Path(subscription): Path<String>,
) -> Result<(StatusCode, Json<Resent>), Problem> {
    let resent = app.store.resend(caller.tenant, id("subscription", &subscription)?, None).await?;
    Ok((StatusCode::ACCEPTED, Json(Resent { resent })))
}

/// Has one dead delivery tried again.
#[utoipa::path(
    post, path = "/v1/subscriptions/{id}/deliveries/{delivery}/resend", tag = "subscriptions",
    params(("id" = String, Path), ("delivery" = u64, Path)),
    responses(
        (status = 202, body = Resent),
        (status = 409, body = ProblemDocument, description = "`conflict`: it is still tried by itself"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn resend(
    caller: Allowed<SubscriptionsWrite>,
    State(app): State<App>,
    Path((subscription, delivery)): Path<(String, String)>,
) -> Result<(StatusCode, Json<Resent>), Problem> {
    let wanted = id("subscription", &subscription)?;
    let resent = app.store.resend(caller.tenant, wanted, Some(id("delivery", &delivery)?)).await?;
    Ok((StatusCode::ACCEPTED, Json(Resent { resent })))
}
