//! `re-enrol`: a new identity in the place of one that is lost or revoked. The journal stays, so that the hub hears what
//! became of the jobs of the old one.
//!
//! Nothing of the old identity is touched before the hub has answered. The new key waits in a file of its own, so that the
//! command can be run again with the same token after an answer was lost.

use crate::{
    clock,
    enrol::{EnrolError, Request, ask, how_to_get_a_token, token},
    exit::Stop,
    hub::Hub,
    identity::{Enrolled, Identity, PENDING_FILE, key_file, load_or_make, store_key},
    settings::Settings,
    state::{Refusal, StateDir, unwritable},
};
use passerelle_protocol::{AgentId, AgentKey, http::EnrolResponse};
use std::{fs, path::Path};

/// How the files of the journal begin.
const JOURNAL: &str = "journal.db";

/// What was done.
pub struct Done {
    /// The new identity.
    pub identity: Identity,
    /// The agent that was there before.
    pub before: Option<AgentId>,
    /// Whether the hub knows that the new one stands in its place.
    pub replaced: bool,
    /// The journal of another site was put aside.
    pub set_aside: bool,
}

/// Enrols anew.
///
/// # Errors
/// With the exit code of [`Stop`].
pub async fn re_enrol(
    settings: &Settings,
    state: &StateDir,
    token_file: Option<&Path>,
) -> Result<Done, Stop> {
    let token = match token_file {
        Some(file) => read_token(file)?,
        None => token(settings)?,
    };
    let before = Identity::load(state).unwrap_or_else(|damaged| {
        tracing::warn!(error = %damaged, "The old identity cannot be used: the hub will not know that it is replaced");
        None
    });
    let (key, _) = load_or_make(state, PENDING_FILE)?;
    let replaces = before.as_ref().map(|old| {
        let Enrolled { agent, audience, .. } = &old.enrolled;
        let said = AgentKey::new(*agent, audience.clone(), key.public().clone(), clock::unix_seconds());
        said.sign(&old.key()).map_err(|e| Stop::Bug(e.to_string()))
    });
    let hub = Hub::new(settings)?;
    let request = Request { token, key: &key, replaces: replaces.transpose()? };
    let answer = ask(settings, &hub, request).await.map_err(|error| match error {
        EnrolError::Later { message, .. } => Stop::Failed(message),
        EnrolError::Stop(stop) => stop,
    })?;
    let replaced = answer.replaced.is_some();
    let set_aside = before.as_ref().is_some_and(|old| elsewhere(&old.enrolled, &answer));
    if set_aside {
        put_journal_aside(state).map_err(|e| Stop::Configuration(unwritable(state.path(), &e)))?;
    }
    let file = key_file(&key);
    let unreadable = |e: std::io::Error| Stop::Configuration(unwritable(state.path(), &e));
    let document = state.read(PENDING_FILE).map_err(unreadable)?.unwrap_or_default();
    store_key(state, &file, &document)?;
    let identity = Identity::create(state, answer, hub.url.to_string(), (key, file))?;
    state.remove(PENDING_FILE).map_err(unreadable)?;
    Refusal::forget(state);
    Ok(Done { identity, before: before.map(|old| old.enrolled.agent), replaced, set_aside })
}

fn read_token(file: &Path) -> Result<String, Stop> {
    let told = |why: &dyn std::fmt::Display| {
        Stop::Configuration(format!("--token-file {}: {why}: {}", file.display(), how_to_get_a_token()))
    };
    let text = fs::read_to_string(file).map_err(|e| told(&e))?;
    let token = text.trim();
    if token.is_empty() { Err(told(&"it is empty")) } else { Ok(token.to_owned()) }
}

/// Whether the new identity is of another place: then what the journal holds is not for its hub to read.
fn elsewhere(old: &Enrolled, new: &EnrolResponse) -> bool {
    (&old.tenant, &old.site, &old.audience) != (&new.tenant, &new.site, &new.audience)
}

fn put_journal_aside(state: &StateDir) -> std::io::Result<()> {
    let stamp = clock::now().as_millisecond();
    for entry in fs::read_dir(state.path())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == JOURNAL || name.starts_with("journal.db-") {
            fs::rename(state.path().join(&name), state.path().join(format!("before-{stamp}.{name}")))?;
        }
    }
    Ok(())
}
