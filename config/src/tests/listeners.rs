//! Listeners, with their defaults and their mistakes.

use super::*;

#[test]
fn a_listener_is_read_with_its_defaults_from_any_file() {
    let main = "[listeners.orders]\nlisten = \"127.0.0.1:9470\"\n\
                auth = { kind = \"token\", token = { file = \"secrets/t\" } }\n";
    let other = "[listeners.tills]\nlisten = \"192.168.1.4:9471\"\ntls_cert = \"l.pem\"\n\
                 tls_key = { file = \"secrets/k\" }\npath = \"/in/tills\"\nmax_size = \"64KiB\"\nrate_per_minute = 60\n\
                 max_concurrent = 2\nrequire_key = true\ncontent_types = [\"Application/JSON\"]\n\
                 event_kinds = [\"CommandeValidee\"]\nauth = { kind = \"hmac\", secrets = [{ env = \"A\" }, { env = \"B\" }] }\n";
    let dir = folder(&[
        ("agent.toml", format!("{HUB}{main}").as_bytes()),
        ("resources.d/l.toml", other.as_bytes()),
    ]);
    let config = load_in(dir.path(), &[]).unwrap_or_else(|findings| panic!("{findings}"));
    let [orders, tills] = config.listeners.as_slice() else { panic!("{:?}", config.listeners) };
    assert_eq!((orders.name.as_str(), orders.path.as_str()), ("orders", "/orders"));
    assert_eq!((orders.max_size.0, orders.rate_per_minute, orders.max_concurrent), (1 << 20, 6000, 64));
    assert!(!orders.require_key && orders.tls.is_none() && orders.event_kinds.is_empty());
    assert!(orders.files.contains(&dir.path().join("secrets/t")));
    let (cert, key) = tills.tls.as_ref().unwrap();
    assert_eq!((cert, key), (&dir.path().join("l.pem"), &SecretRef::File("secrets/k".into())));
    assert_eq!((tills.path.as_str(), tills.require_key, tills.max_concurrent), ("/in/tills", true, 2));
    assert_eq!(tills.content_types, ["application/json"]);
    assert!(matches!(&tills.auth, crate::ListenerAuth::Hmac(secrets) if secrets.len() == 2));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn every_mistake_of_a_listener_is_told_at_its_place() {
    check(
        "[listeners.a]\nlisten = \"0.0.0.0:9470\"\nauth = { kind = \"token\", username = \"u\" }\npath = \"a//b\"\n\
         rate_per_minute = 0\ntls_cert = \"c.pem\"\ncontent_types = [\"json\"]\nhost = \"x\"\n\
         [listeners.b]\n",
        &[
            "agent.toml:3:1: listeners.a.tls_key: a certificate without its key; add tls_key = { file = \"secrets/…\" }",
            "agent.toml:4:10: listeners.a.listen: is not an address of this machine alone or of a private network: everybody who reaches it may try; name a private address, or add any_address = true (inside a container, say)",
            "agent.toml:5:8: listeners.a.auth.token: missing; kind = \"token\" needs it",
            "agent.toml:5:37: listeners.a.auth.username: does not belong to kind = \"token\"",
            "agent.toml:6:8: listeners.a.path: expected a path such as \"/orders\": letters, digits, '-', '.', '_', '~' and '/'",
            "agent.toml:7:19: listeners.a.rate_per_minute: expected an integer from 1 to 1000000, found 0",
            "agent.toml:9:18: listeners.a.content_types[1]: expected a type such as \"application/json\", without parameters",
            "agent.toml:10:1: listeners.a.host: unknown key; known keys: any_address, auth, content_types, event_kinds, listen, max_concurrent, max_size, path, rate_per_minute, require_key, tls_cert, tls_key",
            "agent.toml:11:1: listeners.b.auth: missing; say who may post, such as auth = { kind = \"token\", token = { file = \"secrets/…\" } }",
            "agent.toml:11:1: listeners.b.listen: missing; write an address and a port such as \"127.0.0.1:9470\"",
        ],
    );
    let auth = "auth = { kind = \"token\", token = { env = \"T\" } }\n";
    check(
        &format!(
            "[listeners.crm]\nlisten = \"127.0.0.1:9464\"\n{auth}[listeners.two]\nlisten = \"127.0.0.1:9470\"\n{auth}\
             [listeners.three]\nlisten = \"127.0.0.1:9470\"\n{auth}[resources.crm]\nconnector = \"file\"\nurl = \"file:///x\"\n"
        ),
        &[
            "agent.toml:3:1: listeners.crm: there is a resource of this name: the cloud could not tell their events apart; rename one",
            "agent.toml:3:1: listeners.crm.listen: is agent.listen, the agent's own status port; choose another port",
            "agent.toml:6:1: listeners.two.listen: listener \"three\" has this address; choose another port",
        ],
    );
}

#[test]
fn a_listener_that_others_reach_without_tls_is_warned_of() {
    let text = "[listeners.a]\nlisten = \"0.0.0.0:9470\"\nany_address = true\n\
                auth = { kind = \"basic\", username = \"u\", password = { env = \"P\" } }\n";
    let dir = folder(&[("agent.toml", format!("{HUB}{text}").as_bytes())]);
    let config = load_in(dir.path(), &[]).unwrap();
    let [warning] = config.warnings.as_slice() else { panic!("{:?}", config.warnings) };
    assert!(warning.message.contains("without TLS") && warning.path == "listeners.a.listen", "{warning}");
}
