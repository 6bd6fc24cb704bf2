//! Records of a CRM through hub and agent, beside a plain script with the product's own client library on the same server:
//! Tryton with `proteus`, and an OData service with a script of one kept connection, which is less than any library does.
//!
//! `tests/run` installs servers and libraries into `target/test-crm`.

use crate::{
    Effort,
    line::{Line, Target},
    load::many,
};
use passerelle_tests::{
    Agent, Hub,
    odata::{self, Kind, OData},
    run,
    tryton::{self, Release, Tryton, python},
};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    process::Command,
    time::{Duration, Instant},
};

/// Our clients; the script has one, as scripts have.
const CLIENTS: usize = 16;

/// Upserts each key twice, then reads all that changed: prints records a second of both.
const PROTEUS: &str = r#"
import datetime, sys, time
from proteus import Model, config

url, user, password, keys = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
with config.set_xmlrpc_session(url, user, password):
    Party = Model.get("party.party")
    begun = time.monotonic()
    for write in ("first", "last"):
        for n in range(keys):
            found = Party.find([("code", "=", f"SCRIPT-{n}")], limit=2)
            party = found[0] if found else Party(code=f"SCRIPT-{n}")
            party.name = f"{write} {n}"
            party.save()
    upserts = 2 * keys / (time.monotonic() - begun)
    begun, read, offset = time.monotonic(), 0, 0
    since = datetime.datetime(2020, 1, 1)
    while True:
        page = Party.find([("write_date", ">=", since)], offset=offset, limit=1000,
                          order=[("write_date", "ASC"), ("id", "ASC")])
        for party in page:
            assert party.code and party.name
        read += len(page)
        offset += len(page)
        if len(page) < 1000:
            break
    print(upserts, read / (time.monotonic() - begun))
"#;

/// The same over one kept connection.
const SCRIPT: &str = r#"
import base64, http.client, json, sys, time
from urllib.parse import urlsplit

url, user, password, keys = urlsplit(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
connection = http.client.HTTPConnection(url.netloc)
credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json",
           "Prefer": "return=representation, odata.maxpagesize=1000"}

def ask(method, path, body=None):
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status < 300, content
    return json.loads(content)

begun = time.monotonic()
for write in ("first", "last"):
    for n in range(keys):
        ask("PATCH", f"{url.path}contacts(new_externalid='SCRIPT-{n}')", {"lastname": f"{write} {n}"})
upserts = 2 * keys / (time.monotonic() - begun)
begun, read = time.monotonic(), 0
path = f"{url.path}contacts?$select=contactid,new_externalid,lastname,modifiedon&$orderby=modifiedon,contactid"
while path:
    page = ask("GET", path)
    read += len(page["value"])
    link = page.get("@odata.nextLink")
    path = link and link.split(url.netloc, 1)[1].replace(" ", "%20")
print(upserts, read / (time.monotonic() - begun))
"#;

/// Measures both products.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let (keys, parties) = if effort.quick { (50, 2000) } else { (300, 10_000) };
    let mut lines = on_tryton(keys, parties).await;
    lines.extend(on_odata(4 * keys).await);
    lines
}

async fn on_tryton(keys: usize, parties: usize) -> Vec<Line> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {parties}) \
         INSERT INTO party_party (id, code, name, active, create_date, write_date) \
         SELECT 1000 + i, 'BULK-' || i, 'Old', 1, '2026-01-01 00:00:00.000000', \
         strftime('%Y-%m-%d %H:%M:%S', '2026-01-01 00:00:00', '+' || i || ' seconds') || '.000000' FROM n"
    );
    let server = Tryton::start_after(Release::V8_2, folder.path(), &sql);
    let resource = settings("tryton", &server.url(), tryton::USER, "", "");
    let ours = ours(&resource, tryton::PASSWORD, keys, "name").await;
    let theirs = theirs(PROTEUS, &server.url(), tryton::USER, tryton::PASSWORD, keys).await;
    lines("tryton", "proteus", ours, theirs)
}

async fn on_odata(keys: usize) -> Vec<Line> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = OData::start(Kind::Dynamics, folder.path());
    let options = "options = { upsert = \"alternate_key\" }";
    let entity = "fields = { external_id = \"new_externalid\" }";
    let resource = settings("odata", &server.url(), odata::USER, options, entity);
    let ours = ours(&resource, odata::PASSWORD, keys, "last_name").await;
    let theirs = theirs(SCRIPT, &server.url(), odata::USER, odata::PASSWORD, keys).await;
    lines("odata", "script", ours, theirs)
}

fn settings(dialect: &str, url: &str, username: &str, more: &str, entity: &str) -> String {
    format!(
        "[resources.crm]\nconnector = \"crm\"\ndialect = \"{dialect}\"\nurl = \"{url}\"\n\
         auth = {{ kind = \"basic\", username = '{username}', password = {{ file = \"secrets/crm\" }} }}\n\
         limits = {{ max_concurrent = {CLIENTS} }}\n{more}\n[resources.crm.entities.contact]\n{entity}\n\
         [[resources.crm.allow]]\noperations = [\"upsert\", \"changes\"]\nentities = [\"contact\"]\nfields = [\"*\"]\n"
    )
}

/// Records a second of upserts and of changes.
struct Rates {
    upserts: f64,
    changes: f64,
}

async fn ours(resource: &str, password: &str, keys: usize, name: &str) -> Rates {
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, "paris", "paris-1");
    agent.secret("crm", password).resource("crm", resource);
    agent.start().await;
    let job = |operation: &str, params: Value| {
        let job = json!({"site": "paris", "resource": "crm", "operation": operation, "params": params});
        let request = hub.api.request(reqwest::Method::POST, "/v1/jobs?wait=60").json(&job);
        async move {
            let answer: Value = request.send().await.expect("an answer").json().await.expect("a job");
            assert_eq!(answer["state"], "succeeded", "{answer:#}");
            answer
        }
    };
    let mut took = Duration::ZERO;
    for write in ["first", "last"] {
        let next = Cell::new(0);
        let upsert = || {
            let n = next.replace(next.get() + 1);
            let key = json!({ "external_id": format!("JOB-{n}") });
            let done = job(
                "upsert",
                json!({"entity": "contact", "key": key, "fields": {name: format!("{write} {n}")}}),
            );
            async move { drop(done.await) }
        };
        took += many(CLIENTS, keys / CLIENTS * CLIENTS, &upsert).await.1;
    }
    let upserts = (2 * (keys / CLIENTS * CLIENTS)) as f64 / took.as_secs_f64();
    let (begun, mut read, mut cursor) = (Instant::now(), 0, Value::Null);
    loop {
        let mut params = json!({"entity": "contact", "limit": 1000, "fields": ["external_id", name]});
        if !cursor.is_null() {
            params["cursor"] = cursor;
        }
        let done = job("changes", params).await;
        read += done["result"]["items"].as_array().map_or(0, Vec::len);
        cursor = done["result"]["next_cursor"].clone();
        if done["result"]["more"] == json!(false) {
            break;
        }
    }
    Rates { upserts, changes: read as f64 / begun.elapsed().as_secs_f64() }
}

async fn theirs(
    script: &'static str,
    url: &str,
    user: &'static str,
    password: &'static str,
    keys: usize,
) -> Rates {
    let url = url.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(python());
        run(command.args(["-c", script, &url, user, password, &keys.to_string()]))
    })
    .await
    .expect("the script");
    assert!(output.status.success(), "the script: {}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut figures = printed.split_whitespace().map(|figure| figure.parse().expect("records a second"));
    Rates { upserts: figures.next().expect("upserts"), changes: figures.next().expect("changes") }
}

fn lines(product: &str, library: &str, ours: Rates, theirs: Rates) -> Vec<Line> {
    let line = |what: &str, ours: f64, theirs: f64| Line {
        name: format!("crm_{product}_{what}_records_per_s"),
        value: ours,
        baseline: (format!("{library}_{what}_records_per_s"), theirs),
        target: Some((Target::AtLeast(theirs), format!("as fast as a plain script with {library}"))),
        more: json!({"clients": CLIENTS}),
    };
    vec![line("upsert", ours.upserts, theirs.upserts), line("changes", ours.changes, theirs.changes)]
}
