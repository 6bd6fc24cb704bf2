//! Who is told what: applications, subscriptions, notices and their deliveries.

use jiff::Timestamp;
use passerelle_protocol::Name;
use serde::Serialize;

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
