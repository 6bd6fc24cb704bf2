//! `convert`: records of each flow that it reads, written in another format.

use super::{
    StepContext, StepDone, StepFailure,
    content::{self, Watch, produce, reader},
};
use crate::mediations::{
    formats::{self, layout::Layout, read, write::Writer},
    runs::MessageKind,
};
use passerelle_config::{Diagnostics, Section};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A step that writes records in another format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvertStep {
    /// How the flows are written that it reads.
    pub from: Layout,
    /// How those are written that it makes.
    pub to: Layout,
    /// The label of what it makes, a template; where nothing is said, that of the flow it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
}

impl ConvertStep {
    pub(super) fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let step: Self = section.parse(diagnostics)?;
        let before = diagnostics.findings().len();
        content::layout(&section, "from", step.from.check_read(), diagnostics);
        content::layout(&section, "to", step.to.check_write(), diagnostics);
        content::checked(&section, "flow", step.flow.as_deref(), diagnostics);
        (diagnostics.findings().len() == before).then_some(step)
    }

    pub(super) async fn run(&self, context: &StepContext) -> Result<StepDone, StepFailure> {
        let mut done = StepDone::default();
        let mut all = 0;
        for flow in &context.inputs {
            let label = content::label(context, self.flow.as_deref(), Some(flow), &flow.label).await?;
            let (content, watch) = (context.open(flow).await?, Watch::new(context));
            let (from, to, name) = (self.from.clone(), self.to.clone(), flow.label.clone());
            let templates = context.app.templates.clone();
            let work = move |out: &mut dyn std::io::Write| {
                let mut columns = templates.columns();
                let mut writer = Writer::new(out, &to, &mut columns)?;
                let mut input = reader(content)?;
                let each = &mut |place: &String, record: formats::Record| {
                    watch.go_on()?;
                    writer.write(place, record)
                };
                let read = read::records(&mut *input, &from, each);
                // What was read before a mistake may have one of its own, which comes first.
                let read = writer.evaluated().and(read).map_err(|error| error.at(&name))?;
                writer.without_records(read.header)?;
                writer.finish()
            };
            let (made, count) = produce(context, label, self.to.media_type(), work).await?;
            let said = format!("{count} records of {} converted to {}", flow.label, made.label);
            done.messages.push((MessageKind::Information, said));
            done.flows.push(made);
            all += count;
        }
        done.result = Some(json!({ "records": all }));
        Ok(done)
    }
}
