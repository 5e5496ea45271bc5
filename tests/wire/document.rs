//! Reads what the documents say: named hex blocks, and tables.

use std::{collections::BTreeMap, fs, path::Path};

/// The text of a file of this repository.
#[track_caller]
pub(super) fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks that begin with ```` ```hex NAME ````: bytes in hex, spaces anywhere, remarks behind `#`.
pub(super) fn hex_blocks(text: &str) -> BTreeMap<String, Vec<u8>> {
    let mut blocks = BTreeMap::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("```hex ") else { continue };
        let body: String = lines
            .by_ref()
            .take_while(|line| *line != "```")
            .map(|line| line.split('#').next().unwrap_or_default())
            .collect();
        let before = blocks.insert(name.trim().to_owned(), bytes(name, &body));
        assert!(before.is_none(), "two hex blocks are called {name}");
    }
    blocks
}

fn bytes(name: &str, hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2), "hex block {name} has half a byte");
    let byte = |pair: &[char]| {
        let text: String = pair.iter().collect();
        u8::from_str_radix(&text, 16).unwrap_or_else(|_| panic!("{text} in hex block {name}"))
    };
    digits.chunks(2).map(byte).collect()
}

/// The rows of the table behind the heading `heading`, cells without their backquotes, without its own heading.
#[track_caller]
pub(super) fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "there is no heading {heading:?}");
    let rows = lines.skip_while(|line| !line.starts_with('|')).take_while(|l| l.starts_with('|'));
    let cells = |row: &str| {
        let inner = row.trim_matches('|');
        inner.split('|').map(|cell| cell.trim().replace('`', "")).collect()
    };
    rows.skip(2).map(cells).collect()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn blocks_and_tables_are_found() {
    let text =
        "x\n```hex a/b\n01 0a # one\nff\n```\n## T\n\n| h | i |\n|---|---|\n| `x` | 2 |\n\nend\n";
    assert_eq!(hex_blocks(text)["a/b"], [1, 10, 255]);
    assert_eq!(table(text, "## T"), [["x", "2"]]);
}
