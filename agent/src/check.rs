//! `passerelle-agent check`: every link from here to the hub and to the resources, with cause and fix.

use crate::{
    clock, enrol,
    exit::Stop,
    hub::{CONNECT_TIMEOUT, Hub, body, dial::DialError, proxy::Proxy},
    identity::Identity,
    settings::Settings,
    state::{IN_USE, StateDir, free_bytes},
};
use reqwest::{Method, header};
use serde::Serialize;
use std::{net::SocketAddr, time::Duration};
use tokio::{net::lookup_host, time::timeout};

/// How long a probe of a resource may take.
const PROBE: Duration = Duration::from_secs(15);
/// Less free space than this is worth a word.
const LITTLE: u64 = 512 * 1024 * 1024;
/// The clock difference that is worth a word, in seconds.
const CLOCK: i64 = 30;

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do; absent if nothing.
    pub fix: Option<String>,
}

impl Line {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), ok: true, found: found.into(), fix: None }
    }

    fn bad(name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), ok: false, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Looks at everything. The configuration itself was read already: it is right.
pub async fn run(settings: &Settings) -> Vec<Line> {
    let mut lines = vec![Line::ok("configuration", format!("{} resources", settings.resources.len()))];
    lines.extend(settings.config.warnings.iter().map(|w| Line::ok("configuration", format!("warning: {w}"))));
    state(settings, &mut lines);
    match Hub::new(settings) {
        Ok(hub) => self::hub(&hub, &mut lines).await,
        Err(stop) => lines.push(Line::bad("hub", stop.to_string(), "mend the named setting")),
    }
    for resource in settings.resources.values() {
        let name = format!("resource {}", resource.name);
        lines.push(match resource.connector.probe(PROBE).await {
            Ok(()) => Line::ok(name, "reachable, credentials accepted"),
            Err(failure) => {
                let detail = failure.detail.as_deref().map_or(String::new(), |detail| format!(" ({detail})"));
                let code = crate::translate::code(failure.code);
                Line::bad(name, format!("{code}: {}{detail}", failure.message), resource_fix(code))
            }
        });
    }
    lines
}

fn state(settings: &Settings, lines: &mut Vec<Line>) {
    let path = settings.state_dir();
    let identity = match StateDir::open(&path) {
        Ok(state) => {
            lines.push(Line::ok("state folder", format!("{} can be written", path.display())));
            Identity::load(&state)
        }
        Err(Stop::Configuration(message)) if message.starts_with(IN_USE) => {
            lines
                .push(Line::ok("state folder", format!("{} is in use by the running agent", path.display())));
            return disk(&path, lines);
        }
        Err(stop) => {
            lines.push(Line::bad(
                "state folder",
                stop.to_string(),
                "run the named command, then `check` again",
            ));
            return;
        }
    };
    disk(&path, lines);
    lines.push(match identity {
        Ok(Some(identity)) => {
            let enrolled = identity.enrolled;
            Line::ok(
                "identity",
                format!("agent {} of site {} ({})", enrolled.agent, enrolled.site, enrolled.tenant),
            )
        }
        Ok(None) if settings.config.hub.enrolment_token.is_some() => {
            Line::ok("identity", "not enrolled yet; `run` or `enrol` does it with the configured token")
        }
        Ok(None) => {
            Line::bad("identity", "not enrolled and no hub.enrolment_token", enrol::how_to_get_a_token())
        }
        Err(stop) => Line::bad("identity", stop.to_string(), "see the message"),
    });
}

fn disk(path: &std::path::Path, lines: &mut Vec<Line>) {
    let mib = |bytes: u64| bytes / (1024 * 1024);
    lines.push(match free_bytes(path) {
        Ok(free) if free < LITTLE => Line::bad(
            "disk",
            format!("{} MiB free for {}", mib(free), path.display()),
            "free some space: large payloads pass through it",
        ),
        Ok(free) => Line::ok("disk", format!("{} MiB free", mib(free))),
        Err(e) => Line::bad("disk", e.to_string(), "see the message"),
    });
}

async fn hub(hub: &Hub, lines: &mut Vec<Line>) {
    let address = hub.proxy.as_ref().map_or_else(|| hub.address(), Proxy::address);
    let what = if hub.proxy.is_some() { "proxy" } else { "hub" };
    let name = format!("name of the {what}");
    match timeout(CONNECT_TIMEOUT, lookup_host(&address)).await {
        Ok(Ok(found)) => {
            let found: Vec<String> = found.map(|a: SocketAddr| a.ip().to_string()).collect();
            lines.push(Line::ok(name, format!("{address} is {}", found.join(", "))));
        }
        Ok(Err(e)) => {
            let fix = "check the name in the configuration, and the DNS servers of this machine or container";
            return lines.push(Line::bad(name, format!("{address}: {e}"), fix));
        }
        Err(_) => {
            let fix = "check the DNS servers of this machine or container";
            return lines.push(Line::bad(name, format!("{address}: no answer within 10 s"), fix));
        }
    }
    match hub.dial().await {
        Ok(_) => {
            let through = hub.proxy.as_ref().map_or(String::new(), |p| format!(" through the proxy {p:?}"));
            lines.push(Line::ok(
                "connection to the hub",
                format!("TCP and TLS to {}{through}", hub.address()),
            ));
        }
        Err(error) => {
            let fix = match &error {
                DialError::Tcp { .. } => {
                    "check host and port, and that a firewall lets this machine out to it"
                }
                DialError::Proxy { .. } => "check hub.proxy or HTTPS_PROXY, its credentials and its rules",
                DialError::Tls { .. } => {
                    "set hub.ca_file to the CA that issued the certificate, or mend the hub's"
                }
            };
            return lines.push(Line::bad("connection to the hub", error.to_string(), fix));
        }
    }
    let response = match hub.request(Method::GET, "/healthz").send().await {
        Ok(response) => response,
        Err(e) => {
            let fix = "see the cause; a proxy may interfere";
            return lines.push(Line::bad("hub", hub.explain(&e), fix));
        }
    };
    let (status, headers) = (response.status(), response.headers().clone());
    // An agent's call without a token: a hub answers with its own kind of problem document.
    let asked = hub.request(Method::GET, passerelle_protocol::http::TUNNEL_PATH).send().await;
    let is_hub = match asked {
        Ok(answer) => {
            let (status, headers) = (answer.status(), answer.headers().clone());
            body(answer).await.is_ok_and(|b| crate::hub::Refused::read(status, &headers, &b).is_some())
        }
        Err(_) => false,
    };
    lines.push(if is_hub && status.is_success() {
        Line::ok("hub", format!("{} is a Passerelle hub and healthy", hub.url))
    } else if is_hub {
        Line::bad("hub", format!("the hub is not healthy (status {status})"), "tell whoever runs the hub")
    } else {
        let fix = "check hub.url, and whether a proxy or login page answers in its place";
        Line::bad("hub", format!("{} does not answer as a Passerelle hub (status {status})", hub.url), fix)
    });
    let date = headers.get(header::DATE).and_then(|v| v.to_str().ok());
    if let Some(server_time) = date.and_then(|d| jiff::fmt::rfc2822::parse(d).ok()) {
        lines.push(match clock::difference(server_time.timestamp(), CLOCK) {
            None => Line::ok("clock", "as the hub's"),
            Some(difference) => Line::bad("clock", difference, "run an NTP client on this machine's host"),
        });
    }
}

fn resource_fix(code: passerelle_protocol::Code) -> &'static str {
    use passerelle_protocol::Code;
    match code {
        Code::TargetUnreachable => {
            "check host, port, host key and certificate, and that a firewall lets this machine reach it"
        }
        Code::TargetAuth => "check user name and password or key, and that the account is not locked",
        Code::TargetNotFound => "check the path in the resource's url",
        Code::TargetTimeout => "check whether the system is overloaded or a firewall drops packets",
        _ => "see the cause",
    }
}
