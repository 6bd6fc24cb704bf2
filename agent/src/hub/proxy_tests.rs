use super::*;
use crate::exit::Stop;
use std::time::Duration;
use tokio::{io::duplex, time::timeout};

fn section(url: &str) -> HubSection {
    HubSection {
        url: url.parse().unwrap(),
        enrolment_token: None,
        ca_file: None,
        client_cert: None,
        client_key: None,
        proxy: None,
    }
}

fn choose(url: &str, env: &[(&str, &str)]) -> Result<Option<Proxy>, Stop> {
    let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Proxy::choose(&section(url), Path::new("/"), &env)
}

#[test]
fn the_environment_names_a_proxy_in_all_its_usual_forms() {
    let hub = "https://hub.example.com";
    let address = |env: &[(&str, &str)]| choose(hub, env).unwrap().map(|proxy| proxy.address());
    assert_eq!(address(&[]), None);
    assert_eq!(address(&[("HTTPS_PROXY", "")]), None);
    assert_eq!(address(&[("HTTPS_PROXY", "http://p:3128")]).as_deref(), Some("p:3128"));
    assert_eq!(address(&[("https_proxy", "p:3128")]).as_deref(), Some("p:3128"));
    assert_eq!(address(&[("ALL_PROXY", "http://p")]).as_deref(), Some("p:80"));
    assert_eq!(address(&[("HTTPS_PROXY", "https://p")]).as_deref(), Some("p:443"));
    assert_eq!(address(&[("HTTPS_PROXY", "http://[fd00::1]:8080/")]).as_deref(), Some("[fd00::1]:8080"));
    // The first one that is set counts, and one for plain HTTP never does.
    assert_eq!(
        address(&[("HTTPS_PROXY", "http://a:1"), ("ALL_PROXY", "http://b:1")]).as_deref(),
        Some("a:1")
    );
    assert_eq!(address(&[("HTTP_PROXY", "http://a:1")]), None);
    assert_eq!(address(&[("HTTPS_PROXY", "http://a:1"), ("NO_PROXY", ".example.com")]), None);
    assert_eq!(address(&[("HTTPS_PROXY", "http://a:1"), ("no_proxy", "other")]).as_deref(), Some("a:1"));
    assert!(choose("http://localhost:1", &[("HTTPS_PROXY", "http://a:1")]).unwrap().is_none());
}

#[test]
fn credentials_of_the_environment_are_decoded_and_never_shown() {
    let proxy = choose("https://h", &[("HTTPS_PROXY", "http://svc:p%40ss%3Aword@p:3128")]).unwrap().unwrap();
    let auth = proxy.auth.clone().unwrap();
    assert_eq!(auth.to_str().unwrap(), format!("Basic {}", STANDARD.encode("svc:p@ss:word")));
    assert_eq!(format!("{proxy:?}"), "p:3128 (HTTPS_PROXY)");
    for bad in ["socks5://u:geheim@p", "http://u:geheim@", "http://u:geheim@p:99999"] {
        let error = choose("https://h", &[("HTTPS_PROXY", bad)]).unwrap_err();
        assert_eq!(error.code(), crate::CONFIGURATION);
        let error = error.to_string();
        assert!(
            error.starts_with("environment variable HTTPS_PROXY: ") && !error.contains("geheim"),
            "{error}"
        );
    }
}

/// What the agent makes of a proxy that answers so, and what the proxy was asked.
async fn ask(env: &str, answer: &[u8]) -> (Result<(), String>, String, Vec<u8>) {
    let proxy = choose("https://h", &[("HTTPS_PROXY", env)]).unwrap().unwrap();
    let (mut here, mut there) = duplex(64 * 1024);
    let answer = answer.to_vec();
    let server = tokio::spawn(async move {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(there.read_u8().await.unwrap());
        }
        // A client that has heard enough hangs up.
        drop(there.write_all(&answer).await);
        String::from_utf8(asked).unwrap()
    });
    let result =
        timeout(Duration::from_secs(10), proxy.connect(&mut here, "hub.example.com:443")).await.unwrap();
    let asked = server.await.unwrap();
    let mut rest = Vec::new();
    if result.is_ok() {
        here.read_to_end(&mut rest).await.unwrap();
    }
    (result, asked, rest)
}

#[tokio::test]
async fn the_proxy_is_given_the_name_and_what_follows_its_answer_is_left_for_tls() {
    let answer = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nTLS";
    let (result, asked, rest) = ask("http://svc:pw@p:3128", answer).await;
    assert_eq!(result, Ok(()));
    assert!(
        asked.starts_with("CONNECT hub.example.com:443 HTTP/1.1\r\nHost: hub.example.com:443\r\n"),
        "{asked}"
    );
    assert!(asked.contains(&format!("\r\nProxy-Authorization: Basic {}\r\n", STANDARD.encode("svc:pw"))));
    assert_eq!(rest, b"TLS");
}

#[tokio::test]
async fn each_answer_of_a_proxy_is_told_with_what_to_do() {
    let key = "HTTPS_PROXY";
    let basic = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
    let ntlm = "HTTP/1.1 407 x\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: Negotiate\r\n\r\n";
    let squid = "HTTP/1.1 503 x\r\nX-Squid-Error: ERR_DNS_FAIL 0\r\n\r\n<html>";
    let (with, without) = ("http://u:p@p:1", "http://p:1");
    let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_HEAD));
    for (env, answer, expected) in [
        (with, basic, Trouble::ProxyPassword { source_key: key }),
        (without, basic, Trouble::ProxyWantsPassword { source_key: key }),
        (with, ntlm, Trouble::ProxyScheme { schemes: "NTLM or Negotiate".into() }),
        (
            with,
            "HTTP/1.1 403 Forbidden\r\n\r\n<html>",
            Trouble::ProxyRefuses { status: 403, to: "hub.example.com:443".into() },
        ),
        (with, "HTTP/1.0 502 Bad Gateway\r\n\r\n", Trouble::ProxyCannot { status: 502, why: String::new() }),
        (with, squid, Trouble::ProxyCannot { status: 503, why: ", ERR_DNS_FAIL".into() }),
        (
            with,
            "HTTP/1.1 302 Found\r\nLocation: https://login\r\n\r\n",
            Trouble::ProxyOther { status: 302, source_key: key },
        ),
        (with, "<html><body>log in</body></html>", Trouble::ProxyNoHttp { source_key: key }),
        (with, "SSH-2.0-OpenSSH_9.2", Trouble::ProxyNoHttp { source_key: key }),
        (with, "HTTP/1.1 nonsense\r\n\r\n", Trouble::ProxyNoHttp { source_key: key }),
        (with, "HTTP/1.1 20", Trouble::ProxyNoHttp { source_key: key }),
        (with, "", Trouble::ProxyClosed),
        (with, &long, Trouble::ProxyTooLong { kib: 16, source_key: key }),
    ] {
        let (result, ..) = ask(env, answer.as_bytes()).await;
        assert_eq!(result, Err(expected.to_string()), "{answer:?}");
    }
}
