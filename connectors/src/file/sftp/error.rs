//! libssh2's errors as [`Problem`]s.

use crate::file::backend::{FsError, Problem};
use libssh2_sys as raw;
use ssh2::{Error, ErrorCode};

/// Whether the server answered with this status.
pub(super) fn is_status(error: &Error, status: i32) -> bool {
    error.code() == ErrorCode::SFTP(status)
}

/// An error of an SFTP request.
pub(super) fn from_ssh(path: &str, error: &Error) -> FsError {
    FsError::new(problem(error.code()), format!("{path}: {error}"))
}

fn problem(code: ErrorCode) -> Problem {
    match code {
        ErrorCode::SFTP(status) => match status {
            raw::LIBSSH2_FX_NO_SUCH_FILE | raw::LIBSSH2_FX_NO_SUCH_PATH => Problem::NotFound,
            raw::LIBSSH2_FX_PERMISSION_DENIED => Problem::Refused,
            raw::LIBSSH2_FX_OP_UNSUPPORTED => Problem::Unsupported,
            raw::LIBSSH2_FX_FILE_ALREADY_EXISTS | raw::LIBSSH2_FX_DIR_NOT_EMPTY => Problem::Exists,
            raw::LIBSSH2_FX_WRITE_PROTECT => Problem::ReadOnly,
            raw::LIBSSH2_FX_NO_SPACE_ON_FILESYSTEM => Problem::Full,
            raw::LIBSSH2_FX_QUOTA_EXCEEDED => Problem::Quota,
            raw::LIBSSH2_FX_NOT_A_DIRECTORY => Problem::NotAFolder,
            // OpenSSH says "bad message" for a name that its file system does not take.
            raw::LIBSSH2_FX_INVALID_FILENAME | raw::LIBSSH2_FX_BAD_MESSAGE => Problem::NameTooLong,
            raw::LIBSSH2_FX_LINK_LOOP => Problem::Escapes,
            raw::LIBSSH2_FX_NO_CONNECTION | raw::LIBSSH2_FX_CONNECTION_LOST => Problem::Lost,
            _ => Problem::Other,
        },
        ErrorCode::Session(raw::LIBSSH2_ERROR_TIMEOUT | raw::LIBSSH2_ERROR_SOCKET_TIMEOUT) => {
            Problem::TimedOut
        }
        // Whatever else goes wrong below the level of requests leaves the session in an unknown state.
        ErrorCode::Session(_) => Problem::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_problem() {
        for (code, expected) in [
            (ErrorCode::SFTP(raw::LIBSSH2_FX_NO_SUCH_FILE), Problem::NotFound),
            (ErrorCode::SFTP(raw::LIBSSH2_FX_PERMISSION_DENIED), Problem::Refused),
            (ErrorCode::SFTP(raw::LIBSSH2_FX_FAILURE), Problem::Other),
            (ErrorCode::SFTP(raw::LIBSSH2_FX_OP_UNSUPPORTED), Problem::Unsupported),
            (ErrorCode::SFTP(raw::LIBSSH2_FX_NO_SPACE_ON_FILESYSTEM), Problem::Full),
            (ErrorCode::SFTP(raw::LIBSSH2_FX_CONNECTION_LOST), Problem::Lost),
            (ErrorCode::Session(raw::LIBSSH2_ERROR_TIMEOUT), Problem::TimedOut),
            (ErrorCode::Session(raw::LIBSSH2_ERROR_SOCKET_DISCONNECT), Problem::Lost),
            (ErrorCode::Session(raw::LIBSSH2_ERROR_SOCKET_RECV), Problem::Lost),
        ] {
            assert_eq!(problem(code), expected, "{code:?}");
        }
    }
}
