//! `passerelle-agent check`: every link from here to the hub and to the resources, with cause and fix.
//!
//! - `here`: configuration, state folder, disk, identity; `hub`: the way to the hub; `resource`: each private system;
//!   `listener`: the addresses of listeners
//! - `table`: how it is printed; `bundle`: the archive for whoever helps
//!
//! It works while the agent runs and while it does not, and disturbs neither: the state folder of a running agent is
//! only read, no session is opened that would fence the running one, and no resource is asked for anything that could
//! have an effect but a file of our own where a drop would be allowed. Links that do not depend on each other are
//! looked at side by side, each within its time; what depends on a failed one is skipped and says so.

mod bundle;
mod command;
mod here;
mod hub;
mod listener;
mod machine;
mod resource;
mod table;

pub use command::{Args, command};
use table::render;

use crate::{exit::Stop, settings::Settings};
use futures_util::{StreamExt as _, stream};
use passerelle_protocol::Name;
use serde::Serialize;

/// Resources looked at at the same time.
const AT_ONCE: usize = 8;

/// How it stands with a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, but is worth a look.
    Warn,
    /// Does not work.
    Fail,
    /// Not looked at.
    Skipped,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What was looked at; `resource NAME: LINK` for a link to a resource.
    pub link: String,
    /// How it stands.
    pub status: State,
    /// What was found, or why it was skipped.
    pub detail: String,
    /// What to do; absent if nothing.
    pub fix: Option<String>,
}

impl Item {
    fn ok(link: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { link: link.into(), status: State::Ok, detail: detail.into(), fix: None }
    }

    fn warn(link: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { link: link.into(), status: State::Warn, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn fail(link: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { link: link.into(), status: State::Fail, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn skipped(link: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            link: link.into(),
            status: State::Skipped,
            detail: format!("skipped because {}", why.into()),
            fix: None,
        }
    }

    /// A message that says what to do behind its last semicolon, as all messages about the way to the hub do.
    fn fail_with_fix(link: impl Into<String>, message: &str) -> Self {
        let (detail, fix) = message.rsplit_once("; ").unwrap_or((message, "see the cause"));
        Self::fail(link, detail, fix)
    }
}

/// What to look at.
#[derive(Debug, Clone, Default)]
pub struct What {
    /// These resources and nothing else; empty: everything.
    pub resources: Vec<String>,
    /// Whether a file of our own may be written where a drop would be allowed.
    pub write: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether nothing failed.
    pub ok: bool,
    /// The links in their order.
    pub items: Vec<Item>,
}

/// Looks at everything, or at the named resources. The configuration itself was read already: it is right.
///
/// # Errors
/// If a named resource is not configured.
pub async fn run(settings: &Settings, what: &What) -> Result<Report, Stop> {
    let mut wanted: Vec<&Name> = settings.resources.keys().collect();
    if !what.resources.is_empty() {
        for name in &what.resources {
            if !settings.resources.keys().any(|known| known.as_str() == name) {
                let known: Vec<&str> = settings.resources.keys().map(Name::as_str).collect();
                return Err(Stop::Configuration(format!(
                    "there is no resource {name:?} in the configuration: there are {}",
                    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                )));
            }
        }
        wanted.retain(|name| what.resources.iter().any(|given| given == name.as_str()));
    }
    let resources = async {
        stream::iter(wanted)
            .map(|name| resource::check(settings, name, what.write))
            .buffered(AT_ONCE)
            .collect::<Vec<_>>()
            .await
    };
    let items = if what.resources.is_empty() {
        let (mut items, identity) = here::check(settings);
        items.extend(listener::check(settings).await);
        let (hub, resources) = tokio::join!(hub::check(settings, identity), resources);
        items.extend(hub);
        items.extend(resources.into_iter().flatten());
        items
    } else {
        resources.await.into_iter().flatten().collect()
    };
    Ok(Report { ok: items.iter().all(|item| item.status != State::Fail), items })
}
