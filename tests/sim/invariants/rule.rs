//! The checks by name, and which invariant each guards. docs/replication.md lists the same.

use super::super::view::Violation;

/// A check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Number of the invariant.
    pub(crate) number: u8,
    pub(crate) name: &'static str,
}

const fn rule(number: u8, name: &'static str) -> Rule {
    Rule { number, name }
}

pub(crate) const ACKED_IS_COMMITTED: Rule = rule(1, "acked_is_committed");
pub(crate) const PRIMARY_HOLDS_COMMITTED: Rule = rule(1, "primary_holds_committed");
pub(crate) const COMMITTED_NEVER_CHANGES: Rule = rule(1, "committed_never_changes");
pub(crate) const MEMBERS_HOLD_COMMITTED: Rule = rule(2, "members_hold_committed");
pub(crate) const QUORUM_CONTAINS_ELECTABLE: Rule = rule(3, "quorum_contains_electable");
pub(crate) const QUORUM_CONTAINS_PENDING: Rule = rule(3, "quorum_contains_pending");
pub(crate) const ELECTED_FROM_SET: Rule = rule(3, "elected_from_set");
pub(crate) const ONE_LEADER_PER_EPOCH: Rule = rule(4, "one_leader_per_epoch");
pub(crate) const PROMISE_IS_DURABLE: Rule = rule(4, "promise_is_durable");
pub(crate) const PROMISE_NEVER_FALLS: Rule = rule(4, "promise_never_falls");
pub(crate) const NO_EPOCH_IS_RESUMED: Rule = rule(5, "no_epoch_is_resumed");
pub(crate) const EPOCH_HAS_START: Rule = rule(5, "epoch_has_start");
pub(crate) const JOINS_IN_TWO_STEPS: Rule = rule(6, "joins_in_two_steps");
pub(crate) const JOINS_IN_CURRENT_BOOT: Rule = rule(6, "joins_in_current_boot");
pub(crate) const STALLED_IS_NOT_LED: Rule = rule(7, "stalled_is_not_led");
pub(crate) const FLOOR_IS_COMMITTED: Rule = rule(7, "floor_is_committed");
pub(crate) const WATERMARK_NEVER_FALLS: Rule = rule(8, "watermark_never_falls");
pub(crate) const WATERMARK_IS_COMMITTED: Rule = rule(8, "watermark_is_committed");
pub(crate) const NO_CUT_BELOW_WATERMARK: Rule = rule(8, "no_cut_below_watermark");
pub(crate) const SAME_PLACE_SAME_ENTRY: Rule = rule(9, "same_place_same_entry");
pub(crate) const EPOCHS_FOLLOW_FROM_LOG: Rule = rule(10, "epochs_follow_from_log");
pub(crate) const READ_IS_COMMITTED: Rule = rule(11, "read_is_committed");
pub(crate) const OFFSETS_HAVE_NO_GAPS: Rule = rule(11, "offsets_have_no_gaps");
pub(crate) const READ_END_NEVER_FALLS: Rule = rule(11, "read_end_never_falls");
pub(crate) const BARRIER_SEES_ACKS: Rule = rule(11, "barrier_sees_acks");
pub(crate) const FAILED_IS_NEVER_STORED: Rule = rule(12, "failed_is_never_stored");
pub(crate) const STORED_ONCE: Rule = rule(13, "stored_once");
pub(crate) const HALF_INSTALLED_NEVER_COUNTS: Rule = rule(16, "half_installed_never_counts");
pub(crate) const NOTHING_VANISHES: Rule = rule(17, "nothing_vanishes");
pub(crate) const DAMAGE_IS_NOT_BUILT_ON: Rule = rule(18, "damage_is_not_built_on");
pub(crate) const NO_ALARM_WITHOUT_LOSS: Rule = rule(18, "no_alarm_without_loss");
pub(crate) const LOST_DISK_NEVER_COUNTS: Rule = rule(19, "lost_disk_never_counts");
pub(crate) const ENOUGH_COPIES: Rule = rule(20, "enough_copies");
pub(crate) const COPIES_ARE_THERE: Rule = rule(20, "copies_are_there");
pub(crate) const CONFIG_IS_ONE_SEQUENCE: Rule = rule(22, "config_is_one_sequence");
pub(crate) const STALE_PROPOSALS_FAIL: Rule = rule(22, "stale_proposals_fail");
pub(crate) const PRIMARY_GOES_BY_AGREED: Rule = rule(22, "primary_goes_by_agreed");
pub(crate) const LOGS_END_EQUAL: Rule = rule(26, "logs_end_equal");

/// All of them, in the order of the invariants.
pub(crate) const RULES: [Rule; 38] = [
    ACKED_IS_COMMITTED,
    PRIMARY_HOLDS_COMMITTED,
    COMMITTED_NEVER_CHANGES,
    MEMBERS_HOLD_COMMITTED,
    QUORUM_CONTAINS_ELECTABLE,
    QUORUM_CONTAINS_PENDING,
    ELECTED_FROM_SET,
    ONE_LEADER_PER_EPOCH,
    PROMISE_IS_DURABLE,
    PROMISE_NEVER_FALLS,
    NO_EPOCH_IS_RESUMED,
    EPOCH_HAS_START,
    JOINS_IN_TWO_STEPS,
    JOINS_IN_CURRENT_BOOT,
    STALLED_IS_NOT_LED,
    FLOOR_IS_COMMITTED,
    WATERMARK_NEVER_FALLS,
    WATERMARK_IS_COMMITTED,
    NO_CUT_BELOW_WATERMARK,
    SAME_PLACE_SAME_ENTRY,
    EPOCHS_FOLLOW_FROM_LOG,
    READ_IS_COMMITTED,
    OFFSETS_HAVE_NO_GAPS,
    READ_END_NEVER_FALLS,
    BARRIER_SEES_ACKS,
    FAILED_IS_NEVER_STORED,
    STORED_ONCE,
    HALF_INSTALLED_NEVER_COUNTS,
    NOTHING_VANISHES,
    DAMAGE_IS_NOT_BUILT_ON,
    NO_ALARM_WITHOUT_LOSS,
    LOST_DISK_NEVER_COUNTS,
    ENOUGH_COPIES,
    COPIES_ARE_THERE,
    CONFIG_IS_ONE_SEQUENCE,
    STALE_PROPOSALS_FAIL,
    PRIMARY_GOES_BY_AGREED,
    LOGS_END_EQUAL,
];

/// Rules that no longer hold once more was lost than the site promises to survive. The others do all the same: that it is
/// loud, that nobody leads on it unasked, that nothing is cut that somebody knows to be committed.
pub(crate) const WAIVED_BEYOND: [Rule; 20] = [
    ACKED_IS_COMMITTED,
    PRIMARY_HOLDS_COMMITTED,
    COMMITTED_NEVER_CHANGES,
    MEMBERS_HOLD_COMMITTED,
    QUORUM_CONTAINS_PENDING,
    FLOOR_IS_COMMITTED,
    WATERMARK_NEVER_FALLS,
    WATERMARK_IS_COMMITTED,
    SAME_PLACE_SAME_ENTRY,
    READ_IS_COMMITTED,
    OFFSETS_HAVE_NO_GAPS,
    READ_END_NEVER_FALLS,
    BARRIER_SEES_ACKS,
    FAILED_IS_NEVER_STORED,
    STORED_ONCE,
    NO_ALARM_WITHOUT_LOSS,
    LOST_DISK_NEVER_COUNTS,
    ENOUGH_COPIES,
    COPIES_ARE_THERE,
    LOGS_END_EQUAL,
];

/// The first fault of a run. Those behind it are usually its consequences.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(super) step: u64,
    /// Rules that a schedule breaks on purpose, by a fault beyond what the site promises to survive.
    pub(super) waived: Vec<Rule>,
    pub(super) first: Option<Violation>,
}

impl Found {
    pub(super) fn fault(&mut self, rule: Rule, text: impl FnOnce() -> String) {
        if self.first.is_none() && !self.waived.contains(&rule) {
            let text = format!("invariant {}, step {}: {}", rule.number, self.step, text());
            self.first = Some(Violation { rule: rule.name, text });
        }
    }

    pub(super) fn first(&mut self) -> Result<(), Violation> {
        self.first.take().map_or(Ok(()), Err)
    }
}
