//! The dialects of CRM products that no registry offers as a server, against stand-ins in their recorded shapes: what every
//! dialect must pass, the traps of each product, and hostile answers.
//!
//! The stand-ins are not the products (`docs/connectors/crm.md`).

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

#[path = "../crm_servers/mod.rs"]
mod crm_servers;

mod hostile;
mod place;
mod repetition;
mod shapes;
mod traps;
