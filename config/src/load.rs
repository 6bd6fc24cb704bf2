//! Reads a configuration folder.

use crate::{
    AgentConfig, AgentSection, AuditSection, ByteSize, ClassicLog, Diagnostics, HubSection, HumanDuration,
    KeyRotation, ListenerConfig, LogFormat, LogSection, ProxySection, ResourceConfig, Section, TrustSection,
    audit,
    check::{self, Use},
    defaults, files,
    hint::unknown_key,
    listener, raw, resource,
    tree::{self, Node, Source, Value},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The configuration folder if none is named.
pub const DEFAULT_DIR: &str = "/config";

/// Reads `agent.toml` and `resources.d/*.toml` in `dir`. `PASSERELLE_LISTEN` overrides `agent.listen`.
///
/// # Errors
/// All findings at once.
pub fn load(dir: &Path) -> Result<AgentConfig, Diagnostics> {
    load_with(dir, &|name| std::env::var(name).ok())
}

/// The resources that can be read in `dir`, whatever else is wrong there: where [`load`] fails, a connector can still
/// judge these, so that one run tells everything.
#[must_use]
pub fn readable_resources(dir: &Path) -> Vec<ResourceConfig> {
    Loader::new(dir).run(dir, &|name| std::env::var(name).ok()).1
}

/// The listeners that can be read in `dir`, whatever else is wrong there.
#[must_use]
pub fn readable_listeners(dir: &Path) -> Vec<ListenerConfig> {
    let mut loader = Loader::new(dir);
    let (main, resources) = loader.run(dir, &|name| std::env::var(name).ok());
    let own = main.map(|main| main.agent.listen);
    check_listeners(loader.listeners, &resources, own, &loader.dir, &mut loader.diagnostics)
}

/// Where the agent of this folder listens, whatever else is wrong there: its health can be asked for while somebody
/// edits the configuration that the running agent has long read.
#[must_use]
pub fn listen_address(dir: &Path) -> SocketAddr {
    listen_with(dir, &|name| std::env::var(name).ok())
}

/// Where the agent of this folder keeps its state, whatever is wrong with its resources.
///
/// # Errors
/// All findings, if `agent.toml` does not say it for sure.
pub fn state_dir(dir: &Path) -> Result<PathBuf, Diagnostics> {
    let mut loader = Loader::new(dir);
    let (main, _) = loader.run(dir, &|name| std::env::var(name).ok());
    loader.diagnostics.sort();
    main.map(|main| main.agent.state_dir).ok_or(loader.diagnostics)
}

/// As [`listen_address`], with the environment passed in.
pub(crate) fn listen_with(dir: &Path, env: &dyn Fn(&str) -> Option<String>) -> SocketAddr {
    let main = Loader::new(dir).run(dir, env).0;
    main.map(|main| main.agent.listen)
        .or_else(|| env(defaults::LISTEN_ENV)?.parse().ok())
        .or_else(|| defaults::LISTEN.parse().ok())
        .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9464)))
}

/// As [`load`], with the environment passed in.
pub(crate) fn load_with(
    dir: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<AgentConfig, Diagnostics> {
    let mut loader = Loader::new(dir);
    let (main, resources) = loader.run(dir, env);
    let own = main.as_ref().map(|main| main.agent.listen);
    let Loader { dir, mut diagnostics, listeners } = loader;
    let listeners = check_listeners(listeners, &resources, own, &dir, &mut diagnostics);
    diagnostics.sort();
    match main {
        Some(Main { hub, trust, agent, log, audit, hub_text, hub_files, files })
            if diagnostics.is_empty() =>
        {
            let warnings = diagnostics.warnings().to_vec();
            Ok(AgentConfig {
                dir,
                hub,
                trust,
                agent,
                log,
                audit,
                resources,
                listeners,
                warnings,
                hub_text,
                hub_files,
                files,
            })
        }
        _ => Err(diagnostics),
    }
}

struct Loader {
    /// The folder as an absolute path, so that a later change of directory changes nothing.
    dir: PathBuf,
    diagnostics: Diagnostics,
    listeners: Tables,
}

impl Loader {
    fn new(dir: &Path) -> Self {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        Self { dir, diagnostics: Diagnostics::default(), listeners: Tables::default() }
    }

    fn run(
        &mut self,
        dir: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> (Option<Main>, Vec<ResourceConfig>) {
        if let Err(finding) = files::check_dir(dir) {
            self.diagnostics.push(finding);
            return (None, Vec::new());
        }
        let mut resources = Tables::default();
        let main = self.read(dir.join("agent.toml")).and_then(|(source, node)| {
            let mut table = node.into_table()?;
            if let Some(entry) = table.remove("resources") {
                self.take("resources", entry.node, &source, &mut resources);
            }
            if let Some(entry) = table.remove("listeners") {
                let mut listeners = std::mem::take(&mut self.listeners);
                self.take("listeners", entry.node, &source, &mut listeners);
                self.listeners = listeners;
            }
            let root = Node { at: 0, value: Value::Table(table) };
            let (mut hub_text, mut hub_files, mut files) = (String::new(), BTreeSet::new(), BTreeSet::new());
            if let Some(mut hub) = root.find("hub").cloned() {
                // Of no use once the agent is enrolled.
                if let Value::Table(keys) = &mut hub.value {
                    keys.remove("enrolment_token");
                }
                hub.write_canonical(&mut hub_text);
                hub.named_files(&self.dir, &mut hub_files);
            }
            root.named_files(&self.dir, &mut files);
            let (hub, trust, agent, log, audit) =
                self.check_main(Section::new("", String::new(), root, source, &[]), env)?;
            if let Some(file) = &audit.file {
                // The agent writes it itself: that it changes says nothing.
                files.remove(file);
            }
            Some(Main { hub, trust, agent, log, audit, hub_text, hub_files, files })
        });
        match files::list_resources(dir) {
            Ok(files) => {
                for file in files {
                    self.read_resource_file(file, &mut resources);
                }
            }
            Err(finding) => self.diagnostics.push(finding),
        }
        (main, self.check_resources(resources))
    }

    fn read(&mut self, file: PathBuf) -> Option<(Arc<Source>, Node)> {
        match files::read(&file) {
            Ok(text) => {
                let source = Arc::new(Source { file, text });
                let mut findings = Vec::new();
                let node = tree::parse(&source, &mut findings);
                findings.into_iter().for_each(|finding| self.diagnostics.push(finding));
                Some((source, node?))
            }
            Err(finding) => {
                self.diagnostics.push(finding);
                None
            }
        }
    }

    fn read_resource_file(&mut self, file: PathBuf, resources: &mut Tables) {
        let Some((source, node)) = self.read(file) else { return };
        for (key, entry) in node.into_table().unwrap_or_default() {
            if key == "resources" {
                self.take("resources", entry.node, &source, resources);
                continue;
            }
            if key == "listeners" {
                let mut listeners = std::mem::take(&mut self.listeners);
                self.take("listeners", entry.node, &source, &mut listeners);
                self.listeners = listeners;
                continue;
            }
            let message = if ["hub", "trust", "agent", "log", "audit"].contains(&key.as_str()) {
                "only [resources.*] and [listeners.*] stand in resources.d; move this to agent.toml"
                    .to_owned()
            } else {
                unknown_key(&key, &["listeners", "resources"])
            };
            self.diagnostics.push(source.finding(entry.key_at, &tree::join("", &key), message));
        }
    }

    /// Adds the resources or listeners of one file; a name that another file has is a finding.
    fn take(&mut self, kind: &str, node: Node, source: &Arc<Source>, tables: &mut Tables) {
        let at = node.at;
        let Some(table) = node.into_table() else {
            let message = format!("expected a table: write [{kind}.NAME] and its keys below");
            self.diagnostics.push(source.finding(at, kind, message));
            return;
        };
        for (name, entry) in table {
            if let Some((other, node)) = tables.0.get(&name) {
                let first = other.finding(node.at, "", "");
                let one = kind.strip_suffix('s').unwrap_or(kind);
                let message = format!(
                    "there is already a {one} of this name at {}:{}; rename or remove one of them",
                    first.file.display(),
                    first.line
                );
                let path = tree::join(kind, &name);
                self.diagnostics.push(source.finding(entry.node.at, &path, message));
            } else {
                tables.0.insert(name, (Arc::clone(source), entry.node));
            }
        }
    }

    fn check_resources(&mut self, resources: Tables) -> Vec<ResourceConfig> {
        if let Some((source, node)) = resources.0.values().nth(defaults::MAX_RESOURCES) {
            let message = format!(
                "expected at most {} resources, found {}",
                defaults::MAX_RESOURCES,
                resources.0.len()
            );
            self.diagnostics.push(source.finding(node.at, "resources", message));
            return Vec::new();
        }
        let checked = resources.0.into_iter().filter_map(|(name, (source, node))| {
            resource::check(&name, node, &source, &self.dir, &mut self.diagnostics)
        });
        let checked: Vec<_> = checked.collect();
        for resource in checked.iter().filter(|resource| resource.allow.is_empty()) {
            let message = "nothing is allowed here: add an allow rule if the cloud should use it";
            self.diagnostics.warn(resource.section.finding("", message));
        }
        checked
    }

    fn check_main(
        &mut self,
        root: Section,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Option<(HubSection, TrustSection, AgentSection, LogSection, AuditSection)> {
        let raw: raw::File = root.parse_leniently(&mut self.diagnostics)?;
        let hub = self.check_hub(&root, raw.hub.unwrap_or_default());
        let trust = self.check_trust(&root, raw.trust.unwrap_or_default());
        let agent = self.check_agent(&root, raw.agent.unwrap_or_default(), env);
        let log = self.check_log(&root, raw.log.unwrap_or_default());
        let audit = self.check_audit(&root, raw.audit.unwrap_or_default());
        Some((hub?, trust, agent?, log, audit))
    }

    fn check_hub(&mut self, root: &Section, raw: raw::Hub) -> Option<HubSection> {
        let ca_file = self.optional_path(root, "hub.ca_file", raw.ca_file);
        let client_cert = self.optional_path(root, "hub.client_cert", raw.client_cert);
        match (&client_cert, &raw.client_key) {
            (Some(_), None) => {
                let message = "a certificate without its key; add client_key = { file = \"secrets/…\" }";
                self.diagnostics.push(root.finding("hub.client_cert", message));
            }
            (None, Some(_)) => {
                let message = "a key without its certificate; add client_cert = \"agent.pem\"";
                self.diagnostics.push(root.finding("hub.client_key", message));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        let proxy = raw.proxy.map(|proxy| self.check_proxy(root, proxy));
        let Some(url) = raw.url else {
            let message = "missing; write the hub's address: url = \"https://hub.example.com\" below [hub]";
            self.missing(root, "hub.url", message);
            return None;
        };
        let url = check::http_url(root, "hub.url", &url, Use::Hub, &mut self.diagnostics)?;
        let proxy = match proxy {
            Some(proxy) => Some(proxy?),
            None => None,
        };
        Some(HubSection {
            url,
            enrolment_token: raw.enrolment_token,
            ca_file,
            client_cert,
            client_key: raw.client_key,
            proxy,
        })
    }

    fn check_proxy(&mut self, root: &Section, raw: raw::Proxy) -> Option<ProxySection> {
        if raw.password.is_some() && !root.has("hub.proxy.username") {
            self.diagnostics
                .push(root.finding("hub.proxy.password", "a password without a user name; add \"username\""));
        }
        if raw.username.as_deref().is_some_and(|name| name.is_empty() || name.contains(':')) {
            let message = "a user name for Basic authentication is not empty and has no ':'";
            self.diagnostics.push(root.finding("hub.proxy.username", message));
        }
        let Some(url) = raw.url else {
            let message = "missing; write the proxy's address: url = \"http://proxy.example.com:3128\"";
            self.missing(root, "hub.proxy.url", message);
            return None;
        };
        let url = check::http_url(root, "hub.proxy.url", &url, Use::Proxy, &mut self.diagnostics)?;
        Some(ProxySection { url, username: raw.username, password: raw.password })
    }

    fn check_trust(&mut self, root: &Section, raw: raw::Trust) -> TrustSection {
        if raw.job_keys.as_ref().is_some_and(Vec::is_empty) {
            let message = "empty; list PEM files, or leave the key out to trust the keys pinned at enrolment";
            self.diagnostics.push(root.finding("trust.job_keys", message));
        }
        let keys = raw.job_keys.unwrap_or_default().into_iter().enumerate().map(|(index, path)| {
            let key = format!("trust.job_keys[{}]", index + 1);
            check::not_empty(root, &key, path.as_os_str().is_empty(), &mut self.diagnostics);
            self.dir.join(path)
        });
        TrustSection { job_keys: keys.collect() }
    }

    fn check_agent(
        &mut self,
        root: &Section,
        raw: raw::Agent,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Option<AgentSection> {
        let name = raw.name.unwrap_or_else(|| default_name(env));
        if !check::is_name(&name) {
            let message = format!("not an agent's name: {}", check::NAME_RULE);
            self.diagnostics.push(root.finding("agent.name", message));
        }
        let state_dir = self.optional_path(root, "agent.state_dir", raw.state_dir);
        let listen = self.check_listen(root, raw.listen.as_deref(), env);
        let max_jobs = raw.max_jobs.map_or(defaults::MAX_JOBS, |number| {
            let range = 1..=defaults::MAX_JOBS_LIMIT;
            check::in_range(root, "agent.max_jobs", number, range, &mut self.diagnostics)
        });
        let max_calls = raw.max_calls.map_or(defaults::MAX_CALLS, |number| {
            let range = 0..=defaults::MAX_CALLS_LIMIT;
            check::in_range(root, "agent.max_calls", number, range, &mut self.diagnostics)
        });
        let shutdown_grace = raw.shutdown_grace.unwrap_or(HumanDuration(defaults::SHUTDOWN_GRACE));
        if shutdown_grace.0 > defaults::SHUTDOWN_GRACE_LIMIT {
            self.diagnostics.push(root.finding("agent.shutdown_grace", "expected at most \"1h\""));
        }
        let key_rotation = raw.key_rotation.unwrap_or(KeyRotation(Some(defaults::KEY_ROTATION)));
        if key_rotation.0.is_some_and(|period| period < defaults::KEY_ROTATION_MIN) {
            self.diagnostics.push(root.finding("agent.key_rotation", "expected at least \"1s\", or \"off\""));
        }
        Some(AgentSection {
            name,
            state_dir: state_dir.unwrap_or_else(|| self.dir.join(defaults::STATE_DIR)),
            listen: listen?,
            max_jobs,
            max_calls,
            shutdown_grace,
            spool_quota: self.quota(
                root,
                "agent.spool_quota",
                raw.spool_quota,
                defaults::SPOOL_QUOTA,
                defaults::SPOOL_QUOTA_MIN,
            ),
            journal_quota: self.quota(
                root,
                "agent.journal_quota",
                raw.journal_quota,
                defaults::JOURNAL_QUOTA,
                defaults::JOURNAL_QUOTA_MIN,
            ),
            audit_quota: self.quota(
                root,
                "agent.audit_quota",
                raw.audit_quota,
                defaults::AUDIT_QUOTA,
                defaults::AUDIT_QUOTA_MIN,
            ),
            key_rotation,
        })
    }

    fn quota(
        &mut self,
        root: &Section,
        key: &str,
        size: Option<ByteSize>,
        default: u64,
        least: u64,
    ) -> ByteSize {
        let size = size.unwrap_or(ByteSize(default));
        if size.0 < least {
            self.diagnostics.push(root.finding(key, format!("expected at least \"{}MiB\"", least >> 20)));
        }
        size
    }

    fn check_listen(
        &mut self,
        root: &Section,
        text: Option<&str>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Option<SocketAddr> {
        const RULE: &str = "expected an address and a port such as \"127.0.0.1:9464\" or \"[::]:9464\"";
        let from_file = text.unwrap_or(defaults::LISTEN).parse::<SocketAddr>();
        if from_file.is_err() {
            self.diagnostics.push(root.finding("agent.listen", RULE));
        }
        let Some(text) = env(defaults::LISTEN_ENV) else { return from_file.ok() };
        let from_env = text.parse::<SocketAddr>();
        if from_env.is_err() {
            let mut finding = root.finding("agent.listen", RULE);
            finding.message = format!("environment variable {}: {RULE}", defaults::LISTEN_ENV);
            self.diagnostics.push(finding);
        }
        from_env.ok()
    }

    fn check_log(&mut self, root: &Section, raw: raw::Log) -> LogSection {
        let level = raw.level.unwrap_or_else(|| defaults::LOG_LEVEL.to_owned());
        if !is_log_level(&level) {
            let message = "expected \"error\", \"warn\", \"info\", \"debug\", \"trace\" or \"off\", \
                           or a list such as \"info,passerelle_agent=debug\"";
            self.diagnostics.push(root.finding("log.level", message));
        }
        LogSection {
            format: raw.format.unwrap_or(LogFormat::Text),
            level,
            classic: self.check_classic_log(root, raw.classic_dir, raw.classic_keep, raw.classic_quota),
        }
    }

    fn check_classic_log(
        &mut self,
        root: &Section,
        dir: Option<PathBuf>,
        keep: Option<HumanDuration>,
        quota: Option<ByteSize>,
    ) -> Option<ClassicLog> {
        let keep = keep.unwrap_or(HumanDuration(defaults::CLASSIC_KEEP));
        if !defaults::CLASSIC_KEEP_RANGE.contains(&keep.0) {
            self.diagnostics.push(root.finding("log.classic_keep", "expected \"1h\" to \"3650d\""));
        }
        let quota = quota.unwrap_or(ByteSize(defaults::CLASSIC_QUOTA));
        if quota.0 < defaults::CLASSIC_QUOTA_MIN {
            self.diagnostics.push(root.finding("log.classic_quota", "expected at least \"1MiB\""));
        }
        self.optional_path(root, "log.classic_dir", dir).map(|dir| ClassicLog { dir, keep, quota })
    }

    /// A required key that is missing, unless it is there and was refused already.
    fn missing(&mut self, root: &Section, key: &str, message: &str) {
        if !root.has(key) {
            self.diagnostics.push(root.finding(key, message));
        }
    }

    fn check_audit(&mut self, root: &Section, raw: raw::Audit) -> AuditSection {
        let syslog = raw.syslog.and_then(|text| {
            let target = audit::syslog(&text);
            if target.is_none() {
                self.diagnostics.push(root.finding("audit.syslog", audit::SYSLOG_RULE));
            }
            target
        });
        AuditSection {
            file: self.optional_path(root, "audit.file", raw.file),
            syslog,
            when_full: raw.when_full.unwrap_or_default(),
        }
    }

    /// Makes a path absolute; relative ones start from the configuration folder.
    fn optional_path(&mut self, root: &Section, key: &str, path: Option<PathBuf>) -> Option<PathBuf> {
        let path = path?;
        check::not_empty(root, key, path.as_os_str().is_empty(), &mut self.diagnostics);
        Some(self.dir.join(path))
    }
}

/// What `agent.toml` says beside resources.
struct Main {
    hub: HubSection,
    trust: TrustSection,
    agent: AgentSection,
    log: LogSection,
    audit: AuditSection,
    hub_text: String,
    hub_files: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

/// Checks the listeners, each alone and all together.
fn check_listeners(
    listeners: Tables,
    resources: &[ResourceConfig],
    own: Option<SocketAddr>,
    dir: &Path,
    diagnostics: &mut Diagnostics,
) -> Vec<ListenerConfig> {
    let checked = listeners
        .0
        .into_iter()
        .filter_map(|(name, (source, node))| listener::check(&name, node, &source, dir, diagnostics));
    let checked: Vec<_> = checked.collect();
    let names: Vec<String> = resources.iter().map(|resource| resource.name.clone()).collect();
    listener::check_together(&checked, &names, own, diagnostics);
    checked
}

/// Resources or listeners by name, each with its file.
#[derive(Default)]
struct Tables(BTreeMap<String, (Arc<Source>, Node)>);

/// Whether a text is a level or a list of `target=level`, as `tracing` reads it.
fn is_log_level(text: &str) -> bool {
    let level = |text: &str| {
        ["error", "warn", "info", "debug", "trace", "off"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(text))
    };
    let directive = |text: &str| match text.rsplit_once('=') {
        Some((target, part)) => !target.is_empty() && !target.contains(char::is_whitespace) && level(part),
        None => level(text),
    };
    text.split(',').map(str::trim).all(directive)
}

/// The host's name, made to fit.
fn default_name(env: &dyn Fn(&str) -> Option<String>) -> String {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    from_kernel
        .or_else(|| env("HOSTNAME"))
        .or_else(|| env("COMPUTERNAME"))
        .and_then(|name| check::make_name(&name))
        .unwrap_or_else(|| defaults::AGENT_NAME.to_owned())
}
