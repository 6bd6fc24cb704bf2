//! The line between the connector and a server, where it can be broken: cut at the very moment that counts, half-open, or
//! telling the opposite of what was answered.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// When a line is cut, once: at a request that holds certain words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Before the server hears of it.
    BeforeItIsHeard,
    /// When the server has done it and answers: the answer is lost.
    BeforeItsAnswer,
    /// The server has done it, and this comes in the place of its answer.
    Answered(&'static str),
    /// The same, and then nothing any more.
    AnsweredLast(&'static str),
}

/// Passes bytes on between the connector and a server.
pub struct Line {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    server: u16,
    cut: Option<(&'static str, Cut)>,
    was_cut: AtomicBool,
    dead: AtomicBool,
    servers_side: Mutex<Vec<TcpStream>>,
}

impl Line {
    /// A line that is cut at the first request with these words.
    pub fn cut_at(server: u16, words: &'static str, cut: Cut) -> Self {
        Self::start(server, Some((words, cut)))
    }

    /// A line that works until [`Self::go_half_open`].
    pub fn whole(server: u16) -> Self {
        Self::start(server, None)
    }

    fn start(server: u16, cut: Option<(&'static str, Cut)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (was_cut, dead) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { server, cut, was_cut, dead, servers_side: Mutex::default() });
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                carry(client, &of_thread);
            }
        });
        Self { port, shared }
    }

    /// Whether the moment came.
    pub fn was_cut(&self) -> bool {
        self.shared.was_cut.load(Ordering::SeqCst)
    }

    /// From now on the server is gone, as if its machine had lost its power, and nobody says so to the connector: what it
    /// sends vanishes, nothing comes back. New connections are taken, and as silent.
    pub fn go_half_open(&self) {
        self.shared.dead.store(true, Ordering::SeqCst);
        for socket in self.shared.servers_side.lock().unwrap().drain(..) {
            drop(socket.shutdown(Shutdown::Both));
        }
    }

    /// New connections reach the server again.
    pub fn heal(&self) {
        self.shared.dead.store(false, Ordering::SeqCst);
    }
}

fn carry(client: TcpStream, shared: &Arc<Shared>) {
    if shared.dead.load(Ordering::SeqCst) {
        thread::spawn(move || swallow(client));
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.server)) else { return };
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    shared.servers_side.lock().unwrap().push(server.try_clone().unwrap());
    // Set when the answer to come is the one that is lost.
    let at_answer = Arc::new(AtomicBool::new(false));
    let asking = {
        let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let (shared, at_answer) = (Arc::clone(shared), Arc::clone(&at_answer));
        move || ask(from, to, &shared, &at_answer)
    };
    let shared = Arc::clone(shared);
    thread::spawn(asking);
    thread::spawn(move || answer(server, client, &shared, &at_answer));
}

fn ask(mut from: TcpStream, mut to: TcpStream, shared: &Shared, at_answer: &AtomicBool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if let Some((words, cut)) = shared.cut
            && buffer[..n].windows(words.len()).any(|window| window == words.as_bytes())
            && !shared.was_cut.swap(true, Ordering::SeqCst)
        {
            match cut {
                Cut::BeforeItIsHeard => break,
                Cut::BeforeItsAnswer | Cut::Answered(_) | Cut::AnsweredLast(_) => {
                    at_answer.store(true, Ordering::SeqCst)
                }
            }
        }
        if to.write_all(&buffer[..n]).is_err() {
            if shared.dead.load(Ordering::SeqCst) {
                return swallow(from);
            }
            break;
        }
    }
    if !shared.dead.load(Ordering::SeqCst) {
        drop((to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both)));
    }
}

fn answer(mut from: TcpStream, mut to: TcpStream, shared: &Shared, at_answer: &AtomicBool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if at_answer.swap(false, Ordering::SeqCst) {
            let (other, last) = match shared.cut {
                // The rest of what the server said is nobody's answer.
                Some((_, Cut::Answered(other))) => (other, other.starts_with("HTTP/")),
                Some((_, Cut::AnsweredLast(other))) => (other, true),
                _ => break,
            };
            if to.write_all(other.as_bytes()).is_err() || last {
                break;
            }
        } else if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    if !shared.dead.load(Ordering::SeqCst) {
        drop((to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both)));
    }
}

/// Reads until the connector gives up, and keeps the socket open meanwhile.
fn swallow(mut from: TcpStream) {
    drop(std::io::copy(&mut from, &mut std::io::sink()));
}
