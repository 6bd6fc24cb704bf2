//! What the documents tell a reader to type is typed, in their order, as it stands there: on a machine with a systemd of its
//! own where programs are installed, in containers (`tests/tests/docker`) where they say so.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::{documents_elsewhere::ELSEWHERE, release};
use passerelle_tests::{
    Machine, PATIENCE,
    documents::{Block, blocks, root, typed},
    until,
};
use serde_json::Value;
use std::{collections::BTreeSet, fs};

/// Typed on a machine by the test below, in this order.
const ON_A_MACHINE: [&str; 3] = ["docs/en/install-hub.md", "docs/en/install-linux.md", "README.md"];
/// Typed on a Docker engine by `tests/tests/docker/documents.rs`.
const ON_AN_ENGINE: [&str; 2] = ["docs/en/install-windows.md", "docs/en/install.md"];
/// What these say is done by tests in words of their own, with projects, ports and names that nobody else has.
const BY_OTHERS: [&str; 3] =
    ["docs/en/install-compose.md", "docs/en/install-kubernetes.md", "docs/en/install-swarm.md"];

/// Commands of the README that `tests/run` gives by itself: it is one of them, and cannot be run in itself.
const BY_TESTS_RUN: [&str; 2] = ["cargo run --bin passerelle -- dev --once", "bash tests/run"];

#[test]
fn no_document_about_installing_is_left_out_and_no_command_hides_from_the_tests() {
    let known: BTreeSet<&str> = ON_A_MACHINE.into_iter().chain(ON_AN_ENGINE).chain(BY_OTHERS).collect();
    let mut found = vec!["README.md".to_owned()];
    for entry in fs::read_dir(root().join("docs/en")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("install") {
            found.push(format!("docs/en/{name}"));
        }
    }
    assert!(found.len() > 4, "{found:?}");
    for document in found {
        assert!(known.contains(document.as_str()), "{document}: no test types what it says");
        for Block { line, language, text, .. } in blocks(&document) {
            let right =
                ["sh", "powershell", "toml", "yaml", "json", "text", "nginx"].contains(&language.as_str());
            // The picture in the README.
            assert!(
                right || (language.is_empty() && text.contains('─')),
                "{document}:{line}: say what language it is"
            );
        }
        let fenced: String = blocks(&document).into_iter().map(|block| block.text).collect();
        let indented = fs::read_to_string(root().join(&document)).unwrap();
        for line in indented.lines().filter(|line| line.starts_with("    ")) {
            assert!(fenced.contains(line.trim()), "{document}: put this between fences: {line}");
        }
    }
    let script = fs::read_to_string(root().join("tests/run")).unwrap();
    let typed_there: Vec<String> = typed("README.md").iter().flat_map(Block::commands).collect();
    for command in BY_TESTS_RUN {
        assert!(typed_there.iter().any(|line| line == command), "{command} is not in the README any more");
    }
    assert!(
        script.contains("cargo run --locked --bin passerelle -- dev --once"),
        "tests/run does not give it"
    );
}

#[test]
fn each_command_about_compose_swarm_and_kubernetes_is_one_that_a_named_test_gives() {
    let sources: String = ["docker/compose.rs", "docker/swarm.rs", "deploy.rs"]
        .map(|file| fs::read_to_string(root().join("tests/tests").join(file)).unwrap())
        .concat();
    let mut given = BTreeSet::new();
    for command in BY_OTHERS.iter().flat_map(|document| typed(document)).flat_map(|block| block.commands()) {
        let command = command.split(" #").next().unwrap_or_default().trim_end().to_owned();
        let known = ELSEWHERE.iter().find(|(known, _)| *known == command);
        let (_, test) =
            known.unwrap_or_else(|| panic!("no test gives this command of a document: {command}"));
        assert!(sources.contains(&format!("fn {test}(")), "there is no test {test}");
        given.insert(command);
    }
    for (command, _) in ELSEWHERE {
        assert!(given.contains(*command), "no document has this command any more: {command}");
    }
}

/// Types a document's commands, block by block.
async fn follow(machine: &Machine, document: &str) {
    for Block { line, text, .. } in typed(document) {
        eprintln!("──── {document}:{line}\n{text}");
        print_of(&machine.succeed(&text));
        // A reader takes some seconds to go on.
        for (unit, health) in [
            ("passerelle-hub", "curl -fsS https://hub.example.com/readyz"),
            ("passerelle-agent", "passerelle-agent --config /etc/passerelle health"),
        ] {
            if machine.run(&format!("systemctl is-active {unit}")).status.success() {
                until(unit, PATIENCE, async || machine.run(health).status.success().then_some(())).await;
            }
        }
    }
}

fn print_of(said: &str) {
    for line in said.lines() {
        eprintln!("  {line}");
    }
}

/// The names of the documents lead to this machine, its hub has a certificate for its own, and there is a file server.
fn set_up(machine: &Machine) {
    machine.succeed(
        "printf '127.0.0.1 hub.example.com files.intra\\n::1 hub.example.com files.intra\\n' > /etc/hosts",
    );
    let pair = rcgen::generate_simple_self_signed(vec!["hub.example.com".to_owned()]).unwrap();
    fs::write(machine.path("/root/hub.pem"), pair.cert.pem()).unwrap();
    fs::write(machine.path("/root/hub-key.pem"), pair.signing_key.serialize_pem()).unwrap();
    machine.succeed("cat hub.pem >> /etc/ssl/certs/ca-certificates.crt");
    let out = tempfile::tempdir().unwrap();
    release::make(out.path());
    for entry in fs::read_dir(out.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), machine.path("/root").join(entry.file_name())).unwrap();
    }
}

/// A value of the JSON that an admin command prints.
fn made(machine: &Machine, what: &str, key: &str) -> String {
    let command = format!(
        "runuser -u passerelle-hub -- passerelle-hub admin {what} --json --config /etc/passerelle-hub/hub.toml"
    );
    let said: Value = serde_json::from_str(&machine.succeed(&command)).unwrap();
    said[key].as_str().unwrap_or_else(|| panic!("no {key} in {said}")).to_owned()
}

fn token(machine: &Machine) -> String {
    made(machine, "enrolment-token create --tenant acme --site paris --application orchestrator", "token")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_readme_and_install_say_works_on_a_machine_with_systemd() {
    if let Some(why) = Machine::missing() {
        eprintln!("left out: {why}");
        return;
    }
    let machine = Machine::boot().await;
    set_up(&machine);

    follow(&machine, ON_A_MACHINE[0]).await;
    let key = made(&machine, "api-key create --tenant acme --scopes all", "key");
    let client = format!("export PASSERELLE_URL=https://hub.example.com PASSERELLE_API_KEY={key}\n");
    // A hub stays up when its programs run as another user did something in its folder.
    machine.succeed("systemctl restart passerelle-hub && rm -r passerelle-*-linux");

    fs::write(machine.path("/root/token.txt"), token(&machine)).unwrap();
    follow(&machine, ON_A_MACHINE[1]).await;
    the_units_hold(&machine, &client);

    // The README's own example: a file server, and an agent started by hand.
    machine.succeed("systemctl disable --now passerelle-agent");
    machine.succeed(SFTP);
    let toml = blocks("README.md").into_iter().find(|block| block.language == "toml").unwrap();
    fs::write(machine.path("/config/agent.toml"), toml.text).unwrap();
    fs::write(machine.path("/config/secrets/enrolment-token"), token(&machine)).unwrap();
    fs::write(machine.path("/root/readme/sales.csv"), "date;total\n").unwrap();
    for command in typed("README.md").iter().flat_map(Block::commands) {
        if BY_TESTS_RUN.contains(&command.as_str()) {
            continue;
        }
        eprintln!("──── README.md: {command}");
        if command.starts_with("passerelle-agent run") {
            // It stays; a reader opens another terminal.
            machine
                .succeed(&format!("systemd-run --unit=readme-agent {}", command.split(" #").next().unwrap()));
            until("the README's agent", PATIENCE, async || {
                machine.run("passerelle-agent health --config /config").status.success().then_some(())
            })
            .await;
        } else {
            print_of(&machine.succeed(&format!("cd readme\n{client}{command}")));
        }
    }
    assert_eq!(machine.succeed("cat /exports/compta/2026/10/sales.csv"), "date;total\n");
}

/// The agent works under its unit, and its unit lets it do nothing else.
fn the_units_hold(machine: &Machine, client: &str) {
    let submit = |resource: &str| {
        let command = format!(
            "{client}echo 'a;b' > a.csv\npasserelle jobs submit --site paris --resource {resource} --operation drop \
             --param path=a.csv --payload a.csv --wait 60 --json"
        );
        serde_json::from_slice::<Value>(&machine.run(&command).stdout).unwrap()
    };
    let delivered = submit("compta");
    assert_eq!(delivered["state"], "succeeded", "{delivered:#}");
    assert_eq!(
        machine.succeed("stat -c %U /srv/exports/a.csv && cat /srv/exports/a.csv"),
        "passerelle\na;b\n"
    );

    // A folder that is the agent's own, allowed by its rules, and not named in the unit.
    machine.succeed(
        "install -d -o passerelle -g passerelle /srv/other\n\
         sed 's/compta/other/; s|/srv/exports|/srv/other|; s/resources.compta/resources.other/' \
         /etc/passerelle/resources.d/compta.toml > /etc/passerelle/resources.d/other.toml\n\
         chgrp passerelle /etc/passerelle/resources.d/other.toml\n\
         systemctl restart passerelle-agent",
    );
    let kept_out = submit("other");
    assert!(kept_out["state"] != "succeeded", "{kept_out:#}");
    assert_eq!(machine.succeed("ls -A /srv/other"), "", "the unit let it write there");
    machine.succeed("rm /etc/passerelle/resources.d/other.toml");

    // The hub's unit lets it start the processes that fill templates, and those bound themselves.
    let run = machine.succeed(&format!(
        "{client}cat > labels.toml <<'END'\n{LABELS}END\n\
         passerelle mediations apply -f labels.toml && passerelle mediations run labels --key paris --follow"
    ));
    assert!(run.contains("paris.txt rendered: 5 bytes"), "{run}");

    for unit in ["passerelle-agent", "passerelle-hub"] {
        let verified = machine.run(&format!("systemd-analyze verify /etc/systemd/system/{unit}.service"));
        let told = String::from_utf8_lossy(&verified.stderr).into_owned();
        assert!(verified.status.success() && !told.contains(unit), "{told}");
        let judged = machine.succeed(&format!(
            "systemd-analyze security --threshold=20 --no-pager {unit}.service | tail -n 1"
        ));
        assert!(judged.contains("OK"), "{judged}");
        let shown = machine.succeed(&format!("systemctl show -p NRestarts,MainPID {unit}"));
        assert!(shown.contains("NRestarts=0"), "{unit} did not stay up: {shown}");
        let pid = shown.lines().find_map(|line| line.strip_prefix("MainPID=")).unwrap().to_owned();
        let status =
            machine.succeed(&format!("grep -E '^(Uid|NoNewPrivs|Seccomp|CapEff):' /proc/{pid}/status"));
        assert!(
            !status.contains("Uid:\t0\t")
                && status.contains("NoNewPrivs:\t1")
                && status.contains("Seccomp:\t2"),
            "{status}"
        );
        let rights = if unit == "passerelle-hub" { "0000000000000400" } else { "0000000000000000" };
        assert!(status.contains(&format!("CapEff:\t{rights}")), "{unit}: {status}");
    }
    machine.succeed("systemctl stop passerelle-agent");
    let ended = machine.succeed("systemctl show -p Result,ExecMainStatus passerelle-agent");
    assert_eq!(ended, "Result=success\nExecMainStatus=0\n", "it was drained");
}

/// A mediation that needs nothing but templates.
const LABELS: &str = "
[[mediation]]
name = \"labels\"
trigger = { kind = \"manual\" }
[[mediation.steps]]
name = \"make\"
kind = \"render\"
template = \"{{ 'x' * 5 }}\"
flow = \"{{ trigger.key }}.txt\"
";

/// The file server of the README's example, and its agent's folder.
const SFTP: &str = "
useradd --create-home --password '*' svc-exports
install -d -o svc-exports /exports/compta
mkdir -p /config/secrets readme /run/sshd
ssh-keygen -q -t ed25519 -N '' -f /config/secrets/compta_ed25519
install -d -m 0700 -o svc-exports /home/svc-exports/.ssh
install -m 0600 -o svc-exports /config/secrets/compta_ed25519.pub /home/svc-exports/.ssh/authorized_keys
ssh-keygen -A
systemd-run --unit=files-intra /usr/sbin/sshd -D -e -o UsePAM=no
echo \"files.intra $(cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub)\" > /config/known_hosts
";
