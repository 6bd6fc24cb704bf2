//! Settings of stores: which are refused, whose certificates count, and that keys come from nowhere else.

use super::{
    CHILD,
    answers::{EMPTY, at, hostile, says},
    found, in_a_process, probe,
};
use crate::{
    cases::failed,
    support::{Place, check, s3::Kind, s3_settings},
};
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::json;
use std::{
    fs,
    net::TcpListener,
    sync::{Arc, Mutex},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_counts_only_with_its_ca() {
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (place, store) = Place::s3(Kind::Nanio);
    let port = in_tls(store.port, &pair);
    let settings = |more: &str| s3_settings(&format!("https://localhost:{port}"), more);
    let failure = failed(
        probe(&check(&place.base, &settings("")).unwrap()).await,
        Verdict::Retry,
        Code::TargetUnreachable,
        Effect::NotApplied,
    );
    assert!(failure.message.contains("ca_file"), "{failure}");
    fs::write(place.base.join("ca.pem"), pair.cert.pem()).unwrap();
    let trusted = check(&place.base, &settings("ca_file = \"ca.pem\"")).unwrap();
    let place = place.with(trusted);
    place.drop(json!({"path": "a.csv"}), b"x").await.unwrap();
    assert_eq!(place.read("a.csv"), b"x");
}

/// TLS in front of a store.
fn in_tls(to: u16, pair: &rcgen::CertifiedKey<rcgen::KeyPair>) -> u16 {
    let key = rustls::pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut store = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                if let Ok(mut client) = acceptor.accept(client).await {
                    drop(tokio::io::copy_bidirectional(&mut client, &mut store).await);
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn wrong_settings_are_refused_with_what_is_right() {
    let keys = "access_key_id = { env = \"I\" }\nsecret_access_key = { env = \"S\" }";
    let refused = |settings: &str, word: &str| {
        let base = tempfile::tempdir().unwrap();
        let message = check(base.path(), &format!("connector = \"file\"\n{settings}")).err().unwrap();
        assert!(message.contains(word), "{word:?} is not in:\n{message}");
    };
    let endpoint = "endpoint = \"https://s3.intra\"";
    refused(&format!("url = \"s3://files\"\n{keys}"), "resources.test.region");
    refused(&format!("url = \"s3://files\"\n{endpoint}"), "resources.test.access_key_id");
    refused(&format!("url = \"s3://files:80/x\"\n{endpoint}\n{keys}"), "s3://bucket/prefix");
    refused(&format!("url = \"s3://k:s@files/x\"\n{endpoint}\n{keys}"), "access_key_id");
    refused(&format!("url = \"s3://ab/x\"\n{endpoint}\n{keys}"), "3 to 63");
    refused(&format!("url = \"s3://files/a//b\"\n{endpoint}\n{keys}"), "prefix");
    refused(&format!("url = \"s3://files\"\nendpoint = \"ftp://x\"\n{keys}"), "resources.test.endpoint");
    refused(
        &format!("url = \"s3://files\"\nendpoint = \"https://u:p@x\"\n{keys}"),
        "resources.test.endpoint",
    );
    for host in ["169.254.169.254", "2852039166", "[fd00:ec2::254]", "metadata.google.internal"] {
        refused(&format!("url = \"s3://files\"\nendpoint = \"http://{host}\"\n{keys}"), "always blocked");
    }
    refused(
        &format!("url = \"s3://files\"\n{endpoint}\nregion = \"eu west\"\n{keys}"),
        "resources.test.region",
    );
    refused(&format!("url = \"s3://files\"\n{endpoint}\naddressing = \"dns\"\n{keys}"), "\"virtual\"");
    refused(&format!("url = \"s3://files\"\nendpoint = \"http://x\"\nca_file = \"c\"\n{keys}"), "https://");
    refused(&format!("url = \"s3://files\"\n{endpoint}\nusername = \"u\"\n{keys}"), "use access_key_id");
    refused(
        &format!("url = \"s3://files\"\n{endpoint}\nknown_hosts = \"k\"\n{keys}"),
        "no meaning for s3://",
    );
    refused("url = \"file:///srv\"\nregion = \"x\"", "s3:// only");
    refused(
        &format!(
            "url = \"s3://files\"\n{endpoint}\naccess_key_id = \"literal\"\nsecret_access_key = {{ env = \"S\" }}"
        ),
        "never written here",
    );
}

#[test]
fn no_key_comes_from_anywhere_but_the_settings() {
    let (asked, trapped) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let recording = |heads: &Arc<Mutex<Vec<String>>>| {
        let heads = Arc::clone(heads);
        hostile(move |head| {
            heads.lock().unwrap().push(head.to_owned());
            says("200 OK", "", EMPTY)
        })
    };
    let (port, trap) = (recording(&asked).to_string(), format!("http://127.0.0.1:{}/", recording(&trapped)));
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let credentials = "[default]\naws_access_key_id = FROMFILE\naws_secret_access_key = s\n";
    fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
    in_a_process(
        "s3::settings::a_child_that_asks",
        &[
            ("PASSERELLE_TEST_S3_PORT", port.as_str()),
            ("HOME", home.path().to_str().unwrap()),
            ("AWS_ACCESS_KEY_ID", "FROMENVIRONMENT"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_SESSION_TOKEN", "t"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", trap.as_str()),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", trap.as_str()),
            ("AWS_ENDPOINT_URL", trap.as_str()),
            ("http_proxy", trap.as_str()),
            ("HTTP_PROXY", trap.as_str()),
            ("ALL_PROXY", trap.as_str()),
        ],
    );
    let asked = asked.lock().unwrap();
    assert!(!asked.is_empty(), "the child asked nothing");
    assert!(asked.iter().all(|head| head.contains("Credential=id/")), "{asked:#?}");
    assert!(asked.iter().all(|head| !head.to_lowercase().contains("x-amz-security-token")), "{asked:#?}");
    assert_eq!(*trapped.lock().unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_asks() {
    let (Some(_), Ok(port)) = (std::env::var_os(CHILD), std::env::var("PASSERELLE_TEST_S3_PORT")) else {
        return;
    };
    let base = tempfile::tempdir().unwrap();
    found(probe(&at(base.path(), port.parse().unwrap())).await);
}
