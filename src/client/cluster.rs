//! Questions about the site's nodes.

use std::time::Duration;

use super::{error::RequestError, link::Link, topics::out_of_place};
use crate::{
    net::Address,
    types::{NodeId, NodeRole},
    wire::{Answer, BalancePlan, ClusterStatus, Invited, RecoveryPlan, Request},
};

/// Administers the nodes of a site.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = dunlin::cli::own_broker::BrokerHere::start().await;
/// # let client = dunlin::client::Client::connect(broker.profile()).await?;
/// let status = client.cluster().status().await?;
/// for node in &status.nodes {
///     println!("{} {}", node.id, node.name);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    link: &'a Link,
}

impl<'a> Cluster<'a> {
    pub(super) fn new(link: &'a Link) -> Self {
        Self { link }
    }

    /// The site's nodes and shards, as the node that answers knows them.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn status(&self) -> Result<ClusterStatus, RequestError> {
        match self.link.request(&Request::ClusterStatus).await? {
            Answer::Cluster(status) => Ok(status),
            other => Err(out_of_place(&other)),
        }
    }

    /// Makes an invite with which one machine may become a node. Without addresses the node names its own.
    ///
    /// # Errors
    /// [`RequestError`]; `Invalid` if the lifetime is longer than an invite's may be.
    pub async fn invite(
        &self,
        role: NodeRole,
        lifetime: Option<Duration>,
        addresses: &[Address],
    ) -> Result<Invited, RequestError> {
        let lifetime_ms =
            lifetime.map(|lifetime| u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX));
        let addresses = addresses.iter().map(Address::to_string).collect();
        let request = Request::Invite { role, lifetime_ms, addresses };
        match self.link.request(&request).await? {
            Answer::Invited(invited) => Ok(invited),
            other => Err(out_of_place(&other)),
        }
    }

    /// Changes how much a node is given to do; what is none stays.
    ///
    /// # Errors
    /// [`RequestError`]; `Invalid` if there is no such node.
    pub async fn set_node(
        &self,
        node: NodeId,
        weight: Option<u32>,
        draining: Option<bool>,
    ) -> Result<(), RequestError> {
        self.done(&Request::SetNode { node, weight, draining }).await
    }

    /// Takes a node that holds nothing out of the site, for ever.
    ///
    /// # Errors
    /// [`RequestError`]; `Invalid` if it still holds something, or there is no such node.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), RequestError> {
        self.done(&Request::RemoveNode { node }).await
    }

    /// Lets one node take over all that another one holds. That one can be removed once it holds nothing.
    ///
    /// # Errors
    /// [`RequestError`]; `Invalid` if one of them is no node, or the new one cannot hold records.
    pub async fn replace_node(&self, old: NodeId, new: NodeId) -> Result<(), RequestError> {
        self.done(&Request::ReplaceNode { old, new }).await
    }

    /// The shards that cannot go on by themselves, and what is left of them.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn recovery_plan(&self) -> Result<RecoveryPlan, RequestError> {
        match self.link.request(&Request::RecoveryPlan).await? {
            Answer::RecoveryPlan(plan) => Ok(plan),
            other => Err(out_of_place(&other)),
        }
    }

    /// Lets a shard of the plan go on with what one node has of it. What others had more is lost for ever.
    ///
    /// # Errors
    /// [`RequestError`]; `Invalid` if the shard can go on by itself, or is not as in the plan any more.
    pub async fn recover(
        &self,
        shard: u16,
        version: u64,
        node: NodeId,
    ) -> Result<(), RequestError> {
        self.done(&Request::Recover { shard, version, node }).await
    }

    /// Who should have how many clients and lead how many shards, as the node that answers knows it, and what will move.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn balance_plan(&self) -> Result<BalancePlan, RequestError> {
        match self.link.request(&Request::BalancePlan).await? {
            Answer::BalancePlan(plan) => Ok(plan),
            other => Err(out_of_place(&other)),
        }
    }

    /// Has what should move do so now, without waiting.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn balance(&self) -> Result<(), RequestError> {
        self.done(&Request::Balance).await
    }

    /// Has one node, or all, look through what it holds for damage now.
    ///
    /// # Errors
    /// [`RequestError`]; `Invalid` if there is no such node.
    pub async fn scrub(&self, node: Option<NodeId>) -> Result<(), RequestError> {
        self.done(&Request::Scrub { node }).await
    }

    async fn done(&self, request: &Request) -> Result<(), RequestError> {
        match self.link.request(request).await? {
            Answer::Done => Ok(()),
            other => Err(out_of_place(&other)),
        }
    }
}
