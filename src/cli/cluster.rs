//! `dunlin cluster`: the site's nodes and shards, and how nodes leave.

use std::collections::BTreeSet;

use clap::Subcommand;

use super::{
    Global, balance::Balance, exit::Failure, output::Table, recover::Recover, remote::block_on,
    replace::Replace, units::print_ms,
};
use crate::{
    client::Client,
    types::NodeId,
    wire::{ClusterNode, ClusterShard, ClusterStatus},
};

/// `dunlin cluster`
#[derive(Debug, clap::Args)]
#[command(after_help = "A node is named by its name or its number.\n\n\
    Examples:\n  \
    dunlin cluster status\n  \
    dunlin cluster drain edge-2 && dunlin cluster remove edge-2")]
pub struct Cluster {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show nodes and shards, who is behind and why
    Status,
    /// Take a node that holds nothing any more out of the site, for ever
    Remove {
        /// Its name or number
        node: String,
    },
    /// Let a node give away all that it holds, before maintenance or its removal
    Drain {
        /// Its name or number
        node: String,
    },
    /// Look through what nodes hold for damage now, not only every few days
    Scrub {
        /// Name or number of one node; without it, all nodes
        #[arg(long)]
        node: Option<String>,
    },
    /// Let a node take over all that another one holds, and take that one out of the site
    Replace(Replace),
    /// Go on without data that is lost for good: what shards cannot go on by themselves, and what is left of them
    Recover(Recover),
    /// Show shares of clients and primaries, wanted and held, and what will move
    Balance(Balance),
    /// Let a node that was drained hold shards again
    Undrain {
        /// Its name or number
        node: String,
    },
}

impl Cluster {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        block_on(async {
            let client = global.connect().await?;
            let result = self.command.run(&client, global).await;
            client.close().await;
            result
        })
    }
}

impl ClusterCommand {
    async fn run(self, client: &Client, global: &Global) -> Result<(), Failure> {
        let status = client.cluster().status().await?;
        let (node, verb) = match self {
            Self::Balance(balance) => return balance.run(client, global).await,
            Self::Status => return global.output().show(&status, in_words),
            Self::Replace(replace) => return replace.run(&status, client, global).await,
            Self::Recover(recover) => return recover.run(&status, client, global).await,
            Self::Scrub { node } => {
                let node = node.map(|node| find(&status, &node)).transpose()?;
                client.cluster().scrub(node.map(|node| node.id)).await?;
                let done = serde_json::json!({ "scrubbing": node.map(|n| n.name.as_str()) });
                return global.output().show(&done, |_| {
                    let who = node.map_or("each node", |node| node.name.as_str());
                    format!(
                        "{who} reads all that it holds; what is damaged shows in dunlin cluster status\n"
                    )
                });
            }
            Self::Remove { node } => {
                let node = find(&status, &node)?;
                client.cluster().remove_node(node.id).await?;
                (node, "removed")
            }
            Self::Drain { node } => {
                let node = find(&status, &node)?;
                client.cluster().set_node(node.id, None, Some(true)).await?;
                (node, "draining")
            }
            Self::Undrain { node } => {
                let node = find(&status, &node)?;
                client.cluster().set_node(node.id, None, Some(false)).await?;
                (node, "undrained")
            }
        };
        let done = serde_json::json!({ verb: { "id": node.id, "name": node.name } });
        global.output().show(&done, |_| match verb {
            "draining" => format!(
                "node {} gives away what it holds: dunlin cluster status shows when it is done\n",
                node.name
            ),
            verb => format!("{verb} node {}\n", node.name),
        })
    }
}

/// The node that the user means. A name wins over a number, unless they are of two nodes.
pub(super) fn find<'a>(status: &'a ClusterStatus, text: &str) -> Result<&'a ClusterNode, Failure> {
    let number = text.parse().ok().map(NodeId);
    let named = status.nodes.iter().find(|node| node.name == text);
    let numbered = status.nodes.iter().find(|node| Some(node.id) == number);
    match (named, numbered) {
        (Some(named), Some(numbered)) if named.id != numbered.id => {
            let message = format!("'{text}' is the name of node {} and a number", named.id);
            Err(Failure::usage(message).hint("name it by its own number"))
        }
        (Some(node), _) | (None, Some(node)) => Ok(node),
        (None, None) => {
            let names: Vec<_> = status.nodes.iter().map(|node| node.name.as_str()).collect();
            let message = format!("site '{}' has no node '{text}'", status.site);
            Err(Failure::runtime(message).hint(format!("its nodes are {}", names.join(", "))))
        }
    }
}

/// How a site is, for an error.
pub(super) fn summary(status: Option<&ClusterStatus>) -> String {
    status.map_or_else(|| "no node has told how the site is".to_owned(), in_words)
}

fn in_words(status: &ClusterStatus) -> String {
    let mut nodes = Table::new(&[
        "node",
        "name",
        "role",
        "state",
        "weight",
        "clients",
        "software",
        "addresses",
    ]);
    for node in &status.nodes {
        let clients = node.liveness.and_then(|liveness| liveness.clients);
        nodes.row([
            node.id.to_string(),
            node.name.clone(),
            node.role.to_string(),
            state(status, node),
            node.weight.to_string(),
            clients.map_or_else(|| "-".to_owned(), |clients| clients.to_string()),
            or_dash(node.software.clone()),
            or_dash(node.addresses.join(" ")),
        ]);
    }
    let mut shards = Table::new(&["shard", "epoch", "primary", "set", "pending", "behind"]);
    for shard in &status.shards {
        shards.row([
            shard.shard.to_string(),
            shard.epoch.to_string(),
            shard.primary.map_or_else(|| "none".to_owned(), |node| name(status, node)),
            or_dash(names(status, &shard.set)),
            or_dash(names(status, &shard.pending)),
            or_dash(behind(status, shard)),
        ]);
    }
    let mut text =
        format!("site {}, as node {} sees it\n\n", status.site, name(status, status.node));
    text.push_str(&nodes.to_text());
    text.push('\n');
    text.push_str(&shards.to_text());
    match status.leader {
        Some(_) => {}
        None => text.push_str(
            "\nNo node orders changes of the metadata now: topics and nodes stay as they are.\n",
        ),
    }
    let programs: BTreeSet<&str> = status
        .nodes
        .iter()
        .map(|node| node.software.as_str())
        .filter(|software| !software.is_empty())
        .collect();
    if programs.len() > 1 {
        text.push_str(&format!(
            "\nNodes run different programs. What came with the newer one is used once all speak it; now \
             all speak version {}.\n",
            status.level
        ));
    }
    if status.invites > 0 {
        text.push_str(&format!("\nInvites that can still be used: {}\n", status.invites));
    }
    text
}

/// Up or down and since when, and what else is worth knowing of a node.
fn state(status: &ClusterStatus, node: &ClusterNode) -> String {
    let mut words = vec![match node.liveness {
        _ if !node.started => "never started".to_owned(),
        None => "unknown".to_owned(),
        Some(liveness) => {
            let word = if liveness.up { "up" } else { "down" };
            // Below a second nobody cares.
            format!("{word} {}", print_ms(liveness.since_ms / 1_000 * 1_000))
        }
    }];
    if status.leader == Some(node.id) {
        words.push("leads metadata".into());
    }
    if node.draining {
        words.push("draining".into());
    }
    if node.damaged {
        words.push("DAMAGED".into());
    }
    words.join(", ")
}

fn behind(status: &ClusterStatus, shard: &ClusterShard) -> String {
    let mut words: Vec<String> = shard
        .behind
        .iter()
        .map(|lag| {
            let entries = lag.entries.map_or_else(String::new, |n| format!(" by {n} entries"));
            format!("{}{entries}: {}", name(status, lag.node), lag.why)
        })
        .collect();
    if shard.stalled {
        words.push("stalled: the last member of the set has lost data".into());
    }
    words.join("; ")
}

pub(super) fn name(status: &ClusterStatus, id: NodeId) -> String {
    let node = status.nodes.iter().find(|node| node.id == id);
    node.map_or_else(|| id.to_string(), |node| node.name.clone())
}

pub(super) fn names(status: &ClusterStatus, ids: &[NodeId]) -> String {
    ids.iter().map(|id| name(status, *id)).collect::<Vec<_>>().join(" ")
}

pub(super) fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        types::{Epoch, NodeRole},
        wire::{Lag, Liveness},
    };

    fn node(id: u64, name: &str, up: Option<bool>) -> ClusterNode {
        ClusterNode {
            id: NodeId(id),
            name: name.into(),
            role: NodeRole::Data,
            addresses: vec![],
            software: String::new(),
            weight: 100,
            draining: id == 9,
            started: id != 12,
            votes: true,
            liveness: up.map(|up| Liveness { up, since_ms: 61_500, clients: None }),
            damaged: id == 9,
        }
    }

    fn status() -> ClusterStatus {
        let shard = ClusterShard {
            shard: 0,
            epoch: Epoch(4),
            primary: Some(NodeId(1)),
            set: vec![NodeId(1)],
            pending: vec![NodeId(9)],
            replicas: vec![NodeId(1), NodeId(9)],
            copies_min: 1,
            stalled: false,
            behind: vec![Lag { node: NodeId(9), entries: Some(12), why: "it catches up".into() }],
        };
        ClusterStatus {
            site: "plant".into(),
            node: NodeId(1),
            leader: Some(NodeId(1)),
            level: 1,
            nodes: vec![
                node(1, "edge-1", Some(true)),
                node(9, "edge-2", Some(false)),
                node(12, "9", None),
            ],
            shards: vec![shard],
            invites: 1,
        }
    }

    #[test]
    fn a_person_sees_who_is_down_and_who_is_behind_and_why() {
        let text = in_words(&status());
        for part in [
            "site plant, as node edge-1 sees it",
            "up 1m 1s, leads metadata",
            "down 1m 1s, draining, DAMAGED",
            "never started",
            "edge-2 by 12 entries: it catches up",
            "Invites that can still be used: 1",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        let leaderless = ClusterStatus { leader: None, ..status() };
        assert!(in_words(&leaderless).contains("No node orders changes"));
    }

    #[test]
    fn a_node_is_found_by_name_or_number_and_never_by_chance() {
        let status = status();
        assert_eq!(find(&status, "edge-2").map(|node| node.id), Ok(NodeId(9)));
        assert_eq!(find(&status, "1").map(|node| node.id), Ok(NodeId(1)));
        assert!(find(&status, "9").is_err(), "the name of one and the number of another");
        let Err(Failure::Told { hint: Some(hint), .. }) = find(&status, "edge-7") else {
            panic!("there is none")
        };
        assert!(hint.contains("edge-1, edge-2"), "{hint}");
    }
}
