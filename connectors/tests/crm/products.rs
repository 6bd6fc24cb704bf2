//! Places of the products that no registry offers as a server: stand-ins in their recorded shapes, not the products.

use crate::{
    crm_servers::{
        Row, Site, Table,
        dolibarr::{self, Dolibarr},
        espocrm::{self, EspoCrm},
        odoo::{self, Odoo},
        suitecrm::{self, SuiteCrm},
    },
    place::{Place, Raw, Server, Traits},
};
use serde_json::{Value, json};
use std::{
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
};
use tempfile::TempDir;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

enum Stand {
    Odoo(Site<Odoo>),
    EspoCrm { site: Site<EspoCrm>, signed: bool },
    Dolibarr(Site<Dolibarr>),
    SuiteCrm(Site<SuiteCrm>),
}

struct Product {
    stand: Stand,
    dir: TempDir,
    serial: AtomicUsize,
}

/// What no failure may tell.
const SECRETS: &[&str] = &[
    odoo::API_KEY,
    espocrm::API_KEY,
    espocrm::SECRET_KEY,
    dolibarr::API_KEY,
    suitecrm::CLIENT_SECRET,
    "Traceback",
    "SELECT",
    "llx_",
    "<",
];

fn place(name: &'static str, stand: Stand, secret: &str, traits: Traits) -> Place {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), secret).unwrap();
    std::fs::write(dir.path().join("wrong"), "something else").unwrap();
    Place { name, server: Box::new(Product { stand, dir, serial: AtomicUsize::new(1000) }), traits }
}

fn traits(versions: bool, unique_keys: bool, checks_email: bool) -> Traits {
    Traits { versions, unique_keys, tells_deletions: false, checks_email, secrets: SECRETS }
}

/// Odoo of a major version.
pub fn odoo(major: usize) -> Place {
    let stand = Stand::Odoo(Site::start(Odoo::version(major)));
    place("odoo", stand, odoo::API_KEY, traits(false, true, false))
}

/// `EspoCRM`, by its key or signed and with versions.
pub fn espocrm(signed: bool) -> Place {
    let product = EspoCrm::default();
    product.versions.store(signed, Ordering::SeqCst);
    let stand = Stand::EspoCrm { site: Site::start(product), signed };
    let secret = if signed { espocrm::SECRET_KEY } else { espocrm::API_KEY };
    place("espocrm", stand, secret, traits(signed, false, true))
}

/// Dolibarr.
pub fn dolibarr() -> Place {
    let stand = Stand::Dolibarr(Site::start(Dolibarr::default()));
    place("dolibarr", stand, dolibarr::API_KEY, traits(false, false, false))
}

/// `SuiteCRM`.
pub fn suitecrm() -> Place {
    let stand = Stand::SuiteCrm(Site::start(SuiteCrm::default()));
    place("suitecrm", stand, suitecrm::CLIENT_SECRET, traits(false, false, false))
}

impl Product {
    fn table(&self) -> &Table {
        match &self.stand {
            Stand::Odoo(site) => &site.product().partners,
            Stand::EspoCrm { site, .. } => site.product().table("Contact").unwrap(),
            Stand::Dolibarr(site) => &site.product().contacts,
            Stand::SuiteCrm(site) => &site.product().contacts,
        }
    }

    fn now(&self) -> i64 {
        match &self.stand {
            Stand::Odoo(site) => site.product().clock.now(),
            Stand::EspoCrm { site, .. } => site.product().clock.now(),
            Stand::Dolibarr(site) => site.product().clock.now(),
            Stand::SuiteCrm(site) => site.product().clock.now(),
        }
    }

    /// What the product calls key, last name and e-mail address.
    fn names(&self) -> [&'static str; 3] {
        match &self.stand {
            Stand::Odoo(_) => ["", "name", "email"],
            Stand::EspoCrm { .. } => ["cExternalId", "lastName", "emailAddress"],
            Stand::Dolibarr(_) => ["ref_ext", "lastname", "email"],
            Stand::SuiteCrm(_) => ["external_id_c", "last_name", "email1"],
        }
    }

    fn key(&self, row: &Row) -> String {
        if let Stand::Odoo(site) = &self.stand {
            let xmlids = site.product().xmlids.lock().unwrap();
            let found = xmlids.iter().find(|(_, id)| id.to_string() == row.id);
            let name = found.map_or("", |((_, name), _)| name.as_str());
            return percent_encoding::percent_decode_str(name).decode_utf8_lossy().into_owned();
        }
        row.fields.get(self.names()[0]).and_then(Value::as_str).unwrap_or("").to_owned()
    }
}

impl Server for Product {
    fn settings(&self, misspelt: Option<&str>, wrong: bool) -> String {
        let secret = self.dir.path().join(if wrong { "wrong" } else { "secret" });
        let secret = format!("{{ file = \"{}\" }}", secret.display());
        let (dialect, url, auth, options, fields) = match &self.stand {
            Stand::Odoo(site) => (
                "odoo",
                site.url("/"),
                format!("{{ kind = \"basic\", username = \"{}\", password = {secret} }}", odoo::LOGIN),
                format!("{{ database = \"{}\" }}", odoo::DB),
                "last_name = \"name\"",
            ),
            Stand::EspoCrm { site, signed: false } => (
                "espocrm",
                site.url("/api/v1/"),
                format!("{{ kind = \"api_key\", header = \"X-Api-Key\", value = {secret} }}"),
                "{}".to_owned(),
                "title = \"title\"",
            ),
            Stand::EspoCrm { site, signed: true } => (
                "espocrm",
                site.url("/api/v1/"),
                format!("{{ kind = \"hmac\", key = \"{}\", secret = {secret} }}", espocrm::API_KEY),
                "{ versions = \"on\" }".to_owned(),
                "title = \"title\"",
            ),
            Stand::Dolibarr(site) => (
                "dolibarr",
                site.url("/api/index.php/"),
                format!("{{ kind = \"api_key\", header = \"DOLAPIKEY\", value = {secret} }}"),
                "{}".to_owned(),
                "title = \"poste\"",
            ),
            Stand::SuiteCrm(site) => (
                "suitecrm",
                site.url("/Api/"),
                format!(
                    "{{ kind = \"oauth2\", token_url = \"{}\", style = \"body\", client_id = \"{}\", \
                     client_secret = {secret} }}",
                    site.url("/Api/access_token"),
                    suitecrm::CLIENT_ID
                ),
                "{}".to_owned(),
                "title = \"title\"",
            ),
        };
        let misspelt = misspelt.map_or(String::new(), |name| format!(", {name} = \"no_such_field\""));
        format!(
            "connector = \"crm\"\ndialect = \"{dialect}\"\nurl = \"{url}\"\nauth = {auth}\noptions = {options}\n\
             [resources.crm.entities.contact]\nfields = {{ {fields}{misspelt} }}\nmasked = [\"email\"]\n"
        )
    }

    fn records<'a>(&'a self, prefix: &'a str) -> Boxed<'a, Vec<Raw>> {
        let email = self.names()[2];
        let raw = |row: &Row| Raw {
            id: row.id.clone(),
            key: self.key(row),
            email: row.fields.get(email).and_then(Value::as_str).unwrap_or("").to_owned(),
        };
        let rows = self.table().rows().iter().map(raw).filter(|row| row.key.starts_with(prefix)).collect();
        Box::pin(async move { rows })
    }

    fn insert<'a>(&'a self, key: &'a str, email: &'a str) -> Boxed<'a, String> {
        let serial = self.serial.fetch_add(1, Ordering::SeqCst);
        let [theirs, name, address] = self.names();
        let mut fields = json!({ name: "Made elsewhere", address: email });
        let id = match &self.stand {
            Stand::Odoo(site) => {
                fields["active"] = json!(true);
                fields["is_company"] = json!(false);
                let xmlid = ("passerelle".to_owned(), key.to_owned());
                site.product().xmlids.lock().unwrap().insert(xmlid, i64::try_from(serial).unwrap());
                serial.to_string()
            }
            Stand::EspoCrm { .. } => format!("{serial:017x}"),
            Stand::Dolibarr(_) => serial.to_string(),
            Stand::SuiteCrm(_) => format!("10000000-0000-4000-8000-{serial:012x}"),
        };
        if !theirs.is_empty() {
            fields[theirs] = json!(key);
        }
        let now = self.now();
        let fields = fields.as_object().unwrap().clone();
        let row = Row { id: id.clone(), fields, created: now, modified: now, version: 1, deleted: false };
        self.table().lock().push(row);
        Box::pin(async move { id })
    }

    fn edit<'a>(&'a self, id: &'a str, email: &'a str) -> Boxed<'a, ()> {
        let (now, address) = (self.now(), self.names()[2]);
        {
            let mut rows = self.table().lock();
            let row = rows.iter_mut().find(|row| row.id == id).unwrap();
            row.fields.insert(address.to_owned(), json!(email));
            row.modified = now;
            row.version += 1;
        }
        Box::pin(tokio::task::yield_now())
    }

    fn refusals(&self) -> Boxed<'_, Option<usize>> {
        let count = match &self.stand {
            Stand::Odoo(site) => site.refused() + site.product().failed_logins.load(Ordering::SeqCst),
            Stand::EspoCrm { site, .. } => site.refused(),
            Stand::Dolibarr(site) => site.refused(),
            Stand::SuiteCrm(site) => site.refused(),
        };
        Box::pin(async move { Some(count) })
    }

    fn stop(&mut self) {
        match &self.stand {
            Stand::Odoo(site) => site.stop(),
            Stand::EspoCrm { site, .. } => site.stop(),
            Stand::Dolibarr(site) => site.stop(),
            Stand::SuiteCrm(site) => site.stop(),
        }
    }

    fn start(&mut self) {
        match &self.stand {
            Stand::Odoo(site) => site.restart(),
            Stand::EspoCrm { site, .. } => site.restart(),
            Stand::Dolibarr(site) => site.restart(),
            Stand::SuiteCrm(site) => site.restart(),
        }
    }
}
