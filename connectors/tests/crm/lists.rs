//! Lists of servers with ways of their own: what the dialect `rest` reads of them, and what it refuses.

use crate::{
    place::{Agent, build},
    serve::serve,
};
use passerelle_connectors::Code;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// How a server answers.
#[derive(Clone)]
struct Ways {
    /// The most records of a page, whatever is asked for; the least, too, with `stubborn`.
    cap: usize,
    stubborn: bool,
    /// A page after the last one is a 404.
    ends_with_404: bool,
    /// Every page is the first one.
    knows_no_pages: bool,
    /// Records of one time come in another order each time.
    shuffles: bool,
    /// Nothing ever changed at or after a time.
    finds_nothing: bool,
    /// The answer says whether more follows.
    says_next: bool,
    /// How long the address of a contact is.
    email: usize,
}

const WAYS: Ways = Ways {
    cap: 50,
    stubborn: false,
    ends_with_404: false,
    knows_no_pages: false,
    shuffles: false,
    finds_nothing: false,
    says_next: false,
    email: 9,
};

struct Lists {
    port: u16,
    /// Ids and seconds.
    records: Arc<Mutex<Vec<(usize, i64)>>>,
    asked: Arc<AtomicUsize>,
}

impl Lists {
    fn start(ways: Ways, records: Vec<(usize, i64)>) -> Self {
        let records = Arc::new(Mutex::new(records));
        let asked = Arc::<AtomicUsize>::default();
        let (kept, heard) = (Arc::clone(&records), Arc::clone(&asked));
        let port = serve(move |path| {
            let turn = heard.fetch_add(1, Ordering::SeqCst);
            let (status, body) = answer(&ways, &kept.lock().unwrap(), path, turn);
            (status.to_string(), body.to_string())
        });
        Self { port, records, asked }
    }

    fn agent(&self, shape: &str) -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let settings = format!(
            "connector = \"crm\"\ndialect = \"rest\"\nurl = \"http://127.0.0.1:{}/\"\n\
             [resources.crm.rest]\nlist = \"results\"\nmodified = \"modified\"\nsince_param = \"since\"\n{shape}\n\
             [resources.crm.entities.contact]\ntarget = \"contacts/\"\n\
             fields = {{ external_id = \"guid\", email = \"email\" }}\n",
            self.port
        );
        Agent::of(build(dir.path(), &settings).unwrap(), dir)
    }
}

fn shown((id, second): (usize, i64), email: usize) -> Value {
    let modified = jiff::Timestamp::from_second(1_700_000_000 + second).unwrap();
    let email = format!("{}@example.com", "a".repeat(email));
    json!({ "id": id, "guid": format!("K{id}"), "email": email, "modified": modified.to_string() })
}

fn answer(ways: &Ways, records: &[(usize, i64)], path: &str, turn: usize) -> (&'static str, String) {
    let url = url::Url::parse(&format!("http://h{path}")).unwrap();
    let query: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
    if let Some(id) = url.path().strip_prefix("/contacts/").filter(|id| !id.is_empty()) {
        let id: usize = id.trim_end_matches('/').parse().unwrap();
        return match records.iter().find(|record| record.0 == id) {
            Some(record) => ("200 OK", shown(*record, ways.email).to_string()),
            None => ("404 Not Found", "{}".to_owned()),
        };
    }
    let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
    let since =
        query.get("since").map(|text| text.parse::<jiff::Timestamp>().unwrap().as_second() - 1_700_000_000);
    let mut found: Vec<(usize, i64)> = records.to_vec();
    found.retain(|record| since.is_none_or(|since| !ways.finds_nothing && record.1 >= since));
    found.retain(|record| query.get("guid").is_none_or(|guid| *guid == format!("K{}", record.0)));
    // Another order for each request, the same on each run.
    let place =
        |id: usize| if ways.shuffles { (id * 7919 + (turn + 3) * (turn + 5) * id * id) % 31 } else { id };
    found.sort_by_key(|(id, second)| (*second, place(*id)));
    let asked = number("limit").unwrap_or(usize::MAX);
    let size = if ways.stubborn { ways.cap } else { asked.min(ways.cap) };
    let page = number("page").unwrap_or(1) - 1;
    let from = if ways.knows_no_pages { 0 } else { number("offset").unwrap_or(page * size) };
    if from > 0 && from >= found.len() && ways.ends_with_404 {
        return ("404 Not Found", "{\"detail\":\"Invalid page.\"}".to_owned());
    }
    let results: Vec<Value> =
        found.iter().skip(from).take(size).map(|record| shown(*record, ways.email)).collect();
    let mut body = json!({ "results": results });
    if ways.says_next {
        let since = query.get("since").map_or(String::new(), |since| format!("&since={since}"));
        let more = from + size < found.len();
        body["next"] = if more { json!(format!("contacts/?page={}{since}", page + 2)) } else { Value::Null };
    }
    ("200 OK", body.to_string())
}

/// All that a search gives, page by page.
async fn found(agent: &Agent, limit: usize) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), Value::Null);
    for _ in 0..200 {
        let mut params = json!({ "entity": "contact", "where": {}, "limit": limit });
        if !cursor.is_null() {
            params["cursor"] = cursor;
        }
        let page = agent.run("find", params).await.unwrap();
        assert!(page["items"].as_array().unwrap().len() <= limit && page.to_string().len() <= 256 * 1024);
        items.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].clone()));
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            return items;
        }
    }
    panic!("the search has no end");
}

/// All that the feed tells, until it says that there is no more.
async fn told(agent: &Agent, limit: usize, cursor: &mut Value) -> Vec<Value> {
    let mut items = Vec::new();
    for _ in 0..200 {
        let mut params = json!({ "entity": "contact", "limit": limit });
        if !cursor.is_null() {
            params["cursor"] = cursor.clone();
        }
        let page = agent.run("changes", params).await.unwrap();
        assert!(page.to_string().len() <= 256 * 1024);
        items.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].clone()));
        *cursor = page["next_cursor"].clone();
        if page["more"] == json!(false) {
            return items;
        }
    }
    panic!("the feed has no end");
}

fn distinct(items: &[Value]) -> usize {
    items.iter().map(ToString::to_string).collect::<BTreeSet<_>>().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_the_server_keeps_short_is_not_the_last_one() {
    let one_time = |count: usize| (1..=count).map(|id| (id, 0)).collect::<Vec<_>>();
    let plain = [("page", WAYS), ("offset", WAYS)];
    let ends = Ways { ends_with_404: true, ..WAYS };
    let says = Ways { says_next: true, ..WAYS };
    let stubborn = Ways { stubborn: true, ..WAYS };
    let more = [("page", ends.clone()), ("offset", ends), ("page", says), ("page", stubborn)];
    for (paging, ways) in plain.into_iter().chain(more) {
        for count in [0, 1, 49, 50, 51, 100, 120] {
            let lists = Lists::start(ways.clone(), one_time(count));
            let agent = lists.agent(&format!("paging = \"{paging}\""));
            for limit in [10, 50, 60, 100] {
                let items = found(&agent, limit).await;
                assert_eq!((items.len(), distinct(&items)), (count, count), "find {paging} {limit}");
                let mut cursor = Value::Null;
                let items = told(&agent, limit, &mut cursor).await;
                assert_eq!((items.len(), distinct(&items)), (count, count), "changes {paging} {limit}");
                lists.records.lock().unwrap().push((1000, 500));
                assert_eq!(told(&agent, limit, &mut cursor).await, [json!("1000")], "{paging} {limit}");
                lists.records.lock().unwrap().pop();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_no_result_can_hold_is_asked_for_in_parts() {
    let ways = Ways { cap: 1000, email: 5000, ..WAYS };
    for paging in ["page", "offset"] {
        let lists =
            Lists::start(ways.clone(), (1..=120).map(|id| (id, i64::try_from(id).unwrap())).collect());
        let agent = lists.agent(&format!("paging = \"{paging}\""));
        for limit in [10, 100, 1000] {
            let items = found(&agent, limit).await;
            assert_eq!((items.len(), distinct(&items)), (120, 120), "find {paging} {limit}");
            let items = told(&agent, limit, &mut Value::Null).await;
            assert_eq!((items.len(), distinct(&items)), (120, 120), "changes {paging} {limit}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_pages_is_read_once() {
    let ways = Ways { knows_no_pages: true, cap: 1000, stubborn: true, ..WAYS };
    for paging in ["page", "offset", "none"] {
        let lists = Lists::start(ways.clone(), (1..=70).map(|id| (id, 0)).collect());
        let agent = lists.agent(&format!("paging = \"{paging}\""));
        assert_eq!(distinct(&found(&agent, 100).await), 70, "{paging}");
        assert_eq!(told(&agent, 100, &mut Value::Null).await.len(), 70, "{paging}");
    }
    // What is beyond the limit is not lost either.
    let lists = Lists::start(ways, (1..=70).map(|id| (id, 0)).collect());
    assert_eq!(found(&lists.agent("paging = \"none\""), 20).await.len(), 70);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_list_costs_no_request_where_it_is_plain() {
    let lists = Lists::start(WAYS, vec![(1, 0), (2, 0), (3, 0)]);
    let agent = lists.agent("paging = \"page\"");
    let asked = |requests: usize| assert_eq!(lists.asked.swap(0, Ordering::SeqCst), requests);
    agent.run("get", json!({ "entity": "contact", "key": { "external_id": "K2" } })).await.unwrap();
    // A page of one record may be the server's own measure, and another record of the key on the next one.
    asked(3);
    found(&agent, 3).await;
    asked(2);
    let lists = Lists::start(Ways { says_next: true, ..WAYS }, vec![(1, 0), (2, 0), (3, 0)]);
    found(&lists.agent("paging = \"page\""), 100).await;
    assert_eq!(lists.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_one_time_are_all_told_whatever_their_order() {
    for paging in ["link", "page", "offset"] {
        for limit in [2, 5, 7, 100] {
            let ways = Ways { cap: 5, shuffles: true, says_next: paging == "link", ..WAYS };
            let records = (1..=12).map(|id| (id, 0)).chain([(13, 1)]).collect();
            let lists = Lists::start(ways, records);
            let agent = lists
                .agent(&format!("paging = \"{paging}\"\nsince_order = {{ ordering = \"modified,id\" }}"));
            let mut cursor = Value::Null;
            let mut items = told(&agent, limit, &mut cursor).await;
            items.extend(told(&agent, limit, &mut cursor).await);
            assert_eq!(distinct(&items), 13, "{paging} {limit}");
            assert_eq!(items.len(), 13, "{paging} {limit}: nothing is told twice");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_does_not_match_what_was_told_is_found_out() {
    let ways = Ways { finds_nothing: true, ..WAYS };
    let lists = Lists::start(ways, (1..=40).map(|id| (id, i64::try_from(id).unwrap())).collect());
    let agent = lists.agent("paging = \"page\"");
    let page = agent.run("changes", json!({ "entity": "contact", "limit": 10 })).await.unwrap();
    assert_eq!((page["items"].as_array().unwrap().len(), &page["more"]), (10, &json!(true)));
    let next = json!({ "entity": "contact", "limit": 10, "cursor": page["next_cursor"] });
    let failure = agent.run("changes", next.clone()).await.unwrap_err();
    assert_eq!(failure.code, Code::TargetProtocol, "{failure}");
    assert!(failure.message.contains("does not find by the time of the last change"), "{failure}");
    // Edited or deleted since, it proves nothing.
    lists.records.lock().unwrap()[9].1 = 100;
    agent.run("changes", next.clone()).await.unwrap();
    lists.records.lock().unwrap().remove(9);
    agent.run("changes", next).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_told_and_is_gone_stops_no_feed() {
    for change in [None, Some(90)] {
        let lists = Lists::start(WAYS, (1..=40).map(|id| (id, i64::try_from(id).unwrap())).collect());
        let agent = lists.agent("paging = \"page\"");
        let mut cursor = Value::Null;
        assert_eq!(told(&agent, 100, &mut cursor).await.len(), 40);
        match change {
            None => drop(lists.records.lock().unwrap().pop()),
            Some(second) => lists.records.lock().unwrap()[39].1 = second,
        }
        assert_eq!(told(&agent, 100, &mut cursor).await.len(), usize::from(change.is_some()));
        lists.records.lock().unwrap().push((41, 99));
        assert_eq!(told(&agent, 100, &mut cursor).await, [json!("41")]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_is_not_there_is_no_missing_record() {
    let lists = Lists::start(WAYS, Vec::new());
    let dir = tempfile::tempdir().unwrap();
    let settings = format!(
        "connector = \"crm\"\ndialect = \"rest\"\nurl = \"http://127.0.0.1:{}/\"\n\
         [resources.crm.rest]\nmodified = \"modified\"\nsince_param = \"since\"\n\
         [resources.crm.entities.contact]\ntarget = \"contacts/1/\"\n\
         fields = {{ external_id = \"guid\", email = \"email\" }}\n",
        lists.port
    );
    let agent = Agent::of(build(dir.path(), &settings).unwrap(), dir);
    let upsert =
        json!({ "entity": "contact", "key": { "external_id": "K" }, "fields": { "email": "a@example.com" } });
    for (operation, params) in [
        ("find", json!({ "entity": "contact", "where": {} })),
        ("changes", json!({ "entity": "contact" })),
        ("upsert", upsert),
    ] {
        let failure = agent.run(operation, params).await.unwrap_err();
        assert_eq!(failure.code, Code::TargetNotFound, "{operation}: {failure}");
        assert!(failure.message.contains("entities.contact.target"), "{operation}: {failure}");
        assert!(!failure.message.contains("record"), "{operation}: {failure}");
    }
}
