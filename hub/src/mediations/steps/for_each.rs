//! `for_each`: a job or a webhook for each record, or for each flow, so many at a time.
//!
//! Each item has a key of its own, made of its flow's content and its place in it. A step that is worked through again, after
//! a crash or a restart, finds the jobs and the notes of the items that are done and makes those that are missing.

use super::{
    JobPayload, JobRequest, StepContext, StepDone, StepFailure, WebhookStep,
    content::{self, Watch, layout},
};
use crate::{
    mediations::{
        definition::JobSpec,
        expression::Expression,
        formats::{self, layout::Layout},
        runs::{Flow, MessageKind},
        sandbox::BATCH,
        steps::{
            NewFlow,
            context::{flow_names, named},
        },
    },
    model::Job,
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use passerelle_config::{Diagnostics, Section};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
};

/// The most items of one step: each is a job.
const MAX_ITEMS: usize = 10_000;
/// The most that it reads.
const MAX_INPUT: u64 = 16 * 1024 * 1024;
/// The most that its flow of results may have.
const MAX_RESULTS: usize = 16 * 1024 * 1024;
/// The most jobs at a time.
const MAX_PARALLEL: usize = 32;
/// What a condition may use.
const NAMES: &[&str] = &["item", "index", "run", "trigger", "steps", "watermarks"];

/// A step that is one job an item.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ForEachStep {
    /// The job; its templates also see `item` and `index`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobSpec>,
    /// Or the event that the cloud side is told of; its templates see the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookStep>,
    /// How the flows are written whose records are the items; where nothing is said, the flows themselves are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Layout>,
    /// Only items that meet this condition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Expression>,
    /// How many at a time.
    pub parallel: usize,
    /// What one failed item does to those that come after it.
    pub on_error: OnError,
    /// The label of a flow with the results, one JSON object a line; where nothing is said there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
}

/// What one failed item does to those that come after it; the step fails either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// They are done nevertheless.
    #[default]
    Continue,
    /// They are left for the restart.
    Stop,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    from: Option<Layout>,
    when: Option<Expression>,
    parallel: Option<usize>,
    #[serde(default)]
    on_error: OnError,
    flow: Option<String>,
}

/// One item with the key of its job.
struct Item {
    number: usize,
    key: String,
    value: Value,
    flow: Option<Flow>,
}

impl ForEachStep {
    pub(super) fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let before = diagnostics.findings().len();
        let job = section.part("job").map(|part| JobSpec::read(&part, diagnostics));
        let webhook = section.part("webhook").map(|part| WebhookStep::read(part, diagnostics));
        match (&job, &webhook) {
            (None, None) => {
                let said = "missing; this table is required, or webhook: what is done for each item";
                diagnostics.push(section.finding("job", said));
            }
            (Some(_), Some(_)) => {
                diagnostics.push(section.finding("webhook", "give either job or webhook"));
            }
            (None, Some(Some(WebhookStep { event: None, .. }))) => {
                diagnostics.push(section.finding("webhook.event", "missing; name the kind of event"));
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        let (_, rest) = section.split(&["job", "webhook"]);
        let Raw { from, when, parallel, on_error, flow } = rest.parse(diagnostics)?;
        let parallel = parallel.unwrap_or(4);
        if !(1..=MAX_PARALLEL).contains(&parallel) {
            diagnostics
                .push(rest.finding("parallel", format!("must be 1 to {MAX_PARALLEL}, found {parallel}")));
        }
        if let Some(from) = &from {
            layout(&rest, "from", from.check_read(), diagnostics);
        }
        if let Some(Err(why)) = when.as_ref().map(|when| when.knows_only(NAMES)) {
            diagnostics.push(rest.finding("when", why));
        }
        content::checked(&rest, "flow", flow.as_deref(), diagnostics);
        if flow.is_some() && webhook.is_some() {
            diagnostics.push(rest.finding("flow", "a webhook has no results: leave this out"));
        }
        let step =
            Self { job: job.flatten(), webhook: webhook.flatten(), from, when, parallel, on_error, flow };
        (diagnostics.findings().len() == before).then_some(step)
    }

    pub(super) async fn run(&self, context: &StepContext) -> Result<StepDone, StepFailure> {
        let names = context.names();
        let items = self.items(context, &names).await?;
        let count = items.len();
        if self.job.is_some() {
            // No job is submitted where one of them cannot be made.
            for batch in items.chunks(BATCH) {
                for (number, _, work) in self.prepare(context, &names, batch).await? {
                    work.map_err(|failure| of_item(number, failure))?;
                }
            }
        }
        let Ended { done: done_items, mut jobs, failed } = self.carry_out(context, &names, &items).await?;
        if !failed.is_empty() {
            return Err(worst(count, done_items, failed, self.on_error));
        }
        jobs.sort_by_key(|(number, _)| *number);
        let mut done = StepDone {
            messages: vec![(MessageKind::Information, format!("{count} items done"))],
            result: Some(json!({ "items": count })),
            ..StepDone::default()
        };
        if let Some(source) = &self.flow {
            let label = content::label(context, Some(source), None, "").await?;
            done.flows.push(results(label, &jobs)?);
        }
        Ok(done)
    }

    /// Does what there is to do for each item. They are made as they are carried out: all of them at once could be more than
    /// the hub has memory for.
    async fn carry_out(
        &self,
        context: &StepContext,
        names: &Map<String, Value>,
        items: &[Item],
    ) -> Result<Ended, StepFailure> {
        let (mut batches, mut ready) = (items.chunks(BATCH), VecDeque::new());
        let stopped = AtomicBool::new(false);
        let mut working = FuturesUnordered::new();
        let mut ended = Ended::default();
        let mut again = None;
        loop {
            stopped.store(self.stops(&ended), Ordering::Relaxed);
            let goes_on = !stopped.load(Ordering::Relaxed) && again.is_none();
            if goes_on && working.len() < self.parallel {
                if let Some((number, key, work)) = ready.pop_front() {
                    match work {
                        Err(failure) => ended.take(number, Some(Err(failure)))?,
                        Ok(work) => working.push(start(context, &stopped, number, key, work)),
                    }
                    continue;
                }
                if let Some(batch) = batches.next() {
                    let mut preparing = std::pin::pin!(self.prepare(context, names, batch));
                    // Those under way go on meanwhile.
                    let made = loop {
                        tokio::select! {
                            made = &mut preparing => break made,
                            Some((number, done)) = working.next() => {
                                ended.take(number, done)?;
                                stopped.store(self.stops(&ended), Ordering::Relaxed);
                            }
                        }
                    };
                    match made {
                        Ok(made) => ready.extend(made),
                        Err(failure) => again = Some(failure),
                    }
                    continue;
                }
            }
            // Those under way are waited for: their ends belong to this run.
            match working.next().await {
                Some((number, done)) => ended.take(number, done)?,
                None => return again.map_or(Ok(ended), Err),
            }
        }
    }

    async fn items(
        &self,
        context: &StepContext,
        names: &Map<String, Value>,
    ) -> Result<Vec<Item>, StepFailure> {
        let mut items = Vec::new();
        match &self.from {
            Some(layout) => {
                let by_flow = content::records(context, layout, MAX_ITEMS, MAX_INPUT).await?;
                for (flow, records) in context.inputs.iter().zip(by_flow) {
                    for (index, value) in records.into_iter().enumerate() {
                        let key = format!("{}/{}", flow.blob, index + 1);
                        items.push(Item { number: items.len() + 1, key, value, flow: None });
                    }
                }
            }
            None => {
                for flow in &context.inputs {
                    let (number, value) = (items.len() + 1, flow_names(flow));
                    items.push(Item { number, key: flow.blob.to_string(), value, flow: Some(flow.clone()) });
                }
            }
        }
        let Some(when) = self.when.clone() else { return Ok(items) };
        let names: Vec<(&'static str, Value)> = NAMES
            .iter()
            .filter(|name| when.names().contains(**name))
            .filter_map(|name| Some((*name, names.get(*name)?.clone())))
            .collect();
        let watch = Watch::new(context);
        let kept = content::compute(context, move || {
            let mut kept = Vec::new();
            for item in items {
                watch.go_on()?;
                let index = Value::from(item.number);
                let mut given = vec![("item", &item.value), ("index", &index)];
                given.extend(names.iter().map(|(name, value)| (*name, value)));
                let met = when.holds(&given).map_err(|error| {
                    formats::Error::data(format!("item {}: the condition (when): {error}", item.number))
                })?;
                if met {
                    kept.push(item);
                }
            }
            Ok(kept)
        });
        kept.await
    }

    fn stops(&self, ended: &Ended) -> bool {
        self.on_error == OnError::Stop && !ended.failed.is_empty()
    }

    /// What is done for each of a few items, or why it cannot be made.
    ///
    /// # Errors
    /// What may go well the next time; the end of the hub.
    async fn prepare(
        &self,
        context: &StepContext,
        names: &Map<String, Value>,
        items: &[Item],
    ) -> Result<Vec<Prepared>, StepFailure> {
        let work = match self.work(context, names, items).await {
            Ok(work) => work,
            Err(failure) if failure.retryable || failure.stopped => return Err(failure),
            Err(failure) => {
                let message = match items {
                    // It is the failure of one of them, and nobody knows of which.
                    [first, .., last] => {
                        format!("one of the items {} to {}: {}", first.number, last.number, failure.message)
                    }
                    _ => failure.message.clone(),
                };
                items
                    .iter()
                    .map(|_| Err(StepFailure { message: message.clone(), ..failure.clone() }))
                    .collect()
            }
        };
        Ok(items.iter().zip(work).map(|(item, work)| (item.number, item.key.clone(), work)).collect())
    }

    async fn work(
        &self,
        context: &StepContext,
        names: &Map<String, Value>,
        items: &[Item],
    ) -> Result<Vec<Result<Work, StepFailure>>, StepFailure> {
        let named = items
            .iter()
            .map(|item| named([("item", item.value.clone()), ("index", Value::from(item.number))]))
            .collect::<Vec<_>>();
        let Some(job) = &self.job else {
            let missing = || StepFailure::permanent("the step has neither job nor webhook");
            let step = self.webhook.as_ref().ok_or_else(missing)?;
            let filled = step.fill(context, names, &named).await?;
            let work = |data: Result<Value, StepFailure>| Ok(Work::Webhook(Box::new(step.clone()), data?));
            return Ok(filled.into_iter().map(work).collect());
        };
        let filled = job.fill(context, names, &named).await?;
        let work = |(request, item): (Result<JobRequest, StepFailure>, &Item)| {
            let mut request = request?;
            if let (None, Some(flow)) = (&request.payload, &item.flow) {
                request.payload = Some(JobPayload::Flow(flow.clone(), job.media_type.clone()));
            }
            Ok(Work::Job(Box::new(request)))
        };
        Ok(filled.into_iter().zip(items).map(work).collect())
    }
}

/// The number of an item, its key, and what is done for it.
type Prepared = (usize, String, Result<Work, StepFailure>);

/// Carries out what is done for an item, unless the step has stopped before it began.
async fn start(
    context: &StepContext,
    stopped: &AtomicBool,
    number: usize,
    key: String,
    work: Work,
) -> (usize, Option<Result<Option<Job>, StepFailure>>) {
    if stopped.load(Ordering::Relaxed) {
        return (number, None);
    }
    (number, Some(work.carry_out(context, &key).await))
}

/// What became of items.
#[derive(Default)]
struct Ended {
    done: usize,
    jobs: Vec<(usize, Job)>,
    failed: Vec<(usize, StepFailure)>,
}

impl Ended {
    /// Counts one that ended; nothing if it was left out.
    ///
    /// # Errors
    /// The end of the hub.
    fn take(
        &mut self,
        number: usize,
        ended: Option<Result<Option<Job>, StepFailure>>,
    ) -> Result<(), StepFailure> {
        match ended {
            None => {}
            Some(Ok(job)) => {
                self.done += 1;
                self.jobs.extend(job.map(|job| (number, job)));
            }
            Some(Err(failure)) if failure.stopped => return Err(failure),
            Some(Err(failure)) => self.failed.push((number, failure)),
        }
        Ok(())
    }
}

fn of_item(number: usize, failure: StepFailure) -> StepFailure {
    StepFailure { message: format!("item {number}: {}", failure.message), ..failure }
}

/// What is done for one item.
enum Work {
    Job(Box<JobRequest>),
    Webhook(Box<WebhookStep>, Value),
}

impl Work {
    async fn carry_out(self, context: &StepContext, key: &str) -> Result<Option<Job>, StepFailure> {
        match self {
            Self::Job(request) => context.job(key, *request).await.map(Some),
            Self::Webhook(step, data) => step.tell(context, key, data).await.map(|()| None),
        }
    }
}

/// What the step says when items failed: the first of them, and whether any effect is unknown. It is tried again while that may
/// help an item: those that are done are not done again.
fn worst(count: usize, done: usize, mut failed: Vec<(usize, StepFailure)>, on_error: OnError) -> StepFailure {
    failed.sort_by_key(|(number, failure)| (!failure.unknown, *number));
    let mut may_pass = failed.iter().map(|(_, failure)| failure.retryable);
    let retryable = match on_error {
        OnError::Stop => may_pass.all(|may_pass| may_pass),
        OnError::Continue => may_pass.any(|may_pass| may_pass),
    };
    let after = failed.iter().filter_map(|(_, failure)| failure.after).max();
    let others = failed.len();
    let unknown = failed.iter().any(|(_, failure)| failure.unknown);
    let (number, first) =
        failed.into_iter().next().unwrap_or_else(|| (0, StepFailure::permanent("no item failed")));
    let message = format!("{done} of {count} items done, {others} failed; item {number}: {}", first.message);
    StepFailure { unknown, retryable, after, ..StepFailure::permanent(message) }
}

/// The results of all items, one a line.
fn results(label: String, jobs: &[(usize, Job)]) -> Result<NewFlow, StepFailure> {
    let mut lines = String::new();
    for (number, job) in jobs {
        let line = json!({ "index": number, "job": job.id, "result": job.result });
        lines.push_str(&line.to_string());
        lines.push('\n');
        if lines.len() > MAX_RESULTS {
            let most = MAX_RESULTS / 1024 / 1024;
            return Err(StepFailure::permanent(format!("flow: the results have more than {most} MiB")));
        }
    }
    Ok(NewFlow::of_bytes(label, "application/x-ndjson", lines))
}
