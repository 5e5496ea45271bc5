//! The threads that a node or a client of the command line runs on.

use std::{env, io, num::NonZero, thread::available_parallelism};

use tokio::runtime::{Builder, Runtime};

/// A runtime that leaves one core to the thread that commits, and to the kernel. With a thread for each core they take turns
/// on cores that are busy, and wake each other for each packet: on two cores that costs a quarter of the rate.
/// `TOKIO_WORKER_THREADS` says another number.
///
/// # Errors
/// If the system gives no thread or no way to wait for input.
pub(super) fn start() -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if env::var_os("TOKIO_WORKER_THREADS").is_none() {
        builder.worker_threads(workers(available_parallelism().map_or(1, NonZero::get)));
    }
    builder.enable_all().build()
}

/// Worker threads for so many cores.
fn workers(cores: usize) -> usize {
    cores.saturating_sub(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::workers;

    #[test]
    fn one_core_is_left_to_others_if_there_is_more_than_one() {
        assert_eq!([0, 1, 2, 3, 8].map(workers), [1, 1, 1, 2, 7]);
    }
}
