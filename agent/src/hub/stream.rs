//! A payload on its way from the hub straight to a connector: nothing of it on the agent's disk, a few pieces in memory,
//! and after a cut it goes on where it stopped. Its reader checks size and digest.

use super::{
    Hub,
    payload::{TransferError, request},
};
use crate::identity::Identity;
use bytes::Bytes;
use passerelle_protocol::session::Attempt;
use std::io;
use tokio::sync::mpsc;

/// How many pieces (of a connection's read, at most some hundred KiB) wait for a slow target.
const PIECES: usize = 16;

/// The sending end.
pub struct Stream {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    size: u64,
    have: u64,
}

impl Stream {
    /// A stream of `size` bytes, and where they come out.
    pub fn new(size: u64) -> (Self, mpsc::Receiver<io::Result<Bytes>>) {
        let (pieces, out) = mpsc::channel(PIECES);
        (Self { pieces, size, have: 0 }, out)
    }

    /// Bytes passed on.
    pub fn have(&self) -> u64 {
        self.have
    }

    /// The way to the reader.
    pub fn sender(&self) -> mpsc::Sender<io::Result<Bytes>> {
        self.pieces.clone()
    }

    /// Passes on what is missing, telling of each piece.
    pub async fn go_on(
        &mut self,
        hub: &Hub,
        identity: &Identity,
        attempt: Attempt,
        mut progress: impl FnMut(u64),
    ) -> Result<(), TransferError> {
        let (mut response, from) = request(hub, identity, attempt, self.have).await?;
        // The whole again, from a hub that does not honour ranges: what was passed on is left out.
        let mut skip = self.have - from;
        while self.have < self.size {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(e) => return Err(TransferError::Again(hub.explain(&e))),
            };
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let piece = chunk.slice(usize::try_from(skipped).unwrap_or(usize::MAX)..);
            if piece.is_empty() {
                continue;
            }
            let n = piece.len() as u64;
            if self.have + n > self.size {
                return Err(TransferError::Mismatch);
            }
            if self.pieces.send(Ok(piece)).await.is_err() {
                return Err(TransferError::Again("nobody reads any more".to_owned()));
            }
            self.have += n;
            progress(n);
        }
        if self.have == self.size {
            return Ok(());
        }
        Err(TransferError::Again(format!("the hub sent {} of {} bytes", self.have, self.size)))
    }
}
