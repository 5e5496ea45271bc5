//! Holds the architecture's import table and the style that no compiler checks. It reads text: weaker than a compiler, but it
//! says file, line and what to do.

mod rules;
mod source;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use rules::{check_architecture, check_text, crates_of_table};

#[test]
fn the_tree_is_tidy() {
    let mut found = Vec::new();
    let mut seen = 0;
    for path in files_below(&root(), &["src", "tests", "benches", "examples", "fuzz/fuzz_targets"])
    {
        let Some(path) = path.to_str().filter(|path| path.ends_with(".rs")).map(str::to_owned)
        else {
            continue;
        };
        let text = fs::read_to_string(root().join(&path)).unwrap();
        found.extend(check_text(&path, &text));
        if path.starts_with("src/") {
            seen += 1;
            found.extend(check_architecture(&path, &text));
        }
    }
    assert!(seen > 3, "the checker found only {seen} files below src: it looks in the wrong place");
    assert!(found.is_empty(), "{} findings:\n{}", found.len(), found.join("\n"));
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    // Put together here so that this file does not find itself.
    let places = ["/wo#rk/", "/tmp/w#t/", "/home/ro#ot"].map(|place| place.replace('#', ""));
    let mut found = Vec::new();
    for path in files_below(&root(), &["."]) {
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                found.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "paths of one machine:\n{}", found.join("\n"));
}

#[test]
fn the_table_names_every_dependency_and_no_other() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let named: BTreeSet<String> = crates_of_table().map(str::to_owned).collect();
    assert_eq!(
        dependencies(&manifest),
        named,
        "left: Cargo.toml, right: CRATES in tests/tidy/rules.rs"
    );
}

/// The crates of `[dependencies]`, as code writes them.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let lines = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| !name.starts_with([' ', '#']))
        .map(|(name, _)| name.trim().replace('-', "_"))
        .collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below these directories of `root`, relative to it, without what is built, fetched or hidden.
fn files_below(root: &Path, dirs: &[&str]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut waiting: Vec<PathBuf> = dirs.iter().map(|dir| root.join(dir)).collect();
    while let Some(dir) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue; // benches and examples may be absent
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let built = matches!(name.as_str(), "target" | "corpus" | "artifacts" | "coverage");
            if built || (name.starts_with('.') && name != ".ci") {
                continue;
            }
            if path.is_dir() {
                waiting.push(path);
            } else {
                let path: PathBuf = path.components().collect();
                files.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}
