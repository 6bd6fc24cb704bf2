//! How long a request waits for its connection: never as long as for its answer. A target that does not take the
//! connection was told nothing, and whoever asked hears that rather than that its effect is unknown.

use std::{
    error::Error,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tower::{Layer, Service};

tokio::task_local! {
    /// For the request that the task is about to send.
    static LIMIT: Duration;
}

/// Sends a request whose connection has to come about well within `limit`, which its answer has.
pub(crate) async fn within<F: Future>(limit: Duration, request: F) -> F::Output {
    LIMIT.scope(limit / 8 * 7, request).await
}

/// Ends the making of a connection in time. It has a request's limit only as long as the request itself waits for the
/// connection: one that found another meanwhile is none the worse for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limited;

impl<S> Layer<S> for Limited {
    type Service = LimitedTo<S>;

    fn layer(&self, inner: S) -> Self::Service {
        LimitedTo(inner)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct LimitedTo<S>(S);

type BoxError = Box<dyn Error + Send + Sync>;

impl<S, R> Service<R> for LimitedTo<S>
where
    S: Service<R, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, target: R) -> Self::Future {
        let connecting = self.0.call(target);
        match LIMIT.try_get() {
            Err(_) => Box::pin(connecting),
            Ok(limit) => Box::pin(async move {
                match tokio::time::timeout(limit, connecting).await {
                    Ok(done) => done,
                    Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
                }
            }),
        }
    }
}
