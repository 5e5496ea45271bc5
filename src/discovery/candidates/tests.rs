use proptest::prelude::*;

use super::*;
use crate::{limits::NODE_WEIGHT_DEFAULT, types::NodeRole};

const NOW: Duration = Duration::from_secs(100);

fn ca(n: u8) -> CaPrefix {
    CaPrefix::of(&[n; 32])
}

fn seen(id: u64, addresses: &[&str]) -> Sighting {
    Sighting {
        source: Source::Multicast,
        instance: format!("n{id}"),
        announcement: Announcement {
            site: "plant".parse().expect("name"),
            node: "n".parse().expect("name"),
            id: NodeId(id),
            role: NodeRole::Data,
            weight: NODE_WEIGHT_DEFAULT,
            load: 0,
            version: String::new(),
            ca: ca(1),
        },
        addresses: addresses.iter().map(|a| a.parse().expect("address")).collect(),
        priority: 0,
        until: None,
    }
}

fn address(nth: u64) -> String {
    format!("10.{}.{}.{}:7440", nth >> 16 & 255, nth >> 8 & 255, nth & 255)
}

fn ids(table: &Candidates) -> Vec<u64> {
    table.nodes().map(|(key, _)| key.id.0).collect()
}

fn firsts(table: &Candidates, address: &str) -> usize {
    let address = address.parse().expect("address");
    (0..10_000).filter(|seed| table.order(NOW, *seed).first() == Some(&address)).count()
}

#[test]
fn what_several_sources_say_of_one_node_is_one_candidate() {
    let mut table = Candidates::of_site(Some(ca(1)));
    let dns = Sighting { source: Source::Dns, ..seen(1, &["10.0.0.1:1", "10.0.0.2:1"]) };
    assert!(table.see(dns.clone(), NOW) && table.see(seen(1, &["10.0.0.1:1"]), NOW));
    assert!(!table.see(dns, NOW), "it was known");
    assert_eq!(ids(&table), [1]);
    assert_eq!(table.order(NOW, 0).len(), 2, "each address once");
    assert!(table.gone(Source::Dns, "n1") && !table.gone(Source::Dns, "n1"));
    assert_eq!(table.order(NOW, 0).len(), 1);
    assert!(table.gone(Source::Multicast, "n1"));
    assert_eq!(ids(&table), [0; 0]);
}

#[test]
fn another_site_is_not_looked_at_unless_all_are() {
    let mut other = seen(1, &["10.0.0.1:1"]);
    other.announcement.ca = ca(2);
    assert!(!Candidates::of_site(Some(ca(1))).see(other.clone(), NOW));
    assert!(Candidates::of_site(None).see(other, NOW));
}

#[test]
fn an_announcement_ends_at_its_time_and_a_newer_one_replaces_it() {
    let mut table = Candidates::default();
    let until = |s| Some(NOW + Duration::from_secs(s));
    table.see(Sighting { until: until(5), ..seen(1, &["10.0.0.1:1"]) }, NOW);
    table.see(Sighting { until: until(9), ..seen(1, &["10.0.0.9:1"]) }, NOW);
    assert_eq!(table.order(NOW, 0), ["10.0.0.9:1".parse().expect("address")]);
    assert!(!table.expire(NOW + Duration::from_secs(8)));
    assert!(table.expire(NOW + Duration::from_secs(9)));
    assert_eq!(ids(&table), [0; 0]);
    // The instance that named one node now names another.
    table.see(seen(1, &["10.0.0.1:1"]), NOW);
    table.see(Sighting { instance: "n1".into(), ..seen(2, &["10.0.0.1:1"]) }, NOW);
    assert_eq!(ids(&table), [2]);
}

#[test]
fn chance_follows_weight_and_load() {
    let mut table = Candidates::default();
    let mut heavy = seen(1, &["10.0.0.1:1"]);
    heavy.announcement.weight = 300;
    table.see(heavy.clone(), NOW);
    table.see(seen(2, &["10.0.0.2:1"]), NOW);
    let first = firsts(&table, "10.0.0.1:1");
    assert!((7_200..7_800).contains(&first), "three of four: {first}");
    heavy.announcement.load = 67;
    table.see(heavy.clone(), NOW);
    let first = firsts(&table, "10.0.0.1:1");
    assert!((4_700..5_300).contains(&first), "as often as the other: {first}");
    heavy.announcement.weight = 0;
    table.see(heavy, NOW);
    assert!(firsts(&table, "10.0.0.1:1") < 10, "it gives its work away");
    let last = Sighting { priority: 1, ..seen(2, &["10.0.0.2:1"]) };
    table.see(last, NOW);
    assert_eq!(firsts(&table, "10.0.0.1:1"), 10_000, "priority goes before weight");
}

#[test]
fn families_alternate_from_node_to_node() {
    let mut table = Candidates::default();
    for id in 1..=2 {
        let addresses =
            [format!("10.0.0.{id}:1"), format!("[fd77::{id}]:1"), format!("[fe80::{id}]:1")];
        table.see(seen(id, &addresses.each_ref().map(String::as_str)), NOW);
    }
    let order = table.order(NOW, 7);
    let v6: Vec<bool> = order.iter().map(SocketAddr::is_ipv6).collect();
    assert_eq!(v6, [true, false, false, true, true, true], "{order:?}");
    assert!(order[4..].iter().all(is_link_local), "{order:?}");
}

#[test]
fn what_failed_comes_last_for_a_time_that_grows() {
    let mut table = Candidates::default();
    let bad: SocketAddr = "10.0.0.1:1".parse().expect("address");
    table.see(seen(1, &["10.0.0.1:1"]), NOW);
    table.see(seen(2, &["10.0.0.2:1"]), NOW);
    table.failed(bad, NOW);
    assert_eq!(firsts(&table, "10.0.0.1:1"), 0);
    assert!(!table.is_in_disgrace(&bad, NOW + DIAL_FAILURE_FIRST));
    for _ in 0..100 {
        table.failed(bad, NOW);
    }
    assert!(table.is_in_disgrace(&bad, NOW + DIAL_FAILURE_LAST / 2));
    assert!(!table.is_in_disgrace(&bad, NOW + DIAL_FAILURE_LAST));
    table.reached(bad, NodeId(1));
    assert!(!table.is_in_disgrace(&bad, NOW));
}

#[test]
fn a_flood_hides_nobody_for_long() {
    let mut table = Candidates::of_site(Some(ca(1)));
    table.see(seen(1, &["192.168.0.1:1"]), NOW);
    table.reached("192.168.0.1:1".parse().expect("address"), NodeId(1));
    for id in 2..2_000 {
        table.see(seen(id, &[&address(id)]), NOW);
    }
    assert_eq!(table.nodes().count(), CANDIDATES_PER_SOURCE_MAX);
    assert!(table.see(Sighting { source: Source::Dns, ..seen(5_000, &["192.168.0.2:1"]) }, NOW));
    assert!(!table.see(seen(6_000, &["192.168.0.3:1"]), NOW), "no room");
    // A dial of a fake one fails: it makes room for the true one.
    let fake =
        table.order(NOW, 3).into_iter().find(|a| a.to_string().starts_with("10.")).expect("one");
    table.failed(fake, NOW);
    assert!(table.see(seen(6_000, &["192.168.0.3:1"]), NOW));
    assert!(ids(&table).contains(&1) && ids(&table).contains(&5_000), "{:?}", ids(&table));
}

#[test]
fn a_thousand_nodes_at_one_address_take_the_place_of_none() {
    let mut table = Candidates::of_site(Some(ca(1)));
    for id in 1_000..2_000 {
        table.see(seen(id, &["10.0.0.9:1"]), NOW);
    }
    for id in 1..=3 {
        assert!(table.see(seen(id, &[&address(id)]), NOW), "{id}");
    }
    for id in 2_000..3_000 {
        table.see(seen(id, &["10.0.0.9:1", "10.0.0.1:7440"]), NOW);
    }
    assert_eq!(table.nodes().count(), CANDIDATES_PER_SOURCE_MAX);
    let order: Vec<String> = table.order(NOW, 1).iter().map(ToString::to_string).collect();
    for wanted in [&address(1), &address(2), &address(3), "10.0.0.9:1"] {
        assert!(order.iter().any(|address| address == wanted), "{wanted} in {order:?}");
    }
    assert_eq!(order.len(), 4);
}

#[test]
fn impostors_of_a_node_crowd_it_out_no_longer_than_until_they_are_dialled() {
    let mut table = Candidates::default();
    for nth in 0..10 {
        let many: Vec<String> = (0..8).map(|a| address(nth * 8 + a)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        table.see(Sighting { instance: format!("a{nth}"), ..seen(1, &many) }, NOW);
    }
    let true_one = Sighting { instance: "n1".into(), ..seen(1, &["192.168.0.1:1"]) };
    assert!(!table.see(true_one.clone(), NOW), "no room");
    table.order(NOW, 1).into_iter().take(32).for_each(|address| table.failed(address, NOW));
    assert!(table.see(true_one, NOW));
    let (_, node) = table.nodes().next().expect("one");
    let first: Vec<SocketAddr> =
        node.addresses_in_turn().take(SIGHTINGS_PER_CANDIDATE_MAX).collect();
    assert!(first.contains(&"192.168.0.1:1".parse().expect("address")), "{first:?}");
}

#[derive(Clone, Debug)]
enum Step {
    See { id: u64, source: Source, instance: u8, addresses: Vec<u64>, until: Option<u64> },
    Gone { source: Source, instance: u8 },
    Failed(u64),
    Reached(u64, u64),
    Later(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let source = prop_oneof![Just(Source::Multicast), Just(Source::Dns)];
    let addresses = proptest::collection::vec(0..400u64, 0..20);
    let until = proptest::option::of(0..100u64);
    let see = (0..200u64, source.clone(), any::<u8>(), addresses, until).prop_map(
        |(id, source, instance, addresses, until)| Step::See {
            id,
            source,
            instance,
            addresses,
            until,
        },
    );
    let step = prop_oneof![
        8 => see,
        1 => (source, any::<u8>()).prop_map(|(source, instance)| Step::Gone { source, instance }),
        3 => (0..400u64).prop_map(Step::Failed),
        1 => (0..400u64, 0..200u64).prop_map(|(address, id)| Step::Reached(address, id)),
        1 => (0..20u64).prop_map(Step::Later),
    ];
    proptest::collection::vec(step, 0..400)
}

proptest! {
    #[test]
    fn bounds_hold_and_every_address_is_dialled_once(steps in steps(), seed: u64) {
        let mut table = Candidates::of_site(Some(ca(1)));
        let mut now = Duration::ZERO;
        for step in steps {
            match step {
                Step::See { id, source, instance, addresses, until } => {
                    let texts: Vec<String> = addresses.iter().map(|a| address(*a)).collect();
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    let until = until.map(Duration::from_secs);
                    let (instance, sighting) = (format!("i{instance}"), seen(id, &texts));
                    table.see(Sighting { source, instance, until, ..sighting }, now);
                }
                Step::Gone { source, instance } => {
                    let instance = format!("i{instance}");
                    table.gone(source, &instance);
                    prop_assert!(!table.gone(source, &instance));
                }
                Step::Failed(at) => table.failed(address(at).parse().expect("address"), now),
                Step::Reached(at, id) => table.reached(address(at).parse().expect("address"), NodeId(id)),
                Step::Later(by) => now += Duration::from_secs(by),
            }
            prop_assert!(table.nodes.len() <= CANDIDATES_MAX);
            prop_assert!(table.failed.len() <= DIAL_FAILURES_REMEMBERED);
            for node in table.nodes.values() {
                prop_assert!((1..=SIGHTINGS_PER_CANDIDATE_MAX).contains(&node.sightings.len()));
                let sightings = node.sightings.values();
                prop_assert!(sightings.clone().all(|s| s.addresses.len() <= SIGHTING_ADDRESSES_MAX));
            }
        }
        table.expire(now);
        let order = table.order(now, seed);
        let mut known: Vec<SocketAddr> = table.nodes.values().flat_map(Candidate::addresses).collect();
        known.sort_unstable();
        known.dedup();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(&sorted, &known);
        let bad: Vec<bool> = order.iter().map(|a| table.is_in_disgrace(a, now)).collect();
        prop_assert!(bad.is_sorted(), "what failed comes last: {:?}", bad);
    }
}
