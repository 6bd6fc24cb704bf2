//! The hub's HTTP interface and commands, against a real listening hub and a real tunnel client.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod agent;
mod agent_routes;
mod blobs;
mod commands;
mod ending;
mod events;
mod events_in;
mod hardening;
mod isolation;
mod jobs;
mod killed;
mod mediations;
mod openapi;
mod output;
mod received;
mod receiver;
mod refusals;
mod sandbox;
mod signed;
mod sites;
mod subscriptions;
mod support;
mod vendor;
