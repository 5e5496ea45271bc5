//! Many clients over nodes of unequal weight, under load: where they are, what a move costs them, and whether any record is lost or
//! doubled by it. A node goes and comes back, and a fourth one joins.

use std::{
    mem,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use dunlin::{
    client::{Acks, Client, NodeId},
    limits::{BALANCE_BAND_MIN, BALANCE_BAND_PERCENT, BALANCE_STAY, NODE_WEIGHT_DEFAULT},
    wire::BalancePlan,
};
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    TOPICS,
    history::{
        checker::{History, Outcome, check},
        load::{Habit, Run},
    },
    read_everywhere,
    site::{PATIENCE, Site},
};

/// Of the first three nodes.
const WEIGHTS: [u32; 3] = [100, 100, 50];
/// How far a node may be off its share, in percent of it.
const OFF_MAX: u64 = 10;
/// How soon shares are as they should be when a node has come back.
const BACK_MAX: Duration = Duration::from_secs(60);
/// The same when one has joined: those that have just moved stay for a while.
const JOINED_MAX: Duration = Duration::from_secs(120);
/// What a move may cost a client, for 99 of 100.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Around the moment at which a move is seen.
const NEAR: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Clients that connect at once.
const CONNECTING: usize = 8;
/// Records a second, of all clients.
const RATE: u32 = 2_000;

/// Where clients are, and when they were first seen there.
#[derive(Debug, Default)]
struct Places {
    now: Vec<NodeId>,
    moves: Vec<Move>,
}

#[derive(Clone, Copy, Debug)]
struct Move {
    client: usize,
    at: Instant,
}

struct Spread {
    site: Site,
    admin: Client,
    clients: Vec<Client>,
    run: Arc<Run>,
    places: Arc<Mutex<Places>>,
    watch: JoinHandle<()>,
    producers: JoinSet<Vec<super::history::checker::Operation>>,
    readers: JoinSet<String>,
    /// When the node was down: what clients waited then is no cost of a move.
    faults: Vec<(Instant, Instant)>,
    /// Where more moved than was needed.
    too_many: Vec<String>,
}

/// The whole of it, with a verdict.
pub(crate) async fn measure(site: Site, count: usize) {
    let mut spread = Spread::start(site, count).await;
    spread.until_even("connected", PATIENCE).await;
    spread.restart(1).await;
    spread.add().await;
    spread.judge().await;
}

impl Spread {
    async fn start(site: Site, count: usize) -> Self {
        let admin = Client::connect(&site.profile_of(0)).await.unwrap();
        let status = admin.cluster().status().await.unwrap();
        for (number, weight) in WEIGHTS.iter().enumerate() {
            let id = status.nodes.iter().find(|node| node.name == site.name(number)).unwrap().id;
            admin.cluster().set_node(id, Some(*weight), None).await.unwrap();
        }
        let begun = Instant::now();
        let (room, mut connecting) = (Arc::new(Semaphore::new(CONNECTING)), JoinSet::new());
        for _ in 0..count {
            let (room, profile) = (Arc::clone(&room), site.profile().clone());
            connecting.spawn(async move {
                let _place = room.acquire().await.unwrap();
                Client::connect(&profile).await.unwrap()
            });
        }
        let clients = connecting.join_all().await;
        println!("{count} clients are connected after {:?}", begun.elapsed());

        let tick = Duration::from_secs(1) * u32::try_from(count).unwrap() / RATE;
        let habit = |number: usize| Habit {
            topic: number % TOPICS.len(),
            // Each waits for its ack, so that it is known how long that took.
            waiting_max: 1,
            tick,
            records_per_tick: 1,
            options: |builder| builder.acks(Acks::Replicated),
        };
        let habits: Vec<Habit> = (0..count).map(habit).collect();
        let run = Arc::new(Run::new(TOPICS, habits.leak(), PATIENCE));
        run.create_topics(&admin).await;
        let (mut readers, mut producers) = (JoinSet::new(), JoinSet::new());
        for (topic, client) in clients.iter().enumerate().take(TOPICS.len()) {
            readers.spawn(Arc::clone(&run).read_live(client.clone(), topic));
        }
        for (number, client) in clients.iter().enumerate() {
            producers.spawn(run.producer(number, client).await.work());
        }
        let places = Arc::new(Mutex::new(Places::default()));
        let watch = tokio::spawn(watch(clients.clone(), Arc::clone(&places)));
        let (faults, too_many) = (Vec::new(), Vec::new());
        Self { site, admin, clients, run, places, watch, producers, readers, faults, too_many }
    }

    /// A node is stopped under load, and started again when nobody is left without a place.
    async fn restart(&mut self, number: usize) {
        let id = self.id_of(number).await;
        let stopped = Instant::now();
        let took = self.site.stop(number).await.unwrap();
        self.site.restart(number).await.unwrap();
        let had = self.at(id);
        let back = Instant::now();
        self.faults.push((stopped, back + NEAR));
        println!("{} is stopped in {took:?}, and back with {had} clients", self.site.name(number));
        self.moves_no_more_than_needed(self.share(WEIGHTS[number], &WEIGHTS), id, BACK_MAX).await;
    }

    /// A fourth node joins.
    async fn add(&mut self) {
        let number = self.site.add().await.unwrap();
        let id = self.id_of(number).await;
        println!("{} has joined", self.site.name(number));
        let [first, second, third] = WEIGHTS;
        let all = [first, second, third, NODE_WEIGHT_DEFAULT];
        let share = self.share(NODE_WEIGHT_DEFAULT, &all);
        self.moves_no_more_than_needed(share, id, JOINED_MAX).await;
    }

    fn share(&self, weight: u32, all: &[u32]) -> u64 {
        self.clients.len() as u64 * u64::from(weight) / u64::from(all.iter().sum::<u32>())
    }

    /// Waits until all is as it should be. What may move is what one node lacks, and for each of the others what the band allows.
    async fn moves_no_more_than_needed(&mut self, wanted: u64, to: NodeId, most: Duration) {
        let moves = || self.places.lock().unwrap().moves.len() as u64;
        let (before, had) = (moves(), self.at(to));
        self.until_even("again", most).await;
        let moved = moves() - before;
        let band = (wanted * BALANCE_BAND_PERCENT / 100).max(BALANCE_BAND_MIN);
        let needed = wanted.saturating_sub(had);
        println!("  {moved} moved, {needed} were lacking");
        if moved > needed + 3 * band {
            // Judged at the end: what moved too much may still have lost nothing.
            self.too_many.push(format!("{moved} moved, {needed} were lacking"));
        }
    }

    async fn until_even(&self, what: &str, most: Duration) {
        let begun = Instant::now();
        let all = self.clients.len() as u64 + 1;
        let mut looks = interval(LOOK_EVERY * 2);
        let mut led_after = None;
        let mut near_after = None;
        loop {
            looks.tick().await;
            let plan = self.plan().await;
            let held: u64 = plan.nodes.iter().filter_map(|node| node.clients).sum();
            let whole = held >= all && plan.nodes.iter().all(|node| node.settled);
            if whole && plan.nodes.iter().all(is_near) {
                near_after.get_or_insert(begun.elapsed());
            }
            if plan.nodes.iter().all(|n| n.settled && n.primaries == n.primaries_wanted) {
                led_after.get_or_insert(begun.elapsed());
            }
            let at_rest = whole && plan.clients.is_empty() && plan.primaries.is_empty();
            if let (Some(near), Some(led), true) = (near_after, led_after, at_rest) {
                let of = |n: &dunlin::wire::BalanceNode| {
                    format!(
                        "{} {}/{}, leads {}",
                        n.name,
                        n.clients.unwrap_or(0),
                        n.clients_wanted,
                        n.primaries
                    )
                };
                let nodes: Vec<String> = plan.nodes.iter().map(of).collect();
                println!(
                    "{what}: within {OFF_MAX} % after {near:?}, led as wanted after {led:?}, at rest after {:?}: {}",
                    begun.elapsed(),
                    nodes.join("; ")
                );
                assert!(plan.nodes.iter().all(is_near), "{plan:?}");
                assert!(near < most, "{near:?}");
                return;
            }
            assert!(begun.elapsed() < most + BALANCE_STAY, "not {what}: {plan:?}");
        }
    }

    async fn plan(&self) -> BalancePlan {
        self.admin.cluster().balance_plan().await.unwrap()
    }

    async fn id_of(&self, number: usize) -> NodeId {
        let name = self.site.name(number);
        let plan = self.plan().await;
        plan.nodes.iter().find(|node| node.name == name).unwrap().id
    }

    fn at(&self, node: NodeId) -> u64 {
        self.places.lock().unwrap().now.iter().filter(|place| **place == node).count() as u64
    }

    /// Lets all end, and looks at what everybody saw.
    async fn judge(mut self) {
        self.run.stop.store(true, SeqCst);
        let operations =
            timeout(PATIENCE, mem::take(&mut self.producers).join_all()).await.unwrap().concat();
        self.watch.abort();
        let last = read_everywhere(&self.site, &self.run, &operations).await.unwrap();
        let live = self.run.live(&last).await.unwrap();
        assert!(self.readers.try_join_next().is_none(), "a live reader ended");
        let acked = operations.iter().filter(|o| matches!(o.outcome, Outcome::Ok(_))).count();
        let errors = operations.len() - acked;
        let found = check(&History { operations, live, last });
        let (mut pauses, mut usual) = self.waits();
        println!("{acked} records acked, {errors} errors, {found}");
        println!("{:34} {:>7} {:>7} {:>7} {:>7}", "ms to the ack", "n", "p50", "p99", "max");
        row("longest around a move", &mut pauses);
        row("of all the others", &mut usual);
        assert!(found.is_clean(), "{}", found.examples());
        assert_eq!(errors, 0);
        assert_eq!(self.too_many, Vec::<String>::new());
    }

    /// The longest wait of each move, and all waits when neither that client moved nor a node was down.
    fn waits(&self) -> (Vec<Duration>, Vec<Duration>) {
        let places = self.places.lock().unwrap();
        let (mut pauses, mut usual) = (Vec::new(), Vec::new());
        let in_fault = |at: Instant| self.faults.iter().any(|(from, to)| *from <= at && at <= *to);
        for client in 0..self.clients.len() {
            let waits = self.run.waits(client);
            let of_it = places.moves.iter().filter(|one| one.client == client);
            let moves: Vec<Instant> = of_it.map(|one| one.at).filter(|at| !in_fault(*at)).collect();
            let near = |acked: Instant, at: Instant| acked + NEAR > at && acked < at + NEAR;
            for at in &moves {
                let around = waits.iter().filter(|(acked, _)| near(*acked, *at));
                pauses.extend(around.map(|(_, took)| *took).max());
            }
            let others = waits.iter().filter(|(acked, _)| {
                !in_fault(*acked) && !moves.iter().any(|at| near(*acked, *at))
            });
            usual.extend(others.map(|(_, took)| *took));
        }
        (pauses, usual)
    }
}

fn row(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let Some(longest) = times.last() else { return println!("{what:34}       0") };
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let missed = what.contains("move") && at(99) > PAUSE_MAX;
    println!(
        "{what:34} {:>7} {:>7} {:>7} {:>7}{}",
        times.len(),
        at(50).as_millis(),
        at(99).as_millis(),
        longest.as_millis(),
        if missed { format!("!  wanted: p99 <= {}", PAUSE_MAX.as_millis()) } else { String::new() }
    );
}

/// Looks again and again where clients are.
async fn watch(clients: Vec<Client>, places: Arc<Mutex<Places>>) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        for (client, handle) in clients.iter().enumerate() {
            // One that has lost its node is on its way.
            let Ok(welcome) = handle.welcome().await else { continue };
            let mut places = places.lock().unwrap();
            match places.now.get(client).copied() {
                None => places.now.push(welcome.node_id),
                Some(node) if node != welcome.node_id => {
                    places.now[client] = welcome.node_id;
                    places.moves.push(Move { client, at: Instant::now() });
                }
                Some(_) => {}
            }
        }
    }
}

/// Within what is wanted, or what a small share makes of it.
fn is_near(node: &dunlin::wire::BalanceNode) -> bool {
    let most = (node.clients_wanted * OFF_MAX / 100).max(BALANCE_BAND_MIN);
    node.clients.is_some_and(|clients| clients.abs_diff(node.clients_wanted) <= most)
}
