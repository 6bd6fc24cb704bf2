//! The listeners in plain words: who may post what, and that the cloud gets it.

use super::{at, size};
use passerelle_config::{ListenerAuth, ListenerConfig};
use serde::Serialize;
use std::{
    fmt::{self, Display},
    path::Path,
};

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListenerView {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub at: String,
    /// What it does, in a sentence.
    pub does: String,
}

/// A listener, for its owner's eyes: never a secret.
pub(super) fn view(listener: &ListenerConfig, base: &Path) -> ListenerView {
    let who = match &listener.auth {
        ListenerAuth::Token(_) => "the token".to_owned(),
        ListenerAuth::Basic { username, .. } => format!("the password of {username}"),
        ListenerAuth::Hmac(secrets) => format!("a signature by one of {} secrets", secrets.len()),
    };
    let scheme = if listener.tls.is_some() { "https" } else { "http" };
    let only = |what: &str, list: &[String]| match list {
        [] => String::new(),
        list => format!(", {what} {}", list.join(", ")),
    };
    let does = format!(
        "what is posted to {scheme}://{}{} with {who} is sent to the cloud: up to {} each, {} a minute{}{}",
        listener.listen,
        listener.path,
        size(listener.max_size.0),
        listener.rate_per_minute,
        only("of the content types", &listener.content_types),
        only("of the kinds", &listener.event_kinds)
    );
    ListenerView { name: listener.name.clone(), at: at(&listener.at, base), does }
}

impl Display for ListenerView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Listener {} ({}): {}.", self.name, self.at, self.does)
    }
}
