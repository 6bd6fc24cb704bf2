//! The sections of `agent.toml` beside resources and listeners: what they must be, and what holds without them.

use super::Loader;
use crate::{
    AgentSection, AuditSection, ByteSize, ClassicLog, HubSection, HumanDuration, KeyRotation, LOG_LEVELS,
    LogFormat, LogSection, ProxySection, Section, TrustSection, audit,
    check::{self, Use},
    defaults, is_log_level, raw,
};
use std::{net::SocketAddr, path::PathBuf};

impl Loader {
    pub(super) fn check_main(
        &mut self,
        root: &Section,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Option<(HubSection, TrustSection, AgentSection, LogSection, AuditSection)> {
        let raw: raw::File = root.parse_leniently(&mut self.diagnostics)?;
        let hub = self.check_hub(root, raw.hub.unwrap_or_default());
        let trust = self.check_trust(root, raw.trust.unwrap_or_default());
        let agent = self.check_agent(root, raw.agent.unwrap_or_default(), env);
        let log = self.check_log(root, raw.log.unwrap_or_default());
        let audit = self.check_audit(root, raw.audit.unwrap_or_default());
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
            self.diagnostics.push(root.finding("log.level", format!("expected {LOG_LEVELS}")));
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

/// The host's name, made to fit.
fn default_name(env: &dyn Fn(&str) -> Option<String>) -> String {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    from_kernel
        .or_else(|| env("HOSTNAME"))
        .or_else(|| env("COMPUTERNAME"))
        .and_then(|name| check::make_name(&name))
        .unwrap_or_else(|| defaults::AGENT_NAME.to_owned())
}
