//! What can be wrong with a mapped folder: each says so, and the command that it names mends it.

use passerelle_tests::{
    PATIENCE,
    docker::{ACCOUNT, AGENT, Container, Folder, HARDENED, HubContainer, Volume, docker_output, give, said},
};
use std::{fs, os::unix::fs::PermissionsExt as _};

const SITE: &str = "paris";
const HEALTH: [&str; 2] = ["/usr/bin/passerelle-agent", "health"];

/// Runs the agent in the foreground, which must refuse the configuration, and gives what it says.
fn refused(arguments: &[&str]) -> String {
    let output = docker_output(&[&["run", "--rm"], arguments].concat());
    let text = said(&output);
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// The command in backticks that begins so.
fn command<'t>(text: &'t str, begin: &str) -> &'t str {
    let found = text.split('`').skip(1).step_by(2).find(|quoted| quoted.starts_with(begin));
    found.unwrap_or_else(|| panic!("no `{begin}…` in {text}"))
}

/// Runs a command that a message names, on this host.
fn obey(command: &str) {
    let done = passerelle_tests::run(std::process::Command::new("sh").args(["-c", command]));
    assert!(done.status.success(), "{command}: {}", said(&done));
}

async fn comes_up(hub: &HubContainer, arguments: &[&str]) {
    let agent = Container::run("agent", &[&["--network", hub.network.name()], arguments].concat());
    agent.answers(&HEALTH, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_another_owner_names_the_chown_that_mends_it() {
    let hub = HubContainer::start().await;
    let folder = hub.folder(SITE, "paris-1", "");
    // As `mkdir` and an editor of root leave it: all can be read but the token, and nothing be written.
    give(folder.path(), 0);
    let config = folder.at("/config");
    let text = refused(&["-v", &config, AGENT]);
    assert!(text.contains("the state folder /config/state cannot be written"), "{text}");
    assert!(text.contains("/config belongs to uid 0") && text.contains(&format!("uid {ACCOUNT}")), "{text}");
    let host = folder.path().display();
    let mends = command(&text, "chown");
    assert_eq!(mends, format!("chown -R {ACCOUNT}:{ACCOUNT} {host}"));
    obey(mends);
    comes_up(&hub, &["-v", &config, AGENT]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_a_user_of_the_host_also_names_the_user_option() {
    let hub = HubContainer::start().await;
    let folder = hub.folder(SITE, "paris-1", "");
    give(folder.path(), 1000);
    fs::set_permissions(folder.path().join("agent.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    let config = folder.at("/config");
    let text = refused(&["-v", &config, AGENT]);
    assert!(
        text.contains("agent.toml") && text.contains(&format!("not readable for uid {ACCOUNT}")),
        "{text}"
    );
    assert!(text.contains("belongs to uid 1000"), "{text}");
    let option = command(&text, "--user");
    assert_eq!(option, "--user 1000:1000");
    let (option, account) = option.split_once(' ').unwrap();
    comes_up(&hub, &[option, account, "-v", &config, AGENT]).await;

    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let closed = refused(&["-v", &config, AGENT]);
    assert!(closed.contains("--user 1000:1000") && closed.contains("chown -R"), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_another_owner_is_named() {
    let hub = HubContainer::start().await;
    let folder = hub.folder(SITE, "paris-1", "");
    let token = folder.path().join("secrets/enrolment-token");
    std::os::unix::fs::chown(&token, Some(0), Some(0)).unwrap();
    let config = folder.at("/config");
    let text = refused(&["--network", hub.network.name(), "-v", &config, AGENT]);
    assert!(text.contains("secrets/enrolment-token") && text.contains("belongs to uid 0"), "{text}");
    obey(command(&text, "chown"));
    comes_up(&hub, &["-v", &config, AGENT]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_cannot_be_written_names_the_volume_that_mends_it() {
    let hub = HubContainer::start().await;
    let folder = hub.folder(SITE, "paris-1", "");
    let config = folder.at("/config:ro");
    let text = refused(&["-v", &config, AGENT]);
    assert!(text.contains("the state folder /config/state cannot be written"), "{text}");
    let option = command(&text, "-v passerelle-state");
    assert_eq!(option, "-v passerelle-state:/state");
    let line = command(&text, "state_dir");
    folder.file("agent.toml", fs::read_to_string(folder.path().join("agent.toml")).unwrap() + line + "\n");
    let volume = Volume::new();
    comes_up(&hub, &["-v", &config, "-v", &volume.at("/state"), AGENT]).await;

    // A root file system that is read-only, and a state folder in it.
    let inside = hub.folder(SITE, "paris-2", "state_dir = \"/var/lib/passerelle\"\n");
    let config = inside.at("/config");
    let mut arguments = HARDENED.to_vec();
    arguments.extend(["-v", &config, AGENT]);
    let text = refused(&arguments);
    assert!(text.contains("the state folder /var/lib/passerelle cannot be written"), "{text}");
}

#[test]
fn a_folder_without_a_configuration_names_the_command_that_writes_one() {
    let folder = Folder::new();
    let config = folder.at("/config");
    let text = refused(&["-v", &config, AGENT]);
    assert!(text.contains("/config/agent.toml") && text.contains("no such file"), "{text}");
    let host = folder.path().display();
    let init = command(&text, "docker run");
    assert_eq!(init, format!("docker run --rm -v {host}:/config passerelle/agent init"));
    // The tests' images have another tag.
    let words: Vec<&str> =
        init.split(' ').skip(1).map(|word| word.replace("passerelle/agent", AGENT).leak() as &str).collect();
    let output = docker_output(&words);
    assert!(output.status.success(), "{}", said(&output));
    assert!(folder.names().contains(&"agent.toml".to_owned()));

    // The engine makes a folder of root's where none is; `init` says whose it has to be.
    let missing = folder.path().join("missing");
    let config = format!("{}:/config", missing.display());
    let text = refused(&["-v", &config, AGENT, "init"]);
    obey(command(&text, "chown"));
    let output = docker_output(&["run", "--rm", "-v", &config, AGENT, "init"]);
    assert!(output.status.success() && missing.join("agent.toml").exists(), "{}", said(&output));
}

#[test]
fn a_container_without_a_folder_is_told_to_map_one() {
    let text = refused(&[AGENT]);
    assert!(text.contains("nothing is mapped to /config"), "{text}");
    assert_eq!(command(&text, "-v"), "-v /srv/passerelle:/config");
    let lost = refused(&[AGENT, "--config", "c:\\programdata\\cpoint"]);
    assert!(lost.contains("a path of Windows"), "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_as_windows_writes_them_are_read() {
    let hub = HubContainer::start().await;
    let folder = hub.folder(SITE, "paris-1", "");
    let windows = |text: String| format!("\u{feff}{}", text.replace('\n', "\r\n"));
    let text = fs::read_to_string(folder.path().join("agent.toml")).unwrap();
    folder.file("agent.toml", windows(text));
    folder.file("ca.pem", hub.ca().replace('\n', "\r\n"));
    folder.file("secrets/enrolment-token", windows(hub.token(SITE) + "\n"));
    folder.file(
        "resources.d/compta.toml",
        "\u{feff}[resources.compta]\r\nconnector = \"file\"\r\nurl = \"file:///state\"\r\n",
    );
    comes_up(&hub, &["-v", &folder.at("/config"), AGENT]).await;
}

#[test]
fn paths_of_windows_are_told_with_their_places() {
    let folder = Folder::new();
    let config = folder.at("/config");
    let with = |text: &str| {
        folder.file("agent.toml", format!("[hub]\r\nurl = \"https://hub.example.com\"\r\n{text}"));
        refused(&["-v", &config, AGENT])
    };
    let literal = with("[log]\r\nclassic_dir = 'c:\\programdata\\cpoint\\logs'\r\n");
    assert!(literal.contains("agent.toml:4:15: log.classic_dir: a path of Windows"), "{literal}");
    assert!(literal.contains("`-v c:\\programdata\\cpoint:/config`"), "{literal}");
    // The backslashes are escapes to TOML before they are a path.
    let quoted = with("[log]\r\nclassic_dir = \"c:\\programdata\\cpoint\\logs\"\r\n");
    assert!(quoted.contains("agent.toml:4:") && quoted.contains("a path of Windows"), "{quoted}");
    let url = with(
        "[resources.compta]\r\nconnector = \"file\"\r\nurl = \"file:///c:/programdata/cpoint/exports\"\r\n",
    );
    assert!(url.contains("resources.compta.url: a path of Windows"), "{url}");
    folder.file("agent.toml", b"\xff\xfe[\0h\0u\0b\0]\0");
    let utf_16 = refused(&["-v", &config, AGENT]);
    assert!(utf_16.contains("text in UTF-16; save the file as UTF-8"), "{utf_16}");
}
