//! The client library.

pub mod profile;
