//! Secrets are planted wherever a secret can be, good and failing jobs are run at the most talkative log level, and then
//! everything that hub and agent wrote, stored, showed or sent is searched for them in every form.

use crate::common::{drop_job, files_below, job, with};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use passerelle_tests::{
    Agent, App, Hub, PATIENCE, PROXY_PASSWORD, PROXY_USER, Reply, Squid, SshServer, http_client, resources,
    run, until,
};
use rustix::process::Signal;
use serde_json::json;
use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// Every library too.
const EVERYTHING: &str = "trace,passerelle_agent=trace,passerelle_hub=trace";
/// Shorter pieces could be there by chance.
const LEAST: usize = 10;

/// A planted secret: its name, and all the forms in which it must not be found.
struct Planted {
    name: String,
    forms: Vec<Vec<u8>>,
}

impl Planted {
    fn new(name: &str, secret: &[u8]) -> Self {
        let mut forms = vec![secret.to_vec()];
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let bytes: Vec<String> = secret.iter().map(u8::to_string).collect();
        forms.extend([hex.to_uppercase().into_bytes(), hex.into_bytes(), bytes.join(", ").into_bytes()]);
        // Wherever it begins within three bytes of something longer.
        for before in 0..3 {
            let padded = [&b"AAA"[..before], secret].concat();
            for text in [STANDARD.encode(&padded), URL_SAFE_NO_PAD.encode(&padded)] {
                let inner = text.trim_end_matches('=');
                // The first and last characters hold bits of what is beside it.
                let from = [0, 2, 3][before];
                forms.push(inner.as_bytes()[from..inner.len() - 1].to_vec());
            }
        }
        if let Ok(text) = std::str::from_utf8(secret) {
            let escape = |keep: &dyn Fn(u8) -> bool| -> String {
                text.bytes()
                    .map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
                    .collect()
            };
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
            forms.push(escape(&plain).into_bytes());
            forms.push(escape(&plain).to_lowercase().into_bytes());
            forms.push(escape(&|b| b.is_ascii_graphic() && !b"\"%<>`#?{}".contains(&b)).into_bytes());
            let quoted = |text: String| text.as_bytes()[1..text.len() - 1].to_vec();
            forms.push(quoted(format!("{text:?}")));
            forms.push(quoted(serde_json::to_string(text).expect("a text")));
            // What is quoted twice, as a debug print of JSON.
            forms.push(quoted(format!(
                "{:?}",
                serde_json::to_string(text).expect("a text").trim_matches('"')
            )));
        }
        forms.retain(|form| form.len() >= LEAST);
        forms.sort();
        forms.dedup();
        Self { name: name.to_owned(), forms }
    }
}

/// All forms by their first two bytes: one pass over a text looks for every one of them.
struct Search<'p> {
    by_start: Vec<Vec<(&'p Planted, &'p [u8])>>,
}

impl<'p> Search<'p> {
    fn new(planted: &'p [Planted]) -> Self {
        let mut by_start = vec![Vec::new(); 1 << 16];
        for secret in planted {
            for form in &secret.forms {
                by_start[start(form)].push((secret, form.as_slice()));
            }
        }
        Self { by_start }
    }

    /// The first secret in a text, and where.
    fn find(&self, text: &[u8]) -> Option<(&'p Planted, usize)> {
        text.windows(2).enumerate().find_map(|(at, two)| {
            let candidates = &self.by_start[start(two)];
            let found = candidates.iter().find(|(_, form)| text[at..].starts_with(form));
            found.map(|(secret, _)| (*secret, at))
        })
    }
}

fn start(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

/// What is searched, by what it is.
#[derive(Default)]
struct Places(BTreeMap<String, Vec<u8>>);

impl Places {
    fn add(&mut self, name: &str, text: impl Into<Vec<u8>>) {
        let text = text.into();
        assert!(!text.is_empty(), "{name} is empty: nothing would be searched");
        self.0.insert(name.to_owned(), text);
    }

    fn folder(&mut self, name: &str, folder: &Path, except: &[&str]) {
        for file in files_below(folder) {
            if !except.contains(&file.as_str()) {
                self.0.insert(format!("{name}/{file}"), fs::read(folder.join(&file)).unwrap_or_default());
            }
        }
    }

    fn command(&mut self, agent: &Agent, arguments: &[&str]) {
        let output = agent.output(arguments);
        self.add(
            &format!("{arguments:?} of {}", agent.folder().display()),
            [output.stdout, output.stderr].concat(),
        );
    }

    /// What a support bundle holds, packed and unpacked.
    fn bundle(&mut self, agent: &Agent, name: &str) {
        let home = tempfile::tempdir().expect("a temporary folder");
        let path = home.path().join("bundle.tar.gz");
        self.command(agent, &["check", "--support-bundle", path.to_str().expect("a path")]);
        let mut unpack = Command::new("tar");
        unpack.arg("-xzf").arg(&path).arg("-C").arg(home.path());
        assert!(run(&mut unpack).status.success(), "{name}: no archive was written");
        let unpacked = home.path().join("passerelle-support");
        assert!(files_below(&unpacked).len() >= 5, "{name}: {:?}", files_below(&unpacked));
        self.folder(name, &unpacked, &[]);
    }

    fn search(&self, planted: &[Planted]) {
        let mut leaks = Vec::new();
        let search = Search::new(planted);
        for (place, text) in &self.0 {
            if let Some((secret, at)) = search.find(text) {
                let around = &text[at.saturating_sub(200)..(at + 200).min(text.len())];
                leaks.push(format!("{} in {place}: …{}…", secret.name, String::from_utf8_lossy(around)));
            }
        }
        assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    }
}

/// An agent that gets out through a proxy with a password, once by its configuration and once by its environment, and
/// once with a wrong one.
async fn through_a_proxy(planted: &mut Vec<Planted>, places: &mut Places) {
    const WRONG: &str = "Wr0ng-\"proxy'%-Xc4";
    let (hub, squid) = (Hub::start_tls().await, Squid::start().await);
    planted.push(Planted::new("the password of squid", PROXY_PASSWORD.as_bytes()));
    let encoded = PROXY_PASSWORD.replace('@', "%40").replace(':', "%3A");
    let drops = tempfile::tempdir().expect("a temporary folder");
    for way in ["configuration", "environment", "wrong"] {
        let mut agent = Agent::new(&hub, way, way);
        planted.push(Planted::new(
            "the token of an agent behind squid",
            &fs::read(agent.folder().join("secrets/enrolment-token")).expect("the token"),
        ));
        agent
            .file("ca.pem", hub.certificate().expect("a certificate"))
            .resource("compta", &resources::folder("compta", drops.path()));
        agent.hub_key("ca_file = \"ca.pem\"");
        if way == "environment" {
            agent.env("HTTPS_PROXY", squid.url().replace("://", &format!("://{PROXY_USER}:{encoded}@")));
        } else {
            let password = if way == "wrong" { WRONG } else { PROXY_PASSWORD };
            plant(planted, &agent, "squid-password", password);
            agent.hub_key(&format!(
                "proxy = {{ url = \"{}\", username = \"{PROXY_USER}\", password = {{ file = \"secrets/squid-password\" }} }}",
                squid.url()
            ));
        }
        log_by(&agent, "text");
        agent.spawn_as_it_is();
        if way == "wrong" {
            agent.process().logged("HTTP status 407", PATIENCE).await;
        } else {
            agent.ready().await;
            hub.api.succeed(&with(drop_job("a.csv", way), json!({ "site": way }))).await;
        }
        for arguments in [&["check"][..], &["check", "--json"], &["status", "--json"]] {
            places.command(&agent, arguments);
        }
        places.bundle(&agent, &format!("the bundle of the agent behind squid, {way}"));
        for path in ["/", "/status.json", "/metrics", "/readyz"] {
            places.add(&format!("{path} behind squid, {way}"), text_at(agent.url(path)).await);
        }
        agent.kill();
        places.command(&agent, &["audit", "show", "--json"]);
        places.add(&format!("the log of the agent behind squid, {way}"), agent.process().log());
        places.folder(
            &format!("the state behind squid, {way}"),
            &agent.folder().join("state"),
            &["agent-key.pk8"],
        );
    }
    // It was squid that let them through, and with these credentials.
    let passed = squid.log().lines().filter(|line| line.contains(PROXY_USER)).count();
    assert!(passed >= 2, "{}", squid.log());
    places.add("the log of the hub behind squid", hub.process.log());
    places.folder("the data of the hub behind squid", hub.data(), &["signing-key.pk8"]);
}

/// Writes `agent.toml` with another log section.
fn log_by(agent: &Agent, format: &str) {
    agent.write();
    let text = fs::read_to_string(agent.folder().join("agent.toml")).expect("agent.toml");
    let log = format!("format = \"{format}\"\nlevel = \"{EVERYTHING}\"");
    agent.file("agent.toml", text.replace("level = \"info\"", &log));
}

/// `auth` of an application.
fn auth(kind: &str, secret: &str, more: &str) -> String {
    let key = match kind {
        "basic" => "password",
        "bearer" => "token",
        _ => "value",
    };
    format!("auth = {{ kind = \"{kind}\", {more} {key} = {{ file = \"secrets/{secret}\" }} }}\n")
}

/// Gives an agent a secret and has it searched for.
fn plant(planted: &mut Vec<Planted>, agent: &Agent, name: &str, secret: &str) {
    agent.secret(name, secret);
    planted.push(Planted::new(name, secret.as_bytes()));
}

async fn text_at(url: String) -> String {
    http_client().get(url).send().await.expect("an answer").text().await.expect("a text")
}

#[test]
fn the_search_finds_a_secret_in_each_of_its_forms() {
    let secret = "pa\"ss%wörd\n+/=";
    let planted = [Planted::new("x", secret.as_bytes())];
    let search = Search::new(&planted);
    for text in [
        secret.to_owned(),
        format!("{secret:?}"),
        format!("Basic {}", STANDARD.encode(format!("user:{secret}"))),
        format!("Basic {}", STANDARD.encode(format!("u:{secret}"))),
        format!("Basic {}", URL_SAFE_NO_PAD.encode(format!("us:{secret}!!"))),
        json!({ "k": secret }).to_string(),
        format!("{:?}", json!({ "k": secret }).to_string()),
        "pa%22ss%25w%C3%B6rd%0A%2B%2F%3D".to_owned(),
        secret.bytes().map(|b| format!("{b:02x}")).collect(),
        format!("{:?}", secret.as_bytes()),
    ] {
        assert!(search.find(text.as_bytes()).is_some(), "{text}");
    }
    assert!(search.find(b"nothing of the kind, but long enough for all").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_planted_secret_is_found_anywhere() {
    let mut planted = Vec::new();
    let hub = Hub::start_logging(EVERYTHING).await;
    let token = hub.enrolment_token("paris", &[]);
    planted.push(Planted::new("the enrolment token", token.as_bytes()));
    planted.push(Planted::new("the API key", hub.api.key().as_bytes()));
    let signing_key = fs::read(hub.data().join("signing-key.pk8")).unwrap();
    planted.push(Planted::new("the hub's signing key", &signing_key[16..48]));

    let files = tempfile::tempdir().unwrap();
    let app = App::with(|request, _| match request.uri.as_str() {
        // A server that repeats what it was sent.
        "/echo" => Reply::status(401).header("www-authenticate", request.header("authorization").to_owned()),
        "/fails" => Reply::status(500).body(request.header("authorization").to_owned()),
        _ => Reply::status(200),
    })
    .await;
    let ssh = SshServer::start();
    let mut agent = Agent::at(&hub.url, "paris-1");
    let export = files.path().join("audit.jsonl");
    agent.log_key("[audit]").log_key(&format!("file = \"{}\"", export.display()));
    agent.secret("enrolment-token", &token);
    let drops = files.path().join("drops");
    fs::create_dir(&drops).unwrap();
    agent.resource("compta", &resources::folder("compta", &drops));
    ssh.serve_to(&agent, "sftp");
    let key = fs::read_to_string(ssh.user_key()).unwrap();
    for (number, line) in key.lines().filter(|line| !line.starts_with('-')).enumerate() {
        // The first line of every such file is the same, and the public key stands in the next.
        if number >= 2 {
            planted.push(Planted::new("the SFTP key", line.as_bytes()));
        }
    }
    plant(&mut planted, &agent, "sftp-password", "Sf\"tp'%41é\\Zq8-\nline-two-Vn3");
    let settings = format!(
        "[resources.locked]\nconnector = \"file\"\nurl = \"sftp://127.0.0.1:{}{}\"\nusername = \"{}\"\n\
         password = {{ file = \"secrets/sftp-password\" }}\nknown_hosts = \"known_hosts\"\n\
         [[resources.locked.allow]]\noperations = [\"drop\"]\npaths = [\"**/*\"]\n",
        ssh.port(),
        ssh.root().display(),
        ssh.user()
    );
    agent.resource("locked", &settings);
    plant(&mut planted, &agent, "bearer", "Be4r\"er%2F+/=Kx-0fQ~");
    plant(&mut planted, &agent, "basic", "Ba5ic:\"pass'%25 wörd-Jt7");
    plant(&mut planted, &agent, "api-key", "Ap1-k\"ey'%7E+/Hw2==");
    plant(&mut planted, &agent, "proxy", "Pr0xy%40\"pass:Lm5-'x");
    let proxy = "proxy = { url = \"http://127.0.0.1:9\", username = \"svc\", password = { file = \"secrets/proxy\" } }\n";
    for (name, url, settings) in [
        ("bearer", app.url.clone(), auth("bearer", "bearer", "")),
        ("basic", app.url.clone(), auth("basic", "basic", "username = \"svc\",")),
        ("api-key", app.url.clone(), auth("api_key", "api-key", "header = \"x-api-key\",")),
        ("proxied", app.url.clone(), auth("bearer", "bearer", "") + proxy),
        ("unreachable", "http://127.0.0.1:9/".to_owned(), auth("basic", "basic", "username = \"svc\",")),
        // Nobody there speaks TLS.
        ("no-tls", app.url.replace("http://", "https://"), auth("bearer", "bearer", "")),
    ] {
        agent.resource(name, &resources::application_with(name, &url, &settings));
    }
    log_by(&agent, "text");
    agent.spawn_as_it_is();
    agent.ready().await;

    let payload = "Payl0ad-\"content%-of-Gz6-a-file";
    let jobs = || {
        let mut jobs = vec![
            drop_job("a.csv", payload),
            json!({"site": "paris", "resource": "sftp", "operation": "drop", "params": {"path": "a.csv"},
                   "payload": {"text": payload}}),
            json!({"site": "paris", "resource": "locked", "operation": "drop", "params": {"path": "a.csv"},
                   "payload": {"text": payload}, "max_attempts": 1}),
            job("compta", "drop", json!({"path": "../a"})),
        ];
        // Few on each that fails: the hub stops offering to a resource that fails all the time.
        let app = ["bearer", "basic", "api-key"].map(|name| [(name, "fine"), (name, "echo")]);
        let fails = [("bearer", "fails"), ("proxied", "fine"), ("unreachable", "fine"), ("no-tls", "fine")];
        for (resource, path) in app.concat().into_iter().chain(fails) {
            let mut notify = job(resource, "notify", json!({ "path": path }));
            notify["payload"] = json!({ "text": payload });
            let request = job(resource, "request", json!({"method": "GET", "path": "fine"}));
            for mut one in [notify, request] {
                one["max_attempts"] = json!(1);
                jobs.push(one);
            }
        }
        jobs
    };
    let mut places = Places::default();
    let mut ids = Vec::new();
    for job in jobs() {
        ids.push(hub.api.submit(&job).await);
    }
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for id in &ids {
        let job = hub.api.end_of(id, PATIENCE).await;
        *states.entry(job["state"].as_str().unwrap().to_owned()).or_default() += 1;
        // What the application itself answered is the client's to see: this one repeats what it was sent.
        places.add(&format!("job {id}"), job.to_string());
    }
    assert!(states["succeeded"] >= 8 && states["failed"] >= 8 && states["denied"] == 1, "{states:?}");
    assert!(app.requests().iter().any(|request| request.header("authorization").contains("Be4r")));
    let app_key = app.requests().iter().any(|request| request.header("x-api-key").starts_with("Ap1-k"));
    assert!(app_key, "the key never reached the application");

    // A reload with secrets where none may stand.
    let literal = "L1teral-\'secret%-Rb9-x";
    planted.push(Planted::new("a literal in the configuration", literal.as_bytes()));
    let bad = format!(
        "[resources.bad]\nconnector = \"http\"\nurl = \"http://svc:{literal}@127.0.0.1:9/?key={literal}\"\n\
         auth = {{ kind = \"bearer\", token = \"{literal}\" }}\n[[resources.bad.allow]]\noperations = [\"notify\"]\n\
         paths = [\"**\"]\n[resources.worse]\nconnector = \"file\"\nurl = \"sftp://svc:{literal}@127.0.0.1/x\"\n\
         username = \"x\"\npassword = {{ file = \"secrets/none\", env = \"{literal}\" }}\nknown_hosts = \"known_hosts\"\n"
    );
    agent.resource("bad", &bad);
    agent.process().signal(Signal::HUP);
    agent.process().logged("changed configuration is refused", PATIENCE).await;
    places.command(&agent, &["check"]);
    places.bundle(&agent, "the bundle with findings");
    places.add("the status page with findings", text_at(agent.url("/")).await);
    fs::remove_file(agent.folder().join("resources.d/bad.toml")).unwrap();
    // An address with a password in it, towards the hub and its proxy.
    let other = Agent::at(&hub.url, "other");
    other.write();
    let text = fs::read_to_string(other.folder().join("agent.toml")).unwrap();
    for url in [format!("https://svc:{literal}@hub.example.com"), format!("nonsense {literal}")] {
        let proxy = format!("proxy = {{ url = \"{url}\", password = \"{literal}\" }}");
        other.file(
            "agent.toml",
            text.replace(&hub.url, &url).replace("[agent]", &format!("{proxy}\n[agent]")),
        );
        places.command(&other, &["check", "--json"]);
        places.command(&other, &["run"]);
    }

    for arguments in [
        &["check"][..],
        &["check", "--json"],
        &["status"],
        &["status", "--json"],
        &["audit", "show"],
        &["audit", "show", "--json"],
        &["audit", "verify"],
        &["public-key"],
    ] {
        places.command(&agent, arguments);
    }
    places.bundle(&agent, "the bundle of the running agent");
    for path in ["/", "/status.json", "/metrics", "/readyz"] {
        places.add(&format!("the agent's {path}"), text_at(agent.url(path)).await);
    }
    for path in
        ["/v1/agents", "/v1/sites", "/v1/sites/paris/resources", "/v1/jobs?limit=100", "/v1/openapi.json"]
    {
        places.add(&format!("the hub's {path}"), hub.api.get(path).await.body.to_string());
    }
    places.add("the hub's /metrics", text_at(format!("{}/metrics", hub.url)).await);

    // The same once more after a restart, with JSON logs, by an agent that is not let in at a proxy.
    let before = agent.process().log().len();
    agent.process().signal(Signal::TERM);
    agent.process().exit_code(PATIENCE).await;
    log_by(&agent, "json");
    agent.spawn_as_it_is();
    agent.ready().await;
    let mut again = Vec::new();
    for job in jobs() {
        again.push(hub.api.submit(&job).await);
    }
    for id in again {
        hub.api.end_of(&id, PATIENCE).await;
    }
    let mut away = Agent::at("https://hub.invalid", "away");
    away.hub_key(proxy);
    plant(&mut planted, &away, "proxy", "Pr0xy%40\"pass:Lm5-'x");
    log_by(&away, "json");
    away.spawn_as_it_is();
    away.process().logged("Not enrolled yet", PATIENCE).await;
    places.command(&away, &["check"]);
    places.add("the log of the agent that is away", away.process().log());
    let copied = until("the copy of the audit", PATIENCE, async || {
        fs::read_to_string(&export).ok().filter(|text| text.contains("denied"))
    })
    .await;
    places.add("the copy of the audit", copied);
    agent.process().signal(Signal::TERM);
    agent.process().exit_code(PATIENCE).await;
    places.bundle(&agent, "the bundle of the stopped agent");
    let log = agent.process().log();
    assert!(log[before..].contains("\"level\":\"TRACE\""), "the log is not talkative");
    places.add("the agent's log", log);
    let agent_key = fs::read(agent.folder().join("state/agent-key.pk8")).unwrap();
    planted.push(Planted::new("the agent's key", &agent_key[16..48]));
    places.folder("state", &agent.folder().join("state"), &["agent-key.pk8"]);
    places.add("the hub's log", hub.process.log());
    places.folder("the hub's data", hub.data(), &["signing-key.pk8"]);
    through_a_proxy(&mut planted, &mut places).await;
    places.search(&planted);

    // Payloads are at the hub and at their target, but in no log.
    let content = Planted::new("a payload", payload.as_bytes());
    let mut logs = Places::default();
    logs.add("the agent's log", agent.process().log());
    logs.add("the hub's log", hub.process.log());
    for (name, text) in
        places.0.iter().filter(|(name, _)| name.starts_with("state/audit") || name.contains("metrics"))
    {
        logs.0.insert(name.clone(), text.clone());
    }
    logs.search(&[content]);
}
