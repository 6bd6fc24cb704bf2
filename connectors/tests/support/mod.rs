//! What the tests share: resources built from a real configuration folder, calls, payloads and gates.

pub mod dav;
pub mod line;
mod places;
pub mod port;
pub mod proftpd;
pub mod s3;
pub mod samba;
pub mod server;
pub mod sshd;
pub mod vsftpd;

use aws_lc_rs::digest::{Context, SHA256, digest};
use dav::Dav;
use passerelle_config::Diagnostics;
use passerelle_connectors::{
    Call, Company, Demands, DynConnector, Failure, Gate, Input, Intent, Outcome, Output, Produced, Progress,
    REGISTRY,
};
use proftpd::Proftpd;
use samba::Samba;
use serde_json::Value;
use server::Server;
use sshd::Sshd;
use std::{
    future::Future,
    io::{self, Cursor},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context as Waker, Poll},
    time::Duration,
};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vsftpd::Vsftpd;

/// Checks a resource's settings: `settings` is the body of `[resources.test]`.
pub fn check(base: &Path, settings: &str) -> Result<Arc<dyn DynConnector>, String> {
    std::fs::create_dir_all(base.join("resources.d")).unwrap();
    std::fs::write(base.join("agent.toml"), "[hub]\nurl = \"https://hub.example.com\"\n").unwrap();
    std::fs::write(base.join("resources.d/test.toml"), format!("[resources.test]\n{settings}\n")).unwrap();
    let config = passerelle_config::load(base).map_err(|diagnostics| diagnostics.to_string())?;
    let resource = config.resources.first().unwrap();
    let entry = REGISTRY.iter().find(|entry| entry.name == resource.connector).unwrap();
    let mut diagnostics = Diagnostics::default();
    match entry.check(&resource.section, &mut diagnostics) {
        Some(checked) => checked.build(base).map_err(|error| error.to_string()),
        None => Err(diagnostics.to_string()),
    }
}

/// What a kind of place can and cannot do: chooses and shapes the cases of the contract suite.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// A folder that was replaced by another one of the same path is told from the old one.
    pub tells_folders_apart: bool,
    /// A file that was replaced by another one of the same size and second is told from the old one.
    pub tells_files_apart: bool,
    /// What is confirmed is on the target's disk.
    pub syncs: bool,
    /// Symbolic links show, and are held to the root.
    pub sees_links: bool,
    /// Pipes and the like are told from files.
    pub sees_pipes: bool,
    /// A name may hold a line end.
    pub takes_line_ends: bool,
    /// A name may be any text, and not only what Windows takes.
    pub takes_odd_names: bool,
    /// A part can be seen while it is being written.
    pub shows_parts: bool,
    /// Replacing is one step.
    pub replaces_at_once: bool,
    /// A name that must be free is known to be taken in one step.
    pub claims_names: bool,
    /// Names that begin with a dot are listed.
    pub lists_dot_names: bool,
    /// A path that is too long is refused, rather than answered by hanging up.
    pub refuses_long_paths: bool,
    /// A refusal says whether the account's rights are the reason.
    pub says_why: bool,
    /// `A` and `a` are two names.
    pub tells_cases_apart: bool,
    /// Names that are no UTF-8 are at least counted, rather than hidden by the server.
    pub tells_unreadable_names: bool,
}

impl Abilities {
    const ALL: Self = Self {
        tells_folders_apart: true,
        tells_files_apart: true,
        syncs: true,
        sees_links: true,
        sees_pipes: true,
        takes_line_ends: true,
        takes_odd_names: true,
        shows_parts: true,
        replaces_at_once: true,
        claims_names: true,
        lists_dot_names: true,
        refuses_long_paths: true,
        says_why: true,
        tells_cases_apart: true,
        tells_unreadable_names: true,
    };
}

/// How requests begin.
#[derive(Debug, Clone, Copy)]
pub struct EffectWords {
    pub rename: &'static str,
    pub delete: &'static str,
    /// Answers by which such a server says that it did not do it.
    pub refusals: &'static [&'static str],
}

/// A resource and the folder that it is, as this machine sees it.
pub struct Place {
    pub connector: Arc<dyn DynConnector>,
    pub root: PathBuf,
    pub abilities: Abilities,
    pub sshd: Option<Sshd>,
    pub vsftpd: Option<Vsftpd>,
    pub proftpd: Option<Proftpd>,
    pub dav: Option<Dav>,
    pub samba: Option<Samba>,
    /// The configuration folder; what else the test needs goes there.
    pub base: PathBuf,
    /// The resource's settings.
    pub settings: String,
    _dir: TempDir,
}

impl Place {
    /// A place whose server, if it has one, the caller adds.
    fn new(dir: TempDir, root: PathBuf, connector: Arc<dyn DynConnector>, abilities: Abilities) -> Self {
        let base = dir.path().join("config");
        let settings = std::fs::read_to_string(base.join("resources.d/test.toml")).unwrap();
        let settings = settings.replacen("[resources.test]\n", "", 1);
        let (sshd, vsftpd, proftpd, dav, samba) = (None, None, None, None, None);
        Self { connector, root, abilities, sshd, vsftpd, proftpd, dav, samba, base, settings, _dir: dir }
    }

    /// The server that it is on; `None` for a folder.
    pub fn server(&mut self) -> Option<&mut dyn Server> {
        None.or(self.sshd.as_mut().map(|server| server as &mut dyn Server))
            .or(self.vsftpd.as_mut().map(|server| server as &mut dyn Server))
            .or(self.proftpd.as_mut().map(|server| server as &mut dyn Server))
            .or(self.dav.as_mut().map(|server| server as &mut dyn Server))
            .or(self.samba.as_mut().map(|server| server as &mut dyn Server))
    }

    /// A connector for the same place that reaches its server through another port.
    pub fn through(&mut self, port: u16) -> Arc<dyn DynConnector> {
        let own = self.server().expect("a place with a server").port();
        let known_hosts = self.base.join("known_hosts");
        if let Ok(lines) = std::fs::read_to_string(&known_hosts) {
            let line = lines.lines().find(|line| line.contains(&format!("]:{own} "))).unwrap();
            let too = line.replace(&format!("]:{own} "), &format!("]:{port} "));
            std::fs::write(known_hosts, format!("{lines}{too}\n")).unwrap();
        }
        let other = self.settings.replace(&format!(":{own}/"), &format!(":{port}/"));
        check(&self.base, &other).unwrap()
    }

    /// How the requests begin that rename and delete, where a line can read them.
    pub fn effect_words(&self) -> Option<EffectWords> {
        if self.settings.contains("url = \"ftp://") {
            let refusals = &["550 No.\r\n", "450 Not now.\r\n", "226 Hm.\r\n"];
            Some(EffectWords { rename: "RNTO ", delete: "DELE ", refusals })
        } else if self.settings.contains("url = \"webdav://") {
            let refusals = &[
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                "HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                "HTTP/1.1 423 Locked\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                // RFC 9110 §15.3.3: may be done later, or never.
                "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            ];
            Some(EffectWords { rename: "MOVE /", delete: "DELETE /", refusals })
        } else {
            None
        }
    }

    /// The same place by another connector.
    pub fn with(self, connector: Arc<dyn DynConnector>) -> Self {
        Self { connector, ..self }
    }

    /// What is in the file.
    pub fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub fn write(&self, path: &str, content: &[u8]) {
        // An object store may have taken the empty folder away.
        std::fs::create_dir_all(&self.root).unwrap();
        std::fs::write(self.root.join(path), content).unwrap();
    }

    pub fn has(&self, path: &str) -> bool {
        std::fs::symlink_metadata(self.root.join(path)).is_ok()
    }

    /// The names of unfinished files, anywhere below the root.
    pub fn parts(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop().filter(|folder| folder.exists()) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else if name.starts_with(".passerelle-") {
                    found.push(name);
                }
            }
        }
        found
    }

    /// Runs an operation as the agent does: what it demands first, then the attempt.
    pub async fn run(
        &self,
        call: &Call,
        operation: &str,
        params: &Value,
        input: Option<Input>,
    ) -> Result<Outcome, Failure> {
        let Demands { paths, .. } = self.connector.demands(operation, params)?;
        assert!(!paths.is_empty(), "the policy has nothing to check {operation} by");
        self.connector.execute(call, operation, params, input, &mut sink().0).await
    }

    /// An operation without a payload, as a job of its own.
    pub async fn ask(&self, operation: &str, params: Value) -> Result<Value, Failure> {
        self.run(&call(), operation, &params, None).await.map(|outcome| outcome.result)
    }

    /// A drop as a job of its own.
    pub async fn drop(&self, params: Value, content: &[u8]) -> Result<Outcome, Failure> {
        self.run(&call(), "drop", &params, Some(payload(content))).await
    }

    /// A fetch as a job of its own, with what came out.
    pub async fn fetch(&self, params: Value) -> Result<(Value, Vec<u8>, Produced), Failure> {
        self.connector.demands("fetch", &params)?;
        let (mut output, content) = sink();
        let outcome = self.connector.execute(&call(), "fetch", &params, None, &mut output).await?;
        let produced = output.produced().cloned().unwrap();
        drop(output);
        let content = std::mem::take(&mut *content.lock().unwrap());
        Ok((outcome.result, content, produced))
    }
}

/// The settings of an SFTP resource.
pub fn sftp_settings(sshd: &Sshd, root: &Path, key: &Path, more: &str) -> String {
    format!(
        "connector = \"file\"\nurl = \"sftp://127.0.0.1:{}{}\"\nusername = \"{}\"\n\
         private_key = {{ file = \"{}\" }}\nknown_hosts = \"known_hosts\"\n{more}",
        sshd.port(),
        root.display(),
        sshd.user,
        key.display(),
    )
}

/// The settings of a WebDAV resource whose folder is `root`.
pub fn dav_settings(server: &Dav, more: &str) -> String {
    format!(
        "connector = \"file\"\nurl = \"{}\"\nusername = \"{}\"\npassword = {{ file = \"password\" }}\n{more}",
        server.url("root"),
        dav::USER,
    )
}

/// The settings of a resource in an object store.
pub fn s3_settings(endpoint: &str, more: &str) -> String {
    format!(
        "connector = \"file\"\nurl = \"s3://{}/root\"\nendpoint = \"{endpoint}\"\n\
         access_key_id = {{ file = \"id\" }}\nsecret_access_key = {{ file = \"key\" }}\n{more}",
        s3::BUCKET,
    )
}

/// The first attempt of a new job, whose gate is open.
pub fn call() -> Call {
    Call {
        job: Uuid::now_v7(),
        attempt: 1,
        timeout: Duration::from_secs(60),
        cancel: CancellationToken::new(),
        progress: Progress::default(),
        gate: Recorder::open(),
        prior_intent: None,
        traceparent: None,
        visible: passerelle_connectors::Visible::default(),
    }
}

/// A gate that remembers what it was asked.
#[derive(Default)]
pub struct Recorder {
    pub intents: Mutex<Vec<Intent>>,
    shut: bool,
    company: Option<Company>,
}

impl Recorder {
    pub fn open() -> Arc<Self> {
        Arc::default()
    }

    /// Remembers the intent and lets nobody through: to the target it looks as if the agent had been killed between
    /// journalling and acting.
    pub fn shut() -> Arc<Self> {
        Arc::new(Self { shut: true, ..Self::default() })
    }

    /// One of an agent beside others.
    pub fn beside(company: Company) -> Arc<Self> {
        Arc::new(Self { company: Some(company), ..Self::default() })
    }

    pub fn last(&self) -> Intent {
        self.intents.lock().unwrap().last().cloned().expect("the gate was not asked")
    }

    pub fn count(&self) -> usize {
        self.intents.lock().unwrap().len()
    }
}

impl Gate for Recorder {
    fn company(&self) -> Company {
        self.company.unwrap_or(Company::Alone)
    }

    fn pass<'a>(
        &'a self,
        intent: &'a Intent,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(async move {
            self.intents.lock().unwrap().push(intent.clone());
            if self.shut {
                Err(Failure::retry(passerelle_connectors::Code::Internal, "killed"))
            } else {
                Ok(())
            }
        })
    }
}

pub fn sha256(content: &[u8]) -> [u8; 32] {
    digest(&SHA256, content).as_ref().try_into().unwrap()
}

pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A payload in memory.
pub fn payload(content: &[u8]) -> Input {
    let reader = Box::new(Cursor::new(content.to_vec()));
    Input::new(reader, content.len() as u64, sha256(content), "text/csv".to_owned())
}

/// A payload of any size that takes no memory, and its digest.
pub fn large_payload(size: u64) -> (Input, [u8; 32]) {
    let mut context = Context::new(&SHA256);
    let block = block();
    let mut left = size;
    while left > 0 {
        let n = left.min(block.len() as u64);
        context.update(&block[..n as usize]);
        left -= n;
    }
    let digest: [u8; 32] = context.finish().as_ref().try_into().unwrap();
    let reader = Box::new(Pattern { block, offset: 0, left: size });
    (Input::new(reader, size, digest, "application/octet-stream".to_owned()), digest)
}

fn block() -> Vec<u8> {
    // A prime length, so that shifted or repeated slices show in the digest.
    (0..65_521_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Repeats a block.
struct Pattern {
    block: Vec<u8>,
    offset: usize,
    left: u64,
}

impl AsyncRead for Pattern {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Waker<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let n = buffer.remaining().min(self.block.len() - self.offset).min(left);
        buffer.put_slice(&self.block[self.offset..self.offset + n]);
        self.offset = (self.offset + n) % self.block.len();
        self.left -= n as u64;
        Poll::Ready(Ok(()))
    }
}

/// A payload that gives `content` and then waits for ever, though more was announced.
pub fn stalling_payload(content: Vec<u8>) -> Input {
    struct Stalling(Cursor<Vec<u8>>);
    impl AsyncRead for Stalling {
        fn poll_read(
            mut self: Pin<&mut Self>,
            waker: &mut Waker<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.0.position() == self.0.get_ref().len() as u64 {
                return Poll::Pending;
            }
            Pin::new(&mut self.0).poll_read(waker, buffer)
        }
    }
    let announced = content.len() as u64 + 1;
    Input::new(Box::new(Stalling(Cursor::new(content))), announced, [0; 32], "text/csv".to_owned())
}

/// An output that keeps what is written to it.
pub fn sink() -> (Output, Arc<Mutex<Vec<u8>>>) {
    sink_of(u64::MAX)
}

/// An output that takes `max` bytes.
pub fn sink_of(max: u64) -> (Output, Arc<Mutex<Vec<u8>>>) {
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl AsyncWrite for Sink {
        fn poll_write(self: Pin<&mut Self>, _: &mut Waker<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Waker<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Waker<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    let content = Arc::default();
    (Output::new(Box::new(Sink(Arc::clone(&content))), max), content)
}
