//! Replicated publishes: one node, three nodes, and NATS JetStream beside each other.

use std::time::Duration;

use dunlin::client::{Acks, Client, TopicName};

use crate::{
    Common,
    failure::{Failure, Result},
    load::{Measured, Producer, run},
    nats::Nats,
    process::{Usage, disk_written},
    site::{Shape, Site},
    table::{Wanted, heading, line, median},
};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Publish {
    /// Records without ack that the one producer keeps
    #[arg(long, value_name = "RECORDS", value_delimiter = ',', default_value = "1,64,1024")]
    in_flight: Vec<usize>,
    /// Bytes of a record
    #[arg(long, value_name = "BYTES", default_value_t = 1_024)]
    size: usize,
    /// Measured seconds of a round, after one to warm up
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    seconds: u64,
    /// Rounds of each, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Connect to a node that does not lead, instead of the one that does; the same with NATS
    #[arg(long)]
    elsewhere: bool,
}

/// Who is measured.
#[expect(clippy::large_enum_variant, reason = "there are three")]
enum Side {
    Dunlin { site: Site, topic: TopicName },
    Nats(Nats),
}

/// One round of one side.
struct Round {
    measured: Measured,
    /// Bytes that the disk took for a byte of payload, by server.
    disk: Option<f64>,
    /// Bytes that each server says it wrote for a byte of payload, where it says so.
    own: Vec<f64>,
    /// The same as the kernel counts it for its process.
    kernel: Vec<f64>,
    /// Of all servers together, for a record.
    cpu_us: f64,
}

impl Publish {
    pub(crate) async fn run(&self, common: &Common) -> Result<()> {
        if common.nats.is_none() {
            println!("no --nats: nothing to compare with");
        }
        let rounds = self.rounds(common).await?;
        let means = if self.elsewhere { "does not lead" } else { "leads" };
        println!(
            "\npublish: {} bytes a record, acks replicated, one producer at the node that {means}; \
             median of {} rounds of {} s",
            self.size, self.rounds, self.seconds
        );
        println!(
            "{:>9} {:22} {:>10} {:>9} {:>9} {:>12}  {:>9}  {:15}  BY PROCESS",
            "IN FLIGHT",
            "SIDE",
            "RECORDS/S",
            "P50 US",
            "P99 US",
            "CPU US/REC",
            "DISK/NODE",
            "OWN COUNT"
        );
        for (in_flight, by_side) in self.in_flight.iter().zip(&rounds) {
            for (name, rounds) in NAMES.iter().zip(by_side) {
                row(*in_flight, name, rounds);
            }
        }
        println!(
            "written for a byte of payload: DISK/NODE by the disk's own count, of all nodes together, by node; OWN COUNT by \
             each node's metrics; BY PROCESS by /proc/PID/io of each, which on some kernels counts up to 1 MiB a write"
        );
        heading("publish");
        for (in_flight, by_side) in self.in_flight.iter().zip(&rounds) {
            ratios(*in_flight, by_side);
        }
        Ok(())
    }

    async fn dunlin(&self, common: &Common, data: usize) -> Result<Side> {
        // A topic of one partition lives in one shard, however many there are: this way it is known who leads it.
        let shape = Shape { data, witnesses: 0, settings: "[storage]\nshards = 1\n".into() };
        let site = Site::start(&common.dunlin, &common.dir(), shape).await?;
        let topic = site.make_topics(1, 1).await?.remove(0);
        Ok(Side::Dunlin { site, topic })
    }

    /// All begin anew with each round: what the rounds before have left on the disk and in its cache would cost the later
    /// ones more, and most who writes most.
    async fn sides(&self, common: &Common) -> Result<Vec<Side>> {
        let mut sides = vec![self.dunlin(common, 1).await?, self.dunlin(common, 3).await?];
        if let Some(program) = &common.nats {
            sides.push(Side::Nats(Nats::start(program, &common.dir()).await?));
        }
        Ok(sides)
    }

    /// By in flight, then by side. One of each, again and again: what else the machine does meanwhile hits all alike.
    async fn rounds(&self, common: &Common) -> Result<Vec<Vec<Vec<Round>>>> {
        let sides = NAMES.len() - usize::from(common.nats.is_none());
        let empty = || (0..sides).map(|_| Vec::new()).collect::<Vec<_>>();
        let mut all: Vec<_> = self.in_flight.iter().map(|_| empty()).collect();
        for number in 0..self.rounds {
            let sides = self.sides(common).await?;
            for (in_flight, by_side) in self.in_flight.iter().zip(&mut all) {
                for (side, rounds) in sides.iter().zip(by_side) {
                    rounds.push(self.round(common, side, *in_flight).await?);
                }
            }
            eprintln!("round {} of {}", number + 1, self.rounds);
        }
        Ok(all)
    }

    async fn round(&self, common: &Common, side: &Side, in_flight: usize) -> Result<Round> {
        let producer = side.producer(self.elsewhere).await?;
        let before = (side.usage()?, side.own_counts()?, disk_written(&common.dir()));
        let lasting = Duration::from_secs(self.seconds);
        let measured = run(&producer, (in_flight, self.size), WARM, lasting).await?;
        let (after, own) = (side.usage()?, side.own_counts()?);
        let disk = disk_written(&common.dir());
        let payload = (measured.all * self.size as u64) as f64;
        let each = || after.iter().zip(&before.0);
        let nodes = after.len() as f64;
        let cpu: Duration = each().map(|(after, before)| after.cpu_since(before)).sum();
        Ok(Round {
            disk: disk.zip(before.2).map(|(a, b)| (a - b) as f64 / payload / nodes),
            own: own.iter().zip(&before.1).map(|(a, b)| (a - b) as f64 / payload).collect(),
            kernel: each().map(|(a, b)| a.written_since(b) as f64 / payload).collect(),
            cpu_us: cpu.as_secs_f64() * 1e6 / measured.all as f64,
            measured,
        })
    }
}

impl Side {
    async fn producer(&self, elsewhere: bool) -> Result<Producer> {
        match self {
            Self::Dunlin { site, topic } => {
                let status = site.status_of(0).await?;
                let primary = status.shards.first().and_then(|shard| shard.primary);
                let primary = primary.ok_or_else(|| Failure("nobody leads the shard".into()))?;
                let primary = site.number_of(&status, primary)?;
                let other = site.nodes().find(|node| elsewhere && *node != primary);
                let profile = site.profile_of(&[other.unwrap_or(primary)]);
                let client = Client::connect(&profile).await?;
                let publisher = client.publisher(topic).acks(Acks::Replicated).open().await?;
                Ok(Producer::Dunlin(publisher))
            }
            Self::Nats(nats) => {
                Ok(Producer::Nats(async_nats::jetstream::new(nats.connect(elsewhere).await?)))
            }
        }
    }

    /// None of a server that does not count.
    fn own_counts(&self) -> Result<Vec<u64>> {
        match self {
            Self::Dunlin { site, .. } => site.own_counts(),
            Self::Nats(_) => Ok(Vec::new()),
        }
    }

    fn usage(&self) -> Result<Vec<Usage>> {
        match self {
            Self::Dunlin { site, .. } => site.usage(),
            Self::Nats(nats) => nats.usage(),
        }
    }
}

fn row(in_flight: usize, name: &str, rounds: &[Round]) {
    let of = |figure: &dyn Fn(&Round) -> f64| median(rounds.iter().map(figure));
    let each = |counts: fn(&Round) -> &[f64]| {
        let nodes = rounds.first().map_or(0, |round| counts(round).len());
        let node = |node: usize| format!("{:.2}", of(&|round| counts(round)[node]));
        (0..nodes).map(node).collect::<Vec<_>>().join(" ")
    };
    println!(
        "{in_flight:>9} {name:22} {:>10.0} {:>9.0} {:>9.0} {:>12.1}  {:>9.2}  {:15}  {}",
        of(&rate),
        of(&|round| round.measured.latencies.us_at(0.5)),
        of(&p99),
        of(&|round| round.cpu_us),
        of(&|round| round.disk.unwrap_or(f64::NAN)),
        each(|round| &round.own),
        each(|round| &round.kernel)
    );
}

fn ratios(in_flight: usize, by_side: &[Vec<Round>]) {
    let of = |side: &Vec<Round>, figure: fn(&Round) -> f64| median(side.iter().map(figure));
    let [one, three, nats @ ..] = by_side else { return };
    let rates = |other| (of(three, rate), of(other, rate));
    let (own, single) = rates(one);
    let figures = format!("{own:.0} of {single:.0} records/s");
    let name = format!("{in_flight} in flight: rate of three nodes, of one node's");
    line(&name, Wanted::Anything, own / single, &figures);
    let [nats] = nats else { return };
    let (own, theirs) = rates(nats);
    let figures = format!("{own:.0} of {theirs:.0} records/s");
    let name = format!("{in_flight} in flight: rate of three nodes, of NATS's");
    line(&name, Wanted::AtLeast(2.0), own / theirs, &figures);
    let (own, theirs) = (of(three, p99), of(nats, p99));
    let figures = format!("{own:.0} of {theirs:.0} us");
    line("  p99, of NATS's", Wanted::AtMost(1.0), own / theirs, &figures);
}

fn rate(round: &Round) -> f64 {
    round.measured.rate
}

fn p99(round: &Round) -> f64 {
    round.measured.latencies.us_at(0.99)
}

const NAMES: [&str; 3] = ["dunlin, one node", "dunlin, three nodes", "NATS, three replicas"];
const WARM: Duration = Duration::from_secs(1);
