//! What a step sees of its run, and what it may do.

use super::{
    StepFailure,
    job_call::JobRequest,
    places::{Place, Places},
};
use crate::{
    api::App,
    mediations::{
        runs::{Flow, Run},
        sandbox::Filled,
        template::Wanted,
    },
    model::Job,
    store::Content,
};
use bytes::Bytes;
use passerelle_protocol::Name;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What a step sees and may do.
pub struct StepContext {
    /// Store, blobs, sessions, and the signal that the hub ends.
    pub app: App,
    /// The run, with all its flows, the results of the steps before, and the watermarks.
    pub run: Arc<Run>,
    /// The step's or transfer's name.
    pub unit: Name,
    /// The flows that it reads.
    pub inputs: Vec<Flow>,
    pub(crate) places: Arc<Places>,
}

impl StepContext {
    /// What templates and expressions see: `run`, `trigger`, `steps`, `flows`, `inputs`, `watermarks`.
    #[must_use]
    pub fn names(&self) -> Map<String, Value> {
        let run = &self.run;
        let flows = |flows: &[Flow]| Value::Array(flows.iter().map(flow_names).collect());
        let mut steps = Map::new();
        for entry in &run.definition.steps {
            let own: Vec<Flow> =
                run.flows.iter().filter(|flow| flow.source == entry.name.as_str()).cloned().collect();
            let result = run.results.get(entry.name.as_str()).cloned().unwrap_or(Value::Null);
            steps.insert(entry.name.to_string(), json!({"result": result, "flows": flows(&own)}));
        }
        let definition = &run.definition;
        let names = json!({
            "run": {
                "guid": run.guid, "created_at": run.created_at, "restarts": run.restarts,
                "definition": {"guid": definition.guid, "name": definition.name, "label": definition.label},
            },
            "trigger": run.occurrence,
            "steps": steps,
            "flows": flows(&run.flows),
            "inputs": flows(&self.inputs),
            "watermarks": run.watermarks,
        });
        match names {
            Value::Object(names) => names,
            _ => Map::new(),
        }
    }

    /// Fills templates for each of `items` (few), whose names are put over `names`; for each what they give, or the number of
    /// the template that does not fit and why.
    ///
    /// # Errors
    /// What ended all of it, after `place`.
    pub(crate) async fn fill(
        &self,
        place: &str,
        names: &Map<String, Value>,
        items: &[Map<String, Value>],
        wanted: &[Wanted],
    ) -> Result<Vec<Filled>, StepFailure> {
        let filled = self.app.templates.fill(&self.run.tenant, names, items, wanted).await;
        filled.map_err(|fault| match fault.said(place) {
            _ if self.app.stop.is_cancelled() => StepFailure::stopped(),
            (why, true) => StepFailure::retryable(why),
            (why, false) => StepFailure::permanent(why),
        })
    }

    /// The text that the template under `key` gives, which sees `more` besides.
    ///
    /// # Errors
    /// What does not fit, with the key.
    pub(crate) async fn text(
        &self,
        key: &str,
        source: &str,
        more: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Result<String, StepFailure> {
        let wanted = [Wanted::Text(source.to_owned())];
        let filled = self.fill(&format!("{key}: "), &self.names(), &[named(more)], &wanted).await?;
        let wrong = |why: &str| StepFailure::permanent(format!("{key}: {why}"));
        match filled.into_iter().next() {
            Some(Ok(values)) => match values.into_iter().next().flatten() {
                Some(Value::String(text)) => Ok(text),
                _ => Err(wrong("gives no text")),
            },
            Some(Err((_, why))) => Err(wrong(&why)),
            None => Err(wrong("gives no text")),
        }
    }

    /// The content of a flow, for a step that streams it.
    ///
    /// # Errors
    /// If it is gone, or the store cannot be read.
    pub async fn open(&self, flow: &Flow) -> Result<Content, StepFailure> {
        let found = self.app.blobs.open(self.run.tenant.clone(), flow.blob).await;
        Ok(found.map(|(_, content)| content)?)
    }

    /// The whole content of a flow, if it has at most `max` bytes. Take a [`Place`] before.
    ///
    /// # Errors
    /// If it is larger, or cannot be read.
    pub async fn read(&self, flow: &Flow, max: u64) -> Result<Bytes, StepFailure> {
        if flow.size > max {
            return Err(StepFailure::permanent(format!(
                "flow {} has {} bytes, this step takes at most {max}",
                flow.label, flow.size
            )));
        }
        match self.open(flow).await? {
            Content::Bytes(bytes) => Ok(bytes),
            Content::File(path) => tokio::fs::read(path).await.map(Bytes::from).map_err(|error| {
                tracing::warn!(%error, flow = %flow.guid, "Could not read a flow");
                StepFailure::retryable(format!("the content of flow {} could not be read", flow.label))
            }),
        }
    }

    /// Waits for a place for large content or long computing.
    ///
    /// # Errors
    /// [`StepFailure::stopped`] when the hub ends.
    pub async fn place(&self) -> Result<Place, StepFailure> {
        tokio::select! {
            place = self.places.take(&self.run.tenant) => Ok(place),
            () = self.app.stop.cancelled() => Err(StepFailure::stopped()),
        }
    }

    /// Submits a job under `key`, which tells it from the unit's other jobs (at most 64 bytes), and waits until it is
    /// settled. The same key finds the same job again, whatever died in between.
    ///
    /// # Errors
    /// If it did not succeed: what its error says, `unknown` if nobody knows its effect.
    pub async fn job(&self, key: &str, request: JobRequest) -> Result<Job, StepFailure> {
        super::job_call::carry_out(self, key, request).await
    }

    /// What was noted under `key` by this unit, before the hub died perhaps.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn noted(&self, key: &str) -> Result<Option<Value>, StepFailure> {
        Ok(self.app.store.unit_note(self.run.seq, self.unit.clone(), key.to_owned()).await?)
    }

    /// Notes something under `key` (at most 64 bytes), on disk when this returns.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub async fn note(&self, key: &str, value: Value) -> Result<(), StepFailure> {
        Ok(self.app.store.note_unit(self.run.seq, self.unit.clone(), key.to_owned(), value).await?)
    }
}

/// Names of one item.
pub(crate) fn named(more: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    more.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A flow as templates see it.
#[must_use]
pub fn flow_names(flow: &Flow) -> Value {
    json!({
        "guid": flow.guid, "label": flow.label, "source": flow.source, "size": flow.size,
        "sha256": flow.sha256, "media_type": flow.media_type, "created_at": flow.created_at,
    })
}
