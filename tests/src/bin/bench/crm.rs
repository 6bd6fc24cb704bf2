//! Records of a CRM through hub and agent, beside a plain script with the product's own client library on the same server:
//! Tryton with `proteus`, and an OData service with Microsoft's library for Dynamics, and with bare requests as well.
//!
//! `tests/run` installs servers and `proteus` into `target/test-crm`, `tests/bench` the library of Dynamics, and names the
//! interpreter in `PASSERELLE_BENCH_DATAVERSE`; without it the bare requests stand alone.

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
    path::PathBuf,
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

/// The same with Microsoft's library for this API. It takes addresses of `https` only, so it is told the real one behind its
/// back: this service speaks plain HTTP, to us as well.
const DATAVERSE: &str = r#"
import base64, sys, time, types
from PowerPlatform.Dataverse.client import DataverseClient

url, user, password, keys = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
token = base64.b64encode(f"{user}:{password}".encode()).decode()
credential = types.SimpleNamespace(get_token=lambda *_, **__: types.SimpleNamespace(token=token))
import PowerPlatform.Dataverse.core._auth as auth
auth.TokenCredential = types.SimpleNamespace
with DataverseClient("https://crm.invalid", credential) as client:
    client._get_odata().api = url.rstrip("/")
    begun = time.monotonic()
    for write in ("first", "last"):
        for n in range(keys):
            client.records.upsert("contact", [{"alternate_key": {"new_externalid": f"SCRIPT-{n}"},
                                               "record": {"lastname": f"{write} {n}"}}])
    upserts = 2 * keys / (time.monotonic() - begun)
    begun, read = time.monotonic(), 0
    for page in client.records.list_pages("contact", select=["contactid", "new_externalid", "lastname", "modifiedon"],
                                          orderby=["modifiedon", "contactid"], page_size=1000):
        for contact in page:
            assert contact["new_externalid"] and contact["lastname"]
        read += len(page)
    print(upserts, read / (time.monotonic() - begun))
"#;

/// The same over one kept connection, without any library: the least that such a script can cost.
const BARE: &str = r#"
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
    lines.extend(on_odata(4 * keys, parties).await);
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
    let calls = format!("{}rpc/", server.url());
    let theirs = theirs(python(), PROTEUS, &calls, tryton::USER, tryton::PASSWORD, keys).await;
    vec![
        line("tryton_upsert", "proteus", ours.upserts, theirs.upserts, json!({})),
        line("tryton_changes", "proteus", ours.changes, theirs.changes, json!({})),
    ]
}

/// Upserts on an empty service, where what is read afterwards was all written a moment ago, and is looked through once more
/// for that; then the changes of one whose records are old.
async fn on_odata(keys: usize, contacts: usize) -> Vec<Line> {
    let written = on_an_odata_service(keys, "").await;
    let records: String = (0..contacts).map(old_contact).collect();
    let old = on_an_odata_service(0, &records).await;
    let line = |what: &str, run: &OnOData, rate: fn(&Rates) -> f64| {
        let more = json!({"bare_requests_records_per_s": rate(&run.bare)});
        line(&format!("odata_{what}"), run.peer, rate(&run.ours), rate(&run.theirs), more)
    };
    vec![
        line("upsert", &written, |rates| rates.upserts),
        line("changes", &old, |rates| rates.changes),
        line("changes_just_written", &written, |rates| rates.changes),
    ]
}

/// A contact of last January, as the service keeps it: a line of its file `records`.
fn old_contact(n: usize) -> String {
    let id = format!("00000000-0000-4000-8000-{n:012}");
    let since = jiff::Span::new().seconds(i64::try_from(n).expect("a small number"));
    let time = "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().expect("a time") + since;
    let fields = json!({"contactid": id, "lastname": "Old", "new_externalid": format!("BULK-{n}"),
                        "createdon": time, "modifiedon": time});
    let record = json!({"set": "contacts", "kind": "changed", "key": id, "id": format!("contacts({id})"),
                        "etag": "W/\"1\"", "fields": fields});
    format!("{record}\n")
}

/// What was measured on services with the same records.
struct OnOData {
    ours: Rates,
    bare: Rates,
    peer: &'static str,
    theirs: Rates,
}

/// Each on a service of its own: it looks through all its records to find one.
async fn on_an_odata_service(keys: usize, records: &str) -> OnOData {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = |name: &str| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).expect("a folder for the service");
        std::fs::write(folder.join("records"), records).expect("the records of the service");
        OData::start(Kind::Dynamics, &folder)
    };
    let server = start("ours");
    let options = "options = { upsert = \"alternate_key\" }";
    let entity = "fields = { external_id = \"new_externalid\" }";
    let resource = settings("odata", &server.url(), odata::USER, options, entity);
    let ours = ours(&resource, odata::PASSWORD, keys, "last_name").await;
    drop(server);
    let server = start("bare");
    let bare = theirs(python(), BARE, &server.url(), odata::USER, odata::PASSWORD, keys).await;
    drop(server);
    let Some(python) = std::env::var_os("PASSERELLE_BENCH_DATAVERSE") else {
        eprintln!(
            "crm: PASSERELLE_BENCH_DATAVERSE names no Python with PowerPlatform-Dataverse-Client; tests/bench installs it"
        );
        return OnOData { ours, theirs: bare.clone(), bare, peer: "bare_requests" };
    };
    let server = start("library");
    let theirs = theirs(python.into(), DATAVERSE, &server.url(), odata::USER, odata::PASSWORD, keys).await;
    OnOData { ours, bare, peer: "dataverse_client", theirs }
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
#[derive(Clone)]
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
    python: PathBuf,
    script: &'static str,
    url: &str,
    user: &'static str,
    password: &'static str,
    keys: usize,
) -> Rates {
    let url = url.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(python);
        run(command.args(["-c", script, &url, user, password, &keys.to_string()]))
    })
    .await
    .expect("the script");
    assert!(output.status.success(), "the script: {}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut figures = printed.split_whitespace().map(|figure| figure.parse().expect("records a second"));
    Rates { upserts: figures.next().expect("upserts"), changes: figures.next().expect("changes") }
}

fn line(what: &str, library: &str, ours: f64, theirs: f64, mut more: Value) -> Line {
    more["clients"] = json!(CLIENTS);
    Line {
        name: format!("crm_{what}_records_per_s"),
        value: ours,
        baseline: (format!("{library}_{what}_records_per_s"), theirs),
        target: Some((Target::AtLeast(theirs), format!("as fast as a plain script with {library}"))),
        more,
    }
}
