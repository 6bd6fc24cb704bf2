//! `filter`: the records of each flow that it reads which meet a condition.

use super::{
    StepContext, StepDone, StepFailure,
    content::{self, Watch, produce, reader},
};
use crate::mediations::{
    expression::Expression,
    formats::{
        self,
        layout::{Format, Layout},
        read,
        write::Writer,
    },
    rendering::Templates,
    runs::MessageKind,
};
use passerelle_config::{Diagnostics, Section};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a condition may use.
const NAMES: &[&str] = &["record", "run", "trigger", "steps", "watermarks"];

/// A step that keeps some of the records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterStep {
    /// The condition over `record`, in the expression language.
    pub when: Expression,
    /// How the flows are written that it reads, and makes.
    pub from: Layout,
    /// The label of what it makes, a template; where nothing is said, that of the flow it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
}

impl FilterStep {
    pub(super) fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let step: Self = section.parse(diagnostics)?;
        let before = diagnostics.findings().len();
        content::layout(&section, "from", step.from.check_read(), diagnostics);
        content::checked(&section, "flow", step.flow.as_deref(), diagnostics);
        if let Err(why) = step.when.knows_only(NAMES) {
            diagnostics.push(section.finding("when", why));
        }
        (diagnostics.findings().len() == before).then_some(step)
    }

    /// What it writes: the same, as an array of its own where the records stood in a field.
    fn to(&self) -> Layout {
        let mut to = self.from.clone();
        to.at = None;
        // The header decides, as it did in what was read.
        if to.format == Format::Csv && self.from.dialect().header {
            to.columns.clear();
        }
        to
    }

    pub(super) async fn run(&self, context: &StepContext) -> Result<StepDone, StepFailure> {
        let mut done = StepDone::default();
        let names = context.names();
        let given: Vec<(String, Value)> = NAMES
            .iter()
            .filter(|name| self.when.names().contains(**name))
            .filter_map(|name| Some(((*name).to_owned(), names.get(*name)?.clone())))
            .collect();
        let (mut kept, mut read) = (0, 0);
        for flow in &context.inputs {
            let label = content::label(context, self.flow.as_deref(), Some(flow), &flow.label)?;
            let (content, watch) = (context.open(flow).await?, Watch::new(context));
            let (from, to, when) = (self.from.clone(), self.to(), self.when.clone());
            let (name, given) = (flow.label.clone(), given.clone());
            let work = move |out: &mut dyn std::io::Write| {
                let templates = Templates::new();
                let mut writer = Writer::new(out, &to, &templates)?;
                let mut input = reader(content)?;
                let each = &mut |place: &String, record: formats::Record| {
                    watch.go_on()?;
                    let json = record.clone().into_json();
                    let mut names: Vec<(&str, &Value)> =
                        given.iter().map(|(name, value)| (name.as_str(), value)).collect();
                    names.push(("record", &json));
                    let met = when.holds(&names).map_err(|error| {
                        formats::Error::data(format!("{place}: the condition (when): {error}"))
                    })?;
                    if met { writer.write(place, record) } else { Ok(()) }
                };
                let read = read::records(&mut *input, &from, each).map_err(|error| error.at(&name))?;
                writer.without_records(read.header)?;
                Ok((writer.finish()?, read.records))
            };
            let (made, (count, of)) = produce(context, label, self.from.media_type(), work).await?;
            let said = format!("{count} of {of} records of {} kept", flow.label);
            done.messages.push((MessageKind::Information, said));
            done.flows.push(made);
            kept += count;
            read += of;
        }
        done.result = Some(json!({ "records": kept, "of": read }));
        Ok(done)
    }
}
