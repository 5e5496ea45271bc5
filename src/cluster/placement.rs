//! Which nodes should hold which shard: the placement that is wanted, from what the site knows of its nodes.
//!
//! Pure and without memory: the same state asks for the same, and once it is as asked, for nothing. What a node holds
//! already stays there as long as the shares allow it.

use std::collections::{BTreeMap, VecDeque};

use super::{
    node::{NodeRecord, NodeRole},
    site::SiteState,
};
use crate::{
    limits::REPLICATION_FACTOR,
    replication::{ShardChange, ShardCommand, ShardConfig},
    types::{NodeId, ShardId},
};

/// The changes of placement that are wanted now. A node that must give up a shard stays among the replicas, behind the
/// others, until all that follow it are in the commit set.
#[must_use]
pub fn place(site: &SiteState) -> Vec<ShardCommand> {
    let weights = weights(site);
    if weights.is_empty() {
        // Nobody could take what the nodes give away.
        return Vec::new();
    }
    let copies = REPLICATION_FACTOR.min(weights.len());
    let mut deal = Deal::new(site, &weights, copies);
    deal.fill();
    deal.even_out();
    deal.save_copies();
    let wanted = prefer(deal, &weights);
    let shards = (0..).map(ShardId).zip(&site.shards).zip(wanted);
    shards.filter_map(|((id, shard), wanted)| command(id, shard, wanted, weights.len())).collect()
}

/// Who can hold shards, with its weight.
fn weights(site: &SiteState) -> BTreeMap<NodeId, u64> {
    let takes = |node: &NodeRecord| {
        node.role == NodeRole::Data && !node.draining && node.weight > 0 && node.has_booted()
    };
    let nodes = site.nodes.iter().filter(|(_, node)| takes(node));
    nodes.map(|(id, node)| (*id, u64::from(node.weight))).collect()
}

/// The change for one shard, if it is not as wanted.
fn command(
    shard: ShardId,
    config: &ShardConfig,
    mut replicas: Vec<NodeId>,
    nodes: usize,
) -> Option<ShardCommand> {
    let to_come = replicas.iter().filter(|node| !config.set.contains(node)).count();
    let known = config.replicas.iter().chain(&config.set);
    let mut leaving: Vec<NodeId> = Vec::new();
    for node in known {
        if config.set.contains(node) && !replicas.contains(node) && !leaving.contains(node) {
            leaving.push(*node);
        }
    }
    replicas.extend(leaving.into_iter().take(to_come));
    let wanted = if nodes < REPLICATION_FACTOR { 1 } else { 2 };
    // More copies are asked for once they are there: a shard must not stop because a node was added.
    let there = u32::try_from(config.set.len()).unwrap_or(u32::MAX);
    let raise = wanted > config.copies_min && there >= wanted;
    let lower = wanted < config.copies_min;
    let copies_min = if raise || lower { wanted } else { config.copies_min };
    if replicas == config.replicas && copies_min == config.copies_min {
        return None;
    }
    Some(ShardCommand { shard, change: ShardChange::Place { replicas, copies_min } })
}

/// How many of `total` each node gets by its weight: within one of its share, and never more than `most`. Of the nodes whose
/// share is no whole number, those that have the larger one already keep it.
fn shares(
    weights: &BTreeMap<NodeId, u64>,
    total: usize,
    most: usize,
    have: &BTreeMap<NodeId, usize>,
) -> BTreeMap<NodeId, usize> {
    let mut shares = BTreeMap::new();
    let mut open = weights.clone();
    let (mut rest, most) = (total as u64, most as u64);
    loop {
        let sum: u64 = open.values().sum();
        let full: Vec<NodeId> =
            open.iter().filter(|(_, w)| rest * **w >= most * sum).map(|(id, _)| *id).collect();
        if full.is_empty() || sum == 0 {
            break;
        }
        for id in full {
            open.remove(&id);
            shares.insert(id, most);
            rest -= most;
        }
    }
    let sum: u64 = open.values().sum::<u64>().max(1);
    let mut parts = Vec::new();
    let mut left = rest;
    for (id, weight) in open {
        let (share, remainder) = (rest * weight / sum, rest * weight % sum);
        left -= share;
        let keeps = have.get(&id).is_some_and(|have| *have as u64 > share);
        parts.push((remainder > 0, keeps, remainder, std::cmp::Reverse(id)));
        shares.insert(id, share);
    }
    parts.sort_unstable();
    for (.., std::cmp::Reverse(id)) in parts.into_iter().rev() {
        if left > 0 {
            left -= 1;
            *shares.entry(id).or_default() += 1;
        }
    }
    let usize_of = |share| usize::try_from(share).unwrap_or(usize::MAX);
    shares.into_iter().map(|(id, share)| (id, usize_of(share))).collect()
}

/// The replicas of all shards while they are dealt out anew.
struct Deal<'a> {
    shards: &'a [ShardConfig],
    lists: Vec<Vec<NodeId>>,
    copies: usize,
    targets: BTreeMap<NodeId, usize>,
}

impl<'a> Deal<'a> {
    /// Begins with what is there.
    fn new(site: &'a SiteState, weights: &BTreeMap<NodeId, u64>, copies: usize) -> Self {
        let stays = |shard: &ShardConfig| {
            let mut list = Vec::new();
            for node in &shard.replicas {
                // What one node gives away for another, that one takes.
                let heir = site.nodes.get(node).and_then(|record| record.replaced_by);
                let takes = |node: &NodeId| weights.contains_key(node);
                let node = Some(*node).filter(takes).or(heir.filter(takes));
                if let Some(node) = node.filter(|node| !list.contains(node)) {
                    list.push(node);
                }
            }
            list.truncate(copies);
            list
        };
        let lists: Vec<_> = site.shards.iter().map(stays).collect();
        let have = counts(&lists);
        let targets = shares(weights, lists.len() * copies, lists.len(), &have);
        Self { shards: &site.shards, lists, copies, targets }
    }

    fn excess(&self) -> BTreeMap<NodeId, isize> {
        let have = counts(&self.lists);
        let signed = |n: usize| isize::try_from(n).unwrap_or(isize::MAX);
        let over = |(id, target): (&NodeId, &usize)| {
            (*id, signed(have.get(id).copied().unwrap_or(0)) - signed(*target))
        };
        self.targets.iter().map(over).collect()
    }

    /// Gives each shard as many replicas as it should have: first of those that have the fewest for their share, and of
    /// these one that is in the commit set already.
    fn fill(&mut self) {
        for at in 0..self.lists.len() {
            while self.lists[at].len() < self.copies {
                let excess = self.excess();
                let (list, set) = (&self.lists[at], &self.shards[at].set);
                let free = excess.iter().filter(|(id, _)| !list.contains(id));
                let best = free.min_by_key(|(id, over)| (**over >= 0, !set.contains(id), **over));
                let Some((id, _)) = best else { break };
                let id = *id;
                self.lists[at].push(id);
            }
        }
    }

    /// Moves replicas from those that have too many to those that have too few, by as few moves as will do.
    fn even_out(&mut self) {
        loop {
            let excess = self.excess();
            let over = |id: &NodeId| excess.get(id).is_some_and(|over| *over > 0);
            let under = |id: &NodeId| excess.get(id).is_some_and(|over| *over < 0);
            let moves = |from: NodeId, to: NodeId| self.best_move(from, to);
            let nodes: Vec<NodeId> = excess.keys().copied().collect();
            let Some(path) = path(&nodes, over, under, moves) else { return };
            for (from, to, at) in path {
                for node in &mut self.lists[at] {
                    if *node == from {
                        *node = to;
                    }
                }
            }
        }
    }

    /// Makes as few copies as the shares allow. A round of moves that ends where it began changes no share; as long as there
    /// is one that makes fewer copies, it is done. Without this a node could be given, by way of a third, what it could
    /// have had directly if another had not been first.
    fn save_copies(&mut self) {
        while let Some(round) = self.saving_round() {
            for (from, to, at) in round {
                for node in &mut self.lists[at] {
                    if *node == from {
                        *node = to;
                    }
                }
            }
        }
    }

    /// A round of moves that makes fewer copies in sum: a negative cycle, found as Bellman and Ford do.
    fn saving_round(&self) -> Option<Vec<(NodeId, NodeId, usize)>> {
        let nodes: Vec<NodeId> = self.targets.keys().copied().collect();
        let mut edges = Vec::new();
        for (from, from_id) in nodes.iter().enumerate() {
            for (to, to_id) in nodes.iter().enumerate() {
                let at = (from != to).then(|| self.best_move(*from_id, *to_id)).flatten();
                edges.extend(at.map(|at| (from, to, at, self.copies_made(at, *from_id, *to_id))));
            }
        }
        let mut costs = vec![0_i32; nodes.len()];
        let mut came = vec![None; nodes.len()];
        let mut last = None;
        for _ in 0..nodes.len() {
            last = None;
            for (from, to, at, cost) in &edges {
                if costs[*from] + cost < costs[*to] {
                    costs[*to] = costs[*from] + cost;
                    came[*to] = Some((*from, *at));
                    last = Some(*to);
                }
            }
        }
        // What still gets cheaper after so many passes hangs on a round: go back until surely in it, then once around.
        let mut end = last?;
        for _ in 0..nodes.len() {
            (end, _) = came[end]?;
        }
        let (mut steps, mut to) = (Vec::new(), end);
        loop {
            let (from, at) = came[to]?;
            steps.push((nodes[from], nodes[to], at));
            to = from;
            if to == end {
                return Some(steps);
            }
        }
    }

    /// A shard that could go from one node to another, if there is one: the one that takes the fewest copies, and rather
    /// one that `from` is not preferred for.
    fn best_move(&self, from: NodeId, to: NodeId) -> Option<usize> {
        let can = |at: &usize| self.lists[*at].contains(&from) && !self.lists[*at].contains(&to);
        let cost =
            |at: &usize| (self.copies_made(*at, from, to), self.lists[*at].first() == Some(&from));
        (0..self.lists.len()).filter(can).min_by_key(|at| (cost(at), *at))
    }

    /// Copies that a move makes: none if `to` has a full one, and one less if the one of `from` was not made yet.
    fn copies_made(&self, at: usize, from: NodeId, to: NodeId) -> i32 {
        let set = &self.shards[at].set;
        i32::from(!set.contains(&to)) - i32::from(!set.contains(&from))
    }
}

/// Puts the preferred primary of each shard first: each node is preferred as often as its weight says.
fn prefer(deal: Deal<'_>, weights: &BTreeMap<NodeId, u64>) -> Vec<Vec<NodeId>> {
    let mut lists = deal.lists;
    let firsts = |lists: &[Vec<NodeId>]| {
        let mut have = BTreeMap::new();
        for first in lists.iter().filter_map(|list| list.first()) {
            *have.entry(*first).or_insert(0_usize) += 1;
        }
        have
    };
    let targets = shares(weights, lists.len(), lists.len(), &firsts(&lists));
    let nodes: Vec<NodeId> = targets.keys().copied().collect();
    loop {
        let have = firsts(&lists);
        let has = |id: &NodeId| have.get(id).copied().unwrap_or(0);
        let over = |id: &NodeId| targets.get(id).is_some_and(|target| has(id) > *target);
        let under = |id: &NodeId| targets.get(id).is_some_and(|target| has(id) < *target);
        let moves = |from: NodeId, to: NodeId| {
            let can = |list: &Vec<NodeId>| list.first() == Some(&from) && list.contains(&to);
            lists.iter().position(can)
        };
        let Some(path) = path(&nodes, over, under, moves) else { return lists };
        for (_, to, at) in path {
            lists[at].retain(|node| *node != to);
            lists[at].insert(0, to);
        }
    }
}

fn counts(lists: &[Vec<NodeId>]) -> BTreeMap<NodeId, usize> {
    let mut counts = BTreeMap::new();
    for node in lists.iter().flatten() {
        *counts.entry(*node).or_default() += 1;
    }
    counts
}

/// The shortest chain of moves from a node that has too much to one that has too little: each step says from whom, to whom,
/// and which shard. No step of a shortest chain disturbs another: its nodes are all different.
fn path(
    nodes: &[NodeId],
    over: impl Fn(&NodeId) -> bool,
    under: impl Fn(&NodeId) -> bool,
    moves: impl Fn(NodeId, NodeId) -> Option<usize>,
) -> Option<Vec<(NodeId, NodeId, usize)>> {
    let mut came: BTreeMap<NodeId, Option<(NodeId, usize)>> = BTreeMap::new();
    let mut queue: VecDeque<NodeId> = nodes.iter().copied().filter(|id| over(id)).collect();
    came.extend(queue.iter().map(|id| (*id, None)));
    while let Some(from) = queue.pop_front() {
        for to in nodes.iter().copied() {
            if came.contains_key(&to) {
                continue;
            }
            let Some(at) = moves(from, to) else { continue };
            came.insert(to, Some((from, at)));
            if under(&to) {
                let mut steps = Vec::new();
                let mut end = to;
                while let Some((from, at)) = came[&end] {
                    steps.push((from, end, at));
                    end = from;
                }
                return Some(steps);
            }
            queue.push_back(to);
        }
    }
    None
}

#[cfg(test)]
mod tests;
