//! Who is told what: applications, subscriptions, notices and their deliveries.

use jiff::Timestamp;
use passerelle_protocol::Name;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::str::FromStr;
use uuid::Uuid;

/// An application that uses the vendor's API, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppRecord {
    /// Its id: a UUID.
    pub id: String,
    /// Its tenant.
    pub tenant: Name,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $category:literal,)*) => {
        /// What a notice is about: the vendor's `EventKind`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum NoticeKind {
            $($(#[$doc])* $name,)*
        }

        impl NoticeKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The kind as it travels and is stored.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The vendor's `EventCategory`; `passerelle` for kinds that are ours.
            #[must_use]
            pub fn category(self) -> &'static str {
                match self { $(Self::$name => $category,)* }
            }
        }
    };
}

kinds! {
    /// A mediation run was created.
    MediationCreation = "e/rp",
    /// A mediation run has ended, whichever way.
    MediationTerminee = "e/rp",
    /// A mediation run has ended well.
    MediationTermineeOk = "e/rp",
    /// A mediation run has failed.
    MediationTermineeErr = "e/rp",
    /// A mediation did not run within its maximum interval.
    MediationEnRetard = "passerelle",
    /// A job came to a final or settled state.
    JobTermine = "passerelle",
    /// An agent was not heard for some time.
    AgentAbsent = "passerelle",
    /// An agent whose absence was told is back.
    AgentRevenu = "passerelle",
    /// The hub's own TLS certificate expires soon.
    CertificatBientotExpire = "passerelle",
    /// A subscriber asked for it, to try its endpoint.
    Test = "passerelle",
}

impl NoticeKind {
    /// Whether it is told on the event stream as well. Jobs are there already, as themselves.
    #[must_use]
    pub fn is_streamed(self) -> bool {
        !matches!(self, Self::JobTermine | Self::Test)
    }
}

impl FromStr for NoticeKind {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text).ok_or(())
    }
}

/// Something that happened, as it is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// Its id: the same for every subscriber and every attempt.
    pub id: Uuid,
    /// What it is about.
    pub kind: NoticeKind,
    /// When it happened.
    pub at: Timestamp,
    /// The vendor's `Data`.
    pub data: Value,
}

impl Notice {
    /// The vendor's envelope.
    #[must_use]
    pub fn envelope(&self) -> Value {
        json!({"EventKind": self.kind.as_str(), "EventCategory": self.kind.category(), "Data": self.data})
    }
}

/// How deliveries prove who sends them, beside their signature.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DeliveryAuth {
    /// Not at all.
    #[default]
    None,
    /// HTTP Basic.
    Basic {
        /// The user name; without `:`.
        username: String,
        /// The password.
        password: String,
    },
    /// `Authorization: Bearer`.
    Bearer {
        /// The token.
        token: String,
    },
}

impl std::fmt::Debug for DeliveryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Basic { .. } => "Basic([redacted])",
            Self::Bearer { .. } => "Bearer([redacted])",
        })
    }
}

/// What a tenant wants to be told, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSubscription {
    /// A name for people.
    pub label: Option<String>,
    /// Where to.
    pub url: String,
    /// Which kinds; empty: all.
    pub kinds: Vec<NoticeKind>,
    /// How deliveries prove who sends them.
    pub auth: DeliveryAuth,
    /// What they are signed with: `whsec_…`.
    pub secret: String,
}

/// A subscription, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Subscription {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: Uuid,
    /// A name for people.
    pub label: Option<String>,
    /// Where its notices are delivered to.
    pub url: String,
    /// The kinds that it wants; empty: all.
    pub kinds: Vec<NoticeKind>,
    /// `none`, `basic` or `bearer`.
    pub auth: &'static str,
    /// When it was made.
    #[schema(value_type = String, format = "date-time")]
    pub created_at: Timestamp,
    /// Deliveries that are still tried.
    pub pending: u64,
    /// Deliveries that were given up, and can be sent again.
    pub dead: u64,
    /// Notices for which its queue had no room.
    pub dropped: u64,
    /// The last delivery that came through.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub delivered_at: Option<Timestamp>,
    /// The last attempt that failed.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub failed_at: Option<Timestamp>,
    /// Why.
    pub failure: Option<String>,
}

/// A notice on its way to a subscriber, or given up.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Delivery {
    /// Its id, within the subscription.
    pub id: u64,
    /// The notice's id: the header `webhook-id`.
    #[schema(value_type = String, format = "uuid")]
    pub notice: Uuid,
    /// What the notice is about.
    pub kind: NoticeKind,
    /// When it happened.
    #[schema(value_type = String, format = "date-time")]
    pub at: Timestamp,
    /// `pending` or `dead`.
    pub state: &'static str,
    /// How often it was tried.
    pub attempts: u32,
    /// When a pending one is tried next; it may have to wait for an earlier one of the same run besides.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub next_attempt_at: Option<Timestamp>,
    /// When it was given up.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub dead_at: Option<Timestamp>,
    /// The HTTP status of the last attempt, if there was an answer.
    pub status: Option<u16>,
    /// Why the last attempt failed.
    pub failure: Option<String>,
    /// What is sent: the vendor's envelope.
    #[schema(value_type = Object)]
    pub body: Value,
}

/// All that an attempt of a delivery needs.
#[derive(Debug, Clone, PartialEq)]
pub struct DueDelivery {
    /// Its row.
    pub seq: i64,
    /// The subscription.
    pub subscription: Uuid,
    /// Whose it is.
    pub tenant: Name,
    /// The notice.
    pub notice: Notice,
    /// Where to.
    pub target: DeliveryTarget,
    /// How often it was tried before.
    pub attempts: u32,
    /// Since when it is tried.
    pub queued_at: Timestamp,
}

/// Where a delivery goes, with its secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct DeliveryTarget {
    /// The URL.
    pub url: String,
    /// How it proves who sends it.
    pub auth: DeliveryAuth,
    /// What it is signed with.
    pub secret: String,
}

impl std::fmt::Debug for DeliveryTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeliveryTarget").field("auth", &self.auth).finish_non_exhaustive()
    }
}
