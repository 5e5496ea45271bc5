use super::*;

fn history(starts: &[(u64, u64)]) -> EpochHistory {
    EpochHistory::new(starts.iter().map(|(epoch, lsn)| (Epoch(*epoch), Lsn(*lsn))))
}

#[track_caller]
fn common(a: (&[(u64, u64)], u64), b: (&[(u64, u64)], u64), want: Option<u64>) {
    let (left, right) = (history(a.0), history(b.0));
    assert_eq!(left.common_end(Lsn(a.1), &right, Lsn(b.1)), want.map(Lsn));
    assert_eq!(right.common_end(Lsn(b.1), &left, Lsn(a.1)), want.map(Lsn));
}

#[test]
fn logs_agree_up_to_the_first_end_of_their_newest_shared_epoch() {
    common((&[(1, 0), (2, 5)], 9), (&[(1, 0), (2, 5)], 7), Some(7));
    common((&[(1, 0), (3, 5)], 9), (&[(1, 0), (2, 8)], 9), Some(5));
    common((&[(1, 0), (2, 5)], 9), (&[(1, 0)], 7), Some(5));
    common((&[(1, 0), (2, 5), (4, 6)], 9), (&[(1, 0), (3, 3)], 4), Some(3));
}

#[test]
fn an_empty_log_agrees_from_the_start_and_a_forgotten_one_not_at_all() {
    common((&[(1, 0)], 9), (&[], 0), Some(0));
    common((&[(1, 0)], 9), (&[(2, 0)], 3), Some(0));
    common((&[(5, 100)], 120), (&[(1, 0)], 50), None);
}

#[test]
fn the_history_is_cut_with_its_log() {
    let mut h = history(&[(1, 0), (2, 5), (4, 6)]);
    h.truncate(Lsn(6));
    assert_eq!(h, history(&[(1, 0), (2, 5)]));
    h.truncate(Lsn(5));
    assert_eq!(h.last_epoch(), Epoch(1));
}

#[test]
fn the_oldest_epochs_are_forgotten() {
    let many = EPOCHS_REMEMBERED as u64 + 3;
    let h = EpochHistory::new((0..many).map(|n| (Epoch(n + 1), Lsn(n))));
    assert_eq!(h.starts().count(), EPOCHS_REMEMBERED);
    assert_eq!(h.starts().next(), Some((Epoch(4), Lsn(3))));
}
