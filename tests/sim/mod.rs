//! A cluster in one thread that is driven by the product's own core, and tried hard.
//!
//! The same `Replica`, `Shard`, `Controller` and `SiteState` that nodes run; around them a network, disks, clocks, a
//! metadata log and clients that do everything that such things do. One seed is one run, step for step.
//!
//! | file | what it holds |
//! |---|---|
//! | `view` | how checkers see a world; the traits `Look` and `Checker` |
//! | `plan` | what a seed draws: site shape, weights, faults |
//! | `network` | links: cut, lossy, slow, doubling |
//! | `disk` | what is durable on a node, and what a power cut leaves of it |
//! | `metadata` | the metadata group as a log with delays |
//! | `node` | a process: drives the core, performs its effects |
//! | `clients` | producers and readers, and their history |
//! | `world` | time, events, faults |
//! | `run` | a seed from its start to its verdict; replay, shrinking, floors against empty runs |
//! | `invariants` | what must hold after each step |
//! | `history` | what must hold of what clients saw |
//! | `directed` | schedules that chance misses |
//! | `mutations` | seeded bugs, and which check finds them |

pub(crate) mod rng;
pub(crate) mod view;
