//! `dunlin node`: how much a node is given to do.

use clap::Subcommand;

use super::{Global, cluster::find, exit::Failure, remote::block_on};
use crate::limits::NODE_WEIGHT_MAX;

/// `dunlin node`
#[derive(Debug, clap::Args)]
pub struct Node {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Set a node's share of clients and shards, beside those of the others
    #[command(
        after_help = "A node of weight 200 is given twice as much as one of 100; one of weight 0 nothing.\n\n\
        Example:\n  dunlin node weight edge-2 50"
    )]
    Weight {
        /// Its name or number
        node: String,
        /// Its weight; a node starts with 100
        #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(NODE_WEIGHT_MAX)))]
        weight: u32,
    },
}

impl Node {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let NodeCommand::Weight { node, weight } = self.command;
        block_on(async {
            let client = global.connect().await?;
            let set = async {
                let status = client.cluster().status().await?;
                let node = find(&status, &node)?;
                client.cluster().set_node(node.id, Some(weight), None).await?;
                let done =
                    serde_json::json!({ "id": node.id, "name": node.name, "weight": weight });
                global.output().show(&done, |_| format!("node {} has weight {weight}\n", node.name))
            };
            let result = set.await;
            client.close().await;
            result
        })
    }
}
