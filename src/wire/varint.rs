//! Variable-length integers of RFC 9000 section 16: the two high bits of the first byte tell the length.

use bytes::{Buf, BufMut};

/// Largest value that fits: 2^62 - 1.
pub const VARINT_MAX: u64 = (1 << 62) - 1;

/// A length that ends in the middle, or a value that is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes end in the middle of a number")]
pub struct Truncated;

/// Bytes that `value` takes: 1, 2, 4 or 8.
#[must_use]
pub fn varint_len(value: u64) -> usize {
    match value {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    }
}

/// Appends `value` in its shortest form.
///
/// # Panics
/// If `value` is above [`VARINT_MAX`]: every length and count of ours is bounded far below.
pub fn put_varint(out: &mut impl BufMut, value: u64) {
    assert!(value <= VARINT_MAX, "number {value} does not fit a varint");
    match varint_len(value) {
        1 => out.put_uint(value, 1),
        2 => out.put_uint(value | (0b01 << 14), 2),
        4 => out.put_uint(value | (0b10 << 30), 4),
        _ => out.put_u64(value | (0b11 << 62)),
    }
}

/// Takes a number from the front of `input`; leaves `input` alone when it is not whole.
///
/// # Errors
/// [`Truncated`] when the bytes end before the number does.
pub fn get_varint(input: &mut impl Buf) -> Result<u64, Truncated> {
    let Some(&first) = input.chunk().first() else { return Err(Truncated) };
    let len = 1 << (first >> 6);
    if input.remaining() < len {
        return Err(Truncated);
    }
    let bits = 8 * u64::try_from(len).unwrap_or(8) - 2;
    Ok(input.get_uint(len) & ((1 << bits) - 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_rfc_9000_appendix_a1_hold() {
        for (bytes, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
        ] {
            assert_eq!(get_varint(&mut &bytes[..]), Ok(value));
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out, bytes);
        }
        assert_eq!(get_varint(&mut &[0x40, 0x25][..]), Ok(37), "a longer form is read too");
    }

    proptest! {
        #[test]
        fn every_number_survives(value in 0..=VARINT_MAX) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            for cut in 0..out.len() {
                prop_assert_eq!(get_varint(&mut &out[..cut]), Err(Truncated));
            }
            prop_assert_eq!(get_varint(&mut &out[..]), Ok(value));
        }
    }
}
