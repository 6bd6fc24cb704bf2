//! Around every request: figures, a log line, caught panics and the headers that every answer carries.

use super::{App, problem::Problem};
use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use http::{HeaderValue, header};
use std::{panic::AssertUnwindSafe, time::Instant};

/// The middleware.
pub async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => {
            let what = panic.downcast_ref::<String>().map(String::as_str);
            let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            Problem::internal(&what).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let (status, took) = (response.status().as_u16(), started.elapsed());
    app.metrics.request(&method, route, status, took);
    tracing::debug!(%method, route, status, elapsed_ms = took.as_millis(), "Answered");
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use axum::{Router, body::Body, middleware::from_fn_with_state, routing::get};
    use tokio_util::sync::CancellationToken;
    use tower::ServiceExt as _;

    async fn broken() -> &'static str {
        panic!("a fault")
    }

    #[tokio::test]
    async fn a_panic_is_answered_as_an_internal_fault() {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open_to_serve(data.path()).unwrap();
        let app = App::new(store.clone(), 1, true, CancellationToken::new());
        let router = Router::new().route("/", get(broken)).layer(from_fn_with_state(app, observe));
        let answer = router.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 500);
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        let body = axum::body::to_bytes(answer.into_body(), 4096).await.unwrap();
        let problem: passerelle_protocol::http::Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem.code, "internal");
        assert!(!problem.detail.unwrap().contains("a fault"));
        store.close().await;
    }
}
