//! Fetches the files that clients of the vendor's API named, and starts their runs. Read from the store alone, so that a hub
//! that was killed goes on where it was; a file that was fetched and not noted is fetched again.

use crate::{
    api::App,
    clock,
    mediations::InputFlow,
    outbound::{self, Refusal},
    store::{self, standard::StandardRequest},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, StatusCode, header};
use std::{collections::HashSet, io, time::Duration};
use tokio::task::JoinSet;
use uuid::Uuid;

/// How many files are fetched at once.
const AT_ONCE: usize = 4;
/// How often a file is asked for.
const ATTEMPTS: u32 = 6;
/// The wait after the first failure; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The answer has to begin by then.
const ANSWER: Duration = Duration::from_secs(30);
/// No more than this without a byte of it.
const STALLED: Duration = Duration::from_secs(30);
/// The whole of it.
const WHOLE: Duration = Duration::from_secs(3600);
/// The task looks by itself after this long, and waits so long when the store fails.
const LOOK: Duration = Duration::from_secs(1);
/// The longest label that a file gets from its URL.
const MAX_LABEL: usize = 200;

/// Fetches until the hub ends.
pub async fn run(app: App) {
    let stop = app.stop.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = forever(&app) => {}
    }
}

async fn forever(app: &App) {
    let mut running: JoinSet<Uuid> = JoinSet::new();
    let mut under_way = HashSet::new();
    loop {
        match app.store.due_standard_requests(AT_ONCE * 2).await {
            Ok((due, _)) => {
                for request in due {
                    if running.len() >= AT_ONCE || !under_way.insert(request.guid) {
                        continue;
                    }
                    let app = app.clone();
                    running.spawn(async move {
                        let guid = request.guid;
                        one(&app, request).await;
                        guid
                    });
                }
            }
            Err(error) => tracing::error!(%error, "Could not read which files are to be fetched"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            Some(done) = running.join_next() => match done {
                Ok(guid) => drop(under_way.remove(&guid)),
                Err(_) => {
                    tracing::error!("The fetch of a file ended by a fault");
                    running.abort_all();
                    while running.join_next().await.is_some() {}
                    under_way.clear();
                    tokio::time::sleep(LOOK).await;
                }
            },
        }
    }
}

/// Why a file was not fetched.
struct Failed {
    why: String,
    again: bool,
}

impl Failed {
    fn for_good(why: impl Into<String>) -> Self {
        Self { why: why.into(), again: false }
    }

    fn for_now(why: impl Into<String>) -> Self {
        Self { why: why.into(), again: true }
    }
}

async fn one(app: &App, request: StandardRequest) {
    let (guid, attempts) = (request.guid, request.attempts);
    let done = match fetch(app, &request).await {
        Ok(file) => match app.store.run_standard_request(request, file).await {
            Ok(()) => Ok(()),
            Err(store::Error::NotFound(_)) => Err(Failed::for_good("the mediation definition was deleted")),
            Err(error) => {
                tracing::error!(%error, "Could not start the run of a file that was fetched");
                Err(Failed::for_now("the hub could not start the run"))
            }
        },
        Err(failed) => Err(failed),
    };
    let Err(failed) = done else { return };
    let again = failed.again && attempts + 1 < ATTEMPTS;
    tracing::info!(request = %guid, attempts = attempts + 1, why = failed.why, again, "A file could not be fetched");
    let wait = FIRST_WAIT.saturating_mul(1 << attempts.min(10));
    let again_at = if again { clock::now().checked_add(wait).ok() } else { None };
    if let Err(error) = app.store.fail_standard_request(guid, failed.why, again_at).await {
        tracing::error!(%error, "Could not note that a file could not be fetched: it is tried again");
        tokio::time::sleep(LOOK).await;
    }
}

async fn fetch(app: &App, request: &StandardRequest) -> Result<InputFlow, Failed> {
    let url = outbound::read(&request.url).map_err(|refusal| Failed::for_good(refusal.to_string()))?;
    if !app.outbound.may_fetch(&url) {
        return Err(Failed::for_good("its URL is not among those that may be fetched any more"));
    }
    let asked = app.outbound.request(Method::GET, &url).await.map_err(|refusal| match refusal {
        Refusal::NotResolved => Failed::for_now("the name of the file's server does not resolve"),
        Refusal::Malformed(why) | Refusal::Forbidden(why) => Failed::for_good(why),
    })?;
    let unreachable = |error: reqwest::Error| {
        tracing::debug!(error = %error.without_url(), "A file's server was not reached");
        Failed::for_now("the file's server could not be reached")
    };
    let answer = match tokio::time::timeout(ANSWER, asked.send()).await {
        Err(_) => return Err(Failed::for_now("the file's server did not answer in time")),
        Ok(answer) => answer.map_err(unreachable)?,
    };
    judged(answer.status())?;
    let most = app.outbound.max_fetch().min(app.max_blob);
    let too_large = || Failed::for_good(format!("the file is larger than {most} bytes"));
    let announced = answer.content_length();
    if announced.is_some_and(|length| length > most) {
        return Err(too_large());
    }
    app.store.room_for(request.tenant.clone(), announced.unwrap_or(0)).await.map_err(no_room)?;
    let media_type = answer
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(store::received::clean_media_type);
    let mut size = 0_u64;
    let bounded = steady(answer).map(move |chunk| {
        let chunk = chunk?;
        size = size.saturating_add(chunk.len() as u64);
        if size > most { Err(io::Error::from(io::ErrorKind::FileTooLarge)) } else { Ok(chunk) }
    });
    let stored = app.blobs.put_stream(request.tenant.clone(), media_type.clone(), None, bounded);
    let blob = match tokio::time::timeout(WHOLE, stored).await {
        Err(_) => return Err(Failed::for_now("the file did not come to its end in time")),
        Ok(Ok(blob)) => blob,
        Ok(Err(store::Error::BadRequest(why))) if why.contains("too large") => return Err(too_large()),
        Ok(Err(store::Error::BadRequest(_))) => {
            return Err(Failed::for_now("the file broke off before its end"));
        }
        Ok(Err(error)) => return Err(no_room(error)),
    };
    Ok(InputFlow { label: label(&url, &request.flow), blob: blob.id, media_type })
}

fn no_room(error: store::Error) -> Failed {
    match error {
        store::Error::Quota(why) => Failed::for_good(why),
        error => {
            tracing::error!(%error, "Could not store a file that was fetched");
            Failed::for_now("the hub could not store the file")
        }
    }
}

fn judged(status: StatusCode) -> Result<(), Failed> {
    let said = format!("the file's server answered {}", status.as_u16());
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Err(Failed::for_now(said))
        }
        status if status.is_server_error() => Err(Failed::for_now(said)),
        status if status.is_redirection() => {
            Err(Failed::for_good(format!("{said}: redirections are not followed")))
        }
        _ => Err(Failed::for_good(said)),
    }
}

/// The body, as long as it moves.
fn steady(answer: reqwest::Response) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::unfold(Some(answer), |answer| async move {
        let mut answer = answer?;
        match tokio::time::timeout(STALLED, answer.chunk()).await {
            Err(_) => Some((Err(io::ErrorKind::TimedOut.into()), None)),
            Ok(Ok(Some(chunk))) => Some((Ok(chunk), Some(answer))),
            Ok(Ok(None)) => None,
            Ok(Err(error)) => Some((Err(io::Error::other(error.without_url())), None)),
        }
    })
}

/// The file's name in its URL, else the flow's.
fn label(url: &url::Url, flow: &str) -> String {
    let last = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
    let decoded = url::form_urlencoded::parse(last.replace('+', "%2B").as_bytes())
        .next()
        .map_or_else(String::new, |(name, _)| name.into_owned());
    let clean: String = decoded.chars().filter(|c| !c.is_control() && *c != '/').take(MAX_LABEL).collect();
    if clean.is_empty() { flow.chars().take(MAX_LABEL).collect() } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_as_in_its_url() {
        for (url, expected) in [
            ("https://example.com/exports/stock.csv", "stock.csv"),
            ("https://example.com/a%20b+c.csv?x=1", "a b+c.csv"),
            ("https://example.com/caf%C3%A9.csv", "caf\u{e9}.csv"),
            ("https://example.com/", "stock"),
        ] {
            assert_eq!(label(&url.parse().unwrap(), "stock"), expected, "{url}");
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for (status, again) in
            [(500, true), (503, true), (429, true), (408, true), (404, false), (302, false), (206, false)]
        {
            let failed = judged(StatusCode::from_u16(status).unwrap()).err().unwrap();
            assert_eq!(failed.again, again, "{status}");
        }
        assert!(judged(StatusCode::OK).is_ok());
    }
}
