//! What an operator would script instead, as command lines of bash, each of the tools as fast as its options make it.

use super::{
    Load,
    place::{Kind, Place},
};
use passerelle_tests::Content;
use std::{fmt::Write as _, fs, path::Path, process::Command};

/// One way to copy the files.
pub struct Peer {
    pub name: &'static str,
    pub command: String,
    /// What is on the server's disk when it ends.
    pub syncs: bool,
    /// The one that the target is about; else the fastest.
    pub judged: bool,
    /// Whether its processor time is all counted: lftp leaves the `ssh` that it starts to itself.
    pub counted: bool,
}

/// The name that a file keeps.
pub fn name(file: &Content) -> String {
    file.path.file_name().expect("a file").to_string_lossy().into_owned()
}

/// How many connections a peer may have, as many as a resource has by default.
const AT_ONCE: usize = 4;

/// All for a place; where drops sync, a sync of all that they wrote is added to those that do not.
pub fn all(place: &Place, load: &Load, sync: bool) -> Vec<Peer> {
    let source = load.files.first().and_then(|file| file.path.parent()).expect("files").to_owned();
    let from = source.display();
    let peers = Peers { place, load, source: &source, sync };
    let mut found = match place.kind() {
        Kind::Local if load.large => {
            let (file, target) = (source.join(peers.first()), place.root().join(peers.first()));
            let line =
                format!("dd if={} of={} bs=1M conv=fsync status=none", file.display(), target.display());
            vec![Peer { name: "dd_conv_fsync", command: line, syncs: true, judged: true, counted: true }]
        }
        Kind::Local => vec![peers.then_sync("cp", format!("cp {from}/* {}/", place.root().display()), false)],
        Kind::Sftp | Kind::SftpUnsynced => peers.sftp(),
        Kind::Smb => vec![peers.smbclient()],
        Kind::Ftp | Kind::Ftps => peers.ftp(),
        Kind::WebDav => peers.webdav(),
    };
    // The rclone of Debian 12 cannot sign what it sends to a share.
    if place.kind() != Kind::Smb {
        found.push(peers.rclone());
    }
    found
}

struct Peers<'a> {
    place: &'a Place,
    load: &'a Load,
    source: &'a Path,
    sync: bool,
}

impl Peers<'_> {
    fn first(&self) -> String {
        self.load.files.first().map(name).expect("a file")
    }

    fn then_sync(&self, name: &'static str, command: String, judged: bool) -> Peer {
        let command =
            if self.sync { format!("{command} && sync {}/*", self.place.root().display()) } else { command };
        Peer { name, command, syncs: self.sync, judged, counted: true }
    }

    /// A file with what a tool is to do.
    fn script(&self, name: &str, text: &str) -> String {
        let path = self.place.scratch().join(name);
        fs::write(&path, text).expect("a script");
        path.display().to_string()
    }

    fn password(&self) -> String {
        fs::read_to_string(self.place.secret("password")).expect("the password")
    }

    fn sftp(&self) -> Vec<Peer> {
        let (host, port, folder) = self.place.address();
        let (user, key) = (self.place.setting("username"), self.place.secret("private_key"));
        let known = self.place.config().join("known_hosts");
        let options = format!(
            "-o BatchMode=yes -o IdentitiesOnly=yes -i {} -o UserKnownHostsFile={} -p {port}",
            key.display(),
            known.display(),
        );
        let put = if self.sync { "put -f" } else { "put" };
        let mut batch = String::new();
        for file in &self.load.files {
            let _never_fails = writeln!(batch, "{put} {} {folder}/{}", file.path.display(), name(file));
        }
        let batch = self.script("sftp.batch", &batch);
        let line = format!("sftp -q -b {batch} {} {user}@{host}", options.replace(" -p ", " -P "));
        let openssh = Peer {
            name: if self.sync { "sftp_put_f" } else { "sftp_put" },
            command: line,
            syncs: self.sync,
            judged: self.load.large,
            counted: true,
        };
        let connect = format!("set sftp:connect-program \"ssh -a -x {options}\"");
        let lftp = self.lftp(&connect, &format!("sftp://{host}:{port}"), &user, "none", &folder);
        vec![openssh, Peer { counted: false, ..lftp }]
    }

    fn smbclient(&self) -> Peer {
        let (host, port, folder) = self.place.address();
        let (share, folder) = folder.trim_start_matches('/').split_once('/').expect("a folder in a share");
        let login =
            format!("username = {}\npassword = {}\n", self.place.setting("username"), self.password());
        let login = self.script("smbclient.login", &login);
        let commands = format!("prompt off; lcd {}; cd {folder}; mput *", self.source.display());
        let line = format!("smbclient //{host}/{share} -p {port} -A {login} -c '{commands}' 2>/dev/null");
        self.then_sync("smbclient", line, true)
    }

    fn ftp(&self) -> Vec<Peer> {
        let (host, port, folder) = self.place.address();
        let (user, password) = (self.place.setting("username"), self.password());
        let secured = self.place.kind() == Kind::Ftps;
        let set = if secured {
            "set ssl:verify-certificate no; set ftp:ssl-force true; set ftp:ssl-protect-data true"
        } else {
            "set ftp:ssl-allow no"
        };
        let lftp = self.lftp(set, &format!("ftp://{host}:{port}"), &user, &password, &folder);
        let tls = if secured { "--ssl-reqd --insecure " } else { "" };
        let curl =
            self.curl(&format!("{tls}--user '{user}:{password}'"), &format!("ftp://{host}:{port}/{folder}"));
        vec![Peer { judged: true, ..lftp }, Peer { judged: false, ..curl }]
    }

    fn webdav(&self) -> Vec<Peer> {
        let (host, port, folder) = self.place.address();
        let login = format!("--user '{}:{}'", self.place.setting("username"), self.password());
        vec![self.curl(&login, &format!("http://{host}:{port}{folder}"))]
    }

    fn lftp(&self, set: &str, server: &str, user: &str, password: &str, folder: &str) -> Peer {
        let copy = if self.load.large {
            format!("put -O {folder} {}/{}", self.source.display(), self.first())
        } else {
            format!("mirror -R --parallel={AT_ONCE} {} {folder}", self.source.display())
        };
        let script = format!(
            "set cmd:fail-exit true\nset net:max-retries 1\n{set}\nopen -u \"{user}\",\"{password}\" {server}\n{copy}\n"
        );
        let script = self.script("lftp.script", &script);
        self.then_sync("lftp", format!("lftp --norc -f {script}"), !self.load.large)
    }

    fn curl(&self, login: &str, base: &str) -> Peer {
        let mut config = String::new();
        for file in &self.load.files {
            let _never_fails = writeln!(
                config,
                "upload-file = \"{}\"\nurl = \"{base}/{}\"",
                file.path.display(),
                name(file)
            );
        }
        let config = self.script("curl.config", &config);
        // One connection each for many small files: faster here than one after the other.
        let parallel = if self.load.large { String::new() } else { format!("-Z --parallel-max {AT_ONCE} ") };
        self.then_sync("curl", format!("curl -sSf {parallel}{login} -K {config} -o /dev/null"), true)
    }

    fn rclone(&self) -> Peer {
        let (kind, root) = (self.place.kind(), self.place.root());
        let remote = if kind == Kind::Local {
            root.display().to_string()
        } else {
            let (host, port, folder) = self.place.address();
            let user = self.place.setting("username");
            match kind {
                Kind::Sftp | Kind::SftpUnsynced => format!(
                    ":sftp,host={host},port={port},user={user},key_file='{}',known_hosts_file='{}',disable_hashcheck=true:{folder}",
                    self.place.secret("private_key").display(),
                    self.place.config().join("known_hosts").display(),
                ),
                Kind::Ftp | Kind::Ftps => format!(
                    ":ftp,host={host},port={port},user={user},pass='{}'{}:{folder}",
                    obscured(&self.password()),
                    if kind == Kind::Ftps { ",explicit_tls=true,no_check_certificate=true" } else { "" },
                ),
                Kind::WebDav => format!(
                    ":webdav,url='http://{host}:{port}{folder}',vendor=other,user={user},pass='{}':",
                    obscured(&self.password()),
                ),
                Kind::Local | Kind::Smb => unreachable!("{kind:?} is not for rclone"),
            }
        };
        let line = format!(
            "rclone --config /dev/null --retries 1 --transfers {AT_ONCE} -q copy {} \"{remote}\"",
            self.source.display()
        );
        self.then_sync("rclone", line, false)
    }
}

/// As rclone wants to be told a password.
fn obscured(password: &str) -> String {
    let output = Command::new("rclone").args(["obscure", password]).output().expect("rclone");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
