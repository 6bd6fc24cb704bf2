//! What only a server over SSH can do wrong: host keys, log-in, missing extensions, lost connections.

use crate::{
    cases::{failed, trigger::found},
    support::{
        Place, call, check, payload,
        server::Server as _,
        sftp_settings,
        sshd::{Options, Sshd, keygen},
        stalling_payload,
    },
};
use passerelle_connectors::{Call, Code, DynConnector, Effect, Failure, Verdict};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// A connector for the place's server with other settings.
fn connector(place: &Place, key: &Path, more: &str) -> Arc<dyn DynConnector> {
    check(&place.base, &sftp_settings(place.sshd.as_ref().unwrap(), &place.root, key, more)).unwrap()
}

async fn probe(connector: &Arc<dyn DynConnector>) -> Result<(), Failure> {
    connector.probe(Duration::from_secs(20)).await
}

fn server(place: &Place) -> &Sshd {
    place.sshd.as_ref().unwrap()
}

#[tokio::test]
async fn an_unknown_host_key_is_refused_with_the_line_to_add() {
    let place = Place::sftp();
    fs::write(place.base.join("known_hosts"), "# empty\n").unwrap();
    let failure = failed(
        probe(&place.connector).await,
        Verdict::Permanent,
        Code::TargetUnreachable,
        Effect::NotApplied,
    );
    let detail = failure.detail.unwrap();
    let line = server(&place).known_hosts_line("ed25519");
    assert!(detail.contains(line.trim()), "{detail}");
    let printed = Command::new("ssh-keygen")
        .arg("-lf")
        .arg(place.base.join("../sshd/host_ed25519.pub"))
        .output()
        .unwrap();
    let fingerprint = String::from_utf8(printed.stdout).unwrap().split(' ').nth(1).unwrap().to_owned();
    assert!(detail.contains(&format!("ssh-ed25519 {fingerprint}")), "{detail}");
    // The line that it prints is the remedy, without a restart.
    let (_, line) = detail.rsplit_once(": ").unwrap();
    fs::write(place.base.join("known_hosts"), line).unwrap();
    probe(&place.connector).await.unwrap();
}

#[tokio::test]
async fn a_changed_host_key_is_refused_loudly() {
    let place = Place::sftp();
    // The key of another server, which ours was before it "changed".
    let other = Sshd::start(&place.base.join("other"));
    let line = other
        .known_hosts_line("ed25519")
        .replace(&other.port().to_string(), &server(&place).port().to_string());
    fs::write(place.base.join("known_hosts"), &line).unwrap();
    let failure = failed(
        probe(&place.connector).await,
        Verdict::Permanent,
        Code::TargetUnreachable,
        Effect::NotApplied,
    );
    assert!(failure.message.contains("not the one"), "{failure}");
    assert!(failure.detail.unwrap().contains("HOST KEY CHANGED"));
    // A revoked key is refused even when another line has it.
    let good = server(&place).known_hosts_line("ed25519");
    fs::write(place.base.join("known_hosts"), format!("{good}@revoked {good}")).unwrap();
    let failure = probe(&place.connector).await.unwrap_err();
    assert!(failure.message.contains("revoked"), "{failure}");
    // What `check` shows as the fix.
    assert!(failure.detail.unwrap().contains("; the server must get a new key"));
}

#[tokio::test]
async fn hashed_and_partial_known_hosts_work() {
    let options = Options { host_keys: &["ed25519", "rsa", "ecdsa"], ..Options::default() };
    let place = Place::sftp_with(options, "");
    let known_hosts = place.base.join("known_hosts");
    probe(&place.connector).await.unwrap();
    // A server with three keys, a file with one of them: that one is asked for.
    for kind in ["ed25519", "rsa", "ecdsa"] {
        fs::write(&known_hosts, server(&place).known_hosts_line(kind)).unwrap();
        let fresh = connector(&place, &server(&place).client_key(), "");
        probe(&fresh).await.unwrap_or_else(|failure| panic!("{kind}: {failure}"));
        assert!(
            Command::new("ssh-keygen")
                .args(["-q", "-H", "-f"])
                .arg(&known_hosts)
                .output()
                .unwrap()
                .status
                .success()
        );
        assert!(fs::read_to_string(&known_hosts).unwrap().starts_with("|1|"));
        let fresh = connector(&place, &server(&place).client_key(), "");
        probe(&fresh).await.unwrap_or_else(|failure| panic!("{kind}, hashed: {failure}"));
    }
}

#[tokio::test]
async fn keys_of_every_usual_kind_log_in() {
    let place = Place::sftp();
    let server = server(&place);
    for (name, kind, arguments) in [
        ("rsa_openssh", "rsa", &["-b", "3072"][..]),
        ("rsa_pkcs8", "rsa", &["-b", "2048", "-m", "PKCS8"]),
        ("ecdsa", "ecdsa", &[]),
    ] {
        let key = server.authorize(name, kind, arguments);
        probe(&connector(&place, &key, "")).await.unwrap_or_else(|failure| panic!("{name}: {failure}"));
    }
    probe(&connector(&place, &server.rsa_client_key(), "")).await.unwrap();
    let log = server.log();
    assert!(!log.contains("ssh-rsa "), "only SHA-2 signatures: {log}");
}

#[tokio::test]
async fn keys_with_a_passphrase_need_it() {
    let place = Place::sftp();
    fs::write(place.base.join("passphrase"), "correct horse\n").unwrap();
    fs::write(place.base.join("wrong"), "battery\n").unwrap();
    for kind in ["ed25519", "rsa"] {
        let key = server(&place).authorize(&format!("locked_{kind}"), kind, &["-N", "correct horse"]);
        probe(&connector(&place, &key, "passphrase = { file = \"passphrase\" }")).await.unwrap();
        for more in ["passphrase = { file = \"wrong\" }", ""] {
            let result = probe(&connector(&place, &key, more)).await;
            let failure = failed(result, Verdict::Permanent, Code::TargetAuth, Effect::NotApplied);
            assert!(failure.message.contains("passphrase"), "{failure}");
        }
    }
}

#[tokio::test]
async fn a_refused_log_in_is_permanent() {
    let place = Place::sftp();
    let stranger = place.base.join("stranger");
    keygen(&stranger, "ed25519", &[]);
    let result = probe(&connector(&place, &stranger, "")).await;
    let failure = failed(result, Verdict::Permanent, Code::TargetAuth, Effect::NotApplied);
    assert!(failure.detail.unwrap().contains("the server takes: publickey"));
    fs::write(place.base.join("secret"), "hunter2").unwrap();
    let result = probe(&connector(&place, &stranger, "password = { file = \"secret\" }")).await;
    let failure = failed(result, Verdict::Permanent, Code::TargetAuth, Effect::NotApplied);
    assert!(!failure.to_string().contains("hunter2"));
    fs::write(&stranger, "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
        .unwrap();
    let result = probe(&connector(&place, &stranger, "")).await;
    failed(result, Verdict::Permanent, Code::TargetAuth, Effect::NotApplied);
}

#[tokio::test]
async fn without_posix_rename_replacing_works_and_says_that_it_took_two_steps() {
    let options = Options { sftp: "internal-sftp -P posix-rename".to_owned(), ..Options::default() };
    let one_channel = Options { extra: "MaxSessions 1\n".to_owned(), ..Options::default() };
    for options in [options, one_channel] {
        let place = Place::sftp_with(options, "");
        let params = json!({"path": "a.csv"});
        let outcome = place.drop(params.clone(), b"old").await.unwrap();
        assert_eq!(outcome.result.get("atomic"), None, "a free name is taken in one step");
        let outcome = place.drop(params, b"new").await.unwrap();
        assert_eq!(outcome.result.get("atomic"), Some(&json!(false)));
        assert_eq!(place.read("a.csv"), b"new");
        assert_eq!(place.parts(), [""; 0]);
    }
}

#[tokio::test]
async fn without_fsync_the_outcome_says_so() {
    let options = Options { sftp: "internal-sftp -P fsync".to_owned(), ..Options::default() };
    let place = Place::sftp_with(options, "");
    let outcome = place.drop(json!({"path": "a.csv"}), b"content").await.unwrap();
    assert_eq!(outcome.synced, Some(false));
    assert_eq!(place.read("a.csv"), b"content");
}

#[tokio::test]
async fn the_login_folder_is_reached_through_the_tilde() {
    let place =
        Place::sftp_with(Options { sftp: "internal-sftp -d /tmp".to_owned(), ..Options::default() }, "");
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let below = folder.path().file_name().unwrap().to_str().unwrap();
    for root in [format!("/~/{below}"), "/~".to_owned(), "/~/".to_owned()] {
        let home = connector_at(&place, &root);
        let path = if root.len() < 4 { format!("{below}/a.csv") } else { "a.csv".to_owned() };
        let params = json!({"path": path});
        let outcome = home
            .execute(&call(), "drop", &params, Some(payload(b"x")), &mut crate::support::sink().0)
            .await
            .unwrap();
        assert_eq!(outcome.result["path"], path);
        assert_eq!(fs::read(folder.path().join("a.csv")).unwrap(), b"x");
        fs::remove_file(folder.path().join("a.csv")).unwrap();
    }
}

fn connector_at(place: &Place, root: &str) -> Arc<dyn DynConnector> {
    let server = server(place);
    check(&place.base, &sftp_settings(server, Path::new(root), &server.client_key(), "")).unwrap()
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let place = Place::sftp();
    let nowhere = place.root.join("nowhere");
    let result = probe(&connector_at(&place, nowhere.to_str().unwrap())).await;
    let failure = failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
    assert!(failure.detail.unwrap().contains("nowhere"));
    place.write("file", b"");
    let result = probe(&connector_at(&place, place.root.join("file").to_str().unwrap())).await;
    failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
}

/// An account that is not root's, which may read all that the test makes; the test's own where that is not root.
fn somebody(place: &Place) -> &str {
    let server = server(place);
    if server.user != "root" {
        return &server.user;
    }
    for path in [place.base.parent().unwrap().to_owned(), place.base.join("../sshd")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    "nobody"
}

fn connector_as(place: &Place, user: &str, root: &Path) -> Arc<dyn DynConnector> {
    let settings = sftp_settings(server(place), root, &server(place).client_key(), "");
    let own = format!("username = \"{}\"", server(place).user);
    check(&place.base, &settings.replace(&own, &format!("username = \"{user}\""))).unwrap()
}

#[tokio::test]
async fn a_folder_that_the_account_may_not_open_is_refused() {
    let place = Place::sftp();
    let user = somebody(&place);
    probe(&connector_as(&place, user, &place.root)).await.unwrap();
    let above = place.root.join("closed");
    let inside = above.join("inside");
    fs::create_dir_all(&inside).unwrap();
    fs::set_permissions(&above, fs::Permissions::from_mode(0o000)).unwrap();
    let result = probe(&connector_as(&place, user, &inside)).await;
    fs::set_permissions(&above, fs::Permissions::from_mode(0o700)).unwrap();
    let failure = failed(result, Verdict::Permanent, Code::TargetRefused, Effect::NotApplied);
    assert!(failure.detail.unwrap().contains("inside"));
}

#[tokio::test]
async fn an_account_without_sftp_is_told_so_however_the_server_denies_it() {
    let forced = |command: &str| Options { extra: format!("ForceCommand {command}\n"), ..Options::default() };
    let missing = Options { sftp: "/no/such/sftp-server".to_owned(), ..Options::default() };
    for options in [forced("/bin/echo"), forced("/bin/false"), forced("/bin/echo no SFTP here"), missing] {
        let place = Place::sftp_with(options.clone(), "connect_timeout = \"5s\"");
        let failure = failed(
            probe(&place.connector).await,
            Verdict::Permanent,
            Code::TargetUnsupported,
            Effect::NotApplied,
        );
        assert!(failure.message.contains("no SFTP"), "{options:?}: {failure}");
    }
    // Its shell says that the account is not available.
    let shell = Options { sftp: "/usr/lib/openssh/sftp-server".to_owned(), ..Options::default() };
    let place = Place::sftp_with(shell, "");
    if server(&place).user == "root" {
        let result = probe(&connector_as(&place, somebody(&place), &place.root)).await;
        failed(result, Verdict::Permanent, Code::TargetUnsupported, Effect::NotApplied);
    }
}

#[tokio::test]
async fn a_broken_idle_session_is_replaced_unseen() {
    let mut place = Place::sftp();
    for content in [&b"1"[..], b"2", b"3"] {
        place.drop(json!({"path": "a.csv"}), content).await.unwrap();
        assert_eq!(place.read("a.csv"), content);
        place.sshd.as_mut().unwrap().restart();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_lead_elsewhere_are_neither_shown_nor_picked_up() {
    let dir = tempfile::tempdir().unwrap();
    // The server's own lists, with other names of the same length in them.
    let lying = dir.path().join("lying-sftp-server");
    let script = "#!/bin/sh\n/usr/lib/openssh/sftp-server | perl -e 'while (sysread STDIN, $_, 65536) { \
                  s/xx_evil/..\\/evil/g; s/_etc_it/\\/etc\\/it/g; s/a_sub_b/a\\/sub\\/b/g; s/nul_x/nul\\0x/g; syswrite STDOUT, $_ }'\n";
    fs::write(&lying, script).unwrap();
    fs::set_permissions(&lying, PermissionsExt::from_mode(0o755)).unwrap();
    let place = Place::sftp_with(Options { sftp: lying.display().to_string(), ..Options::default() }, "");
    for name in ["xx_evil.csv", "_etc_it.csv", "a_sub_b.csv", "nul_x.csv", "good.csv"] {
        place.write(name, b"x");
    }
    let listed = place.ask("list", json!({"recursive": true})).await.unwrap();
    assert_eq!((&listed["items"][0]["path"], &listed["items"][1]), (&json!("good.csv"), &Value::Null));
    assert_eq!(listed["unreadable_names"], 4);
    assert_eq!(found(place.connector.as_ref()).await, (vec!["good.csv".to_owned()], 4));
}

#[tokio::test]
async fn a_warm_session_is_used_again() {
    let place = Place::sftp();
    for _ in 0..20 {
        place.drop(json!({"path": "a.csv"}), b"x").await.unwrap();
        place.ask("stat", json!({"path": "a.csv"})).await.unwrap();
    }
    assert_eq!(server(&place).log().matches("Accepted publickey").count(), 1);
}

#[tokio::test]
async fn no_more_sessions_are_opened_than_allowed() {
    let place = Place::sftp_with(Options::default(), "max_sessions = 2");
    let names: Vec<Value> = (0..12).map(|n| json!({"path": format!("{n}.csv")})).collect();
    let drops = names.iter().map(|params| place.drop(params.clone(), b"x"));
    for outcome in futures_util::future::join_all(drops).await {
        outcome.unwrap();
    }
    assert_eq!(server(&place).log().matches("Accepted publickey").count(), 2);
    assert_eq!(fs::read_dir(&place.root).unwrap().count(), names.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_ends_by_time_limit_or_cancel() {
    let place = Place::sftp();
    place.drop(json!({"path": "warm.csv"}), b"x").await.unwrap();
    server(&place).freeze();
    let params = json!({"path": "a.csv"});
    let hasty = Call { timeout: Duration::from_secs(2), ..call() };
    let since = Instant::now();
    let result = place.run(&hasty, "drop", &params, Some(payload(b"x"))).await;
    let failure = result.unwrap_err();
    assert_eq!((failure.verdict, failure.code), (Verdict::Retry, Code::TargetTimeout), "{failure}");
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());

    server(&place).thaw();
    place.drop(json!({"path": "warm.csv"}), b"x").await.unwrap();
    let patient = call();
    let dropping =
        async { place.run(&patient, "drop", &params, Some(stalling_payload(vec![1; 12 << 20]))).await };
    let freezing = async {
        while patient.progress.done() == 0 {
            tokio::task::yield_now().await;
        }
        server(&place).freeze();
        patient.cancel.cancel();
        Instant::now()
    };
    let (result, since) = tokio::join!(dropping, freezing);
    failed(result, Verdict::Cancelled, Code::Cancelled, Effect::NotApplied);
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    server(&place).thaw();
}

#[tokio::test]
async fn what_is_not_a_reachable_ssh_server_is_told_apart() {
    let place = Place::sftp();
    let port = server(&place).port();
    let at = |port: u16| {
        let settings = sftp_settings(
            server(&place),
            &place.root,
            &server(&place).client_key(),
            "connect_timeout = \"2s\"",
        );
        check(&place.base, &settings.replace(&format!(":{}/", server(&place).port()), &format!(":{port}/")))
            .unwrap()
    };
    probe(&at(port)).await.unwrap();

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let result = probe(&at(silent.local_addr().unwrap().port())).await;
    failed(result, Verdict::Retry, Code::TargetTimeout, Effect::NotApplied);

    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let web_port = web.local_addr().unwrap().port();
    let answering = thread::spawn(move || {
        let (mut stream, _) = web.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").unwrap();
        // Closed with what it was told unread, it would take its answer back.
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let result = probe(&at(web_port)).await;
    answering.join().unwrap();
    let failure = failed(result, Verdict::Retry, Code::TargetProtocol, Effect::NotApplied);
    assert!(failure.detail.unwrap().contains("banner"));

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let result = probe(&at(closed)).await;
    failed(result, Verdict::Retry, Code::TargetUnreachable, Effect::NotApplied);
}

/// A server that says its first words, then this again and again, for as long as anybody listens.
fn endless(first: &'static [u8], then: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let talk = move |mut socket: TcpStream| {
        drop(socket.write_all(first));
        while socket.write_all(&then).is_ok() {}
    };
    thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            talk(socket);
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_stops_talking_is_given_up_in_time() {
    let place = Place::sftp();
    let own = format!(":{}/", server(&place).port());
    let settings =
        sftp_settings(server(&place), &place.root, &server(&place).client_key(), "connect_timeout = \"1s\"");
    // `SSH_MSG_IGNORE`, which either side may send at any time (RFC 4253 §11.2).
    let ignored = [0, 0, 0, 12, 6, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (first, then, code, word) in [
        (&b""[..], b"hello line\r\n".repeat(1000), Code::TargetProtocol, "does not speak SSH"),
        (&b""[..], b"A".repeat(10_000), Code::TargetProtocol, "does not speak SSH"),
        (&b"SSH-2.0-endless\r\n"[..], ignored.repeat(1000), Code::TargetTimeout, "connect_timeout"),
    ] {
        let port = endless(first, then);
        let connector = check(&place.base, &settings.replace(&own, &format!(":{port}/"))).unwrap();
        let since = Instant::now();
        let result =
            connector.execute(&call(), "list", &json!({}), None, &mut crate::support::sink().0).await;
        let failure = failed(result, Verdict::Retry, code, Effect::NotApplied);
        assert!(failure.message.contains(word), "{failure}");
        assert!(since.elapsed() < Duration::from_secs(20), "{:?}: {failure}", since.elapsed());
    }
}
