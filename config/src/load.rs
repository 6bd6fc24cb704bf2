//! Reads a configuration folder.

mod agent_toml;

use crate::{
    AgentConfig, AgentSection, AuditSection, Diagnostics, Finding, HubSection, ListenerConfig, LogSection,
    ResourceConfig, Section, TrustSection, defaults, files,
    hint::unknown_key,
    listener, resource,
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

/// What can be read in a folder, whatever else is wrong there.
#[derive(Debug)]
pub struct Readable {
    /// The resources, by name.
    pub resources: Vec<ResourceConfig>,
    /// The listeners, by name.
    pub listeners: Vec<ListenerConfig>,
    /// Whether that is all of them: a file that cannot be read may hold more.
    pub complete: bool,
}

/// The resources and listeners that can be read in `dir`, and whether there may be more.
#[must_use]
pub fn readable(dir: &Path) -> Readable {
    let mut loader = Loader::new(dir);
    let (main, resources) = loader.run(dir, &|name| std::env::var(name).ok());
    let own = main.map(|main| main.agent.listen);
    let (named, left_out) = (loader.listeners.0.len(), loader.left_out);
    let listeners = check_listeners(loader.listeners, &resources, own, &loader.dir, &mut loader.diagnostics);
    let complete = !left_out && listeners.len() == named;
    Readable { resources, listeners, complete }
}

/// What the running agent leaves in its state folder: where it listens.
pub const LISTEN_FILE: &str = "listen";

/// Where the agent of this folder listens, whatever else is wrong there: its health can be asked for while somebody
/// edits the configuration that the running agent has long read. Where `agent.toml` cannot be read at all, the usual state folder
/// says it.
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
        .or_else(|| {
            std::fs::read_to_string(dir.join(defaults::STATE_DIR).join(LISTEN_FILE)).ok()?.parse().ok()
        })
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
    let Loader { dir, mut diagnostics, listeners, left_out: _ } = loader;
    let listeners = check_listeners(listeners, &resources, own, &dir, &mut diagnostics);
    diagnostics.sort();
    match main {
        Some(Main { root, hub, trust, agent, log, audit, hub_text, hub_files, files })
            if diagnostics.is_empty() =>
        {
            let warnings = diagnostics.warnings().to_vec();
            Ok(AgentConfig {
                dir,
                main: root,
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
    /// Whether there may be resources or listeners that could not be read.
    left_out: bool,
}

impl Loader {
    fn new(dir: &Path) -> Self {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        Self { dir, diagnostics: Diagnostics::default(), listeners: Tables::default(), left_out: false }
    }

    fn run(
        &mut self,
        dir: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> (Option<Main>, Vec<ResourceConfig>) {
        if let Err(finding) = files::check_dir(dir) {
            self.left_out(finding);
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
            let root = Section::new("", String::new(), root, source, &[]);
            let (hub, trust, agent, log, audit) = self.check_main(&root, env)?;
            if let Some(file) = &audit.file {
                // The agent writes it itself: that it changes says nothing.
                files.remove(file);
            }
            Some(Main { root, hub, trust, agent, log, audit, hub_text, hub_files, files })
        });
        match files::list_resources(dir) {
            Ok(files) => {
                for file in files {
                    self.read_resource_file(file, &mut resources);
                }
            }
            Err(finding) => self.left_out(finding),
        }
        (main, self.check_resources(resources))
    }

    /// Notes a finding for which something is not read at all.
    fn left_out(&mut self, finding: Finding) {
        self.left_out = true;
        self.diagnostics.push(finding);
    }

    fn read(&mut self, file: PathBuf) -> Option<(Arc<Source>, Node)> {
        match files::read(&file) {
            Ok(text) => {
                let source = Arc::new(Source::new(file, text));
                let mut findings = Vec::new();
                let node = tree::parse(&source, &mut findings);
                findings.into_iter().for_each(|finding| self.left_out(finding));
                Some((source, node?))
            }
            Err(finding) => {
                self.left_out(finding);
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
            self.left_out(source.finding(entry.key_at, &tree::join("", &key), message));
        }
    }

    /// Adds the resources or listeners of one file; a name that another file has is a finding.
    fn take(&mut self, kind: &str, node: Node, source: &Arc<Source>, tables: &mut Tables) {
        let at = node.at;
        let Some(table) = node.into_table() else {
            let message = format!("expected a table: write [{kind}.NAME] and its keys below");
            self.left_out(source.finding(at, kind, message));
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
                self.left_out(source.finding(entry.node.at, &path, message));
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
            self.left_out(source.finding(node.at, "resources", message));
            return Vec::new();
        }
        let named = resources.0.len();
        let checked = resources.0.into_iter().filter_map(|(name, (source, node))| {
            resource::check(&name, node, &source, &self.dir, &mut self.diagnostics)
        });
        let checked: Vec<_> = checked.collect();
        self.left_out |= checked.len() < named;
        for resource in checked.iter().filter(|resource| resource.allow.is_empty()) {
            let message = "nothing is allowed here: add an allow rule if the cloud should use it";
            self.diagnostics.warn(resource.section.finding("", message));
        }
        checked
    }
}

/// What `agent.toml` says beside resources.
struct Main {
    root: Section,
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
