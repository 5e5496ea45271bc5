//! What the broker should reach of what the machine gives, line by line, by `dunlin bench`.
//!
//! `cargo bench --bench ratios`; `DUNLIN_BENCH_DIR` names the directory of the disk to measure, else a temporary one.

#![allow(clippy::print_stdout, reason = "a table is what it makes")]
#![allow(clippy::disallowed_methods, reason = "a clock is what it needs")]

use std::{env, ffi::OsString, fs, process::Command, time::Instant};

use serde_json::Value;

/// Runs of each measurement, of which the median counts.
const RUNS: &str = "5";
/// 1 KiB records of one batch of 64 KiB, with their heads.
const BATCH: &str = "62";
/// 64 such batches.
const BATCHES_IN_FLIGHT: &str = "3968";

fn main() {
    let begun = Instant::now();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown");
    println!("load of the machine before: {load}; others that use it make all figures worthless\n");
    println!("{:62} {:>8} {:>9}  FIGURES", "1 KiB records; median of 5 runs", "WANTED", "MEASURED");
    for topics in ["1", "100"] {
        batches(topics);
    }
    single_records();
    written_bytes();
    reading();
    idle();
    stopped_reader();
    println!("{} s in all", begun.elapsed().as_secs());
}

/// Durable batches.
fn batches(topics: &str) {
    let report = bench(&[
        "--local",
        "--floor",
        "--seconds",
        "1",
        "--repeat",
        RUNS,
        "--topics",
        topics,
        "--run",
        BATCH,
        "--in-flight",
        BATCHES_IN_FLIGHT,
    ]);
    let row = &report["rows"][0];
    let name = format!("64 KiB batches, 64 in flight, topics {topics}: of append at 64 KiB");
    let figures = format!(
        "{:.0} MB/s of {:.0}",
        number(row, "/publish/mb_per_second"),
        floor(row, "append_64k")
    );
    line(&name, Wanted::AtLeast(0.8), number(row, "/floor/of_append_64k"), &figures);
    let figures = format!("redb {:.0}, quinn {:.0} MB/s", floor(row, "redb"), floor(row, "echo"));
    let of_slower = number(row, "/floor/of_slower");
    line("  of the slower of bare redb and bare quinn", Wanted::AtLeast(0.6), of_slower, &figures);
    let figures = format!("{:.0} MB/s", floor(row, "stored_echo"));
    let of_stored = number(row, "/floor/of_stored_echo");
    line(
        "  of bare quinn that appends and flushes before it acks",
        Wanted::ToKnow,
        of_stored,
        &figures,
    );
}

/// One in flight, by one producer and by 64.
fn single_records() {
    let args = ["--local", "--floor", "--seconds", "1", "--repeat", RUNS, "--in-flight", "1"];
    let of_one = |more: &[&str]| {
        let report = bench(&[&args[..], &["--producers", "1,64"], more].concat());
        let [one, all] = [report["rows"][0].clone(), report["rows"][1].clone()];
        let rates = [&one, &all].map(|row| number(row, "/publish/records_per_second"));
        let [one_rate, rate] = rates;
        let figures =
            format!("{one_rate:.0} and {rate:.0} records/s, quinn {:.0}", echo("echo", &all));
        let bare = [&one, &all].map(|row| echo("stored_echo", row));
        (one, number(&all, "/of_first"), figures, bare)
    };
    let (one, ratio, figures, bare) = of_one(&["--connections", "1"]);
    let name = "64 producers, one record in flight each, sharing a connection: of one";
    line(name, Wanted::AtLeast(20.0), ratio, &figures);
    bare_of_one(bare);
    let (_, ratio, figures, bare) = of_one(&[]);
    line("  each with a connection of its own", Wanted::AtLeast(20.0), ratio, &figures);
    bare_of_one(bare);
    let one = &one;
    let figures = format!(
        "ack {:.0} us, fdatasync {:.0}, round trip {:.0}, both in one {:.0}",
        number(one, "/publish/latency/p50_us"),
        number(one, "/floor/append_p50_us"),
        number(one, "/floor/echo_p50_us"),
        number(one, "/floor/stored_echo_p50_us")
    );
    let name = "one record in flight: ack p50 of fdatasync and round trip";
    line(name, Wanted::AtMost(2.5), number(one, "/floor/p50_of_both"), &figures);
}

/// The same of a server that does nothing but append and flush.
fn bare_of_one([one, all]: [f64; 2]) {
    let figures = format!("{one:.0} and {all:.0} records/s");
    line(
        "  bare quinn that appends and flushes before it acks",
        Wanted::ToKnow,
        all / one,
        &figures,
    );
}

/// Records of 1 KiB in a second.
fn echo(name: &str, row: &Value) -> f64 {
    floor(row, name) * 1e6 / 1024.0
}

/// Over 100 topics: single records of which about 64 KiB meet in a commit, and full batches of many producers.
fn written_bytes() {
    let args = ["--local", "--seconds", "1", "--repeat", RUNS, "--topics", "100", "--in-flight"];
    let report = bench(&[&args[..], &["128,192,256"]].concat());
    let off = |row: &&Value| (number(row, "/log/commit") - 65_536.0).abs();
    let rows = report["rows"].as_array().into_iter().flatten();
    let row = rows.min_by(|one, other| off(one).total_cmp(&off(other))).expect("three rows");
    written("bytes written for a byte, about 64 KiB a commit", 2.3, row);
    let full = [BATCHES_IN_FLIGHT, "--run", BATCH, "--producers", "4"];
    let report = bench(&[&args[..], &full].concat());
    written("bytes written for a byte, 1 MiB a commit and more", 1.3, &report["rows"][0]);
}

fn written(name: &str, wanted: f64, row: &Value) {
    let figures = format!(
        "{:.0} KiB a commit; {:.2} by the node's own count",
        number(row, "/log/commit") / 1_024.0,
        number(row, "/log/written")
    );
    let device = row.pointer("/log/device_written").and_then(Value::as_f64);
    let measured = device.unwrap_or_else(|| number(row, "/log/written"));
    line(name, Wanted::AtMost(wanted), measured, &figures);
}

fn reading() {
    let report = bench(&["read", "--repeat", RUNS]);
    let row = &report["rows"][0];
    let rates = ["/mb_per_second", "/quinn_mb_per_second"].map(|name| number(row, name));
    let figures = format!("{:.0} MB/s of {:.0}", rates[0], rates[1]);
    let name = "one reader of a hot topic: of bare quinn down one stream";
    line(name, Wanted::AtLeast(0.6), number(row, "/of_quinn"), &figures);
}

fn idle() {
    let report = bench(&["idle", "--connections", "1000", "--repeat", RUNS]);
    let node = number(&report, "/node/with_one") / 1e6;
    line("memory of an idle node, MB", Wanted::AtMost(25.0), node, "with one connection");
    let kib = ["/node/per_connection", "/quinn/per_connection"]
        .map(|name| number(&report, name) / 1_024.0);
    let figures = format!("{:.0} KiB each of {:.0}", kib[0], kib[1]);
    let name = "memory of 1000 idle connections: of bare quinn's";
    line(name, Wanted::AtMost(1.25), number(&report, "/of_quinn"), &figures);
}

fn stopped_reader() {
    let report = bench(&["stopped", "--publish", "1GB", "--repeat", RUNS]);
    let peaks =
        ["/with_reader/peak", "/without_reader/peak"].map(|name| number(&report, name) / 1e6);
    let figures = format!("{:.1} MB at most with it, {:.1} without", peaks[0], peaks[1]);
    let cost = number(&report, "/cost") / 1e6;
    line(
        "memory of a reader stopped while 1 GB is published, MB",
        Wanted::AtMost(8.0),
        cost,
        &figures,
    );
}

enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    /// What others are measured by.
    ToKnow,
}

fn line(name: &str, wanted: Wanted, measured: f64, figures: &str) {
    let (wanted, good) = match wanted {
        Wanted::AtLeast(wanted) => (format!(">= {wanted}"), measured >= wanted),
        Wanted::AtMost(wanted) => (format!("<= {wanted}"), measured <= wanted),
        Wanted::ToKnow => ("-".to_owned(), true),
    };
    let mark = if good { ' ' } else { '!' };
    println!("{name:70} {wanted:>8} {measured:>8.2}{mark}  {figures}");
}

/// One measurement, as JSON.
fn bench(args: &[&str]) -> Value {
    let dir = env::var_os("DUNLIN_BENCH_DIR").map(|dir| [OsString::from("--dir"), dir]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
    command.args(["--json", "bench"]).args(args).args(dir.into_iter().flatten());
    let output = command.output().expect("the program was built");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a line of JSON")
}

fn number(report: &Value, pointer: &str) -> f64 {
    let number = report.pointer(pointer).and_then(Value::as_f64);
    number.unwrap_or_else(|| panic!("no {pointer} in {report}"))
}

fn floor(row: &Value, name: &str) -> f64 {
    number(row, &format!("/floor/{name}_mb_per_second"))
}
