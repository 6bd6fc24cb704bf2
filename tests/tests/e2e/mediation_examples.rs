//! The worked examples of `docs/mediations.md`, taken out of the page and run on real servers, agent and hub, with the commands
//! that the page shows.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::common::{SITE, files_below, job};
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_tests::{
    Agent, App, Hub, PATIENCE, Reply, Request, SshServer, binary,
    odata::{self, Kind, OData},
    resources, run, until,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

const PAGE: &str = include_str!("../../../docs/mediations.md");
const EVENT: &str = r#"{"EventKind":"CommandeValidee","EventCategory":"e/commerce","Data":{
    "CommandeGuid":"20818d87-34bb-5c4e-b14d-e3674b9f022c","CommandeNumero":"CMD-2026-000042","CommandeMontantTotal":129.9}}"#;
/// The subscription that the page names.
const SUBSCRIPTION: &str = "0193a5c2-5c1e-7d0a-9d2f-0a1b2c3d4e5f";

/// The definitions of the page.
fn examples() -> Vec<&'static str> {
    let blocks = PAGE.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.starts_with("[[mediation]]")).collect()
}

struct World {
    hub: Hub,
    _agent: Agent,
    ssh: SshServer,
    crm: TempDir,
    folders: TempDir,
    /// The applications at the site.
    app: App,
    /// The endpoint in the cloud, and the key of what it is told.
    cloud: App,
    key: String,
    _odata: OData,
}

impl World {
    async fn start() -> Self {
        let hub = Hub::start_configured("[outbound]\nallow_addresses = [\"127.0.0.1\"]\n").await;
        let app = App::with(|request, _| match request.method.as_str() {
            "GET" => Reply::status(200).header("content-type", "application/json").body(
                r#"{"articles":[{"Reference":"A;1","Stock":12,"Reserve":2,"Actif":true},
                    {"Reference":"B","Stock":5,"Reserve":0,"Actif":false},
                    {"Reference":"C","Stock":0,"Reserve":0,"Actif":true}]}"#,
            ),
            _ => Reply::status(200),
        })
        .await;
        let (cloud, ssh) = (App::start().await, SshServer::start());
        let (folders, crm) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let odata = OData::start(Kind::Dynamics, crm.path());
        let agent = Agent::new(&hub, SITE, "paris-1");
        for name in ["erp", "suppliers", "shop"] {
            let root = folders.path().join(name);
            fs::create_dir_all(root.join("in")).unwrap();
            let mut settings = resources::folder(name, &root);
            if name == "suppliers" {
                settings += "\n[[resources.suppliers.pickup]]\nname = \"in\"\nfolder = \"in\"\npattern = \"*\"\n\
                             every = \"1s\"\nstable = \"rename\"\nafter = \"delete\"\n";
            }
            agent.resource(name, &settings);
        }
        ssh.serve_to(&agent, "compta");
        agent.resource("orders-app", &resources::application("orders-app", &app.url));
        agent.resource("stock-app", &resources::application("stock-app", &app.url));
        agent.secret("crm", odata::PASSWORD);
        agent.resource("crm", &contacts(&odata.url()));
        let mut agent = agent;
        agent.start().await;
        Self { hub, _agent: agent, ssh, crm, folders, app, cloud, key: String::new(), _odata: odata }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.folders.path().join(name)
    }

    /// Runs `passerelle mediations …`.
    fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary("passerelle"));
        command.arg("mediations").args(arguments);
        run(command.env("PASSERELLE_URL", &self.hub.url).env("PASSERELLE_API_KEY", self.hub.api.key()))
    }

    /// The same, which must go well.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {}\n{out}\n{err}", output.status);
        out.into_owned()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.done(arguments)).expect("JSON")
    }

    /// Subscribes the cloud's endpoint; gives the id.
    async fn subscribe(&mut self, kind: &str) -> String {
        let wish = json!({"url": format!("{}hook", self.cloud.url), "kinds": [kind]});
        let answer = self.hub.api.post("/v1/subscriptions", &wish).await;
        assert_eq!(answer.status, 201, "{:#}", answer.body);
        self.key = answer.body["secret"].as_str().unwrap().to_owned();
        answer.body["id"].as_str().unwrap().to_owned()
    }

    /// What the cloud was told of this kind.
    fn told(&self, kind: &str) -> Vec<Request> {
        let is = |request: &Request| {
            serde_json::from_slice::<Value>(&request.body).is_ok_and(|body| body["EventKind"] == kind)
        };
        self.cloud.requests().into_iter().filter(is).collect()
    }
}

/// A `crm` resource over an OData service.
fn contacts(url: &str) -> String {
    format!(
        "[resources.crm]\nconnector = \"crm\"\ndialect = \"odata\"\nurl = \"{url}\"\n\
         auth = {{ kind = \"basic\", username = '{}', password = {{ file = \"secrets/crm\" }} }}\n\
         options = {{ upsert = \"alternate_key\", changes = \"track\" }}\n\n[resources.crm.entities.contact]\n\
         fields = {{ external_id = \"new_externalid\", name = \"lastname\" }}\n\n[[resources.crm.allow]]\n\
         operations = [\"upsert\", \"changes\"]\nentities = [\"contact\"]\nfields = [\"*\"]\n",
        odata::USER
    )
}

fn put(root: &Path, path: &str, content: &[u8]) {
    let part = root.join("part");
    fs::write(&part, content).unwrap();
    fs::rename(part, root.join(path)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_page_do_what_it_says() {
    let mut world = World::start().await;
    let examples = examples();
    assert_eq!(examples.len(), 5, "the page has five definitions");
    let subscription = world.subscribe("Test").await;
    let key = world.key.clone();
    // So that the test need not wait for an hour and a quarter.
    let text = examples.join("\n").replace(SUBSCRIPTION, &subscription).replace("\"75m\"", "\"1s\"");
    let late = world.subscribe("MediationEnRetard").await;
    assert_ne!(late, subscription);
    let file = world.folders.path().join("mediations.toml");
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let dry = world.done(&["apply", "-f", file, "--dry-run"]);
    assert_eq!(dry.matches("would be created").count(), 5, "{dry}");
    assert_eq!(world.json(&["list", "--json"])["items"], json!([]));
    world.done(&["apply", "-f", file]);
    let again = world.json(&["apply", "-f", file, "--json"]);
    assert!(
        again["items"].as_array().unwrap().iter().all(|item| item["outcome"] == "unchanged"),
        "{again:#}"
    );

    accounting_export(&world);
    order_validated(&world).await;
    supplier_catalogue(&world).await;
    stock_export(&world).await;
    crm_customers(&world, &key).await;
}

fn accounting_export(world: &World) {
    // The file is not there yet: the run fails, is shown, and goes on once it is.
    let failed = world.command(&["run", "accounting-export", "--follow"]);
    assert_eq!(failed.status.code(), Some(1), "{}", String::from_utf8_lossy(&failed.stderr));
    let listed = world.json(&["runs", "accounting-export", "--state", "failed", "--json"]);
    let guid = listed["items"][0]["guid"].as_str().unwrap();
    assert!(world.done(&["show", guid]).contains("step         take (job): failed"));
    let bytes = b"JournalCode;EcritureNum;Date;Compte;CompteLib;Client;Piece;Debit;Credit\r\n\
        VE;000001;2026-10-31;411;Clients;C00002;FA261000001;1663.15;\r\n\
        VE;000001;2026-10-31;707;\"Pr\xeat-\xe0-porter; \x80\";;FA261000001;;1663,15\r\n";
    put(&world.folder("erp"), "ecritures.csv", bytes);
    world.done(&["restart", guid]);
    let log = world.done(&["logs", guid, "--follow"]);
    assert!(log.contains("2 records of ecritures.csv converted to 123456789FEC"), "{log}");

    let files = files_below(world.ssh.root());
    let [name] = files.as_slice() else { panic!("{files:?}") };
    assert!(name.starts_with("123456789FEC20") && name.len() == 24, "{name}");
    let fec = fs::read_to_string(world.ssh.root().join(name)).unwrap();
    let lines: Vec<Vec<&str>> = fec.split_terminator("\r\n").map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.len(), 3, "{fec}");
    assert!(lines.iter().all(|line| line.len() == 18), "{fec}");
    assert_eq!(lines[0][0], "JournalCode");
    assert_eq!(
        lines[2],
        [
            "VE",
            "Journal des ventes",
            "000001",
            "20261031",
            "70700000",
            "Prêt-à-porter; €",
            "",
            "",
            "FA261000001",
            "20261031",
            "Facture FA261000001",
            "0,00",
            "1663,15",
            "",
            "",
            "20261031",
            "",
            "EUR"
        ]
    );

    // The same file a second time on one day is refused at the target, and the operator closes the run.
    let refused = world.command(&["run", "accounting-export", "--follow"]);
    assert_eq!(refused.status.code(), Some(1));
    let listed = world.json(&["runs", "accounting-export", "--state", "failed", "--json"]);
    let guid = listed["items"][0]["guid"].as_str().unwrap();
    assert_eq!(world.json(&["ignore", guid, "--json"])["state"], "ignored");
    assert_eq!(fs::read_to_string(world.ssh.root().join(name)).unwrap(), fec);
}

async fn order_validated(world: &World) {
    let event: Value = serde_json::from_str(EVENT).unwrap();
    for _ in 0..2 {
        let answer = world.hub.api.post("/v1/events/in", &event).await;
        assert_eq!(answer.status, 200, "{:#}", answer.body);
    }
    let mut free = event.clone();
    free["Data"]["CommandeMontantTotal"] = json!(0);
    assert_eq!(world.hub.api.post("/v1/events/in", &free).await.status, 200);
    let posts = || -> Vec<Request> {
        world.app.requests().into_iter().filter(|request| request.method == "POST").collect()
    };
    until("the order to be told", PATIENCE, async || (!posts().is_empty()).then_some(())).await;
    let ended = ended(world, "order-validated", 1).await;
    assert_eq!(ended[0]["state"], "succeeded", "{ended:#?}");
    let posts = posts();
    assert_eq!(posts.len(), 1, "sent twice, told once; and nothing of the free one");
    assert!(posts[0].uri.ends_with("orders/CMD-2026-000042/validated"), "{}", posts[0].uri);
    assert_eq!(serde_json::from_slice::<Value>(&posts[0].body).unwrap(), event);
}

async fn supplier_catalogue(world: &World) {
    let root = world.folder("suppliers");
    put(&root, "in/prices-F42.csv", "Reference;Prix\nB;12.5\nA;3\n".as_bytes());
    put(&root, "in/articles-F7.csv", "Reference;Libelle\nZ;Seul\n".as_bytes());
    put(
        &root,
        "in/articles-F42.csv",
        "Reference;Libelle\nA;\"Écharpe; laine\"\nB;Bonnet\nC;Sans prix\n".as_bytes(),
    );
    let ended = ended(world, "supplier-catalogue", 1).await;
    assert_eq!(ended[0]["state"], "succeeded", "{ended:#?}");
    assert_eq!(files_below(&root.join("out")), ["catalogue-F42.csv"]);
    let catalogue = fs::read_to_string(root.join("out/catalogue-F42.csv")).unwrap();
    assert_eq!(catalogue, "Reference;Libelle;Prix\r\nA;\"Écharpe; laine\";3,00\r\nB;Bonnet;12,50\r\n");
}

async fn stock_export(world: &World) {
    until("the alarm", PATIENCE, async || {
        let shown = world.json(&["show", "stock-export", "--json"]);
        (shown["late_since"].is_string() && !world.told("MediationEnRetard").is_empty()).then_some(())
    })
    .await;
    assert!(
        world.done(&["list"]).lines().any(|line| line.starts_with("stock-export") && line.contains(" late "))
    );
    world.done(&["run", "stock-export", "--follow"]);
    let stocks = fs::read_to_string(world.folder("shop").join("stocks.csv")).unwrap();
    assert_eq!(stocks, "\"Reference\";\"Stock\"\r\n\"A;1\";10\r\n\"C\";0\r\n");
}

async fn crm_customers(world: &World, key: &str) {
    let upsert = |key: &str, name: &str| {
        let params = json!({"entity": "contact", "key": {"external_id": key}, "fields": {"name": name}});
        job("crm", "upsert", params)
    };
    for (key, name) in [("C-1", "Lefèvre"), ("C-2", "Dupont")] {
        world.hub.api.succeed(&upsert(key, name)).await;
    }
    world.done(&["run", "crm-customers", "--follow"]);
    let told = world.told("ModificationClient");
    let names: BTreeSet<String> = told
        .iter()
        .map(|request| {
            serde_json::from_slice::<Value>(&request.body).unwrap()["Data"]["Nom"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(names, BTreeSet::from(["Lefèvre".to_owned(), "Dupont".to_owned()]));
    let ids: BTreeSet<&str> = told.iter().map(|request| request.header("webhook-id")).collect();
    assert_eq!((ids.len(), told.len()), (2, 2));
    told.iter().for_each(|request| signed(request, key));

    // Only what changed since.
    world.done(&["run", "crm-customers", "--follow"]);
    assert_eq!(world.told("ModificationClient").len(), 2, "nothing changed");
    world.hub.api.succeed(&upsert("C-2", "Durand")).await;
    world.done(&["run", "crm-customers", "--follow"]);
    let told = world.told("ModificationClient");
    assert_eq!(told.len(), 3);
    let last: Value = serde_json::from_slice(&told[2].body).unwrap();
    assert_eq!((&last["Data"]["Nom"], &last["Data"]["Cle"]), (&json!("Durand"), &json!("C-2")), "{last:#}");
    assert!(world.crm.path().exists());
}

/// The signature is that of Standard Webhooks with the subscription's key.
fn signed(request: &Request, secret: &str) {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let (id, at) = (request.header("webhook-id"), request.header("webhook-timestamp"));
    let text = [format!("{id}.{at}.").as_bytes(), &request.body].concat();
    let signature = request.header("webhook-signature").strip_prefix("v1,").expect("a signature");
    hmac::verify(&key, &text, &STANDARD.decode(signature).unwrap()).expect("the hub's signature");
}

/// Waits until a definition has so many runs that have ended.
async fn ended(world: &World, definition: &str, count: usize) -> Vec<Value> {
    until(&format!("{count} runs of {definition}"), PATIENCE, async || {
        let page = world.hub.api.get(&format!("/v1/mediations/runs?definition={definition}")).await.body;
        let runs = page["items"].as_array()?.clone();
        (runs.len() >= count && runs.iter().all(|run| run["finished_at"].is_string())).then_some(runs)
    })
    .await
}
