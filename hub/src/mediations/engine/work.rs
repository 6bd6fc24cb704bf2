//! One run, from where it stands to its end.

use super::{Engine, inputs_of, missing_input};
use crate::{
    mediations::{
        definition::{Definition, templates},
        ids::DefinitionId,
        runs::{MessageKind, Run},
        steps::{FlowContent, StepContext, StepDone, StepFailure, transfer},
        store::runs::{Finished, Next, Versions, succeed_at_once},
    },
    store,
};
use passerelle_protocol::limits::MAX_INLINE_PAYLOAD;
use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How often a unit is tried whose failure may pass.
const TRIES: u32 = 5;
/// The wait after the first failure; doubled with each.
const BACKOFF: Duration = Duration::from_secs(1);
/// The longest wait that an endpoint may ask for.
const LONGEST: Duration = Duration::from_secs(300);
/// How often a hub may end in the middle of one unit before the run fails: it may be the unit that ends it.
const HUBS: u32 = 20;
/// When a store that failed is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// How many versions of definitions are kept, and how many patterns of their conditions, which are the larger part.
const MAX_CACHED: usize = 4000;
const MAX_PATTERNS: usize = 500;

/// Definitions by version: they never change.
#[derive(Default)]
pub(super) struct VersionCache(Mutex<Cached>);

#[derive(Default)]
struct Cached {
    versions: HashMap<(DefinitionId, u32), Arc<Definition>>,
    patterns: usize,
}

impl VersionCache {
    fn get(&self, guid: DefinitionId, version: u32) -> Option<Arc<Definition>> {
        let cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.versions.get(&(guid, version)).cloned()
    }

    fn keep(&self, version: u32, definition: &Arc<Definition>) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (definition.guid, version);
        if cached.versions.contains_key(&key) {
            return;
        }
        let patterns = templates::patterns(definition);
        if cached.versions.len() >= MAX_CACHED || cached.patterns + patterns > MAX_PATTERNS {
            *cached = Cached::default();
        }
        cached.patterns += patterns;
        cached.versions.insert(key, Arc::clone(definition));
    }
}

impl Engine {
    /// Works on a run until its end, or the hub's.
    pub(super) async fn work(&self, seq: i64) {
        let Some(mut run) = self.begin(seq).await else { return };
        self.versions.keep(run.version, &run.definition);
        loop {
            if run.position >= run.definition.units() {
                let run = Arc::new(run);
                self.insist(|| succeed_at_once(&self.app.store, Arc::clone(&run))).await;
                return;
            }
            let shared = Arc::new(run);
            let went = if shared.tries > HUBS {
                Err(StepFailure::permanent(format!(
                    "a hub ended {HUBS} times in the middle of this step: look for the cause in its log, then restart the run"
                )))
            } else {
                self.unit(&shared).await
            };
            let context = match went {
                Ok(finished) => {
                    let finished = |run: &Arc<Run>| Finished {
                        run: Arc::clone(run),
                        unit: finished.unit.clone(),
                        read: finished.read.clone(),
                        done: finished.done.clone(),
                    };
                    match self.commit(|| self.app.store.finish_unit(finished(&shared))).await {
                        Some(Ok(Next::Unit(next))) => {
                            run = *next;
                            continue;
                        }
                        Some(Ok(Next::Over)) | None => return,
                        Some(Err(refused)) => StepFailure::permanent(refused.to_string()),
                    }
                }
                Err(failure) if failure.stopped => return,
                Err(failure) => failure,
            };
            let unit = shared.definition.unit_name(shared.position).map_or("", |name| name.as_str());
            let why = format!("{unit}: {}", context.message);
            tracing::info!(
                run = %shared.guid, mediation = %shared.definition.name, unit, unknown = context.unknown,
                "Mediation run failed"
            );
            let unknown = context.unknown;
            self.insist(|| self.app.store.fail_run(Arc::clone(&shared), unknown, why.clone())).await;
            return;
        }
    }

    async fn begin(&self, seq: i64) -> Option<Run> {
        let cache = Arc::clone(&self.versions);
        let known: Versions = Arc::new(move |guid, version| cache.get(guid, version));
        loop {
            match self.app.store.begin_run(seq, Arc::clone(&known)).await {
                Ok(run) => return run,
                Err(error) => {
                    tracing::error!(%error, run = seq, "Could not begin with a mediation run");
                    if !self.pause(AGAIN).await {
                        return None;
                    }
                }
            }
        }
    }

    /// The unit that comes now, tried again while its failure may pass.
    async fn unit(&self, run: &Arc<Run>) -> Result<Finished, StepFailure> {
        let mut wait = BACKOFF;
        let mut tries = 1;
        loop {
            let failure = match self.once(run).await {
                Ok(finished) => return Ok(finished),
                Err(failure) => failure,
            };
            if !failure.retryable || failure.stopped || tries >= TRIES {
                return Err(failure);
            }
            let wait_now = failure.after.map_or(wait, |asked| asked.clamp(wait, LONGEST));
            let said = format!("{failure}; it is tried again in {} s", wait_now.as_secs());
            if let Err(error) = self.app.store.say_of_run(run.seq, MessageKind::Information, said).await {
                tracing::warn!(%error, run = %run.guid, "Could not note why a step is tried again");
            }
            if !self.pause(wait_now).await {
                return Err(StepFailure::stopped());
            }
            wait *= 2;
            tries += 1;
        }
    }

    async fn once(&self, run: &Arc<Run>) -> Result<Finished, StepFailure> {
        let position = run.position;
        let Some(unit) = run.definition.unit_name(position).cloned() else {
            return Err(StepFailure::permanent("the definition has no such step"));
        };
        if let Some(label) = missing_input(&run.definition, position, &run.flows) {
            let message =
                format!("input: no step is named {label:?}, and no flow of this run is labelled so");
            return Err(StepFailure::permanent(message));
        }
        let context = StepContext {
            app: self.app.clone(),
            run: Arc::clone(run),
            unit: unit.clone(),
            inputs: inputs_of(&run.definition, position, &run.flows),
            places: Arc::clone(&self.places),
        };
        let mut done = match run.definition.steps.get(position) {
            Some(entry) => Box::pin(entry.step.run(&context)).await?,
            None => {
                let at = position - run.definition.steps.len();
                let Some(entry) = run.definition.transfer.get(at) else {
                    return Err(StepFailure::permanent("the definition has no such transfer"));
                };
                Box::pin(transfer::run(&entry.job, &context)).await?
            }
        };
        self.place_large(run, &mut done).await?;
        let read = context.inputs.iter().map(|flow| flow.guid).collect();
        Ok(Finished { run: Arc::clone(run), unit, read, done })
    }

    /// Puts large flows into files, which the database is not for.
    async fn place_large(&self, run: &Run, done: &mut StepDone) -> Result<(), StepFailure> {
        for flow in &mut done.flows {
            if let FlowContent::Bytes(bytes) = &flow.content
                && bytes.len() > MAX_INLINE_PAYLOAD
            {
                let whole = futures_util::stream::iter([Ok::<_, Infallible>(bytes.clone())]);
                let media_type = Some(flow.media_type.clone());
                let blobs = &self.app.blobs;
                let info = blobs.put_stream(run.tenant.clone(), media_type, None, whole).await?;
                flow.content = FlowContent::Blob(info);
            }
        }
        Ok(())
    }

    /// Tries a write until it is done; nothing if the hub ends before. What the store refuses for good is handed back.
    async fn commit<T, F>(&self, mut write: impl FnMut() -> F) -> Option<Result<T, store::Error>>
    where
        F: Future<Output = Result<T, store::Error>>,
    {
        loop {
            match write().await {
                Err(error @ (store::Error::Internal(_) | store::Error::Full)) => {
                    tracing::error!(%error, "Could not note how a mediation run goes on");
                    if !self.pause(AGAIN).await {
                        return None;
                    }
                }
                decided => return Some(decided),
            }
        }
    }

    /// The same for what is not refused.
    async fn insist<F>(&self, write: impl FnMut() -> F)
    where
        F: Future<Output = Result<(), store::Error>>,
    {
        if let Some(Err(error)) = self.commit(write).await {
            tracing::error!(%error, "Could not end a mediation run");
        }
    }

    /// False: the hub ends.
    async fn pause(&self, wait: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = self.app.stop.cancelled() => false,
        }
    }
}
