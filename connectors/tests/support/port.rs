//! Free loopback ports for servers that cannot be asked to choose one themselves. Another crate's library can include it
//! as a module with `#[path]`.

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt::set_socket_reuseaddr};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicU32, Ordering},
};

/// Below the range from which Linux takes the ports of outgoing connections, so that none of those gets in between.
const FIRST: u32 = 10_000;
const COUNT: u32 = 22_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port on 127.0.0.1 that was free just now and is given out once only by this process.
///
/// # Panics
/// If none is free.
#[must_use]
pub fn free_port() -> u16 {
    // Test programs that run at the same time start far apart.
    let start = std::process::id().wrapping_mul(997);
    (0..COUNT)
        .map(|_| start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT + FIRST)
        .filter_map(|port| u16::try_from(port).ok())
        .find(|&port| is_free(port))
        .expect("a free port on 127.0.0.1")
}

/// Whether a server could have it. Looked at without listening: a process that another thread starts in this moment
/// holds a copy of the socket until its program is loaded, and would answer in the server's place that it is there.
fn is_free(port: u16) -> bool {
    let Ok(socket) = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None) else {
        return false;
    };
    set_socket_reuseaddr(&socket, true).is_ok()
        && bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).is_ok()
}
