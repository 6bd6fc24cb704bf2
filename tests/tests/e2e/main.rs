//! End-to-end tests: real hub and agent processes, real servers, and faults between them.

mod api;
mod commands;
mod common;
mod crashes;
mod dead_peer;
mod disk;
mod drain;
mod enrolment;
mod files;
mod frozen;
mod hostile_agent;
mod hostile_agent_cases;
mod hostile_hub;
mod http;
mod jobs;
mod large;
mod leftovers;
mod limits;
mod pressure;
mod reload;
mod restored;
mod shutdown;
mod signed;
mod startup;
mod steps;
mod tunnel;
