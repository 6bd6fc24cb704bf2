//! `mediations list | show | apply | run | restart | ignore | runs | logs`.

use crate::{
    Failure,
    args::mediations::{
        ApplyDefinitions, ListDefinitions, ListRuns, Logs, Mediations, OneRun, RunMediation, ShowMediation,
    },
    client::Client,
    jobs,
    out::Out,
    render,
};
use serde_json::{Map, Value, json};
use std::{fs, io::Read as _, path::Path, time::Duration};

/// How often a run that is followed is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// The longest file of definitions that a hub takes.
const MAX_FILE: u64 = 1024 * 1024;

pub(crate) async fn run(command: Mediations, out: &Out) -> Result<(), Failure> {
    match command {
        Mediations::List(command) => list(&command, out).await,
        Mediations::Show(command) => show(&command, out).await,
        Mediations::Apply(command) => apply(&command, out).await,
        Mediations::Run(command) => start(&command, out).await,
        Mediations::Restart(command) => act(&command, "restart", out).await,
        Mediations::Ignore(command) => act(&command, "ignore", out).await,
        Mediations::Runs(command) => runs(&command, out).await,
        Mediations::Logs(command) => logs(&command, out).await,
    }
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn items(page: &Value) -> &[Value] {
    page.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn more(page: &Value, out: &Out) {
    if let Some(next) = page.get("next_cursor").and_then(Value::as_str) {
        out.text(&format!("more with --cursor {}\n", render::clean(next)));
    }
}

fn query(pairs: &[(&'static str, &Option<String>)]) -> Vec<(&'static str, String)> {
    pairs.iter().filter_map(|(key, value)| Some((*key, (*value).clone()?))).collect()
}

async fn list(command: &ListDefinitions, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let limit = command.page.limit.map(|limit| limit.to_string());
    let query = query(&[("limit", &limit), ("cursor", &command.page.cursor)]);
    let page = client.get("v1/mediations/definitions", &query).await?;
    if command.connection.json {
        out.json(&page);
        return Ok(());
    }
    let row = |item: &Value| {
        let at = |path: &str| text(item.pointer(path));
        let is = |truth: bool, yes: &str, no: &str| if truth { yes } else { no }.to_owned();
        vec![
            at("/definition/name"),
            at("/last_run/state"),
            at("/last_run/created_at"),
            is(item.get("late_since").is_some_and(|since| !since.is_null()), "late", "-"),
            at("/definition/trigger/kind"),
            is(item.pointer("/definition/enabled") == Some(&Value::Bool(true)), "yes", "no"),
            at("/definition/label"),
        ]
    };
    let head = ["NAME", "STATE", "LAST RUN", "LATE", "TRIGGER", "ENABLED", "LABEL"];
    out.text(&render::table(&head, items(&page).iter().map(row).collect(), out.colour));
    more(&page, out);
    Ok(())
}

async fn runs(command: &ListRuns, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let ListRuns { definition, state, since, until, page, .. } = command;
    let limit = page.limit.map(|limit| limit.to_string());
    let query = query(&[
        ("definition", definition),
        ("state", state),
        ("since", since),
        ("until", until),
        ("limit", &limit),
        ("cursor", &page.cursor),
    ]);
    let page = client.get("v1/mediations/runs", &query).await?;
    if command.connection.json {
        out.json(&page);
        return Ok(());
    }
    let row = |run: &Value| {
        ["/guid", "/state", "/definition/name", "/trigger", "/created_at", "/last_finished_step", "/detail"]
            .iter()
            .map(|path| text(run.pointer(path)))
            .collect()
    };
    let head = ["GUID", "STATE", "MEDIATION", "TRIGGER", "BEGUN", "LAST STEP", "DETAIL"];
    out.text(&render::table(&head, items(&page).iter().map(row).collect(), out.colour));
    more(&page, out);
    Ok(())
}

async fn show(command: &ShowMediation, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let found = match client.definition(&command.id).await {
        // A guid may be that of a run.
        Err(failure)
            if failure.message.starts_with("not_found") && command.id.parse::<uuid::Uuid>().is_ok() =>
        {
            client.mediation_run(&command.id).await
        }
        other => other,
    }?;
    if command.connection.json {
        out.json(&found);
        return Ok(());
    }
    out.text(&if found.get("occurrence").is_some() { told_run(&found) } else { told_definition(&found) });
    Ok(())
}

fn lines(pairs: &[(&str, String)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name:<12} {}\n", render::clean(value))).collect()
}

fn told_definition(found: &Value) -> String {
    let at = |path: &str| text(found.pointer(path));
    let head = lines(&[
        ("mediation", format!("{} ({})", at("/definition/name"), at("/definition/label"))),
        ("guid", at("/definition/guid")),
        ("version", format!("{} of {}", at("/version"), at("/changed_at"))),
        ("enabled", at("/definition/enabled")),
        ("succeeded", at("/succeeded_at")),
        ("late since", at("/late_since")),
        ("last run", format!("{} {}", at("/last_run/guid"), at("/last_run/state"))),
    ]);
    let body = found.get("definition").map(|definition| format!("{definition:#}\n")).unwrap_or_default();
    head + &body
}

fn told_run(run: &Value) -> String {
    let at = |path: &str| text(run.pointer(path));
    let state = format!("{}: {}", at("/state"), at("/label/en"));
    let mut told = lines(&[
        ("run", at("/guid")),
        (
            "mediation",
            format!(
                "{} ({}), version {}",
                at("/definition/name"),
                at("/definition/label"),
                at("/definition/version")
            ),
        ),
        ("state", state),
        ("detail", at("/detail")),
        ("trigger", format!("{} at {}", at("/occurrence/kind"), at("/occurrence/at"))),
        ("begun", at("/created_at")),
        ("finished", at("/finished_at")),
        ("restarts", at("/restarts")),
    ]);
    let list = |key: &str| run.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for step in list("steps") {
        let of = |key: &str| text(step.get(key));
        let jobs = step.get("jobs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let jobs: String = jobs
            .iter()
            .map(|job| format!(", job {} {}", text(job.get("id")), text(job.get("state"))))
            .collect();
        told += &lines(&[("step", format!("{} ({}): {}{jobs}", of("name"), of("kind"), of("state")))]);
    }
    for flow in list("flows") {
        let of = |key: &str| text(flow.get(key));
        let processed = if flow.get("processed") == Some(&Value::Bool(true)) { ", processed" } else { "" };
        let said = format!(
            "{} {} of {}: {} bytes{processed}",
            of("direction"),
            of("label"),
            of("source"),
            of("size")
        );
        told += &lines(&[("flow", said)]);
    }
    told + &list("messages").iter().map(message).collect::<String>()
}

fn message(message: &Value) -> String {
    let of = |key: &str| text(message.get(key));
    format!("{}\n", render::clean(&format!("{}  {:<11}  {}", of("at"), of("kind"), of("text"))))
}

async fn apply(command: &ApplyDefinitions, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let (name, toml) = match &command.file {
        Some(file) => {
            let read = fs::read_to_string(file);
            (
                file.display().to_string(),
                read.map_err(|e| Failure::usage(format!("cannot read {}: {e}", file.display())))?,
            )
        }
        None => {
            let mut text = String::new();
            let read = std::io::stdin().lock().take(MAX_FILE + 1).read_to_string(&mut text);
            read.map_err(|e| Failure::usage(format!("cannot read standard input: {e}")))?;
            ("standard input".to_owned(), text)
        }
    };
    let applied = client.apply(&name, &toml, command.dry_run).await.map_err(findings)?;
    if command.connection.json {
        out.json(&applied);
        return Ok(());
    }
    for item in items(&applied) {
        let of = |key: &str| text(item.get(key));
        let outcome = match (of("outcome").as_str(), command.dry_run) {
            ("created", true) => "would be created".to_owned(),
            ("changed", true) => "would be changed".to_owned(),
            (outcome, _) => outcome.to_owned(),
        };
        out.text(&format!(
            "{}\n",
            render::clean(&format!("{} {outcome}: version {}", of("name"), of("version")))
        ));
        let differences =
            item.get("differences").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for difference in differences {
            let of = |key: &str| text(difference.get(key));
            out.text(&format!(
                "  {}\n",
                render::clean(&format!("{}: {} -> {}", of("path"), of("before"), of("after")))
            ));
        }
    }
    Ok(())
}

/// Findings come one a line; a file that is wrong is the caller's matter.
fn findings(failure: Failure) -> Failure {
    match failure.message.strip_prefix("bad_request: ") {
        Some(found) => Failure::usage(found.replace('\u{fffd}', "\n")),
        None => failure,
    }
}

async fn start(command: &RunMediation, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let key = command.key.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let mut body = json!({ "key": key });
    if let Some(data) = &command.data {
        body["data"] = given(data)?;
    }
    let mut flows = Vec::new();
    for (label, file) in &command.files {
        let payload: Map<String, Value> = jobs::payload(&client, Path::new(file), None).await?;
        flows.push(json!({ "label": label, "payload": payload }));
    }
    body["flows"] = Value::Array(flows);
    let run = client.start_run(&command.definition, &body).await?;
    let guid = text(run.get("guid"));
    if command.follow {
        if !command.connection.json {
            out.text(&format!("run {}\n", render::clean(&guid)));
        }
        return follow(&client, &guid, command.connection.json, out).await;
    }
    print(&run, command.connection.json, out);
    Ok(())
}

fn given(data: &str) -> Result<Value, Failure> {
    let text = match data.strip_prefix('@') {
        Some(file) => fs::read_to_string(file)
            .map_err(|e| Failure::usage(format!("--data: cannot read {file}: {e}")))?,
        None => data.to_owned(),
    };
    serde_json::from_str(&text).map_err(|e| Failure::usage(format!("--data: expected JSON: {e}")))
}

async fn act(command: &OneRun, action: &str, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let run = client.act_on_run(&command.id, action).await?;
    print(&run, command.connection.json, out);
    Ok(())
}

fn print(run: &Value, json: bool, out: &Out) {
    if json {
        out.json(run);
        return;
    }
    let of = |path: &str| text(run.pointer(path));
    let told = format!("run {} of {}: {}", of("/guid"), of("/definition/name"), of("/state"));
    out.text(&format!("{}\n", render::clean(&told)));
}

async fn logs(command: &Logs, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    if command.follow {
        return follow(&client, &command.id, command.connection.json, out).await;
    }
    tell(&client, &command.id, 0, command.connection.json, out).await.map(|_| ())
}

/// Prints the messages after one of them; gives the last.
async fn tell(client: &Client, id: &str, after: i64, json: bool, out: &Out) -> Result<i64, Failure> {
    let found = client.run_messages(id, after).await?;
    let mut last = after;
    for item in items(&found) {
        last = item.get("seq").and_then(Value::as_i64).unwrap_or(last).max(last);
        out.text(&if json { format!("{item}\n") } else { message(item) });
    }
    Ok(last)
}

/// Prints what a run tells until it ends.
async fn follow(client: &Client, id: &str, json: bool, out: &Out) -> Result<(), Failure> {
    let mut last = 0;
    loop {
        // The state is read first: what is told before the end is then printed in any case.
        let run = client.mediation_run(id).await?;
        last = tell(client, id, last, json, out).await?;
        let state = text(run.get("state"));
        match state.as_str() {
            "queued" | "running" => tokio::time::sleep(LOOK).await,
            "succeeded" => return Ok(()),
            _ => {
                let said = match run.get("detail").and_then(Value::as_str) {
                    Some(detail) => format!("the run is {state}: {detail}"),
                    None => format!("the run is {state}"),
                };
                return Err(Failure::job(render::clean(&said)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{findings, given, told_run};
    use crate::{Failure, USAGE};
    use serde_json::json;

    #[test]
    fn a_run_is_told_with_its_steps_flows_and_messages_and_harmless_to_the_terminal() {
        let run = json!({
            "guid": "0193", "definition": { "name": "export", "label": "Export", "version": 2 }, "state": "failed",
            "label": { "en": "Failed", "fr": "En erreur" }, "detail": "drop: full\u{1b}[2J", "restarts": 0,
            "occurrence": { "kind": "daily", "at": "2026-11-23T05:00:00Z" }, "created_at": "2026-11-23T05:00:01Z",
            "finished_at": null,
            "steps": [{ "name": "fec", "kind": "convert", "state": "finished", "jobs": [] },
                      { "name": "drop", "kind": "transfer", "state": "failed", "jobs": [{ "id": "0194", "state": "failed" }] }],
            "flows": [{ "direction": "out", "label": "FEC.txt", "source": "fec", "size": 12, "processed": true }],
            "messages": [{ "seq": 1, "at": "2026-11-23T05:00:02Z", "kind": "error", "text": "drop: full" }],
        });
        let expected = "\
run          0193
mediation    export (Export), version 2
state        failed: Failed
detail       drop: full\u{fffd}[2J
trigger      daily at 2026-11-23T05:00:00Z
begun        2026-11-23T05:00:01Z
finished     -
restarts     0
step         fec (convert): finished
step         drop (transfer): failed, job 0194 failed
flow         out FEC.txt of fec: 12 bytes, processed
2026-11-23T05:00:02Z  error        drop: full
";
        assert_eq!(told_run(&run), expected);
    }

    #[test]
    fn findings_stand_on_lines_of_their_own() {
        let told = findings(Failure::hub("bad_request: m.toml:1:1: a\u{fffd}m.toml:2:1: b"));
        assert_eq!((told.code, told.message.as_str()), (USAGE, "m.toml:1:1: a\nm.toml:2:1: b"));
        assert_eq!(findings(Failure::hub("conflict: x")).message, "conflict: x");
        assert_eq!(given("{\"a\": 1}").unwrap(), json!({ "a": 1 }));
        assert!(given("@/no/such/file").is_err() && given("{").is_err());
    }
}
