//! `render`: a file out of a template, which sees the run and the records of the flows that it reads.

use super::{
    StepContext, StepDone, StepFailure,
    content::{self, Watch, produce},
};
use crate::mediations::{
    formats::{encoding, layout::Layout, layout::LineEnd},
    rendering::{
        self,
        output::{Output, Sink},
    },
    runs::MessageKind,
};
use passerelle_config::{Diagnostics, Section};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The most that it reads.
const MAX_INPUT: u64 = 16 * 1024 * 1024;
/// The most records that a template sees.
const MAX_RECORDS: usize = 200_000;

/// A step that makes a file out of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenderStep {
    /// The template. `records` are those of all flows that it reads, `inputs[0].records` those of the first.
    pub template: String,
    /// How the flows are written that it reads; where nothing is said, they are texts: `inputs[0].text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Layout>,
    /// The label of what it makes, a template; where nothing is said, the step's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    /// Its media type.
    #[serde(default = "text", skip_serializing_if = "is_text")]
    pub media_type: String,
    /// Its encoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Whether a byte order mark stands before it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bom: bool,
    /// What is written for a character that the encoding does not have; without it that is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmappable: Option<char>,
    /// What the template's line ends become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_end: Option<LineEnd>,
}

fn text() -> String {
    "text/plain".to_owned()
}

fn is_text(media_type: &str) -> bool {
    media_type == "text/plain"
}

impl RenderStep {
    pub(super) fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let step: Self = section.parse(diagnostics)?;
        let before = diagnostics.findings().len();
        if let Err(why) = rendering::check(&step.template) {
            diagnostics.push(section.finding("template", why));
        }
        if let Some(from) = &step.from {
            content::layout(&section, "from", from.check_read(), diagnostics);
        }
        content::checked(&section, "flow", step.flow.as_deref(), diagnostics);
        match encoding::named(step.encoding.as_deref()) {
            Err(why) => {
                let why = why.split_once(": ").map_or(why.as_str(), |(_, why)| why);
                diagnostics.push(section.finding("encoding", why));
            }
            Ok(charset) if step.bom && !charset.has_bom() => {
                diagnostics.push(section.finding("bom", format!("{} has none", charset.name())));
            }
            Ok(_) => {}
        }
        if step.unmappable.is_some_and(|c| !c.is_ascii() || c.is_control()) {
            diagnostics.push(section.finding("unmappable", "must be a printable ASCII character, as ?"));
        }
        let token = step.media_type.split_once('/').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty());
        if !token
            || step.media_type.len() > 200
            || !step.media_type.bytes().all(|b| (0x20..0x7f).contains(&b))
        {
            diagnostics.push(section.finding("media_type", "must be the like of text/plain"));
        }
        (diagnostics.findings().len() == before).then_some(step)
    }

    pub(super) async fn run(&self, context: &StepContext) -> Result<StepDone, StepFailure> {
        let label = content::label(context, self.flow.as_deref(), None, context.unit.as_str()).await?;
        let mut names = context.names();
        match &self.from {
            Some(layout) => {
                let by_flow = content::records(context, layout, MAX_RECORDS, MAX_INPUT).await?;
                for (index, records) in by_flow.iter().enumerate() {
                    if let Some(input) = names.get_mut("inputs").and_then(|inputs| inputs.get_mut(index)) {
                        input["records"] = json!(records);
                    }
                }
                names.insert("records".to_owned(), by_flow.into_iter().flatten().collect());
            }
            None => {
                for (index, flow) in context.inputs.iter().enumerate() {
                    let bytes = context.read(flow, MAX_INPUT).await?;
                    // What is no text is not shown as one; a template that asks for it is told so.
                    if let (Ok(text), Some(input)) = (
                        std::str::from_utf8(&bytes),
                        names.get_mut("inputs").and_then(|inputs| inputs.get_mut(index)),
                    ) {
                        input["text"] = json!(text);
                    }
                }
            }
        }
        let output = Output {
            charset: encoding::named(self.encoding.as_deref()).map_err(StepFailure::permanent)?,
            bom: self.bom,
            unmappable: self.unmappable,
            line_end: self.line_end,
        };
        let (template, watch) = (self.template.clone(), Watch::new(context));
        let templates = context.app.templates.clone();
        let work = move |out: &mut dyn std::io::Write| {
            let mut sink = Sink::new(out, output)?;
            templates.render(&template, names, &mut |text| {
                watch.go_on()?;
                sink.put(text)
            })?;
            sink.finish()
        };
        let (made, bytes) = produce(context, label, self.media_type.clone(), work).await?;
        let said = format!("{} rendered: {bytes} bytes", made.label);
        Ok(StepDone {
            messages: vec![(MessageKind::Information, said)],
            result: Some(json!({ "bytes": bytes })),
            flows: vec![made],
            ..StepDone::default()
        })
    }
}
