//! `job`: an operation of a site's resource. Its output becomes a flow; without one its result does, as JSON.

use super::{FlowContent, JobPayload, JobRequest, NewFlow, StepContext, StepDone, StepFailure};
use crate::{
    mediations::{
        definition::JobSpec,
        runs::{Direction, Flow, MAX_RESULT, MessageKind},
        steps::context::{flow_names, named},
        template::{self, Wanted},
    },
    model::Job,
};
use passerelle_config::{Diagnostics, Section};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The longest label of a flow.
const MAX_LABEL: usize = 255;

/// A step that is one job, or one for each flow that it reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobStep {
    /// The job.
    #[serde(flatten)]
    pub job: JobSpec,
    /// The label of the flow that its output becomes, a template; where nothing is said the name of the file, or of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    /// What the definition remembers when the run has succeeded, by name: templates that also see `result`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub watermarks: BTreeMap<String, String>,
}

/// The keys that are no job's.
const OWN: &[&str] = &["flow", "watermarks"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    flow: Option<String>,
    #[serde(default)]
    watermarks: BTreeMap<String, String>,
}

impl JobStep {
    pub(super) fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let (own_part, rest) = section.split(OWN);
        let own: Option<Own> = own_part.parse(diagnostics);
        let job = JobSpec::read(&rest, diagnostics)?;
        let Own { flow, watermarks } = own?;
        let marks = watermarks.iter().map(|(name, text)| (format!("watermarks.{name}"), text));
        let label = flow.iter().map(|text| ("flow".to_owned(), text));
        for (key, text) in marks.chain(label) {
            if let Err(why) = template::check(text) {
                diagnostics.push(own_part.finding(&key, why));
            }
        }
        Some(Self { job, flow, watermarks })
    }

    pub(super) async fn run(&self, context: &StepContext) -> Result<StepDone, StepFailure> {
        let mut done = StepDone::default();
        let jobs = run_jobs(&self.job, context).await?;
        let several = jobs.len() > 1;
        let mut results = Vec::new();
        for job in jobs {
            let result = job.result.clone().unwrap_or(Value::Null);
            if let Some(flow) = self.flow_of(context, &job, &result).await? {
                done.flows.push(flow);
            }
            done.messages.push((MessageKind::Information, told(&job)));
            results.push(result);
        }
        let result = if several { Value::Array(results) } else { results.pop().unwrap_or(Value::Null) };
        done.watermarks = self.watermarks(context, &result).await?;
        done.result =
            serde_json::to_string(&result).is_ok_and(|text| text.len() <= MAX_RESULT).then_some(result);
        Ok(done)
    }

    /// What the definition is to remember, for each name whose template gives something.
    async fn watermarks(
        &self,
        context: &StepContext,
        result: &Value,
    ) -> Result<BTreeMap<String, Value>, StepFailure> {
        let sources = self.watermarks.values();
        let wanted: Vec<_> = sources.map(|source| Wanted::Value(Value::String(source.clone()))).collect();
        let item = named([("result", result.clone())]);
        let filled = context.fill("watermarks: ", &context.names(), &[item], &wanted).await?;
        let names: Vec<_> = self.watermarks.keys().collect();
        let values = filled.into_iter().next().unwrap_or_else(|| Ok(Vec::new())).map_err(|(at, why)| {
            let name = names.get(at).map_or("", |name| name.as_str());
            StepFailure::permanent(format!("watermarks.{name}: {why}"))
        })?;
        Ok(names.into_iter().zip(values).filter_map(|(name, value)| Some((name.clone(), value?))).collect())
    }

    /// The flow that a job's output becomes, else its result.
    async fn flow_of(
        &self,
        context: &StepContext,
        job: &Job,
        result: &Value,
    ) -> Result<Option<NewFlow>, StepFailure> {
        let label = match &self.flow {
            Some(source) => context.text("flow", source, [("result", result.clone())]).await?,
            None => {
                let path = result.get("path").and_then(Value::as_str);
                let file = path.and_then(|path| path.rsplit('/').next()).filter(|name| !name.is_empty());
                file.unwrap_or(context.unit.as_str()).to_owned()
            }
        };
        let label: String = label.chars().filter(|c| !c.is_control()).take(MAX_LABEL).collect();
        Ok(match (&job.output, result) {
            (Some(output), _) => Some(NewFlow {
                label,
                media_type: output.media_type.clone(),
                direction: Direction::In,
                content: FlowContent::Output { job: job.id, size: output.size, sha256: output.sha256 },
            }),
            (None, Value::Null) => None,
            (None, result) => Some(NewFlow {
                direction: Direction::In,
                ..NewFlow::of_bytes(label, "application/json", result.to_string())
            }),
        })
    }
}

/// The jobs of a spec: one with the payload that it gives or with none, else one for each flow that the unit reads, all at
/// once.
pub(crate) async fn run_jobs(spec: &JobSpec, context: &StepContext) -> Result<Vec<Job>, StepFailure> {
    let names = context.names();
    if spec.payload.is_some() || context.inputs.is_empty() {
        let mut jobs = Vec::new();
        for request in spec.fill(context, &names, &[Map::new()]).await? {
            jobs.push(context.job("only", request?).await?);
        }
        return Ok(jobs);
    }
    let items: Vec<_> = (1..)
        .zip(&context.inputs)
        .map(|(index, flow)| named([("flow", flow_names(flow)), ("index", Value::from(index))]))
        .collect();
    let filled = spec.fill(context, &names, &items).await?;
    let with_flow = |(request, flow): (Result<JobRequest, StepFailure>, &Flow)| {
        let mut request = request?;
        request.payload = Some(JobPayload::Flow(flow.clone(), spec.media_type.clone()));
        // A flow whose content was replaced is sent as another job.
        Ok::<_, StepFailure>((flow.blob.to_string(), request))
    };
    let requests: Result<Vec<_>, _> = filled.into_iter().zip(&context.inputs).map(with_flow).collect();
    let mut waiting = futures_util::stream::FuturesOrdered::new();
    for (key, request) in requests? {
        waiting.push_back(async move { context.job(&key, request).await });
    }
    let mut jobs = Vec::new();
    let mut worst: Option<StepFailure> = None;
    // All of them are waited for: what is under way is not left to itself.
    while let Some(ended) = futures_util::StreamExt::next(&mut waiting).await {
        match ended {
            Ok(job) => jobs.push(job),
            Err(failure) if failure.stopped => return Err(failure),
            Err(failure) => {
                worst = Some(match worst.take() {
                    Some(first) if first.unknown || !failure.unknown => first,
                    _ => failure,
                })
            }
        }
    }
    worst.map_or(Ok(jobs), Err)
}

/// The line of the log about a job that succeeded.
pub(crate) fn told(job: &Job) -> String {
    let path = job.result.as_ref().and_then(|result| result.get("path")).and_then(Value::as_str);
    let path = path.map_or_else(String::new, |path| format!(" ({path})"));
    format!("{} on {} at {} succeeded{path}: job {}", job.operation, job.resource, job.site, job.id)
}
