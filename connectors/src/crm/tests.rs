//! The engine over a dialect in memory that can lose replies, race and drop fields at will.

mod keys;
mod memory;
mod paths;
mod upserts;
mod walks;
