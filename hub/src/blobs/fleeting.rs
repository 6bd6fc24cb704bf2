//! The large outputs of calls: in memory or in files that nobody syncs (`passing.rs`), known to this process alone, and gone
//! after some minutes. Nothing about them is in the database.

use super::{
    Files, UploadOffset,
    passing::{Passing, Taken},
};
use crate::{
    clock,
    model::BlobInfo,
    store::{Content, Error},
    tunnel::CallPayload,
};
use bytes::Bytes;
use futures_util::Stream;
use passerelle_protocol::{AgentId, BlobId, JobId, Name, OutputPayload, Sha256};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long the output of a call can be fetched.
const KEPT: Duration = Duration::from_secs(600);

/// The output of a call that runs, as it arrives.
#[derive(Debug, Clone)]
struct Arriving {
    content: Arc<Passing>,
    sha256: Sha256,
    /// One request at a time adds to it.
    turn: Arc<tokio::sync::Mutex<()>>,
    complete: bool,
}

/// A call that runs, as far as its transfers go.
#[derive(Debug)]
struct Live {
    agent: AgentId,
    tenant: Name,
    payload: Option<(BlobInfo, Content)>,
    output: Option<Arriving>,
}

#[derive(Debug)]
struct Kept {
    tenant: Name,
    info: BlobInfo,
    content: Arc<Passing>,
    /// Somebody has asked for it: it may go before its time when room is needed.
    asked_for: bool,
}

#[derive(Debug, Default)]
struct Inner {
    live: HashMap<JobId, Live>,
    kept: HashMap<BlobId, Kept>,
}

/// What is transferred beside the tunnel for calls: a cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Transfers {
    files: Files,
    inner: Arc<Mutex<Inner>>,
    taken: Arc<Taken>,
}

impl Transfers {
    pub(crate) fn new(files: Files) -> Self {
        Self { files, inner: Arc::default(), taken: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins at an agent; false if one of this id runs already.
    pub(crate) fn begin(
        &self,
        call: JobId,
        agent: AgentId,
        payload: Option<&CallPayload>,
        tenant: &Name,
    ) -> bool {
        let payload = payload.map(|payload| {
            let info = BlobInfo { media_type: Some(payload.media_type.clone()), ..payload.info.clone() };
            (info, payload.content.clone())
        });
        let mut inner = self.lock();
        if inner.live.contains_key(&call) {
            return false;
        }
        inner.live.insert(call, Live { agent, tenant: tenant.clone(), payload, output: None });
        true
    }

    /// Nobody waits for the call any more; an output that was not kept goes.
    pub(crate) fn forget(&self, call: JobId) {
        drop(self.lock().live.remove(&call));
    }

    /// The payload of a call that runs at the agent; nothing if there is no such call.
    pub(crate) fn payload(&self, agent: AgentId, call: JobId) -> Option<Result<(BlobInfo, Content), Error>> {
        let inner = self.lock();
        let live = inner.live.get(&call).filter(|live| live.agent == agent)?;
        Some(live.payload.clone().ok_or_else(|| Error::NotFound(format!("call {call} has no payload"))))
    }

    /// Whether a call of this id runs at the agent.
    pub(crate) fn is_live(&self, agent: AgentId, call: JobId) -> bool {
        self.lock().live.get(&call).is_some_and(|live| live.agent == agent)
    }

    /// Opens the upload of a call's output, or finds it again as it stands.
    pub(crate) async fn open(
        &self,
        agent: AgentId,
        call: JobId,
        length: u64,
        sha256: Sha256,
    ) -> Result<UploadOffset, Error> {
        if let Some(known) = self.arriving(agent, call)?
            && known.content.length() == length
            && known.sha256 == sha256
        {
            return self.offset(agent, call).await;
        }
        let content = Passing::open(&self.files, &self.taken, length, || self.make_room()).await?;
        let arriving = Arriving { content: Arc::new(content), sha256, turn: Arc::default(), complete: false };
        let mut inner = self.lock();
        let live = inner.live.get_mut(&call).filter(|live| live.agent == agent).ok_or_else(|| over(call))?;
        live.output = Some(arriving);
        Ok(UploadOffset { offset: 0, length, blob: None })
    }

    /// Lets go of the oldest output that somebody has fetched from memory; false if there is none.
    fn make_room(&self) -> bool {
        let mut inner = self.lock();
        let fetched = |kept: &Kept| kept.asked_for && kept.content.takes_memory_idly();
        // Ids grow with time.
        let oldest = inner.kept.iter().filter(|(_, kept)| fetched(kept)).map(|(id, _)| *id).min();
        oldest.is_some_and(|oldest| inner.kept.remove(&oldest).is_some())
    }

    fn arriving(&self, agent: AgentId, call: JobId) -> Result<Option<Arriving>, Error> {
        let inner = self.lock();
        let live = inner.live.get(&call).filter(|live| live.agent == agent).ok_or_else(|| over(call))?;
        Ok(live.output.clone())
    }

    /// How far an upload is.
    pub(crate) async fn offset(&self, agent: AgentId, call: JobId) -> Result<UploadOffset, Error> {
        let arriving = self.arriving(agent, call)?.ok_or_else(|| not_open(call))?;
        let _turn = arriving.turn.lock().await;
        let offset = arriving.content.offset().await?;
        Ok(UploadOffset { offset, length: arriving.content.length(), blob: None })
    }

    /// Adds to an upload; complete, its digest is checked.
    pub(crate) async fn append<S, E>(
        &self,
        agent: AgentId,
        call: JobId,
        offset: u64,
        stream: S,
    ) -> Result<UploadOffset, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display + Send,
    {
        let arriving = self.arriving(agent, call)?.ok_or_else(|| not_open(call))?;
        let _turn = arriving.turn.lock().await;
        let length = arriving.content.length();
        let stands = match arriving.content.append(offset, arriving.sha256, stream).await {
            Ok((stands, end)) => {
                if let Err(why) = end {
                    tracing::debug!(call_id = %call, why, "The upload of a call's output broke off");
                }
                stands
            }
            Err(error) => {
                if matches!(error, Error::DigestMismatch { .. }) {
                    self.now_complete(call, false);
                }
                return Err(error);
            }
        };
        if stands >= length {
            self.now_complete(call, true);
        }
        Ok(UploadOffset { offset: stands, length, blob: None })
    }

    /// An output is whole: the right one, or it has to come again.
    fn now_complete(&self, call: JobId, right: bool) {
        if let Some(live) = self.lock().live.get_mut(&call) {
            match &mut live.output {
                Some(output) if right => output.complete = true,
                output => *output = None,
            }
        }
    }

    /// Keeps the output of a call for its caller, if it is whole and the one that was told of.
    pub(crate) fn keep(&self, call: JobId, output: &OutputPayload) -> Option<BlobId> {
        let mut inner = self.lock();
        let live = inner.live.get_mut(&call)?;
        let tenant = live.tenant.clone();
        let arrived = live.output.take()?;
        let right =
            arrived.complete && arrived.sha256 == output.sha256 && arrived.content.length() == output.size;
        if !right {
            return None;
        }
        let id = BlobId::from(clock::new_uuid7());
        let media_type = Some(output.media_type.clone());
        let info = BlobInfo { id, size: output.size, sha256: output.sha256, media_type };
        inner.kept.insert(id, Kept { tenant, info, content: arrived.content, asked_for: false });
        let kept = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            if let Some(inner) = kept.upgrade() {
                let gone = inner.lock().unwrap_or_else(PoisonError::into_inner).kept.remove(&id);
                drop(gone);
            }
        });
        Some(id)
    }

    /// The output of a call that ended lately.
    pub(crate) fn kept(&self, tenant: &Name, id: BlobId) -> Option<(BlobInfo, Content)> {
        let mut inner = self.lock();
        let kept = inner.kept.get_mut(&id).filter(|kept| kept.tenant == *tenant)?;
        kept.asked_for = true;
        Some((kept.info.clone(), kept.content.content()))
    }
}

fn over(call: JobId) -> Error {
    Error::NotFound(format!("this agent has no call {call}"))
}

fn not_open(call: JobId) -> Error {
    Error::NotFound(format!("no output upload is open for call {call}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    const LARGE: usize = 4 << 20;

    /// A call whose output arrived and is kept.
    async fn called(transfers: &Transfers, tenant: &Name) -> BlobId {
        let (call, agent) = (JobId::from(clock::new_uuid7()), AgentId::from(clock::new_uuid7()));
        let content = Bytes::from(vec![7; LARGE]);
        let sha256 = Sha256::of(&content);
        assert!(transfers.begin(call, agent, None, tenant));
        transfers.open(agent, call, LARGE as u64, sha256).await.unwrap();
        let whole = stream::iter([Ok::<_, String>(content)]);
        let stands = transfers.append(agent, call, 0, whole).await.unwrap();
        assert_eq!(stands.offset, LARGE as u64);
        let media_type = "application/octet-stream".to_owned();
        let output = OutputPayload { size: LARGE as u64, sha256, media_type, data: None };
        let kept = transfers.keep(call, &output).expect("kept");
        transfers.forget(call);
        kept
    }

    #[tokio::test]
    async fn what_was_fetched_from_memory_makes_room_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("uploads")).unwrap();
        let transfers = Transfers::new(Files::new(folder.path()));
        let tenant: Name = "acme".parse().unwrap();
        let in_memory = |id| matches!(transfers.kept(&tenant, id), Some((_, Content::Bytes(_))));
        let mut outputs = Vec::new();
        for _ in 0..8 {
            outputs.push(called(&transfers, &tenant).await);
        }
        let none_fetched = called(&transfers, &tenant).await;
        assert!(!in_memory(none_fetched), "no room, and nobody has fetched any: a file");
        let reading = transfers.kept(&tenant, outputs[0]);
        assert!(in_memory(outputs[1]) && in_memory(outputs[2]), "fetched");
        let next = called(&transfers, &tenant).await;
        assert!(in_memory(next), "the oldest that nobody reads any more has gone");
        assert!(transfers.kept(&tenant, outputs[1]).is_none());
        for kept in [outputs[0], outputs[2], outputs[3], none_fetched] {
            assert!(transfers.kept(&tenant, kept).is_some(), "{kept} is there");
        }
        drop(reading);
        assert!(transfers.kept(&"other".parse().unwrap(), outputs[3]).is_none(), "another tenant's");
    }
}
