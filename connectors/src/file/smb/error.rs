//! The server's statuses and the socket's errors as [`Problem`]s.

use crate::file::backend::{FsError, Problem};
use smb2::types::status::NtStatus;
use std::{fmt::Display, io};

/// An error of the socket.
pub(super) fn from_io(error: &io::Error) -> FsError {
    let problem = match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Problem::TimedOut,
        _ => Problem::Lost,
    };
    FsError::new(problem, error)
}

/// What the server refused.
pub(super) fn from_status(what: impl Display, status: NtStatus) -> FsError {
    FsError::new(problem(status), format!("{what}: {status}"))
}

// What the library has no names for (MS-ERREF).
const OBJECT_PATH_SYNTAX_BAD: u32 = 0xC000_003B;
const QUOTA_EXCEEDED: u32 = 0xC000_0044;
const LOCK_NOT_GRANTED: u32 = 0xC000_0055;
const MEDIA_WRITE_PROTECTED: u32 = 0xC000_00A2;
const IO_TIMEOUT: u32 = 0xC000_00B5;
const NOT_SAME_DEVICE: u32 = 0xC000_00D4;
const NAME_TOO_LONG: u32 = 0xC000_0106;
const TOO_MANY_OPENED_FILES: u32 = 0xC000_011F;
const FILE_CLOSED: u32 = 0xC000_0128;
const LOGON_TYPE_NOT_GRANTED: u32 = 0xC000_015B;
const USER_SESSION_DELETED: u32 = 0xC000_0203;
const INSUFF_SERVER_RESOURCES: u32 = 0xC000_0205;
const CONNECTION_DISCONNECTED: u32 = 0xC000_020C;
const CONNECTION_RESET: u32 = 0xC000_020D;
const PATH_NOT_COVERED: u32 = 0xC000_0257;
const NETWORK_SESSION_EXPIRED: u32 = 0xC000_035C;
const SERVER_UNAVAILABLE: u32 = 0xC000_0466;
const FILE_NOT_AVAILABLE: u32 = 0xC000_0467;
const DISK_QUOTA_EXCEEDED: u32 = 0xC000_0802;
const FILE_TOO_LARGE: u32 = 0xC000_0904;

fn problem(status: NtStatus) -> Problem {
    match status {
        NtStatus::OBJECT_NAME_NOT_FOUND
        | NtStatus::OBJECT_PATH_NOT_FOUND
        | NtStatus::NO_SUCH_FILE
        | NtStatus::BAD_NETWORK_NAME => Problem::NotFound,
        NtStatus::OBJECT_NAME_COLLISION => Problem::Exists,
        NtStatus::NOT_A_DIRECTORY => Problem::NotAFolder,
        NtStatus::FILE_IS_A_DIRECTORY | NtStatus::DIRECTORY_NOT_EMPTY => Problem::IsAFolder,
        NtStatus::ACCESS_DENIED | NtStatus::CANNOT_DELETE => Problem::Refused,
        NtStatus(MEDIA_WRITE_PROTECTED) => Problem::ReadOnly,
        NtStatus::SHARING_VIOLATION
        | NtStatus::FILE_LOCK_CONFLICT
        | NtStatus::DELETE_PENDING
        | NtStatus(LOCK_NOT_GRANTED) => Problem::Locked,
        NtStatus::DISK_FULL => Problem::Full,
        NtStatus(QUOTA_EXCEEDED | DISK_QUOTA_EXCEEDED) => Problem::Quota,
        NtStatus(FILE_TOO_LARGE) | NtStatus::FILE_SYSTEM_LIMITATION => Problem::TooLarge,
        NtStatus(NAME_TOO_LONG) => Problem::NameTooLong,
        NtStatus::OBJECT_NAME_INVALID | NtStatus(OBJECT_PATH_SYNTAX_BAD) => Problem::BadShareName,
        NtStatus::STOPPED_ON_SYMLINK => Problem::Escapes,
        NtStatus(NOT_SAME_DEVICE) => Problem::CrossDevice,
        NtStatus::NOT_SUPPORTED
        | NtStatus::NOT_IMPLEMENTED
        | NtStatus::INVALID_DEVICE_REQUEST
        | NtStatus::INVALID_INFO_CLASS => Problem::Unsupported,
        NtStatus(PATH_NOT_COVERED) => Problem::DfsLink,
        NtStatus::LOGON_FAILURE
        | NtStatus::ACCOUNT_RESTRICTION
        | NtStatus::INVALID_LOGON_HOURS
        | NtStatus::INVALID_WORKSTATION
        | NtStatus::PASSWORD_EXPIRED
        | NtStatus::ACCOUNT_DISABLED
        | NtStatus::ACCOUNT_EXPIRED
        | NtStatus::PASSWORD_MUST_CHANGE
        | NtStatus::ACCOUNT_LOCKED_OUT
        | NtStatus(LOGON_TYPE_NOT_GRANTED) => Problem::Auth,
        NtStatus::INSUFFICIENT_RESOURCES
        | NtStatus::REQUEST_NOT_ACCEPTED
        | NtStatus(
            TOO_MANY_OPENED_FILES | INSUFF_SERVER_RESOURCES | SERVER_UNAVAILABLE | FILE_NOT_AVAILABLE,
        ) => Problem::Busy,
        // The session or the share is gone: what was under way is looked for on a new one.
        NtStatus::NETWORK_NAME_DELETED
        | NtStatus(
            FILE_CLOSED
            | USER_SESSION_DELETED
            | CONNECTION_DISCONNECTED
            | CONNECTION_RESET
            | NETWORK_SESSION_EXPIRED,
        ) => Problem::Lost,
        NtStatus(IO_TIMEOUT) => Problem::TimedOut,
        _ => Problem::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_problem() {
        for (status, expected) in [
            (0xC000_0034, Problem::NotFound),
            (0xC000_003A, Problem::NotFound),
            (0xC000_0035, Problem::Exists),
            (0xC000_0103, Problem::NotAFolder),
            (0xC000_00BA, Problem::IsAFolder),
            (0xC000_0022, Problem::Refused),
            (0xC000_00A2, Problem::ReadOnly),
            (0xC000_0043, Problem::Locked),
            (0xC000_0054, Problem::Locked),
            (0xC000_007F, Problem::Full),
            (0xC000_0044, Problem::Quota),
            (0xC000_0802, Problem::Quota),
            (0xC000_0904, Problem::TooLarge),
            (0xC000_0106, Problem::NameTooLong),
            (0xC000_0033, Problem::BadShareName),
            (0x8000_002D, Problem::Escapes),
            (0xC000_00D4, Problem::CrossDevice),
            (0xC000_00BB, Problem::Unsupported),
            (0xC000_0257, Problem::DfsLink),
            (0xC000_006D, Problem::Auth),
            (0xC000_0234, Problem::Auth),
            (0xC000_0072, Problem::Auth),
            (0xC000_00D0, Problem::Busy),
            (0xC000_0203, Problem::Lost),
            (0xC000_00C9, Problem::Lost),
            (0xC000_0128, Problem::Lost),
            (0xC000_00B5, Problem::TimedOut),
            (0xC000_0001, Problem::Other),
        ] {
            assert_eq!(from_status("a.csv", NtStatus(status)).problem, expected, "{status:#x}");
        }
        for (kind, expected) in [
            (io::ErrorKind::WouldBlock, Problem::TimedOut),
            (io::ErrorKind::TimedOut, Problem::TimedOut),
            (io::ErrorKind::ConnectionReset, Problem::Lost),
            (io::ErrorKind::UnexpectedEof, Problem::Lost),
        ] {
            assert_eq!(from_io(&kind.into()).problem, expected, "{kind:?}");
        }
    }
}
