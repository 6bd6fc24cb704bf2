//! Places of the dialect `rest`: a Django REST framework server, strict or careless.

use crate::{
    place::{Place, Raw, Server, Traits},
    rest_server::{RestServer, TOKEN},
};
use reqwest::Client;
use serde_json::{Value, json};
use std::{future::Future, pin::Pin};
use tempfile::TempDir;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How `contacts/` answers.
const STRICT: &str = r#"
[resources.crm.rest]
list = "results"
paging = "page"
size_param = "page_size"
max_page = 20
version = "etag"
unique_keys = true
modified = "modified"
created = "created"
granularity = "1ms"
since_param = "modified__gte"
since_order = { ordering = "modified,id" }
find_order = { ordering = "id" }
"#;

/// How `people/` answers.
const CARELESS: &str = r#"
[resources.crm.rest]
list = "results"
paging = "offset"
max_page = 20
modified = "modified"
created = "created"
granularity = "1ms"
since_param = "modified__gte"
since_order = { ordering = "modified,id" }
find_order = { ordering = "id" }
"#;

pub struct Rest {
    pub server: RestServer,
    dir: TempDir,
    collection: &'static str,
    client: Client,
}

/// One of its two collections.
pub fn place(collection: &'static str) -> Place {
    let strict = collection == "contacts/";
    let traits = Traits {
        versions: strict,
        unique_keys: strict,
        tells_deletions: false,
        checks_email: true,
        secrets: &[TOKEN, "Traceback", "SELECT", "<"],
    };
    let name = if strict { "rest, strict" } else { "rest, careless" };
    Place { name, server: Box::new(Rest::start(collection)), traits }
}

impl Rest {
    pub fn start(collection: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = RestServer::start(dir.path());
        std::fs::write(dir.path().join("token"), TOKEN).unwrap();
        std::fs::write(dir.path().join("wrong"), "something else").unwrap();
        // The client of the tests wants one; the connector brings its own.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let client = Client::builder().no_proxy().build().unwrap();
        Self { server, dir, collection, client }
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let url = format!("{}{}{path}", self.server.url(), self.collection);
        let mut request = self.client.request(method.parse().unwrap(), url);
        request = request.header("authorization", format!("Token {TOKEN}"));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }
}

impl Server for Rest {
    fn settings(&self, misspelt: Option<&str>, wrong: bool) -> String {
        let token = self.dir.path().join(if wrong { "wrong" } else { "token" });
        let misspelt = misspelt.map_or(String::new(), |name| format!(", {name} = \"no_such_field\""));
        format!(
            "connector = \"crm\"\ndialect = \"rest\"\nurl = \"{url}\"\n\
             auth = {{ kind = \"bearer\", scheme = \"Token\", token = {{ file = \"{token}\" }} }}\n{shape}\n\
             [resources.crm.entities.contact]\ntarget = \"{target}\"\nkey = [\"external_id\"]\n\
             fields = {{ external_id = \"guid\", last_name = \"last_name\", email = \"email\", phone = \"phone\", \
             balance = \"balance\", born = \"born\", active = \"active\"{misspelt} }}\n\
             types = {{ balance = \"decimal\", born = \"date\", active = \"boolean\" }}\nmasked = [\"email\"]\n\
             [resources.crm.calls.greet]\nmethod = \"POST\"\npath = \"people/{{id}}/greet/\"\n\
             args = {{ id = \"text\", word = \"text\" }}\nrequired = [\"id\"]\n",
            url = self.server.url(),
            token = token.display(),
            shape = if self.collection == "contacts/" { STRICT } else { CARELESS },
            target = self.collection,
        )
    }

    fn records<'a>(&'a self, prefix: &'a str) -> Boxed<'a, Vec<Raw>> {
        Box::pin(async move {
            let mut records = Vec::new();
            // Both ways of paging, of which each collection knows one.
            for page in 0.. {
                let path =
                    format!("?ordering=id&page={}&page_size=50&offset={}&limit=50", page + 1, page * 50);
                let answer = self.ask("GET", &path, None).await;
                let text = |record: &Value, name: &str| record[name].as_str().unwrap_or_default().to_owned();
                records.extend(answer["results"].as_array().unwrap().iter().map(|record| Raw {
                    id: record["id"].to_string(),
                    key: text(record, "guid"),
                    email: text(record, "email"),
                }));
                if answer["next"].is_null() {
                    break;
                }
            }
            records.retain(|record| record.key.starts_with(prefix));
            records
        })
    }

    fn insert<'a>(&'a self, key: &'a str, email: &'a str) -> Boxed<'a, String> {
        Box::pin(async move {
            let body = json!({ "guid": key, "last_name": "Made elsewhere", "email": email });
            self.ask("POST", "", Some(body)).await["id"].to_string()
        })
    }

    fn edit<'a>(&'a self, id: &'a str, email: &'a str) -> Boxed<'a, ()> {
        Box::pin(async move {
            self.ask("PATCH", &format!("{id}/"), Some(json!({ "email": email }))).await;
        })
    }

    fn refusals(&self) -> Boxed<'_, Option<usize>> {
        Box::pin(async move {
            let url = self.server.url().replace("/api/", "/counters/");
            let text = self.client.get(url).send().await.unwrap().text().await.unwrap();
            let counters: Value = serde_json::from_str(&text).unwrap();
            counters["refused"].as_u64().and_then(|count| usize::try_from(count).ok())
        })
    }

    fn stop(&mut self) {
        self.server.stop();
    }

    fn start(&mut self) {
        self.server.restart();
    }
}
