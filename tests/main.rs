//! Tests of the whole, in one binary.

#![allow(
    clippy::disallowed_methods,
    reason = "tests stand outside: they use the machine's clock and tasks"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a test prints is shown when it fails"
)]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test, by its line")]

mod api;
mod crash;
mod history;
mod kills;
mod tidy;
mod wire;
