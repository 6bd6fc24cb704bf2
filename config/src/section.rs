//! A part of the configuration that another crate reads: a connector's own settings, with their positions.

use crate::{
    Diagnostics, Finding,
    read::read,
    tree::{MAX_FINDINGS, Node, Source, Value},
};
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// The settings of one resource, without the keys that every resource has.
#[derive(Debug, Clone)]
pub struct Section {
    name: String,
    /// The path that all its keys share: `resources.compta`, or nothing for a whole file.
    path: String,
    node: Node,
    source: Arc<Source>,
    /// Keys that the resource has beside these: worth a hint when one is misspelt.
    also_known: &'static [&'static str],
}

impl Section {
    pub(crate) fn new(
        name: &str,
        path: String,
        node: Node,
        source: Arc<Source>,
        also_known: &'static [&'static str],
    ) -> Self {
        Self { name: name.to_owned(), path, node, source, also_known }
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// The same section over other values.
    pub(crate) fn with(&self, node: Node, also_known: &'static [&'static str]) -> Self {
        let (name, path) = (self.name.clone(), self.path.clone());
        Self { name, path, node, source: Arc::clone(&self.source), also_known }
    }

    /// The section of what stands under `key`.
    pub(crate) fn below(&self, key: &str, node: Node) -> Self {
        Self::new(&self.name, self.full_path(key), node, Arc::clone(&self.source), &[])
    }

    /// The resource's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the settings; wrong types, missing and unknown keys become findings at their places, all of them but one:
    /// of several required keys that are missing only the first is named. A table that needs better makes its keys
    /// `Option` and reports with [`Self::finding`].
    ///
    /// Avoid internally tagged enums and `flatten`: serde buffers their values and the places get lost.
    pub fn parse<T: DeserializeOwned>(&self, diagnostics: &mut Diagnostics) -> Option<T> {
        let before = diagnostics.findings().len();
        self.parse_leniently(diagnostics).filter(|_| diagnostics.findings().len() == before)
    }

    /// As [`Self::parse`], but gives what is left without the mistaken parts, so that it can be checked further.
    pub(crate) fn parse_leniently<T: DeserializeOwned>(&self, diagnostics: &mut Diagnostics) -> Option<T> {
        let (value, mistakes) = read(&self.node, self.also_known);
        for mistake in mistakes.into_iter().take(MAX_FINDINGS) {
            let path = self.full_path(&mistake.path);
            diagnostics.push(self.source.finding(mistake.at, &path, mistake.message));
        }
        value
    }

    /// The text of a key (`url`, `auth.kind`), if there is one; whatever is wrong with the others.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        match &self.node.find(key)?.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Whether a key stands there, rightly or wrongly.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.node.find(key).is_some()
    }

    /// A finding at the place of a key (`url`, `auth.token`), or, if there is no such key, at the table it belongs to.
    #[must_use]
    pub fn finding(&self, key: &str, message: impl Into<String>) -> Finding {
        let at = if key.is_empty() { self.node.at } else { self.node.nearest(key).at };
        self.source.finding(at, &self.full_path(key), message)
    }

    fn full_path(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            (path, "") => path.to_owned(),
            ("", key) => key.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{ByteSize, Diagnostics, HumanDuration, SecretRef, Section};
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "snake_case")]
    struct Settings {
        url: String,
        port: Option<u16>,
        retries: Option<usize>,
        ratio: Option<f64>,
        flag: Option<bool>,
        timeout: Option<HumanDuration>,
        max: Option<ByteSize>,
        auth: Option<Auth>,
        mode: Option<Mode>,
        names: Option<Vec<String>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Auth {
        kind: String,
        token: SecretRef,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Plain,
        Level(u8),
    }

    fn section(body: &str) -> Section {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[hub]\nurl = \"https://h\"\n[resources.r]\nconnector = \"x\"\n{body}");
        std::fs::write(dir.path().join("agent.toml"), text).unwrap();
        crate::load(dir.path()).unwrap().resources.remove(0).section
    }

    fn findings(body: &str) -> Vec<String> {
        let mut diagnostics = Diagnostics::default();
        let parsed = section(body).parse::<Settings>(&mut diagnostics);
        assert_eq!(parsed.is_none(), !diagnostics.is_empty());
        diagnostics.sort();
        let show = |f: &crate::Finding| format!("{}:{}: {}: {}", f.line, f.column, f.path, f.message);
        diagnostics.findings().iter().map(show).collect()
    }

    #[test]
    fn settings_of_every_type_arrive() {
        let body = "url = \"u\"\nport = 0x50\nretries = 3\nratio = 0.5\nflag = true\ntimeout = \"5s\"\nmax = \"1KiB\"\n\
                    auth.kind = \"bearer\"\nauth.token = { env = \"T\" }\nmode = { level = 3 }\nnames = [\"a\"]\n";
        let settings = section(body).parse::<Settings>(&mut Diagnostics::default()).unwrap();
        assert_eq!((settings.url.as_str(), settings.port, settings.retries), ("u", Some(80), Some(3)));
        assert_eq!((settings.ratio, settings.flag), (Some(0.5), Some(true)));
        assert_eq!((settings.timeout.unwrap().0.as_secs(), settings.max), (5, Some(ByteSize(1024))));
        let auth = settings.auth.unwrap();
        assert_eq!((auth.kind.as_str(), auth.token), ("bearer", SecretRef::Env("T".to_owned())));
        assert_eq!((settings.mode, settings.names), (Some(Mode::Level(3)), Some(vec!["a".to_owned()])));
        let settings =
            section("url = \"u\"\nmode = \"plain\"\n").parse::<Settings>(&mut Diagnostics::default());
        assert_eq!(settings.unwrap().mode, Some(Mode::Plain));
    }

    #[test]
    fn every_mistake_of_a_section_is_found_at_its_place() {
        assert_eq!(
            findings(
                "port = 70000\nretries = -1\nflag = \"yes\"\ntimeout = 5\nmax = \"big\"\nlimit = 4\n\
                 auth = { kind = 1, token = \"geheim\", user = \"x\" }\nmode = \"plan\"\nnames = [1, \"a\", 2]\n"
            ),
            [
                "3:1: resources.r.url: missing; this key is required",
                "5:8: resources.r.port: expected an integer from 0 to 65535, found 70000",
                "6:11: resources.r.retries: expected an integer of 0 or more, found -1",
                "7:8: resources.r.flag: expected true or false, found a string",
                "8:11: resources.r.timeout: expected a duration such as \"500ms\", \"30s\", \"5m\" or \"1h30m\", found an integer",
                "9:7: resources.r.max: expected a size such as \"512KiB\", \"64MiB\" or \"2GiB\" (whole numbers of B, KiB, MiB, GiB, TiB)",
                "10:1: resources.r.limit: unknown key; did you mean \"limits\"? known keys: allow, auth, changes, connector, flag, limits, max, mode, names, pickup, port, ratio, retries, timeout, url, watch",
                "11:17: resources.r.auth.kind: expected a string, found an integer",
                "11:28: resources.r.auth.token: a secret is never written here: put it into a file and write { file = \"secrets/…\" }, or { env = \"…\" }",
                "11:38: resources.r.auth.user: unknown key; known keys: kind, token",
                "12:8: resources.r.mode: unknown value; did you mean \"plain\"? expected one of \"plain\", \"level\"",
                "13:10: resources.r.names[1]: expected a string, found an integer",
                "13:18: resources.r.names[3]: expected a string, found an integer",
            ]
        );
        assert_eq!(
            findings("url = 1979-05-27\nport = [1]\nmode = { level = 300 }\nauth = []\nnames = {}\n"),
            [
                "5:7: resources.r.url: expected a string, found a date",
                "6:8: resources.r.port: expected an integer from 0 to 65535, found an array",
                "7:18: resources.r.mode.level: expected an integer from 0 to 255, found 300",
                "8:8: resources.r.auth: expected a table, found an array",
                "9:9: resources.r.names: expected an array, found a table",
            ]
        );
        assert_eq!(
            findings("url = \"u\"\nmode = { level = 3, plain = 1 }\n"),
            ["6:8: resources.r.mode: expected exactly one key, found 2"]
        );
    }

    #[test]
    fn findings_of_others_stand_at_the_key_or_at_its_table() {
        let section = section(
            "url = \"u\"\nauth = { kind = \"b\" }\nnames = [\"a\", \"b\"]\n[resources.r.tls]\nca = 1\n",
        );
        let place = |key: &str| {
            let finding = section.finding(key, "x");
            format!("{}:{}: {}", finding.line, finding.column, finding.path)
        };
        assert_eq!(section.name(), "r");
        assert_eq!(place(""), "3:1: resources.r");
        assert_eq!(place("url"), "5:7: resources.r.url");
        assert_eq!(place("auth.kind"), "6:17: resources.r.auth.kind");
        assert_eq!(place("auth.token"), "6:8: resources.r.auth.token");
        assert_eq!(place("names[2]"), "7:15: resources.r.names[2]");
        assert_eq!(place("names[3]"), "7:9: resources.r.names[3]");
        assert_eq!(place("tls"), "8:1: resources.r.tls");
        assert_eq!(place("tls.ca"), "9:6: resources.r.tls.ca");
        assert_eq!(place("none"), "3:1: resources.r.none");
    }
}
