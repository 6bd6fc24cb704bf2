//! Requests and answers on one socket: ids, credits, chains, signatures, encryption.
//!
//! Several requests may be under way; answers are kept until they are asked for. The first error of the socket, or an
//! answer that does not fit or is not signed with the session's key, ends the conversation: nothing is ever sent twice.

use super::{error::from_io, protection::Protection};
use crate::file::backend::{FsError, Problem};
use smb2::{
    msg::{
        header::Header,
        transform::{TRANSFORM_PROTOCOL_ID, TransformHeader},
    },
    pack::{Pack, ReadCursor, Unpack, WriteCursor},
    types::{Command, CreditCharge, MessageId, SessionId, TreeId, flags::HeaderFlags, status::NtStatus},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

/// What one credit pays for.
const CREDIT: usize = 64 * 1024;
/// How many credits each request asks for, until there are [`ENOUGH`].
const CREDITS_WANTED: u16 = 64;
/// More than the requests of one session ever need at once.
const ENOUGH: usize = 512;
/// What an answer carries beside its content.
const OVERHEAD: usize = 64 * 1024;
/// How many buffers of answers are kept to be used again.
const SPARE: usize = 4;
/// How a frame begins: its length.
const LENGTH: usize = 4;

/// A request.
pub(super) struct Request<'a> {
    pub(super) command: Command,
    pub(super) body: &'a dyn Pack,
    /// What follows the body as it is.
    pub(super) data: &'a [u8],
    /// How much content it carries or asks for.
    pub(super) bytes: usize,
}

impl<'a> Request<'a> {
    pub(super) fn new(command: Command, body: &'a dyn Pack) -> Self {
        Self { command, body, data: &[], bytes: 0 }
    }
}

/// An answer.
pub(super) struct Reply {
    pub(super) status: NtStatus,
    pub(super) header: Header,
    frame: Vec<u8>,
    at: usize,
}

impl Reply {
    /// The whole message.
    pub(super) fn message(&self) -> &[u8] {
        self.frame.get(self.at..).unwrap_or_default()
    }

    /// What follows the header.
    pub(super) fn body(&self) -> &[u8] {
        self.message().get(Header::SIZE..).unwrap_or_default()
    }

    /// The body as what it should be.
    pub(super) fn read<T: Unpack>(&self) -> Result<T, FsError> {
        T::unpack(&mut ReadCursor::new(self.body())).map_err(|error| FsError::new(Problem::Protocol, error))
    }
}

/// The conversation.
pub(super) struct Wire {
    stream: TcpStream,
    timeout: Duration,
    next_id: u64,
    credits: usize,
    /// Whether a request may cost more than one credit.
    multi_credit: bool,
    /// The largest content of an answer.
    largest: usize,
    pub(super) session: SessionId,
    pub(super) tree: TreeId,
    protection: Option<Protection>,
    encrypting: bool,
    awaited: BTreeSet<u64>,
    /// Those whose answers interest nobody any more.
    ignored: BTreeSet<u64>,
    arrived: BTreeMap<u64, Reply>,
    out: Vec<u8>,
    spare: Vec<Vec<u8>>,
    broken: bool,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, timeout: Duration) -> Self {
        Self {
            stream,
            timeout,
            next_id: 0,
            credits: 1,
            multi_credit: false,
            largest: CREDIT,
            session: SessionId::NONE,
            tree: TreeId::default(),
            protection: None,
            encrypting: false,
            awaited: BTreeSet::new(),
            ignored: BTreeSet::new(),
            arrived: BTreeMap::new(),
            out: Vec::new(),
            spare: Vec::new(),
            broken: false,
        }
    }

    /// How long an answer may take from now on.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        // The system takes no limit of zero.
        self.timeout = timeout.max(Duration::from_millis(1));
        let limit = Some(self.timeout);
        if self.stream.set_read_timeout(limit).and_then(|()| self.stream.set_write_timeout(limit)).is_err() {
            self.broken = true;
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What the server has said of sizes.
    pub(super) fn set_sizes(&mut self, multi_credit: bool, largest: usize) {
        self.multi_credit = multi_credit;
        self.largest = largest;
    }

    /// From here on every message is signed, both ways.
    pub(super) fn protect(&mut self, protection: Protection) {
        self.protection = Some(protection);
    }

    /// From here on every message is encrypted, both ways: `false` if the server has agreed on no cipher.
    pub(super) fn encrypt(&mut self) -> bool {
        self.encrypting = self.protection.as_ref().is_some_and(Protection::can_encrypt);
        self.encrypting
    }

    pub(super) fn is_encrypting(&self) -> bool {
        self.encrypting
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Looks at the socket while nothing is asked: whether it is open, and nothing has come.
    pub(super) fn is_silent(&self) -> bool {
        let looked = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut [0]));
        let quiet = looked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).is_ok() && quiet
    }

    /// How much content a request may carry right now, if it is to carry at most `wanted`.
    pub(super) fn fundable(&self, wanted: usize) -> usize {
        let credits = if self.multi_credit { self.credits.max(1) } else { 1 };
        wanted.min(credits.saturating_mul(CREDIT))
    }

    fn charge(&self, bytes: usize) -> usize {
        if self.multi_credit { bytes.div_ceil(CREDIT).max(1) } else { 1 }
    }

    /// Sends requests in one frame, each but the first about the handle of the one before, and gives their ids.
    pub(super) fn send(&mut self, requests: &[Request<'_>]) -> Result<Vec<u64>, FsError> {
        if self.broken {
            return Err(FsError::new(Problem::Lost, "the connection had been given up"));
        }
        let needed = requests.iter().map(|request| self.charge(request.bytes)).sum();
        while self.credits < needed && !self.awaited.is_empty() {
            self.pump()?;
        }
        if self.credits < needed {
            self.broken = true;
            let detail = format!("the server granted {} credits where {needed} are needed", self.credits);
            return Err(FsError::new(Problem::Lost, detail));
        }
        let mut out = std::mem::take(&mut self.out);
        let ids = self.pack(&mut out, requests);
        let sent = ids.and_then(|ids| {
            self.stream.write_all(&out).map_err(|error| from_io(&error))?;
            Ok(ids)
        });
        self.out = out;
        if sent.is_err() {
            self.broken = true;
        }
        sent
    }

    fn pack(&mut self, out: &mut Vec<u8>, requests: &[Request<'_>]) -> Result<Vec<u64>, FsError> {
        let begin = if self.encrypting { LENGTH + TransformHeader::SIZE } else { LENGTH };
        out.clear();
        out.resize(begin, 0);
        let mut ids = Vec::with_capacity(requests.len());
        for (n, request) in requests.iter().enumerate() {
            let charge = self.charge(request.bytes);
            let id = self.next_id;
            self.next_id += charge as u64;
            self.credits -= charge;
            let mut header = Header::new_request(request.command);
            header.message_id = MessageId(id);
            header.session_id = self.session;
            header.tree_id = Some(self.tree);
            if self.multi_credit {
                header.credit_charge = CreditCharge(u16::try_from(charge).unwrap_or(u16::MAX));
            }
            let replaced = u16::try_from(charge).unwrap_or(u16::MAX);
            header.credits =
                if self.credits < ENOUGH { CREDITS_WANTED.saturating_add(replaced) } else { replaced };
            if n > 0 {
                header.flags.set(HeaderFlags::RELATED_OPERATIONS);
            }
            let signs = self.protection.is_some() && !self.encrypting;
            if signs {
                header.flags.set(HeaderFlags::SIGNED);
            }
            let mut cursor = WriteCursor::with_capacity(256);
            header.pack(&mut cursor);
            request.body.pack(&mut cursor);
            let start = out.len();
            out.extend_from_slice(cursor.as_bytes());
            out.extend_from_slice(request.data);
            if n + 1 < requests.len() {
                let length = (out.len() - start).next_multiple_of(8);
                out.resize(start + length, 0);
                let next = u32::try_from(length).unwrap_or_default().to_le_bytes();
                if let Some(field) = out.get_mut(start + 20..start + 24) {
                    field.copy_from_slice(&next);
                }
            }
            if signs && let (Some(protection), Some(message)) = (&self.protection, out.get_mut(start..)) {
                protection.sign(message, id)?;
            }
            self.awaited.insert(id);
            ids.push(id);
        }
        if self.encrypting
            && let (Some(protection), Some(frame)) = (&mut self.protection, out.get_mut(LENGTH..))
        {
            protection.seal(frame, self.session)?;
        }
        let length = u32::try_from(out.len() - LENGTH).unwrap_or(u32::MAX).to_be_bytes();
        if let Some(field) = out.get_mut(..LENGTH) {
            field.copy_from_slice(&length);
        }
        Ok(ids)
    }

    /// The last frame sent, as long as nothing is encrypted.
    pub(super) fn sent(&self) -> &[u8] {
        self.out.get(LENGTH..).unwrap_or_default()
    }

    /// Waits for the answer to a request.
    pub(super) fn receive(&mut self, id: u64) -> Result<Reply, FsError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Some(reply) = self.arrived.remove(&id) {
                return Ok(reply);
            }
            if self.broken {
                return Err(FsError::new(Problem::Lost, "the connection had been given up"));
            }
            if Instant::now() >= deadline {
                self.broken = true;
                return Err(FsError::new(Problem::TimedOut, "the server says that it is still at it"));
            }
            self.pump()?;
        }
    }

    /// Lets the answer to a request go wherever it comes.
    pub(super) fn ignore(&mut self, id: u64) {
        if self.arrived.remove(&id).is_none() && self.awaited.contains(&id) {
            self.ignored.insert(id);
        }
    }

    /// One request and its answer.
    pub(super) fn ask(&mut self, command: Command, body: &dyn Pack) -> Result<Reply, FsError> {
        let replies = self.chain(&[Request::new(command, body)])?;
        replies.into_iter().next().ok_or_else(|| FsError::new(Problem::Protocol, "no answer"))
    }

    /// Requests about one handle in one frame, and all their answers.
    pub(super) fn chain(&mut self, requests: &[Request<'_>]) -> Result<Vec<Reply>, FsError> {
        let ids = self.send(requests)?;
        ids.into_iter().map(|id| self.receive(id)).collect()
    }

    /// Gives the buffer of an answer back.
    pub(super) fn recycle(&mut self, reply: Reply) {
        if self.spare.len() < SPARE {
            self.spare.push(reply.frame);
        }
    }

    /// Takes the next frame from the socket.
    fn pump(&mut self) -> Result<(), FsError> {
        let taken = self.frame().and_then(|frame| self.take(frame));
        if taken.is_err() {
            self.broken = true;
        }
        taken
    }

    fn frame(&mut self) -> Result<Vec<u8>, FsError> {
        let mut prefix = [0; LENGTH];
        self.stream.read_exact(&mut prefix).map_err(|error| from_io(&error))?;
        let length = u32::from_be_bytes(prefix) as usize;
        if !(Header::SIZE..=self.largest + OVERHEAD).contains(&length) {
            return Err(FsError::new(Problem::Lost, format!("a frame of {length} bytes makes no sense")));
        }
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.resize(length, 0);
        self.stream.read_exact(&mut frame).map_err(|error| from_io(&error))?;
        Ok(frame)
    }

    fn take(&mut self, mut frame: Vec<u8>) -> Result<(), FsError> {
        let lost = |what: &str| FsError::new(Problem::Lost, what);
        let encrypted = frame.starts_with(&TRANSFORM_PROTOCOL_ID);
        let mut at = 0;
        if encrypted {
            let protection =
                self.protection.as_ref().ok_or_else(|| lost("an encrypted message before the log-in"))?;
            protection.open(&mut frame)?;
            at = TransformHeader::SIZE;
        }
        loop {
            let rest = frame.get_mut(at..).unwrap_or_default();
            let header = Header::unpack(&mut ReadCursor::new(rest))
                .map_err(|error| FsError::new(Problem::Lost, error))?;
            let next = header.next_command as usize;
            let message = match next {
                0 => rest,
                _ => rest.get_mut(..next).ok_or_else(|| lost("a chain of messages is cut off"))?,
            };
            let id = header.message_id.0;
            self.credits = self.credits.saturating_add(usize::from(header.credits));
            let interim = header.status == NtStatus::PENDING && header.flags.is_async();
            // What the server says by itself, of oplocks for one, which are never asked for.
            let unasked = header.message_id == MessageId::UNSOLICITED;
            if !interim && !unasked {
                if !header.is_response() || !self.awaited.remove(&id) {
                    return Err(lost("an answer to nothing that was asked"));
                }
                match &self.protection {
                    Some(_) if encrypted => {}
                    Some(_) if self.encrypting => {
                        return Err(lost("the server's message is not encrypted"));
                    }
                    Some(protection) => protection.verify(message, id)?,
                    None => {}
                }
                if !self.ignored.remove(&id) {
                    let status = header.status;
                    if next == 0 {
                        self.arrived.insert(id, Reply { status, header, frame, at });
                        return Ok(());
                    }
                    let reply = Reply { status, header, frame: message.to_vec(), at: 0 };
                    self.arrived.insert(id, reply);
                }
            }
            if next == 0 {
                break;
            }
            at += next;
        }
        if self.spare.len() < SPARE {
            self.spare.push(frame);
        }
        Ok(())
    }
}
