//! Servers whose pages have no end, lead elsewhere, or are not all: each is told so, and none keeps an attempt for ever.

use crate::{
    place::{Agent, Job, build},
    serve::serve,
};
use passerelle_connectors::{Code, Failure, Verdict};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

type Query = BTreeMap<String, String>;

/// A server that answers with JSON to what it is asked.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Fn(&str, &Query) -> Value + Send + 'static) -> Self {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&asked);
        let port = serve(move |path| {
            heard.lock().unwrap().push(path.to_owned());
            let url = url::Url::parse(&format!("http://h{path}")).unwrap();
            let body = answer(path, &url.query_pairs().into_owned().collect());
            ("200 OK".to_owned(), body.to_string())
        });
        Self { port, asked }
    }

    fn odata(&self, options: &str) -> Agent {
        self.agent(
            "odata",
            "od/",
            &format!("options = {{ modified = \"modified\"{options} }}\n"),
            "contacts('id')",
        )
    }

    fn rest(&self, shape: &str) -> Agent {
        let shape = format!(
            "[resources.crm.rest]\nlist = \"results\"\nmodified = \"modified\"\nsince_param = \"since\"\n{shape}\n"
        );
        self.agent("rest", "", &shape, "contacts/")
    }

    fn agent(&self, dialect: &str, path: &str, more: &str, target: &str) -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let settings = format!(
            "connector = \"crm\"\ndialect = \"{dialect}\"\nurl = \"http://127.0.0.1:{}/{path}\"\n{more}\
             [resources.crm.entities.contact]\ntarget = \"{target}\"\nfields = {{ external_id = \"guid\" }}\n",
            self.port
        );
        Agent::of(build(dir.path(), &settings).unwrap(), dir)
    }

    fn requests(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// A record of this id, changed in this second.
fn record(id: usize, second: i64) -> Value {
    let modified = jiff::Timestamp::from_second(1_700_000_000 + second).unwrap();
    json!({ "id": format!("{id:05}"), "guid": format!("K{id}"), "modified": modified.to_string() })
}

/// All changes from the beginning, or the failure that ends them.
async fn told(agent: &Agent, cursor: &mut Value) -> Result<Vec<String>, Failure> {
    let mut ids = Vec::new();
    for _ in 0..200 {
        let mut params = json!({ "entity": "contact", "limit": 50 });
        if !cursor.is_null() {
            params["cursor"] = cursor.clone();
        }
        let page = agent.run("changes", params).await?;
        ids.extend(
            page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()),
        );
        *cursor = page["next_cursor"].clone();
        if page["more"] == json!(false) {
            return Ok(ids);
        }
    }
    panic!("the feed has no end");
}

/// How a search through all ends.
async fn found(agent: &Agent, limit: usize) -> Result<usize, Failure> {
    let (mut count, mut cursor) = (0, Value::Null);
    for _ in 0..50 {
        let mut params = json!({ "entity": "contact", "where": {}, "limit": limit });
        if !cursor.is_null() {
            params["cursor"] = cursor;
        }
        let page = agent.run("find", params).await?;
        count += page["items"].as_array().unwrap().len();
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            return Ok(count);
        }
    }
    panic!("the search has no end");
}

fn is_protocol(failure: &Failure, says: &str) {
    assert_eq!(failure.code, Code::TargetProtocol, "{failure}");
    assert!(failure.message.contains(says), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_its_own_page_ends_feed_and_search() {
    let looped = Server::start(|path, _| {
        let rows: Vec<Value> = (1..=3).map(|id| record(id, 0)).collect();
        let path = path.trim_start_matches('/');
        json!({ "value": rows, "@odata.nextLink": path.trim_start_matches("od/"), "next": path, "results": rows })
    });
    for track in ["", ", changes = \"track\""] {
        let failure = told(&looped.odata(track), &mut Value::Null).await.unwrap_err();
        is_protocol(&failure, "no end");
    }
    is_protocol(&found(&looped.odata(""), 3).await.unwrap_err(), "no end");
    let rest = looped.rest("paging = \"link\"");
    is_protocol(&told(&rest, &mut Value::Null).await.unwrap_err(), "no end");
    is_protocol(&found(&rest, 3).await.unwrap_err(), "no end");
    assert!(looped.requests() < 20, "{}", looped.requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ever_new_links_to_the_same_records_keep_no_attempt_beyond_its_time() {
    let turn = Mutex::new(0);
    let server = Server::start(move |_, _| {
        let mut turn = turn.lock().unwrap();
        *turn += 1;
        // Two pages in turn, so that none repeats the one before.
        let rows: Vec<Value> = (1..=2).map(|id| record(id + *turn % 2, 0)).collect();
        json!({ "value": rows, "@odata.nextLink": format!("contacts?turn={turn}"),
                "next": format!("contacts/?turn={turn}"), "results": rows })
    });
    for agent in [server.odata(""), server.rest("paging = \"link\"")] {
        let mut job = Job::new();
        job.timeout = Duration::from_millis(300);
        let begun = Instant::now();
        let params = json!({ "entity": "contact", "limit": 1000 });
        let failure = job.attempt(&agent, "changes", &params, false).await.unwrap_err();
        assert_eq!(failure.verdict, Verdict::Retry, "{failure}");
        assert!(begun.elapsed() < Duration::from_secs(15), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_behind_many_empty_pages_are_told() {
    let server = Server::start(|_, query| {
        let page = query.get("at").map_or(0, |at| at.parse::<usize>().unwrap());
        match page {
            150 => json!({ "value": [record(1, 0), record(2, 1)] }),
            _ => json!({ "value": [], "@odata.nextLink": format!("contacts?at={}", page + 1) }),
        }
    });
    assert_eq!(told(&server.odata(""), &mut Value::Null).await.unwrap(), ["00001", "00002"]);
    let endless = Server::start(|_, query| {
        let page = query.get("at").map_or(0, |at| at.parse::<usize>().unwrap());
        json!({ "value": [], "@odata.nextLink": format!("contacts?at={}", page + 1) })
    });
    is_protocol(&told(&endless.odata(""), &mut Value::Null).await.unwrap_err(), "there is more");
}

/// A list of `count` records that a server gives `cap` of at once: of one second each, or all of one.
fn capped(
    count: usize,
    cap: usize,
    one_time: bool,
    hint: &'static str,
    page: &'static str,
    size: &'static str,
) -> Server {
    Server::start(move |path, query| {
        let second = |id: usize| if one_time { 0 } else { i64::try_from(id).unwrap() };
        if let Some(id) = path.strip_prefix("/contacts/").and_then(|id| id.trim_end_matches('/').parse().ok())
        {
            return record(id, second(id));
        }
        let since = query
            .get("since")
            .map_or(0, |since| since.parse::<jiff::Timestamp>().unwrap().as_second() - 1_700_000_000);
        let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
        let size = number(size).unwrap_or(cap).min(cap);
        let skip = number(page).map_or(0, |page| (page - 1) * size);
        let all: Vec<Value> =
            (1..=count).filter(|id| second(*id) >= since).map(|id| record(id, second(id))).collect();
        let given: Vec<Value> = all.iter().skip(skip).take(size).cloned().collect();
        let more = skip + given.len() < all.len();
        let mut body = json!({ "results": given });
        match hint {
            "count" => body["count"] = json!(all.len()),
            "next" => body["next"] = if more { json!("contacts/?p=2") } else { Value::Null },
            _ => {}
        }
        body
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_without_pages_that_is_cut_off_is_no_whole_one() {
    // By their times all are reached.
    for cap in [20, 100] {
        let server = capped(1000, cap, false, "", "p", "s");
        let mut cursor = Value::Null;
        let ids = told(&server.rest(""), &mut cursor).await.unwrap();
        assert_eq!(ids.len(), 1000, "{cap}");
        let again = told(&server.rest(""), &mut cursor).await.unwrap();
        assert!(again.is_empty(), "{again:?}");
    }
    // Of one time nothing leads further.
    for (hint, cap) in [("", 100), ("count", 50), ("next", 50)] {
        let server = capped(1000, cap, true, hint, "p", "s");
        is_protocol(&told(&server.rest(""), &mut Value::Null).await.unwrap_err(), "set paging");
    }
    for hint in ["count", "next"] {
        let server = capped(1000, 50, false, hint, "p", "s");
        is_protocol(&found(&server.rest(""), 100).await.unwrap_err(), "set paging");
    }
    let whole = capped(99, 1000, true, "count", "p", "s");
    assert_eq!(told(&whole.rest(""), &mut Value::Null).await.unwrap().len(), 99);
    assert_eq!(found(&whole.rest(""), 10).await.unwrap(), 99);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parameter_that_the_server_does_not_know_is_found_out() {
    for (count, cap) in [(1000, 100), (1000, 50), (70, 20)] {
        let server = capped(count, cap, true, "", "p", "limit");
        let agent = server.rest("paging = \"page\"");
        is_protocol(&told(&agent, &mut Value::Null).await.unwrap_err(), "page_param");
        is_protocol(&found(&agent, cap).await.unwrap_err(), "page_param");
    }
    // Neither does it know the size: what it gives is all as far as anybody can see, but for what it says.
    let server = capped(1000, 50, true, "count", "p", "s");
    is_protocol(&told(&server.rest("paging = \"page\""), &mut Value::Null).await.unwrap_err(), "page_param");
    let server = capped(1000, 50, true, "", "p", "limit");
    is_protocol(
        &told(&server.rest("paging = \"offset\""), &mut Value::Null).await.unwrap_err(),
        "offset_param",
    );
    // The right one leads to the end, also where the last page is full.
    for (count, limit) in [(1000, 100), (100, 100), (100, 50), (1, 1), (7, 1)] {
        let server = capped(count, 100, true, "", "page", "limit");
        assert_eq!(found(&server.rest("paging = \"page\""), limit).await.unwrap(), count);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_gives_its_last_page_again_has_an_end() {
    for (count, limit) in [(100_usize, 50), (100, 100), (50, 10), (1, 1)] {
        let server = Server::start(move |_, query| {
            let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
            let size = number("limit").unwrap_or(100);
            let page = number("page").unwrap_or(1).min(count.div_ceil(size));
            let rows: Vec<Value> =
                (1..=count).skip((page - 1) * size).take(size).map(|id| record(id, 0)).collect();
            json!({ "results": rows })
        });
        let agent = server.rest("paging = \"page\"");
        assert_eq!(found(&agent, limit).await.unwrap(), count, "{count} {limit}");
        assert_eq!(told(&agent, &mut Value::Null).await.unwrap().len(), count, "{count}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_a_gateway_would_read_as_leading_out_is_not_followed() {
    for link in ["..%2fadmin", "..%5Cadmin", "x/..%2F..%2Fadmin", "..%252fadmin"] {
        let server = Server::start(
            move |_, _| json!({ "value": [record(1, 0)], "@odata.nextLink": link, "results": [record(1, 0)], "next": link }),
        );
        for agent in [server.odata(""), server.rest("paging = \"link\"")] {
            let failure =
                agent.run("find", json!({ "entity": "contact", "where": {}, "limit": 5 })).await.unwrap_err();
            is_protocol(&failure, "leads away");
            is_protocol(&told(&agent, &mut Value::Null).await.unwrap_err(), "leads away");
        }
        let asked = server.asked.lock().unwrap();
        assert!(asked.iter().all(|path| !path.contains("admin")), "{asked:?}");
    }
    let server = Server::start(|path, _| {
        let next = (!path.contains("skip")).then_some("contacts?skip='a%2Fb'");
        json!({ "value": [record(if next.is_some() { 1 } else { 2 }, 0)], "@odata.nextLink": next })
    });
    assert_eq!(found(&server.odata(""), 1).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_that_is_too_long_is_the_targets_fault() {
    let server = Server::start(|_, _| {
        let long = "x".repeat(5000);
        json!({ "value": [record(1, 0)], "@odata.deltaLink": format!("contacts?t={long}"), "results": [record(1, 0)],
                "next": long })
    });
    let agent = server.odata(", changes = \"track\"");
    is_protocol(&told(&agent, &mut Value::Null).await.unwrap_err(), "too long");
    is_protocol(&found(&server.rest("paging = \"cursor\""), 1).await.unwrap_err(), "too long");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_records_of_one_second_are_all_told_while_others_of_it_are_edited_and_deleted() {
    for (edited, paging) in [(false, "page"), (true, "page"), (true, "offset")] {
        let records: Arc<Mutex<Vec<(usize, i64)>>> =
            Arc::new(Mutex::new((1..=1000).map(|id| (id, 0)).collect()));
        let kept = Arc::clone(&records);
        let server = Server::start(move |path, query| {
            let mut all = kept.lock().unwrap().clone();
            if let Some(id) =
                path.strip_prefix("/contacts/").and_then(|id| id.trim_end_matches('/').parse().ok())
            {
                return record(
                    id,
                    all.iter().find(|(other, _)| *other == id).map_or(0, |(_, second)| *second),
                );
            }
            all.sort_by_key(|(id, second)| (*second, *id));
            let since = query
                .get("since")
                .map_or(0, |since| since.parse::<jiff::Timestamp>().unwrap().as_second() - 1_700_000_000);
            let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
            let size = number("limit").unwrap_or(100).min(100);
            let skip = number("offset").unwrap_or_else(|| (number("page").unwrap_or(1) - 1) * size);
            let found = all.iter().filter(|(_, second)| *second >= since);
            let rows: Vec<Value> =
                found.skip(skip).take(size).map(|(id, second)| record(*id, *second)).collect();
            json!({ "results": rows })
        });
        let agent = server.rest(&format!("paging = \"{paging}\""));
        let (mut told, mut items, mut cursor) = (std::collections::BTreeSet::new(), 0, Value::Null);
        for turn in 0..60 {
            let mut params = json!({ "entity": "contact", "limit": 50 });
            if !cursor.is_null() {
                params["cursor"] = cursor;
            }
            let page = agent.run("changes", params).await.unwrap();
            for item in page["items"].as_array().unwrap() {
                items += 1;
                told.insert(item["id"].as_str().unwrap().to_owned());
            }
            cursor = page["next_cursor"].clone();
            if page["more"] == json!(false) {
                break;
            }
            let mut records = records.lock().unwrap();
            if edited {
                records[turn].1 = 100 + i64::try_from(turn).unwrap();
            } else {
                records.remove(0);
            }
        }
        assert_eq!(told.len(), 1000, "{edited} {paging}");
        assert!(items <= 1100, "{edited} {paging}: {items}");
    }
}
