//! A TCP proxy that breaks connections in the ways networks do: cut, half-open, stalled, slow, repeated.

use crate::{frames::Frames, free_port};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, sink},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
};

/// How much of a connection's beginning is kept for [`Proxy::replay`].
const KEPT: usize = 16 * 1024;

#[derive(Debug, Clone, Default)]
struct Control {
    refuse: bool,
    stalled: bool,
    bytes_per_second: Option<u64>,
    latency: Option<Duration>,
    /// How many pieces have gone to the target, or come back from it, when the next one is held back.
    hold_after: Option<u64>,
    hold_answers_after: Option<u64>,
    cuts: u32,
    halves: u32,
}

struct Shared {
    control: watch::Sender<Control>,
    connections: AtomicUsize,
    asked: AtomicU64,
    answered: AtomicU64,
    pieces: AtomicU64,
    answer_pieces: AtomicU64,
    holding: AtomicUsize,
    newest: Mutex<Newest>,
}

/// The connection that was made last.
#[derive(Default)]
struct Newest {
    number: usize,
    began: Option<Instant>,
    /// What was sent on it first.
    beginning: Vec<u8>,
    answered: bool,
}

impl Shared {
    /// Does something with the newest connection, if it is this one.
    fn if_newest(&self, number: usize, does: impl FnOnce(&mut Newest)) {
        let mut newest = self.newest.lock().expect("the newest connection");
        if newest.number == number {
            does(&mut newest);
        }
    }

    fn count_asked(&self, bytes: &[u8], ended: bool) {
        self.asked.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        self.pieces.fetch_add(u64::from(ended), Ordering::SeqCst);
    }

    fn count_answered(&self, bytes: &[u8], ended: bool) {
        self.answered.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        self.answer_pieces.fetch_add(u64::from(ended), Ordering::SeqCst);
    }
}

/// The proxy; it ends with the test.
pub struct Proxy {
    port: u16,
    target: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts a proxy in front of a port on 127.0.0.1.
    ///
    /// # Panics
    /// If its own port is taken.
    pub async fn start(target: u16) -> Self {
        let port = free_port();
        let target = SocketAddr::from(([127, 0, 0, 1], target));
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port for the proxy");
        let shared = Arc::new(Shared {
            control: watch::Sender::new(Control::default()),
            connections: AtomicUsize::new(0),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            pieces: AtomicU64::new(0),
            answer_pieces: AtomicU64::new(0),
            holding: AtomicUsize::new(0),
            newest: Mutex::default(),
        });
        let of_task = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if of_task.control.borrow().refuse {
                    continue;
                }
                of_task.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(carry(client, target, Arc::clone(&of_task)));
            }
        });
        Self { port, target, shared }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address for an HTTP client.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How many connections it has taken.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// When the newest connection was made, if the target has answered on it.
    ///
    /// # Panics
    /// Never but after a panic of the proxy itself.
    #[must_use]
    pub fn newest_answered(&self) -> Option<Instant> {
        let newest = self.shared.newest.lock().expect("the newest connection");
        newest.began.filter(|_| newest.answered)
    }

    /// How many bytes have gone to the target, over all connections.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// How many bytes have come back from the target, over all connections.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Ends all connections of this moment on both sides.
    pub fn cut(&self) {
        self.shared.control.send_modify(|control| control.cuts += 1);
    }

    /// Ends all connections of this moment towards the target, while the client goes on talking to nobody.
    pub fn half_open(&self) {
        self.shared.control.send_modify(|control| control.halves += 1);
    }

    /// From now on no byte moves on any connection, though all stay open; `false` lets them move again.
    pub fn stall(&self, stalled: bool) {
        self.shared.control.send_modify(|control| control.stalled = stalled);
    }

    /// From now on connections are closed as soon as they are made; `false` lets them through again.
    pub fn refuse(&self, refuse: bool) {
        self.shared.control.send_modify(|control| control.refuse = refuse);
    }

    /// Lets this many bytes a second through in each direction of each connection; `None`: all.
    pub fn slow(&self, bytes_per_second: Option<u64>) {
        self.shared.control.send_modify(|control| control.bytes_per_second = bytes_per_second);
    }

    /// Holds each piece back for so long in each direction; `None`: not at all.
    pub fn latency(&self, latency: Option<Duration>) {
        self.shared.control.send_modify(|control| control.latency = latency);
    }

    /// Lets this many more pieces through to the target and then none, while all connections stay open; `None` lets
    /// them move again. A piece is what one read gives (one request of a protocol that asks and waits), or one frame of a
    /// WebSocket, so that a step can be picked out.
    pub fn hold_after(&self, pieces: Option<u64>) {
        let now = self.shared.pieces.load(Ordering::SeqCst);
        self.shared.control.send_modify(|control| control.hold_after = pieces.map(|more| now + more));
    }

    /// The same for what the target sends back.
    pub fn hold_answers_after(&self, pieces: Option<u64>) {
        let now = self.shared.answer_pieces.load(Ordering::SeqCst);
        self.shared.control.send_modify(|control| control.hold_answers_after = pieces.map(|more| now + more));
    }

    /// Whether a piece is being held back.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.shared.holding.load(Ordering::SeqCst) > 0
    }

    /// Lets everything through again: no stall, no refusal, full speed.
    pub fn heal(&self) {
        self.shared.control.send_modify(|control| {
            *control = Control { cuts: control.cuts, halves: control.halves, ..Control::default() };
        });
    }

    /// Sends what the newest connection began with a second time, and gives the first line that is answered.
    ///
    /// # Panics
    /// If the target does not answer.
    pub async fn replay(&self) -> String {
        self.try_replay().await.expect("an answer of the target to what it was sent before")
    }

    /// The same, where the target may be away.
    ///
    /// # Errors
    /// If the target does not answer, or nothing was sent through the proxy yet.
    ///
    /// # Panics
    /// Never but after a panic of the proxy itself.
    pub async fn try_replay(&self) -> io::Result<String> {
        let beginning = self.shared.newest.lock().expect("the newest connection").beginning.clone();
        if beginning.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "nothing was sent through the proxy yet"));
        }
        let mut target = TcpStream::connect(self.target).await?;
        target.write_all(&beginning).await?;
        let mut answer = vec![0; 4096];
        let read = target.read(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer[..read]).lines().next().unwrap_or_default().to_owned())
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr, shared: Arc<Shared>) {
    let mut control = shared.control.subscribe();
    let born = control.borrow().clone();
    let Ok(mut upstream) = TcpStream::connect(target).await else { return };
    let _not_worth_failing = (client.set_nodelay(true), upstream.set_nodelay(true));
    let number = {
        let mut newest = shared.newest.lock().expect("the newest connection");
        let number = newest.number + 1;
        *newest = Newest { number, began: Some(Instant::now()), ..Newest::default() };
        number
    };
    let broken = {
        let (client_read, client_write) = client.split();
        let (target_read, target_write) = upstream.split();
        let asked = |bytes: &[u8], ended| {
            shared.if_newest(number, |newest| {
                let room = KEPT.saturating_sub(newest.beginning.len()).min(bytes.len());
                newest.beginning.extend_from_slice(&bytes[..room]);
            });
            shared.count_asked(bytes, ended);
        };
        let answered = |bytes: &[u8], ended| {
            shared.if_newest(number, |newest| newest.answered = true);
            shared.count_answered(bytes, ended);
        };
        // Whether the next piece is one too many.
        let held =
            |now: &Control| now.hold_after.is_some_and(|most| shared.pieces.load(Ordering::SeqCst) >= most);
        let answer_held = |now: &Control| {
            now.hold_answers_after.is_some_and(|most| shared.answer_pieces.load(Ordering::SeqCst) >= most)
        };
        let held = Hold { held: &held, holding: &shared.holding };
        let answer_held = Hold { held: &answer_held, holding: &shared.holding };
        let both = async {
            tokio::join!(
                pump(client_read, target_write, control.clone(), held, &asked),
                pump(target_read, client_write, control.clone(), answer_held, &answered)
            )
        };
        let mut watched = control.clone();
        tokio::select! {
            _ = both => return,
            changed = watched.wait_for(|now| now.cuts != born.cuts || now.halves != born.halves) => {
                changed.map(|now| now.halves != born.halves && now.cuts == born.cuts).unwrap_or(false)
            }
        }
    };
    drop(upstream);
    if broken {
        let mut nowhere = sink();
        tokio::select! {
            _ = tokio::io::copy(&mut client, &mut nowhere) => {}
            _ = control.wait_for(|now| now.cuts != born.cuts) => {}
        }
    }
}

/// When a piece is held back, and how many are.
#[derive(Clone, Copy)]
struct Hold<'a> {
    held: &'a (dyn Fn(&Control) -> bool + Sync),
    holding: &'a AtomicUsize,
}

/// Counts a held piece, also when its connection ends meanwhile.
struct Holding<'a>(&'a AtomicUsize);

impl<'a> Holding<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut control: watch::Receiver<Control>,
    hold: Hold<'_>,
    seen: &(dyn Fn(&[u8], bool) + Sync),
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut frames = Frames::default();
    loop {
        let limit = control.borrow().bytes_per_second;
        // A tenth of a second's worth at a time, so that a change of speed is felt soon.
        let most = limit.map_or(buffer.len(), |rate| {
            usize::try_from(rate / 10).unwrap_or(usize::MAX).clamp(1, buffer.len())
        });
        let read = from.read(&mut buffer[..most]).await?;
        let latency = control.borrow().latency;
        if let Some(latency) = latency {
            // Not a wait for something to happen: this is the long line itself.
            tokio::time::sleep(latency).await;
        }
        if read == 0 {
            if control.wait_for(|now| !now.stalled).await.is_err() {
                return Ok(());
            }
            return to.shutdown().await;
        }
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let begins = frames.at_end();
            let (piece, after) = rest.split_at(frames.piece(rest));
            rest = after;
            // A frame whose beginning went through is not held back in its middle.
            let held = |now: &Control| begins && (hold.held)(now);
            let holding = held(&control.borrow()).then(|| Holding::begin(hold.holding));
            if control.wait_for(|now| !now.stalled && !held(now)).await.is_err() {
                return Ok(());
            }
            drop(holding);
            seen(piece, frames.at_end());
            if let Some(rate) = limit {
                // Not a wait for something to happen: this is the slow line itself.
                tokio::time::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64)).await;
            }
            to.write_all(piece).await?;
        }
    }
}
