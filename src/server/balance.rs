//! Brings clients and primaries to where they should be by weight: looks once a second, and does what
//! [`crate::balance`] has decided.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::{connection::Shared, site_admin::node_info};
use crate::{
    balance::{
        clients::{self, ClientBalance, ClientNode},
        primaries::{self, LeadNode, LedShard},
    },
    cluster::{NodeRecord, SiteState},
    limits::{
        BALANCE_DRAIN_MAX, BALANCE_HAND_OVER_EVERY, BALANCE_HAND_OVER_TURN, BALANCE_NOW,
        BALANCE_ROUND, BALANCE_SETTLED, PREFERRED_AFTER,
    },
    storage::Reservation,
    types::{NodeId, NodeRole, ShardId},
    wire::{BalanceNode, BalancePlan, ClientMove, GoAway, Leave, PrimaryMove},
};

/// What this node remembers between rounds.
struct Balance {
    clients: ClientBalance,
    /// Who led each shard in the last round, and since when that is so.
    leads: (Vec<Option<NodeId>>, Duration),
    /// The newest request of an operator that was seen, and until when it holds.
    asked: (u64, Duration),
}

/// Runs until the node stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let engine = &shared.engine;
    let now = engine.clock.uptime();
    let mut balance = Balance {
        clients: ClientBalance::new(engine.me.node),
        leads: (Vec::new(), now),
        asked: (engine.group.read(|site| site.balance), Duration::ZERO),
    };
    let mut rounds = interval(BALANCE_ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        let now = engine.clock.uptime();
        let at_once = balance.is_asked(&shared, now);
        // Who hears no majority knows least of the others.
        if !engine.is_isolated() {
            balance.move_clients(&shared, now, at_once);
            balance.move_primary(&shared, now, at_once);
        }
    }
}

impl Balance {
    /// Whether an operator has said "now".
    fn is_asked(&mut self, shared: &Shared, now: Duration) -> bool {
        let asked = shared.engine.group.read(|site| site.balance);
        if asked != self.asked.0 {
            self.asked = (asked, now + BALANCE_NOW);
        }
        now < self.asked.1
    }

    fn move_clients(&mut self, shared: &Shared, now: Duration, at_once: bool) {
        let engine = &shared.engine;
        let own = shared.clients.own(now);
        let nodes = engine.group.read(|site| client_nodes(shared, site, now));
        let asks = self.clients.round(now, &nodes, own, at_once);
        if asks.is_empty() {
            return;
        }
        let drains = shared.gives_clients_away();
        let (leave, within, why) = match drains {
            true => (Leave::Soon, BALANCE_DRAIN_MAX, "gives its clients away"),
            false => (Leave::Please, Duration::ZERO, "has more clients than its share"),
        };
        let reason = format!("node {} {why}", shared.node);
        let goodbye = |site: &SiteState, candidates: Vec<NodeId>| GoAway {
            reason: reason.clone(),
            within_ms: u32::try_from(within.as_millis()).unwrap_or(u32::MAX),
            nodes: candidates
                .into_iter()
                .filter_map(|node| Some(node_info(node, site.nodes.get(&node)?)))
                .collect(),
            leave,
        };
        let goodbyes: Vec<GoAway> = engine
            .group
            .read(|site| asks.into_iter().map(|candidates| goodbye(site, candidates)).collect());
        tracing::info!(clients = goodbyes.len(), of = own.here, "clients are asked to move");
        shared.clients.ask(now, goodbyes);
    }

    /// Hands over the shard whose turn it is, if it is led here.
    fn move_primary(&mut self, shared: &Shared, now: Duration, at_once: bool) {
        let engine = &shared.engine;
        let (shards, nodes) =
            engine.group.read(|site| (led_shards(site), lead_nodes(shared, site, now)));
        let leads: Vec<Option<NodeId>> = shards.iter().map(|shard| shard.primary).collect();
        if leads != self.leads.0 {
            self.leads = (leads, now);
        }
        let since = now.saturating_sub(self.leads.1);
        if since < BALANCE_HAND_OVER_EVERY {
            return;
        }
        let after = if at_once { Duration::ZERO } else { PREFERRED_AFTER };
        let turn = since.as_secs() / BALANCE_HAND_OVER_TURN.as_secs();
        let turn = usize::try_from(turn).unwrap_or(usize::MAX);
        let next = primaries::next(&shards, &nodes, after, turn);
        let Some(next) = next.filter(|next| next.from == engine.me.node) else { return };
        engine.with(next.shard, Reservation::FREE, |replica, _, _| {
            replica.hand_over_to_preferred(after, now);
        });
    }
}

/// The weight that counts for clients: a witness serves none, nor does who gives its work away.
fn weight(shared: &Shared, id: NodeId, node: &NodeRecord, now: Duration) -> u32 {
    let drains = match id == shared.engine.me.node {
        true => shared.gives_clients_away(),
        false => shared.liveness.work(id, now).is_some_and(|work| work.draining),
    };
    if node.role == NodeRole::Data && !node.draining && !drains { node.weight } else { 0 }
}

/// All nodes that are up, by number.
fn client_nodes(shared: &Shared, site: &SiteState, now: Duration) -> Vec<ClientNode> {
    let known = |(id, node): (&NodeId, &NodeRecord)| {
        let work = shared.liveness.work(*id, now)?;
        let own = *id == shared.engine.me.node;
        let clients = if own { shared.clients.len() } else { work.clients };
        Some(ClientNode {
            node: *id,
            weight: weight(shared, *id, node, now),
            clients: clients.into(),
            settled: work.up_for >= BALANCE_SETTLED,
        })
    };
    site.nodes.iter().filter_map(known).collect()
}

fn led_shards(site: &SiteState) -> Vec<LedShard> {
    let shards = (0..).map(ShardId).zip(&site.shards);
    let led = shards.map(|(shard, config)| LedShard {
        shard,
        primary: config.primary.map(|primary| primary.node),
        set: config.set.clone(),
        preferred: config.replicas.first().copied(),
    });
    led.collect()
}

fn lead_nodes(shared: &Shared, site: &SiteState, now: Duration) -> Vec<LeadNode> {
    let known = |(id, node): (&NodeId, &NodeRecord)| LeadNode {
        node: *id,
        up_for: shared.liveness.work(*id, now).map(|work| work.up_for),
        leaves: weight(shared, *id, node, now) == 0,
    };
    site.nodes.iter().map(known).collect()
}

/// Shares wanted and held, and what will move.
pub(super) fn plan(shared: &Shared) -> BalancePlan {
    let now = shared.engine.clock.uptime();
    shared.engine.group.read(|site| {
        let nodes = client_nodes(shared, site, now);
        let total = nodes.iter().map(|node| node.clients).sum();
        let wanted = clients::wanted(total, &nodes);
        let shards = led_shards(site);
        let due = primaries::due(&shards, &lead_nodes(shared, site, now), PREFERRED_AFTER);
        let primary = |shard: &LedShard| {
            let (from, to) = (shard.primary?, shard.preferred?);
            let due = due.iter().any(|due| due.shard == shard.shard);
            (from != to).then_some(PrimaryMove { shard: shard.shard.0, from, to, due })
        };
        let node = |(id, record): (&NodeId, &NodeRecord)| {
            let at = nodes.iter().position(|node| node.node == *id);
            let count = |led: &dyn Fn(&LedShard) -> bool| {
                u32::try_from(shards.iter().filter(|shard| led(shard)).count()).unwrap_or(u32::MAX)
            };
            BalanceNode {
                id: *id,
                name: record.name.to_string(),
                weight: weight(shared, *id, record, now),
                up: at.is_some(),
                settled: at.is_some_and(|at| nodes[at].settled),
                load: shared.liveness.work(*id, now).map(|work| work.load),
                clients: at.map(|at| nodes[at].clients),
                clients_wanted: at.map_or(0, |at| wanted[at]),
                primaries: count(&|shard| shard.primary == Some(*id)),
                primaries_wanted: count(&|shard| shard.preferred == Some(*id)),
            }
        };
        let flow = |flow: clients::Flow| ClientMove {
            from: flow.from,
            to: flow.to,
            clients: flow.clients,
        };
        BalancePlan {
            site: shared.site.to_string(),
            node: shared.engine.me.node,
            nodes: site.nodes.iter().map(node).collect(),
            clients: clients::flows(&nodes).into_iter().map(flow).collect(),
            primaries: shards.iter().filter_map(primary).collect(),
        }
    })
}
