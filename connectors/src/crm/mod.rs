//! The `crm` connector: records of the local CRM, ERP or the like, in one vocabulary over several products' interfaces.
//!
//! A [`dialect::Dialect`] speaks one product's interface; everything that is the same for all of them is here, once.

#![expect(dead_code, reason = "nothing uses it until the first dialect and the operations are there")]

mod client;
mod dialect;
mod dialects;
mod error;
mod exchange;
mod odata;
mod settings;
mod tryton;
mod vocabulary;
