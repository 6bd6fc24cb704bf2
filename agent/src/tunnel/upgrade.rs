//! Opens the WebSocket: token, subprotocol, and what a refusal before the upgrade means.

use super::Ended;
use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    hub::{CONNECT_TIMEOUT, Refused, body, dial::Connection, retry_after},
    state::Refusal,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use passerelle_protocol::{ApiCode, SUBPROTOCOL, http::TUNNEL_PATH, limits::MAX_FRAME};
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error, client::IntoClientRequest as _, handshake::client::Request, protocol::WebSocketConfig,
    },
};

/// What helps where the identity is of no use any more.
pub const RE_ENROL: &str = " (if this agent should go on: make a new enrolment token at the hub, and run \
    `passerelle-agent re-enrol` with it)";

/// The WebSocket to the hub.
pub type Socket = WebSocketStream<Box<dyn Connection>>;

/// Dials and upgrades.
pub async fn open(agent: &Agent) -> Result<Socket, Ended> {
    let failed = |why: String| Ended::Failed { why, hint: None };
    let stream = agent.hub.dial().await.map_err(|e| match e.is_lost() {
        true => Ended::Lost { why: e.to_string() },
        false => failed(e.to_string()),
    })?;
    let request = request(agent).map_err(failed)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(32 * 1024)
        .write_buffer_size(128 * 1024)
        // Our own queue is bounded; this is what one flush may still hold when the peer does not read.
        .max_write_buffer_size(4 * MAX_FRAME)
        .max_message_size(Some(MAX_FRAME + 1024))
        .max_frame_size(Some(MAX_FRAME + 1024));
    match timeout(CONNECT_TIMEOUT, client_async_with_config(request, stream, Some(config))).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(Error::Http(response))) => {
            let (parts, tail) = response.into_parts();
            Err(refused(agent, parts.status, &parts.headers, tail.unwrap_or_default()).await)
        }
        Ok(Err(e)) => Err(failed(format!("the upgrade to a tunnel failed: {}", agent.hub.explain(&e)))),
        Err(_) => Err(failed("the hub did not answer the upgrade to a tunnel within 10 s".to_owned())),
    }
}

fn request(agent: &Agent) -> Result<Request, String> {
    let mut url = agent.hub.at(TUNNEL_PATH);
    let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
    url.set_scheme(scheme).map_err(|()| format!("the hub's URL {url} cannot be dialled"))?;
    let mut request = url.as_str().into_client_request().map_err(|e| e.to_string())?;
    let bearer = agent.identity.bearer().map_err(|e| e.to_string())?;
    let mut bearer = HeaderValue::try_from(bearer).map_err(|e| e.to_string())?;
    bearer.set_sensitive(true);
    request.headers_mut().insert(header::AUTHORIZATION, bearer);
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    Ok(request)
}

async fn refused(agent: &Agent, status: StatusCode, headers: &HeaderMap, tail: Vec<u8>) -> Ended {
    let hint = retry_after(headers);
    let credentials = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let mut found = Refused::read(status, headers, &tail);
    if found.is_none() && credentials {
        // The WebSocket library keeps only what came with the headers: ask again for the whole document.
        found = ask_why(agent).await;
    }
    let Some(refused) = found else {
        return Ended::Failed {
            why: format!(
                "{} does not answer as a Passerelle hub (HTTP status {status}): check hub.url, and whether a proxy or \
                 login page answers in its place",
                agent.hub.url
            ),
            hint,
        };
    };
    let row = Entry::new(Kind::RefusedByHub).hub_code(&refused.code);
    agent.journal.refused(row.detail(&refused.message));
    if credentials && !refused.clock {
        // A tier that changes back needs no new identity.
        let hint = if refused.code == ApiCode::TierRequired.as_str() { "" } else { RE_ENROL };
        let message = format!("{}{hint}", refused.message);
        let subject = agent.identity.enrolled.agent.to_string();
        return Ended::Refused(Refusal::now(refused.code, message, subject));
    }
    Ended::Failed {
        why: format!("the hub refuses the connection: {refused}"),
        hint: refused.retry_after.or(hint),
    }
}

async fn ask_why(agent: &Agent) -> Option<Refused> {
    let request = agent.hub.authorised(&agent.identity, reqwest::Method::GET, TUNNEL_PATH).ok()?;
    let response = request.send().await.ok()?;
    let (status, headers) = (response.status(), response.headers().clone());
    Refused::read(status, &headers, &body(response).await.ok()?)
}
