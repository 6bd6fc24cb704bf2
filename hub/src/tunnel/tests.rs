//! A real WebSocket client with the agent's session machine against the acceptor, over loopback.

mod agent;
mod cursors;
mod delivery;
mod moving;
mod pauses;
mod sessions;
mod triggers;
