//! `dunlin cluster replace`: one node takes over from another.

use std::{io::Write as _, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::{Global, cluster::find, exit::Failure};
use crate::{
    client::Client,
    types::{NodeId, NodeRole},
    wire::{ClusterNode, ClusterStatus},
};

/// `dunlin cluster replace`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The new node must have joined and started. Records are copied while the site works; the old node\n\
    may be down. When it holds nothing any more it is removed from the site, for ever.\n\n\
    The command may be interrupted: the nodes go on, and run again it waits for the rest and removes\n\
    the old node. 'dunlin cluster undrain OLD' takes it back before that.\n\n\
    Example:\n  \
    dunlin cluster replace edge-2 edge-4"
)]
pub(super) struct Replace {
    /// Name or number of the node that leaves
    old: String,
    /// Name or number of the node that takes its place
    new: String,
}

impl Replace {
    pub(super) async fn run(
        self,
        status: &ClusterStatus,
        client: &Client,
        global: &Global,
    ) -> Result<(), Failure> {
        let joins = "let it join first: dunlin invite, and dunlin join there";
        let new = match find(status, &self.new) {
            Err(failure @ Failure::Told { .. }) => return Err(failure.hint(joins)),
            found => found?,
        };
        let old = find(status, &self.old)?;
        check(old, new)?;
        client.cluster().replace_node(old.id, new.id).await?;
        wait(client, old).await?;
        client.cluster().remove_node(old.id).await?;
        let done = serde_json::json!({ "replaced": { "old": old.name, "new": new.name } });
        global
            .output()
            .show(&done, |_| format!("node {} has replaced node {}\n", new.name, old.name))
    }
}

/// What the site would refuse, in the words of the command.
fn check(old: &ClusterNode, new: &ClusterNode) -> Result<(), Failure> {
    let name = &new.name;
    if old.id == new.id {
        return Err(Failure::usage(format!("node {name} cannot replace itself")));
    }
    if new.role != NodeRole::Data {
        let message = format!("node {name} is a witness: it holds no records");
        return Err(Failure::runtime(message)
            .hint("let a machine join that holds some: dunlin invite --role data"));
    }
    if !new.started {
        let message = format!("node {name} has joined and never started");
        return Err(Failure::runtime(message).hint("start it there: dunlin serve"));
    }
    Ok(())
}

/// Shows how many shards are left, until there are none.
async fn wait(client: &Client, old: &ClusterNode) -> Result<(), Failure> {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        looks.tick().await;
        let status = client.cluster().status().await?;
        let left = left(&status, old.id);
        if left == 0 {
            return Ok(());
        }
        if told.replace(left) != Some(left) {
            let (name, of) = (&old.name, status.shards.len());
            // Who does not want to see it is not held up.
            let _ = writeln!(std::io::stderr(), "node {name} still holds {left} of {of} shards");
        }
    }
}

/// Shards that a node holds, or should.
fn left(status: &ClusterStatus, node: NodeId) -> usize {
    let holds = |shard: &&crate::wire::ClusterShard| {
        let lists = [&shard.set, &shard.pending, &shard.replicas];
        lists.iter().any(|list| list.contains(&node))
    };
    status.shards.iter().filter(holds).count()
}

const LOOK_EVERY: Duration = Duration::from_millis(200);
