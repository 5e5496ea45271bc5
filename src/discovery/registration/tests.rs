use super::*;
use crate::discovery::CaPrefix;

const DOMAIN: &str = "plant.example";

fn said(name: &str, id: u64) -> Announcement {
    Announcement::fixture(name, id)
}

fn wanted(said: Announcement, addresses: &[&str]) -> Wanted {
    let addresses = addresses.iter().map(|address| address.parse().expect("address")).collect();
    Wanted { said, addresses, serves: true, removed: BTreeSet::new() }
}

fn edge(weight: u32) -> Wanted {
    wanted(Announcement { weight, ..said("edge-1", 1) }, &["10.0.0.7", "[fd77::7]:7440"])
}

/// A zone as a name server keeps it: a change is made whole, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Zone(BTreeSet<Record>);

impl Zone {
    fn of(all: &[&Wanted]) -> Self {
        Self(all.iter().flat_map(|wanted| wanted.records()).collect())
    }

    fn set(&mut self, wanted: &Wanted) -> Result<Option<Change>, Trouble> {
        self.settle(&Instance::of(&wanted.said), &wanted.records(), &wanted.removed)
    }

    fn settle(
        &mut self,
        instance: &Instance,
        wanted: &BTreeSet<Record>,
        removed: &BTreeSet<NodeId>,
    ) -> Result<Option<Change>, Trouble> {
        let change = change(instance, DOMAIN, wanted, &self.0, removed)?;
        if let Some(change) = &change {
            assert!(self.make(change), "{change:?}");
        }
        Ok(change)
    }

    fn make(&mut self, change: &Change) -> bool {
        let txts: BTreeSet<Data> = txts(&self.0, &change.instance).cloned().collect();
        if txts != change.only_if {
            return false;
        }
        // As servers do, which fold case.
        let out: BTreeSet<Record> = change.out.iter().map(|r| canonical(r, DOMAIN)).collect();
        self.0.retain(|record| !out.contains(&canonical(record, DOMAIN)));
        self.0.extend(change.put.iter().cloned());
        true
    }

    fn same_as(&self, other: &Self) -> bool {
        let canonical = |zone: &Self| -> BTreeSet<Record> {
            zone.0.iter().map(|record| canonical(record, DOMAIN)).collect()
        };
        canonical(self) == canonical(other)
    }
}

#[test]
fn a_node_is_put_in_once_changed_by_what_differs_and_taken_out_whole() {
    let other = wanted(said("edge-2", 12), &["10.0.0.8"]);
    let mut zone = Zone::of(&[&other]);
    zone.set(&edge(100)).expect("free");
    assert_eq!(zone, Zone::of(&[&other, &edge(100)]));
    assert_eq!(zone.set(&edge(100)), Ok(None));

    let change = zone.set(&edge(30)).expect("its own").expect("news");
    assert_eq!((change.out.len(), change.put.len()), (2, 2), "SRV and TXT: {change:?}");
    // Another address, and a second port: then the address at the first one is of another machine.
    let moved = wanted(said("edge-1", 1), &["10.0.0.9:1", "10.0.0.9:2"]);
    zone.set(&moved).expect("its own");
    assert_eq!(zone, Zone::of(&[&other, &moved]));

    let nothing = BTreeSet::new();
    zone.settle(&Instance::of(&moved.said), &nothing, &nothing_removed()).expect("its own");
    assert_eq!(zone, Zone::of(&[&other]));
}

fn nothing_removed() -> BTreeSet<NodeId> {
    BTreeSet::new()
}

#[test]
fn another_nodes_name_is_left_alone() {
    let twin = wanted(said("edge-1", 2), &["10.0.0.8"]);
    let foreign = Announcement { ca: CaPrefix::of(&[1; 32]), ..said("edge-1", 1) };
    let foreign = wanted(foreign, &["10.0.0.8"]);
    let mut garbage = Zone::default();
    let name = zone::instance("EDGE-1");
    garbage.0.insert(Record { name: name.clone(), data: Data::Txt(vec!["hello".into()]) });
    let mut printer = Zone::default();
    let target = Target::Named("printer.plant.example".into());
    let srv = Data::Srv { priority: 0, weight: 1, port: 631, target };
    printer.0.insert(Record { name, data: srv });
    for zone in [Zone::of(&[&twin]), Zone::of(&[&foreign]), garbage, printer] {
        let mut after = zone.clone();
        let refused = after.set(&edge(100)).expect_err("taken");
        assert!(refused.to_string().contains("edge-1._dunlin._udp.plant.example is that of "));
        assert_eq!(after, zone);
    }
    // The number of one begins with that of the other.
    let mut zone = Zone::of(&[&wanted(said("edge-12", 12), &["10.0.0.8"])]);
    let before = zone.clone();
    zone.set(&edge(1)).expect("free");
    zone.settle(&Instance::of(&said("edge-1", 1)), &BTreeSet::new(), &nothing_removed())
        .expect("its own");
    assert_eq!(zone, before);
}

#[test]
fn who_comes_between_reading_and_writing_wins() {
    let mut zone = Zone::of(&[&edge(100)]);
    let instance = Instance::of(&edge(1).said);
    let late = change(&instance, DOMAIN, &edge(1).records(), &zone.0, &nothing_removed());
    zone.set(&edge(50)).expect("its own");
    assert!(!zone.make(&late.expect("its own").expect("news")), "the TXT record has changed");
    let proof = proof(&instance, &edge(50).records(), &zone.0);
    assert!(proof.out.is_empty() && zone.make(&proof));
    assert_eq!(zone, Zone::of(&[&edge(50)]));
}

#[test]
fn what_a_removed_node_left_is_taken_out_and_its_name_can_be_had_again() {
    let old = wanted(said("edge-1", 7), &["10.0.0.7:1", "10.0.0.7:2"]);
    let stays = wanted(said("edge-2", 2), &["10.0.0.8"]);
    let removed = BTreeSet::from([NodeId(7)]);
    let mut zone = Zone::of(&[&old, &stays]);
    let site = NodeKey::of(&stays.said);
    let left = |zone: &Zone, name: &str| left_by(&zone::instance(name), site, &zone.0, &removed);
    assert_eq!(left(&zone, "edge-2"), None);
    assert_eq!(left_by(&zone::instance("edge-1"), site, &zone.0, &nothing_removed()), None);
    let instance = left(&zone, "edge-1").expect("it has left");
    assert_eq!(instance.of.id, NodeId(7));
    let mut again = zone.clone();
    zone.settle(&instance, &BTreeSet::new(), &removed).expect("nobody's");
    assert_eq!(zone, Zone::of(&[&stays]));

    let new = Wanted { removed, ..edge(100) };
    again.set(&new).expect("nobody's");
    assert_eq!(again, Zone::of(&[&stays, &new]));
    assert_eq!(left_by(&zone::instance("edge-1"), site, &again.0, &new.removed), None);
}

#[test]
fn a_server_that_folds_case_and_says_names_in_full_says_the_same() {
    let own = wanted(said("Edge-1", 1), &["10.0.0.7", "Edge-1.Plant.example:7000"]);
    let folded = own.records().into_iter().map(|record| {
        let mut record = canonical(&record, DOMAIN);
        if let Data::Srv { target, .. } = &mut record.data
            && let Target::Ours(host) = target
        {
            *target = Target::Named(format!("{}.{DOMAIN}.", host[0]));
        }
        record
    });
    let mut zone = Zone(folded.collect());
    assert_eq!(zone.set(&own), Ok(None));
    zone.set(&Wanted { said: Announcement { weight: 5, ..own.said.clone() }, ..own.clone() })
        .expect("its own");
    let lighter = Announcement { weight: 5, ..own.said };
    assert!(zone.same_as(&Zone::of(&[&Wanted { said: lighter, ..own }])), "{zone:?}");
}

#[test]
fn a_node_that_starts_where_it_was_is_left_as_it_is_until_it_serves() {
    let zone = Zone::of(&[&edge(100)]);
    let there = |wanted: &Wanted| leads_there(DOMAIN, &wanted.records(), &zone.0);
    assert!(there(&edge(0)));
    assert!(!there(&wanted(said("edge-1", 1), &["10.0.0.8"])));
    assert!(!leads_there(DOMAIN, &edge(0).records(), &BTreeSet::new()));
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn news_are_told_at_once_a_load_sparingly_and_what_stands_is_looked_at_again() {
    let mut registration = Registration::default();
    assert_eq!(registration.due(s(0), &wanted(said("edge-1", 1), &[])), None);
    let at = |weight, load| {
        let said = Announcement { load, ..edge(weight).said };
        Wanted { said, ..edge(weight) }
    };
    assert_eq!(registration.due(s(0), &at(100, 3)), Some(at(100, 3)));
    assert_eq!(registration.worked(s(0), at(100, 3)), News::Yes);
    assert_eq!(registration.due(s(1), &at(100, 3)), None);
    assert_eq!(registration.due(s(1), &at(50, 3)), Some(at(50, 3)));
    // A load waits for its turn, also when something else is told.
    assert_eq!(registration.due(s(1), &at(100, 90)), None);
    assert_eq!(registration.due(s(1), &at(50, 90)), Some(at(50, 3)));
    assert_eq!(registration.worked(s(60), at(50, 3)), News::No);
    assert_eq!(registration.due(s(120), &at(50, 90)), Some(at(50, 90)));
    registration.worked(s(120), at(50, 90));
    assert_eq!(registration.due(s(179), &at(50, 10)), None);
    assert_eq!(registration.due(s(180), &at(50, 10)), Some(at(50, 90)), "looked at again");
    let left = Wanted { removed: BTreeSet::from([NodeId(9)]), ..at(50, 90) };
    assert!(registration.due(s(121), &left).is_some());
    let loads = [0, 9, 10, 57].map(|load| at(1, load).records());
    assert!(loads[0] == loads[1] && loads[1] != loads[2]);
    assert!(
        loads[3].iter().any(|r| matches!(&r.data, Data::Txt(k) if k.contains(&"load=50".into())))
    );
}

#[test]
fn a_failure_is_told_once_and_tried_again_later_and_later() {
    let mut registration = Registration::default();
    let server = "10.0.0.53:53".parse().expect("address");
    let silent = |why: &str| Trouble::Silent { server, why: why.into() };
    let unknown = || Trouble::UnknownKey { server, key: "k".into() };
    assert_eq!(registration.failed(s(0), silent("refused")), News::Yes);
    assert_eq!(registration.failed(s(2), silent("timed out")), News::No);
    assert_eq!(registration.failed(s(6), unknown()), News::Yes);
    assert!(!registration.has_worked());
    let (mut now, mut tries) = (s(6), 0);
    while now < s(3_600) {
        if registration.due(now, &edge(1)).is_some() {
            assert_eq!(registration.failed(now, unknown()), News::No);
            tries += 1;
        }
        now += s(1);
    }
    assert!((60..70).contains(&tries), "{tries} tries in an hour");
    assert_eq!(registration.worked(now, edge(1)), News::Yes);
    assert_eq!(registration.failed(now, Trouble::Overtaken), News::No, "the next try settles it");
    assert_eq!(registration.due(now, &edge(2)), None);
    assert_eq!(registration.due(now + REGISTER_RETRY_FIRST, &edge(2)), Some(edge(2)));
    assert_eq!(registration.failed(now + s(2), Trouble::Overtaken), News::Yes);
    assert!(registration.has_worked());
}
