//! The local control socket: how commands of this machine change the running agent (`control.sock` in the state folder).
//!
//! One request and one answer per connection, each a JSON object on one line. The kernel says who asks: only the agent's own
//! user and root are answered, whatever the rights of the file. Everything is bounded: bytes, time, connections at once.
//! The local port (`local`) shows; this one changes. It is never reachable over a network.

pub mod client;
mod place;

use crate::{
    clock,
    local::Local,
    pause::{Paused, Pauses},
    settings::Settings,
};
use jiff::Timestamp;
use passerelle_protocol::Name;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{io, path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The longest request and answer.
const MAX_LINE: u64 = 64 * 1024;
/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many may be asked at once.
const AT_ONCE: usize = 8;

/// What a command wants of the running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Pause a resource.
    Pause {
        /// Which.
        resource: Name,
        /// Until when.
        until: Option<Timestamp>,
        /// Why.
        reason: Option<String>,
        /// Who, if not the user that asks.
        by: Option<String>,
    },
    /// End the pause of a resource.
    Resume {
        /// Which.
        resource: Name,
    },
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It is done, and on disk.
    Done(Value),
    /// It is not; why and what to do.
    Refused(String),
}

/// Listens in the state folder, or says why it cannot: an agent works without it too.
pub fn bind(state: &Path) -> Option<UnixListener> {
    match place::bind(state) {
        Ok(listener) => Some(listener),
        Err(error) => {
            warn!(
                %error,
                "The control socket cannot be made in the state folder: `pause` and `resume` work only while this agent is \
                 stopped"
            );
            None
        }
    }
}

/// Answers until `stop` fires.
pub async fn serve(listener: UnixListener, local: Arc<Local>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let local = Arc::clone(&local);
                tokio::spawn(async move {
                    let _place = place;
                    if timeout(PATIENCE, answer(stream, &local)).await.is_err() {
                        warn!("A command at the control socket took too long");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "The control socket has failed; going on");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, local: &Arc<Local>) {
    let response = match stream.peer_cred() {
        Ok(peer) if may_ask(peer.uid()) => match read(&mut stream).await {
            Ok(request) => obey(request, peer.uid(), local).await,
            Err(error) => Response::Refused(format!("not a request: {error}")),
        },
        Ok(peer) => {
            warn!(uid = peer.uid(), "A user who is not the agent's was refused at the control socket");
            let own = geteuid().as_raw();
            Response::Refused(format!("uid {} may not ask: run this as uid {own} or as root", peer.uid()))
        }
        Err(error) => Response::Refused(format!("the kernel does not say who asks: {error}")),
    };
    // Whoever does not wait for the answer does not get one.
    drop(write(&mut stream, &response).await);
}

fn may_ask(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

async fn read<T: for<'de> Deserialize<'de>>(stream: &mut UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut line).await?;
    if line.pop() != Some(b'\n') {
        let message = format!("expected one line of at most {MAX_LINE} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(serde_json::from_slice(&line)?)
}

async fn write<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}

async fn obey(request: Request, uid: u32, local: &Arc<Local>) -> Response {
    let settings = local.settings();
    let pauses = Arc::clone(&local.pauses);
    let done = tokio::task::spawn_blocking(move || carry_out(request, uid, &pauses, &settings)).await;
    match done {
        Ok(Ok(value)) => Response::Done(value),
        Ok(Err(refused)) => Response::Refused(refused),
        Err(error) => Response::Refused(format!("the agent failed at it: {error}; please report it")),
    }
}

fn carry_out(request: Request, uid: u32, pauses: &Pauses, settings: &Settings) -> Result<Value, String> {
    match request {
        Request::Pause { resource, until, reason, by } => {
            let known = || settings.resources.keys().map(Name::as_str);
            if !settings.resources.contains_key(&resource) {
                return Err(unknown_resource(&resource, known()));
            }
            let by = by.unwrap_or_else(|| who(uid));
            pause(pauses, resource, until, reason, by)
        }
        Request::Resume { resource } => resume(pauses, &resource),
    }
}

/// Pauses a resource; what the command prints.
///
/// # Errors
/// What is wrong with it.
pub fn pause(
    pauses: &Pauses,
    resource: Name,
    until: Option<Timestamp>,
    reason: Option<String>,
    by: String,
) -> Result<Value, String> {
    let paused = Paused { since: clock::now(), until, reason, by };
    paused.check()?;
    let shown = json!({ "resource": resource, "paused": paused });
    info!("{}", paused.sentence(&resource));
    pauses.pause(resource, paused).map_err(|e| format!("the pause cannot be written: {e}"))?;
    Ok(shown)
}

/// Resumes a resource; what the command prints.
///
/// # Errors
/// If it cannot be written.
pub fn resume(pauses: &Pauses, resource: &Name) -> Result<Value, String> {
    resumed(resource, pauses.resume(resource))
}

/// What `resume` prints of a pause that was ended, if there was one.
///
/// # Errors
/// If it could not be written.
pub fn resumed(resource: &Name, was: io::Result<Option<Paused>>) -> Result<Value, String> {
    let was = was.map_err(|e| format!("the resumption cannot be written: {e}"))?;
    if was.is_some() {
        info!(%resource, "Resumed by its operator");
    }
    Ok(json!({ "resource": resource, "paused": null, "was": was }))
}

/// Says that there is no such resource, and which there are.
pub fn unknown_resource<'a>(resource: &Name, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<_> = known.collect();
    match known.as_slice() {
        [] => format!("no resource {resource} is configured; there is none"),
        known => format!("no resource {resource} is configured; there are {}", known.join(", ")),
    }
}

/// The longest list of users that is read.
const MAX_PASSWD: u64 = 1024 * 1024;

/// The name of a user, or the number if it has none here (as in most containers).
pub fn who(uid: u32) -> String {
    let mut text = String::new();
    let read = std::fs::File::open("/etc/passwd")
        .and_then(|file| io::Read::read_to_string(&mut io::Read::take(file, MAX_PASSWD), &mut text));
    let name = read.ok().and_then(|_| {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
            (id.parse() == Ok(uid) && !name.is_empty()).then(|| name.to_owned())
        })
    });
    name.unwrap_or_else(|| format!("uid {uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_strictly() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        let paused =
            read(r#"{"command":"pause","resource":"compta","until":"2026-11-21T18:00:00Z"}"#).unwrap();
        assert!(matches!(paused, Request::Pause { until: Some(_), reason: None, .. }));
        for bad in [
            r#"{"command":"run","resource":"compta"}"#,
            r#"{"command":"resume","resource":"../x"}"#,
            r#"{"command":"resume","resource":"compta","force":true}"#,
            r#"{"command":"pause"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_are_named_or_numbered() {
        assert_eq!(who(0), "root");
        assert_eq!(who(4_000_000_000), "uid 4000000000");
        assert!(may_ask(0) && may_ask(geteuid().as_raw()) && !may_ask(4_000_000_000));
    }
}
