//! The hub's API as a cloud-side developer calls it.

use crate::{Content, PATIENCE, until};
use futures_util::StreamExt as _;
use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::io::ReaderStream;

/// The states that do not change by themselves any more.
const ENDED: [&str; 6] = ["succeeded", "failed", "denied", "cancelled", "expired", "unknown"];

/// An answer with its JSON body (`null` where there is none).
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Value,
}

/// The stable code of a problem document, or of a job's error.
#[must_use]
pub fn code(value: &Value) -> &str {
    value["code"].as_str().or_else(|| value["error"]["code"].as_str()).unwrap_or("(no code)")
}

/// Whether a job is in a final or settled state.
#[must_use]
pub fn ended(job: &Value) -> bool {
    job["state"].as_str().is_some_and(|state| ENDED.contains(&state))
}

/// A client of one hub with one key.
#[derive(Clone)]
pub struct Api {
    base: String,
    key: String,
    http: reqwest::Client,
}

impl Api {
    /// A client for the hub at `base`.
    #[must_use]
    pub fn new(base: &str, key: &str, http: reqwest::Client) -> Self {
        Self { base: base.to_owned(), key: key.to_owned(), http }
    }

    /// The API key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The same hub with another key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    /// A request with the key, for what the other methods do not cover.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.key)
    }

    /// Sends a request and reads the answer's JSON.
    ///
    /// # Errors
    /// If the hub does not answer.
    ///
    /// # Panics
    /// If a body is not JSON.
    pub async fn try_send(&self, request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let bytes = answer.bytes().await?;
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).unwrap_or_else(|e| {
                panic!("{status} without JSON ({e}): {}", String::from_utf8_lossy(&bytes))
            })
        };
        Ok(Answer { status, headers, body })
    }

    /// Sends a request that must be answered.
    ///
    /// # Panics
    /// If the hub does not answer.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        self.try_send(request).await.expect("an answer of the hub")
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    /// `POST` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Submits a job that must be taken, and gives its id.
    ///
    /// # Panics
    /// If it is not taken.
    pub async fn submit(&self, job: &Value) -> String {
        let answer = self.post("/v1/jobs", job).await;
        assert_eq!(answer.status, 201, "{job} was answered {}", answer.body);
        answer.body["id"].as_str().expect("a job id").to_owned()
    }

    /// Submits a job and waits until it has ended.
    pub async fn run(&self, job: &Value) -> Value {
        let id = self.submit(job).await;
        self.end_of(&id, PATIENCE).await
    }

    /// Submits a job that must succeed.
    ///
    /// # Panics
    /// If it ends otherwise.
    pub async fn succeed(&self, job: &Value) -> Value {
        let done = self.run(job).await;
        assert_eq!(done["state"], "succeeded", "{done:#}");
        done
    }

    /// A job as it stands.
    ///
    /// # Panics
    /// If the hub does not know it.
    pub async fn job(&self, id: &str) -> Value {
        let answer = self.get(&format!("/v1/jobs/{id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// Waits until a job is in a final or settled state. The hub may be away meanwhile.
    ///
    /// # Panics
    /// If that takes too long.
    pub async fn end_of(&self, id: &str, within: Duration) -> Value {
        self.job_where(id, "has ended", within, ended).await
    }

    /// Waits until a job is in one of `states`.
    ///
    /// # Panics
    /// If it ends in another state, or that takes too long.
    pub async fn reach(&self, id: &str, states: &[&str]) -> Value {
        self.job_where(id, &format!("is one of {states:?}"), PATIENCE, |job| {
            let reached = job["state"].as_str().is_some_and(|state| states.contains(&state));
            assert!(reached || !ended(job), "the job ended before it was one of {states:?}: {job:#}");
            reached
        })
        .await
    }

    /// Waits until a job fits.
    ///
    /// # Panics
    /// If that takes too long.
    pub async fn job_where(
        &self,
        id: &str,
        what: &str,
        within: Duration,
        mut fits: impl FnMut(&Value) -> bool,
    ) -> Value {
        let path = format!("/v1/jobs/{id}");
        let mut last = Value::Null;
        let start = std::time::Instant::now();
        loop {
            if let Ok(answer) = self.try_send(self.request(Method::GET, &path)).await {
                assert_eq!(answer.status, 200, "job {id}: {}", answer.body);
                if fits(&answer.body) {
                    return answer.body;
                }
                last = answer.body;
            }
            assert!(start.elapsed() < within, "waited {within:?} in vain until the job {what}: {last:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Uploads content as a blob in one request, streamed, and gives the answer.
    ///
    /// # Panics
    /// If the hub refuses it.
    pub async fn upload(&self, content: &Content) -> Value {
        let file = tokio::fs::File::open(&content.path).await.expect("the content");
        let body = reqwest::Body::wrap_stream(ReaderStream::with_capacity(file, 1 << 18));
        let request =
            self.request(Method::POST, "/v1/blobs").header("content-length", content.size).body(body);
        let answer = self.send(request).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        assert_eq!(answer.body["size"], json!(content.size));
        assert_eq!(answer.body["sha256"], json!(content.sha256));
        answer.body
    }

    /// A job's output payload.
    ///
    /// # Panics
    /// If there is none.
    pub async fn output(&self, id: &str) -> Vec<u8> {
        let answer = self
            .request(Method::GET, &format!("/v1/jobs/{id}/output"))
            .send()
            .await
            .expect("an answer of the hub");
        assert_eq!(answer.status(), 200);
        answer.bytes().await.expect("the output").to_vec()
    }

    /// Waits until `count` agents of `site` are connected.
    pub async fn agents_online(&self, site: &str, count: usize) {
        until(&format!("{count} agents of {site} online"), PATIENCE, async || {
            let agents = self.get("/v1/agents").await.body;
            let items = agents["items"].as_array()?;
            let online = items.iter().filter(|a| a["site"] == site && a["online"] == true).count();
            (online == count).then_some(())
        })
        .await;
    }
}

/// Reads server-sent events until `enough` says so; gives `(id, event, data)` of each.
///
/// # Panics
/// If the stream ends or stays silent for too long before.
pub async fn events(
    answer: reqwest::Response,
    mut enough: impl FnMut(&[(String, String, Value)]) -> bool,
) -> Vec<(String, String, Value)> {
    let mut stream = answer.bytes_stream();
    let mut text = String::new();
    let mut seen = Vec::new();
    while !enough(&seen) {
        let chunk = tokio::time::timeout(PATIENCE, stream.next()).await;
        let chunk = chunk.unwrap_or_else(|_| panic!("no more events after {seen:#?}"));
        let chunk = chunk.expect("an open event stream").expect("a readable event stream");
        text.push_str(&String::from_utf8_lossy(&chunk));
        while let Some((event, rest)) = text.split_once("\n\n") {
            let field = |name: &str| {
                let lines = event.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
                lines.map(str::trim_start).collect::<Vec<_>>().join("\n")
            };
            let (id, kind, data) = (field("id"), field("event"), field("data"));
            if !data.is_empty() {
                seen.push((id, kind, serde_json::from_str(&data).expect("an event's JSON")));
            }
            text = rest.to_owned();
        }
    }
    seen
}
