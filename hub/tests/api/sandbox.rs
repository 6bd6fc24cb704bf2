//! Templates that take memory or time without end: their runs fail, and nobody else's.

use crate::{
    receiver::{Receiver, hub, quick},
    support::{Answer, Hub, eventually},
};
use reqwest::Method;
use serde_json::{Value, json};

const DEFINITIONS: &str = "/v1/mediations/definitions";

fn mediation(name: &str, steps: Value) -> Value {
    json!({"name": name, "label": name, "trigger": {"kind": "manual"}, "steps": steps})
}

/// A run of the definition, at its end.
async fn run(hub: &Hub, definition: Value, body: Value) -> Value {
    run_as(hub, &hub.key, definition, body).await
}

async fn run_as(hub: &Hub, key: &str, definition: Value, body: Value) -> Value {
    let name = definition["name"].as_str().unwrap().to_owned();
    let post = async |path: &str, body: &Value| {
        Answer::of(hub.anonymous(Method::POST, path).bearer_auth(key).json(body)).await
    };
    post(DEFINITIONS, &json!({"definitions": [definition]})).await.expect(200);
    let run = post(&format!("{DEFINITIONS}/{name}/run"), &body).await.expect(201).json();
    let path = format!("/v1/mediations/runs/{}", run["guid"].as_str().unwrap());
    eventually(|| async {
        let shown = Answer::of(hub.anonymous(Method::GET, &path).bearer_auth(key)).await.expect(200).json();
        ["succeeded", "failed", "unknown"].map(Value::from).contains(&shown["state"]).then_some(shown)
    })
    .await
}

fn why(run: &Value) -> String {
    assert_eq!(run["state"], "failed", "{run:#}");
    run["messages"].as_array().unwrap().last().unwrap()["text"].as_str().unwrap_or_default().to_owned()
}

/// A value of `times` lists that hold each other: nothing as long as nobody writes it out.
fn doubled(times: usize) -> String {
    format!("{{% set a = ['x'] %}}{}", "{% set a = [a, a] %}".repeat(times))
}

#[tokio::test]
async fn a_template_that_takes_the_memory_fails_its_own_run() {
    let hub = Hub::start().await;
    let many = "[[['x'] * 1000000] * 1000000] * 1000000";
    let file = doubled(60) + "{{ a ~ '' }}";
    let step = json!([{"name": "make", "kind": "render", "template": file}]);
    let shown = why(&run(&hub, mediation("file", step), json!({})).await);
    assert!(shown.contains("takes more than 1024 MiB of memory"), "{shown}");
    let mut labels: Vec<String> =
        ["{{ a ~ '' }}", "{{ a | upper }}", "{{ '%s' | format(a) }}", "{{ [a] | join }}"]
            .map(|end| doubled(60) + end)
            .into();
    labels.push(format!("{{{{ ({many}) | pprint }}}}"));
    for (index, label) in labels.iter().enumerate() {
        let step = json!([{"name": "make", "kind": "render", "template": "x", "flow": label}]);
        let shown = why(&run(&hub, mediation(&format!("label-{index}"), step), json!({})).await);
        assert!(shown.contains("takes more than 256 MiB of memory"), "{label}: {shown}");
    }
    let csv = json!({"format": "csv", "columns": [{"name": "a", "value": format!("({many}) ~ record.a")}]});
    let step = json!([{"name": "make", "kind": "convert", "input": "trigger", "from": {"format": "csv"}, "to": csv}]);
    let flow = json!({"flows": [{"label": "in.csv", "payload": {"text": "a\r\n1\r\n"}}]});
    let shown = why(&run(&hub, mediation("columns", step), flow).await);
    assert!(shown.contains("takes more than 1024 MiB of memory"), "{shown}");
    // The hub is there, and so are its templates.
    let step =
        json!([{"name": "make", "kind": "render", "template": "{{ 1 + 1 }}", "flow": "{{ trigger.key }}"}]);
    let shown = run(&hub, mediation("good", step), json!({"key": "a"})).await;
    assert_eq!(
        (&shown["state"], &shown["flows"][0]["label"]),
        (&json!("succeeded"), &json!("a")),
        "{shown:#}"
    );
    hub.end().await;
}

#[tokio::test]
async fn a_template_that_compares_for_ever_is_ended_while_others_are_filled() {
    let hub = Hub::start().await;
    let both = doubled(60) + &doubled(60).replace("set a", "set b").replace("[a, a]", "[b, b]");
    let step = |label: String| json!([{"name": "make", "kind": "render", "template": "x", "flow": label}]);
    let endless = run(&hub, mediation("endless", step(both + "{{ a == b }}")), json!({}));
    let others = async {
        let other = hub.other_tenant().await;
        let shown = run_as(&hub, &other, mediation("good", step("{{ 6 * 7 }}".to_owned())), json!({})).await;
        assert_eq!(shown["flows"][0]["label"], "42", "{shown:#}");
    };
    let (endless, ()) = tokio::join!(endless, others);
    let shown = why(&endless);
    assert!(shown.contains("computes for more than"), "{shown}");
    hub.end().await;
}

/// To compile a template is to compute its constants: that is not the hub's to do either, nor when it reads what is stored.
#[tokio::test]
async fn a_definition_whose_templates_cannot_even_be_compiled_is_refused() {
    let hub = Hub::start().await;
    let apply = async |definition: Value| hub.post(DEFINITIONS, &json!({"definitions": [definition]})).await;
    let render = |template: &str| json!([{"name": "make", "kind": "render", "template": template}]);
    for (template, says) in [
        ("{{ ['xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'] * 100000000 ~ '' }}", "takes more than 256 MiB of memory"),
        (
            "{{ [1] * 99999999 == [1] * 99999999 }}{{ [1] * 99999999 == [1] * 99999999 }}",
            "computes for more than 5 s",
        ),
    ] {
        let refused =
            apply(mediation("worse", render(template))).await.expect_problem(400, "bad_request").json();
        let why = refused["detail"].as_str().unwrap();
        assert!(why.contains("definitions[1]") && why.contains("worse") && why.contains(says), "{why}");
    }
    let refused = apply(mediation("typo", render("{{ triger.key | uper }}"))).await;
    let refused = refused.expect_problem(400, "bad_request").json();
    let why = refused["detail"].as_str().unwrap();
    assert!(why.contains("steps[1].template: \"triger\"") && why.contains("no filter \"uper\""), "{why}");
    let toml = "[[mediation]]\nname = \"typo\"\ntrigger = { kind = \"manual\" }\n[[mediation.steps]]\nname = \"a\"\n\
                kind = \"render\"\ntemplate = \"{{ triger }}\"\n";
    let refused = hub.post(DEFINITIONS, &json!({"toml": toml, "file": "m.toml"})).await;
    let refused = refused.expect_problem(400, "bad_request").json();
    let why = refused["detail"].as_str().unwrap();
    assert!(why.contains("m.toml:7:12: mediation[1].steps[1].template: \"triger\""), "{why}");
    hub.end().await;
}

#[tokio::test]
async fn an_item_that_cannot_be_made_leaves_the_others_alone_where_it_may() {
    let hub = Hub::start().await;
    let lines: String =
        (0..120).map(|at| format!("{{\"a\":{}}}\n", if at == 70 { "null" } else { "1" })).collect();
    let flow = json!({"flows": [{"label": "in", "payload": {"text": lines}}]});
    let job = json!({"site": "paris", "resource": "compta", "operation": "drop", "params": {"path": "x{{ item.a }}"}});
    let steps = |job: Value| json!([{"name": "each", "kind": "for_each", "input": "trigger", "from": {"format": "ndjson"}, "job": job}]);
    let shown = why(&run(&hub, mediation("jobs", steps(job.clone())), flow.clone()).await);
    assert!(
        shown.contains("item 71: the job could not be made: params.path: null inside of a text"),
        "{shown}"
    );
    let jobs = hub.get("/v1/jobs").await.expect(200).json();
    assert_eq!(jobs["items"], json!([]), "no job is submitted where one cannot be made");
    // What is large is made a few at a time, and what is too large is told.
    let mut large = job.clone();
    large["params"] = json!({"path": "x", "a": "{{ [[0] * 400000] * 2 }}"});
    let shown = why(&run(&hub, mediation("larger", steps(large)), flow.clone()).await);
    assert!(shown.contains("item 1: the job could not be made: params.a: a value is too long"), "{shown}");
    let mut large = job;
    large["params"]["path"] = json!("x{{ index }}");
    large["payload"] = json!("{{ 'y' * 300000 }}");
    hub.post(DEFINITIONS, &json!({"definitions": [mediation("large", steps(large))]})).await.expect(200);
    hub.post(&format!("{DEFINITIONS}/large/run"), &flow).await.expect(201);
    eventually(|| async {
        let jobs = hub.get("/v1/jobs").await.expect(200).json();
        (jobs["items"].as_array().unwrap().len() == 4).then_some(())
    })
    .await;
    hub.end().await;
}

#[tokio::test]
async fn an_event_that_cannot_be_made_holds_up_the_others_only_where_it_shall() {
    let hub = hub(quick(), None).await;
    let endpoint = Receiver::start().await;
    endpoint.always_answers(200);
    let made = hub
        .post("/v1/subscriptions", &json!({"url": endpoint.url, "kinds": ["JobTermine"]}))
        .await
        .expect(201)
        .json();
    let steps = |on_error: &str| {
        json!([{
            "name": "each", "kind": "for_each", "input": "trigger", "from": {"format": "ndjson"}, "on_error": on_error,
            "webhook": {"subscription": made["id"], "event": "Item", "data": {"a": "x{{ item.a }}", "case": on_error}},
        }])
    };
    let of = |case: &str| {
        let sent = endpoint.received();
        sent.iter().filter(|one| one.json()["Data"]["case"] == case).count()
    };
    let flow = |lines: &str| json!({"flows": [{"label": "in", "payload": {"text": lines}}]});
    let lines = "{\"a\":1}\n{\"a\":2}\n{\"a\":null}\n{\"a\":4}\n";
    let shown = why(&run(&hub, mediation("goes-on", steps("continue")), flow(lines)).await);
    assert!(
        shown.contains("3 of 4 items done, 1 failed; item 3: the event could not be made: data.a: null"),
        "{shown}"
    );
    assert_eq!(of("continue"), 3);
    let lines = "{\"a\":null}\n{\"a\":2}\n{\"a\":3}\n";
    let shown = why(&run(&hub, mediation("stops", steps("stop")), flow(lines)).await);
    assert!(shown.contains("0 of 3 items done, 1 failed; item 1:"), "{shown}");
    assert_eq!(of("stop"), 0);
    hub.end().await;
}

/// Numbers, texts and their order go to another process and back.
#[tokio::test]
async fn what_columns_give_is_what_their_records_hold() {
    let hub = Hub::start().await;
    let values = [
        "0.1",
        "5e-324",
        "1.7976931348623157e308",
        "123456789.12345679",
        "8.41e21",
        "18446744073709551615",
        "-9223372036854775808",
        "\"é€\\u0000\\\"\"",
        "null",
        "true",
        "[1,{\"b\":null}]",
    ];
    // More than go over at once.
    let lines: Vec<String> =
        (0..700).map(|at| format!("{{\"a\":{},\"n\":{at}}}", values[at % values.len()])).collect();
    let columns = json!([{"name": "a", "value": "record.a"}, "n", {"name": "next", "value": "record.n + 1"}]);
    let convert = |to: Value| json!([{"name": "make", "kind": "convert", "input": "trigger", "from": {"format": "ndjson"}, "to": to}]);
    let flow = |text: &str| json!({"flows": [{"label": "in", "payload": {"text": text}}]});
    let to = json!({"format": "ndjson", "columns": columns});
    let shown = run(&hub, mediation("columns", convert(to.clone())), flow(&lines.join("\n"))).await;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    let made = shown["flows"].as_array().unwrap().iter().find(|flow| flow["source"] == "make").unwrap();
    let path = format!(
        "/v1/mediations/runs/{}/flows/{}",
        shown["guid"].as_str().unwrap(),
        made["guid"].as_str().unwrap()
    );
    let text = hub.get(&path).await.expect(200).text();
    let expected: Vec<String> = lines
        .iter()
        .enumerate()
        .map(|(at, line)| format!("{},\"next\":{}}}", line.strip_suffix('}').unwrap(), at + 1))
        .collect();
    let found: Vec<&str> = text.lines().collect();
    let parsed = |lines: &[&str]| {
        lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(found.len(), expected.len());
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    assert_eq!(parsed(&found), parsed(&expected));

    let mut wrong = lines;
    wrong[600] = r#"{"a":1,"n":"x"}"#.to_owned();
    let shown = run(&hub, mediation("columns", convert(to)), flow(&wrong.join("\n"))).await;
    let why = why(&shown);
    assert!(why.contains("line 601") && why.contains("column \"next\""), "{why}");
    hub.end().await;
}
