//! Each kind of place: a folder, its server if it needs one, and the resource that leads there.

use super::{
    Abilities, Place, check,
    dav::{self, Dav},
    dav_settings,
    proftpd::{Proftpd, Speaks},
    s3, s3_settings,
    samba::{self, Samba},
    server::Server as _,
    sftp_settings,
    sshd::{Options, Sshd},
    vsftpd::{self, Tls, Vsftpd},
};
use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};
use tempfile::TempDir;

impl Place {
    /// A local folder.
    pub fn local() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        Self::local_at(dir, root)
    }

    /// A local folder that is `root`.
    pub fn local_at(dir: TempDir, root: PathBuf) -> Self {
        let base = dir.path().join("config");
        let settings = format!("connector = \"file\"\nurl = \"file://{}\"", root.display());
        let connector = check(&base, &settings).unwrap();
        Self::new(dir, root, connector, Abilities::ALL)
    }

    /// A folder on an OpenSSH server.
    pub fn sftp() -> Self {
        Self::sftp_with(Options::default(), "")
    }

    /// A folder on an unusual server, or with more settings.
    pub fn sftp_with(options: Options, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        Self::sftp_at(dir, root, options, settings)
    }

    /// A folder on an OpenSSH server that is `root`.
    pub fn sftp_at(dir: TempDir, root: PathBuf, options: Options, settings: &str) -> Self {
        let base = dir.path().join("config");
        std::fs::create_dir(&base).unwrap();
        let sshd = Sshd::start_with(&dir.path().join("sshd"), options);
        std::fs::write(base.join("known_hosts"), sshd.known_hosts()).unwrap();
        let connector = check(&base, &sftp_settings(&sshd, &root, &sshd.client_key(), settings)).unwrap();
        let abilities = Abilities { tells_folders_apart: false, tells_files_apart: false, ..Abilities::ALL };
        Self { sshd: Some(sshd), ..Self::new(dir, root, connector, abilities) }
    }

    /// A folder on an OpenSSH server that offers only what the protocol itself has: it neither syncs nor replaces.
    pub fn sftp_without_extensions() -> Self {
        let sftp = "internal-sftp -P posix-rename,fsync,statvfs,fstatvfs,hardlink,limits,expand-path";
        let mut place = Self::sftp_with(Options { sftp: sftp.to_owned(), ..Options::default() }, "");
        place.abilities.syncs = false;
        place.abilities.replaces_at_once = false;
        place
    }

    /// A folder on an FTP server.
    pub fn ftp(tls: Tls) -> Self {
        Self::ftp_with(tls, "", "")
    }

    /// A folder on an unusual FTP server, or with more settings.
    pub fn ftp_with(tls: Tls, extra: &str, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        Self::ftp_at(dir, root, tls, extra, settings)
    }

    /// A folder on an FTP server that is `root`.
    pub fn ftp_at(dir: TempDir, root: PathBuf, tls: Tls, extra: &str, settings: &str) -> Self {
        let base = dir.path().join("config");
        std::fs::create_dir(&base).unwrap();
        let vsftpd = Vsftpd::start(&dir.path().join("vsftpd"), tls, extra);
        std::fs::write(base.join("ftp-password"), vsftpd::PASSWORD).unwrap();
        let connector = check(&base, &vsftpd.settings(&root, settings)).unwrap();
        let abilities = Abilities {
            tells_folders_apart: false,
            tells_files_apart: false,
            syncs: false,
            takes_line_ends: false,
            claims_names: false,
            ..Abilities::ALL
        };
        Self { vsftpd: Some(vsftpd), ..Self::new(dir, root, connector, abilities) }
    }

    /// A folder on a server that is neither OpenSSH nor vsftpd.
    pub fn proftpd(speaks: Speaks, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        Self::proftpd_at(dir, root, speaks, extra)
    }

    /// The same where the account may upload so many bytes in all.
    pub fn proftpd_with_quota(bytes: u64) -> Self {
        let mut place = Self::proftpd(Speaks::Ftp, "");
        let server = place.proftpd.as_mut().unwrap();
        server.limit_to(bytes);
        server.restart();
        place
    }

    /// The same where the folder is `root`.
    pub fn proftpd_at(dir: TempDir, root: PathBuf, speaks: Speaks, extra: &str) -> Self {
        let base = dir.path().join("config");
        std::fs::create_dir(&base).unwrap();
        let proftpd = Proftpd::start(&dir.path().join("proftpd"), speaks, extra);
        proftpd.prepare(&base);
        let connector = check(&base, &proftpd.settings(&root, "")).unwrap();
        let is_sftp = speaks == Speaks::Sftp;
        let abilities = Abilities {
            tells_folders_apart: false,
            tells_files_apart: false,
            syncs: is_sftp,
            takes_line_ends: is_sftp,
            refuses_long_paths: !is_sftp,
            claims_names: false,
            ..Abilities::ALL
        };
        Self { proftpd: Some(proftpd), ..Self::new(dir, root, connector, abilities) }
    }

    /// A folder on a WebDAV server.
    pub fn webdav(kind: dav::Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("served/root");
        std::fs::create_dir_all(&root).unwrap();
        Self::webdav_at(dir, root, kind, None, "")
    }

    /// A folder on a WebDAV server over TLS, whose certificate is trusted.
    pub fn webdavs(kind: dav::Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("served/root");
        std::fs::create_dir_all(&root).unwrap();
        let identity = dav::Identity::self_signed();
        let trusted = dir.path().join("ca.pem");
        std::fs::write(&trusted, &identity.certificate).unwrap();
        let settings = format!("ca_file = \"{}\"", trusted.display());
        Self::webdav_at(dir, root, kind, Some(identity), &settings)
    }

    /// A folder on a WebDAV server that is `root`, in a folder that can be served.
    pub fn webdav_at(
        dir: TempDir,
        root: PathBuf,
        kind: dav::Kind,
        identity: Option<dav::Identity>,
        settings: &str,
    ) -> Self {
        let base = dir.path().join("config");
        std::fs::create_dir(&base).unwrap();
        // So that the server, which is another user, gets there.
        for folder in [dir.path(), root.parent().unwrap(), &root] {
            // One that is read-only has them already.
            drop(std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)));
        }
        let server = Dav::start(kind, &dir.path().join("dav"), root.parent().unwrap(), identity, "");
        std::fs::write(base.join("password"), dav::PASSWORD).unwrap();
        let connector = check(&base, &dav_settings(&server, settings)).unwrap();
        let abilities = Abilities {
            tells_folders_apart: false,
            tells_files_apart: false,
            syncs: false,
            sees_links: false,
            sees_pipes: false,
            takes_line_ends: false,
            takes_odd_names: true,
            shows_parts: false,
            replaces_at_once: kind == dav::Kind::Nginx,
            claims_names: false,
            lists_dot_names: kind != dav::Kind::Nginx,
            says_why: false,
            ..Abilities::ALL
        };
        Self { dav: Some(server), ..Self::new(dir, root, connector, abilities) }
    }

    /// A prefix of a bucket in an object store, and the store.
    pub fn s3(kind: s3::Kind) -> (Self, s3::S3) {
        let dir = tempfile::tempdir().unwrap();
        let store = s3::S3::start(kind, &dir.path().join("s3"));
        let root = store.bucket().join("root");
        std::fs::create_dir(&root).unwrap();
        let place = Self::local_at(dir, root);
        std::fs::write(place.base.join("id"), s3::ACCESS_KEY_ID).unwrap();
        std::fs::write(place.base.join("key"), s3::SECRET_ACCESS_KEY).unwrap();
        let connector = check(&place.base, &s3_settings(&store.endpoint(), "")).unwrap();
        let abilities = Abilities {
            tells_folders_apart: false,
            sees_links: false,
            sees_pipes: false,
            takes_line_ends: false,
            claims_names: kind == s3::Kind::S3s,
            ..Abilities::ALL
        };
        (Self { connector, abilities, ..place }, store)
    }

    /// A folder on an SMB share.
    pub fn smb(encrypted: bool) -> Self {
        Self::smb_with(samba::Options { encrypted, ..samba::Options::default() }, "")
    }

    /// A folder on an unusual share, or with more settings.
    pub fn smb_with(options: samba::Options, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("share/root");
        std::fs::create_dir_all(&root).unwrap();
        Self::smb_at(dir, root, options, settings)
    }

    /// A folder on an SMB share that is `root`, in the folder that is shared.
    pub fn smb_at(dir: TempDir, root: PathBuf, options: samba::Options, settings: &str) -> Self {
        let base = dir.path().join("config");
        std::fs::create_dir(&base).unwrap();
        let server = Samba::start(&dir.path().join("samba"), root.parent().unwrap(), options);
        std::fs::write(base.join("smb-password"), samba::PASSWORD).unwrap();
        let connector = check(&base, &server.settings("/root", settings)).unwrap();
        let abilities = Abilities {
            // The server follows links by itself, as far as its share goes, and shows where they lead.
            sees_links: false,
            sees_pipes: false,
            takes_line_ends: false,
            takes_odd_names: false,
            tells_cases_apart: false,
            claims_names: false,
            tells_unreadable_names: false,
            ..Abilities::ALL
        };
        Self { samba: Some(server), ..Self::new(dir, root, connector, abilities) }
    }
}
