//! The cloud side: tunnel acceptor, job store, API.

pub mod admin;
pub mod api;
pub mod blobs;
pub mod bootstrap;
pub mod cli;
pub mod clock;
pub mod health;
pub mod mediations;
pub mod model;
pub mod notices;
pub mod outbound;
pub mod retention;
pub mod serve;
pub mod server;
pub mod settings;
pub mod store;
#[cfg(test)]
mod testing;
pub mod tunnel;

pub use cli::run;
