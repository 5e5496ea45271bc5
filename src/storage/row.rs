//! Rows of the packed log: whole entries, one after the other.

use std::ops::Range;

use crate::{
    limits::ROW_LEN_MAX,
    wire::{BadEntry, EntryHeader, entry::ENTRY_HEADER_LEN},
};

/// Cuts entries of these lengths into rows that fit redb's pages. An entry that is larger gets a row of its own.
pub(super) fn cut(lens: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let (mut rows, mut start, mut used, mut count) = (Vec::new(), 0, 0, 0);
    for (at, len) in lens.enumerate() {
        if used > 0 && used + len > ROW_LEN_MAX {
            rows.push(start..at);
            (start, used) = (at, 0);
        }
        used += len;
        count = at + 1;
    }
    if count > start {
        rows.push(start..count);
    }
    rows
}

/// Walks the entries of a row. Ends after the first error.
pub(super) struct Walk<'a> {
    rest: &'a [u8],
}

/// The entries of `row`, header and body; bodies are not checked.
pub(super) fn walk(row: &[u8]) -> Walk<'_> {
    Walk { rest: row }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<(EntryHeader, &'a [u8]), BadEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        Some(EntryHeader::decode(rest).and_then(|header| {
            let want = header.entry_len();
            let Some((entry, rest)) = rest.split_at_checked(want) else {
                return Err(BadEntry::Length { len: rest.len(), want });
            };
            self.rest = rest;
            Ok((header, &entry[ENTRY_HEADER_LEN..]))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_before_they_overflow() {
        let (max, big) = (ROW_LEN_MAX, ROW_LEN_MAX * 3);
        assert!(cut(std::iter::empty()).is_empty());
        assert_eq!(cut([1].into_iter()), vec![0..1; 1]);
        assert_eq!(cut([max - 1, 1, 1].into_iter()), [0..2, 2..3]);
        assert_eq!(cut([1, big, 1, 1].into_iter()), [0..1, 1..2, 2..4]);
        assert_eq!(cut([big, max, max].into_iter()), [0..1, 1..2, 2..3]);
    }
}
