//! What can go wrong at a place, and what that means for the job.

use crate::{Code, Failure};
use std::{fmt, time::Duration};

/// What can go wrong at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Problem {
    NotFound,
    Exists,
    NotAFolder,
    IsAFolder,
    NotAFile,
    Refused,
    ReadOnly,
    Full,
    Quota,
    TooLarge,
    NameTooLong,
    /// A name that this kind of target does not take.
    BadName,
    /// A name that file shares of Windows' kind do not take, or bend into another.
    BadShareName,
    Escapes,
    CrossDevice,
    Unsupported,
    /// The log-in is no longer taken.
    Auth,
    /// The target says that its clock and ours differ too much.
    Clock,
    /// Someone holds a lock on it.
    Locked,
    /// It asks to come back later.
    Busy,
    /// It changed while it was being read.
    Changed,
    /// What was written, and confirmed, is not what is there.
    NotKept,
    /// A file of ours has no name there, in a folder that is there.
    HiddenPart,
    /// A folder that another server or share holds.
    DfsLink,
    /// What the target answered makes no sense.
    Protocol,
    Lost,
    TimedOut,
    Cancelled,
    Other,
}

/// A [`Problem`] with its cause, for the local log.
#[derive(Debug)]
pub(super) struct FsError {
    pub(super) problem: Problem,
    pub(super) detail: String,
    /// The target's own hint when to come back.
    pub(super) retry_after: Option<Duration>,
    /// Whether it came in the middle of replacing in several steps.
    pub(super) in_steps: bool,
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.problem, self.detail)
    }
}

impl std::error::Error for FsError {}

impl FsError {
    pub(super) fn new(problem: Problem, detail: impl fmt::Display) -> Self {
        Self { problem, detail: detail.to_string(), retry_after: None, in_steps: false }
    }

    /// Whether the connection is no longer fit for use, and an effect in progress may or may not have happened.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self.problem, Problem::Lost | Problem::TimedOut)
    }
}

impl From<FsError> for Failure {
    fn from(error: FsError) -> Self {
        let (permanent, retry, denied) = (Self::permanent, Self::retry, Self::denied);
        let failure = match error.problem {
            Problem::NotFound => permanent(Code::TargetNotFound, "there is no such file or folder"),
            Problem::Exists => {
                permanent(Code::TargetConflict, "a file or folder of that name is there already")
            }
            Problem::NotAFolder => permanent(Code::TargetConflict, "a part of the path is not a folder"),
            Problem::IsAFolder => permanent(Code::TargetConflict, "there is a folder of that name"),
            Problem::NotAFile => permanent(Code::TargetRefused, "that is not a regular file"),
            Problem::Refused => permanent(
                Code::TargetRefused,
                "the agent's account has no permission for that file or folder",
            ),
            Problem::ReadOnly => permanent(Code::TargetRefused, "the target is read-only"),
            Problem::Full => retry(Code::TargetFull, "the target's disk is full"),
            Problem::Quota => retry(Code::TargetFull, "the disk quota of the agent's account is used up"),
            Problem::TooLarge => {
                permanent(Code::TooLarge, "the file is larger than the target's file system takes")
            }
            Problem::NameTooLong => {
                denied(Code::PathInvalid, "the path or a name in it is too long for the target")
            }
            Problem::BadName => denied(
                Code::PathInvalid,
                "the path has a line end or another character that the target's protocol cannot carry",
            ),
            Problem::BadShareName => denied(
                Code::PathInvalid,
                "the path has a name that file shares do not take: one with \\ : * ? \" < > | or a control character, with a dot or space at its end, or a device's such as CON",
            ),
            Problem::Escapes => denied(
                Code::PathInvalid,
                "the path leads out of the resource's folder through a symbolic link",
            ),
            Problem::CrossDevice => permanent(
                Code::TargetUnsupported,
                "the two places are on different file systems of the target",
            ),
            Problem::Unsupported => {
                permanent(Code::TargetUnsupported, "the target does not offer this operation")
            }
            Problem::Auth => permanent(Code::TargetAuth, "the target refused the agent's log-in"),
            Problem::Clock => retry(
                Code::TargetAuth,
                "the agent's clock and the target's differ too much; set the agent's clock",
            ),
            Problem::Locked => {
                retry(Code::TargetConflict, "somebody else has locked that file or folder at the target")
            }
            Problem::Busy => retry(Code::TargetThrottled, "the target is busy and asks to come back later"),
            Problem::Changed => retry(Code::TargetConflict, "the file changed while it was read"),
            Problem::NotKept => retry(
                Code::TargetProtocol,
                "the target did not keep all that was written, though it said so; see its disk and its log",
            ),
            Problem::HiddenPart => permanent(
                Code::TargetRefused,
                "the folder is there, but the target hides or does not take names like .passerelle-….part, which unfinished files have; allow them there (Samba: veto files)",
            ),
            Problem::DfsLink => permanent(
                Code::TargetUnsupported,
                "the folder is a DFS link to another server or share; name the server and share that hold it as a resource of their own",
            ),
            Problem::Protocol => {
                retry(Code::TargetProtocol, "the target's answer makes no sense; see the agent's log")
            }
            Problem::Lost => retry(Code::TargetUnreachable, "the connection to the target was lost"),
            Problem::TimedOut => retry(Code::TargetTimeout, "the target did not answer in time"),
            Problem::Cancelled => Self::cancelled(),
            Problem::Other => retry(Code::TargetRefused, "the target refused without saying why"),
        };
        let failure = failure.retry_after(error.retry_after);
        if error.detail.is_empty() { failure } else { failure.detail(error.detail) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;

    #[test]
    fn each_problem_has_its_verdict_and_code() {
        let check = |problem, verdict, code| {
            let failure = Failure::from(FsError::new(problem, "host and path"));
            assert_eq!((failure.verdict, failure.code), (verdict, code), "{problem:?}");
            assert!(!failure.message.contains("host"), "{problem:?}");
        };
        check(Problem::NotFound, Verdict::Permanent, Code::TargetNotFound);
        check(Problem::Exists, Verdict::Permanent, Code::TargetConflict);
        check(Problem::NotAFile, Verdict::Permanent, Code::TargetRefused);
        check(Problem::Refused, Verdict::Permanent, Code::TargetRefused);
        check(Problem::ReadOnly, Verdict::Permanent, Code::TargetRefused);
        check(Problem::Full, Verdict::Retry, Code::TargetFull);
        check(Problem::Quota, Verdict::Retry, Code::TargetFull);
        check(Problem::NameTooLong, Verdict::Denied, Code::PathInvalid);
        check(Problem::BadName, Verdict::Denied, Code::PathInvalid);
        check(Problem::BadShareName, Verdict::Denied, Code::PathInvalid);
        check(Problem::Escapes, Verdict::Denied, Code::PathInvalid);
        check(Problem::CrossDevice, Verdict::Permanent, Code::TargetUnsupported);
        check(Problem::BadName, Verdict::Denied, Code::PathInvalid);
        check(Problem::Auth, Verdict::Permanent, Code::TargetAuth);
        check(Problem::Clock, Verdict::Retry, Code::TargetAuth);
        check(Problem::Locked, Verdict::Retry, Code::TargetConflict);
        check(Problem::Busy, Verdict::Retry, Code::TargetThrottled);
        check(Problem::Changed, Verdict::Retry, Code::TargetConflict);
        check(Problem::NotKept, Verdict::Retry, Code::TargetProtocol);
        check(Problem::HiddenPart, Verdict::Permanent, Code::TargetRefused);
        check(Problem::DfsLink, Verdict::Permanent, Code::TargetUnsupported);
        check(Problem::Protocol, Verdict::Retry, Code::TargetProtocol);
        check(Problem::Lost, Verdict::Retry, Code::TargetUnreachable);
        check(Problem::TimedOut, Verdict::Retry, Code::TargetTimeout);
        check(Problem::Cancelled, Verdict::Cancelled, Code::Cancelled);
    }
}
