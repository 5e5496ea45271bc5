//! What is done to a site, and how it is taken back.

use std::{fmt, time::Duration};

use dunlin::client::{Client, ClusterStatus};
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::time::{Instant, sleep};

use super::{
    clock, failover,
    network::Network,
    site::{PATIENCE, Site},
    wire::Quality,
};

/// How long a site is waited for before it is looked whether a node has ended.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How far clocks are stepped.
const YEARS: [i32; 4] = [-5, -1, 1, 5];

/// A node by what it is when the fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Random,
    /// Of a shard.
    Primary,
    /// The leader of the metadata group.
    Controller,
    /// A data node that leads nothing, or little.
    Backup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9`, and a start when it is taken back.
    Kill(Who),
    /// SIGTERM, and a start when it is taken back.
    Stop(Who),
    /// SIGSTOP for longer than a node may be silent.
    Pause(Who),
    /// No frame to or from a node, in silence.
    Isolate(Who),
    /// A node's cable is pulled.
    Unplug(Who),
    /// The primary is cut from all other nodes; clients reach everybody.
    CutPrimary,
    /// Two nodes do not hear each other; everybody else hears both.
    CutPair,
    /// Each fifth frame is lost.
    Loss,
    /// Each fifth datagram is lost, and what comes takes 50 ms.
    BadLines,
    /// No byte is free on the disk of a node.
    FullDisk(Who),
    /// All nodes at once by `kill -9`.
    KillAll,
    /// Every node in turn by SIGTERM.
    Rolling,
    /// A node gives all away, and may have it back.
    Drain(Who),
    /// A new node joins, and is taken out for ever.
    Join,
    /// The wall clock of a node is years off.
    Clock(Who),
}

impl Fault {
    /// The word that it is counted under.
    pub(crate) fn kind(self) -> String {
        let text = format!("{self:?}");
        text.replace(['(', ')'], " ").trim_end().to_lowercase().replace(' ', "-")
    }

    /// Those that a site can be put through.
    pub(crate) fn all(network: &Network) -> Vec<Self> {
        use Fault::{
            BadLines, Clock, CutPair, CutPrimary, Drain, FullDisk, Isolate, Join, Kill, KillAll,
            Loss, Pause, Rolling, Stop, Unplug,
        };
        use Who::{Backup, Controller, Primary, Random};
        let mut all = vec![
            Kill(Random),
            Kill(Primary),
            Kill(Controller),
            Stop(Primary),
            Pause(Primary),
            Pause(Controller),
            Pause(Random),
            KillAll,
            Rolling,
            Drain(Random),
            Join,
        ];
        match network {
            Network::Loopback => {}
            Network::Wired(_) => all.push(BadLines),
            Network::Switch(_) => all.extend([
                Isolate(Random),
                Isolate(Primary),
                Unplug(Random),
                CutPrimary,
                CutPair,
                Loss,
                // Who may make a switch may mount a disk.
                FullDisk(Backup),
                FullDisk(Primary),
            ]),
        }
        if clock::is_there() {
            all.extend([Clock(Primary), Clock(Controller), Clock(Random)]);
        }
        all
    }

    /// Those that leave nobody for a second one, or do more than one thing.
    fn stands_alone(self) -> bool {
        matches!(self, Self::KillAll | Self::Rolling)
    }

    /// Whether all clients of a site of three or more must get on while it lasts. Those that stay with a primary that is
    /// cut from the others do not.
    pub(crate) fn is_survived(self) -> bool {
        !matches!(self, Self::KillAll | Self::FullDisk(_) | Self::CutPrimary)
    }
}

/// One or two faults, and how long they last.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) faults: Vec<Fault>,
    pub(crate) before: Duration,
    pub(crate) between: Duration,
    pub(crate) lasts: Duration,
    /// Which of several nodes is meant.
    draws: [u32; 2],
}

impl Round {
    pub(crate) fn draw(all: &[Fault], rng: &mut StdRng) -> Self {
        let first = *all.choose(rng).unwrap();
        let mut faults = vec![first];
        if !first.stands_alone() && rng.random_range(0..3) == 0 {
            faults.extend(all.choose(rng).filter(|f| **f != first && !f.stands_alone()));
        }
        // Nobody joins a site that is not whole; what comes next meets a node that has just come.
        faults.sort_by_key(|fault| *fault != Fault::Join);
        Self::of(faults, rng)
    }

    pub(crate) fn of(faults: Vec<Fault>, rng: &mut StdRng) -> Self {
        let mut ms = |range| Duration::from_millis(rng.random_range(range));
        Self {
            faults,
            before: ms(100..1_000),
            between: ms(0..1_500),
            lasts: ms(300..5_000),
            draws: [rng.random(), rng.random()],
        }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.faults.iter().map(|fault| fault.kind()).collect();
        write!(f, "{} for {:?}", kinds.join(" + "), self.lasts)
    }
}

/// What must be taken back.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    down: Vec<usize>,
    paused: Vec<usize>,
    unplugged: Vec<usize>,
    full: Vec<usize>,
    draining: Vec<usize>,
    clocks: Vec<usize>,
    joined: Option<usize>,
    is_cut: bool,
}

impl Damage {
    /// Does it, to a node that still runs if there is one. Returns what was done in words.
    pub(crate) async fn inflict(
        &mut self,
        site: &mut Site,
        round: &Round,
        number: usize,
    ) -> Result<String, String> {
        let (fault, draw) = (round.faults[number], round.draws[number] as usize);
        let done = |what: &str, site: &Site, node: usize| format!("{what} {}", site.name(node));
        match fault {
            Fault::Kill(who) => {
                let Some(node) = find(site, who, draw).await? else { return none(fault) };
                site.kill(node);
                self.down.push(node);
                Ok(done("killed", site, node))
            }
            Fault::Stop(who) => {
                let Some(node) = find(site, who, draw).await? else { return none(fault) };
                let took = site.stop(node).await?;
                self.down.push(node);
                Ok(format!("stopped {} in {took:?}", site.name(node)))
            }
            Fault::Pause(who) => {
                let Some(node) = find(site, who, draw).await? else { return none(fault) };
                site.pause(node);
                self.paused.push(node);
                Ok(done("paused", site, node))
            }
            Fault::Isolate(_)
            | Fault::Unplug(_)
            | Fault::CutPrimary
            | Fault::CutPair
            | Fault::Loss
            | Fault::BadLines => self.cut(site, fault, draw).await,
            Fault::FullDisk(who) => {
                let node = find(site, who, draw).await?.filter(|node| site.has_own_disk(*node));
                let Some(node) = node.filter(|node| !self.full.contains(node)) else {
                    return none(fault);
                };
                site.fill_disk(node, true);
                self.full.push(node);
                Ok(done("filled the disk of", site, node))
            }
            Fault::KillAll => {
                for node in site.nodes() {
                    site.kill(node);
                    self.down.push(node);
                }
                Ok("killed all".into())
            }
            Fault::Rolling => rolling(site).await,
            Fault::Drain(who) => {
                let Some(node) = find(site, who, draw).await? else { return none(fault) };
                set_draining(site, node, true).await?;
                self.draining.push(node);
                Ok(done("drained", site, node))
            }
            Fault::Join => {
                let node = site.add().await?;
                self.joined = Some(node);
                Ok(done("joined", site, node))
            }
            Fault::Clock(who) => {
                let Some(node) = find(site, who, draw).await? else { return none(fault) };
                let years = YEARS[(draw >> 8) % YEARS.len()];
                clock::step(site.dir_of(node), years);
                self.clocks.push(node);
                Ok(format!("stepped the clock of {} by {years} years", site.name(node)))
            }
        }
    }

    /// The faults of the network.
    async fn cut(&mut self, site: &mut Site, fault: Fault, draw: usize) -> Result<String, String> {
        let done = |what: &str, site: &Site, node: usize| format!("{what} {}", site.name(node));
        match fault {
            Fault::Isolate(who) => {
                let Some(node) = find(site, who, draw).await? else { return none(fault) };
                site.network.switch().ok_or("no switch")?.isolate(node)?;
                self.is_cut = true;
                Ok(done("isolated", site, node))
            }
            Fault::Unplug(who) => {
                let Some(node) = find(site, who, draw).await? else { return none(fault) };
                site.network.switch().ok_or("no switch")?.plug(node, "down")?;
                self.unplugged.push(node);
                Ok(done("unplugged", site, node))
            }
            Fault::CutPrimary => {
                let Some(node) = find(site, Who::Primary, draw).await? else { return none(fault) };
                self.is_cut = true;
                for other in site.nodes().filter(|other| *other != node) {
                    site.network.switch().ok_or("no switch")?.cut(node, other)?;
                }
                Ok(done("cut from the other nodes", site, node))
            }
            Fault::CutPair => {
                let (a, count) = (draw % site.nodes().len(), site.nodes().len());
                let b = (a + 1 + (draw >> 8) % (count - 1)) % count;
                site.network.switch().ok_or("no switch")?.cut(a, b)?;
                self.is_cut = true;
                Ok(format!("cut {} from {}", site.name(a), site.name(b)))
            }
            Fault::Loss => {
                site.network.switch().ok_or("no switch")?.lose(200)?;
                self.is_cut = true;
                Ok("lost each fifth frame".into())
            }
            Fault::BadLines => {
                let wires = site.network.wires().ok_or("no wires")?;
                let delay = Duration::from_millis(50);
                wires.set(Quality { lost: 200, delay, jitter: Duration::from_millis(5) });
                self.is_cut = true;
                Ok("lost each fifth datagram, 50 ms late".into())
            }
            other => Err(format!("{} is no fault of the network", other.kind())),
        }
    }

    /// Takes all back, and waits until the site is whole.
    pub(crate) async fn mend(self, site: &mut Site) -> Result<(), String> {
        for node in &self.full {
            site.fill_disk(*node, false);
        }
        for node in &self.unplugged {
            site.network.switch().ok_or("no switch")?.plug(*node, "up")?;
        }
        if self.is_cut {
            site.network.heal()?;
        }
        for node in &self.clocks {
            clock::step(site.dir_of(*node), 0);
        }
        for node in &self.paused {
            site.unpause(*node);
        }
        for node in &self.down {
            site.begin(*node);
        }
        for node in &self.down {
            site.serves(*node).await?;
        }
        for node in &self.draining {
            set_draining(site, *node, false).await?;
        }
        Self::in_sync(site).await?;
        let ended = site.ended();
        if !ended.is_empty() {
            return Err(ended.join(", "));
        }
        let Some(joined) = self.joined else { return Ok(()) };
        set_draining(site, joined, true).await?;
        failover::holds_nothing(site, joined).await;
        site.remove(joined)?;
        site.in_sync(PATIENCE).await
    }

    /// Waits until the site is whole. A write that failed ends a node, a moment later at that, and its supervisor starts it again.
    async fn in_sync(site: &mut Site) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            site.revive().await?;
            match site.in_sync(LOOK_AGAIN).await {
                Err(_) if Instant::now() < deadline => {}
                done => return done,
            }
        }
    }
}

async fn rolling(site: &mut Site) -> Result<String, String> {
    let mut took = Vec::new();
    for node in site.nodes() {
        took.push(site.stop(node).await?);
        site.restart(node).await?;
        site.in_sync(PATIENCE).await?;
    }
    Ok(format!("restarted all, stops took {took:?}"))
}

fn none(fault: Fault) -> Result<String, String> {
    Ok(format!("found nobody for {}", fault.kind()))
}

/// A node of that kind that runs.
async fn find(site: &Site, who: Who, draw: usize) -> Result<Option<usize>, String> {
    let running: Vec<usize> = site.nodes().filter(|node| site.runs(*node)).collect();
    if running.is_empty() {
        return Ok(None);
    }
    let drawn = |of: &[usize]| of.get(draw % of.len().max(1)).copied();
    if who == Who::Random {
        return Ok(drawn(&running));
    }
    // With a fault under way nobody may lead: then any node will do.
    let Ok(status) = site.status_of(drawn(&running).unwrap_or(0)).await else {
        return Ok(drawn(&running));
    };
    let primaries = primaries(site, &status);
    let found = match who {
        Who::Random => None,
        Who::Primary => drawn(&primaries),
        Who::Controller => status.leader.map(|leader| site.number_of(&status, leader)),
        Who::Backup => {
            let is_backup = |node: &usize| !primaries.contains(node) && *node < site.shape.data;
            drawn(&running.iter().copied().filter(is_backup).collect::<Vec<_>>())
        }
    };
    Ok(found.filter(|node| site.runs(*node)).or_else(|| drawn(&running)))
}

/// Who leads a shard, as often as it leads one.
fn primaries(site: &Site, status: &ClusterStatus) -> Vec<usize> {
    let primaries = status.shards.iter().filter_map(|shard| shard.primary);
    primaries.map(|id| site.number_of(status, id)).collect()
}

/// Lets a node give away all that it holds, or hold shards again.
pub(crate) async fn set_draining(site: &Site, node: usize, draining: bool) -> Result<(), String> {
    let mut error = String::new();
    // One that is paused or cut does not answer.
    for _ in 0..20 {
        let asked = async {
            let client = Client::connect(site.profile()).await.map_err(|e| e.to_string())?;
            let status = client.cluster().status().await.map_err(|e| e.to_string())?;
            let id = status.nodes.iter().find(|n| n.name == site.name(node)).unwrap().id;
            let set = client.cluster().set_node(id, None, Some(draining)).await;
            client.close().await;
            set.map_err(|e| e.to_string())
        };
        match asked.await {
            Ok(()) => return Ok(()),
            Err(why) => error = why,
        }
        sleep(Duration::from_millis(200)).await;
    }
    Err(format!("{} cannot be drained or undrained: {error}", site.name(node)))
}
