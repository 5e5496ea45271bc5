//! Rows of the packed log: whole entries, one after the other.

use std::ops::Range;

use super::fact::{FACT_LEN, Fact, KIND_AT};
use crate::{
    limits::ROW_LEN_MAX,
    wire::{BadEntry, EntryHeader, entry::ENTRY_HEADER_LEN},
};

/// Where the next entry goes: rows fit redb's pages, and take the entries of several commits as long as these wait in
/// the journal. An entry that is larger than a row gets one of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    row: u64,
    used: usize,
}

impl Cursor {
    /// Before row `row`.
    pub(super) fn at(row: u64) -> Self {
        Self { row, used: 0 }
    }

    /// The row for an entry of `len` bytes.
    pub(super) fn place(&mut self, len: usize) -> u64 {
        if self.used > 0 && self.used + len > ROW_LEN_MAX {
            self.seal();
        }
        self.used += len;
        self.row
    }

    /// Entries of these lengths, cut into rows: the number of each, and which of the entries it takes.
    pub(super) fn cut(&mut self, lens: impl Iterator<Item = usize>) -> Vec<(u64, Range<usize>)> {
        let mut rows: Vec<(u64, Range<usize>)> = Vec::new();
        for (at, len) in lens.enumerate() {
            let row = self.place(len);
            match rows.last_mut() {
                Some((last, range)) if *last == row => range.end = at + 1,
                _ => rows.push((row, at..at + 1)),
            }
        }
        rows
    }

    /// Nothing more goes into the row that was begun.
    pub(super) fn seal(&mut self) {
        *self = Self::at(self.next());
    }

    /// The first row that holds nothing.
    pub(super) fn next(self) -> u64 {
        if self.used > 0 { self.row + 1 } else { self.row }
    }
}

/// What lies in a row, one after the other.
pub(super) enum Piece<'a> {
    /// Header and body of an entry; the body is not checked.
    Entry(EntryHeader, &'a [u8]),
    Fact(Fact),
}

impl Piece<'_> {
    /// Its length in the row.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Entry(header, _) => header.entry_len(),
            Self::Fact(_) => FACT_LEN,
        }
    }
}

/// Walks what lies in a row. Ends after the first error.
pub(super) struct Pieces<'a> {
    rest: &'a [u8],
}

/// What lies in `row`.
pub(super) fn pieces(row: &[u8]) -> Pieces<'_> {
    Pieces { rest: row }
}

/// The entries of `row`, header and body; bodies are not checked.
pub(super) fn walk(row: &[u8]) -> impl Iterator<Item = Result<(EntryHeader, &[u8]), BadEntry>> {
    pieces(row).filter_map(|piece| match piece {
        Ok(Piece::Entry(header, body)) => Some(Ok((header, body))),
        Ok(Piece::Fact(_)) => None,
        Err(error) => Some(Err(error)),
    })
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>, BadEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        if Fact::is_at(rest) {
            // Damage in the kind of an entry ends here, too.
            return Some(match Fact::decode(rest) {
                Ok(fact) => {
                    self.rest = &rest[FACT_LEN..];
                    Ok(Piece::Fact(fact))
                }
                Err(_) => Err(BadEntry::Kind(rest[KIND_AT])),
            });
        }
        Some(EntryHeader::decode(rest).and_then(|header| {
            let want = header.entry_len();
            let Some((entry, rest)) = rest.split_at_checked(want) else {
                return Err(BadEntry::Length { len: rest.len(), want });
            };
            self.rest = rest;
            Ok(Piece::Entry(header, &entry[ENTRY_HEADER_LEN..]))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_before_they_overflow() {
        let (max, big) = (ROW_LEN_MAX, ROW_LEN_MAX * 3);
        let cut = |lens: &[usize]| {
            let mut cursor = Cursor::at(5);
            let rows = cursor.cut(lens.iter().copied());
            (rows, cursor.next())
        };
        assert_eq!(cut(&[]), (vec![], 5));
        assert_eq!(cut(&[1]), (vec![(5, 0..1)], 6));
        assert_eq!(cut(&[max - 1, 1, 1]), (vec![(5, 0..2), (6, 2..3)], 7));
        assert_eq!(cut(&[1, big, 1, 1]), (vec![(5, 0..1), (6, 1..2), (7, 2..4)], 8));
        assert_eq!(cut(&[big, max, max]), (vec![(5, 0..1), (6, 1..2), (7, 2..3)], 8));
    }

    #[test]
    fn a_row_takes_entries_of_several_commits_until_it_is_sealed() {
        let mut cursor = Cursor::at(0);
        assert_eq!(cursor.cut([10].into_iter()), [(0, 0..1)]);
        assert_eq!(cursor.cut([10, ROW_LEN_MAX].into_iter()), [(0, 0..1), (1, 1..2)]);
        cursor.seal();
        cursor.seal();
        assert_eq!(cursor.cut([10].into_iter()), [(2, 0..1)]);
    }
}
