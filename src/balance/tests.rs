use proptest::{collection::vec, prelude::*};

use super::shares;

mod simulation;

#[test]
fn shares_follow_weights_and_leave_nobody_over() {
    assert_eq!(shares(300, &[100, 100, 50]), [120, 120, 60]);
    assert_eq!(shares(10, &[1, 1, 1]), [4, 3, 3], "of equal remainders the first");
    assert_eq!(shares(7, &[0, 5, 0]), [0, 7, 0]);
    assert_eq!(shares(7, &[0, 0]), [0, 0], "nobody takes any");
}

proptest! {
    #[test]
    fn each_share_is_within_one_of_what_the_weight_says(
        total in 0..2_000_000_u64,
        weights in vec(0..1_001_u32, 1..300),
    ) {
        let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        prop_assume!(sum > 0);
        let shares = shares(total, &weights);
        prop_assert_eq!(shares.iter().sum::<u64>(), total);
        for (share, weight) in shares.iter().zip(&weights) {
            let exact = total * u64::from(*weight);
            prop_assert!(share * sum < exact + sum && exact < share * sum + sum);
        }
    }
}
