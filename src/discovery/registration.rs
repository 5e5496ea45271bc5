//! What a node has a name server say of it: when it speaks, which records it puts in and takes out, and whose it leaves alone.
//!
//! Invariant: a change names every record that it takes out, all of them are of the node that it is for, and it counts only
//! while the TXT record that proves so is still there. So nobody can take out another node's records, whoever else writes
//! to the zone meanwhile.

use std::{collections::BTreeSet, time::Duration};

use super::{
    announcement::Announcement,
    candidates::NodeKey,
    trouble::Trouble,
    zone::{self, Data, Labels, Record, Target},
};
use crate::{
    limits::{
        LOAD_STEP, REGISTER_EVERY, REGISTER_LOAD_EVERY, REGISTER_RETRY_FIRST, REGISTER_RETRY_LAST,
    },
    types::{Address, NodeId},
};

/// What a node would have the zone say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Of itself.
    pub said: Announcement,
    /// Where it listens.
    pub addresses: Vec<Address>,
    /// Whether it serves clients yet. Before that its weight is 0, which is worth a change only if it is found nowhere.
    pub serves: bool,
    /// Nodes that have left the site for ever: who takes out what they have left.
    pub removed: BTreeSet<NodeId>,
}

impl Wanted {
    /// As records. A load stands in steps: what changes from minute to minute is not for a zone.
    #[must_use]
    pub fn records(&self) -> BTreeSet<Record> {
        let load = self.said.load - self.said.load % LOAD_STEP;
        let said = Announcement { load, ..self.said.clone() };
        zone::records(&said, &self.addresses).into_iter().collect()
    }
}

/// When a node speaks to the name server.
#[derive(Clone, Debug, Default)]
pub struct Registration {
    told: Option<Told>,
    failures: u32,
    not_before: Duration,
    trouble: Option<Trouble>,
}

#[derive(Clone, Debug)]
struct Told {
    wanted: Wanted,
    /// When the zone was seen to hold it last.
    at: Duration,
    /// When the load in it was new.
    load_at: Duration,
}

/// What the log should say of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Something else than before.
    Yes,
    /// Nothing that was not said.
    No,
}

impl Registration {
    /// What the zone should say now; none if it is not the time to see to it. A node that has no address at this moment is
    /// better found where it was.
    #[must_use]
    pub fn due(&self, now: Duration, wanted: &Wanted) -> Option<Wanted> {
        if now < self.not_before || wanted.addresses.is_empty() {
            return None;
        }
        let Some(told) = &self.told else { return Some(wanted.clone()) };
        let load_told = told.wanted.said.load;
        let moved = load_told.abs_diff(wanted.said.load) >= LOAD_STEP;
        let tell_load = moved && now >= told.load_at + REGISTER_LOAD_EVERY;
        let load = if tell_load { wanted.said.load } else { load_told };
        let said = Announcement { load, ..wanted.said.clone() };
        let wanted = Wanted { said, ..wanted.clone() };
        (wanted != told.wanted || now >= told.at + REGISTER_EVERY).then_some(wanted)
    }

    /// The zone says this.
    pub fn worked(&mut self, now: Duration, wanted: Wanted) -> News {
        let news = if self.told.is_none() || self.trouble.is_some() { News::Yes } else { News::No };
        let load_at = match &self.told {
            Some(told) if told.wanted.said.load == wanted.said.load => told.load_at,
            _ => now,
        };
        *self = Self { told: Some(Told { wanted, at: now, load_at }), ..Self::default() };
        news
    }

    /// It could not be seen to.
    pub fn failed(&mut self, now: Duration, trouble: Trouble) -> News {
        let wait = REGISTER_RETRY_FIRST.saturating_mul(1 << self.failures.min(16));
        self.not_before = now + wait.min(REGISTER_RETRY_LAST);
        self.failures = self.failures.saturating_add(1);
        // Another try settles it.
        if trouble == Trouble::Overtaken && self.failures == 1 {
            return News::No;
        }
        let told = self.trouble.as_ref().is_some_and(|told| trouble.is_like(told));
        self.trouble = Some(trouble);
        if told { News::No } else { News::Yes }
    }

    /// Whether the zone has held this node's records.
    #[must_use]
    pub fn has_worked(&self) -> bool {
        self.told.is_some()
    }
}

/// An instance that a node may put in or take out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its name.
    pub name: Labels,
    /// Whose it is.
    pub of: NodeKey,
}

impl Instance {
    /// That of a node.
    #[must_use]
    pub fn of(said: &Announcement) -> Self {
        Self { name: zone::instance(said.node.as_str()), of: NodeKey::of(said) }
    }
}

/// One update, whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The instance whose TXT records must still be these, and no others.
    pub instance: Labels,
    /// Those records, none if there were none.
    pub only_if: BTreeSet<Data>,
    /// Records to take out.
    pub out: BTreeSet<Record>,
    /// Records to put in.
    pub put: BTreeSet<Record>,
}

/// What has to change for an instance, so that the zone says what is wanted (nothing, if it is to go): none if that is so.
/// `held` is what the zone says of it.
///
/// # Errors
/// [`Trouble::Taken`] if the name is not this node's, and not one's that has left the site.
pub fn change(
    instance: &Instance,
    domain: &str,
    wanted: &BTreeSet<Record>,
    held: &BTreeSet<Record>,
    removed: &BTreeSet<NodeId>,
) -> Result<Option<Change>, Trouble> {
    let same = |record: &Record| canonical(record, domain);
    let mut at_name = held.iter().filter(|record| names(&record.name, &instance.name));
    let owners = owners(instance, domain, &mut at_name, removed)?;
    let wanted: BTreeSet<Record> = wanted.iter().map(same).collect();
    let held: BTreeSet<Record> = held.iter().map(same).collect();
    let own = held.iter().filter(|record| is_of(record, instance, &owners));
    let out: BTreeSet<Record> = own.filter(|record| !wanted.contains(record)).cloned().collect();
    let put: BTreeSet<Record> = wanted.difference(&held).cloned().collect();
    if out.is_empty() && put.is_empty() {
        return Ok(None);
    }
    let only_if = txts(&held, &instance.name).cloned().collect();
    Ok(Some(Change { instance: instance.name.clone(), only_if, out, put }))
}

/// A change that puts in what is there already: whoever answers it has proven to have the key.
#[must_use]
pub fn proof(instance: &Instance, wanted: &BTreeSet<Record>, held: &BTreeSet<Record>) -> Change {
    let only_if = txts(held, &instance.name).cloned().collect();
    let (out, put) = (BTreeSet::new(), wanted.clone());
    Change { instance: instance.name.clone(), only_if, out, put }
}

/// Whether the zone leads to where the node listens, whatever it says of its weight.
#[must_use]
pub fn leads_there(domain: &str, wanted: &BTreeSet<Record>, held: &BTreeSet<Record>) -> bool {
    let places = |records: &BTreeSet<Record>| -> BTreeSet<Record> {
        let bare = |record: &Record| {
            let mut record = canonical(record, domain);
            if let Data::Srv { weight, .. } = &mut record.data {
                *weight = 0;
            }
            (!matches!(record.data, Data::Txt(_))).then_some(record)
        };
        records.iter().filter_map(bare).collect()
    };
    places(wanted).is_subset(&places(held))
}

/// The machines of a node, by the instance that names them.
#[must_use]
pub fn hosts(domain: &str, records: &BTreeSet<Record>) -> BTreeSet<Labels> {
    let host = |record: &Record| match canonical(record, domain).data {
        Data::Srv { target: Target::Ours(host), .. } => Some(host),
        _ => None,
    };
    records.iter().filter_map(host).collect()
}

/// The node that has put an instance in, if one of this site has that has left for ever.
#[must_use]
pub fn left_by(
    name: &Labels,
    site: NodeKey,
    held: &BTreeSet<Record>,
    removed: &BTreeSet<NodeId>,
) -> Option<Instance> {
    let said = txts(held, name).find_map(|txt| read(name, txt))?;
    let of = NodeKey::of(&said);
    let has_left = of.ca == site.ca && removed.contains(&of.id);
    has_left.then(|| Instance { name: name.clone(), of })
}

/// Whose records may be taken out: this node's, and those of the removed ones that had the name before it.
fn owners(
    instance: &Instance,
    domain: &str,
    at_name: &mut dyn Iterator<Item = &Record>,
    removed: &BTreeSet<NodeId>,
) -> Result<BTreeSet<NodeId>, Trouble> {
    let mut owners = BTreeSet::from([instance.of.id]);
    let taken = |by: String| Trouble::Taken {
        instance: format!("{}.{domain}", instance.name.join(".")),
        by,
    };
    let (mut has_txt, mut strange_srv) = (false, false);
    for record in at_name {
        match &record.data {
            txt @ Data::Txt(_) => {
                has_txt = true;
                let Some(said) = read(&instance.name, txt) else {
                    return Err(taken("something that is no node".into()));
                };
                let of = NodeKey::of(&said);
                if of.ca != instance.of.ca || (of.id != instance.of.id && !removed.contains(&of.id))
                {
                    return Err(taken(format!("node {} of site '{}'", of.id, said.site)));
                }
                owners.insert(of.id);
            }
            Data::Srv { .. } => strange_srv |= !is_of_host(record, domain, instance),
            _ => {}
        }
    }
    if strange_srv && !has_txt {
        return Err(taken("something that does not say what it is".into()));
    }
    Ok(owners)
}

fn is_of_host(record: &Record, domain: &str, instance: &Instance) -> bool {
    match canonical(record, domain).data {
        Data::Srv { target: Target::Ours(host), .. } => {
            is_host_of(&host, instance, &BTreeSet::from([instance.of.id]))
        }
        _ => false,
    }
}

/// Whether a record is there for this instance. It is in its canonical form.
fn is_of(record: &Record, instance: &Instance, owners: &BTreeSet<NodeId>) -> bool {
    match &record.data {
        Data::Ptr(to) => {
            let lists = [zone::service(), zone::of_site(instance.of.ca)];
            lists.iter().any(|list| names(list, &record.name)) && names(to, &instance.name)
        }
        Data::Srv { .. } | Data::Txt(_) => names(&record.name, &instance.name),
        Data::A(_) | Data::Aaaa(_) => is_host_of(&record.name, instance, owners),
    }
}

fn is_host_of(host: &Labels, instance: &Instance, owners: &BTreeSet<NodeId>) -> bool {
    let [label] = &host[..] else { return false };
    owners.iter().any(|id| {
        let rest = label.strip_prefix(&zone::host_of(instance.of.ca, *id));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

fn txts<'a>(records: &'a BTreeSet<Record>, name: &Labels) -> impl Iterator<Item = &'a Data> {
    let at_name = records.iter().filter(move |record| names(&record.name, name));
    at_name.map(|record| &record.data).filter(|data| matches!(data, Data::Txt(_)))
}

fn read(name: &Labels, txt: &Data) -> Option<Announcement> {
    let Data::Txt(keys) = txt else { return None };
    // No node says what is no text, and it could not be named exactly in an update.
    if keys.iter().any(|key| key.contains(char::REPLACEMENT_CHARACTER)) {
        return None;
    }
    let keys = keys.iter().filter_map(|key| key.split_once('='));
    Announcement::from_txt(name.first()?, keys).ok()
}

/// Whether two names are the same: case does not count in DNS.
fn names(a: &Labels, b: &Labels) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.eq_ignore_ascii_case(b))
}

/// The one form of records that say the same.
fn canonical(record: &Record, domain: &str) -> Record {
    let lower = |labels: &Labels| labels.iter().map(|label| label.to_ascii_lowercase()).collect();
    let domain = format!(".{}", domain.trim_matches('.').to_ascii_lowercase());
    let data = match &record.data {
        Data::Ptr(to) => Data::Ptr(lower(to)),
        Data::Srv { priority, weight, port, target } => {
            let target = match target {
                Target::Ours(host) => Target::Ours(lower(host)),
                Target::Named(name) => {
                    let name = name.trim_end_matches('.').to_ascii_lowercase();
                    match name.strip_suffix(&domain).filter(|host| !host.contains('.')) {
                        Some(host) => Target::Ours(vec![host.to_owned()]),
                        None => Target::Named(name),
                    }
                }
            };
            Data::Srv { priority: *priority, weight: *weight, port: *port, target }
        }
        other => other.clone(),
    };
    Record { name: lower(&record.name), data }
}

#[cfg(test)]
mod tests;
