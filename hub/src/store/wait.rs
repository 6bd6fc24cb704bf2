//! Waiting for a job to settle.

use super::{Error, Store};
use crate::model::Job;
use passerelle_protocol::{JobId, Name};
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

impl Store {
    /// Waits until the job is settled, at most for `limit`; answers with the job as it then stands.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn wait(&self, tenant: Name, id: JobId, limit: Duration) -> Result<Job, Error> {
        let until = tokio::time::Instant::now() + limit;
        loop {
            // Registered before the look, so that no change falls between.
            let settled = self.settled(id);
            let job = self.job(tenant.clone(), id).await?;
            if job.state.is_settled() {
                return Ok(job);
            }
            match settled.within(until).await {
                Some(job) if job.state.is_settled() => return Ok(job),
                // Something of it changed, in another process perhaps.
                Some(_) => {}
                None if tokio::time::Instant::now() >= until => return self.job(tenant, id).await,
                None => {}
            }
        }
    }

    /// Waits for a job that is about to be submitted: nothing of it has to be read to know that it is not settled yet.
    /// What comes out is the settled job, or nothing if the time was too short.
    pub(crate) fn settled(&self, id: JobId) -> Settled {
        Settled { store: self.clone(), id, job: Some(self.shared().waiters.register(id)) }
    }
}

/// Somebody waits for a job; see [`Store::settled`].
pub(crate) struct Settled {
    store: Store,
    id: JobId,
    job: Option<oneshot::Receiver<Arc<Job>>>,
}

impl Settled {
    /// The job as it was when it settled, unless that takes longer.
    pub(crate) async fn within(mut self, until: tokio::time::Instant) -> Option<Job> {
        let job = tokio::time::timeout_at(until, self.job.as_mut()?).await.ok()?.ok()?;
        self.job = None;
        Some(Arc::unwrap_or_clone(job))
    }
}

impl Drop for Settled {
    fn drop(&mut self) {
        if let Some(waiting) = self.job.take() {
            self.store.shared().waiters.tidy(self.id, waiting);
        }
    }
}
