//! Real Tryton servers in folders of their own, on free loopback ports, for tests: 8.2 from PyPI, which `tests/run` installs
//! into `target/test-crm`, and Debian's 6.0, whose wire is older. A database takes half a minute to be made: it is made
//! once, and each server gets a copy. Another crate's library can include it as a public module with `#[path]`, beside
//! `server`.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use super::server::{Core, Server};
use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The name of every server's database.
pub const DATABASE: &str = "crm";
/// Who may do nothing but what every user may: read and write parties.
pub const USER: &str = "passerelle";
/// And with what: characters that have to be quoted somewhere.
pub const PASSWORD: &str = "pass \"word\"\\é:1";

/// Which release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// 8.2, from PyPI.
    V8_2,
    /// 6.0, from Debian: another path, and no time of change before the first change.
    V6_0,
}

impl Release {
    fn name(self) -> &'static str {
        match self {
            Self::V8_2 => "8.2",
            Self::V6_0 => "6.0",
        }
    }

    /// One of its programs.
    fn program(self, name: &str) -> PathBuf {
        match self {
            Self::V8_2 => venv().join("bin").join(name),
            Self::V6_0 => Path::new("/usr/bin").join(name),
        }
    }
}

/// A running server. Stopped when dropped.
pub struct Tryton {
    release: Release,
    core: Core,
}

impl Tryton {
    /// Starts a server that keeps everything in `dir`, with a fresh database.
    pub fn start(release: Release, dir: &Path) -> Self {
        Self::start_after(release, dir, "")
    }

    /// The same, after SQL statements have been run on its database: for data that would take too long by its API.
    pub fn start_after(release: Release, dir: &Path, sql: &str) -> Self {
        let core = Core::new(dir);
        fs::create_dir_all(core.at("db")).unwrap();
        fs::copy(template(release), core.at("db").join(DATABASE).with_extension("sqlite")).unwrap();
        let mut server = Self { release, core };
        if !sql.is_empty() {
            server.sql(sql);
        }
        server.start_somewhere();
        server
    }

    /// The URL of its database, as resources write it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/{DATABASE}/", self.port())
    }

    /// Runs SQL statements on its database, whether it runs or not, and gives what they select: a line for each row, its
    /// columns apart by `|`.
    pub fn sql(&self, statements: &str) -> String {
        let script = "import sqlite3, sys\n\
            base = sqlite3.connect(sys.argv[1], timeout=60)\n\
            for statement in sys.stdin.read().split(';'):\n\
            \x20   for row in base.execute(statement):\n\
            \x20       print('|'.join('' if column is None else str(column) for column in row))\n\
            base.commit()\n";
        let file = self.core.at("db").join(DATABASE).with_extension("sqlite");
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(file);
        run(command, statements)
    }
}

impl Server for Tryton {
    fn core(&self) -> &Core {
        &self.core
    }

    fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    fn command(&self) -> Command {
        let listen = format!("[web]\nlisten = 127.0.0.1:{}\n", self.port());
        self.core.write("trytond.conf", configuration(&self.core.at("db")) + &listen);
        let mut command = Command::new(self.release.program("trytond"));
        command.arg("-c").arg(self.core.at("trytond.conf")).args(["-d", DATABASE]);
        clean(&mut command);
        command
    }
}

fn configuration(databases: &Path) -> String {
    format!("[database]\nuri = sqlite://\npath = {}\n", databases.display())
}

/// Debian's programs want Debian's Python, whatever the developer's shell prefers.
fn clean(command: &mut Command) {
    command.env_remove("PYTHONHOME").env_remove("PYTHONPATH").env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
}

/// Where `tests/run` installs what comes from PyPI.
pub(super) fn venv() -> PathBuf {
    let me = env::current_exe().unwrap();
    let found = me.ancestors().map(|dir| dir.join("test-crm")).find(|dir| dir.join("bin/python").exists());
    found.expect("no CRM servers: `bash tests/run` installs them into target/test-crm")
}

/// The interpreter with the clients' libraries.
#[must_use]
pub fn python() -> PathBuf {
    venv().join("bin/python")
}

/// A database that has been made once, and is made now if it was not.
fn template(release: Release) -> PathBuf {
    let folder = venv();
    let ready = folder.join(format!("tryton-{}.sqlite", release.name()));
    let lock = fs::File::create(folder.join("template.lock")).unwrap();
    lock.lock().unwrap();
    if !ready.exists() {
        let making = folder.join("making");
        drop(fs::remove_dir_all(&making));
        make(release, &making);
        fs::rename(making.join(DATABASE).with_extension("sqlite"), &ready).unwrap();
        fs::remove_dir_all(&making).unwrap();
    }
    ready
}

/// A database with the modules of parties, and the user.
fn make(release: Release, dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let (conf, password) = (dir.join("trytond.conf"), dir.join("password"));
    fs::write(&conf, configuration(dir)).unwrap();
    fs::write(&password, "admin of the tests\n").unwrap();
    fs::write(dir.join(DATABASE).with_extension("sqlite"), "").unwrap();
    let mut admin = Command::new(release.program("trytond-admin"));
    admin.arg("-c").arg(&conf).args(["-d", DATABASE, "--email", "admin@example.com", "-u", "party"]);
    admin.arg("--activate-dependencies").env("TRYTONPASSFILE", &password);
    run(admin, "");
    let script = "import sys\n\
        try:\n\
        \x20   from trytond.config import config\n\
        except ImportError:\n\
        \x20   from trytond import config\n\
        config.update_etc(sys.argv[1])\n\
        from trytond.pool import Pool\n\
        from trytond.transaction import Transaction\n\
        Pool.start()\n\
        pool = Pool('crm')\n\
        with Transaction().start('crm', 0):\n\
        \x20   pool.init()\n\
        with Transaction().start('crm', 1) as transaction:\n\
        \x20   login, password = sys.stdin.read().split('\\n', 1)\n\
        \x20   pool.get('res.user').create([{'name': login, 'login': login, 'password': password}])\n\
        \x20   transaction.commit()\n";
    let python = match release {
        Release::V8_2 => python(),
        Release::V6_0 => PathBuf::from("/usr/bin/python3"),
    };
    let mut command = Command::new(python);
    command.args(["-c", script]).arg(&conf);
    run(command, &format!("{USER}\n{PASSWORD}"));
}

/// Runs a program to its end and gives what it printed.
fn run(mut command: Command, input: &str) -> String {
    clean(&mut command);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child
        .unwrap_or_else(|error| panic!("{command:?}: {error}; bash tests/run installs what the tests need"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
