//! Resources in TOML, as an operator writes them.

use std::path::Path;

const FILE_RULE: &str = "operations = [\"drop\", \"fetch\", \"list\", \"stat\", \"move\", \"delete\"]\npaths = [\"**/*\"]\n\
                         may = [\"replace\", \"create_dirs\", \"delete_after_fetch\"]\n";

/// A file resource with these settings on which everything is allowed.
#[must_use]
pub fn everything_allowed(name: &str, settings: &str) -> String {
    format!("[resources.{name}]\n{settings}\n[[resources.{name}.allow]]\n{FILE_RULE}")
}

/// A local folder on which everything is allowed.
#[must_use]
pub fn folder(name: &str, root: &Path) -> String {
    folder_with(name, root, "", FILE_RULE)
}

/// A local folder with settings and one allow rule of its own.
#[must_use]
pub fn folder_with(name: &str, root: &Path, settings: &str, rule: &str) -> String {
    let root = root.display();
    format!(
        "[resources.{name}]\nconnector = \"file\"\nurl = \"file://{root}\"\n{settings}\n[[resources.{name}.allow]]\n{rule}"
    )
}

/// A folder on an SFTP server on which everything is allowed. The key is `secrets/ssh_key`.
#[must_use]
pub fn sftp(name: &str, port: u16, root: &Path, user: &str) -> String {
    sftp_with(name, port, root, user, "")
}

/// The same with more settings.
#[must_use]
pub fn sftp_with(name: &str, port: u16, root: &Path, user: &str, settings: &str) -> String {
    let root = root.display();
    format!(
        "[resources.{name}]\nconnector = \"file\"\nurl = \"sftp://127.0.0.1:{port}{root}\"\nusername = \"{user}\"\n\
         private_key = {{ file = \"secrets/ssh_key\" }}\nknown_hosts = \"known_hosts\"\n{settings}\n\
         [[resources.{name}.allow]]\n{FILE_RULE}"
    )
}

/// A prefix in a bucket of a store on this machine, on which everything is allowed. The access key is `secrets/s3_id` and
/// `secrets/s3_key`.
#[must_use]
pub fn bucket(name: &str, port: u16) -> String {
    format!(
        "[resources.{name}]\nconnector = \"file\"\nurl = \"s3://{}/root\"\nendpoint = \"http://127.0.0.1:{port}\"\n\
         access_key_id = {{ file = \"secrets/s3_id\" }}\nsecret_access_key = {{ file = \"secrets/s3_key\" }}\n\
         [[resources.{name}.allow]]\n{FILE_RULE}",
        crate::s3::BUCKET,
    )
}

/// The folder `root` on the share `files` of an SMB server, on which everything is allowed. The password is
/// `secrets/smb_password`.
#[must_use]
pub fn smb(name: &str, port: u16) -> String {
    format!(
        "[resources.{name}]\nconnector = \"file\"\nurl = \"smb://127.0.0.1:{port}/files/root\"\nusername = \"root\"\n\
         password = {{ file = \"secrets/smb_password\" }}\n[[resources.{name}.allow]]\n{FILE_RULE}"
    )
}

/// An in-house application: `notify` and `request` everywhere below its address.
#[must_use]
pub fn application(name: &str, url: &str) -> String {
    application_with(name, url, "")
}

/// The same with more settings.
#[must_use]
pub fn application_with(name: &str, url: &str, settings: &str) -> String {
    format!(
        "[resources.{name}]\nconnector = \"http\"\nurl = \"{url}\"\n{settings}\n[[resources.{name}.allow]]\n\
         operations = [\"notify\", \"request\"]\nmethods = [\"GET\", \"POST\", \"PUT\", \"DELETE\"]\npaths = [\"**/*\"]\n\
         query = [\"page\"]\nheaders = [\"x-origin\"]\n"
    )
}
