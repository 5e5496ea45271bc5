//! A site of hundreds of nodes and 100,000 clients, whose reports are late and differ from node to node, whose clients take
//! their time or do not listen, and whose nodes come and go.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    balance::{
        clients::{ClientBalance, ClientNode, wanted},
        roster::{Roster, Seat},
    },
    limits::{
        BALANCE_BAND_MIN, BALANCE_BAND_PERCENT, BALANCE_PATIENCE, BALANCE_ROUND, BALANCE_SETTLED,
        BALANCE_STAY,
    },
    types::NodeId,
};

const NODES: usize = 200;
const CLIENTS: usize = 100_000;
/// Rounds by which a report may be late.
const LATE_MAX: u64 = 3;
/// Rounds that a client may take to move.
const MOVE_MAX: u64 = 2;
/// Of so many clients one does not listen.
const DEAF: u64 = 40;

struct Node {
    weight: u32,
    up_since: Option<Duration>,
    roster: Roster,
    seats: BTreeMap<Seat, usize>,
    balance: ClientBalance,
    /// The newest report that it has heard of each node, by its round: one that is older is not taken any more.
    heard: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Client {
    at: usize,
    seat: Seat,
    deaf: bool,
    moved: Option<Duration>,
}

struct World {
    state: u64,
    now: Duration,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    /// What each node had in each round.
    reports: Vec<Vec<u64>>,
    /// Clients on their way: when they arrive, and where they may go.
    moving: Vec<(Duration, usize, Vec<NodeId>)>,
    moves: u64,
}

fn id(at: usize) -> NodeId {
    NodeId(at as u64 + 1)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            state: seed,
            now: Duration::from_secs(3_600),
            nodes: Vec::new(),
            clients: Vec::new(),
            reports: Vec::new(),
            moving: Vec::new(),
            moves: 0,
        };
        for at in 0..NODES {
            let weight = [50, 100, 100, 200][at % 4];
            world.add(weight, Duration::ZERO);
        }
        world
    }

    fn add(&mut self, weight: u32, up_since: Duration) {
        let balance = ClientBalance::new(id(self.nodes.len()));
        let (roster, seats) = (Roster::default(), BTreeMap::new());
        let (up_since, heard) = (Some(up_since), Vec::new());
        self.nodes.push(Node { weight, up_since, roster, seats, balance, heard });
    }

    /// splitmix64: the seed alone decides.
    fn below(&mut self, most: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut n = self.state;
        n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (n ^ (n >> 31)) % most.max(1)
    }

    fn any_up(&mut self) -> usize {
        loop {
            let at = usize::try_from(self.below(self.nodes.len() as u64)).expect("few");
            if self.nodes[at].up_since.is_some() {
                return at;
            }
        }
    }

    fn sit(&mut self, client: usize, at: usize, moved: bool) {
        let seat = self.nodes[at].roster.enter(self.now, moved);
        self.nodes[at].seats.insert(seat, client);
        (self.clients[client].at, self.clients[client].seat) = (at, seat);
    }

    fn stand(&mut self, client: usize) {
        let Client { at, seat, .. } = self.clients[client];
        let now = self.now;
        self.nodes[at].roster.leave(now, seat);
        self.nodes[at].seats.remove(&seat);
    }

    fn come(&mut self, at: usize) {
        let deaf = self.below(DEAF) == 0;
        let seat = Roster::default().enter(self.now, false);
        self.clients.push(Client { at, seat, deaf, moved: None });
        self.sit(self.clients.len() - 1, at, false);
    }

    /// Its clients go anywhere.
    fn kill(&mut self, at: usize) {
        self.nodes[at].up_since = None;
        for client in self.nodes[at].seats.values().copied().collect::<Vec<_>>() {
            self.stand(client);
            self.moving.retain(|(_, moving, _)| *moving != client);
            let to = self.any_up();
            self.clients[client].moved = None;
            self.sit(client, to, false);
        }
    }

    fn start(&mut self, at: usize) {
        self.nodes[at].up_since = Some(self.now);
        self.nodes[at].balance = ClientBalance::new(id(at));
        self.nodes[at].heard.clear();
    }

    fn seen(&mut self, by: usize) -> Vec<ClientNode> {
        let mut seen = Vec::with_capacity(self.nodes.len());
        let (mut drawn, all) = (0, self.nodes.len());
        self.nodes[by].heard.resize(all, 0);
        for at in 0..self.nodes.len() {
            let Some(since) = self.nodes[at].up_since else { continue };
            drawn = if drawn < 1 << 8 { self.below(u64::MAX) } else { drawn >> 4 };
            let late = usize::try_from(drawn % (LATE_MAX + 1)).expect("few");
            let newest = self.reports.len() - 1;
            let round = if at == by { newest } else { newest.saturating_sub(late) };
            let heard = &mut self.nodes[by].heard;
            heard[at] = heard[at].max(round);
            let report = &self.reports[heard[at]];
            seen.push(ClientNode {
                node: id(at),
                weight: self.nodes[at].weight,
                clients: report.get(at).copied().unwrap_or(0),
                settled: self.now >= since + BALANCE_SETTLED,
            });
        }
        seen
    }

    fn round(&mut self) {
        self.now += BALANCE_ROUND;
        let now = self.now;
        self.reports.push(self.nodes.iter().map(|node| node.roster.len() as u64).collect());
        for at in 0..self.nodes.len() {
            if self.nodes[at].up_since.is_none() {
                continue;
            }
            let seen = self.seen(at);
            let node = &mut self.nodes[at];
            let asks = node.balance.round(now, &seen, node.roster.own(now), false);
            let asked = node.roster.ask(now, asks.len());
            let asked: Vec<usize> = asked.iter().map(|seat| node.seats[seat]).collect();
            for (client, candidates) in asked.into_iter().zip(asks) {
                let arrives =
                    now + BALANCE_ROUND * u32::try_from(self.below(MOVE_MAX)).expect("few");
                if !self.clients[client].deaf {
                    self.moving.push((arrives, client, candidates));
                }
            }
        }
        let (due, later) =
            std::mem::take(&mut self.moving).into_iter().partition(|(at, ..)| *at <= now);
        self.moving = later;
        for (_, client, candidates) in due {
            let to = candidates.iter().map(|node| usize::try_from(node.0).expect("few") - 1);
            let Some(to) = to.into_iter().find(|at| self.nodes[*at].up_since.is_some()) else {
                continue;
            };
            let before = self.clients[client].moved.replace(now);
            let rested = before.is_none_or(|before| now >= before + BALANCE_STAY);
            assert!(rested, "client {client} is sent to and fro");
            self.stand(client);
            self.sit(client, to, true);
            self.moves += 1;
        }
    }

    fn table(&self) -> Vec<ClientNode> {
        let up = self.nodes.iter().enumerate().filter(|(_, node)| node.up_since.is_some());
        let seen = |(at, node): (usize, &Node)| ClientNode {
            node: id(at),
            weight: node.weight,
            clients: node.roster.len() as u64,
            settled: true,
        };
        up.map(seen).collect()
    }

    /// What some have too many when all are settled.
    fn excess(&self) -> u64 {
        let table = self.table();
        let wanted = wanted(CLIENTS as u64, &table);
        table.iter().zip(&wanted).map(|(node, wanted)| node.clients.saturating_sub(*wanted)).sum()
    }

    fn is_even(&self) -> bool {
        let table = self.table();
        let wanted = wanted(CLIENTS as u64, &table);
        table.iter().zip(&wanted).all(|(node, wanted)| {
            let band = (wanted * BALANCE_BAND_PERCENT / 100).max(BALANCE_BAND_MIN);
            node.clients.abs_diff(*wanted) <= band
        })
    }

    /// Until all are even, and on: it must stay so, and nothing may move any more. Gives rounds and moves.
    fn settle(&mut self, what: &str, rounds_max: u32) {
        let (needed, before) = (self.excess(), self.moves);
        let mut rounds = 0;
        while !self.is_even() {
            rounds += 1;
            self.round();
            assert!(rounds <= rounds_max, "{what}: not even after {rounds} rounds");
        }
        let even_after = self.moves - before;
        // One that was asked and stays counts as gone for a while; then another is asked in its place.
        let rest = BALANCE_PATIENCE.as_secs() / BALANCE_ROUND.as_secs() + 2 * MOVE_MAX;
        let (mut quiet, mut more) = (0, 0);
        while quiet < rest {
            let last = self.moves;
            self.round();
            (quiet, more) = (if self.moves == last { quiet + 1 } else { 0 }, more + 1);
            assert!(more <= 6 * rest, "{what}: clients still move after {more} rounds");
        }
        let moves = self.moves - before;
        println!(
            "{what}: even after {rounds} rounds, {even_after} moves, {moves} in all, {needed} needed"
        );
        assert!(self.is_even(), "{what}: uneven again");
        assert!(moves <= needed + needed / 4, "{what}: {moves} moves, {needed} needed");
    }
}

#[test]
fn hundreds_of_nodes_share_100_000_clients_and_come_to_rest() {
    let seed = std::env::var("DUNLIN_SEED").ok().and_then(|seed| seed.parse().ok());
    // The same each time unless asked otherwise.
    let seed = seed.unwrap_or(1);
    println!("DUNLIN_SEED={seed}");
    let mut world = World::new(seed);
    // All clients know one node in ten.
    for _ in 0..CLIENTS {
        let at = usize::try_from(world.below(NODES as u64 / 10)).expect("few") * 10;
        world.come(at);
    }
    world.settle("all at one node in ten", 150);
    for at in 0..10 {
        world.kill(at * 7);
    }
    world.settle("ten nodes are lost", 60);
    for at in 0..10 {
        world.start(at * 7);
    }
    world.settle("they come back", 60);
    for _ in 0..5 {
        world.add(200, world.now);
    }
    world.settle("five join", 60);
    world.nodes[3].weight = 0;
    world.nodes[8].weight = 25;
    // Those who do not listen stay where they are: at most one in ten, by chance.
    let deaf = |world: &World, at: usize| {
        world.nodes[at].seats.values().filter(|client| world.clients[**client].deaf).count()
    };
    // Who came because it was asked stays for a while first.
    let rounds = BALANCE_STAY.as_secs() / BALANCE_ROUND.as_secs() + 20;
    for _ in 0..rounds {
        world.round();
    }
    assert_eq!(world.nodes[3].seats.len(), deaf(&world, 3), "all but the deaf have left");
}
