//! The engine: takes runs that are ready, works through their units, and gives way to jobs.
//!
//! Runs of one definition take turns unless it says `parallel`. A run that is under way is one task, most of whose time
//! passes waiting for jobs; large content and long computing are done by few at once ([`crate::mediations::steps::Place`]).
//! Nothing here is the truth: that is the store's, and after a restart of the hub everything begins with what is open there.

mod lines;
mod work;

use super::{
    definition::{Definition, check::TRIGGER},
    runs::Flow,
    steps::Places,
};
use crate::api::App;
use lines::Lines;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;

/// How many runs are under way at once.
const UNDER_WAY: usize = 10_000;
/// How many runs of one definition, where it says `parallel`.
const PARALLEL: usize = 200;
/// How many open runs are read at a time at the start.
const BATCH: usize = 1000;
/// When a store that failed is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Carries runs on until the hub ends.
pub async fn run(app: App) {
    let engine = Engine {
        versions: Arc::default(),
        // One computes, the other reads or writes.
        places: Places::new(std::thread::available_parallelism().map_or(2, usize::from).max(2)),
        app,
    };
    engine.run().await;
}

#[derive(Clone)]
struct Engine {
    app: App,
    versions: Arc<work::VersionCache>,
    places: Arc<Places>,
}

impl Engine {
    async fn run(self) {
        let stop = self.app.stop.clone();
        let mut lines = Lines::new(PARALLEL);
        if !self.take_up(&mut lines).await {
            return;
        }
        let mut under_way: JoinSet<lines::Turn> = JoinSet::new();
        let queue = Arc::clone(&self.app.store.shared_handle().runs);
        loop {
            for open in queue.take() {
                lines.add(open);
            }
            while under_way.len() < UNDER_WAY
                && let Some(turn) = lines.next()
            {
                let engine = self.clone();
                under_way.spawn(async move {
                    engine.work(turn.seq).await;
                    turn
                });
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = queue.told() => {}
                Some(ended) = under_way.join_next(), if !under_way.is_empty() => match ended {
                    Ok(turn) => lines.ended(&turn),
                    // Its line stays closed until the hub starts anew: better late than twice.
                    Err(error) => tracing::error!(%error, "A mediation run's task ended by a fault"),
                },
            }
        }
        // Each sees the signal; what they wait for is in the store.
        while under_way.join_next().await.is_some() {}
    }

    /// All runs that are open in the store. False: the hub ends.
    async fn take_up(&self, lines: &mut Lines) -> bool {
        let mut after = 0;
        loop {
            match self.app.store.open_runs(after, BATCH).await {
                Ok(found) => {
                    let more = found.len() == BATCH;
                    after = found.last().map_or(after, |last| last.seq);
                    found.into_iter().for_each(|open| lines.add(open));
                    if !more {
                        return true;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "Could not read the open mediation runs");
                    tokio::select! {
                        () = tokio::time::sleep(AGAIN) => {}
                        () = self.app.stop.cancelled() => return false,
                    }
                }
            }
        }
    }
}

/// The flows that a unit reads: those that it names, by the step that made them or by their label; else those of the step
/// before (where its kind reads at all), and for a transfer those of the last step that gave any.
#[must_use]
pub fn inputs_of(definition: &Definition, position: usize, flows: &[Flow]) -> Vec<Flow> {
    let of =
        |source: &str| -> Vec<Flow> { flows.iter().filter(|flow| flow.source == source).cloned().collect() };
    let (named, reads) = match definition.steps.get(position) {
        Some(entry) => (&entry.input, entry.step.reads_by_default()),
        None => match position.checked_sub(definition.steps.len()).and_then(|at| definition.transfer.get(at))
        {
            Some(transfer) => (&transfer.input, true),
            None => return Vec::new(),
        },
    };
    if let Some(super::definition::Inputs(named)) = named {
        let mut found: Vec<Flow> = Vec::new();
        for wanted in named {
            let by_source = of(wanted);
            let is_step =
                wanted == TRIGGER || definition.steps.iter().any(|step| step.name.as_str() == wanted);
            let more = match is_step {
                true => by_source,
                false => flows.iter().filter(|flow| flow.label == *wanted).cloned().collect(),
            };
            for flow in more {
                if !found.iter().any(|known| known.guid == flow.guid) {
                    found.push(flow);
                }
            }
        }
        return found;
    }
    if !reads {
        return Vec::new();
    }
    let steps = definition.steps.get(..position.min(definition.steps.len())).unwrap_or_default();
    if position < definition.steps.len() {
        return of(steps.last().map_or(TRIGGER, |step| step.name.as_str()));
    }
    let last = steps.iter().rev().map(|step| of(step.name.as_str())).find(|found| !found.is_empty());
    last.unwrap_or_else(|| of(TRIGGER))
}

/// What a unit names in `input` that is neither a step nor the label of a flow of this run.
#[must_use]
pub fn missing_input<'d>(definition: &'d Definition, position: usize, flows: &[Flow]) -> Option<&'d str> {
    let named = match definition.steps.get(position) {
        Some(entry) => entry.input.as_ref(),
        None => definition.transfer.get(position.checked_sub(definition.steps.len())?)?.input.as_ref(),
    };
    named?.0.iter().map(String::as_str).find(|wanted| {
        *wanted != TRIGGER
            && !definition.steps.iter().any(|step| step.name.as_str() == *wanted)
            && !flows.iter().any(|flow| flow.label == *wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mediations::{Direction, FlowId};
    use passerelle_protocol::{BlobId, Sha256};
    use serde_json::json;

    fn flow(source: &str, label: &str) -> Flow {
        Flow {
            guid: FlowId::make(),
            label: label.to_owned(),
            source: source.to_owned(),
            direction: Direction::In,
            processed: false,
            size: 0,
            sha256: Sha256::of(b""),
            media_type: "text/csv".to_owned(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            replaced_at: None,
            blob: BlobId::from(crate::clock::new_uuid7()),
        }
    }

    #[test]
    fn a_unit_reads_what_it_names_and_a_transfer_the_last_that_was_made() {
        let job = |name: &str, input: serde_json::Value| {
            let mut step =
                json!({"name": name, "kind": "job", "site": "s", "resource": "r", "operation": "o"});
            if !input.is_null() {
                step["input"] = input;
            }
            step
        };
        let out = |input: serde_json::Value| {
            let mut transfer = json!({"site": "s", "resource": "r", "operation": "o"});
            if !input.is_null() {
                transfer["input"] = input;
            }
            transfer
        };
        let definition = json!({
            "name": "x", "trigger": {"kind": "manual"},
            "steps": [job("a", json!(null)), job("b", json!(["trigger", "two.csv", "a", "a"])), job("c", json!(null))],
            "transfer": [out(json!(null)), out(json!([])), out(json!("trigger"))],
        });
        let definition = Definition::of_json(&definition).unwrap().definition;
        let flows =
            [flow("trigger", "one.csv"), flow("a", "two.csv"), flow("a", "three.csv"), flow("b", "four.csv")];
        let labels = |position: usize, flows: &[Flow]| -> Vec<String> {
            inputs_of(&definition, position, flows).into_iter().map(|flow| flow.label).collect()
        };
        assert!(labels(0, &flows).is_empty(), "a job step sends nothing unless it says so");
        assert_eq!(labels(1, &flows), ["one.csv", "two.csv", "three.csv"]);
        assert_eq!(labels(3, &flows), ["four.csv"]);
        assert_eq!(labels(3, &flows[..1]), ["one.csv"]);
        assert!(labels(4, &flows).is_empty());
        assert_eq!(labels(5, &flows), ["one.csv"]);
        assert!(labels(6, &flows).is_empty());
        assert_eq!(missing_input(&definition, 1, &flows), None);
        assert_eq!(missing_input(&definition, 1, &flows[..1]), Some("two.csv"));
        assert!((2..8).all(|position| missing_input(&definition, position, &[]).is_none()));
    }
}
