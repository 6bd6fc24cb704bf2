//! The configuration, checked and built: every finding of every part is told at once, and nothing starts before.

use crate::{
    exit::Stop, identity, job::Job, listeners::Listener, policy::ResourcePolicy, reload::watch,
    runner::limits::ResourceLimits, translate,
};
use passerelle_config::{AgentConfig, Changes, Diagnostics, Finding, Limits, Pickup, ResourceConfig, Watch};
use passerelle_connectors::{DynConnector, OperationSpec, REGISTRY, kind_names, trust};
use passerelle_protocol::{
    CallsAnnouncement, ConnectorAnnouncement, Name, ResourceAnnouncement, Sha256, TriggerAnnouncement,
    VerifyingKey,
    limits::{MAX_CALLS, MAX_JOBS, MAX_RESOURCES, MAX_TRIGGERS},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// One configured resource, ready to act on.
pub struct Resource {
    /// Its name.
    pub name: Name,
    /// Its kind of connector.
    pub kind: Name,
    /// The hands on the private system.
    pub connector: Arc<dyn DynConnector>,
    /// What the operator allows.
    pub policy: ResourcePolicy,
    /// Jobs at once.
    pub max_concurrent: u32,
    /// Attempts started per minute.
    pub rate_per_minute: Option<u32>,
    /// What keeps to these two: the same for every configuration of this name.
    pub limits: Arc<ResourceLimits>,
    /// Folders from which files are taken.
    pub pickups: Vec<Pickup>,
    /// Files whose changes are told.
    pub watches: Vec<Watch>,
    /// Change feeds whose changes are told.
    pub changes: Vec<Changes>,
    operations: Vec<OperationSpec>,
    mark: Sha256,
}

impl Resource {
    /// The operation's specification, if the connector has it.
    pub fn operation(&self, name: &str) -> Option<&OperationSpec> {
        self.operations.iter().find(|o| o.name == name)
    }
}

/// Everything that the configuration folder says.
pub struct Settings {
    /// The checked configuration.
    pub config: AgentConfig,
    /// The agent's name.
    pub name: Name,
    /// The resources by name.
    pub resources: BTreeMap<Name, Arc<Resource>>,
    /// The listeners by name.
    pub listeners: BTreeMap<Name, Arc<Listener>>,
    /// The keys that may sign jobs, if the operator pins them; else those of the enrolment count.
    pub trusted_job_keys: Vec<VerifyingKey>,
    /// Tells one way to the hub from another: address, proxy, certificates.
    hub_mark: Sha256,
}

impl Settings {
    /// Whether whoever signed a job may still have it carried out: with pinned keys, only what one of these signed.
    pub fn still_trusts(&self, job: &Job) -> bool {
        let pinned = &self.trusted_job_keys;
        job.signer
            .as_ref()
            .is_none_or(|signer| pinned.is_empty() || pinned.iter().any(|key| key.id() == signer))
    }

    /// Reads the folder, checks every resource and builds its connector.
    ///
    /// # Errors
    /// All findings at once, as a configuration error.
    pub fn load(dir: &Path) -> Result<Self, Stop> {
        Self::load_after(dir, None)
    }

    /// The same while the agent runs: a resource whose settings, secrets and certificates are those of `previous` stays
    /// what it is, with its warm connections; one that changed keeps its limits' count.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_after(dir: &Path, previous: Option<&Self>) -> Result<Self, Stop> {
        let mut config = match passerelle_config::load(dir) {
            Ok(config) => config,
            Err(mut found) => {
                // What the connectors have to say of the readable resources belongs to the same list.
                for resource in &passerelle_config::readable_resources(dir) {
                    build(resource, dir, None, &mut found);
                }
                found.sort();
                return Err(Stop::Configuration(found.to_string()));
            }
        };
        let mut diagnostics = Diagnostics::default();
        let mut other = Vec::new();
        let name =
            config.agent.name.parse::<Name>().map_err(|e| other.push(format!("error: agent.name: {e}")));
        if config.resources.len() > MAX_RESOURCES {
            other.push(format!(
                "error: resources: {} of them, more than {MAX_RESOURCES}",
                config.resources.len()
            ));
        }
        let hub_mark = watch::mark(&config.hub_text, &config.hub_files);
        let mut resources = BTreeMap::new();
        for resource in &config.resources {
            let before =
                previous.and_then(|previous| previous.resources.get(&resource.name.parse::<Name>().ok()?));
            if let Some(built) = build(resource, &config.dir, before, &mut diagnostics) {
                resources.insert(built.name.clone(), built);
            }
        }
        let mut listeners = BTreeMap::new();
        for listener in &config.listeners {
            let before =
                previous.and_then(|previous| previous.listeners.get(&listener.name.parse::<Name>().ok()?));
            if let Some(built) = Listener::build(listener, &config.dir, before, &mut diagnostics) {
                listeners.insert(built.name.clone(), built);
            }
        }
        let triggers = |one: &ResourceConfig| one.pickups.len() + one.watches.len() + one.changes.len();
        let triggers: usize = config.resources.iter().map(triggers).sum();
        if triggers > MAX_TRIGGERS {
            other.push(format!("error: resources: {triggers} triggers, more than {MAX_TRIGGERS}"));
        }
        let mut trusted_job_keys = Vec::new();
        for (index, file) in config.trust.job_keys.iter().enumerate() {
            let path = config.dir.join(file);
            let key = passerelle_config::read_file(&path)
                .map_err(|e| e.to_string())
                .and_then(|pem| identity::public_key_from_pem(&pem));
            match key {
                Ok(key) => trusted_job_keys.push(key),
                Err(e) => {
                    let (key, message) =
                        (format!("trust.job_keys[{}]", index + 1), format!("{}: {e}", path.display()));
                    diagnostics.push(config.main.finding(&key, message));
                }
            }
        }
        // The others of `[hub]` are read when they are needed, each with its own message.
        if let Some(Err(message)) = config.hub.ca_file.as_deref().map(trust::certificates) {
            diagnostics.push(config.main.finding("hub.ca_file", message));
        }
        diagnostics.sort();
        config.warnings.extend_from_slice(diagnostics.warnings());
        let findings = diagnostics.to_string() + &other.join("\n");
        match name {
            Ok(name) if findings.is_empty() => {
                Ok(Self { config, name, resources, listeners, trusted_job_keys, hub_mark })
            }
            _ => Err(Stop::Configuration(findings)),
        }
    }

    /// Takes back what only a restart may change, and names it.
    pub fn keep_until_restart(&mut self, running: &Self) -> Vec<&'static str> {
        let mut kept = Vec::new();
        let mut keep = |key, changed| {
            if changed {
                kept.push(key);
            }
        };
        let (old, new) = (&running.config, &mut self.config);
        keep("hub.url", old.hub.url != new.hub.url);
        keep("hub", old.hub.url == new.hub.url && running.hub_mark != self.hub_mark);
        keep("agent.name", running.name != self.name);
        keep("agent.state_dir", old.agent.state_dir != new.agent.state_dir);
        keep("agent.listen", old.agent.listen != new.agent.listen);
        keep("log.format", old.log.format != new.log.format);
        keep("log.classic_dir", old.log.classic != new.log.classic);
        new.hub = old.hub.clone();
        self.hub_mark = running.hub_mark;
        self.name = running.name.clone();
        new.agent.name.clone_from(&old.agent.name);
        new.agent.state_dir.clone_from(&old.agent.state_dir);
        new.agent.listen = old.agent.listen;
        new.log.format = old.log.format;
        new.log.classic.clone_from(&old.log.classic);
        kept
    }

    /// Every file that the configuration names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let resources = self.config.resources.iter().flat_map(|resource| &resource.files);
        let listeners = self.config.listeners.iter().flat_map(|listener| &listener.files);
        self.config.files.iter().chain(resources).chain(listeners)
    }

    /// Where the state is.
    pub fn state_dir(&self) -> PathBuf {
        self.config.dir.join(&self.config.agent.state_dir)
    }

    /// How many jobs the agent holds at once.
    pub fn max_jobs(&self) -> u32 {
        self.config.agent.max_jobs.clamp(1, MAX_JOBS)
    }

    /// What `Hello` tells of calls.
    pub fn calls(&self, issued_after: i64) -> Option<CallsAnnouncement> {
        let max = self.config.agent.max_calls.min(MAX_CALLS);
        (max > 0).then_some(CallsAnnouncement { max, issued_after })
    }

    /// What `Hello` tells of connectors and resources.
    pub fn announcements(&self) -> (BTreeMap<Name, ConnectorAnnouncement>, Vec<ResourceAnnouncement>) {
        let mut connectors = BTreeMap::new();
        let mut resources = Vec::new();
        for resource in self.resources.values() {
            let operations = resource.operations.iter().filter_map(translate::operation).collect();
            connectors.insert(resource.kind.clone(), ConnectorAnnouncement { operations });
            resources.push(ResourceAnnouncement {
                name: resource.name.clone(),
                connector: resource.kind.clone(),
                operations: resource
                    .policy
                    .allowed_operations()
                    .iter()
                    .filter_map(|o| o.parse().ok())
                    .collect(),
                max_concurrent: resource.max_concurrent,
                rate_per_minute: resource.rate_per_minute,
                // Not the configuration's to say.
                paused: None,
            });
        }
        (connectors, resources)
    }

    /// What `Hello` tells of triggers.
    pub fn triggers(&self) -> Vec<TriggerAnnouncement> {
        let of = |resource: &Arc<Resource>| {
            let name = resource.name.clone();
            let announced = resource.triggers().filter_map(move |(trigger, kind)| {
                Some(TriggerAnnouncement { resource: name.clone(), name: trigger, kind: kind.parse().ok()? })
            });
            announced.collect::<Vec<_>>()
        };
        self.resources.values().flat_map(of).collect()
    }
}

fn build(
    resource: &ResourceConfig,
    base: &Path,
    before: Option<&Arc<Resource>>,
    diagnostics: &mut Diagnostics,
) -> Option<Arc<Resource>> {
    // Before the files are read: what changes in between is then found out at the next look.
    let mark = watch::mark(&resource.text, &resource.files);
    if let Some(before) = before.filter(|before| before.mark == mark) {
        return Some(Arc::clone(before));
    }
    let name = resource.name.parse::<Name>();
    if let Err(e) = &name {
        diagnostics.push(resource.section.finding("", e.to_string()));
    }
    let Some(entry) = REGISTRY.iter().find(|entry| entry.name == resource.connector) else {
        let message =
            format!("no connector {:?}: expected one of {}", resource.connector, kind_names().join(", "));
        diagnostics.push(resource.section.finding("connector", message));
        return None;
    };
    let operations = entry.operations();
    if !entry.triggers {
        let places =
            resource.pickups.iter().map(|rule| &rule.at).chain(resource.watches.iter().map(|rule| &rule.at));
        for at in places {
            let message = format!("a resource of kind {:?} has no triggers; remove this table", entry.name);
            diagnostics.push(Finding { message, ..at.clone() });
        }
    }
    // Both are looked at before either is given up, so that one run tells everything.
    let checked = entry.check(&resource.section, diagnostics);
    let policy = ResourcePolicy::compile(resource, &operations, diagnostics);
    let connector = match checked?.build(base) {
        Ok(connector) => connector,
        Err(error) => {
            diagnostics.push(resource.section.finding(&error.key, error.message));
            return None;
        }
    };
    if connector.feeds().is_some() {
        let entity = |name: &str| resource.section.has(&format!("entities.{name}"));
        for rule in resource.changes.iter().filter(|rule| !entity(&rule.entity)) {
            let name = &rule.entity;
            let message =
                format!("entity {name:?} is not described; write it as [resources.….entities.{name}]");
            diagnostics.push(Finding { message, ..rule.at.clone() });
        }
    } else {
        for at in resource.changes.iter().map(|rule| &rule.at) {
            let message =
                format!("a resource of kind {:?} has no change feed; remove this table", entry.name);
            diagnostics.push(Finding { message, ..at.clone() });
        }
    }
    let Limits { max_concurrent, rate_per_minute } = resource.limits;
    let limits = match before {
        Some(before) => Arc::clone(&before.limits),
        None => Arc::new(ResourceLimits::new(max_concurrent.max(1), rate_per_minute)),
    };
    Some(Arc::new(Resource {
        name: name.ok()?,
        kind: entry.name.parse().ok()?,
        connector,
        policy: policy?,
        max_concurrent: max_concurrent.max(1),
        rate_per_minute,
        limits,
        pickups: resource.pickups.clone(),
        watches: resource.watches.clone(),
        changes: resource.changes.clone(),
        operations,
        mark,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings, Stop> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("drop")).unwrap();
        std::fs::write(dir.path().join("agent.toml"), text.replace("DIR", dir.path().to_str().unwrap()))
            .unwrap();
        Settings::load(dir.path())
    }

    const HUB: &str = "[hub]\nurl = \"https://hub.example.com\"\n[agent]\nname = \"paris-1\"\n";

    #[test]
    fn a_resource_is_announced_with_what_its_rules_allow_and_no_more() {
        let settings = load(&format!(
            "{HUB}[resources.compta]\nconnector = \"file\"\nurl = \"file://DIR/drop\"\n\
             limits = {{ max_concurrent = 4, rate_per_minute = 600 }}\n\
             [[resources.compta.allow]]\noperations = [\"drop\", \"stat\"]\npaths = [\"**/*.csv\"]\n"
        ))
        .unwrap();
        let (connectors, resources) = settings.announcements();
        let [resource] = resources.as_slice() else { panic!("{resources:?}") };
        let operations: Vec<&str> = resource.operations.iter().map(Name::as_str).collect();
        assert_eq!(operations, ["drop", "stat"]);
        assert_eq!((resource.max_concurrent, resource.rate_per_minute), (4, Some(600)));
        assert!(connectors.values().all(|c| c.operations.iter().any(|o| o.name.as_str() == "fetch")));
        let text = serde_json::to_string(&resources).unwrap();
        assert!(!text.contains("drop/") && !text.contains("file://"), "{text}");
    }

    #[test]
    fn files_that_the_sections_name_are_told_with_their_places_too() {
        let error = load(
            "[hub]\nurl = \"https://hub.example.com\"\nca_file = \"none.pem\"\n[agent]\nname = \"paris-1\"\n[trust]\n\
             job_keys = [\"one.pub.pem\", \"two.pub.pem\"]\n[resources.two]\nconnector = \"teleport\"\nurl = \"x\"\n\
             [[resources.two.allow]]\noperations = [\"drop\"]\npaths = [\"**\"]\n\
             [resources.three]\nconnector = \"file\"\nurl = \"sftp://h.example.com/in\"\nusername = \"u\"\n\
             password = { file = \"secret\" }\nknown_hosts = \"hosts\"\n\
             [[resources.three.allow]]\noperations = [\"drop\"]\npaths = [\"**\"]\n\
             [resources.four]\nconnector = \"http\"\nurl = \"https://h.example.com/\"\n\
             auth = { kind = \"bearer\", token = { file = \"secret\" } }\n\
             [[resources.four.allow]]\noperations = [\"request\"]\npaths = [\"**\"]\n",
        )
        .err()
        .unwrap()
        .to_string();
        for place in [
            "agent.toml:3:11: hub.ca_file: ",
            "agent.toml:7:13: trust.job_keys[1]: ",
            "agent.toml:7:28: trust.job_keys[2]: ",
            "agent.toml:8:1: resources.two.connector: ",
            "agent.toml:19:15: resources.three.known_hosts: ",
            "agent.toml:26:35: resources.four.auth.token: ",
        ] {
            assert!(error.contains(place), "{place}: {error}");
        }
        assert!(error.contains("none.pem: ") && error.contains("two.pub.pem: "), "{error}");
    }

    #[test]
    fn findings_of_all_resources_are_told_at_once_with_their_places() {
        let error = load(&format!(
            "{HUB}[resources.one]\nconnector = \"teleport\"\nurl = \"x\"\n\
             [resources.two]\nconnector = \"file\"\nurl = \"file://DIR/drop\"\n\
             [[resources.two.allow]]\noperations = [\"teleport\"]\npaths = [\"**\"]\n"
        ))
        .err()
        .unwrap();
        assert_eq!(error.code(), crate::CONFIGURATION);
        let text = error.to_string();
        assert!(
            text.contains("agent.toml:5:")
                && text.contains("no connector \"teleport\": expected one of file"),
            "{text}"
        );
        assert!(text.contains("resources.two.allow"), "{text}");
    }

    #[test]
    fn a_job_key_that_is_none_is_named() {
        let error = load(&format!("{HUB}[trust]\njob_keys = [\"missing.pem\"]\n")).err().unwrap().to_string();
        assert!(error.contains("job_keys") && error.contains("missing.pem"), "{error}");
    }
}
