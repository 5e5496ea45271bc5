//! The tables of docs/operations.md say what the code says, and the shipped configuration is the defaults.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use dunlin::{Config, cli::exit::Exit};

use super::document::{table, text};

/// The one key whose default is not written in the code: it stands in the node's certificate.
const NAME: &str = "node.name";

/// Every key with its tables, and its value as TOML writes it.
fn keys(toml: &str) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    let mut section = "";
    for line in toml.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if let Some((key, value)) = line.split_once(" = ").filter(|_| !line.starts_with('#'))
        {
            keys.insert(format!("{section}.{key}"), value.to_owned());
        }
    }
    keys
}

/// The shipped file as if an operator had taken all its commented keys in.
fn shipped() -> String {
    let is_key = |rest: &str| {
        rest.split_once(" = ")
            .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    };
    let line = |line: &'_ str| match line.strip_prefix('#').filter(|rest| is_key(rest)) {
        Some(rest) => rest.to_owned(),
        None => line.to_owned(),
    };
    text("packaging/dunlin.toml").lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_configuration_key_is_in_the_table_with_its_default() {
    let mut known = keys(&Config::default().to_toml());
    known.insert(NAME.to_owned(), "the one in the certificate".to_owned());
    let rows = table(&text("docs/operations.md"), "### Configuration keys");
    let written = rows.into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(known, written, "left: Config::default(), right: docs/operations.md");
}

#[test]
fn the_shipped_configuration_has_every_key_with_its_default() {
    let shipped = shipped();
    let mut config = Config::parse(&shipped, Path::new("packaging/dunlin.toml")).unwrap();
    config.node.name = None;
    assert_eq!(config.to_toml(), Config::default().to_toml());
    let mut known: BTreeSet<_> = keys(&Config::default().to_toml()).into_keys().collect();
    known.insert(NAME.to_owned());
    let found: BTreeSet<_> = keys(&shipped).into_keys().collect();
    assert_eq!(known, found, "left: Config::default(), right: packaging/dunlin.toml");
}

#[test]
fn every_metric_is_in_the_table() {
    let source = text("src/server/metrics.rs");
    let known: BTreeSet<_> = source
        .split('"')
        .filter(|word| word.starts_with("dunlin_") && !word.contains(' '))
        .map(str::to_owned)
        .collect();
    assert!(known.len() > 20, "{known:?}");
    let rows = table(&text("docs/operations.md"), "### Table of metrics");
    let written: BTreeSet<_> = rows.into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(known, written, "left: src/server/metrics.rs, right: docs/operations.md");
}

#[test]
fn every_exit_code_is_in_the_table() {
    let known =
        [Exit::Ok, Exit::Runtime, Exit::Usage, Exit::Config].map(|exit| (exit as u8).to_string());
    let rows = table(&text("docs/operations.md"), "### Exit codes");
    let written: Vec<_> = rows.into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(written, known);
}
