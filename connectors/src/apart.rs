//! The connections of one resource have a thread of their own, beside the agent's.
//!
//! The HTTP library reads whatever a target sends, and passes over interim answers (`100 Continue` and the like) without
//! counting them: a target that sends them without end keeps the connection's task busy for seconds before that lets
//! anything else run. The runtime's own measure counts reads, of up to 400 KiB each, which hold thousands of heads. The library
//! shows neither the connection nor those answers to us, so such a target is left to hold up what goes to itself.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, OnceLock},
};
use tokio::runtime::{Builder, Handle, Runtime};

/// A resource's HTTP client.
#[derive(Clone)]
pub(crate) struct Client {
    client: reqwest::Client,
    lane: Lane,
}

impl Client {
    /// Its connections are served by the thread of `lane`.
    pub(crate) fn new(client: reqwest::Client, lane: &Lane) -> Self {
        Self { client, lane: lane.clone() }
    }

    /// Begins a request, for [`send`](Self::send).
    pub(crate) fn request(&self, method: http::Method, url: url::Url) -> reqwest::RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends it and waits for the head of its answer, for as long as the caller likes: whatever the target does, the
    /// caller's own clock goes on.
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<reqwest::Response> {
        self.execute(request.build()?).await
    }

    /// The same with a request that is whole.
    pub(crate) async fn execute(&self, request: reqwest::Request) -> reqwest::Result<reqwest::Response> {
        self.lane.run(self.client.execute(request)).await
    }
}

/// A thread that is started with the first request. What is in hand with its connections ends with its last owner.
#[derive(Clone, Default)]
pub(crate) struct Lane(Arc<OnceLock<Option<Background>>>);

impl Lane {
    /// Polls the future here, but has the tasks and sockets that it makes served by the thread.
    async fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            let _entered = self.handle().map(Handle::enter);
            future.as_mut().poll(context)
        })
        .await
    }

    /// `None` where there can be no further thread: the caller's have to do.
    fn handle(&self) -> Option<&Handle> {
        let started = self.0.get_or_init(|| match Background::start("http-target") {
            Ok(background) => Some(background),
            Err(error) => {
                tracing::warn!(%error, "No thread for a resource's connections: they share the agent's");
                None
            }
        });
        started.as_ref().and_then(Background::handle)
    }
}

/// A runtime of one thread that may be let go of anywhere.
pub(crate) struct Background(Option<Runtime>);

impl Background {
    /// Starts it; `name` is the thread's.
    ///
    /// # Errors
    /// If the system gives no thread, or no descriptors for what it waits with.
    pub(crate) fn start(name: &str) -> std::io::Result<Self> {
        Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(name)
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
    }

    pub(crate) fn handle(&self) -> Option<&Handle> {
        self.0.as_ref().map(Runtime::handle)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // The ordinary end would wait, which is not allowed on the threads of another runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
