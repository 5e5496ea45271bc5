//! Reads Rust as text: what is code, what is a test, which paths the code names.

use std::ops::Range;

/// The text with comments, strings and characters blanked, line for line and byte for byte.
pub(super) fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => comment_end(bytes, at),
            b'"' => string_end(bytes, at + 1),
            b'r' if !is_word_before(bytes, at) || bytes[at - 1] == b'b' => {
                raw_string_end(bytes, at)
            }
            b'\'' => char_end(bytes, at),
            _ => at,
        };
        if end == at {
            at += 1;
            continue;
        }
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).expect("whole characters were blanked")
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| at + n)
}

fn comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_string_end(bytes: &[u8], at: usize) -> usize {
    let hashes = bytes[at + 1..].iter().take_while(|b| **b == b'#').count();
    if bytes.get(at + 1 + hashes) != Some(&b'"') {
        return at;
    }
    let close: Vec<u8> = [b'"'].into_iter().chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = at + 2 + hashes;
    let len = bytes[body..].windows(close.len()).position(|window| window == close);
    len.map_or(bytes.len(), |len| body + len + close.len())
}

/// The end of a character literal; `at` itself for a lifetime.
fn char_end(bytes: &[u8], at: usize) -> usize {
    if bytes.get(at + 1) == Some(&b'\\') {
        let close = bytes[(at + 3).min(bytes.len())..].iter().position(|b| *b == b'\'');
        return close.map_or(bytes.len(), |n| at + 3 + n + 1);
    }
    let close = bytes[at + 1..].iter().take(5).position(|b| *b == b'\'');
    let first_is_ascii = bytes.get(at + 1).is_some_and(u8::is_ascii);
    match close {
        Some(1) => at + 3,
        Some(n) if n > 1 && !first_is_ascii => at + 1 + n + 1,
        _ => at,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn is_word_before(bytes: &[u8], at: usize) -> bool {
    at > 0 && is_word(bytes[at - 1])
}

/// Blanks every item under `#[cfg(test)]`.
pub(super) fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = code.to_owned();
    while let Some(start) = out.find(MARK) {
        let end = item_end(out.as_bytes(), start + MARK.len());
        blank(&mut out, start..end);
    }
    out
}

/// The item ends with the brace that closes its first one, or with a semicolon before any.
fn item_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && *byte == b'}' {
                    return at + 1;
                }
            }
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    bytes.len()
}

fn blank(text: &mut String, range: Range<usize>) {
    let blanks: String =
        text[range.clone()].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect();
    text.replace_range(range, &blanks);
}

/// A path that the code names, by its segments, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) line: usize,
    pub(super) segments: Vec<String>,
}

/// Every path of two segments or more, imports included; those that start at a local name are left out.
pub(super) fn paths(code: &str) -> Vec<Named> {
    let mut rest = code.to_owned();
    let mut imports = Vec::new();
    while let Some(start) = find_word(&rest, "use") {
        if rest[start + 3..].starts_with('<') {
            // What an opaque type captures, not an import.
            blank(&mut rest, start..start + 3);
            continue;
        }
        let end = rest[start..].find(';').map_or(rest.len(), |n| start + n + 1);
        let tree = rest[start + 3..end].trim_end_matches(';').to_owned();
        let line = line_of(&rest, start);
        expand(&tree, &[], &mut |segments| imports.push(Named { line, segments }));
        blank(&mut rest, start..end);
    }
    let mut local: Vec<String> = imports.iter().filter_map(local_name).collect();
    local.extend(words_after(&rest, "mod"));
    let mut found = imports;
    found.retain(|named| !words_after(&rest, "mod").any(|module| module == named.segments[0]));
    found
        .extend(plain_paths(&rest).into_iter().filter(|named| !local.contains(&named.segments[0])));
    found.sort_by_key(|named| named.line);
    found
}

/// The name that an import brings into scope; an import of a whole crate keeps the crate's name and hides nothing.
fn local_name(import: &Named) -> Option<String> {
    let last = import.segments.last()?;
    if import.segments.len() == 1 || last == "*" {
        return None;
    }
    match last.split_once(" as ") {
        Some((_, alias)) => Some(alias.trim().to_owned()),
        None if last == "self" => import.segments.iter().rev().nth(1).cloned(),
        None => Some(last.clone()),
    }
}

/// Calls `emit` for each leaf of a use tree.
fn expand(tree: &str, before: &[String], emit: &mut impl FnMut(Vec<String>)) {
    let tree = tree.trim();
    let tree = tree.strip_prefix("::").unwrap_or(tree);
    let mut path = before.to_vec();
    let Some(open) = tree.find('{') else {
        path.extend(tree.split("::").map(|segment| segment.trim().to_owned()));
        if path.iter().any(|segment| !segment.is_empty()) {
            emit(path);
        }
        return;
    };
    let head = tree[..open].trim().trim_end_matches("::");
    path.extend(head.split("::").map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()));
    let body = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let (mut depth, mut start) = (0_i32, 0);
    for (at, byte) in body.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                expand(&body[start..at], &path, emit);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !body[start..].trim().is_empty() {
        expand(&body[start..], &path, emit);
    }
}

fn plain_paths(code: &str) -> Vec<Named> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !is_word(bytes[at]) {
            at += 1;
            continue;
        }
        let start = at;
        let mut segments = Vec::new();
        loop {
            let end = at + bytes[at..].iter().take_while(|b| is_word(**b)).count();
            segments.push(code[at..end].to_owned());
            at = end;
            let next = at + 2;
            if !bytes[at..].starts_with(b"::") || !bytes.get(next).is_some_and(|b| is_word(*b)) {
                break;
            }
            at = next;
        }
        let is_tail = start > 0 && matches!(bytes[start - 1], b':' | b'.' | b'\'');
        let is_path = segments.len() > 1 || bytes[at..].starts_with(b"::");
        if is_path
            && (!is_tail
                || (bytes[start - 1] == b':' && bytes.get(start.wrapping_sub(2)) != Some(&b':')))
        {
            found.push(Named { line: line_of(code, start), segments });
        }
    }
    found
}

/// The words that follow a keyword.
fn words_after<'a>(code: &'a str, keyword: &'a str) -> impl Iterator<Item = String> + 'a {
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = from + find_word(&code[from..], keyword)?;
        from = start + keyword.len();
        Some(
            code[from..].trim_start().bytes().take_while(|b| is_word(*b)).map(char::from).collect(),
        )
    })
}

/// Where this word stands by itself.
pub(super) fn find_word(text: &str, word: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    text.match_indices(word).map(|(at, _)| at).find(|&at| {
        let after = at + word.len();
        let open = !word.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        !is_word_before(bytes, at) && (open || !bytes.get(after).is_some_and(|b| is_word(*b)))
    })
}

pub(super) fn line_of(text: &str, at: usize) -> usize {
    text[..at].bytes().filter(|b| *b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(code: &str) -> Vec<String> {
        paths(code).into_iter().map(|named| named.segments.join("::")).collect()
    }

    #[test]
    fn comments_strings_and_characters_are_blanked_but_lifetimes_stay() {
        let text = "a /* b /* c */ */ d // e\n\"f\\\"g\" 'h' '\\'' 'é' r#\"i\"j\"# &'k l<'_>";
        let code = code_only(text);
        assert_eq!(code.len(), text.len());
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "d", "&'k", "l<'_>"]);
    }

    #[test]
    fn test_modules_are_cut_out_and_what_follows_stays() {
        let code = "a\n#[cfg(test)]\nmod tests { fn b() { c } }\n#[cfg(test)]\nmod d;\ne";
        assert_eq!(without_tests(code).split_whitespace().collect::<Vec<_>>(), ["a", "e"]);
        assert_eq!(without_tests(code).lines().count(), code.lines().count());
    }

    #[test]
    fn use_trees_are_expanded() {
        let found = named("use a::{b::{self, C}, d as e};\nuse ::f;");
        assert_eq!(found, ["a::b::self", "a::b::C", "a::d as e", "f"]);
    }

    #[test]
    fn a_path_that_starts_at_an_import_or_a_module_here_is_not_a_crate() {
        assert_eq!(named("use tokio::time;\nfn f() { time::sleep(x); }"), ["tokio::time"]);
        assert!(named("mod bytes;\nuse bytes::Own;\nfn f() { bytes::own() }").is_empty());
    }

    #[test]
    fn plain_paths_are_found_where_they_start() {
        assert_eq!(named("let x: a::B = c.d(e::<F>(g::h!()));"), ["a::B", "e", "g::h"]);
    }
}
