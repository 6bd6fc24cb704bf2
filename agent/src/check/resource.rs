//! One resource: each link to the private system, and a file of our own where a drop would be allowed.

use super::Item;
use crate::{settings::Settings, translate};
use passerelle_config::AllowRule;
use passerelle_connectors::{Examine, Failure, Found};
use passerelle_protocol::{Code, Name};
use std::{collections::BTreeSet, time::Duration};

/// How long each link may take.
const LINK: Duration = Duration::from_secs(15);
/// In how many folders of a resource a file is written for a try.
const MAX_TRIES: usize = 4;

pub(super) async fn check(settings: &Settings, name: &Name, write: bool) -> Vec<Item> {
    let Some(resource) = settings.resources.get(name) else { return Vec::new() };
    let rules = settings.config.resources.iter().find(|config| config.name == name.as_str());
    let folders = rules.map_or_else(BTreeSet::new, |config| drop_folders(&config.allow));
    let link = |of: &str| format!("resource {name}: {of}");
    if rules.is_some_and(|config| config.allow.is_empty()) {
        return vec![Item::skipped(link("all"), "no rule allows anything here")];
    }
    let try_writing = if write { folders.iter().take(MAX_TRIES).cloned().collect() } else { Vec::new() };
    let mut items = Vec::new();
    let mut failed = None;
    for found in resource.connector.examine(Examine { timeout: LINK, try_writing }).await {
        let name = link(found.name);
        items.push(match found.found {
            Found::Passed(detail) => Item::ok(name, detail),
            Found::Failed(failure) => {
                failed = Some(found.name);
                fail(name, found.name, &failure)
            }
            Found::Skipped => Item::skipped(name, format!("{} failed", failed.unwrap_or("an earlier link"))),
        });
    }
    if !write && !folders.is_empty() {
        items.push(Item::skipped(link("writing"), "of --no-write"));
    }
    items
}

fn fail(name: String, link: &str, failure: &Failure) -> Item {
    let code = translate::code(failure.code);
    let mut fix = resource_fix(code, link).to_owned();
    let mut detail = failure.detail.clone().unwrap_or_default();
    // What to compare, and the very line to add, stand behind the first semicolon.
    if link == "host key"
        && let Some((found, told)) = failure.detail.as_deref().and_then(|detail| detail.split_once("; "))
    {
        (detail, fix) = (found.to_owned(), told.to_owned());
    }
    if link == "SFTP" && code == Code::TargetUnsupported {
        fix = "the account may not use SFTP: check its shell, ForceCommand and the Subsystem line of sshd_config"
            .to_owned();
    }
    // The key's own trouble, before anybody was asked: no account is at fault.
    if link == "log-in" && failure.message.contains("passphrase") {
        fix = "check that private_key is a key that ssh-keygen reads, and that passphrase is the one that it was made with"
            .to_owned();
    }
    if link == "writing" {
        fix = "give the account the right to create, rename and delete files there, or take `drop` out of the allow rules"
            .to_owned();
    }
    let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
    Item::fail(name, format!("{code}: {}{detail}", failure.message), fix)
}

/// The folders into which the rules let a job drop: for each glob the part before its first wildcard.
fn drop_folders(rules: &[AllowRule]) -> BTreeSet<String> {
    let drops = rules.iter().filter(|rule| rule.operations.iter().any(|operation| operation == "drop"));
    drops.flat_map(|rule| &rule.paths).map(|glob| plain_folder(glob)).collect()
}

fn plain_folder(glob: &str) -> String {
    let parts: Vec<&str> = glob.split('/').collect();
    let folders = parts.split_last().map_or(&[][..], |(_, folders)| folders);
    let plain = folders.iter().take_while(|part| !part.contains(['*', '?', '[', '{', '\\']));
    plain.copied().collect::<Vec<_>>().join("/")
}

fn resource_fix(code: Code, link: &str) -> &'static str {
    match code {
        Code::TargetUnreachable if link == "folder" => {
            "see the cause; a share that belongs there may not be mounted"
        }
        Code::TargetUnreachable => {
            "check name, port and certificate, and that a firewall lets this machine reach it"
        }
        Code::TargetAuth => "check user name and password or key, and that the account is not locked",
        Code::TargetNotFound => "check the path in the resource's url",
        Code::TargetTimeout => "check whether the system is overloaded or a firewall drops packets",
        Code::TargetRefused => "check the rights of the agent's account",
        Code::TargetFull => "free some space there",
        _ => "see the cause",
    }
}

#[cfg(test)]
mod tests {
    use super::{fail, plain_folder};
    use passerelle_connectors::{Code, Failure};

    #[test]
    fn what_only_the_link_tells_has_a_fix_of_its_own() {
        let key =
            "the agent's private key for the file server cannot be used: its passphrase is wrong or missing";
        for (link, code, message, fix) in [
            ("SFTP", Code::TargetUnsupported, "no SFTP", "ForceCommand"),
            ("log-in", Code::TargetAuth, key, "passphrase"),
            (
                "log-in",
                Code::TargetAuth,
                "the file server refused the agent's log-in",
                "user name and password",
            ),
        ] {
            let item = fail("x".to_owned(), link, &Failure::permanent(code, message));
            let item = serde_json::to_value(item).unwrap();
            assert!(item["fix"].as_str().unwrap().contains(fix), "{item}");
        }
        let revoked =
            Failure::permanent(Code::TargetUnreachable, "revoked").detail("marked @revoked; a new key");
        let item = serde_json::to_value(fail("x".to_owned(), "host key", &revoked)).unwrap();
        assert_eq!(item["fix"], "a new key");
    }

    #[test]
    fn a_try_is_made_in_the_folder_that_a_rule_is_about() {
        for (glob, folder) in [
            ("**/*.csv", ""),
            ("*.csv", ""),
            ("in/*.csv", "in"),
            ("in/2026/**/*.csv", "in/2026"),
            ("in/{a,b}/x.csv", "in"),
            ("in/x.csv", "in"),
            ("x.csv", ""),
        ] {
            assert_eq!(plain_folder(glob), folder, "{glob}");
        }
    }
}
