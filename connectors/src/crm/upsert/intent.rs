//! What is journalled before the first write, and what a repeated attempt makes of it: fields that somebody wrote after the
//! earlier run are left alone.

use super::{Engine, pass};
use crate::{
    Failure,
    crm::vocabulary::{Field, Given, Record},
};
use aws_lc_rs::digest;
use serde_json::{Map, Value, json};

impl<'a> Engine<'a> {
    /// A repeated attempt that finds all as wanted has done its work, whatever the version is by now.
    pub(super) fn already_done(&self, record: &Record) -> bool {
        self.call.prior_intent.is_some() && self.differing(record).is_empty()
    }

    /// The fields to write; and those that somebody wrote after an earlier run of this job began.
    pub(super) fn to_write(&self, record: &Record) -> (Vec<Given<'a>>, Vec<String>) {
        let differing = self.differing(record);
        let Some(base) = self.base() else { return (differing, Vec::new()) };
        let (mut write, mut superseded) = (Vec::new(), Vec::new());
        for given in differing {
            let name = &given.field.name;
            let found = record.fields.get(name).unwrap_or(&Value::Null);
            match base.get(name).and_then(Value::as_str) {
                Some(was) if was != self.print(given.field, found) => superseded.push(name.clone()),
                Some(_) | None => write.push(given),
            }
        }
        (write, superseded)
    }

    /// What the fields were before an earlier run of this job wrote: nothing, if there was no record then.
    fn base(&self) -> Option<&Map<String, Value>> {
        self.call.prior_intent.as_ref()?.state.get("base")?.as_object()
    }

    /// A short digest of a value, which tells nothing of it.
    fn print(&self, field: &Field, value: &Value) -> String {
        let value = field.kind.read(value);
        let value = if value.as_str() == Some("") { Value::Null } else { value };
        let text = format!("{} {} {value}", self.call.job, field.name);
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Journals what is about to be written.
    pub(super) async fn pass(&self, record: Option<&Record>) -> Result<(), Failure> {
        let prints = |of: &dyn Fn(&str) -> Value| -> Map<String, Value> {
            let print = |given: &Given<'_>| self.print(given.field, &of(&given.field.name));
            self.fields.iter().map(|given| (given.field.name.clone(), Value::String(print(given)))).collect()
        };
        let base = match (record, self.base()) {
            // The first run's view counts: what changed since is somebody's.
            (_, Some(base)) => base.clone(),
            (Some(record), None) => prints(&|name| record.fields.get(name).cloned().unwrap_or_default()),
            // Nothing was there: what a later run finds beside the wanted values was written after ours.
            (None, None) => prints(&|_| Value::Null),
        };
        pass(self.call, json!({ "crm": "upsert", "base": base })).await
    }
}
