//! Whose record is whose, over HTTP: searches of several pages, writes that are answered with a redirect, and creations
//! that are answered with a record that was there before.

use crate::place::{Agent, build};
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

/// What a server answers: the status with more headers, and the body.
type Answer = (String, Value);

/// A server on records, and what was asked of it.
struct Crm {
    url: String,
    records: Arc<Mutex<Vec<Value>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Crm {
    /// `answer` gets the records, the method, the path with its query, and the body.
    fn start(
        records: Value,
        answer: impl Fn(&mut Vec<Value>, &str, &str, Value) -> Answer + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let records = Arc::new(Mutex::new(records.as_array().unwrap().clone()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (kept, log) = (Arc::clone(&records), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Some((mut stream, line, body)) = stream.ok().and_then(read) else { continue };
                log.lock().unwrap().push(line.clone());
                let (method, path) = line.split_once(' ').unwrap();
                let (head, body) = answer(&mut kept.lock().unwrap(), method, path, body);
                let body = if body.is_null() { String::new() } else { body.to_string() };
                let length = body.len();
                let text =
                    format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                drop(stream.write_all(text.as_bytes()));
            }
        });
        Self { url, records, asked }
    }

    fn agent(&self, dialect: &str, target: &str, more: &str) -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let settings = format!(
            "connector = \"crm\"\ndialect = \"{dialect}\"\nurl = \"{}\"\n{more}\n\
             [resources.crm.entities.contact]\ntarget = \"{target}\"\nkey = [\"external_id\"]\n\
             fields = {{ external_id = \"guid\", last_name = \"nom\", email = \"email\" }}\n",
            self.url
        );
        Agent::of(build(dir.path(), &settings).unwrap(), dir)
    }

    fn records(&self) -> Vec<Value> {
        self.records.lock().unwrap().clone()
    }

    fn asked(&self, method: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|line| line.starts_with(method)).count()
    }
}

fn read(stream: TcpStream) -> Option<(TcpStream, String, Value)> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let length = lines.iter().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("content-length:").and_then(|text| text.trim().parse().ok())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let asked = lines.first()?.rsplit_once(' ')?.0.to_owned();
    Some((reader.into_inner(), asked, serde_json::from_slice(&body).unwrap_or_default()))
}

/// The value of a query's parameter.
fn param<'p>(path: &'p str, name: &str) -> Option<&'p str> {
    path.split(['?', '&']).find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn of_key(key: &str) -> Value {
    json!({ "entity": "contact", "key": { "external_id": key } })
}

fn upsert(key: &str, name: &str) -> Value {
    json!({ "entity": "contact", "key": { "external_id": key }, "fields": { "last_name": name } })
}

/// Reads, creates, changes and deletes below `contacts/`; `None` is a search.
fn serve(records: &mut Vec<Value>, method: &str, path: &str, body: &Value) -> Option<Answer> {
    let id = path.split('?').next()?.trim_end_matches('/').rsplit('/').next()?;
    let at =
        records.iter().position(|record| record["id"].as_u64().is_some_and(|known| id == known.to_string()));
    Some(match (method, at) {
        ("POST", _) => {
            let mut record = body.clone();
            record["id"] = json!(records.len() + 1);
            records.push(record.clone());
            ("201 Created".to_owned(), record)
        }
        ("GET", None) if id == "contacts" => return None,
        (_, None) => ("404 Not Found".to_owned(), Value::Null),
        ("DELETE", Some(at)) => {
            records.remove(at);
            ("204 No Content".to_owned(), Value::Null)
        }
        (_, Some(at)) => {
            records[at].as_object_mut().unwrap().extend(body.as_object().cloned().unwrap_or_default());
            ("200 OK".to_owned(), records[at].clone())
        }
    })
}

fn found(records: &[Value], path: &str) -> Vec<Value> {
    let key = param(path, "guid").unwrap();
    records.iter().filter(|record| record["guid"] == key).cloned().collect()
}

/// A server whose pages are of one record, the first one empty.
fn paged(records: Value, kind: &'static str) -> Crm {
    Crm::start(records, move |records, method, path, body| {
        if let Some(answer) = serve(records, method, path, &body) {
            return answer;
        }
        let found = found(records, path);
        let number: usize = ["page", "cursor"]
            .iter()
            .find_map(|name| param(path, name))
            .map_or(0, |text| text.parse().unwrap());
        let page = number.checked_sub(1).and_then(|at| found.get(at)).into_iter().collect::<Vec<_>>();
        let key = param(path, "guid").unwrap();
        let next = match (number < found.len(), kind) {
            (false, _) => Value::Null,
            (true, "link") => json!(format!("contacts/?guid={key}&page={}", number + 1)),
            (true, _) => json!(number + 1),
        };
        ("200 OK".to_owned(), json!({ "results": page, "next": next }))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_by_key_reads_every_page() {
    for kind in ["link", "cursor", "page"] {
        let crm = paged(json!([{ "id": 1, "guid": "A", "nom": "Martin" }]), kind);
        let more = format!("[resources.crm.rest]\nlist = \"results\"\npaging = \"{kind}\"\nfirst_page = 0");
        let agent = crm.agent("rest", "contacts/", &more);
        assert_eq!(agent.run("get", of_key("A")).await.unwrap()["id"], "1", "{kind}");
        assert_eq!(agent.run("upsert", upsert("A", "N")).await.unwrap()["outcome"], "updated", "{kind}");
        crm.records.lock().unwrap().push(json!({ "id": 2, "guid": "A", "nom": "Other" }));
        for (operation, params) in
            [("upsert", upsert("A", "X")), ("get", of_key("A")), ("delete", of_key("A"))]
        {
            let failure = agent.run(operation, params).await.unwrap_err();
            assert_eq!(failure.code, Code::TargetConflict, "{kind} {operation}: {failure}");
        }
        crm.records.lock().unwrap().pop();
        assert_eq!(agent.run("delete", of_key("A")).await.unwrap()["outcome"], "deleted", "{kind}");
        assert!(crm.records().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_caps_its_pages_at_one_record_hides_none() {
    let two = json!([{ "id": 1, "guid": "A", "nom": "a" }, { "id": 2, "guid": "A", "nom": "b" }]);
    for kind in ["page", "offset"] {
        let crm = Crm::start(two.clone(), |records, method, path, body| {
            serve(records, method, path, &body).unwrap_or_else(|| {
                let at = param(path, "page").map(|page| page.parse::<usize>().unwrap() - 1);
                let at = at.or_else(|| param(path, "offset")?.parse().ok()).unwrap();
                let page: Vec<Value> = found(records, path).into_iter().skip(at).take(1).collect();
                ("200 OK".to_owned(), json!(page))
            })
        });
        let agent = crm.agent("rest", "contacts/", &format!("[resources.crm.rest]\npaging = \"{kind}\""));
        for (operation, params) in
            [("upsert", upsert("A", "X")), ("get", of_key("A")), ("delete", of_key("A"))]
        {
            let failure = agent.run(operation, params).await.unwrap_err();
            assert_eq!(failure.code, Code::TargetConflict, "{kind} {operation}: {failure}");
        }
        assert_eq!(json!(crm.records()), two, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_page_of_odata_that_names_another_is_no_end() {
    let crm = Crm::start(json!([]), |_, method, path, _| {
        let answer = match (method, path) {
            ("GET", path) if path.starts_with("/contacts?page=2") => {
                json!({ "value": [{ "contactid": 7, "guid": "A", "nom": "Martin", "@odata.etag": "W/1" }] })
            }
            ("GET", path) if path.starts_with("/contacts?") => {
                json!({ "value": [], "@odata.nextLink": "contacts?page=2" })
            }
            ("GET", path) if path.starts_with("/contacts(7)") => {
                json!({ "contactid": 7, "guid": "A", "nom": "Martin" })
            }
            ("DELETE", "/contacts(7)") => return ("204 No Content".to_owned(), Value::Null),
            _ => return ("404 Not Found".to_owned(), Value::Null),
        };
        ("200 OK".to_owned(), answer)
    });
    let agent = crm.agent("odata", "contacts(contactid)", "");
    assert_eq!(agent.run("get", of_key("A")).await.unwrap()["id"], "7");
    assert_eq!(agent.run("upsert", upsert("A", "Martin")).await.unwrap()["outcome"], "unchanged");
    assert_eq!(agent.run("delete", of_key("A")).await.unwrap()["outcome"], "deleted");
    assert_eq!(crm.asked("POST"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_answered_with_a_redirect_is_looked_after() {
    for status in ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"] {
        for happens in [true, false] {
            let crm = Crm::start(json!([]), move |records, method, path, body| match method {
                "GET" => serve(records, method, path, &body)
                    .unwrap_or_else(|| ("200 OK".to_owned(), json!(found(records, path)))),
                _ => {
                    if happens {
                        serve(records, method, path, &body);
                    }
                    (format!("{status}\r\nLocation: /contacts/9/"), Value::Null)
                }
            });
            let agent = crm.agent("rest", "contacts/", "");
            let done = agent.run("upsert", upsert("A", "N")).await;
            if happens {
                assert_eq!(done.unwrap()["outcome"], "created", "{status}");
                let done = agent.run("upsert", upsert("A", "M")).await.unwrap();
                assert_eq!(done["outcome"], "updated", "{status}");
                assert_eq!(agent.run("delete", of_key("A")).await.unwrap()["outcome"], "deleted", "{status}");
            } else {
                let failure = done.unwrap_err();
                assert_eq!(
                    (failure.verdict, failure.effect, failure.code),
                    (Verdict::Retry, Effect::Unknown, Code::TargetProtocol),
                    "{status}: {failure}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_gives_what_was_there_deletes_nothing() {
    for guid in [json!("OTHER-CUSTOMER"), Value::Null, json!("")] {
        for status in ["200 OK", "201 Created"] {
            let stranger = json!({ "id": 5, "guid": guid, "nom": "Martin" });
            let crm = Crm::start(json!([stranger]), move |records, method, path, body| match method {
                "POST" => (status.to_owned(), records[0].clone()),
                _ => serve(records, method, path, &body)
                    .unwrap_or_else(|| ("200 OK".to_owned(), json!(found(records, path)))),
            });
            let agent = crm.agent("rest", "contacts/", "");
            let failure = agent.run("upsert", upsert("NEW1", "Durand")).await.unwrap_err();
            assert_eq!(
                (failure.verdict, failure.effect, failure.code),
                (Verdict::Permanent, Effect::Unknown, Code::TargetConflict),
                "{failure}"
            );
            assert_eq!((crm.asked("DELETE"), crm.records()), (0, vec![stranger]));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_of_dots_is_the_targets_fault() {
    let crm = Crm::start(json!([{ "id": "..", "guid": "A", "nom": "a" }]), |records, method, path, body| {
        serve(records, method, path, &body)
            .unwrap_or_else(|| ("200 OK".to_owned(), json!(found(records, path))))
    });
    let agent = crm.agent("rest", "contacts/", "");
    for (operation, params) in [("upsert", upsert("A", "X")), ("get", of_key("A")), ("delete", of_key("A"))] {
        let failure = agent.run(operation, params).await.unwrap_err();
        assert_eq!(
            (failure.code, failure.effect),
            (Code::TargetProtocol, Effect::NotApplied),
            "{operation}: {failure}"
        );
    }
    assert_eq!((crm.asked("PATCH"), crm.asked("DELETE")), (0, 0));
}
