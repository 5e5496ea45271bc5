//! Why a measurement came to nothing.

use std::fmt;

/// A sentence for whoever started the program.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

/// What a step gives.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says what was being done.
pub(crate) trait While<T> {
    /// Puts these words before the reason.
    fn while_(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> While<T> for std::result::Result<T, E> {
    fn while_(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failure(format!("{what}: {error}")))
    }
}
