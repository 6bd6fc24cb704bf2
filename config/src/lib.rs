//! What the operator says: the configuration folder, read with positions, units and secrets by reference.
//!
//! Nothing here touches the network. Every finding names file, line, column, key, what is wrong and what is right,
//! and all findings are collected before anything is refused.

mod load;
mod log_level;

pub mod address;
mod agent;
mod audit;
mod check;
pub mod defaults;
mod diagnostics;
mod document;
mod examples;
mod files;
mod glob;
mod hint;
mod listener;
pub mod mapped;
mod raw;
mod read;
mod redact;
mod resource;
mod schema;
mod secret;
mod section;
#[cfg(test)]
mod tests;
mod tree;
mod trigger;
mod units;

pub use agent::{
    AgentConfig, AgentSection, AllowRule, ClassicLog, HubSection, Limits, LogFormat, LogSection,
    ProxySection, ResourceConfig, TrustSection,
};
pub use audit::{AuditSection, Syslog, WhenFull};
pub use diagnostics::{Diagnostics, Finding};
pub use document::without_place;
pub use examples::{EXAMPLE_RESOURCES, EXAMPLES};
pub use files::{open_file, read_file};
pub use glob::path_glob;
pub use listener::{ListenerAuth, ListenerConfig};
pub use load::{
    DEFAULT_DIR, LISTEN_FILE, Readable, listen_address, load, readable, readable_resources, state_dir,
};
pub use log_level::{LOG_LEVELS, is_log_level};
pub use redact::redacted;
pub use schema::{schema, without_null};
pub use secret::{Secret, SecretError, SecretRef};
pub use section::Section;
pub use trigger::{After, Changes, ChangesStart, Order, Pickup, Stable, Watch};
pub use units::{ByteSize, HumanDuration, KeyRotation};
