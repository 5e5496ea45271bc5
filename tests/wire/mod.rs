//! The wire as others see it: the examples and tables of docs/protocol.md, and every control message.

mod document;
mod examples;
mod messages;
mod operations;
mod tables;
