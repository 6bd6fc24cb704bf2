//! The large outputs of calls: files that nobody syncs, known to this process alone, and gone after some minutes. Nothing
//! about them is in the database.

use super::{Files, UploadOffset, receive::Receiver};
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
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How long the output of a call can be fetched.
const KEPT: Duration = Duration::from_secs(600);
/// The largest output of a call: what can be handed over while somebody waits.
const LARGEST: u64 = 1 << 30;
/// All of them together.
const MOST: u64 = 4 << 30;

/// A file that goes with its last holder, and counts as long.
#[derive(Debug)]
struct Passing {
    path: PathBuf,
    length: u64,
    total: Arc<AtomicU64>,
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.total.fetch_sub(self.length, Ordering::Relaxed);
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = %self.path.display(), "Could not remove the output of a call");
        }
    }
}

/// The output of a call that runs, as it arrives.
#[derive(Debug, Clone)]
struct Arriving {
    file: Arc<Passing>,
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
    file: Arc<Passing>,
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
    total: Arc<AtomicU64>,
}

impl Transfers {
    pub(crate) fn new(files: Files) -> Self {
        Self { files, inner: Arc::default(), total: Arc::default() }
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
            && known.file.length == length
            && known.sha256 == sha256
        {
            return self.offset(agent, call).await;
        }
        if length > LARGEST {
            return Err(Error::TooLarge(format!(
                "the output of a call has at most {LARGEST} bytes: use a job"
            )));
        }
        if self.total.fetch_add(length, Ordering::Relaxed).saturating_add(length) > MOST {
            self.total.fetch_sub(length, Ordering::Relaxed);
            return Err(Error::Quota(
                "the hub keeps too many outputs of calls just now: come back".to_owned(),
            ));
        }
        let path = self.files.temporary();
        let file = Arc::new(Passing { path: path.clone(), length, total: Arc::clone(&self.total) });
        Receiver::create(&path).await?.flush().await?;
        let arriving = Arriving { file, sha256, turn: Arc::default(), complete: false };
        let mut inner = self.lock();
        let live = inner.live.get_mut(&call).filter(|live| live.agent == agent).ok_or_else(|| over(call))?;
        live.output = Some(arriving);
        Ok(UploadOffset { offset: 0, length, blob: None })
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
        let offset = tokio::fs::metadata(&arriving.file.path).await?.len();
        Ok(UploadOffset { offset, length: arriving.file.length, blob: None })
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
        let (path, length) = (arriving.file.path.clone(), arriving.file.length);
        let mut receiver = Receiver::open(&path).await?;
        if receiver.offset() != offset {
            return Err(Error::Offset(receiver.offset()));
        }
        if let Err(why) = receiver.take_all(stream, length).await? {
            tracing::debug!(call_id = %call, why, "The upload of a call's output broke off");
        }
        receiver.flush().await?;
        let offset = receiver.offset();
        if offset >= length {
            self.check(call, &path, receiver, arriving.sha256).await?;
        }
        Ok(UploadOffset { offset, length, blob: None })
    }

    async fn check(
        &self,
        call: JobId,
        path: &Path,
        receiver: Receiver,
        expected: Sha256,
    ) -> Result<(), Error> {
        let inner_of = |complete: bool| {
            if let Some(live) = self.lock().live.get_mut(&call) {
                match &mut live.output {
                    Some(output) if complete => output.complete = true,
                    output => *output = None,
                }
            }
        };
        match receiver.finish_unsynced(path, Some(expected)).await {
            Ok(_) => {
                inner_of(true);
                Ok(())
            }
            Err(error) => {
                inner_of(false);
                Err(error)
            }
        }
    }

    /// Keeps the output of a call for its caller, if it is whole and the one that was told of.
    pub(crate) fn keep(&self, call: JobId, output: &OutputPayload) -> Option<BlobId> {
        let mut inner = self.lock();
        let live = inner.live.get_mut(&call)?;
        let tenant = live.tenant.clone();
        let arrived = live.output.take()?;
        let right = arrived.complete && arrived.sha256 == output.sha256 && arrived.file.length == output.size;
        if !right {
            return None;
        }
        let id = BlobId::from(clock::new_uuid7());
        let media_type = Some(output.media_type.clone());
        let info = BlobInfo { id, size: output.size, sha256: output.sha256, media_type };
        inner.kept.insert(id, Kept { tenant, info, file: arrived.file });
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
        let inner = self.lock();
        let kept = inner.kept.get(&id).filter(|kept| kept.tenant == *tenant)?;
        Some((kept.info.clone(), Content::File(kept.file.path.clone())))
    }
}

fn over(call: JobId) -> Error {
    Error::NotFound(format!("this agent has no call {call}"))
}

fn not_open(call: JobId) -> Error {
    Error::NotFound(format!("no output upload is open for call {call}"))
}
