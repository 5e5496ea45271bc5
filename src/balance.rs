//! Who should serve how many clients and lead how many shards, and what moves now. Pure: what is known of the nodes, the
//! driver's clock and the clients of one node go in, decisions come out.
//!
//! Each node decides for itself, from reports that are late. So no node acts on what it has heard alone: whether it has too
//! many clients it sees in its own, which it can count, and the sum over the site is taken too high rather than too low.

pub mod clients;
pub mod primaries;
pub mod roster;

use std::cmp::Reverse;

/// How many of `total` each should have by its weight: whole numbers whose sum is `total`, each within one of its share.
/// What the shares leave over goes to the largest remainders, of equal ones to the first. All 0 if nobody has a weight.
#[must_use]
pub fn shares(total: u64, weights: &[u32]) -> Vec<u64> {
    let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let mut shares = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    let mut left = total;
    for (at, weight) in weights.iter().enumerate() {
        // Far from overflow: a site has 256 nodes of 2^32 clients and a weight of 1,000 at most.
        let exact = total.saturating_mul(u64::from(*weight));
        shares.push(exact / sum);
        left = left.saturating_sub(exact / sum);
        remainders.push((Reverse(exact % sum), at));
    }
    // Fewer are left than there are weights: each share lacks less than one.
    let most = usize::try_from(left).unwrap_or(usize::MAX).min(remainders.len());
    if most > 0 && most < remainders.len() {
        remainders.select_nth_unstable(most);
    }
    for (_, at) in &remainders[..most] {
        shares[*at] += 1;
    }
    shares
}

#[cfg(test)]
mod tests;
