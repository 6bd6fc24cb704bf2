//! A place: one product's stand-in, and resources that point at it.

use crate::crm_servers::{
    Asked, Clock, Faults, Row, Site, Table,
    dolibarr::{self, Dolibarr},
    espocrm::{self, EspoCrm},
    odoo::{self, Odoo},
    suitecrm::{self, SuiteCrm},
};
use passerelle_config::Diagnostics;
use passerelle_connectors::{
    Call, DynConnector, Failure, Gate, Intent, Outcome, Output, Progress, REGISTRY, Visible,
};
use serde_json::{Value, json};
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A product, in one of its ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Odoo18,
    Odoo19,
    EspoCrm,
    EspoCrmSigned,
    Dolibarr,
    SuiteCrm,
}

pub const KINDS: &[Kind] =
    &[Kind::Odoo18, Kind::Odoo19, Kind::EspoCrm, Kind::EspoCrmSigned, Kind::Dolibarr, Kind::SuiteCrm];

enum Stand {
    Odoo(Site<Odoo>),
    EspoCrm(Site<EspoCrm>),
    Dolibarr(Site<Dolibarr>),
    SuiteCrm(Site<SuiteCrm>),
}

macro_rules! on {
    ($place:expr, $site:ident => $done:expr) => {
        match &$place.stand {
            Stand::Odoo($site) => $done,
            Stand::EspoCrm($site) => $done,
            Stand::Dolibarr($site) => $done,
            Stand::SuiteCrm($site) => $done,
        }
    };
}

pub struct Place {
    pub kind: Kind,
    stand: Stand,
}

impl Place {
    pub fn start(kind: Kind) -> Self {
        let stand = match kind {
            Kind::Odoo18 => Stand::Odoo(Site::start(Odoo::version(18))),
            Kind::Odoo19 => Stand::Odoo(Site::start(Odoo::version(19))),
            Kind::EspoCrm => Stand::EspoCrm(Site::start(EspoCrm::default())),
            Kind::EspoCrmSigned => {
                let product = EspoCrm::default();
                product.versions.store(true, std::sync::atomic::Ordering::SeqCst);
                Stand::EspoCrm(Site::start(product))
            }
            Kind::Dolibarr => Stand::Dolibarr(Site::start(Dolibarr::default())),
            Kind::SuiteCrm => Stand::SuiteCrm(Site::start(SuiteCrm::default())),
        };
        Self { kind, stand }
    }

    pub fn odoo(&self) -> &Odoo {
        match &self.stand {
            Stand::Odoo(site) => site.product(),
            _ => panic!("not Odoo"),
        }
    }

    pub fn espocrm(&self) -> &EspoCrm {
        match &self.stand {
            Stand::EspoCrm(site) => site.product(),
            _ => panic!("not EspoCRM"),
        }
    }

    pub fn dolibarr(&self) -> &Dolibarr {
        match &self.stand {
            Stand::Dolibarr(site) => site.product(),
            _ => panic!("not Dolibarr"),
        }
    }

    pub fn suitecrm(&self) -> &SuiteCrm {
        match &self.stand {
            Stand::SuiteCrm(site) => site.product(),
            _ => panic!("not SuiteCRM"),
        }
    }

    pub fn contacts(&self) -> &Table {
        match &self.stand {
            Stand::Odoo(site) => &site.product().partners,
            Stand::EspoCrm(site) => site.product().table("Contact").unwrap(),
            Stand::Dolibarr(site) => &site.product().contacts,
            Stand::SuiteCrm(site) => &site.product().contacts,
        }
    }

    pub fn clock(&self) -> &Clock {
        on!(self, site => &site.product().clock)
    }

    pub fn faults(&self) -> &Faults {
        on!(self, site => site.faults())
    }

    pub fn asked(&self) -> Vec<Asked> {
        on!(self, site => site.asked())
    }

    pub fn refused(&self) -> usize {
        on!(self, site => site.refused())
    }

    pub fn stop(&self) {
        on!(self, site => site.stop());
    }

    pub fn restart(&self) {
        on!(self, site => site.restart());
    }

    /// What the field is called, in jobs, that every contact needs.
    pub fn name(&self) -> &'static str {
        if matches!(self.stand, Stand::Odoo(_)) { "name" } else { "last_name" }
    }

    /// How the product writes: what a lost answer is lost of.
    pub fn create(&self) -> &'static str {
        match self.kind {
            Kind::Odoo18 => "\"load\"",
            Kind::Odoo19 => "/load",
            Kind::EspoCrm | Kind::EspoCrmSigned => "\"lastName\"",
            Kind::Dolibarr => "\"lastname\"",
            Kind::SuiteCrm => "\"attributes\"",
        }
    }

    /// A contact that somebody makes at the product itself.
    pub fn add(&self, key: &str, name: &str) -> String {
        let now = self.clock().now();
        let count = self.contacts().lock().len() + 1000;
        let (id, fields) = match self.kind {
            Kind::Odoo18 | Kind::Odoo19 => {
                let xmlid = ("passerelle".to_owned(), key.to_owned());
                self.odoo().xmlids.lock().unwrap().insert(xmlid, i64::try_from(count).unwrap());
                (count.to_string(), json!({ "name": name, "active": true, "is_company": false }))
            }
            Kind::EspoCrm | Kind::EspoCrmSigned => {
                (format!("{count:017x}"), json!({ "lastName": name, "cExternalId": key }))
            }
            Kind::Dolibarr => (count.to_string(), json!({ "lastname": name, "ref_ext": key })),
            Kind::SuiteCrm => {
                let id = format!("10000000-0000-4000-8000-{count:012x}");
                (id, json!({ "last_name": name, "external_id_c": key }))
            }
        };
        let fields = fields.as_object().unwrap().clone();
        let row = Row { id: id.clone(), fields, created: now, modified: now, version: 1, deleted: false };
        self.contacts().lock().push(row);
        id
    }

    /// Somebody changes a contact's name at the product itself.
    pub fn edit(&self, id: &str, name: &str) {
        let now = self.clock().now();
        let theirs = match self.kind {
            Kind::Odoo18 | Kind::Odoo19 => "name",
            Kind::EspoCrm | Kind::EspoCrmSigned => "lastName",
            Kind::Dolibarr => "lastname",
            Kind::SuiteCrm => "last_name",
        };
        let mut rows = self.contacts().lock();
        let row = rows.iter_mut().find(|row| row.id == id).unwrap();
        row.fields.insert(theirs.to_owned(), json!(name));
        row.modified = now;
        row.version += 1;
    }

    fn settings(&self, secret: &str) -> String {
        let base = on!(self, site => site.url("/"));
        let (dialect, path, auth, options) = match self.kind {
            Kind::Odoo18 | Kind::Odoo19 => (
                "odoo",
                "",
                format!(
                    "{{ kind = \"basic\", username = \"{}\", password = {{ file = \"{secret}\" }} }}",
                    odoo::LOGIN
                ),
                format!("{{ database = \"{}\" }}", odoo::DB),
            ),
            Kind::EspoCrm => (
                "espocrm",
                "api/v1/",
                format!(
                    "{{ kind = \"api_key\", header = \"X-Api-Key\", value = {{ file = \"{secret}\" }} }}"
                ),
                "{}".to_owned(),
            ),
            Kind::EspoCrmSigned => (
                "espocrm",
                "api/v1/",
                format!(
                    "{{ kind = \"hmac\", key = \"{}\", secret = {{ file = \"{secret}\" }} }}",
                    espocrm::API_KEY
                ),
                "{ versions = \"on\" }".to_owned(),
            ),
            Kind::Dolibarr => (
                "dolibarr",
                "api/index.php/",
                format!(
                    "{{ kind = \"api_key\", header = \"DOLAPIKEY\", value = {{ file = \"{secret}\" }} }}"
                ),
                "{}".to_owned(),
            ),
            Kind::SuiteCrm => (
                "suitecrm",
                "Api/",
                format!(
                    "{{ kind = \"oauth2\", token_url = \"{base}Api/access_token\", style = \"body\", \
                     client_id = \"{}\", client_secret = {{ file = \"{secret}\" }} }}",
                    suitecrm::CLIENT_ID
                ),
                "{}".to_owned(),
            ),
        };
        format!("dialect = \"{dialect}\"\nurl = \"{base}{path}\"\nauth = {auth}\noptions = {options}\n")
    }

    /// A resource; two of them are two agents.
    pub fn agent(&self) -> Agent {
        self.agent_with("good", "")
    }

    /// A resource with the secret of this name (`good` or `bad`), and more lines of configuration for its contacts.
    pub fn agent_with(&self, secret: &str, contact: &str) -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let good = match self.kind {
            Kind::Odoo18 | Kind::Odoo19 => odoo::API_KEY,
            Kind::EspoCrm => espocrm::API_KEY,
            Kind::EspoCrmSigned => espocrm::SECRET_KEY,
            Kind::Dolibarr => dolibarr::API_KEY,
            Kind::SuiteCrm => suitecrm::CLIENT_SECRET,
        };
        std::fs::write(dir.path().join("good"), good).unwrap();
        std::fs::write(dir.path().join("bad"), "no-such-secret").unwrap();
        let entities = format!("[resources.crm.entities.contact]\n{contact}\n");
        let more = if contact.contains("[resources.crm.entities.company]") || contact.contains("calls") {
            ""
        } else {
            "[resources.crm.entities.company]\n"
        };
        let text = format!("[resources.crm]\nconnector = \"crm\"\n{}{entities}{more}", self.settings(secret));
        std::fs::write(dir.path().join("agent.toml"), "[hub]\nurl = \"https://hub.example.com\"\n").unwrap();
        std::fs::create_dir_all(dir.path().join("resources.d")).unwrap();
        std::fs::write(dir.path().join("resources.d/crm.toml"), &text).unwrap();
        let config =
            passerelle_config::load(dir.path()).unwrap_or_else(|findings| panic!("{findings}\n{text}"));
        let kind = REGISTRY.iter().find(|entry| entry.name == "crm").unwrap();
        let mut diagnostics = Diagnostics::default();
        let checked = kind.check(&config.resources[0].section, &mut diagnostics);
        let connector = checked.unwrap_or_else(|| panic!("{diagnostics}\n{text}")).build(dir.path()).unwrap();
        Agent { connector, _dir: dir }
    }
}

/// A resource of an agent.
pub struct Agent {
    pub connector: Arc<dyn DynConnector>,
    _dir: tempfile::TempDir,
}

impl Agent {
    pub async fn run_as(&self, call: &Call, operation: &str, params: Value) -> Result<Value, Failure> {
        self.connector.demands(operation, &params)?;
        let mut output = Output::new(Box::new(tokio::io::sink()), u64::MAX);
        let done: Outcome = self.connector.execute(call, operation, &params, None, &mut output).await?;
        Ok(done.result)
    }

    pub async fn run(&self, operation: &str, params: Value) -> Result<Value, Failure> {
        self.run_as(&call(), operation, params).await
    }

    pub async fn upsert(&self, key: &str, fields: Value) -> Result<Value, Failure> {
        self.run("upsert", json!({ "entity": "contact", "key": { "external_id": key }, "fields": fields }))
            .await
    }

    /// All changes after a cursor, page by page, and where to go on.
    pub async fn changes(&self, cursor: Option<String>, limit: usize) -> (Vec<Value>, String) {
        let mut items = Vec::new();
        let mut cursor = cursor;
        for _ in 0..1000 {
            let mut params = json!({ "entity": "contact", "limit": limit });
            if let Some(cursor) = &cursor {
                params["cursor"] = json!(cursor);
            }
            let page = self.run("changes", params).await.unwrap();
            let Value::Object(mut page): Value = page else { panic!("no object") };
            let Some(Value::Array(told)) = page.remove("items") else { panic!("no items") };
            assert!(told.len() <= limit);
            items.extend(told);
            let next = page["next_cursor"].as_str().unwrap().to_owned();
            if page["more"] == json!(false) {
                return (items, next);
            }
            cursor = Some(next);
        }
        panic!("the feed has no end");
    }
}

/// A gate that keeps the last intent.
#[derive(Default)]
pub struct Kept(pub Mutex<Option<Intent>>);

impl Gate for Kept {
    fn pass<'a>(
        &'a self,
        intent: &'a Intent,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        *self.0.lock().unwrap() = Some(intent.clone());
        Box::pin(async { Ok(()) })
    }
}

pub fn call() -> Call {
    call_with(Arc::new(Kept::default()))
}

pub fn call_with(gate: Arc<Kept>) -> Call {
    Call {
        job: Uuid::now_v7(),
        attempt: 1,
        timeout: Duration::from_secs(20),
        cancel: CancellationToken::new(),
        progress: Progress::default(),
        gate,
        prior_intent: None,
        traceparent: None,
        visible: Visible::default(),
    }
}
