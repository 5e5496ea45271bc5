use std::time::Duration;

use proptest::{collection::vec, prelude::*};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const LONG: u32 = 600;

fn node(node: u64, weight: u32, clients: u64) -> ClientNode {
    ClientNode { node: NodeId(node), weight, clients, settled: true }
}

fn own(here: u64) -> Own {
    Own { here, leaving: 0, askable: here, left: 0 }
}

/// Nodes that hear each other at once or late, and clients that go where they are asked to.
struct Site {
    nodes: Vec<ClientNode>,
    balances: Vec<ClientBalance>,
    now: Duration,
    moves: u64,
    /// Rounds by which the latest report is late; others less.
    late: usize,
    /// All nodes in each round.
    reports: Vec<Vec<ClientNode>>,
    /// How many each asked in each round.
    asked: Vec<Vec<u64>>,
}

impl Site {
    fn of(nodes: &[ClientNode]) -> Self {
        let balances = nodes.iter().map(|node| ClientBalance::new(node.node)).collect();
        let (nodes, now, reports) = (nodes.to_vec(), Duration::ZERO, Vec::new());
        let asked = vec![Vec::new(); nodes.len()];
        Self { nodes, balances, now, moves: 0, late: 0, reports, asked }
    }

    /// What a node knows of all: of itself the newest.
    fn seen(&self, by: usize) -> Vec<ClientNode> {
        let newest = self.reports.len() - 1;
        let late = |at: usize| if at == by { 0 } else { (at + 3 * by) % (self.late + 1) };
        let known = |at: usize| self.reports[newest.saturating_sub(late(at))][at];
        (0..self.nodes.len()).map(known).collect()
    }

    /// One round of all nodes. Gives how many clients moved.
    fn round(&mut self) -> u64 {
        self.now += SECOND;
        self.reports.push(self.nodes.clone());
        let mut moved = 0;
        for at in 0..self.nodes.len() {
            let seen = self.seen(at);
            let left = self.asked[at].iter().rev().take(3).sum();
            let own = Own { left, ..own(seen[at].clients) };
            let before = moved;
            for candidates in self.balances[at].round(self.now, &seen, own, false) {
                let to = self.nodes.iter().position(|node| node.node == candidates[0]);
                self.nodes[at].clients -= 1;
                self.nodes[to.expect("a node of the site")].clients += 1;
                moved += 1;
            }
            self.asked[at].push(moved - before);
        }
        self.moves += moved;
        moved
    }

    /// Until nothing has moved for longer than anything waits. Gives the round of the last move.
    fn rest(&mut self) -> u32 {
        let mut last = 0;
        for round in 0..LONG {
            match self.round() {
                0 if round > last + 20 => return last,
                0 => {}
                _ => last = round,
            }
        }
        panic!("it does not come to rest: {:?}", self.nodes);
    }

    fn clients(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.clients).collect()
    }
}

#[test]
fn a_node_with_too_many_asks_a_few_at_a_time_and_stops_at_its_share() {
    let mut site = Site::of(&[node(1, 100, 180), node(2, 100, 120), node(3, 50, 0)]);
    let last = site.rest();
    assert_eq!((site.clients(), site.moves), (vec![120, 120, 60], 60));
    assert!((5..30).contains(&last), "{last} rounds");
}

#[test]
fn nothing_moves_before_it_was_uneven_for_a_while_unless_somebody_says_now() {
    let nodes = [node(1, 100, 50), node(2, 100, 0)];
    let mut balance = ClientBalance::new(NodeId(1));
    assert_eq!(balance.round(SECOND, &nodes, own(50), false), Vec::<Vec<NodeId>>::new());
    assert_eq!(balance.round(SECOND + BALANCE_HOLD, &nodes, own(50), false).len(), 4);
    let mut balance = ClientBalance::new(NodeId(1));
    assert_eq!(balance.round(SECOND, &nodes, own(50), true).len(), 4);
}

#[test]
fn those_on_their_way_count_as_gone_and_bound_how_many_more_are_asked() {
    let nodes = [node(1, 100, 50), node(2, 100, 0)];
    let ask = |leaving, askable| {
        let own = Own { here: 50, leaving, askable, left: 0 };
        ClientBalance::new(NodeId(1)).round(SECOND, &nodes, own, true).len()
    };
    assert_eq!((ask(0, 50), ask(3, 47), ask(4, 46)), (4, 1, 0));
    assert_eq!(ask(25, 25), 0, "all that are too many are on their way");
    assert_eq!(ask(0, 1), 1, "the others were asked lately");
}

#[test]
fn a_node_that_has_just_come_up_is_given_none_and_gives_none() {
    let young = |clients| ClientNode { settled: false, ..node(2, 100, clients) };
    let mut balance = ClientBalance::new(NodeId(1));
    let found = balance.round(SECOND, &[node(1, 100, 50), young(0)], own(50), true);
    assert_eq!(found, Vec::<Vec<NodeId>>::new());
    let mut balance = ClientBalance::new(NodeId(2));
    let found = balance.round(SECOND, &[node(1, 100, 0), young(50)], own(50), true);
    assert_eq!(found, Vec::<Vec<NodeId>>::new());
}

#[test]
fn a_node_of_weight_0_gives_all_up_and_a_site_without_others_keeps_them() {
    let mut site = Site::of(&[node(1, 0, 40), node(2, 10, 0), node(3, 30, 0)]);
    site.rest();
    assert_eq!((site.clients(), site.moves), (vec![0, 10, 30], 40));
    let mut site = Site::of(&[node(1, 0, 40), node(2, 0, 0)]);
    site.rest();
    assert_eq!((site.clients(), site.moves), (vec![40, 0], 0));
}

/// With them the node would be even; without them others go in their place, down to the same share.
#[test]
fn for_those_that_were_asked_and_stay_others_are_asked() {
    let nodes = [node(1, 100, 16), node(2, 100, 0)];
    let mut balance = ClientBalance::new(NodeId(1));
    let mut round = |second: u32, leaving: u64, there: u64| {
        let nodes = [nodes[0], node(2, 100, there)];
        let own = Own { leaving, ..own(16 - there) };
        balance.round(second * SECOND, &nodes, own, second == 1).len()
    };
    assert_eq!(round(1, 0, 0), 4);
    // Three of them do not go.
    assert_eq!((round(2, 3, 1), round(6, 3, 5)), (1, 0));
    assert_eq!(round(11, 0, 5), 3, "within the band, and yet not done");
    assert_eq!(round(20, 0, 8), 0);
}

/// The one that takes has less than its share by more than the band, those that give have more by less than it.
#[test]
fn many_that_have_a_little_too_many_give_to_one_that_has_none() {
    let mut nodes: Vec<ClientNode> = (1..=20).map(|id| node(id, 100, 105)).collect();
    nodes.push(node(21, 100, 0));
    let mut site = Site::of(&nodes);
    site.rest();
    assert_eq!((site.clients(), site.moves), (vec![100; 21], 100));
}

#[test]
fn the_sum_of_late_reports_is_not_taken_for_fewer_clients() {
    let mut balance = ClientBalance::new(NodeId(1));
    let at = |balance: &mut ClientBalance, second: u32, here: u64, other: u64| {
        let nodes = [node(1, 100, here), node(2, 100, other)];
        balance.round(second * SECOND, &nodes, own(here), true).len()
    };
    assert_eq!(at(&mut balance, 1, 8, 0), 4);
    // They have left, and the other one has not said yet that it has them: of 4 clients 2 would be too many.
    assert_eq!(at(&mut balance, 2, 4, 0), 0);
    assert_eq!(at(&mut balance, 3, 4, 4), 0);
}

#[test]
fn what_is_shown_is_what_moves() {
    let nodes = [node(1, 100, 180), node(2, 100, 120), node(3, 50, 0)];
    let flow = |from, to, clients| Flow { from: NodeId(from), to: NodeId(to), clients };
    assert_eq!(flows(&nodes), [flow(1, 3, 60)]);
    assert_eq!(flows(&[node(1, 100, 62), node(2, 100, 60)]), [], "within the band");
    let found = flows(&[node(1, 0, 10), node(2, 100, 0), node(3, 100, 1), node(4, 0, 0)]);
    assert_eq!(found, [flow(1, 2, 6), flow(1, 3, 4)]);
}

fn nodes() -> impl Strategy<Value = Vec<ClientNode>> {
    let node = (prop_oneof![4 => 1..1_001_u32, 1 => Just(0)], 0..400_u64);
    vec(node, 1..12).prop_map(|nodes| {
        (1..).zip(nodes).map(|(id, (weight, clients))| self::node(id, weight, clients)).collect()
    })
}

proptest! {
    /// From any start: each node ends at its share, or nothing was far enough from it to move; what moves is what some had
    /// too many, and not one client more.
    #[test]
    fn it_comes_to_rest_at_the_shares_by_the_fewest_moves(nodes in nodes()) {
        let total = nodes.iter().map(|node| node.clients).sum();
        let wanted = wanted(total, &nodes);
        let needed: u64 = flows(&nodes).iter().map(|flow| flow.clients).sum();
        let mut site = Site::of(&nodes);
        site.rest();
        prop_assert_eq!(site.moves, needed);
        if nodes.iter().all(|node| node.weight == 0) {
            prop_assert_eq!(needed, 0);
        } else if needed > 0 {
            prop_assert_eq!(site.clients(), wanted);
        } else {
            let before: Vec<u64> = nodes.iter().map(|node| node.clients).collect();
            prop_assert_eq!(site.clients(), before);
        }
    }

    /// Reports of several rounds ago change neither that it ends nor, by much, what it takes.
    #[test]
    fn it_comes_to_rest_near_the_shares_also_when_reports_are_late(
        nodes in nodes(),
        late in 1..4_usize,
    ) {
        let total = nodes.iter().map(|node| node.clients).sum();
        let needed: u64 = flows(&nodes).iter().map(|flow| flow.clients).sum();
        let mut site = Site { late, ..Site::of(&nodes) };
        site.rest();
        prop_assert!(!Table::of(total, &site.nodes).uneven, "{:?}", site.nodes);
        let slack = needed / 4 + BALANCE_BAND_MIN * nodes.len() as u64;
        prop_assert!(site.moves <= needed + slack, "{} moves, {needed} needed", site.moves);
    }

    #[test]
    fn nothing_moves_within_the_band(
        weights in vec(1..1_001_u32, 2..12),
        total in 0..5_000_u64,
        off in vec(0..4_u64, 12),
    ) {
        let wanted = shares(total, &weights);
        // Taken from one and given to the next: each is off by no more than the least band.
        let mut clients = wanted.clone();
        for at in 0..clients.len() {
            let next = (at + 1) % clients.len();
            let most = (clients[at] + BALANCE_BAND_MIN).saturating_sub(wanted[at]);
            let room = (wanted[next] + BALANCE_BAND_MIN).saturating_sub(clients[next]);
            let by = off[at].min(most).min(room).min(clients[at]);
            clients[at] -= by;
            clients[next] += by;
        }
        let nodes: Vec<ClientNode> = (1..).zip(weights.iter().zip(&clients))
            .map(|(id, (weight, clients))| node(id, *weight, *clients)).collect();
        let mut site = Site::of(&nodes);
        site.rest();
        prop_assert_eq!(site.moves, 0);
    }

    /// Whoever asks the same gets the same, and nobody is sent to a node that has its share.
    #[test]
    fn a_round_names_nodes_that_lack_clients_each_once(nodes in nodes(), me in 1..12_u64) {
        let here = nodes.iter().find(|node| node.node == NodeId(me)).map_or(0, |n| n.clients);
        let ask = || ClientBalance::new(NodeId(me)).round(SECOND, &nodes, own(here), true);
        let asked = ask();
        prop_assert_eq!(&asked, &ask());
        let wanted = wanted(nodes.iter().map(|node| node.clients).sum(), &nodes);
        for candidates in asked {
            prop_assert!((1..=BALANCE_CANDIDATES_MAX).contains(&candidates.len()));
            for (nth, candidate) in candidates.iter().enumerate() {
                prop_assert!(!candidates[..nth].contains(candidate));
                let at = nodes.iter().position(|node| node.node == *candidate).expect("known");
                prop_assert!(nodes[at].clients < wanted[at]);
            }
        }
    }
}
