//! Hands on private systems: the [`Connector`] trait and the kinds of connector.
//!
//! A connector reads as a straight line to its system. Retry, deadline, concurrency, rate limit, policy, audit and
//! metrics live in the agent's runner, once. Nothing here knows of the tunnel, the hub or the protocol.

mod address;
mod apart;
mod call;
mod connecting;
mod connector;
mod erased;
mod examine;
mod failure;
mod feed;
mod hiding;
mod payload;
mod registry;
mod trigger;

pub mod causes;
pub mod crm;
pub mod file;
pub mod http;
pub mod trust;

pub use call::{Call, Company, Gate, Intent, Outcome, Progress, Visible};
pub use connector::{BuildError, Capabilities, Connector, Demands, Kind, OperationSpec, Repeat, Right};
pub use erased::DynConnector;
pub use examine::{Examine, Found, Link};
pub use failure::{Code, Effect, Failure, Verdict};
pub use feed::{Change, ChangeOp, Changes, Feeds, Start};
pub use payload::{Again, Input, Keeper, Output, Produced};
pub use registry::{Checked, REGISTRY, kind_names};
pub use trigger::{Notices, Patience, Scan, Scanned, Seen, Settle, Settled, Triggers};
