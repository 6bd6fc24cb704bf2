//! The sections of `agent.toml` beside resources and listeners.

use super::*;

#[test]
fn hub_and_proxy_addresses_are_checked() {
    let url = |text: &str| findings(&[("agent.toml", format!("[hub]\nurl = \"{text}\"\n").as_bytes())]);
    let example = "write one such as \"https://hub.example.com\"";
    for (text, message) in [
        ("hub.example.com", format!("not a URL (relative URL without a base); {example}")),
        ("https://", format!("not a URL (empty host); {example}")),
        ("wss://hub", "write the hub's address with https://; the tunnel is made from it".to_owned()),
        ("ftp://hub", format!("the scheme ftp:// is not supported here; {example}")),
        ("https://u:geheim@hub", format!("a URL with a user name or password; {example}")),
        ("https://hub/?key=geheim", format!("a URL with '?' or '#'; {example}")),
        (
            "http://10.0.0.1:8080",
            "plain http goes only to this machine (localhost, 127.0.0.1, [::1]); write https://".to_owned(),
        ),
    ] {
        assert_eq!(url(text), [format!("agent.toml:2:7: hub.url: {message}")]);
    }
    for good in ["https://hub:8443/base", "http://localhost:8080", "http://127.0.0.9", "http://[::1]:1"] {
        let dir = folder(&[("agent.toml", format!("[hub]\nurl = \"{good}\"\n").as_bytes())]);
        assert!(load_in(dir.path(), &[]).is_ok(), "{good}");
    }
    check(
        "proxy = { username = \"u\" }\n",
        &[
            "agent.toml:3:9: hub.proxy.url: missing; write the proxy's address: url = \"http://proxy.example.com:3128\"",
        ],
    );
    check(
        "proxy = { url = \"http://u:geheim@p\", password = \"geheim\" }\n",
        &[
            "agent.toml:3:17: hub.proxy.url: user name and password don't belong into the URL: use the keys \"username\" and \"password\" beside it",
            "agent.toml:3:49: hub.proxy.password: a secret is never written here: put it into a file and write { file = \"secrets/…\" }, or { env = \"…\" }",
        ],
    );
    check(
        "proxy = { url = \"socks5://p\", password = { env = \"P\" }, username = \"a:b\" }\n",
        &[
            "agent.toml:3:17: hub.proxy.url: SOCKS is not spoken here; write the address of an HTTP proxy (CONNECT)",
            "agent.toml:3:68: hub.proxy.username: a user name for Basic authentication is not empty and has no ':'",
        ],
    );
    accept("proxy = { url = \"https://p:8443\" }\n");
    assert_eq!(
        findings(&[("agent.toml", b"[agent]\n")]),
        [
            "agent.toml:1:1: hub.url: missing; write the hub's address: url = \"https://hub.example.com\" below [hub]",
        ]
    );
}

#[test]
fn a_client_certificate_and_its_key_come_together() {
    check(
        "client_cert = \"agent.pem\"\n",
        &[
            "agent.toml:3:15: hub.client_cert: a certificate without its key; add client_key = { file = \"secrets/…\" }",
        ],
    );
    check(
        "client_key = { env = \"K\" }\n",
        &["agent.toml:3:14: hub.client_key: a key without its certificate; add client_cert = \"agent.pem\""],
    );
    accept("client_cert = \"agent.pem\"\nclient_key = { env = \"K\" }\n");
}

#[test]
fn the_agent_and_its_log_are_checked() {
    let address = "expected an address and a port such as \"127.0.0.1:9464\" or \"[::]:9464\"";
    check(
        "[trust]\njob_keys = [\"a.pem\", \"\"]\n[agent]\nname = \"Paris 1\"\nstate_dir = \"\"\nlisten = \"localhost:80\"\n\
         max_jobs = 1025\nshutdown_grace = \"2h\"\n[log]\nformat = \"jsn\"\nlevel = \"chatty\"\nclassic_dir = \"\"\n",
        &[
            "agent.toml:4:22: trust.job_keys[2]: empty; write a path, or leave the key out",
            "agent.toml:6:8: agent.name: not an agent's name: a name is 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit",
            "agent.toml:7:13: agent.state_dir: empty; write a path, or leave the key out",
            &format!("agent.toml:8:10: agent.listen: {address}"),
            "agent.toml:9:12: agent.max_jobs: expected an integer from 1 to 1024, found 1025",
            "agent.toml:10:18: agent.shutdown_grace: expected at most \"1h\"",
            "agent.toml:12:10: log.format: unknown value; did you mean \"json\"? expected one of \"text\", \"json\"",
            "agent.toml:13:9: log.level: expected \"error\", \"warn\", \"info\", \"debug\", \"trace\" or \"off\", or a list such as \"info,passerelle_agent=debug\"",
            "agent.toml:14:15: log.classic_dir: empty; write a path, or leave the key out",
        ],
    );
    check(
        "[agent]\nmax_jobs = 0\nshutdown_grace = 30\n[trust]\njob_keys = []\n",
        &[
            "agent.toml:4:12: agent.max_jobs: expected an integer from 1 to 1024, found 0",
            "agent.toml:5:18: agent.shutdown_grace: expected a duration such as \"500ms\", \"30s\", \"5m\" or \"1h30m\", found an integer",
            "agent.toml:7:12: trust.job_keys: empty; list PEM files, or leave the key out to trust the keys pinned at enrolment",
        ],
    );
    check(
        "[agent]\nmax_jobs = 99999999999999999999\nshutdown_grace = \"soon\"\n",
        &[
            "agent.toml:4:12: agent.max_jobs: expected an integer from 1 to 1024, found 9223372036854775807",
            "agent.toml:4:12: syntax: the number is too large: use at most 9223372036854775807",
            "agent.toml:5:18: agent.shutdown_grace: expected a duration such as \"500ms\", \"30s\", \"5m\" or \"1h30m\"",
        ],
    );
}

#[test]
fn quotas_have_a_least() {
    check(
        "[agent]\nspool_quota = \"1KiB\"\njournal_quota = \"1MiB\"\nkey_rotation = \"10ms\"\n",
        &[
            "agent.toml:4:15: agent.spool_quota: expected at least \"1MiB\"",
            "agent.toml:5:17: agent.journal_quota: expected at least \"8MiB\"",
            "agent.toml:6:16: agent.key_rotation: expected at least \"1s\", or \"off\"",
        ],
    );
}

#[test]
fn the_environment_overrides_the_listen_address() {
    let dir = folder(&[("agent.toml", format!("{HUB}[agent]\nlisten = \"127.0.0.1:1\"\n").as_bytes())]);
    let listen =
        |env: &[(&str, &str)]| load_in(dir.path(), env).map(|config| config.agent.listen.to_string());
    assert_eq!(listen(&[]).unwrap(), "127.0.0.1:1");
    assert_eq!(listen(&[("PASSERELLE_LISTEN", "[::]:9464")]).unwrap(), "[::]:9464");
    let error = listen(&[("PASSERELLE_LISTEN", "9464")]).unwrap_err().to_string();
    let expected = "agent.toml:4:10: agent.listen: environment variable PASSERELLE_LISTEN: expected an address and a \
                    port such as \"127.0.0.1:9464\" or \"[::]:9464\"\n";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn the_listen_address_is_told_whatever_else_is_wrong() {
    let none = |_: &str| None;
    let good = "[hub]\nurl = \"https://hub.example.com\"\n[agent]\nlisten = \"127.0.0.1:7\"\n";
    let listen = |text: &str, env: &dyn Fn(&str) -> Option<String>| {
        crate::load::listen_with(folder(&[("agent.toml", text.as_bytes())]).path(), env).to_string()
    };
    assert_eq!(listen(good, &none), "127.0.0.1:7");
    assert_eq!(listen(&format!("{good}max_jobs = 0\n[resources.R]\nx = 1\n"), &none), "127.0.0.1:7");
    assert_eq!(listen("[agent", &none), "127.0.0.1:9464");
    assert_eq!(listen("[agent", &|_| Some("[::1]:8".to_owned())), "[::1]:8");
}
