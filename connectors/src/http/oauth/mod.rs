//! Access tokens by OAuth 2.0 (RFC 6749): client credentials (§4.4) and, for products that know nothing better, the
//! password grant (§4.3).
//!
//! A resource has one token at a time, renewed a while before it ends. Whoever needs a new one while it is being fetched
//! waits for that fetch, and shares its failure. A token server that refuses the client is left alone for a while: wrong
//! credentials asked for again and again lock accounts.

mod server;
mod state;

use crate::{Failure, address, apart::Client, hiding::Secrets};
use http::HeaderValue;
use passerelle_config::{Secret, SecretRef};
use state::State;
use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use url::Url;

/// The keys of an `auth` table of this kind, as they stand in the configuration.
#[derive(Debug, Default)]
pub(crate) struct RawOauth {
    pub(crate) token_url: Option<String>,
    pub(crate) client_id: Option<String>,
    pub(crate) client_secret: Option<SecretRef>,
    pub(crate) scope: Option<String>,
    pub(crate) audience: Option<String>,
    /// `basic` (default) or `body`: how the client shows who it is (RFC 6749 §2.3.1).
    pub(crate) style: Option<String>,
    /// With a password: the password grant. Leave it out for client credentials.
    pub(crate) username: Option<String>,
    pub(crate) password: Option<SecretRef>,
}

/// How the client shows who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Basic,
    Body,
}

/// Checked settings.
#[derive(Debug)]
pub(crate) struct OauthSettings {
    token_url: Url,
    client_id: String,
    client_secret: SecretRef,
    scope: Option<String>,
    audience: Option<String>,
    style: Style,
    user: Option<(String, SecretRef)>,
}

impl RawOauth {
    /// Checks the keys; `wrong` hears of each mistake with the key it is about (`token_url`). That the URL, the client's
    /// id and its secret are there is for the caller to say: without them there are no settings.
    pub(crate) fn check(self, wrong: &mut dyn FnMut(&str, String)) -> Option<OauthSettings> {
        let mut sound = true;
        let mut wrong = |key: &str, message: String| {
            sound = false;
            wrong(key, message);
        };
        let token_url = self.token_url.as_deref().and_then(|text| {
            let url = address::host_url(text).map_err(|message| wrong("token_url", message)).ok()?;
            if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
                wrong("token_url", "must contain neither credentials nor a fragment".to_owned());
            }
            Some(url)
        });
        if self.client_id.as_deref().is_some_and(|id| id.is_empty() || id.chars().any(char::is_control)) {
            wrong("client_id", "must be neither empty nor contain control characters".to_owned());
        }
        let style = match self.style.as_deref() {
            None | Some("basic") => Style::Basic,
            Some("body") => Style::Body,
            Some(other) => {
                wrong("style", format!("unknown style {other:?}; expected basic or body"));
                Style::Basic
            }
        };
        let user = match (self.username, self.password) {
            (Some(username), Some(password)) => Some((username, password)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                wrong("username", "goes together with password".to_owned());
                None
            }
        };
        let (token_url, client_id, client_secret) = (token_url?, self.client_id?, self.client_secret?);
        let Self { scope, audience, .. } = self;
        sound.then_some(OauthSettings { token_url, client_id, client_secret, scope, audience, style, user })
    }
}

impl OauthSettings {
    /// Whether the token server is reached by TLS.
    pub(crate) fn speaks_tls(&self) -> bool {
        self.token_url.scheme() == "https"
    }

    /// Adds what the token server is shown, and no failure may repeat.
    ///
    /// # Errors
    /// The key that is to blame, and why.
    pub(crate) fn secrets(&self, base: &Path, secrets: &mut Secrets) -> Result<(), (&'static str, String)> {
        let read = |key, secret: &SecretRef| secret.read(base).map_err(|e| (key, e.to_string()));
        secrets.add_basic(&self.client_id, read("client_secret", &self.client_secret)?.expose());
        if let Some((_, password)) = &self.user {
            secrets.add(read("password", password)?.expose());
        }
        Ok(())
    }
}

/// A token as it goes into the `Authorization` header.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    /// `Bearer …`, marked sensitive.
    pub(crate) header: HeaderValue,
    /// Counts the fetches of this resource.
    number: u64,
}

/// The token of one resource.
#[derive(Clone)]
pub(crate) struct Tokens(Arc<Inner>);

struct Inner {
    client: Client,
    ask: Ask,
    state: Mutex<State>,
    /// Held by the one who fetches.
    turn: tokio::sync::Mutex<()>,
}

/// What is asked of the token server each time.
struct Ask {
    url: Url,
    style: Style,
    client_id: String,
    client_secret: Secret,
    /// All but the client's own fields.
    form: Vec<(&'static str, String)>,
    user: Option<(String, Secret)>,
}

impl Tokens {
    /// Reads the secrets. `client` brings proxy, trust and timeouts; it has to speak HTTP/1.1 or negotiate.
    ///
    /// # Errors
    /// The key that is to blame (`client_secret`), and why.
    pub(crate) fn build(
        settings: &OauthSettings,
        client: Client,
        base: &Path,
    ) -> Result<Self, (&'static str, String)> {
        let read = |key, secret: &SecretRef| secret.read(base).map_err(|e| (key, e.to_string()));
        let grant = if settings.user.is_some() { "password" } else { "client_credentials" };
        let mut form = vec![("grant_type", grant.to_owned())];
        form.extend(settings.scope.clone().map(|scope| ("scope", scope)));
        form.extend(settings.audience.clone().map(|audience| ("audience", audience)));
        let user = match &settings.user {
            Some((username, password)) => Some((username.clone(), read("password", password)?)),
            None => None,
        };
        let ask = Ask {
            url: settings.token_url.clone(),
            style: settings.style,
            client_id: settings.client_id.clone(),
            client_secret: read("client_secret", &settings.client_secret)?,
            form,
            user,
        };
        let (state, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Self(Arc::new(Inner { client, ask, state, turn })))
    }

    /// A token that is good for a request now.
    ///
    /// # Errors
    /// `target_auth` (permanent) if the token server refuses the client; else why there is none now. Nothing was asked of
    /// the application.
    ///
    /// # Cancel safety
    /// Cancel safe: a fetch that has begun goes on for whoever else waits for it.
    pub(crate) async fn current(&self) -> Result<Token, Failure> {
        let (usable, seen) = {
            let state = self.0.state();
            (state.usable(Instant::now()), state.fetches())
        };
        match usable {
            Some(token) => Ok(token),
            None => self.fetched_after(seen).await,
        }
    }

    /// Another token in the place of one that the application has just refused with 401; `None` if a new one was refused
    /// as well a moment ago, so that it is not the token's age.
    ///
    /// # Errors
    /// As [`Self::current`].
    ///
    /// # Cancel safety
    /// As [`Self::current`].
    pub(crate) async fn instead_of(&self, refused: &Token) -> Result<Option<Token>, Failure> {
        let seen = {
            let mut state = self.0.state();
            if let Some(newer) = state.newer_than(refused, Instant::now()) {
                return Ok(Some(newer));
            }
            if state.is_barren(refused, Instant::now()) {
                return Ok(None);
            }
            state.drop_token(refused);
            state.fetches()
        };
        self.fetched_after(seen).await.map(Some)
    }

    /// The application refused this one too, though it had just been fetched.
    pub(crate) fn refused_again(&self, token: &Token) {
        self.0.state().set_barren(token, Instant::now());
    }

    /// The outcome of a fetch that ended after the first `seen` ones: that of another caller, or of our own.
    async fn fetched_after(&self, seen: u64) -> Result<Token, Failure> {
        let inner = Arc::clone(&self.0);
        // A task of its own: the caller may be cancelled, the others still wait for what it began.
        let fetch = tokio::spawn(async move {
            let _turn = inner.turn.lock().await;
            if let Some(outcome) = inner.state().outcome_after(seen, Instant::now()) {
                return outcome;
            }
            let fetched = server::fetch(&inner.client, &inner.ask).await;
            inner.state().settle(fetched, Instant::now())
        });
        fetch.await.unwrap_or_else(|e| {
            let message = "the fetching of an access token ended early; see the agent's log";
            Err(Failure::retry(crate::Code::Internal, message).detail(e))
        })
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token as the server gave it.
struct Fetched {
    header: HeaderValue,
    /// How long it is good for, if the server said so.
    lifetime: Option<Duration>,
}
