//! A broker under continuous load, killed again and again; a checker judges what everybody saw.
//!
//! `DUNLIN_KILLS` sets how often it is killed (default 6), `DUNLIN_SEED` repeats the moments of a run.

use std::{
    env,
    path::Path,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use dunlin::{
    cli::own_broker::OwnBroker,
    client::{Acks, Client},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{task::JoinSet, time::timeout};

use crate::history::{
    checker::{History, Outcome, check},
    load::{Habit, Run, Topic},
};

const SETTINGS: &str = "[storage]\nlow_space = '64MiB'\nballast = '16MiB'\n";
const TOPICS: &[Topic] = &[("kills/one", 1), ("kills/two", 2), ("kills/four", 4)];
/// Small batches, so that several are under way. The one that publishes one at a time is impatient, too: it gives up on
/// records while the broker is away, and the history gets some whose fate is unknown.
const PRODUCERS: &[Habit] = &[
    Habit { options: |builder| builder.acks(Acks::Replicated).batch_bytes(1_000), ..BUSY },
    Habit {
        topic: 2,
        options: |builder| builder.acks(Acks::Replicated).batch_bytes(1_000),
        ..BUSY
    },
    Habit { topic: 1, options: |builder| builder.acks(Acks::Local).batch_bytes(1_000), ..BUSY },
    Habit {
        waiting_max: 1,
        options: |builder| builder.deadline(Duration::from_millis(150)),
        ..BUSY
    },
];
const BUSY: Habit = Habit {
    topic: 0,
    waiting_max: 400,
    tick: Duration::from_millis(2),
    records_per_tick: 4,
    options: |builder| builder,
};
const ALONE: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// What the kills met.
#[derive(Debug, Default)]
struct Kills {
    rounds: u64,
    in_recovery: u64,
    fewest_acks_before: Option<u64>,
    under_way: u64,
}

async fn kill_often(broker: &mut OwnBroker, run: &Run, rounds: u64, rng: &mut StdRng) -> Kills {
    let mut kills = Kills::default();
    for _ in 0..rounds {
        let acks = run.progress(Duration::from_millis(rng.random_range(100..500))).await.unwrap();
        kills.fewest_acks_before =
            Some(kills.fewest_acks_before.map_or(acks, |least| least.min(acks)));
        kills.under_way += run.under_way.load(SeqCst);
        broker.kill().await.unwrap();
        kills.rounds += 1;
        while rng.random_range(0..3) == 0 {
            let soon = Duration::from_millis(rng.random_range(1..120));
            if let Ok(started) = timeout(soon, broker.restart()).await {
                started.unwrap();
            }
            broker.kill().await.unwrap();
            kills.in_recovery += 1;
        }
        broker.restart().await.unwrap();
    }
    run.progress(Duration::ZERO).await.unwrap();
    kills
}

fn number_from(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_again_and_again_keeps_its_word() {
    let seed = number_from("DUNLIN_SEED").unwrap_or_else(rand::random);
    let rounds = number_from("DUNLIN_KILLS").unwrap_or(6);
    println!("DUNLIN_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let program = Path::new(env!("CARGO_BIN_EXE_dunlin"));
    let mut broker = OwnBroker::start(program, None, SETTINGS).await.unwrap();
    let run = Arc::new(Run::new(TOPICS, PRODUCERS, PATIENCE));
    run.create_topics(&Client::connect(broker.profile()).await.unwrap()).await;
    let mut readers = JoinSet::new();
    for number in 0..TOPICS.len() {
        let client = Client::connect(broker.profile()).await.unwrap();
        readers.spawn(Arc::clone(&run).read_live(client, number));
    }
    let mut producers = JoinSet::new();
    for number in 0..PRODUCERS.len() {
        let client = Client::connect(broker.profile()).await.unwrap();
        producers.spawn(run.producer(number, &client).await.work());
    }

    let kills = kill_often(&mut broker, &run, rounds, &mut rng).await;
    run.stop.store(true, SeqCst);
    let operations = timeout(PATIENCE * 2, producers.join_all()).await.unwrap().concat();
    // Once more: nothing may hang on the memory of the process that gave the last acks.
    broker.kill().await.unwrap();
    broker.restart().await.unwrap();
    let client = Client::connect(broker.profile()).await.unwrap();
    let mut last = Vec::new();
    for number in 0..TOPICS.len() {
        last.push(run.read_all(&client, number, "the last read").await.unwrap());
    }
    let live = run.live(&last).await.unwrap();
    // A reader ends by an error alone.
    assert!(readers.try_join_next().is_none());
    drop(readers);
    let waits = (0..PRODUCERS.len()).flat_map(|number| run.waits(number));
    println!("longest wait for an ack {:?}", waits.map(|(_, wait)| wait).max());
    judge(&History { operations, live, last }, &kills);
}

fn judge(history: &History, kills: &Kills) {
    let count = |is: fn(&Outcome) -> bool| {
        history.operations.iter().filter(|operation| is(&operation.outcome)).count()
    };
    let acks = count(|outcome| matches!(outcome, Outcome::Ok(_)));
    let read: usize = history.last.iter().map(|session| session.seen.len()).sum();
    let found = check(history);
    println!(
        "kills {} (and {} in recovery) operations {} acks {acks} unknown {} failed {} read {read} {found} \
         (under way at kills {}, fewest acks between {})",
        kills.rounds + 1,
        kills.in_recovery,
        history.operations.len(),
        count(|outcome| *outcome == Outcome::Unknown),
        count(|outcome| *outcome == Outcome::Failed),
        kills.under_way,
        kills.fewest_acks_before.unwrap_or(0),
    );
    assert!(found.is_clean(), "{}", found.examples());
    // And all this was not about nothing.
    let rounds = usize::try_from(kills.rounds).unwrap();
    assert!(acks >= 100 * rounds && read >= acks, "{acks} acks, {read} read");
    assert!(kills.rounds == 0 || kills.fewest_acks_before >= Some(PRODUCERS.len() as u64));
    assert!(kills.under_way >= kills.rounds, "the kills met an idle broker");
    let alone = history.operations.iter().filter(|operation| operation.value.producer == ALONE);
    assert!(alone.count() >= rounds);
}
