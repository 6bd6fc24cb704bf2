//! What the dialect `odata` meets at a service that is not well, and how it makes calls.

use crate::{
    crm_servers::{Asked, Product, Reply, Site},
    place::{Agent, build},
};
use passerelle_connectors::{Code, Effect};
use serde_json::json;
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

/// A service without records, whose model answers with this status.
struct Service(AtomicU16);

impl Product for Service {
    fn answer(self: Arc<Self>, asked: Asked) -> Pin<Box<dyn Future<Output = Reply> + Send>> {
        let status = self.0.load(Ordering::SeqCst);
        Box::pin(async move {
            match asked.path.as_str() {
                "/odata/$metadata" => Reply::text(status, "application/xml", ""),
                _ => Reply::json(200, &json!({ "value": [] })),
            }
        })
    }
}

fn agent(site: &Site<Service>) -> Agent {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "secret").unwrap();
    let settings = format!(
        "connector = \"crm\"\ndialect = \"odata\"\nurl = \"{}\"\n\
         auth = {{ kind = \"basic\", username = \"u\", password = {{ file = \"secret\" }} }}\n\
         [resources.crm.entities.contact]\nfields = {{ external_id = \"new_externalid\" }}\n\
         [resources.crm.calls.score]\nmethod = \"GET\"\npath = \"contacts({{id}})/Score\"\n\
         args = {{ id = \"integer\", word = \"text\" }}\nrequired = [\"id\"]\n",
        site.url("/odata/")
    );
    let connector = build(dir.path(), &settings).unwrap();
    Agent::of(connector, dir)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_fails_for_a_while_is_not_taken_for_none() {
    let site = Site::start(Service(AtomicU16::new(503)));
    let agent = agent(&site);
    let find = json!({ "entity": "contact", "where": { "external_id": "x" } });
    for (status, code) in [(503, Code::TargetThrottled), (500, Code::TargetUnreachable)] {
        site.product().0.store(status, Ordering::SeqCst);
        let failure = agent.run("find", find.clone()).await.unwrap_err();
        assert_eq!((failure.code, failure.effect), (code, Effect::NotApplied), "{failure}");
    }
    assert!(site.asked().iter().all(|asked| asked.path.ends_with("$metadata")), "nothing was searched for");
    // A service that has none says so, and that holds for a while.
    site.product().0.store(404, Ordering::SeqCst);
    agent.run("find", find.clone()).await.unwrap();
    site.product().0.store(503, Ordering::SeqCst);
    agent.run("find", find).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_by_get_passes_on_every_argument() {
    let site = Site::start(Service(AtomicU16::new(404)));
    let args = json!({ "id": 7, "word": "a b&c=d" });
    agent(&site).run("call", json!({ "name": "score", "args": args })).await.unwrap();
    let asked = site.asked();
    let asked = asked.last().unwrap();
    assert_eq!((asked.path.as_str(), asked.param("word")), ("/odata/contacts(7)/Score", Some("a b&c=d")));
}
