//! What a seed draws before anything happens: the shape of the site, how its links and disks are, and which faults come
//! when. Weights are drawn anew for each seed, many of them zero: a run that does everything a little finds less than one
//! that does two things a lot.

use super::rng::Rng;

/// A site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Nodes that hold data.
    pub(crate) data: usize,
    /// Nodes that only vote.
    pub(crate) witnesses: usize,
    /// Nodes that should hold the shard.
    pub(crate) replicas: usize,
    pub(crate) copies_min: u32,
}

/// Everything about a run but what comes of it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) shape: Shape,
    /// Steps until the faults stop.
    pub(crate) steps: u64,
    pub(crate) faults: Vec<(u64, Fault)>,
    pub(crate) links: Links,
    pub(crate) producers: usize,
    pub(crate) readers: usize,
    /// A batch every so many microseconds from each producer, at most.
    pub(crate) pace: u64,
    /// Of a thousand proposals so many come a second time, much later.
    pub(crate) late_proposals: u64,
    /// A disk drops the front of its log after about so many ticks; 0 for never.
    pub(crate) compaction: u64,
}

/// How messages fare, of a thousand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Links {
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    /// Microseconds.
    pub(crate) delay_min: u64,
    pub(crate) delay_max: u64,
    /// So many of a thousand take up to a second.
    pub(crate) late: u64,
}

/// Something that goes wrong. Times are in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process ends; a commit under way may survive.
    Crash { node: usize, down: u64, survives: bool },
    /// Every process ends at once.
    PowerCut { down: u64, spread: u64, survives: u64 },
    /// The process stands still, and wakes up late.
    Pause { node: usize, time: u64 },
    /// The wall clock jumps, by milliseconds.
    Clock { node: usize, by: i64 },
    /// Nothing passes in this direction.
    Cut { from: usize, to: usize, time: u64 },
    /// Nothing passes between these two.
    Part { a: usize, b: usize, time: u64 },
    /// Nothing passes to or from this node.
    Isolate { node: usize, time: u64 },
    /// The disk is put back to how it was before an earlier boot.
    Restore { node: usize, image: usize, down: u64 },
    /// The disk is replaced by an empty one, and the node by another one.
    Wipe { node: usize, down: u64 },
    /// A commit fails; the process ends.
    Eio { node: usize, down: u64, survives: bool },
    /// The disk takes no records.
    Full { node: usize, time: u64 },
    /// Commits take this many times as long.
    Slow { node: usize, times: u64, time: u64 },
    /// The metadata group gets another leader; the old one believes in itself for a while.
    Depose { believes: u64 },
    /// An operator moves the primary.
    HandOver { to: usize },
    /// The disk drops the front of its log.
    Compact { node: usize },
}

impl Fault {
    /// The same fault, with the present primary in place of [`PRIMARY`].
    pub(crate) fn at(self, primary: usize) -> Self {
        let this = |node: usize| if node == PRIMARY { primary } else { node };
        match self {
            Self::Crash { node, down, survives } => {
                Self::Crash { node: this(node), down, survives }
            }
            Self::Pause { node, time } => Self::Pause { node: this(node), time },
            Self::Clock { node, by } => Self::Clock { node: this(node), by },
            Self::Cut { from, to, time } => Self::Cut { from: this(from), to: this(to), time },
            Self::Part { a, b, time } => Self::Part { a: this(a), b: this(b), time },
            Self::Isolate { node, time } => Self::Isolate { node: this(node), time },
            Self::Restore { node, image, down } => Self::Restore { node: this(node), image, down },
            Self::Wipe { node, down } => Self::Wipe { node: this(node), down },
            Self::Eio { node, down, survives } => Self::Eio { node: this(node), down, survives },
            Self::Full { node, time } => Self::Full { node: this(node), time },
            Self::Slow { node, times, time } => Self::Slow { node: this(node), times, time },
            Self::Compact { node } => Self::Compact { node: this(node) },
            Self::PowerCut { .. } | Self::Depose { .. } | Self::HandOver { .. } => self,
        }
    }
}

/// Whichever node leads when the fault comes: half of all faults look for it.
const PRIMARY: usize = usize::MAX;
const KINDS: usize = 15;
/// No plan looks further ahead.
const HORIZON: u64 = 120_000_000;

impl Plan {
    /// What `seed` draws, for a run of about so many steps with faults.
    pub(crate) fn draw(seed: u64, steps: u64) -> Self {
        let mut rng = Rng::new(seed, 1);
        let shape = draw_shape(&mut rng);
        let noisy = rng.permille(500);
        let links = Links {
            lost: if noisy { rng.below(80) } else { 0 },
            doubled: if noisy { rng.below(80) } else { 0 },
            delay_min: rng.between(100, 2_000),
            delay_max: rng.between(2_000, 60_000),
            late: if noisy { rng.below(20) } else { 0 },
        };
        let weights: Vec<u64> =
            (0..KINDS).map(|_| if rng.permille(450) { 0 } else { rng.between(1, 20) }).collect();
        let gap = rng.between(50_000, 700_000);
        let mut faults = Vec::new();
        let mut at = rng.between(500_000, 2_000_000);
        while at < HORIZON {
            if let Some(fault) =
                draw_fault(&mut rng, &weights, shape.data + shape.witnesses, shape.data)
            {
                faults.push((at, fault));
            }
            at += rng.between(1, 2 * gap);
        }
        Self {
            seed,
            shape,
            steps,
            faults,
            links,
            producers: 1 + rng.index(3),
            readers: 1 + rng.index(2),
            pace: rng.between(5_000, 120_000),
            late_proposals: if rng.permille(500) { rng.below(300) } else { 0 },
            compaction: if rng.permille(500) { rng.between(5, 60) } else { 0 },
        }
    }

    /// Nothing goes wrong by itself: for directed schedules.
    pub(crate) fn quiet(shape: Shape) -> Self {
        Self {
            seed: 1,
            shape,
            steps: u64::MAX,
            faults: Vec::new(),
            links: Links { lost: 0, doubled: 0, delay_min: 1_000, delay_max: 1_000, late: 0 },
            producers: 1,
            readers: 1,
            pace: 20_000,
            late_proposals: 0,
            compaction: 0,
        }
    }
}

fn draw_shape(rng: &mut Rng) -> Shape {
    let shape =
        |data, witnesses, replicas, copies_min| Shape { data, witnesses, replicas, copies_min };
    match rng.below(10) {
        0 => shape(1, 0, 1, 1),
        1..=3 => shape(2, 1, 2, 1 + u32::from(rng.permille(300))),
        4..=7 => shape(3, 0, 3, 1 + u32::from(rng.permille(700))),
        _ => shape(5, 0, 3 + 2 * rng.index(2), 2),
    }
}

fn draw_fault(rng: &mut Rng, weights: &[u64], nodes: usize, data: usize) -> Option<Fault> {
    let mut at = rng.below(weights.iter().sum());
    let kind = weights.iter().position(|weight| {
        let here = at < *weight;
        at = at.saturating_sub(*weight);
        here
    })?;
    let mut one_of = |n: usize| if rng.permille(500) { PRIMARY } else { rng.index(n) };
    let (node, a, b, disk) = (one_of(nodes), one_of(nodes), one_of(nodes), one_of(data));
    let time = rng.between(50_000, 3_000_000);
    let down =
        if rng.permille(300) { rng.between(1_000, 50_000) } else { rng.between(50_000, 3_000_000) };
    let survives = rng.permille(500);
    let years = i64::try_from(rng.below(20)).unwrap_or(0) - 10;
    Some(match kind {
        0 => Fault::Crash { node, down, survives },
        1 => Fault::PowerCut { down, spread: rng.below(2_000_000), survives: rng.next() },
        2 => Fault::Pause { node, time },
        3 => Fault::Clock { node, by: years * 365 * 24 * 3_600_000 },
        4 => Fault::Cut { from: a, to: b, time },
        5 => Fault::Part { a, b, time },
        6 => Fault::Isolate { node, time },
        7 => Fault::Restore { node: disk, image: rng.index(8), down },
        8 => Fault::Wipe { node: disk, down },
        9 => Fault::Eio { node: disk, down, survives },
        10 => Fault::Full { node: disk, time },
        11 => Fault::Slow { node: disk, times: rng.between(2, 200), time },
        12 => Fault::Depose { believes: rng.below(4_000_000) },
        13 => Fault::HandOver { to: rng.index(data) },
        _ => Fault::Compact { node: disk },
    })
}
