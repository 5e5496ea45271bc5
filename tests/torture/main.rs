//! Sites of several real processes under load, put through faults; a checker judges what everybody saw.
//!
//! `DUNLIN_SEED` repeats a run, `DUNLIN_TORTURE_SECS` and `DUNLIN_TORTURE_SEEDS` make it longer, `DUNLIN_TORTURE_FAULTS`
//! names the kinds of faults, `DUNLIN_TORTURE_KEEP` keeps the files of a run that failed. `just torture` explains them.
//! `DUNLIN_PROGRAM` names another program for the nodes than the one that was built with the tests.

#![allow(
    clippy::disallowed_methods,
    reason = "tests stand outside: they use the machine's clock and tasks"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a test prints is shown when it fails"
)]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test, by its line")]

#[path = "../history/mod.rs"]
mod history;

mod avahi;
mod clock;
mod cold;
mod discovery;
mod failover;
mod far;
mod fault;
mod lab;
mod moving;
mod network;
mod site;
mod slow;
mod spoof;
mod spread;
mod upgrade;
mod wire;

use std::{
    collections::BTreeMap,
    env,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::SeqCst},
    thread,
    time::Duration,
};

use dunlin::client::{Acks, Client};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use self::history::{
    checker::{Findings, History, Operation, Outcome, Session, check},
    load::{Habit, Run, Topic},
};
use self::{
    fault::{Damage, Fault, Round},
    network::Network,
    site::{PATIENCE, Shape, Site},
};

const TOPICS: &[Topic] = &[("torture/one", 1), ("torture/three", 3), ("torture/six", 6)];
const PRODUCERS: &[Habit] = &[
    Habit { topic: 0, ..BUSY },
    Habit { topic: 1, ..BUSY },
    Habit { topic: 2, ..BUSY },
    Habit { topic: 2, waiting_max: 1, options: |builder| builder.acks(Acks::Replicated), ..BUSY },
    // An impatient one, so that the history gets some whose fate is unknown.
    Habit { topic: 1, options: |builder| builder.deadline(Duration::from_millis(400)), ..BUSY },
];
/// With all the time that they need: where applications must see no error.
const PATIENT: &[Habit] = &[
    Habit { topic: 0, ..BUSY },
    Habit { topic: 1, ..BUSY },
    Habit { topic: 2, ..BUSY },
    Habit { topic: 2, waiting_max: 1, ..BUSY },
];
const BUSY: Habit = Habit {
    topic: 0,
    waiting_max: 200,
    tick: Duration::from_millis(10),
    records_per_tick: 2,
    options: |builder| builder.acks(Acks::Replicated).batch_bytes(1_000),
};
const THREE: Shape = Shape { data: 3, witnesses: 0, shards: 6 };

/// What a run did and found.
#[derive(Debug, Default)]
struct Report {
    faults: BTreeMap<String, u32>,
    operations: usize,
    acks: usize,
    unknown: usize,
    failed: usize,
    found: Findings,
}

/// What is done in a run: rounds that are given, then drawn ones until the time is over.
struct Plan {
    seed: u64,
    given: Vec<Vec<Fault>>,
    drawn: Vec<Fault>,
    time: Duration,
}

/// Runs a future where the clients of a network live.
fn block_on<T: Send>(network: Network, work: impl AsyncFnOnce(Network) -> T + Send) -> T {
    // One site at a time: several would measure each other's load.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let inside = || {
        // Threads of the runtime are where this one is.
        network.enter();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(work(network))
    };
    thread::scope(|scope| scope.spawn(inside).join()).unwrap()
}

async fn torture(mut site: Site, plan: &Plan) -> Report {
    let seed = plan.seed;
    match put_through(&mut site, plan).await {
        Ok(report) if report.found.is_clean() => report,
        Ok(report) => panic!("DUNLIN_SEED={seed}: {}\n{}", report.found, report.found.examples()),
        Err(why) => panic!("DUNLIN_SEED={seed}: {why}"),
    }
}

async fn put_through(site: &mut Site, plan: &Plan) -> Result<Report, String> {
    let mut report = Report::default();
    let run = Arc::new(Run::new(TOPICS, PRODUCERS, PATIENCE));
    run.create_topics(&connect(site).await?).await;
    let mut readers = JoinSet::new();
    for number in 0..TOPICS.len() {
        readers.spawn(Arc::clone(&run).read_live(connect(site).await?, number));
    }
    let mut producers = JoinSet::new();
    for number in 0..PRODUCERS.len() {
        producers.spawn(run.producer(number, &connect(site).await?).await.work());
    }

    let mut rng = StdRng::seed_from_u64(plan.seed);
    let mut given = plan.given.iter();
    let (begun, mut rounds) = (Instant::now(), 0);
    loop {
        let round = match given.next() {
            Some(faults) => Round::of(faults.clone(), &mut rng),
            None if begun.elapsed() < plan.time => Round::draw(&plan.drawn, &mut rng),
            None => break,
        };
        rounds += 1;
        let in_round = |why: String| format!("round {rounds}, {round}: {why}");
        one_round(site, &run, &round, &mut report).await.map_err(in_round)?;
        if let Some(Ok(why)) = readers.try_join_next() {
            return Err(in_round(format!("a live reader ended: {why}")));
        }
    }

    run.stop.store(true, SeqCst);
    let operations = timeout(PATIENCE * 2, producers.join_all()).await;
    let operations = operations.map_err(|_| "producers do not end")?.concat();
    let last = read_everywhere(site, &run, &operations).await?;
    let live = run.live(&last).await?;
    drop(readers);
    let count = |is: fn(&Outcome) -> bool| operations.iter().filter(|o| is(&o.outcome)).count();
    report.acks = count(|outcome| matches!(outcome, Outcome::Ok(_)));
    report.unknown = count(|outcome| *outcome == Outcome::Unknown);
    report.failed = count(|outcome| *outcome == Outcome::Failed);
    report.operations = operations.len();
    report.found = check(&History { operations, live, last });
    println!(
        "seed {} {:?} rounds {rounds} {:?} operations {} acks {} unknown {} failed {} {}",
        plan.seed,
        site.shape,
        report.faults,
        report.operations,
        report.acks,
        report.unknown,
        report.failed,
        report.found
    );
    Ok(report)
}

async fn one_round(
    site: &mut Site,
    run: &Run,
    round: &Round,
    report: &mut Report,
) -> Result<(), String> {
    run.progress(round.before).await?;
    site.revive().await?;
    let mut damage = Damage::default();
    let begun = Instant::now();
    let acks = || run.acks().iter().sum::<u64>();
    let before = acks();
    let mut done = Vec::new();
    for number in 0..round.faults.len() {
        if number > 0 {
            sleep(round.between).await;
        }
        done.push(damage.inflict(site, round, number).await?);
        *report.faults.entry(round.faults[number].kind()).or_default() += 1;
    }
    let mut resumed = String::new();
    if let [fault] = round.faults[..]
        && fault.is_survived()
    {
        let since = Instant::now();
        // Over such lines hardly anything is answered as soon as the impatient one wants it, which is the last.
        let impatient = usize::from(fault == Fault::BadLines);
        let progress = run.progress_of(0..PRODUCERS.len() - impatient, Duration::ZERO);
        progress.await.map_err(|why| format!("{done:?}: {why}"))?;
        resumed = format!("all producers on after {:?}, ", since.elapsed());
    }
    sleep(round.lasts.saturating_sub(begun.elapsed())).await;
    let during = acks() - before;
    let mending = Instant::now();
    damage.mend(site).await.map_err(|why| format!("{done:?}, mended: {why}"))?;
    let mended = mending.elapsed();
    println!("  {}: {resumed}{during} acks, whole again in {mended:?}", done.join(", "));
    Ok(())
}

/// Each topic through each node alone. One that is behind for a moment gets time to have all.
async fn read_everywhere(
    site: &Site,
    run: &Run,
    operations: &[Operation],
) -> Result<Vec<Session>, String> {
    let mut last: Vec<Session> = Vec::new();
    for number in site.nodes() {
        let client = Client::connect(&site.profile_of(number)).await;
        let client = client.map_err(|error| format!("{}: {error}", site.name(number)))?;
        for topic in 0..TOPICS.len() {
            let is_acked = |o: &&Operation| o.topic == topic && matches!(o.outcome, Outcome::Ok(_));
            let acked = operations.iter().filter(is_acked).count();
            let others = last.iter().filter(|session| session.topic == topic);
            let least = others.map(|session| session.seen.len()).chain([acked]).max().unwrap_or(0);
            let deadline = Instant::now() + Duration::from_secs(10);
            let session = loop {
                let session = run.read_all(&client, topic, site.name(number)).await?;
                if session.seen.len() >= least || Instant::now() > deadline {
                    break session;
                }
                sleep(Duration::from_millis(50)).await;
            };
            last.push(session);
        }
        client.close().await;
    }
    Ok(last)
}

async fn connect(site: &Site) -> Result<Client, String> {
    Client::connect(site.profile()).await.map_err(|error| error.to_string())
}

fn number_from(variable: &str) -> Option<u64> {
    env::var(variable).ok().filter(|text| !text.is_empty()).map(|text| text.parse().unwrap())
}

fn plan(given: &[&[Fault]]) -> Plan {
    // The same each time unless asked otherwise: `just torture` draws new ones.
    let seed = number_from("DUNLIN_SEED").unwrap_or(1);
    println!("DUNLIN_SEED={seed}");
    let given = given.iter().map(|faults| faults.to_vec()).collect();
    Plan { seed, given, drawn: vec![], time: Duration::ZERO }
}

/// A network in which hosts can be cut off. Without root there is none, which is said.
fn switched(shape: Shape) -> Option<Network> {
    switched_hosts(shape.nodes())
}

fn switched_hosts(hosts: usize) -> Option<Network> {
    let needs =
        network::run("unshare", &["--net", "true"]).and(network::run("nft", &["--version"]));
    if let Err(why) = needs {
        println!("no network namespaces ({why}): nothing is cut here");
        return None;
    }
    Some(Network::switched(hosts).unwrap())
}

/// The faults that `DUNLIN_TORTURE_FAULTS` names by the beginnings of their kinds, else all of them.
fn wanted(all: Vec<Fault>) -> Vec<Fault> {
    let names = env::var("DUNLIN_TORTURE_FAULTS").unwrap_or_default();
    let is_wanted =
        |fault: &Fault| names.split(',').any(|name| fault.kind().starts_with(name.trim()));
    let wanted: Vec<Fault> = all.into_iter().filter(is_wanted).collect();
    assert!(!wanted.is_empty(), "no fault is called like one of '{names}'");
    wanted
}

/// A site that can be put through all that its network allows: with clocks of its own, and with small disks.
async fn site(shape: Shape, network: Network) -> Site {
    let mut site = Site::start(shape, network).await;
    site.own_clocks();
    for number in site.nodes() {
        site.stop(number).await.unwrap();
        // Without root there are no disks to fill.
        if matches!(site.network, Network::Switch(_)) && number < shape.data {
            site.own_disk(number, DISK_MIB).unwrap();
        }
        site.restart(number).await.unwrap();
    }
    site.in_sync(PATIENCE).await.unwrap();
    // Of two voters, and a third node that does not vote yet, none may be lost.
    site.all_vote().await.unwrap();
    site
}

#[test]
fn three_processes_that_are_killed_keep_their_word() {
    use fault::{
        Fault::{Kill, KillAll},
        Who::{Controller, Primary},
    };
    let plan = plan(&[&[Kill(Primary)], &[Kill(Controller)], &[KillAll]]);
    block_on(Network::Loopback, async |network| {
        torture(Site::start(THREE, network).await, &plan).await
    });
}

#[test]
fn a_site_whose_network_fails_keeps_its_word() {
    use fault::{
        Fault::{CutPair, CutPrimary, Isolate, Loss},
        Who::Primary,
    };
    let given: [&[Fault]; 3] = [&[Isolate(Primary)], &[CutPrimary], &[CutPair, Loss]];
    let plan = plan(&given);
    let Some(network) = switched(THREE) else { return };
    block_on(network, async |network| torture(Site::start(THREE, network).await, &plan).await);
}

#[test]
fn clients_of_other_nodes_do_not_wait_for_connections_to_a_dead_one() {
    block_on(Network::Loopback, async |network| {
        let mut site = Site::start(failover::SHAPE, network).await;
        let topic = failover::topic(&site).await;
        let (dead, waits) = failover::once(&mut site, &topic, failover::Trial::PrimaryKilled).await;
        for (at, wait) in waits.into_iter().filter(|(at, _)| *at != dead) {
            // Connections between nodes end after 3 s of silence.
            assert!(wait < Duration::from_millis(2_900), "{wait:?} by {}", site.name(at));
        }
    });
}

/// Clients of a node that is cut from one other wait a bounded time. Looked at so often.
fn clients_of_a_cut_node_go_on(trial: failover::Trial, times: usize) {
    let Some(network) = switched(failover::SHAPE) else { return };
    block_on(network, async |network| {
        let mut site = Site::start(failover::SHAPE, network).await;
        let topic = failover::topic(&site).await;
        // Of two voters that do not hear each other neither could lead.
        site.all_vote().await.unwrap();
        let mut seen = 0;
        while seen < times {
            // A client chooses its node: one of three is likely to be at this one, and not sure to be.
            let (cut, waits) = failover::once(&mut site, &topic, trial).await;
            for (_, wait) in waits.into_iter().filter(|(at, _)| *at == cut) {
                // 700 ms until it is missed, 1.5 s more, and a new connection.
                assert!(wait < Duration::from_secs(6), "{wait:?}\n{}", site.logs());
                seen += 1;
            }
        }
    });
}

#[test]
fn a_node_that_is_cut_from_the_one_that_leads_sends_its_clients_to_another() {
    clients_of_a_cut_node_go_on(failover::Trial::PrimaryCutFromOne, 1);
}

#[test]
fn a_primary_that_is_replaced_and_cannot_hear_of_it_sends_its_clients_to_another() {
    // The third node would tell it, if that were the one that is elected.
    clients_of_a_cut_node_go_on(failover::Trial::PrimaryCutFromController, 8);
}

#[test]
fn a_founder_that_starts_alone_waits_for_the_others() {
    block_on(Network::Loopback, async |network| {
        let mut site = Site::start(THREE, network).await;
        site.nodes().for_each(|node| site.kill(node));
        site.begin(0);
        // Longer than a proposal looks for a majority.
        sleep(Duration::from_secs(7)).await;
        assert_eq!(site.ended(), Vec::<String>::new());
        for node in [1, 2] {
            site.begin(node);
        }
        for node in site.nodes() {
            site.serves(node).await.unwrap();
        }
        site.in_sync(PATIENCE).await.unwrap();
    });
}

/// All kinds of faults on all shapes of a site, for as long as `DUNLIN_TORTURE_SECS` says.
#[test]
fn torture_for_long() {
    let Some(secs) = number_from("DUNLIN_TORTURE_SECS") else { return };
    let first = number_from("DUNLIN_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    // The seed decides the shape too.
    let shapes = [THREE, TWO_AND_A_WITNESS, THREE, FIVE];
    for seed in (first..).take(seeds()) {
        let shape = &shapes[usize::try_from(seed).unwrap() % shapes.len()];
        // A host more for one that joins.
        let hosts = shape.nodes() + 1;
        let network = match seed % 3 {
            0 => Network::wired(hosts),
            _ => switched_hosts(hosts).unwrap_or(Network::Loopback),
        };
        let faults = wanted(Fault::all(&network));
        let plan = Plan { seed, given: vec![], drawn: faults, time: Duration::from_secs(secs) };
        block_on(network, async |network| {
            let site = site(*shape, network).await;
            torture(site, &plan).await
        });
    }
}

/// The table of failover times, with as many trials of each kind as `DUNLIN_FAILOVER` says.
#[test]
fn failover_times() {
    let Some(count) = number_from("DUNLIN_FAILOVER") else { return };
    let network = switched(failover::SHAPE);
    let has_cables = network.is_some();
    let mut trials = failover::Trial::ALL.to_vec();
    trials.retain(|trial| has_cables || !trial.needs_switch());
    let kinds = env::var("DUNLIN_FAILOVER_KINDS").unwrap_or_default();
    trials.retain(|trial| kinds.split(',').any(|kind| trial.kind().starts_with(kind.trim())));
    assert!(!trials.is_empty(), "no trial is called like one of '{kinds}'");
    block_on(network.unwrap_or(Network::Loopback), async |network| {
        let site = Site::start(failover::SHAPE, network).await;
        failover::measure(site, &trials, usize::try_from(count).unwrap()).await;
    });
}

/// Clients over nodes of unequal weight, as many as `DUNLIN_SPREAD` says. A smaller run without load is among the tests of the API.
#[test]
fn spread() {
    let Some(count) = number_from("DUNLIN_SPREAD") else { return };
    block_on(Network::Loopback, async |network| {
        let site = Site::start(THREE, network).await;
        spread::measure(site, usize::try_from(count).unwrap()).await;
    });
}

fn seeds() -> usize {
    usize::try_from(number_from("DUNLIN_TORTURE_SEEDS").unwrap_or(1)).unwrap()
}

const TWO_AND_A_WITNESS: Shape = Shape { data: 2, witnesses: 1, shards: 6 };
const FIVE: Shape = Shape { data: 5, witnesses: 0, shards: 6 };
/// Of a node's own disk: enough for what a run stores, little enough to be filled in a moment.
const DISK_MIB: u32 = 512;
