//! Tests of the images on a Docker engine, as operators run them. `tests/docker` builds the images first; `cargo test
//! --workspace` leaves these tests out.

mod compose;
mod documents;
mod folder;
mod image;
mod load;
mod mend;
mod network;
mod places;
mod swarm;
