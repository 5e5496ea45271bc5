use clap::Parser as _;

use super::*;
use crate::cli::{Cli, Command, exit::Exit};

fn parse(args: &[&str]) -> Result<Publish, String> {
    let args = ["dunlin", "bench"].iter().chain(args);
    match Cli::try_parse_from(args) {
        Ok(Cli { command: Command::Bench(bench), .. }) => Ok(bench.publish),
        Ok(_) => panic!("another command"),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn lists_and_units_are_read() {
    let bench = parse(&["--size", "100,64KiB", "--in-flight", "1,64", "--acks", "none,local"]);
    let bench = bench.expect("good");
    assert_eq!((bench.size, bench.in_flight), (vec![100, 65_536], vec![1, 64]));
    assert_eq!(bench.acks, [Acks::None, Acks::Local]);
    let bench = parse(&["--linger", "500us", "--seconds", "0.5", "--floor"]).expect("good");
    assert_eq!(bench.linger, Some(Duration::from_micros(500)));
    assert_eq!((bench.seconds, bench.runs()), (Duration::from_millis(500), 5));
}

#[test]
fn a_figure_out_of_bounds_is_refused_with_the_bound() {
    for (args, say) in [
        (["--rate", "0"], "1..="),
        (["--size", "7"], "8 and"),
        (["--size", "2MiB"], "1047520"),
        (["--size", "big"], "64KiB"),
        (["--in-flight", "0"], "1 to 65536"),
        (["--batch-bytes", "2MB"], "1048576"),
        (["--linger", "2s"], "at most 1 s"),
        (["--seconds", "0"], "0.1 to 3600"),
        (["--seconds", "nan"], "0.1 to 3600"),
        (["--partitions", "257"], "256"),
        (["--producers", "0"], "1..="),
        (["--acks", "all"], "replicated, local, none"),
    ] {
        let error = parse(&args).expect_err(args[1]);
        assert!(error.contains(say), "{error}");
    }
}

#[test]
fn what_does_not_go_together_is_a_usage_error() {
    for (args, say) in [
        (&["--floor"][..], "--local"),
        (&["--topics", "300"], "limit is 255"),
        (&["--topics", "100", "--partitions", "256"], "25600 partitions"),
        (&["--topics", "300", "--producers", "8,1"], "limit is 255"),
    ] {
        match parse(args).expect("good one by one").load() {
            Err(Failure::Told { exit: Exit::Usage, message, .. }) => {
                assert!(message.contains(say), "{message}");
            }
            other => panic!("{args:?}: {other:?}"),
        }
    }
}
