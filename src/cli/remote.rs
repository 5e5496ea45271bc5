//! What all subcommands that talk to a node share: the runtime, the connection, and their errors in words.

use super::{
    Global,
    exit::{Exit, Failure},
    runtime,
};
use crate::{
    client::{Client, ConnectError, PublishError, RequestError, SubscribeError},
    wire::Code,
};

/// Runs something that talks to a node.
pub(super) fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = runtime::start()
        .map_err(|error| Failure::runtime(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(work);
    // A thread that reads standard input cannot be interrupted; it has nothing to lose.
    runtime.shutdown_background();
    result
}

impl Global {
    /// Connects as profile and options say.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.profile()?).await?)
    }
}

/// Resolves when the user or the system asks to stop.
pub(super) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            // Then it ends the process, as it does by itself.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

fn told(exit: Exit, message: String, hint: Option<String>) -> Failure {
    Failure::Told { exit, message, hint }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let exit = match &error {
            ConnectError::CertificateRefused { .. }
            | ConnectError::NoAddress
            | ConnectError::NotThisSite { .. }
            | ConnectError::Tls(_) => Exit::Config,
            _ => Exit::Runtime,
        };
        told(exit, error.to_string(), error.hint())
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Connect(error) => error.into(),
            RequestError::Fault(fault) if fault.code == Code::Invalid => {
                told(Exit::Usage, fault.message, fault.hint)
            }
            other => told(Exit::Runtime, other.to_string(), other.hint()),
        }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Connect(error) => error.into(),
            other => told(Exit::Runtime, other.to_string(), other.hint()),
        }
    }
}

impl From<SubscribeError> for Failure {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::Connect(error) => error.into(),
            other => told(Exit::Runtime, other.to_string(), other.hint()),
        }
    }
}
