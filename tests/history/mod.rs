//! Producers and readers that write down what they are told, and the judge of what they wrote.

pub(crate) mod checker;
pub(crate) mod load;
