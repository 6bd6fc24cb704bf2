//! What operators may write, and what they are told when it is wrong.

use crate::support::check;
use std::fs;

fn refused(settings: &str, words: &[&str]) {
    let base = tempfile::tempdir().unwrap();
    let Err(message) = check(base.path(), &format!("connector = \"file\"\n{settings}")) else {
        panic!("should be refused: {settings}");
    };
    for word in words {
        assert!(message.contains(word), "{word:?} is not in:\n{message}");
    }
}

#[test]
fn wrong_settings_are_refused_with_what_is_right() {
    refused("", &["resources.test.url", "file:///folder"]);
    refused("url = \"exports\"", &["resources.test.url", "not a URL"]);
    refused("url = \"http://x/\"", &["http:// is not known"]);
    refused("url = \"s3://bucket/y\"", &["resources.test.region"]);
    refused("url = \"smb://host\"", &["resources.test.url", "resources.test.username"]);
    refused("url = \"gopher://x/y\"", &["gopher:// is not known", "smb://"]);
    refused("url = \"file://server/share\"", &["three slashes"]);
    refused(
        "url = \"file:///srv\"\nusername = \"x\"",
        &["resources.test.username", "no meaning for file://"],
    );
    refused("url = \"file:///srv\"\nfolder = \"x\"", &["folder"]);
    refused("url = \"ftp://h/x\"\nrequire_marker = true", &["resources.test.require_marker", "file:// only"]);
    refused("url = \"ftp://h/x\"\ntls = \"explicit\"", &["resources.test.tls", "ftps://"]);
    refused("url = \"ftp://h/x\"\nca_file = \"ca.pem\"", &["resources.test.ca_file", "ftps://"]);
    refused("url = \"ftps://h/x\"\ntls = \"yes\"", &["resources.test.tls", "explicit", "implicit"]);
    refused("url = \"ftps://joe@h/x\"", &["resources.test.password", "ftps:// needs one"]);
    refused("url = \"ftps://joe:p@h/x\"", &["password is never written here"]);
    refused("url = \"ftp://h/x%0D%0ADELE%20y\"", &["resources.test.url", "line end"]);
    refused("url = \"ftp://h/x\"\nusername = \"a\\r\\nb\"", &["resources.test.username", "line end"]);
    refused(
        "url = \"ftp://h/x\"\nknown_hosts = \"k\"",
        &["resources.test.known_hosts", "no meaning for ftp://"],
    );
    refused("url = \"ftps://169.254.169.254/x\"", &["resources.test.url", "always blocked"]);
    // All findings at once.
    refused(
        "url = \"sftp://files.intra/exports\"",
        &[
            "resources.test.username",
            "resources.test.private_key",
            "resources.test.known_hosts",
            "ssh-keyscan",
        ],
    );
    let rest = "private_key = { file = \"k\" }\nknown_hosts = \"known_hosts\"";
    refused(&format!("url = \"sftp://u:p@h/x\"\n{rest}"), &["password is never written here"]);
    refused(&format!("url = \"sftp://u@h/x\"\nusername = \"v\"\n{rest}"), &["keep one of them"]);
    refused(&format!("url = \"sftp://u@h/x?y\"\n{rest}"), &["%3F"]);
    for host in [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "[::ffff:169.254.169.254]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "0.0.0.0",
        "[::]",
        "224.0.0.1",
        "metadata.google.internal",
        "METADATA.GOOGLE.INTERNAL.",
    ] {
        refused(&format!("url = \"sftp://u@{host}/x\"\n{rest}"), &["resources.test.url", "always blocked"]);
    }
    refused(&format!("url = \"sftp://u@h/x\"\nmax_sessions = 0\n{rest}"), &["from 1 to 64"]);
    refused(&format!("url = \"sftp://u@h/x\"\nconnect_timeout = \"1h\"\n{rest}"), &["connect_timeout"]);
    refused(
        "url = \"sftp://u@h/x\"\nprivate_key = \"literal\"\nknown_hosts = \"k\"",
        &["never written here"],
    );
    refused(
        "url = \"sftp://u@h/x\"\npassword = { env = \"P\" }\npassphrase = { env = \"Q\" }\nknown_hosts = \"k\"",
        &["without private_key"],
    );
}

#[test]
fn unreadable_files_are_named_when_the_resource_is_built() {
    let base = tempfile::tempdir().unwrap();
    let settings = "connector = \"file\"\nurl = \"sftp://u@h/x\"\nprivate_key = { file = \"k\" }\nknown_hosts = \"known_hosts\"";
    let message = check(base.path(), settings).err().unwrap();
    assert!(message.contains("known_hosts") && message.contains("ssh-keyscan"), "{message}");
    fs::write(base.path().join("known_hosts"), "").unwrap();
    let message = check(base.path(), settings).err().unwrap();
    assert!(message.starts_with("private_key: "), "{message}");
    fs::write(base.path().join("k"), "key").unwrap();
    check(base.path(), settings).unwrap();
}
