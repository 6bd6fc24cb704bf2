//! A transfer: the jobs that bring flows of the run where they belong.

use super::{
    StepContext, StepDone, StepFailure,
    job::{run_jobs, told},
};
use crate::mediations::{definition::JobSpec, runs::MessageKind};

/// Carries out a transfer; it gives no flows.
pub(crate) async fn run(spec: &JobSpec, context: &StepContext) -> Result<StepDone, StepFailure> {
    let jobs = run_jobs(spec, context).await?;
    let messages = jobs.iter().map(|job| (MessageKind::Information, told(job))).collect();
    Ok(StepDone { messages, ..StepDone::default() })
}
