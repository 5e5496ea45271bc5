//! How the program ends.

use std::process::ExitCode;

use crate::{
    client::profile::ProfileError,
    config::ConfigError,
    net::{authority::AuthorityError, secret_file::FileError},
};

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It was tried and did not work.
    Runtime = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Configuration, profile or certificates are wrong: trying again will not help (`EX_CONFIG`), so the service
    /// manager does not.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a subcommand ends early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The reader of our output has gone away, which is its right: nothing is said.
    ClosedPipe,
    /// Something to tell the user.
    Told {
        /// The exit code.
        exit: Exit,
        /// What is wrong: lowercase, no full stop.
        message: String,
        /// What can be done about it, where we know.
        hint: Option<String>,
    },
}

impl Failure {
    /// It was tried and did not work.
    #[must_use]
    pub fn runtime(message: impl ToString) -> Self {
        Self::Told { exit: Exit::Runtime, message: message.to_string(), hint: None }
    }

    /// The arguments make no sense together.
    #[must_use]
    pub fn usage(message: impl ToString) -> Self {
        Self::Told { exit: Exit::Usage, message: message.to_string(), hint: None }
    }

    /// Something that was set up is wrong.
    #[must_use]
    pub fn config(message: impl ToString) -> Self {
        Self::Told { exit: Exit::Config, message: message.to_string(), hint: None }
    }

    /// Adds what can be done about it.
    #[must_use]
    pub fn hint(self, hint: impl ToString) -> Self {
        match self {
            Self::ClosedPipe => Self::ClosedPipe,
            Self::Told { exit, message, .. } => {
                Self::Told { exit, message, hint: Some(hint.to_string()) }
            }
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::config(error)
    }
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Self {
        let failure = Self::config(&error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match error {
            FileError::TooOpen { .. } => Self::config(error),
            FileError::Exists { .. } => Self::runtime(error)
                .hint("nothing is overwritten: move it away, or name another file"),
            FileError::Io { .. } => Self::runtime(error),
        }
    }
}

impl From<AuthorityError> for Failure {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::File(error) if error.is_not_found() => Self::config(error)
                .hint("this node holds no site authority: run 'dunlin init' first"),
            AuthorityError::File(error) if error.is_denied() => {
                Self::runtime(error).hint("run as root, or as the user that owns the file")
            }
            AuthorityError::File(error) => error.into(),
            AuthorityError::BadHost { .. } => Self::usage(error),
            AuthorityError::Request { .. } => Self::runtime(error),
            AuthorityError::NoCertificate { .. }
            | AuthorityError::NoKey { .. }
            | AuthorityError::KeyMismatch { .. }
            | AuthorityError::Identity(_)
            | AuthorityError::Expired { .. } => Self::config(error),
            AuthorityError::Crypto(_) => Self::runtime(error),
        }
    }
}
