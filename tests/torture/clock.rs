//! The wall clock of a node, stepped while it runs: libfaketime stands between the program and the machine's clock.
//!
//! Debian's package is `faketime`. Where it is missing no clock is stepped, which is said.

use std::{fs, path::Path, process::Command, sync::LazyLock};

/// Whether clocks can be stepped here.
pub(crate) fn is_there() -> bool {
    LIBRARY.is_some()
}

/// Lets a node's wall clock be stepped. Its monotonic clock stays, as on a real machine.
pub(crate) fn give(command: &mut Command, dir: &Path) {
    let Some(library) = &*LIBRARY else { return };
    if !dir.join(FILE).exists() {
        step(dir, 0);
    }
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", dir.join(FILE));
    // Seconds until a step is seen.
    command.env("FAKETIME_CACHE_DURATION", "1");
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
}

/// Sets a node's clock so many years off the machine's, from now and from its next start.
pub(crate) fn step(dir: &Path, years: i32) {
    // In one step: the node must not read half of it.
    let (part, whole) = (dir.join("clock.part"), dir.join(FILE));
    fs::write(&part, format!("{years:+}y\n")).unwrap();
    fs::rename(part, whole).unwrap();
}

const FILE: &str = "clock";
static LIBRARY: LazyLock<Option<String>> = LazyLock::new(|| {
    let triples = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let found = triples.map(|triple| triple.path().join("faketime/libfaketimeMT.so.1"));
    let found = found
        .filter(|path| path.exists())
        .find_map(|path| path.into_os_string().into_string().ok());
    if found.is_none() {
        println!("no libfaketime (Debian: apt install faketime): no clock is stepped here");
    }
    found
});
