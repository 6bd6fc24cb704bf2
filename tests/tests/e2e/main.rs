//! End-to-end tests: real hub and agent processes, real servers, and faults between them.

mod api;
mod commands;
mod common;
mod crashes;
mod disk;
mod drain;
mod enrolment;
mod files;
mod hostile_agent;
mod hostile_hub;
mod http;
mod jobs;
mod leftovers;
mod limits;
mod pressure;
mod reload;
mod shutdown;
mod startup;
mod tunnel;
