//! A copy for a syslog server: RFC 5424 over the network, in datagrams (RFC 5426) or a connection (RFC 6587, octet counting);
//! on a local socket the form of syslog(3), the only one that every daemon behind `/dev/log` reads: rsyslog takes the version
//! of RFC 5424 for the name of the program there.

use super::{Target, named};
use crate::{audit::line, clock};
use jiff::tz::TimeZone;
use std::{
    collections::VecDeque,
    io::{self, Write as _},
    net::{TcpStream, ToSocketAddrs as _, UdpSocket},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Facility 13 (log audit) with severity 6 (informational) and 4 (warning), RFC 5424 §6.2.1.
const INFO: u8 = 13 * 8 + 6;
const WARNING: u8 = 13 * 8 + 4;
/// What an operator should look at.
const WARNINGS: [&str; 10] = [
    "rows_missing",
    "rows_lost",
    "journal_replaced",
    "cut",
    "refused_by_hub",
    "fenced",
    "configuration_refused",
    "offer_refused",
    "denied",
    "unknown",
];
/// How long a connection may take to come about or to take bytes.
const PATIENCE: Duration = Duration::from_secs(5);
/// TCP says nothing of what arrived: rows count as taken after the connection has held this long after them.
const CERTAIN: Duration = Duration::from_secs(5);

fn priority(kind: &str) -> u8 {
    if WARNINGS.contains(&kind) { WARNING } else { INFO }
}

/// One row as a message to this machine's daemon, as syslog(3) sends it: `<PRI>TIME passerelle-agent[PID]: ROW`, the time without a
/// year and in the machine's time zone.
fn local_message(row: &str, zone: &TimeZone) -> String {
    let (at, kind) = match line::read(row) {
        Ok((row, _)) => (row.at, row.kind),
        Err(_) => (clock::now(), "-".to_owned()),
    };
    let time = at.to_zoned(zone.clone()).strftime("%b %e %H:%M:%S").to_string();
    format!("<{}>{time} passerelle-agent[{}]: {row}", priority(&kind), std::process::id())
}

/// One row as a message over the network: `<PRI>1 TIME HOST passerelle-agent PID KIND - ROW`.
fn message(row: &str, host: &str) -> String {
    let (time, kind) = match line::read(row) {
        Ok((row, _)) => (row.at.to_string(), row.kind),
        Err(_) => ("-".to_owned(), "-".to_owned()),
    };
    let priority = priority(&kind);
    // RFC 5424 knows microseconds at most.
    let time = match time.split_once('.') {
        Some((seconds, rest)) => {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).take(6).collect();
            format!("{seconds}.{digits}Z")
        }
        None => time,
    };
    format!("<{priority}>1 {time} {host} passerelle-agent {} {kind} - {row}", std::process::id())
}

enum Socket {
    Unix(UnixDatagram),
    Udp(UdpSocket),
}

enum To {
    Unix(PathBuf),
    Udp(String),
}

/// Sends each row as a datagram of its own.
pub struct Datagrams {
    to: To,
    host: String,
    socket: Option<Socket>,
}

impl Datagrams {
    /// To a socket of this machine.
    pub fn unix(path: PathBuf) -> Self {
        Self { to: To::Unix(path), host: String::new(), socket: None }
    }

    /// To a host.
    pub fn udp(address: String, host: String) -> Self {
        Self { to: To::Udp(address), host, socket: None }
    }

    fn open(&self) -> io::Result<Socket> {
        match &self.to {
            To::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path).map_err(|e| named(path, &e))?;
                socket.set_write_timeout(Some(PATIENCE))?;
                Ok(Socket::Unix(socket))
            }
            To::Udp(address) => {
                let failed = |e: io::Error| io::Error::new(e.kind(), format!("{address}: {e}"));
                let to = address.to_socket_addrs().map_err(failed)?.next();
                let to = to.ok_or_else(|| io::Error::other(format!("{address} has no address")))?;
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                socket.connect(to).map_err(failed)?;
                Ok(Socket::Udp(socket))
            }
        }
    }
}

impl Target for Datagrams {
    fn send(&mut self, rows: &[(u64, String)]) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => self.open()?,
        };
        for (_, row) in rows {
            match &socket {
                Socket::Unix(socket) => socket.send(local_message(row, &TimeZone::system()).as_bytes())?,
                Socket::Udp(socket) => socket.send(message(row, &self.host).as_bytes())?,
            };
        }
        self.socket = Some(socket);
        Ok(())
    }

    fn confirmed(&mut self, sent: u64) -> io::Result<u64> {
        Ok(sent)
    }
}

/// Sends rows over a connection.
pub struct Stream {
    address: String,
    host: String,
    stream: Option<TcpStream>,
    sent: VecDeque<(u64, Instant)>,
    confirmed: u64,
}

impl Stream {
    /// To a host.
    pub fn new(address: String, host: String) -> Self {
        Self { address, host, stream: None, sent: VecDeque::new(), confirmed: 0 }
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let failed = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", self.address));
        let mut last = io::Error::other(format!("{} has no address", self.address));
        for to in self.address.to_socket_addrs().map_err(failed)? {
            match TcpStream::connect_timeout(&to, PATIENCE) {
                Ok(stream) => {
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Ok(stream);
                }
                Err(e) => last = failed(e),
            }
        }
        Err(last)
    }

    /// The connection, unless the other side has ended it: it never says anything, so what can be read is its end.
    fn alive(&mut self) -> io::Result<Option<TcpStream>> {
        let Some(stream) = self.stream.take() else { return Ok(None) };
        stream.set_nonblocking(true)?;
        let read = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        match read {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Some(stream)),
            Ok(1..) => Ok(Some(stream)),
            Ok(_) | Err(_) => {
                self.sent.clear();
                let why = format!("{}: the syslog server ended the connection", self.address);
                Err(io::Error::new(io::ErrorKind::ConnectionReset, why))
            }
        }
    }
}

impl Target for Stream {
    fn send(&mut self, rows: &[(u64, String)]) -> io::Result<()> {
        let mut stream = match self.alive()? {
            Some(stream) => stream,
            None => {
                self.sent.clear();
                self.connect()?
            }
        };
        let mut bytes = Vec::new();
        for (_, row) in rows {
            let message = message(row, &self.host);
            write!(bytes, "{} {message}", message.len())?;
        }
        stream.write_all(&bytes)?;
        self.stream = Some(stream);
        if let Some((last, _)) = rows.last() {
            self.sent.push_back((*last, Instant::now()));
        }
        Ok(())
    }

    fn confirmed(&mut self, _: u64) -> io::Result<u64> {
        self.stream = self.alive()?;
        while let Some((seq, at)) = self.sent.front()
            && at.elapsed() >= CERTAIN
        {
            self.confirmed = *seq;
            self.sent.pop_front();
        }
        Ok(self.confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{
        Entry, Kind,
        line::{Head, write},
    };

    #[test]
    fn a_message_has_the_form_of_rfc_5424() {
        let at = "2026-11-21T06:00:00.123456789Z".parse().unwrap();
        let (row, _) = write(&Entry { at, ..Entry::new(Kind::Denied) }, Head::START, 1).unwrap();
        let pid = std::process::id();
        let expected =
            format!("<108>1 2026-11-21T06:00:00.123456Z paris-1 passerelle-agent {pid} denied - {row}");
        assert_eq!(message(&row, "paris-1"), expected);
        let at = "2026-11-21T06:00:00Z".parse().unwrap();
        let (row, _) = write(&Entry { at, ..Entry::new(Kind::Accepted) }, Head::START, 1).unwrap();
        assert!(message(&row, "x").starts_with("<110>1 2026-11-21T06:00:00Z x passerelle-agent "));
    }

    #[test]
    fn a_message_on_a_local_socket_has_the_form_of_syslog() {
        let at = "2026-11-02T23:30:00.9Z".parse().unwrap();
        let (row, _) = write(&Entry { at, ..Entry::new(Kind::Denied) }, Head::START, 1).unwrap();
        let pid = std::process::id();
        let paris = TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(
            local_message(&row, &paris),
            format!("<108>Nov  3 00:30:00 passerelle-agent[{pid}]: {row}")
        );
    }
}
