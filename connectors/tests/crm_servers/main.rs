//! The dialects of the `crm` connector against the real servers that tests can run: every case of `cases.rs` on each of
//! them, and what is special to one in a file of its own.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod cases;
mod odata;
mod site;
mod tryton;

/// What is started for the tests.
#[path = "../support"]
mod support {
    #[expect(dead_code, reason = "other tests cut lines in other ways")]
    pub mod line;
    pub mod odata;
    pub mod port;
    #[expect(dead_code, reason = "other tests freeze servers")]
    pub mod server;
    pub mod tryton;
}
