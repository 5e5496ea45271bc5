//! openraft's requests on our links.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::{
    AnyError, EmptyNode, RaftNetwork, RaftNetworkFactory,
    error::{
        InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError,
    },
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest,
        InstallSnapshotResponse, VoteRequest, VoteResponse,
    },
};

use super::{
    message::{Blob, GroupAnswer, GroupRequest},
    type_config::{TypeConfig, decode, encode},
};
use crate::{limits::META_REQUEST_LEN_MAX, types::NodeId};

/// A future in a box, so that the transport can be chosen at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How the group reaches its other members.
pub trait MetaTransport: Send + Sync + 'static {
    /// Sends a request to a node and waits for its answer, no longer than `deadline`.
    fn call(
        &self,
        to: NodeId,
        request: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes, Unreachable>>;
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// The request has not left this node.
    #[error("no link: {0}")]
    NotSent(String),
    /// The request may have been taken, its answer is lost.
    #[error("no answer: {0}")]
    NoAnswer(String),
}

/// Makes a link to each member.
#[derive(Clone)]
pub(in crate::cluster) struct Links {
    transport: Arc<dyn MetaTransport>,
    retry: Duration,
}

impl Links {
    pub(in crate::cluster) fn new(transport: Arc<dyn MetaTransport>, retry: Duration) -> Self {
        Self { transport, retry }
    }
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, _: &EmptyNode) -> Link {
        Link { to: target, links: self.clone() }
    }
}

/// The way to one member.
pub(in crate::cluster) struct Link {
    to: NodeId,
    links: Links,
}

type Failure<E> = RPCError<NodeId, EmptyNode, RaftError<NodeId, E>>;

impl Link {
    async fn call<E: std::error::Error>(
        &self,
        request: Bytes,
        deadline: Duration,
    ) -> Result<GroupAnswer, Failure<E>> {
        let answer = self.links.transport.call(self.to, request, deadline).await;
        let bytes = answer.map_err(|error| unreachable(&error))?;
        match decode(&bytes) {
            Ok(GroupAnswer::Refused(reason)) => Err(unreachable(&AnyError::error(reason))),
            Ok(answer) => Ok(answer),
            Err(error) => Err(unreachable(&error)),
        }
    }
}

fn unreachable<E: std::error::Error>(error: &(impl std::error::Error + 'static)) -> Failure<E> {
    openraft::error::Unreachable::new(error).into()
}

fn unexpected<E: std::error::Error>(answer: &GroupAnswer) -> Failure<E> {
    NetworkError::new(&AnyError::error(format!("unexpected answer {answer:?}"))).into()
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RPCError<NodeId, EmptyNode, RaftError<NodeId>>> {
        let count = request.entries.len();
        let message = encode(&GroupRequest::Append {
            vote: request.vote,
            previous: request.prev_log_id,
            entries: request.entries.iter().map(|entry| Blob(encode(entry).into())).collect(),
            committed: request.leader_commit,
        });
        if message.len() > META_REQUEST_LEN_MAX && count > 1 {
            let half = u64::try_from(count / 2).unwrap_or(1);
            return Err(PayloadTooLarge::new_entries_hint(half).into());
        }
        match self.call(message, option.hard_ttl()).await? {
            GroupAnswer::Append(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, Failure<InstallSnapshotError>> {
        let message = encode(&GroupRequest::Snapshot {
            vote: request.vote,
            meta: request.meta,
            offset: request.offset,
            data: Blob(request.data),
            done: request.done,
        });
        match self.call(message, option.hard_ttl()).await? {
            GroupAnswer::Snapshot(Ok(answer)) => Ok(answer),
            GroupAnswer::Snapshot(Err(error)) => {
                Err(RemoteError::new(self.to, RaftError::APIError(error)).into())
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RPCError<NodeId, EmptyNode, RaftError<NodeId>>> {
        match self.call(encode(&GroupRequest::Vote(request)), option.hard_ttl()).await? {
            GroupAnswer::Vote(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    fn backoff(&self) -> Backoff {
        // A node that is back must hear its leader before it asks for an election.
        Backoff::new(std::iter::repeat(self.links.retry))
    }
}
