//! `dunlin cluster balance`: shares of clients and primaries, wanted and held, and what will move.

use serde::Serialize;

use super::{Global, exit::Failure, output::Table};
use crate::{
    client::Client,
    types::NodeId,
    wire::{BalanceNode, BalancePlan},
};

/// `dunlin cluster balance`
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(
    after_help = "Nodes balance by themselves: clients after some seconds of unevenness, primaries once a \
    node has been up for a while. Shares follow the weights: dunlin node weight NODE N.\n\n\
    Examples:\n  \
    dunlin cluster balance\n  \
    dunlin cluster balance --now"
)]
pub(super) struct Balance {
    /// Have it begin now, without waiting
    #[arg(long)]
    now: bool,
    /// Only show what would move, also with --now
    #[arg(long)]
    dry_run: bool,
}

/// What the command shows.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    plan: BalancePlan,
    /// Whether nodes were told to begin now.
    begun: bool,
}

impl Balance {
    pub(super) async fn run(self, client: &Client, global: &Global) -> Result<(), Failure> {
        let plan = client.cluster().balance_plan().await?;
        let begun = self.now && !self.dry_run;
        if begun {
            client.cluster().balance().await?;
        }
        global.output().show(&Shown { plan, begun }, |shown| in_words(&shown.plan, self.now, begun))
    }
}

fn in_words(plan: &BalancePlan, now: bool, begun: bool) -> String {
    let mut nodes = Table::new(&[
        "node",
        "name",
        "state",
        "weight",
        "load",
        "clients",
        "wanted",
        "primaries",
        "wanted",
    ]);
    for node in &plan.nodes {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        nodes.row([
            node.id.to_string(),
            node.name.clone(),
            state(node).to_owned(),
            node.weight.to_string(),
            or_dash(node.load.map(|load| format!("{load}%"))),
            or_dash(node.clients.map(|clients| clients.to_string())),
            node.clients_wanted.to_string(),
            node.primaries.to_string(),
            node.primaries_wanted.to_string(),
        ]);
    }
    let mut text = format!("site {}, as node {} sees it\n\n", plan.site, name(plan, plan.node));
    text.push_str(&nodes.to_text());
    text.push('\n');
    for flow in &plan.clients {
        let (from, to) = (name(plan, flow.from), name(plan, flow.to));
        let clients = if flow.clients == 1 { "client" } else { "clients" };
        text.push_str(&format!("{} {clients}: {from} to {to}\n", flow.clients));
    }
    for hand_over in &plan.primaries {
        let (from, to) = (name(plan, hand_over.from), name(plan, hand_over.to));
        let later = if hand_over.due { "" } else { ", later" };
        text.push_str(&format!("primary of shard {}: {from} to {to}{later}\n", hand_over.shard));
    }
    text.push_str(match (plan.clients.is_empty() && plan.primaries.is_empty(), begun, now) {
        (true, ..) => "Nothing moves: all nodes are near enough to their shares.\n",
        (false, true, _) => "It begins now.\n",
        (false, false, true) => "Nothing was begun: this is what --now would begin.\n",
        (false, false, false) => "It moves by itself; --now does not wait.\n",
    });
    text
}

fn state(node: &BalanceNode) -> &'static str {
    match (node.up, node.weight, node.settled) {
        (false, ..) => "down",
        (true, 0, _) => "gives away",
        (true, _, false) => "just up",
        (true, _, true) => "up",
    }
}

fn name(plan: &BalancePlan, id: NodeId) -> String {
    let node = plan.nodes.iter().find(|node| node.id == id);
    node.map_or_else(|| id.to_string(), |node| node.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ClientMove, PrimaryMove};

    fn node(id: u64, weight: u32, clients: Option<u64>) -> BalanceNode {
        BalanceNode {
            id: NodeId(id),
            name: format!("edge-{id}"),
            weight,
            up: clients.is_some(),
            settled: clients.is_some(),
            load: clients.map(|_| 7),
            clients,
            clients_wanted: 120,
            primaries: 5,
            primaries_wanted: 4,
        }
    }

    fn plan() -> BalancePlan {
        let (one, two) = (NodeId(1), NodeId(2));
        let primary = |shard, due| PrimaryMove { shard, from: one, to: two, due };
        BalancePlan {
            site: "plant".into(),
            node: one,
            nodes: vec![node(1, 100, Some(180)), node(2, 100, None), node(3, 0, Some(1))],
            clients: vec![ClientMove { from: one, to: NodeId(3), clients: 60 }],
            primaries: vec![primary(4, true), primary(5, false)],
        }
    }

    #[test]
    fn a_person_sees_shares_what_moves_and_whether_it_has_begun() {
        let text = in_words(&plan(), false, false);
        for part in [
            "site plant, as node edge-1 sees it",
            "180",
            "down",
            "gives away",
            "60 clients: edge-1 to edge-3\n",
            "primary of shard 4: edge-1 to edge-2\n",
            "primary of shard 5: edge-1 to edge-2, later\n",
            "It moves by itself",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        assert!(in_words(&plan(), true, true).contains("It begins now"));
        assert!(in_words(&plan(), true, false).contains("Nothing was begun"));
        let even = BalancePlan { clients: vec![], primaries: vec![], ..plan() };
        assert!(in_words(&even, true, true).contains("Nothing moves"));
    }
}
