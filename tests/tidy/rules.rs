//! The rules as data, and the checks that read them. ARCHITECTURE.md gives the reasons; change both together.

use super::source::{Named, code_only, find_word, line_of, paths, without_tests};

/// Which of our modules a module may use, lowest layer first.
const MODULES: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("types", &["limits"]),
    ("wire", &["types", "limits"]),
    ("replication", &["types", "limits"]),
    ("broker", &["types", "limits", "wire", "replication"]),
    ("balance", &["types", "limits"]),
    ("storage", &["types", "limits", "wire"]),
    ("net", &["types", "limits", "wire"]),
    ("discovery", &["types", "limits"]),
    ("peer", &["types", "limits", "wire", "replication", "net"]),
    // What the controller decides is a commit set, and replication owns that word.
    ("cluster", &["types", "limits", "wire", "replication", "storage", "net"]),
    ("client", &["types", "limits", "wire", "net", "discovery"]),
    ("config", &["types", "limits"]),
    (
        "server",
        &[
            "types",
            "limits",
            "wire",
            "replication",
            "broker",
            "balance",
            "storage",
            "net",
            "discovery",
            "peer",
            "cluster",
            "config",
        ],
    ),
    ("cli", &["types", "limits", "wire", "net", "discovery", "client", "config", "server"]),
    ("main", &["cli"]),
    ("lib", &["client", "config", "server"]),
];

/// Where a crate may appear: a module, or one file or folder of it.
///
/// `serde_json`, `tempfile`, `rand` and the like are kept out of the layers that decide, not because they would be wrong in
/// one line, but because each of them brings I/O, a clock or chance.
const CRATES: &[(&str, &[&str])] = &[
    ("axum", &["server"]),
    ("bytes", &["wire", "broker", "storage", "net", "peer", "cluster", "client", "server", "cli"]),
    ("bytesize", &["config", "cli"]),
    ("ciborium", &["wire", "cluster"]),
    ("clap", &["cli", "main"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("crc32c", &["types", "wire", "storage"]),
    ("data_encoding", &["net", "discovery/tsig_key"]),
    ("futures_core", &["client", "peer"]),
    ("futures_util", &["net/group"]),
    ("hdrhistogram", &["cli"]),
    ("hickory_proto", &["discovery/dns/update"]),
    ("hickory_resolver", &["discovery/dns"]),
    ("humantime", &["config", "cli"]),
    ("indicatif", &["cli"]),
    ("lz4_flex", &["wire"]),
    ("mdns_sd", &["discovery/mdns"]),
    ("metrics", &["server"]),
    ("metrics_exporter_prometheus", &["server", "cli"]),
    ("openraft", &["cluster"]),
    // Streams and connections are what client and server work with; endpoints and TLS stay in net. The floors that
    // `dunlin bench` measures are a bare quinn and a bare redb.
    ("quinn", &["net", "peer", "client", "server", "cli/bench/floor"]),
    ("rand", &["net", "peer", "client", "server", "cli"]),
    ("rcgen", &["net"]),
    ("redb", &["storage", "cli/bench/floor"]),
    ("ring", &["net"]),
    ("rustix", &["storage", "config", "cli"]),
    ("rustls", &["net"]),
    ("sd_notify", &["server", "cli"]),
    (
        "serde",
        &[
            "types",
            "wire",
            "replication",
            "storage",
            "net",
            "peer",
            "cluster",
            "client",
            "config",
            "server",
            "cli",
        ],
    ),
    ("serde_json", &["server", "cli"]),
    ("socket2", &["net"]),
    ("subtle", &["net"]),
    ("tempfile", &["cli"]),
    (
        "thiserror",
        &[
            "types",
            "wire",
            "replication",
            "broker",
            "storage",
            "net",
            "discovery",
            "peer",
            "cluster",
            "client",
            "config",
            "server",
            "cli",
        ],
    ),
    ("time", &["net", "cli"]),
    ("tokio", &["storage", "net", "discovery", "peer", "cluster", "client", "server", "cli"]),
    ("tokio_util", &["net", "peer", "cluster", "client", "server", "cli"]),
    ("toml", &["config", "client/profile", "server/joined", "cli/join"]),
    ("tracing", &["storage", "net", "discovery", "peer", "cluster", "client", "server", "cli"]),
    ("tracing_journald", &["cli"]),
    ("tracing_subscriber", &["cli"]),
    ("x509_parser", &["net"]),
    ("xxhash_rust", &["types", "wire", "storage"]),
    ("zstd", &["wire"]),
];

/// Layers, and parts of others, whose outcome may depend on nothing but their arguments.
const PURE: &[&str] = &[
    "types",
    "limits",
    "wire",
    "replication",
    "broker",
    "balance",
    "discovery/announcement",
    "discovery/candidates",
    "discovery/registration",
    "discovery/trouble",
    "discovery/tsig_key",
    "discovery/zone",
];

/// What would make it depend on something else, and what to do instead.
const IMPURE: &[(&str, &str)] = &[
    ("Instant::now", "take the time as an argument"),
    ("SystemTime::now", "take the time as an argument"),
    ("rand::", "take the random value as an argument"),
    ("HashMap", "its order changes from run to run: BTreeMap"),
    ("HashSet", "its order changes from run to run: BTreeSet"),
    (".await", "return an effect; the driver in server waits for it"),
    ("async fn", "return an effect; the driver in server waits for it"),
    ("std::fs", "return an effect; storage performs it"),
    ("std::net::UdpSocket", "return an effect; net performs it"),
    ("std::thread", "return an effect; the driver in server owns the threads"),
];

const FILE_LINES_MAX: usize = 700;
// rustfmt keeps code at 100 and leaves macro bodies and attributes alone.
const CODE_COLUMNS_MAX: usize = 110;
const TEXT_COLUMNS_MAX: usize = 140;

pub(super) fn crates_of_table() -> impl Iterator<Item = &'static str> {
    CRATES.iter().map(|(name, _)| *name)
}

/// The rules for every Rust file of the tree.
pub(super) fn check_text(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        let advice = "split it by noun, or move its tests to a tests.rs beside it";
        found.push(format!("{path}:{lines}: {lines} lines, limit is {FILE_LINES_MAX}: {advice}"));
    }
    let is_tests = path.ends_with("/tests.rs") || path.contains("/tests/");
    if path.starts_with("src/") && !is_tests && !text.starts_with("//!") {
        found.push(format!(
            "{path}:1: starts without //!: say in a line or two what the file is for"
        ));
    }
    for (number, line) in text.lines().enumerate() {
        let is_text = line.trim_start().starts_with("//") || line.contains('"');
        let max = if is_text { TEXT_COLUMNS_MAX } else { CODE_COLUMNS_MAX };
        let columns = line.chars().count();
        if columns > max {
            found.push(format!("{path}:{}: {columns} columns, limit is {max}", number + 1));
        }
    }
    found.extend(check_words(path, text));
    found
}

fn check_words(path: &str, text: &str) -> Vec<String> {
    let code = code_only(text);
    let mut found = Vec::new();
    let mut say = |line: usize, what: &str, advice: &str| {
        found.push(format!("{path}:{line}: {what}: {advice}"));
    };
    for word in ["todo!", "unimplemented!"] {
        for line in lines_with(&code, word) {
            say(line, word, "finish it, or return an error that says what is not there");
        }
    }
    for line in lines_with(&code, "dbg!") {
        say(line, "dbg!", "remove it, or log by tracing");
    }
    for (number, line) in code.lines().enumerate() {
        if line.contains("#[ignore") {
            say(number + 1, "#[ignore]", "make the test fast enough, or remove it");
        }
    }
    // In comments, too; put together so that this file does not find itself.
    let marks = [concat!("FIX", "ME"), concat!("XX", "X:"), concat!("TO", "DO")];
    for (number, line) in text.lines().enumerate() {
        if let Some(mark) = marks.iter().find(|mark| find_word(line, mark).is_some()) {
            say(number + 1, mark, "do it now, or file an issue");
        }
    }
    found
}

/// The import table and the rules of the pure layers, for a file below `src`.
pub(super) fn check_architecture(path: &str, text: &str) -> Vec<String> {
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs");
    let inside = inside.trim_end_matches("/mod");
    if inside.ends_with("/tests") || inside.contains("/tests/") {
        return Vec::new();
    }
    let module = inside.split('/').next().expect("split gives at least one part");
    let Some((_, may_use)) = MODULES.iter().find(|(name, _)| *name == module) else {
        return vec![format!(
            "{path}:1: the module {module} has no row in MODULES of tests/tidy/rules.rs"
        )];
    };
    let file = File { path, inside, module, may_use };
    let code = without_tests(&code_only(text));
    let mut found: Vec<String> =
        paths(&code).iter().filter_map(|named| file.check(named)).collect();
    if PURE.iter().any(|place| is_below(inside, place)) {
        for (word, advice) in IMPURE {
            let lines = lines_with(&code, word).into_iter();
            found.extend(lines.map(|line| format!("{path}:{line}: {word} in {module}: {advice}")));
        }
    }
    if module != "lib" {
        let lines = lines_with(&code, "cfg(feature").into_iter();
        let advice = "the one feature is decided in src/lib.rs";
        found.extend(lines.map(|line| format!("{path}:{line}: cfg(feature): {advice}")));
    }
    found
}

struct File<'a> {
    path: &'a str,
    inside: &'a str,
    module: &'a str,
    may_use: &'a [&'a str],
}

impl File<'_> {
    fn check(&self, named: &Named) -> Option<String> {
        let what = self.fault(&named.segments)?;
        Some(format!("{}:{}: {what}", self.path, named.line))
    }

    fn fault(&self, segments: &[String]) -> Option<String> {
        let first = segments[0].as_str();
        let module = self.module;
        if first == "super" {
            let depth = self.inside.split('/').count();
            let ups = segments.iter().take_while(|segment| *segment == "super").count();
            let escapes = ups >= depth && module != "lib" && module != "main";
            return escapes.then(|| "super leaves the module: write crate::".to_owned());
        }
        if first == "crate" || first == "dunlin" {
            let used = segments.get(1)?.as_str();
            let known = MODULES.iter().any(|(name, _)| *name == used);
            let allowed = used == module || self.may_use.contains(&used) || module == "lib";
            return (known && !allowed).then(|| {
                format!("{module} may not use crate::{used}, only {}", self.may_use.join(" "))
            });
        }
        let (name, places) = CRATES.iter().find(|(name, _)| *name == first)?;
        let allowed = places.iter().any(|place| is_below(self.inside, place));
        (!allowed).then(|| format!("{name} may appear only in {}", places.join(" ")))
    }
}

fn is_below(inside: &str, place: &str) -> bool {
    inside.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The lines on which this stands in code, by itself.
fn lines_with(code: &str, word: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    let mut from = 0;
    while let Some(at) = find_from(code, from, word) {
        lines.push(line_of(code, at));
        from = at + word.len();
    }
    lines
}

fn find_from(code: &str, from: usize, word: &str) -> Option<usize> {
    if word.starts_with('.') {
        return code[from..].find(word).map(|at| from + at);
    }
    find_word(&code[from..], word).map(|at| from + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(path: &str, text: &str, say: &str) {
        let found = check_architecture(path, text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(path) && found[0].contains(say), "{found:?}");
    }

    #[track_caller]
    fn allowed(path: &str, text: &str) {
        assert_eq!(check_architecture(path, text), [""; 0]);
    }

    #[test]
    fn a_lower_layer_may_not_use_a_higher_one() {
        refused(
            "src/wire/frame.rs",
            "use std::fmt;\nuse crate::{types::A, net::B};",
            ":2: wire may",
        );
        refused("src/broker.rs", "fn f() { crate::storage::open() }", "crate::storage");
        refused("src/cli/serve.rs", "use crate::storage::Store;", "cli may not use crate::storage");
        allowed("src/server/driver.rs", "use crate::{broker::A, storage::B, net, types::C};");
    }

    #[test]
    fn nobody_reaches_round_the_table_by_super() {
        refused("src/wire.rs", "use super::storage::A;", "super leaves");
        refused("src/wire/frame.rs", "use super::super::storage::A;", "super leaves");
        allowed("src/wire/frame.rs", "use super::codec::A;");
    }

    #[test]
    fn a_crate_stays_in_its_places() {
        refused("src/server/driver.rs", "use redb::Database;", "redb may appear only in storage");
        refused("src/replication.rs", "#[derive(ciborium::Value)]\nenum E {}", "ciborium may");
        refused("src/cli/topic.rs", "fn f(c: quinn::Connection) {}", "quinn may appear only in");
        refused("src/config.rs", "fn f() { let x = tokio::spawn(y); }", "tokio");
        allowed("src/cli/bench/floor.rs", "use quinn::Connection;");
        allowed("src/client/profile.rs", "fn f() { toml::from_str(x) }");
        refused("src/client/profiles.rs", "fn f() { toml::from_str(x) }", "toml");
    }

    #[test]
    fn the_pure_layers_know_no_clock_no_chance_and_no_hash_order() {
        refused(
            "src/broker/a.rs",
            "fn f() { let now = Instant::now(); }",
            "Instant::now in broker",
        );
        refused("src/types/b.rs", "use std::collections::HashMap;", "BTreeMap");
        refused("src/wire/c.rs", "fn f() { g()\n    .await }", ":2: .await");
        allowed("src/server/d.rs", "async fn f() { g().await; Instant::now(); }");
        allowed("src/broker/e.rs", "// Instant::now is banned here\nconst A: &str = \"HashMap\";");
    }

    #[test]
    fn tests_may_use_what_they_need() {
        allowed("src/wire/a.rs", "#[cfg(test)]\nmod tests { use crate::storage::A; use rand::B; }");
        allowed("src/wire/a/tests.rs", "use crate::storage::A;\nuse rand::B;");
        refused("src/wire/a.rs", "#[cfg(test)]\nmod tests {}\nuse redb::A;", ":3: redb");
    }

    #[test]
    fn a_module_without_a_row_and_a_second_feature_switch_are_refused() {
        refused("src/extra.rs", "", "no row in MODULES");
        refused("src/client.rs", "#[cfg(feature = \"server\")]\nfn f() {}", ":1: cfg(feature)");
        allowed(
            "src/lib.rs",
            "#[cfg(feature = \"server\")]\npub mod server;\npub use server::Server;",
        );
    }

    #[test]
    fn size_head_and_words_are_checked_in_every_file() {
        #[track_caller]
        fn found(path: &str, text: &str, say: &str) {
            let found = check_text(path, text);
            assert!(found.len() == 1 && found[0].contains(say), "{found:?}");
        }
        found("src/a.rs", "fn f() {}", ":1: starts without //!");
        found("tests/a.rs", &"\n".repeat(701), "701 lines");
        found("tests/a.rs", &format!("a\n{}", "b".repeat(111)), ":2: 111 columns");
        found("tests/a.rs", &format!("// {}", "b".repeat(140)), "143 columns");
        found("tests/a.rs", "fn f() { todo!() }", "todo!");
        found("tests/a.rs", "fn f() { unimplemented!() }", "unimplemented!");
        found("tests/a.rs", "fn f() { dbg!(1); }", "dbg!");
        found("tests/a.rs", "#[ignore]\nfn f() {}", "#[ignore]");
        found("tests/a.rs", concat!("// FIX", "ME later"), "file an issue");
        assert_eq!(check_text("src/a.rs", "//! Short.\n// todo! in words is fine\n"), [""; 0]);
    }
}
