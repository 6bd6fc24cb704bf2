//! The server's refusals and the library's errors as [`Problem`]s.

use crate::file::backend::{FsError, Problem};
use std::io;
use suppaftp::{FtpError, types::Response};

/// An error of a command or a transfer.
pub(super) fn from_ftp(path: &str, error: &FtpError) -> FsError {
    FsError::new(problem(error), format!("{path}: {error}"))
}

/// An error of a socket.
pub(super) fn from_io(path: &str, error: &io::Error) -> FsError {
    FsError::new(broken(error), format!("{path}: {error}"))
}

/// The code of a reply as the server wrote it: the library knows only some by name.
pub(super) fn code(reply: &Response) -> u16 {
    let last = reply.body.split(|&byte| byte == b'\n').rfind(|line| line.len() > 3).unwrap_or_default();
    let digits = last.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

/// The code of the refusal, if it is one.
pub(super) fn refusal(error: &FtpError) -> Option<u16> {
    match error {
        FtpError::UnexpectedResponse(reply) => Some(code(reply)),
        _ => None,
    }
}

fn problem(error: &FtpError) -> Problem {
    match error {
        FtpError::UnexpectedResponse(reply) => {
            refused(code(reply), &String::from_utf8_lossy(&reply.body).to_lowercase())
        }
        FtpError::ConnectionError(error) => broken(error),
        // A reply that is none leaves the conversation in an unknown state.
        _ => Problem::Lost,
    }
}

fn broken(error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Problem::TimedOut,
        _ => Problem::Lost,
    }
}

/// The codes say little and servers differ: their words decide where they are clear.
fn refused(code: u16, words: &str) -> Problem {
    let says = |any: &[&str]| any.iter().any(|word| words.contains(word));
    match code {
        421 | 425 | 426 => Problem::Lost,
        400..500 | 550..560 if says(&["quota"]) => Problem::Quota,
        452 | 552 => Problem::Full,
        400..500 | 550..560 if says(&["no space", "disk full", "not enough space", "insufficient"]) => {
            Problem::Full
        }
        500..505 | 522 | 533..540 => Problem::Unsupported,
        530 | 532 => Problem::Refused,
        550..560 if says(&["no such", "not found", "does not exist", "doesn't exist", "cannot find"]) => {
            Problem::NotFound
        }
        550..560 if says(&["read-only", "read only"]) => Problem::ReadOnly,
        550..560 if says(&["exists"]) => Problem::Exists,
        550..560 if says(&["too long"]) => Problem::NameTooLong,
        // A name that the server's file system does not take, or a path too long for the server.
        550..560 if says(&["invalid argument"]) => Problem::BadName,
        550..560 if says(&["cross-device"]) => Problem::CrossDevice,
        550 | 553 => Problem::Refused,
        551 => Problem::Unsupported,
        _ => Problem::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use suppaftp::Status;

    #[test]
    fn each_reply_has_its_problem() {
        for (reply, expected) in [
            ("421 Timeout.", Problem::Lost),
            ("425 Failed to establish connection.", Problem::Lost),
            ("426 Failure reading network stream.", Problem::Lost),
            ("450 a.csv: file busy", Problem::Other),
            ("451 Failure writing to local file.", Problem::Other),
            ("452 Insufficient storage space", Problem::Full),
            ("552 Exceeded storage allocation", Problem::Full),
            ("552 Transfer aborted: Disk quota exceeded", Problem::Quota),
            ("451 a.csv: No space left on device", Problem::Full),
            ("500 Unknown command.", Problem::Unsupported),
            ("502 Command not implemented", Problem::Unsupported),
            ("522 SSL connection failed: session reuse required", Problem::Unsupported),
            ("530 Please login with USER and PASS.", Problem::Refused),
            ("550 a.csv: No such file or directory", Problem::NotFound),
            ("550 The system cannot find the file specified.", Problem::NotFound),
            ("550 a.csv: File exists", Problem::Exists),
            ("550 Permission denied.", Problem::Refused),
            ("553 Could not create file.", Problem::Refused),
            ("550 a.csv: Read-only file system", Problem::ReadOnly),
            ("550 a.csv: Invalid argument", Problem::BadName),
            ("550 a.csv: File name too long", Problem::NameTooLong),
        ] {
            let error =
                FtpError::UnexpectedResponse(Response::new(Status::Unknown, format!("{reply}\r\n").into()));
            assert_eq!(problem(&error), expected, "{reply}");
        }
        for (kind, expected) in [
            (io::ErrorKind::WouldBlock, Problem::TimedOut),
            (io::ErrorKind::TimedOut, Problem::TimedOut),
            (io::ErrorKind::ConnectionReset, Problem::Lost),
            (io::ErrorKind::UnexpectedEof, Problem::Lost),
        ] {
            assert_eq!(problem(&FtpError::ConnectionError(kind.into())), expected, "{kind:?}");
        }
        assert_eq!(problem(&FtpError::BadResponse), Problem::Lost);
    }

    #[test]
    fn the_last_line_of_a_reply_has_its_code() {
        let reply = Response::new(Status::Unknown, b"211-Features\r\n MDTM\r\n522 no\r\n".to_vec());
        assert_eq!(code(&reply), 522);
        assert_eq!(code(&Response::new(Status::Unknown, Vec::new())), 0);
    }
}
