//! Why the store does not do something, or cannot be opened, and the code of each reason in the API.

use passerelle_protocol::{ApiCode, BlobId, Name, Sha256};
use rusqlite::ErrorCode;
use std::path::Path;

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The tenant has no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The state forbids it.
    #[error("{0}")]
    Conflict(String),
    /// The request itself is wrong: a malformed cursor, a body that breaks off.
    #[error("{0}")]
    BadRequest(String),
    /// More bytes than announced.
    #[error("{0}")]
    TooLarge(String),
    /// The idempotency key was seen with another body.
    #[error("the idempotency key was used before with another body: use a new key")]
    IdempotencyMismatch,
    /// The tenant has no such site.
    #[error("site {0} is unknown: create an enrolment token for it first")]
    SiteUnknown(Name),
    /// No valid credentials (enrolment token).
    #[error("{0}")]
    Unauthorized(String),
    /// Hybrid mode needs the Enterprise tier.
    #[error("hybrid mode needs the Enterprise tier, tenant {0} has another")]
    TierRequired(Name),
    /// The application has no hybrid mode.
    #[error("{0}")]
    ApplicationIncompatible(String),
    /// Not the digest that was announced.
    #[error("the content has the SHA-256 {actual}, announced was {expected}")]
    DigestMismatch {
        /// As announced.
        expected: Sha256,
        /// As found.
        actual: Sha256,
    },
    /// An upload goes on at another offset.
    #[error("the upload stands at offset {0}")]
    Offset(u64),
    /// Another request adds to the upload.
    #[error("another request is writing this upload, which stands at offset {0}")]
    Busy(u64),
    /// The hub's disk is full.
    #[error("the hub's disk is full: free some space or raise the volume's size")]
    Full,
    /// The envelope that the client signed allows no more.
    #[error("{0}")]
    EnvelopeExpired(String),
    /// The tenant has as much as it may have.
    #[error("{0}")]
    Quota(String),
    /// A fault of the hub.
    #[error("internal fault: {0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn no_blob(id: BlobId) -> Self {
        Self::NotFound(format!(
            "there is no blob {id}, or it was not used for so long that it was removed: upload it with POST /v1/blobs"
        ))
    }

    /// The code of its problem document.
    #[must_use]
    pub fn code(&self) -> ApiCode {
        match self {
            Self::NotFound(_) => ApiCode::NotFound,
            Self::Conflict(_) | Self::Offset(_) | Self::Busy(_) => ApiCode::Conflict,
            Self::BadRequest(_) => ApiCode::BadRequest,
            Self::TooLarge(_) => ApiCode::TooLarge,
            Self::IdempotencyMismatch => ApiCode::IdempotencyMismatch,
            Self::SiteUnknown(_) => ApiCode::SiteUnknown,
            Self::Unauthorized(_) => ApiCode::Unauthorized,
            Self::TierRequired(_) => ApiCode::TierRequired,
            Self::ApplicationIncompatible(_) => ApiCode::ApplicationIncompatible,
            Self::DigestMismatch { .. } => ApiCode::DigestMismatch,
            Self::EnvelopeExpired(_) => ApiCode::EnvelopeExpired,
            Self::Full | Self::Quota(_) => ApiCode::Quota,
            Self::Internal(_) => ApiCode::Internal,
        }
    }
}

/// Whether SQLite says that the file is not what it should be.
fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        // The shared memory beside the database could not grow: SQLite has no word of its own for that disk being full.
        let no_room = error
            .sqlite_error()
            .is_some_and(|cause| cause.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ if no_room => Self::Full,
            _ if is_damage(&error) => Self::Internal(format!(
                "the database is damaged ({error}): end the hub and restore the last backup with `passerelle-hub admin \
                 restore FILE`"
            )),
            _ => Self::Internal(format!("database: {error}")),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Internal(format!("disk: {error}")),
        }
    }
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub(crate) String);

impl OpenError {
    pub(crate) fn database(path: &Path, error: &rusqlite::Error) -> Self {
        if is_damage(error) {
            return Self::damaged(path, &error.to_string());
        }
        let hint = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => ": free some space on its disk",
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                ": give the hub's user the right to write it and its folder"
            }
            _ => "",
        };
        Self(format!("{}: {error}{hint}", path.display()))
    }

    pub(super) fn damaged(path: &Path, damage: &str) -> Self {
        Self(format!(
            "{}: the database is damaged ({}): the hub does not serve from it, and changed nothing; restore the last \
             backup with `passerelle-hub admin restore FILE`, which keeps the damaged files beside it",
            path.display(),
            damage.trim().replace('\n', "; ")
        ))
    }
}
