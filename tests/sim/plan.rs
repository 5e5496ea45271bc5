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
    pub(crate) ambushes: Vec<Ambush>,
    /// Disks lose more than the site promises to survive, or hold something else than was written. Only the rules that
    /// hold all the same are judged.
    pub(crate) beyond: bool,
    pub(crate) links: Links,
    pub(crate) producers: usize,
    pub(crate) readers: usize,
    /// A batch every so many microseconds from each producer, at most.
    pub(crate) pace: u64,
    /// Of a thousand proposals so many come a second time, much later.
    pub(crate) late_proposals: u64,
    /// A disk drops the front of its log after about so many ticks; 0 for never.
    pub(crate) compaction: u64,
    /// Which disks do, a bit for each.
    pub(crate) compacting: u64,
    /// After so many of a thousand acks a producer begins anew under another id.
    pub(crate) renewed: u64,
    /// Silent producers are forgotten.
    pub(crate) expires: bool,
    /// At so many of a thousand ticks a primary is asked whether it still leads.
    pub(crate) barriers: u64,
    /// The preferred primary leads again when it has kept pace for this many microseconds; 0 for never.
    pub(crate) preferred_after: u64,
}

/// A fault that waits for a moment at which it does harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ambush {
    pub(crate) moment: Moment,
    /// Nodes in it may be [`THERE`].
    pub(crate) fault: Fault,
    /// It comes at most so many microseconds behind the moment.
    pub(crate) delay: u64,
    /// So many of a thousand times.
    pub(crate) permille: u64,
    /// At most so often.
    pub(crate) times: u32,
}

/// Something that happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The site elects it.
    Elected,
    /// It begins to lead.
    Leads,
    /// It begins to take an install.
    Installs,
    /// Its log is cut.
    Cut,
    /// Its process begins.
    Starts,
    /// It becomes pending.
    Joins,
    /// It is confirmed.
    Joined,
    /// It leaves the set.
    Left,
}

const MOMENTS: [Moment; 8] = [
    Moment::Elected,
    Moment::Leads,
    Moment::Installs,
    Moment::Cut,
    Moment::Starts,
    Moment::Joins,
    Moment::Joined,
    Moment::Left,
];

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
    /// Somebody proposes that it leads, for no good reason.
    Elect { node: usize },
    /// The disk loses its last entries, and nothing tells. Only in runs that go beyond the promise.
    Rollback { node: usize, entries: usize, down: u64 },
    /// The last entry on the disk is not what was written. Only in runs that go beyond the promise.
    Damage { node: usize, down: u64 },
}

impl Fault {
    /// The same fault, with the present primary in place of [`PRIMARY`], and `there` in place of [`THERE`].
    pub(crate) fn at(self, primary: usize, there: usize) -> Self {
        let this = |node: usize| match node {
            PRIMARY => primary,
            THERE => there,
            node => node,
        };
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
            Self::Elect { node } => Self::Elect { node: this(node) },
            Self::Rollback { node, entries, down } => {
                Self::Rollback { node: this(node), entries, down }
            }
            Self::Damage { node, down } => Self::Damage { node: this(node), down },
            Self::HandOver { to } => Self::HandOver { to: this(to) },
            Self::PowerCut { .. } | Self::Depose { .. } => self,
        }
    }
}

/// Whichever node leads when the fault comes.
const PRIMARY: usize = usize::MAX;
/// The node to which the moment happened that the fault lay in wait for.
const THERE: usize = usize::MAX - 1;
/// Kinds of faults; the last two only in runs that go beyond the promise.
const KINDS: usize = 18;
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
        let beyond = shape.data > 1 && rng.permille(120);
        let weights: Vec<u64> = (0..KINDS)
            .map(|kind| match kind {
                16.. if beyond => rng.between(5, 20),
                16.. => 0,
                // Crash, isolate, elect: what makes primaries change.
                0 | 6 | 15 if rng.permille(800) => rng.between(2, 20),
                _ if rng.permille(450) => 0,
                _ => rng.between(1, 20),
            })
            .collect();
        let draw = Draw { weights, nodes: shape.data + shape.witnesses, data: shape.data };
        let faults = draw.faults(&mut rng);
        let ambushes = draw.ambushes(&mut rng);
        Self {
            seed,
            shape,
            steps,
            faults,
            ambushes,
            beyond,
            links,
            producers: 1 + rng.index(3),
            readers: 1 + rng.index(2),
            pace: rng.between(5_000, 120_000),
            late_proposals: if rng.permille(500) { rng.below(500) } else { 0 },
            compaction: if rng.permille(500) { rng.between(3, 60) } else { 0 },
            compacting: if rng.permille(400) { u64::MAX } else { rng.next() },
            renewed: if rng.permille(500) { rng.below(900) } else { 0 },
            expires: rng.permille(500),
            barriers: if rng.permille(500) { rng.below(500) } else { 0 },
            preferred_after: if rng.permille(300) { rng.between(1_000_000, 10_000_000) } else { 0 },
        }
    }

    /// Nothing goes wrong by itself: for directed schedules.
    pub(crate) fn quiet(shape: Shape) -> Self {
        Self {
            seed: 1,
            shape,
            steps: u64::MAX,
            faults: Vec::new(),
            ambushes: Vec::new(),
            beyond: false,
            links: Links { lost: 0, doubled: 0, delay_min: 1_000, delay_max: 1_000, late: 0 },
            producers: 1,
            readers: 1,
            pace: 20_000,
            late_proposals: 0,
            compaction: 0,
            compacting: u64::MAX,
            renewed: 0,
            expires: false,
            barriers: 0,
            preferred_after: 0,
        }
    }
}

fn draw_shape(rng: &mut Rng) -> Shape {
    let shape =
        |data, witnesses, replicas, copies_min| Shape { data, witnesses, replicas, copies_min };
    match rng.below(40) {
        0 => shape(1, 0, 1, 1),
        1..=12 => shape(2, 1, 2, 1 + u32::from(rng.permille(300))),
        13 => shape(2, 0, 2, 1 + u32::from(rng.permille(500))),
        14..=28 => shape(3, 0, 3, 1 + u32::from(rng.permille(700))),
        // Some nodes do not hold the shard until one that does is replaced.
        29..=31 => shape(3, 1, 2, 1 + u32::from(rng.permille(300))),
        32..=34 => shape(4, 0, 3, 2),
        _ => shape(5, 0, 3 + 2 * rng.index(2), 2 + u32::from(rng.permille(200))),
    }
}

/// What faults are drawn from.
struct Draw {
    weights: Vec<u64>,
    nodes: usize,
    data: usize,
}

impl Draw {
    fn faults(&self, rng: &mut Rng) -> Vec<(u64, Fault)> {
        let gap = rng.between(50_000, 700_000);
        let mut faults = Vec::new();
        let mut at = rng.between(500_000, 2_500_000);
        // Faults come in storms: a site that never gets anything done has nothing to lose.
        let (storm, calm) = (rng.between(200_000, 4_000_000), rng.between(500_000, 4_000_000));
        let mut until = at + storm;
        // A pair of faults at nearly the same time finds what two by themselves do not.
        let paired = if rng.permille(300) { rng.below(400) } else { 0 };
        while at < HORIZON {
            faults.extend(self.fault(rng, false).map(|fault| (at, fault)));
            let near = rng.permille(paired);
            at += if near { rng.between(1, 50_000) } else { rng.between(1, 2 * gap) };
            if at > until {
                at += rng.between(calm / 2, calm);
                until = at + storm;
            }
        }
        faults
    }

    fn ambushes(&self, rng: &mut Rng) -> Vec<Ambush> {
        let many = if rng.permille(500) { rng.between(1, 4) } else { 0 };
        let ambush = |_| {
            Some(Ambush {
                fault: self.fault(rng, true)?,
                moment: MOMENTS[rng.index(MOMENTS.len())],
                delay: [100, 5_000, 50_000, 500_000][rng.index(4)],
                permille: rng.between(100, 1_000),
                times: u32::try_from(rng.between(1, 12)).unwrap_or(1),
            })
        };
        (0..many).filter_map(ambush).collect()
    }

    /// A fault; in half of all cases of the primary or, if it lies in wait, of the node that it waited for.
    fn fault(&self, rng: &mut Rng, waits: bool) -> Option<Fault> {
        let mut at = rng.below(self.weights.iter().sum());
        let kind = self.weights.iter().position(|weight| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        })?;
        let mut one_of = |n: usize| match rng.below(4) {
            0 if waits => PRIMARY,
            1 | 2 if waits => THERE,
            0 | 1 => PRIMARY,
            _ => rng.index(n),
        };
        let (node, a, b, disk) =
            (one_of(self.nodes), one_of(self.nodes), one_of(self.nodes), one_of(self.data));
        let time = rng.between(50_000, 3_000_000);
        let short = rng.permille(300);
        let down = if short { rng.between(1_000, 50_000) } else { rng.between(50_000, 3_000_000) };
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
            11 => Fault::Slow { node: disk, times: rng.between(2, 400), time },
            12 => Fault::Depose { believes: rng.below(4_000_000) },
            13 => Fault::HandOver { to: rng.index(self.data) },
            14 => Fault::Compact { node: disk },
            15 => Fault::Elect { node: disk },
            16 => Fault::Rollback { node: disk, entries: 1 + rng.index(8), down },
            _ => Fault::Damage { node: disk, down },
        })
    }
}
