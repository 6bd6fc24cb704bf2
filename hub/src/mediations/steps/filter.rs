//! `filter`: the records of each flow that it reads which meet a condition.

use super::{
    StepContext, StepDone, StepFailure,
    content::{self, Watch, produce, reader},
};
use crate::mediations::{
    expression::Expression,
    formats::{
        self,
        columns::Kind,
        layout::{Format, Layout, Quotes},
        read,
        write::{Evaluate, Writer},
    },
    runs::MessageKind,
};
use passerelle_config::{Diagnostics, Section};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{Read, Write};

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

    /// What it reads: a delimited text as it stands, so that what is kept is not written in another way. Where quotes tell
    /// texts from numbers, their types are needed to write them.
    fn reads(&self) -> Layout {
        let mut reads = self.from.clone();
        if reads.format == Format::Csv && reads.dialect().quotes != Quotes::Text {
            reads.columns.iter_mut().for_each(|column| column.kind = Kind::Text);
        }
        reads
    }

    /// What it writes: the same, as an array of its own where the records stood in a field.
    fn to(&self) -> Layout {
        let mut to = self.reads();
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
            let label = content::label(context, self.flow.as_deref(), Some(flow), &flow.label).await?;
            let (content, watch) = (context.open(flow).await?, Watch::new(context));
            let (step, name, given) = (self.clone(), flow.label.clone(), given.clone());
            let templates = context.app.templates.clone();
            let work = move |out: &mut dyn Write| {
                let mut input = reader(content)?;
                step.keep(&mut *input, out, &given, &mut templates.columns(), &|| watch.go_on())
                    .map_err(|error| error.at(&name))
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

    /// Writes the records that meet the condition; gives how many of how many.
    fn keep(
        &self,
        input: &mut dyn Read,
        out: &mut dyn Write,
        given: &[(String, Value)],
        evaluate: &mut dyn Evaluate,
        go_on: &dyn Fn() -> Result<(), formats::Error>,
    ) -> Result<(u64, u64), formats::Error> {
        let to = self.to();
        let mut writer = Writer::new(out, &to, evaluate)?;
        let each = &mut |place: &String, record: formats::Record| {
            go_on()?;
            let typed = match self.from.format {
                Format::Csv => read::typed_record(&record, &self.from).map_err(|error| error.at(place))?,
                _ => record.clone(),
            };
            let json = typed.into_json();
            let mut names: Vec<(&str, &Value)> =
                given.iter().map(|(name, value)| (name.as_str(), value)).collect();
            names.push(("record", &json));
            let met = self
                .when
                .holds(&names)
                .map_err(|error| formats::Error::data(format!("{place}: the condition (when): {error}")))?;
            if met { writer.write(place, record) } else { Ok(()) }
        };
        let had = read::records(input, &self.reads(), each)?;
        writer.without_records(had.header)?;
        Ok((writer.finish()?, had.records))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mediations::formats::tests::Here;

    fn kept(from: Value, when: &str, text: &str) -> Result<String, String> {
        let step: FilterStep = serde_json::from_value(json!({ "from": from, "when": when })).unwrap();
        let mut out = Vec::new();
        let kept = step.keep(&mut text.as_bytes(), &mut out, &[], &mut Here, &|| Ok(()));
        kept.map_err(|error| error.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn what_is_kept_stays_as_it_was_written() {
        let columns = json!([{ "name": "debit", "type": "number" }]);
        let csv = json!({ "format": "csv", "delimiter": ";", "columns": columns });
        let text = "debit;label\r\n1663.10;a\r\n00100.00;b\r\n5;c\r\n100000000000000000000.25;\"d;e\"\r\n";
        let left = text.replace("5;c\r\n", "");
        assert_eq!(kept(csv.clone(), "record.debit > 50.0", text).unwrap(), left);
        let bare = json!({ "format": "csv", "delimiter": ";", "header": false,
                           "columns": [{ "name": "debit", "type": "number" }, "label"] });
        assert_eq!(kept(bare, "record.debit > 50.0", "1663.10;a\n5;c\n").unwrap(), "1663.10;a\r\n");
        assert_eq!(kept(csv.clone(), "false", "debit;label\r\n").unwrap(), "debit;label\r\n");
        let error = kept(csv, "record.debit > 50.0", "debit;label\r\nx;a\r\n").unwrap_err();
        assert!(
            error.contains("line 2") && error.contains("\"debit\"") && error.contains("not a number"),
            "{error}"
        );
    }
}
