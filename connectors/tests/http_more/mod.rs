//! Tokens, signatures, events, named requests, unpacking and limits of time, against real servers in the test process.

mod oauth;
mod requests;
mod wire;
