//! Free loopback ports for servers that cannot be asked to choose one themselves. Another crate's library can include it
//! as a module with `#[path]`.

use std::{
    net::TcpListener,
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
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port on 127.0.0.1")
}
