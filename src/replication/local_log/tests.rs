use super::*;
use crate::replication::fixture::{Bare, after, boot};

fn log(entries: u64) -> (LocalLog<Bare>, Vec<Effect<Bare>>) {
    let (mut log, mut out) = (LocalLog::new(Stored::default()), Vec::new());
    for n in 0..entries {
        log.append(after(log.end(), 1 + n / 2, 0), &mut out);
    }
    (log, out)
}

#[test]
fn a_message_waits_for_all_that_the_disk_was_asked_before_it() {
    let (mut log, mut out) = log(3);
    out.clear();
    log.when_durable(boot(2, 2), Body::Durable(Lsn(3)), &mut out);
    log.written(2, &mut out);
    assert_eq!((out.len(), log.durable_end()), (0, Lsn(2)));
    log.written(3, &mut out);
    assert_eq!((out.len(), log.durable_end(), log.is_settled()), (1, Lsn(3), true));
}

#[test]
fn a_cut_takes_end_history_and_what_was_not_durable_yet() {
    let (mut log, mut out) = log(5);
    log.written(3, &mut out);
    let end = after(after(LogEnd::default(), 1, 0).end(), 1, 0).end();
    log.truncate(end, &mut out);
    assert_eq!((log.end(), log.durable_end()), (end, Lsn(2)));
    assert_eq!(log.history().last_epoch(), Epoch(1));
    assert_eq!(out.last(), Some(&Effect::Change(LogChange::Truncate(Lsn(2)))));
    log.append(after(end, 9, 0), &mut out);
    log.written(5, &mut out);
    assert_eq!(
        log.durable_end(),
        Lsn(2),
        "what was written before the cut says nothing of what came after"
    );
    log.written(7, &mut out);
    assert_eq!(log.durable_end(), Lsn(3));
}

#[test]
fn the_high_watermark_only_rises_and_never_past_the_end() {
    let (mut log, mut out) = log(4);
    log.commit_to(Lsn(9), &mut out);
    log.commit_to(Lsn(2), &mut out);
    assert_eq!(log.high_watermark(), Lsn(4));
}

#[test]
fn the_promise_is_at_least_the_newest_epoch_of_the_log() {
    let history = EpochHistory::new([(Epoch(7), Lsn(0))]);
    let log = LocalLog::<Bare>::new(Stored { history, ..Stored::default() });
    assert_eq!(log.promised(), Epoch(7));
}
