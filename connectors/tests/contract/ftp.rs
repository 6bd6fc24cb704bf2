//! What only an FTP server can do wrong: TLS, log-in, lost connections, hostile answers.

use crate::{
    cases::{
        changing::a_file_moved_onto_itself_stays, failed, faults::what_the_account_may_not_do_is_refused,
        trigger::found,
    },
    support::{
        Place, call, check, payload,
        proftpd::Speaks,
        server::Server as _,
        sink,
        vsftpd::{Tls, Vsftpd},
    },
};
use passerelle_connectors::{Call, Code, DynConnector, Effect, Examine, Failure, Verdict};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpListener},
    os::unix::fs::PermissionsExt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

fn server(place: &Place) -> &Vsftpd {
    place.vsftpd.as_ref().unwrap()
}

/// A connector for the place's server with other settings, made from its ordinary ones.
fn other(place: &Place, change: impl FnOnce(String) -> String) -> Arc<dyn DynConnector> {
    check(&place.base, &change(server(place).settings(&place.root, ""))).unwrap()
}

async fn probe(connector: &Arc<dyn DynConnector>) -> Result<(), Failure> {
    connector.probe(Duration::from_secs(20)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn implicit_tls_works_and_content_travels_on_resumed_sessions() {
    for tls in [Tls::Implicit, Tls::Explicit] {
        let place = Place::ftp_with(tls, "", "max_sessions = 1");
        // More than a server gives tickets at first: each data connection brings the next one.
        for n in 0..12 {
            let path = format!("file {n}.csv");
            place
                .drop(json!({"path": path}), path.as_bytes())
                .await
                .unwrap_or_else(|e| panic!("{tls:?} {n}: {e}"));
            assert_eq!(place.fetch(json!({"path": path})).await.unwrap().1, path.as_bytes(), "{tls:?}");
        }
        let log = server(&place).log();
        assert_eq!(log.matches("OK LOGIN").count(), 1, "one session served them all: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_ca_or_another_name_is_refused_with_what_to_do() {
    let place = Place::ftp(Tls::Explicit);
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(place.base.join("stranger.pem"), stranger.cert.pem()).unwrap();
    let trusting = |settings: String| {
        let kept: Vec<_> = settings.lines().filter(|line| !line.starts_with("ca_file")).collect();
        kept.join("\n") + "\nca_file = \"stranger.pem\"\n"
    };
    let result = probe(&other(&place, trusting)).await;
    let failure = failed(result, Verdict::Permanent, Code::TargetUnreachable, Effect::NotApplied);
    assert!(failure.message.contains("ca_file"), "{failure}");
    let renamed = other(&place, |settings| settings.replace("127.0.0.1", "localhost"));
    let failure =
        failed(probe(&renamed).await, Verdict::Permanent, Code::TargetUnreachable, Effect::NotApplied);
    assert!(failure.message.contains("another name"), "{failure}");
    assert!(!server(&place).log().contains("LOGIN"), "no password goes to a stranger");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_and_a_missing_tls_are_named() {
    let place = Place::ftp(Tls::Explicit);
    fs::write(place.base.join("wrong"), "battery").unwrap();
    let wrong = other(&place, |settings| settings.replace("ftp-password", "wrong"));
    let failure = failed(probe(&wrong).await, Verdict::Permanent, Code::TargetAuth, Effect::NotApplied);
    assert!(!failure.to_string().contains("battery"), "{failure}");
    let plain = other(&place, |settings| {
        let kept: Vec<_> = settings.lines().filter(|line| !line.starts_with("ca_file")).collect();
        kept.join("\n").replace("ftps://", "ftp://")
    });
    let failure = failed(probe(&plain).await, Verdict::Permanent, Code::TargetAuth, Effect::NotApplied);
    assert!(failure.message.contains("ftps"), "{failure}");
    // And the other way round.
    let place = Place::ftp(Tls::None);
    let tls = other(&place, |settings| settings.replace("ftp://", "ftps://"));
    let failure = failed(probe(&tls).await, Verdict::Permanent, Code::TargetUnsupported, Effect::NotApplied);
    assert!(failure.message.contains("offers no TLS"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_fails_at_the_log_in_is_not_taken_for_a_wrong_password() {
    // Its chroot is writable, which vsftpd refuses to run with.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let jail = format!("chroot_local_user=YES\nlocal_root={}\n", folder.path().display());
    let place = Place::ftp_with(Tls::None, &jail, "");
    let failure =
        failed(probe(&place.connector).await, Verdict::Retry, Code::TargetRefused, Effect::NotApplied);
    assert!(failure.detail.as_deref().is_some_and(|detail| detail.contains("500 OOPS")), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_replace_loses_no_file() {
    let place = Place::proftpd(Speaks::Ftp, "<Directory />\nAllowOverwrite off\n</Directory>\n");
    place.write("a.csv", b"old");
    let outcome = place.drop(json!({"path": "a.csv"}), b"new").await.unwrap();
    assert_eq!(outcome.result["atomic"], false, "a server that replaces shows nothing here");
    place.write("b.csv", b"moved");
    let params = json!({"from": "b.csv", "to": "a.csv", "on_conflict": "replace"});
    assert_eq!(place.ask("move", params).await.unwrap(), json!({"path": "a.csv", "atomic": false}));
    assert_eq!((place.read("a.csv"), place.parts()), (b"moved".to_vec(), vec![]));
    a_file_moved_onto_itself_stays(&place).await;
    what_the_account_may_not_do_is_refused(&place).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_check_shows_each_link_and_writes() {
    let place = Place::ftp(Tls::Explicit);
    let what = Examine { timeout: Duration::from_secs(20), try_writing: vec![String::new()] };
    let links = place.connector.examine(what).await;
    let names: Vec<_> = links.iter().map(|link| link.name).collect();
    assert_eq!(names, ["name", "connection", "certificate", "log-in", "folder", "writing"]);
    assert!(
        links.iter().all(|link| matches!(link.found, passerelle_connectors::Found::Passed(_))),
        "{links:?}"
    );
    assert_eq!(place.parts(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_login_folder_is_reached_through_the_tilde() {
    let place = Place::ftp_with(Tls::None, "local_root=/tmp\n", "");
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let below = folder.path().file_name().unwrap().to_str().unwrap();
    let root = place.root.display().to_string();
    for (tilde, path) in
        [(format!("/~/{below}"), "a.csv".to_owned()), ("/~".to_owned(), format!("{below}/a.csv"))]
    {
        let home = other(&place, |settings| settings.replace(&root, &tilde));
        let params = json!({"path": path});
        home.execute(&call(), "drop", &params, Some(payload(tilde.as_bytes())), &mut sink().0).await.unwrap();
        assert_eq!(fs::read(folder.path().join("a.csv")).unwrap(), tilde.as_bytes());
    }
}

/// A server of canned answers: `answer` gives the reply to a command.
fn canned(answer: impl Fn(&str) -> String + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            drop(socket.write_all(b"220 ready\r\n"));
            for line in BufReader::new(socket.try_clone().unwrap()).lines().map_while(Result::ok) {
                if socket.write_all(answer(&line).as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    port
}

fn ordinary(command: &str) -> String {
    match command.split(' ').next().unwrap_or_default() {
        "USER" => "331 go on",
        "PASS" => "230 in",
        "FEAT" => "500 what",
        "TYPE" | "NOOP" => "200 fine",
        "CWD" => "250 there",
        "PWD" => "257 \"/in\"",
        _ => "502 not here",
    }
    .to_owned()
        + "\r\n"
}

fn at(place: &Place, port: u16) -> Arc<dyn DynConnector> {
    check(&place.base, &format!("connector = \"file\"\nurl = \"ftp://127.0.0.1:{port}/in\"")).unwrap()
}

async fn list(connector: &Arc<dyn DynConnector>) -> Result<Value, Failure> {
    let call = Call { timeout: Duration::from_secs(5), ..call() };
    let listed = connector.execute(&call, "list", &json!({}), None, &mut sink().0).await;
    listed.map(|outcome| outcome.result)
}

/// A port whose data connections all bring this.
fn data(content: &'static str) -> u16 {
    let data = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = data.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut socket, _)) = data.accept() {
            drop(socket.write_all(content.as_bytes()));
        }
    });
    port
}

/// A server that lists this, and knows of a size of `b.csv` alone.
fn listing(features: &'static str, content: &'static str) -> u16 {
    let port = data(content);
    canned(move |command| match command.split(' ').next().unwrap_or_default() {
        "FEAT" => format!("211-Features\r\n {features}\r\n211 End\r\n"),
        "PASV" => format!("227 Entering Passive Mode (127,0,0,1,{},{}).\r\n", port / 256, port % 256),
        "LIST" | "MLSD" => "150 here\r\n226 done\r\n".to_owned(),
        "SIZE" if command == "SIZE /in/b.csv" => "213 12\r\n".to_owned(),
        "SIZE" | "MDTM" => "550 no such file\r\n".to_owned(),
        "CWD" if command != "CWD /in" => "550 no such folder\r\n".to_owned(),
        _ => ordinary(command),
    })
}

fn paths(listed: &Value) -> Vec<&str> {
    listed["items"].as_array().unwrap().iter().map(|item| item["path"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_with_a_line_end_hides_no_other_file() {
    // One is read through `LIST`, the other through `MLSD`.
    for place in [Place::ftp(Tls::None), Place::proftpd(Speaks::Ftp, "")] {
        for name in ["a.csv", "line1.csv\nline2.csv", "\nonly.csv", "z.csv"] {
            place.write(name, name.as_bytes());
        }
        fs::create_dir(place.root.join("folder\nmore")).unwrap();
        let listed = place.ask("list", json!({})).await.unwrap();
        assert_eq!(paths(&listed), ["a.csv", "z.csv"]);
        assert!(listed["unreadable_names"].as_u64().is_some_and(|names| names >= 3), "{listed}");
        let (files, unreadable) = found(place.connector.as_ref()).await;
        assert_eq!((files, unreadable >= 3), (vec!["a.csv".to_owned(), "z.csv".to_owned()], true));
        for name in ["a.csv", "z.csv"] {
            assert_eq!(place.ask("stat", json!({"path": name})).await.unwrap()["size"], 5);
            assert_eq!(place.fetch(json!({"path": name})).await.unwrap().1, name.as_bytes());
        }
        // What a list cuts a name into is nothing.
        for part in ["line1.csv", "line2.csv", "only.csv", "folder", "more"] {
            let result = place.ask("stat", json!({"path": part})).await;
            failed(result, Verdict::Permanent, Code::TargetNotFound, Effect::NotApplied);
        }
        place.drop(json!({"path": "line1.csv", "on_conflict": "fail"}), b"new").await.unwrap();
        assert_eq!(place.read("line1.csv\nline2.csv"), b"line1.csv\nline2.csv");
        let taken = place.drop(json!({"path": "z.csv", "on_conflict": "fail"}), b"new").await;
        failed(taken, Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_lead_elsewhere_are_neither_shown_nor_picked_up() {
    let place = Place::local();
    let facts = listing(
        "MLST type*;size*;modify*;",
        "type=file;size=1;modify=20261026073320; ../evil.csv\r\n\
         type=file;size=1;modify=20261026073320; /etc/passwd.csv\r\n\
         type=file;size=1;modify=20261026073320; a/b.csv\r\n\
         type=file;size=1;modify=20261026073320; ..\r\n\
         type=file;size=1;modify=20261026073320; nul\0.csv\r\n\
         type=file;size=1;modify=20261026073320; half\r.csv\r\n\
         type=file;size=12;modify=20261026073320; b.csv\r\n",
    );
    let human = listing(
        "SIZE",
        "-rw-r--r-- 1 0 0 1 Oct 26 07:33 ../evil.csv\r\n-rw-r--r-- 1 0 0 1 Oct 26 07:33 /etc/passwd.csv\r\n\
         -rw-r--r-- 1 0 0 1 Oct 26 07:33 a/b.csv\r\n-rw-r--r-- 1 0 0 1 Oct 26 07:33 .\r\n\
         -rw-r--r-- 1 0 0 1 Oct 26 07:33 nul\0.csv\r\n-rw-r--r-- 1 0 0 1 Oct 26 07:33 half\r.csv\r\n\
         -rw-r--r-- 1 0 0 12 Oct 26 07:33 b.csv\r\n",
    );
    for port in [facts, human] {
        let connector = at(&place, port);
        let listed = list(&connector).await.unwrap();
        assert_eq!((paths(&listed), &listed["unreadable_names"]), (vec!["b.csv"], &json!(5)));
        assert_eq!(found(connector.as_ref()).await, (vec!["b.csv".to_owned()], 5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_read_in_part_makes_no_name_free() {
    let place = Place::local();
    // Of `b.csv` the server says a size, and lists it in another form.
    let partly = listing("SIZE", "-rw-r--r-- 1 0 0 12 Oct 26 07:33 a.csv\r\n-rw-r--r-- 2026-10-26 b.csv\r\n");
    let connector = at(&place, partly);
    let stat = connector.execute(&call(), "stat", &json!({"path": "b.csv"}), None, &mut sink().0).await;
    failed(stat, Verdict::Permanent, Code::TargetUnsupported, Effect::NotApplied);
    let unknown = listing("SIZE", "total 12\r\n-rw-r--r-- 2026-10-26 b.csv\r\n");
    failed(list(&at(&place, unknown)).await, Verdict::Permanent, Code::TargetUnsupported, Effect::NotApplied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn epsv_that_is_announced_and_refused_gives_way_to_pasv() {
    let place = Place::local();
    let port = data("-rw-r--r-- 1 0 0 12 Oct 26 07:33 a.csv\r\n");
    for refused in ["500 what", "501 no", "502 not here", "522 no such protocol"] {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let commands = Arc::clone(&asked);
        let server = canned(move |command| {
            commands.lock().unwrap().push(command.to_owned());
            match command {
                "FEAT" => "211-Features\r\n EPSV\r\n211 End\r\n".to_owned(),
                "EPSV" => format!("{refused}\r\n"),
                "PASV" => format!("227 Entering (127,0,0,1,{},{}).\r\n", port / 256, port % 256),
                "LIST -a" => "150 here\r\n226 done\r\n".to_owned(),
                other => ordinary(other),
            }
        });
        let connector = at(&place, server);
        for _ in 0..2 {
            let listed = list(&connector).await.unwrap_or_else(|error| panic!("{refused}: {error}"));
            assert_eq!(paths(&listed), ["a.csv"], "{refused}");
        }
        let asked = asked.lock().unwrap();
        let count = |wanted: &str| asked.iter().filter(|command| *command == wanted).count();
        assert_eq!((count("EPSV"), count("PASV")), (1, 2), "asked once a connection: {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_command_is_no_refused_epsv() {
    let place = Place::local();
    let port = data("-rw-r--r-- 1 0 0 12 Oct 26 07:33 a.csv\r\n");
    let server = canned(move |command| match command {
        "FEAT" => "211-Features\r\n EPSV\r\n211 End\r\n".to_owned(),
        "EPSV" => format!("229 Entering (|||{port}|)\r\n"),
        // As behind a firewall that knows only the newer one.
        "PASV" => "500 what\r\n".to_owned(),
        "LIST -a" => "501 no options\r\n".to_owned(),
        "LIST" => "150 here\r\n226 done\r\n".to_owned(),
        other => ordinary(other),
    });
    assert_eq!(paths(&list(&at(&place, server)).await.unwrap()), ["a.csv"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_in_a_passive_answer_is_not_used() {
    let place = Place::local();
    let port = data("-rw-r--r-- 1 0 0 12 Oct 26 07:33 a.csv\r\n");
    // Somebody else's machine, as a hostile server or one behind NAT would say.
    let server = canned(move |command| match command {
        "PASV" => format!("227 Entering Passive Mode (192,0,2,1,{},{}).\r\n", port / 256, port % 256),
        "LIST -a" => "150 here\r\n226 done\r\n".to_owned(),
        other => ordinary(other),
    });
    let listed = list(&at(&place, server)).await.unwrap();
    assert_eq!((&listed["items"][0]["path"], &listed["items"][0]["size"]), (&json!("a.csv"), &json!(12)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_make_no_sense_fail_in_bounded_time() {
    let place = Place::local();
    let not_ftp = canned(|_| "what?\r\n".to_owned());
    let endless = canned(|command| match command {
        "FEAT" => "211-".to_owned() + &"x".repeat(1 << 20),
        other => ordinary(other),
    });
    let silent = canned(|command| match command {
        "PWD" => String::new(),
        other => ordinary(other),
    });
    for (name, port) in [("not ftp", not_ftp), ("endless", endless), ("silent", silent)] {
        let since = Instant::now();
        let failure = list(&at(&place, port)).await.unwrap_err();
        assert_eq!(
            (failure.verdict, failure.effect),
            (Verdict::Retry, Effect::NotApplied),
            "{name}: {failure}"
        );
        assert!(since.elapsed() < Duration::from_secs(30), "{name}: {:?}", since.elapsed());
    }
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_gives_few_tickets_is_served_by_tls_1_2() {
    // ProFTPD demands resumed sessions, and gives two tickets of TLS 1.3 at log-in and none with content.
    // Its greeting says that it is one, or hides it.
    for hidden in ["", "ServerIdent on \"files\"\n"] {
        let place = Place::proftpd(Speaks::Ftps, hidden);
        for n in 0..6 {
            let path = format!("{n}.csv");
            place.drop(json!({"path": path}), path.as_bytes()).await.unwrap_or_else(|e| panic!("{n}: {e}"));
            let params = json!({"path": path});
            assert_eq!(place.ask("delete", params).await.unwrap(), json!({"deleted": true}), "{n}");
        }
        let log = place.proftpd.as_ref().unwrap().log();
        assert!(log.contains("TLSv1.2 data connection accepted"), "{log}");
        assert!(!log.contains("rejecting data connection"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_utf_8_though_the_server_does_not_say_that_it_takes_them() {
    let place = Place::proftpd(Speaks::Ftp, "<IfModule mod_lang.c>\nUseEncoding off\n</IfModule>\n");
    for name in ["écritures d'août.csv", "日本語.csv"] {
        place.drop(json!({"path": name}), name.as_bytes()).await.unwrap();
        assert_eq!(place.read(name), name.as_bytes());
        assert_eq!(place.fetch(json!({"path": name})).await.unwrap().1, name.as_bytes());
    }
}

/// A server that says its first words, hears one line if it is to, and then says this every now and then: less than a
/// second apart, so that nobody who waits for something to come is kept waiting.
fn dripping(first: &'static str, hears: bool, head: &'static [u8], drop_of: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            thread::spawn(move || {
                drop(socket.write_all(first.as_bytes()));
                if hears {
                    BufReader::new(socket.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
                    drop(socket.write_all(b"234 go on\r\n"));
                }
                drop(socket.write_all(head));
                while socket.write_all(drop_of).is_ok() {
                    thread::sleep(Duration::from_millis(100));
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_gets_to_its_point_is_given_up_in_time() {
    let place = Place::local();
    // The head of a TLS record that is long in coming.
    let record = &[0x16, 3, 3, 0x40, 0];
    for (scheme, more, port) in [
        ("ftp", "", dripping("", false, b"", b"220-wait\r\n")),
        ("ftps", "tls = \"explicit\"", dripping("220 ready\r\n", true, record, b"x")),
        ("ftps", "tls = \"implicit\"", dripping("", false, record, b"x")),
    ] {
        let settings = format!(
            "connector = \"file\"\nurl = \"{scheme}://127.0.0.1:{port}/in\"\nconnect_timeout = \"1s\"\n{more}"
        );
        let connector = check(&place.base, &settings).unwrap();
        let since = Instant::now();
        let result = connector.execute(&call(), "list", &json!({}), None, &mut sink().0).await;
        let failure = failed(result, Verdict::Retry, Code::TargetTimeout, Effect::NotApplied);
        assert!(failure.message.contains("connect_timeout"), "{scheme} {more}: {failure}");
        assert!(since.elapsed() < Duration::from_secs(20), "{scheme} {more}: {:?}", since.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_keeps_less_than_it_took_is_told_so() {
    let place = Place::local();
    let data = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = data.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut socket, _)) = data.accept() {
            // An empty list, or the end of what it hears.
            drop(socket.shutdown(Shutdown::Write));
            drop(socket.read_to_end(&mut Vec::new()));
        }
    });
    let stored = AtomicBool::new(false);
    let server = canned(move |command| match command.split(' ').next().unwrap_or_default() {
        "PASV" => format!("227 Entering Passive Mode (127,0,0,1,{},{}).\r\n", port / 256, port % 256),
        "LIST" | "STOR" => {
            stored.fetch_or(command.starts_with("STOR"), Ordering::SeqCst);
            "150 here\r\n226 done\r\n".to_owned()
        }
        "SIZE" if stored.load(Ordering::SeqCst) => "213 3\r\n".to_owned(),
        "DELE" => "250 gone\r\n".to_owned(),
        _ => ordinary(command),
    });
    let connector = at(&place, server);
    let (params, input) = (json!({"path": "a.csv"}), Some(payload(b"content")));
    let result = connector.execute(&call(), "drop", &params, input, &mut sink().0).await;
    let failure = failed(result, Verdict::Retry, Code::TargetProtocol, Effect::NotApplied);
    assert!(failure.message.contains("did not keep all that was written"), "{failure}");
    assert!(failure.detail.unwrap().contains("3 bytes instead of 7"));
}
