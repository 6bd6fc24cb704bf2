//! The hub's API, as a client sees it.

mod mediations;
mod tls;
mod upload;

use crate::{Failure, args::Connection, render};
use passerelle_protocol::{Code, http::Problem};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use std::{fs, path::Path, time::Duration};
use url::{Host, Url};

pub(crate) use upload::blob;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer that the hub does not have to wait for comes sooner.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// An output may be large and the line slow.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// How often a request is sent again whose answer was lost.
const TRIES: u32 = 4;
/// The longest `?wait=` that a hub takes.
const MAX_WAIT: u64 = 60;

/// What became of a call.
pub(crate) enum Called {
    /// It took effect; the hub's JSON.
    Done(Value),
    /// It failed.
    Failed {
        /// The code.
        code: String,
        /// Why.
        message: String,
        /// What it did.
        effect: String,
    },
}

/// A connection to a hub.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    key: String,
}

impl Client {
    /// A client for what the command line and the environment say.
    ///
    /// # Errors
    /// A usage failure if something is missing or wrong.
    pub(crate) fn new(connection: &Connection) -> Result<Self, Failure> {
        let url = connection.url.as_deref().filter(|url| !url.is_empty());
        let url = url.ok_or_else(|| Failure::usage("no hub: give --url, or set PASSERELLE_URL"))?;
        let key = match (&connection.api_key, &connection.api_key_file) {
            (Some(key), _) if !key.is_empty() => key.clone(),
            (_, Some(file)) => fs::read_to_string(file).map_err(|e| {
                Failure::usage(format!("--api-key-file: cannot read {}: {e}", file.display()))
            })?,
            _ => {
                return Err(Failure::usage(
                    "no API key: set PASSERELLE_API_KEY or PASSERELLE_API_KEY_FILE, or give --api-key",
                ));
            }
        };
        Self::at(url, &key, connection.ca_file.as_deref())
    }

    /// A client of the hub at `url`.
    ///
    /// # Errors
    /// A usage failure if the URL, the key or the CA file is wrong.
    pub(crate) fn at(url: &str, key: &str, ca_file: Option<&Path>) -> Result<Self, Failure> {
        let mut base = Url::parse(url)
            .ok()
            .filter(|base| matches!(base.scheme(), "http" | "https") && base.has_host())
            .ok_or_else(|| {
                Failure::usage(format!(
                    "{url} is no hub address; expected the like of https://hub.example.com"
                ))
            })?;
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Failure::usage("the API key contains a character that none has; copy it again"));
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("passerelle/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .tls_backend_preconfigured(tls::config(&base, ca_file)?);
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|e| Failure::usage(format!("cannot make an HTTP client: {e}")))?;
        Ok(Self { http, base, key: key.to_owned() })
    }

    /// A request to `path`, below the hub's address.
    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, Failure> {
        let url = self.base.join(path).map_err(|e| Failure::usage(format!("{path:?} makes no URL: {e}")))?;
        Ok(self.http.request(method, url).bearer_auth(&self.key).timeout(ANSWER_TIMEOUT))
    }

    /// A request to a job, whose id must be one.
    fn job_request(&self, method: Method, id: &str, rest: &str) -> Result<RequestBuilder, Failure> {
        let id: uuid::Uuid = id.parse().map_err(|_| Failure::usage(format!("{id:?} is no job id")))?;
        self.request(method, &format!("v1/jobs/{id}{rest}"))
    }

    /// Reads a list or an object.
    pub(crate) async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Failure> {
        self.ask(self.request(Method::GET, path)?.query(query)).await
    }

    /// Reads a header of a successful answer.
    pub(crate) async fn header(&self, path: &str, name: &str) -> Result<Option<String>, Failure> {
        let response =
            self.request(Method::GET, path)?.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(refusal(status, &response.text().await.unwrap_or_default()));
        }
        Ok(response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned))
    }

    /// Reads a job.
    pub(crate) async fn job(&self, id: &str) -> Result<Value, Failure> {
        self.ask(self.job_request(Method::GET, id, "")?).await
    }

    /// Revokes an agent.
    pub(crate) async fn revoke_agent(&self, id: &str) -> Result<Value, Failure> {
        let id: uuid::Uuid = id.parse().map_err(|_| Failure::usage(format!("{id:?} is no agent id")))?;
        self.ask(self.request(Method::POST, &format!("v1/agents/{id}/revoke"))?).await
    }

    /// Cancels or retries a job.
    pub(crate) async fn act(&self, id: &str, action: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.job_request(Method::POST, id, &format!("/{action}"))?.json(body);
        self.once(request).await?.json()
    }

    /// Reads an event.
    pub(crate) async fn event(&self, id: &str) -> Result<Value, Failure> {
        self.ask(self.event_request(id, "")?).await
    }

    /// The event's payload, as a stream.
    pub(crate) async fn event_payload(&self, id: &str) -> Result<Response, Failure> {
        self.stream(self.event_request(id, "/payload")?).await
    }

    /// The stream of events, after the one of this number.
    pub(crate) async fn follow(&self, last: Option<u64>) -> Result<Response, Failure> {
        let request = self.request(Method::GET, "v1/events")?;
        self.stream(last.into_iter().fold(request, |request, last| request.header("last-event-id", last)))
            .await
    }

    /// A request to an event, whose id must be one.
    fn event_request(&self, id: &str, rest: &str) -> Result<RequestBuilder, Failure> {
        let id: uuid::Uuid = id.parse().map_err(|_| Failure::usage(format!("{id:?} is no event id")))?;
        self.request(Method::GET, &format!("v1/events/received/{id}{rest}"))
    }

    /// The job's output, as a stream.
    pub(crate) async fn output(&self, id: &str) -> Result<Response, Failure> {
        self.stream(self.job_request(Method::GET, id, "/output")?).await
    }

    /// Reads an answer that may be long.
    async fn stream(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let request = request.timeout(DOWNLOAD_TIMEOUT);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        Err(refusal(status, &response.text().await.unwrap_or_default()))
    }

    /// Submits a job under an idempotency key, so that a lost answer can be asked for again, and waits for its end.
    pub(crate) async fn submit(&self, body: &Value, key: &str, wait: Option<u64>) -> Result<Value, Failure> {
        let mut request = self.request(Method::POST, "v1/jobs")?.header("idempotency-key", key).json(body);
        if let Some(seconds) = wait.filter(|seconds| *seconds > 0) {
            let seconds = seconds.min(MAX_WAIT);
            request =
                request.query(&[("wait", seconds)]).timeout(ANSWER_TIMEOUT + Duration::from_secs(seconds));
        }
        self.ask(request).await
    }

    /// Has an operation carried out at once. Never sent twice: a lost answer may be that of an effect.
    pub(crate) async fn call(&self, body: &Value, within: Duration) -> Result<Called, Failure> {
        let request = self.request(Method::POST, "v1/calls")?.timeout(ANSWER_TIMEOUT + within).json(body);
        let answer = self.once(request).await?;
        if answer.status.is_success() {
            return answer.json().map(Called::Done);
        }
        let problem: Value = serde_json::from_str(&answer.text).unwrap_or_default();
        let text = |key: &str| problem.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (code, message, effect) = (text("code"), text("detail"), text("effect"));
        if code.parse::<Code>().is_ok() && !effect.is_empty() {
            return Ok(Called::Failed { code, message, effect });
        }
        Err(refusal(answer.status, &answer.text))
    }

    /// A blob's content, as a stream.
    pub(crate) async fn blob(&self, id: &str) -> Result<Response, Failure> {
        let id: uuid::Uuid = id.parse().map_err(|_| Failure::hub(format!("{id:?} is no blob id")))?;
        self.stream(self.request(Method::GET, &format!("v1/blobs/{id}"))?).await
    }

    /// Sends a request that may be repeated: again after a lost answer, a fault of a gateway or a full hub.
    async fn ask(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let mut pause = Duration::from_millis(250);
        for _ in 1..TRIES {
            let Some(copy) = request.try_clone() else { break };
            match receive(copy).await {
                Ok(answer) if !worth_another(answer.status) => return answer.json(),
                // Nobody there at all: say so at once.
                Err(error) if error.is_connect() || error.is_builder() => {
                    return Err(self.unreachable(&error));
                }
                Ok(_) | Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.once(request).await?.json()
    }

    async fn once(&self, request: RequestBuilder) -> Result<Answer, Failure> {
        receive(request).await.map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut causes = Vec::new();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        causes.dedup();
        let what = if error.is_timeout() && !error.is_connect() {
            "did not answer in time"
        } else {
            "cannot be reached"
        };
        let causes = causes.join(": ");
        Failure::hub(
            format!("the hub at {} {what}: {causes}", self.base).trim_end_matches([':', ' ']).to_owned(),
        )
    }
}

fn worth_another(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(v4)) => v4.is_loopback(),
        Some(Host::Ipv6(v6)) => v6.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// A whole answer.
struct Answer {
    status: StatusCode,
    text: String,
}

async fn receive(request: RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    Ok(Answer { status: response.status(), text: response.text().await? })
}

impl Answer {
    /// The JSON of a success; a refusal becomes the words of its problem document.
    fn json(self) -> Result<Value, Failure> {
        if !self.status.is_success() {
            return Err(refusal(self.status, &self.text));
        }
        serde_json::from_str(&self.text)
            .map_err(|_| Failure::hub("the answer is not JSON; is the address that of a hub?"))
    }
}

fn refusal(status: StatusCode, text: &str) -> Failure {
    let said = match serde_json::from_str::<Problem>(text) {
        Ok(Problem { code, detail: Some(detail), .. }) => format!("{code}: {detail}"),
        Ok(Problem { code, title, .. }) => format!("{code}: {title}"),
        Err(_) => {
            format!("the hub answered {status} without a problem document; is the address that of a hub?")
        }
    };
    Failure::hub(render::clean(&said))
}

#[cfg(test)]
mod tests {
    use super::{Client, refusal};
    use reqwest::StatusCode;

    #[test]
    fn problem_documents_are_told_as_code_and_detail() {
        let problem = r#"{"type":"about:blank","title":"Not Found","status":404,"code":"site_unknown","detail":"no site x"}"#;
        assert_eq!(refusal(StatusCode::NOT_FOUND, problem).message, "site_unknown: no site x");
        let bare = r#"{"title":"Not Found","status":404,"code":"not_found"}"#;
        assert_eq!(refusal(StatusCode::NOT_FOUND, bare).message, "not_found: Not Found");
        assert!(refusal(StatusCode::BAD_GATEWAY, "<html>").message.contains("502"));
    }

    #[test]
    fn addresses_and_keys_that_cannot_be_are_usage_failures() {
        for (url, key) in [
            ("hub", "k"),
            ("ftp://hub", "k"),
            ("", "k"),
            ("http://h", ""),
            ("http://h", "a b"),
            ("http://h", "é"),
        ] {
            assert_eq!(
                Client::at(url, key, None).err().map(|failure| failure.code),
                Some(crate::USAGE),
                "{url}"
            );
        }
        let below =
            Client::at("http://127.0.0.1:1/hub", "k\n", None).unwrap_or_else(|f| panic!("{}", f.message));
        assert_eq!(below.base.join("v1/jobs").unwrap().path(), "/hub/v1/jobs");
        assert_eq!(below.key, "k");
    }
}
