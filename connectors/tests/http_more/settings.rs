//! Settings that are refused, and at which place of the file.

use crate::http_server::check;

#[test]
fn wrong_settings_are_found_at_their_places() {
    let dir = tempfile::tempdir().unwrap();
    for (settings, line, says) in [
        ("url = \"orders\"", 3, "not a URL"),
        ("url = \"ftp://orders/\"", 3, "https://"),
        ("url = \"https://u:p@orders/\"", 3, "auth"),
        ("url = \"https://orders/?a=1\"", 3, "query"),
        ("url = \"http://169.254.169.254/latest/\"", 3, "always blocked"),
        ("url = \"http://[::ffff:169.254.169.254]/\"", 3, "always blocked"),
        ("url = \"http://2852039166/\"", 3, "always blocked"),
        ("url = \"http://h/\"\nproxy = { url = \"http://100.100.100.200:3128\" }", 4, "always blocked"),
        ("url = \"http://h/\"\nproxy = { url = \"http://p:1\", username = \"u\" }", 4, "go together"),
        ("url = \"http://h/\"\nauth = { kind = \"oauth\" }", 4, "bearer, basic or api_key, or oauth2"),
        ("url = \"http://h/\"\nauth = { kind = \"bearer\" }", 4, "needs the key token"),
        (
            "url = \"http://h/\"\n[resources.app.auth]\nkind = \"bearer\"\ntoken = { env = \"T\" }\nusername = \"u\"",
            7,
            "not a key of kind",
        ),
        (
            "url = \"http://h/\"\nauth = { kind = \"basic\", username = \"a:b\", password = { env = \"T\" } }",
            4,
            "colon",
        ),
        (
            "url = \"http://h/\"\nauth = { kind = \"api_key\", header = \"Host\", value = { env = \"T\" } }",
            4,
            "X-Api-Key",
        ),
        ("url = \"http://h/\"\nconnect_timeout = \"0s\"", 4, "longer than 0"),
        ("url = \"http://h/\"\nconnect_timeout = \"10m\"", 4, "120s"),
        ("url = \"http://h/\"\nmax_response = \"0B\"", 4, "larger than 0"),
        ("url = \"http://h/\"\nurls = 1", 4, "urls"),
    ] {
        let Err(findings) = check(dir.path(), settings) else { panic!("{settings} was taken") };
        assert!(findings.contains(&format!("app.toml:{line}:")), "{settings}: {findings}");
        assert!(findings.contains(says), "{settings}: {findings}");
    }
}

#[test]
fn unusable_secrets_and_ca_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("lines"), "a\nb").unwrap();
    std::fs::write(dir.path().join("empty.pem"), "nothing here").unwrap();
    for (settings, says) in [
        ("auth = { kind = \"bearer\", token = { file = \"absent\" } }", ("auth.token", "absent")),
        ("auth = { kind = \"bearer\", token = { file = \"lines\" } }", ("auth.token", "line end")),
        ("ca_file = \"absent.pem\"", ("ca_file", "absent.pem")),
        ("ca_file = \"empty.pem\"", ("ca_file", "no certificate")),
    ] {
        let checked = check(dir.path(), &format!("url = \"https://h/\"\n{settings}")).ok().unwrap();
        let error = checked.build(dir.path()).err().unwrap();
        assert_eq!(error.key, says.0, "{settings}: {error}");
        assert!(error.message.contains(says.1), "{settings}: {error}");
    }
}
