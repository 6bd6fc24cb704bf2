//! Asks the running agent at its control socket.

use super::{PATIENCE, Request, Response, may_ask, place, read, write};
use serde_json::Value;
use std::{io, path::Path};
use tokio::time::timeout;

/// What became of a request.
#[derive(Debug)]
pub enum Asked {
    /// The agent did it.
    Done(Value),
    /// The agent refused; why and what to do.
    Refused(String),
    /// No agent listens there.
    NobodyThere,
}

/// Asks the agent of a state folder.
///
/// # Errors
/// If somebody listens but does not answer as an agent does, or may not be asked by this user.
pub async fn ask(state: &Path, request: &Request) -> io::Result<Asked> {
    let exchange = async {
        let mut stream = match place::connect(state).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(Asked::NobodyThere);
            }
            Err(error) => return Err(error),
        };
        let agent = stream.peer_cred()?.uid();
        let folder = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(state)?);
        // Whose folder it is, theirs is the agent; somebody else's answer would be worth nothing.
        if !may_ask(agent) && agent != folder {
            return Err(io::Error::other(format!("uid {agent} listens there, not the agent's user")));
        }
        write(&mut stream, request).await?;
        match read(&mut stream).await? {
            Response::Done(value) => Ok(Asked::Done(value)),
            Response::Refused(why) => Ok(Asked::Refused(why)),
        }
    };
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
