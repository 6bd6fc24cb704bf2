//! Identifiers: UUIDs (RFC 9562), each kind a type of its own: version 7, made where the thing is, but for events.

use crate::Sha256;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The id as a UUID.
            #[must_use]
            pub fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

macro_rules! id_v7 {
    ($(#[$doc:meta])* $name:ident) => {
        id!($(#[$doc])* $name);

        impl $name {
            /// Makes an id from the milliseconds since the Unix epoch and 10 random bytes.
            #[must_use]
            pub fn new(unix_ms: u64, random: &[u8; 10]) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, random).into_uuid())
            }
        }
    };
}

id!(
    /// An event: a hash of what happened (version 8), so that it is the same whoever saw it.
    EventId
);

impl EventId {
    /// Makes an id from the first 16 bytes of a digest.
    #[must_use]
    pub fn of_digest(digest: &Sha256) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.bytes()[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

id_v7!(
    /// A job: given by the hub, the same over all its attempts.
    JobId
);
id_v7!(
    /// An enrolled agent.
    AgentId
);
id_v7!(
    /// One connection of an agent, given by the hub in `Welcome`.
    SessionId
);
id_v7!(
    /// A blob: a payload stored at the hub. Two blobs of the same content have ids of their own.
    BlobId
);
