//! What clients were told, against what lies in the logs once all has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use super::view::{Checker, ClientEvent, Look, Violation};

/// Judges the history at the end: nothing lost, doubled, moved, or stored though it was refused.
#[derive(Debug, Default)]
pub(crate) struct Acks;

impl Checker for Acks {
    fn check(&mut self, _: &dyn Look) -> Result<(), Violation> {
        Ok(())
    }

    fn finish(&mut self, world: &dyn Look) -> Result<(), Violation> {
        let Some(agreed) = world.agreed().last() else { return Ok(()) };
        for node in 0..world.nodes() {
            let view = world.node(node);
            if view.id.is_some_and(|id| agreed.config.set.contains(&id)) {
                compare(world, node)?;
            }
        }
        Ok(())
    }
}

fn compare(world: &dyn Look, node: usize) -> Result<(), Violation> {
    let fail = |rule, text: String| Err(Violation { rule, text: format!("node {node}: {text}") });
    let mut places = BTreeMap::new();
    let mut values = BTreeMap::new();
    for record in world.node(node).log {
        let Some((partition, base, batch)) = &record.values else { continue };
        for (offset, value) in (base.0..).zip(batch) {
            if let Some(first) = places.insert(*value, (*partition, offset)) {
                let text = format!("value {value:#x} lies at {first:?} and at {offset}");
                return fail("duplicate", text);
            }
            if let Some(first) = values.insert((*partition, offset), *value) {
                let text =
                    format!("offset {offset} of {partition} holds {first:#x} and {value:#x}");
                return fail("inconsistent_offsets", text);
            }
        }
    }
    let mut refused = BTreeSet::new();
    for event in world.history() {
        match event {
            ClientEvent::Ok { partition, values, base, .. } => {
                for (offset, value) in (base.0..).zip(values) {
                    if places.get(value) != Some(&(*partition, offset)) {
                        let found = places.get(value);
                        let text = format!(
                            "value {value:#x} was acked at {partition}/{offset}, lies at {found:?}"
                        );
                        return fail("lost_write", text);
                    }
                }
            }
            ClientEvent::Fail { values, .. } => refused.extend(values.iter().copied()),
            ClientEvent::Poll { partition, got, from, .. } => {
                for (at, (offset, value)) in got.iter().enumerate() {
                    if values.get(&(*partition, offset.0)) != Some(value) {
                        let text = format!("{value:#x} was read at {partition}/{offset}, is gone");
                        return fail("dirty_read", text);
                    }
                    if offset.0 != from.0 + at as u64 {
                        return fail("poll_skip", format!("{partition}/{offset} follows {from}"));
                    }
                }
            }
            ClientEvent::Invoke { .. } | ClientEvent::Info { .. } => {}
        }
    }
    match refused.iter().find(|value| places.contains_key(value)) {
        Some(value) => fail("aborted_read", format!("{value:#x} was refused, and is stored")),
        None => Ok(()),
    }
}
