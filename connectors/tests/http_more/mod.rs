//! Settings, connections, tokens, signatures, events, named requests, unpacking and limits of time, against real servers in the test process.

mod connections;
mod heads;
mod oauth;
mod requests;
mod settings;
mod wire;
