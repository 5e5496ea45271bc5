use super::*;

fn invoke(client: usize, value: u64) -> ClientEvent {
    ClientEvent::Invoke { client, partition: 0, values: vec![value] }
}

fn ok(client: usize, value: u64, base: u64) -> ClientEvent {
    ClientEvent::Ok { client, partition: 0, values: vec![value], base: Offset(base), copies: 2 }
}

fn poll(from: u64, got: &[(u64, u64)], end: u64) -> ClientEvent {
    let got = got.iter().map(|(offset, value)| (Offset(*offset), *value)).collect();
    ClientEvent::Poll {
        client: 0,
        node: 0,
        partition: 0,
        from: Offset(from),
        got,
        end: Offset(end),
    }
}

/// Two producers send four values, one of each under way at a time, and a reader sees them in two answers.
fn good() -> (Vec<ClientEvent>, Vec<Replica>) {
    let history = vec![
        invoke(0, 10),
        ok(0, 10, 0),
        invoke(0, 11),
        invoke(1, 20),
        ok(1, 20, 1),
        ok(0, 11, 2),
        poll(0, &[(0, 10), (1, 20)], 3),
        invoke(1, 21),
        ok(1, 21, 3),
        poll(2, &[(2, 11), (3, 21)], 4),
    ];
    let log: Replica = vec![((0, 0), 10), ((0, 1), 20), ((0, 2), 11), ((0, 3), 21)];
    (history, vec![log.clone(), log])
}

/// A change of the good history is found as exactly these kinds.
#[track_caller]
fn finds(kinds: &[Anomaly], change: impl FnOnce(&mut Vec<ClientEvent>, &mut Vec<Replica>)) {
    let (mut history, mut replicas) = good();
    change(&mut history, &mut replicas);
    let found = judge(&history, &replicas);
    assert_eq!(found.0.keys().copied().collect::<Vec<_>>(), kinds, "{found:?}");
}

#[test]
fn a_good_history_passes() {
    finds(&[], |_, _| {});
}

#[test]
fn what_is_unknown_may_be_there_or_not() {
    let unknown = ClientEvent::Info { client: 1, values: vec![21] };
    finds(&[], |history, _| history[8] = unknown.clone());
    finds(&[], |history, replicas| {
        history[8] = unknown.clone();
        history[9] = poll(2, &[(2, 11)], 3);
        replicas.iter_mut().for_each(|log| {
            log.pop();
        });
    });
}

#[test]
fn an_acked_record_that_one_member_has_not_is_lost() {
    finds(&[Anomaly::Lost, Anomaly::Differing], |_, replicas| {
        replicas[1].pop();
    });
    finds(&[Anomaly::Lost], |history, replicas| {
        history.pop();
        replicas.iter_mut().for_each(|log| {
            log.pop();
        });
    });
}

#[test]
fn a_value_at_two_places_is_duplicated() {
    finds(&[Anomaly::Duplicated], |history, replicas| {
        // Nobody was told of it: a retry that was stored again.
        history[8] = ClientEvent::Info { client: 1, values: vec![21] };
        replicas.iter_mut().for_each(|log| log.push(((0, 4), 21)));
    });
}

#[test]
fn two_values_at_one_place_are_inconsistent() {
    finds(&[Anomaly::Inconsistent, Anomaly::Untimely], |history, _| history[8] = ok(1, 21, 2));
    finds(&[Anomaly::Duplicated, Anomaly::Inconsistent], |history, _| {
        history[6] = poll(0, &[(0, 20), (1, 20)], 3);
    });
}

#[test]
fn an_ack_that_names_another_place_is_inconsistent() {
    finds(&[Anomaly::Inconsistent], |history, _| history[8] = ok(1, 21, 7));
}

#[test]
fn sends_of_one_producer_in_another_order_are_reordered() {
    finds(&[Anomaly::Reordered, Anomaly::Untimely], |history, replicas| {
        history[1] = ok(0, 10, 2);
        history[5] = ok(0, 11, 0);
        history[6] = poll(0, &[(0, 11), (1, 20)], 3);
        history[9] = poll(2, &[(2, 10), (3, 21)], 4);
        replicas.iter_mut().for_each(|log| (log[0].1, log[2].1) = (11, 10));
    });
}

#[test]
fn what_was_sent_after_an_ack_and_is_stored_before_it_is_untimely() {
    finds(&[Anomaly::Untimely], |history, replicas| {
        history[1] = ok(0, 10, 1);
        history[4] = ok(1, 20, 0);
        history[6] = poll(0, &[(0, 20), (1, 10)], 3);
        replicas.iter_mut().for_each(|log| (log[0].1, log[1].1) = (20, 10));
    });
}

#[test]
fn a_refused_record_that_is_stored_is_aborted() {
    finds(&[Anomaly::Aborted], |history, _| {
        history[8] = ClientEvent::Fail { client: 1, values: vec![21] };
    });
}

#[test]
fn a_record_that_nobody_sent_there_is_a_phantom() {
    finds(&[Anomaly::Phantom], |_, replicas| {
        replicas.iter_mut().for_each(|log| log.push(((0, 4), 99)));
    });
    finds(&[Anomaly::Phantom], |history, _| {
        history[7] = ClientEvent::Invoke { client: 1, partition: 1, values: vec![21] };
    });
}

#[test]
fn a_reader_that_misses_an_offset_skips_it() {
    finds(&[Anomaly::Skipped], |history, _| history[9] = poll(3, &[(3, 21)], 4));
    finds(&[Anomaly::Skipped], |history, _| history[6] = poll(0, &[(1, 20)], 3));
    finds(&[Anomaly::Skipped], |history, _| history[9] = poll(2, &[], 4));
}

#[test]
fn a_reader_that_is_given_an_earlier_offset_goes_back() {
    finds(&[Anomaly::Nonmonotonic], |history, _| {
        history[9] = poll(2, &[(2, 11), (1, 20), (3, 21)], 4);
    });
    // A question that was overtaken by its answer is asked again.
    finds(&[], |history, _| history.push(poll(0, &[(0, 10)], 4)));
}

#[test]
fn an_end_that_falls_is_found() {
    finds(&[Anomaly::EndFell], |history, _| history.push(poll(0, &[(0, 10)], 2)));
}

#[test]
fn members_that_hold_different_records_differ() {
    finds(&[Anomaly::Differing], |history, replicas| {
        history.push(invoke(0, 12));
        replicas[1].push(((0, 4), 12));
    });
}
