//! Compression of batch bodies: chosen by the producer, undone by the reader, left alone in between.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// How a batch body is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4 block format: little work, for hot topics.
    Lz4,
    /// Zstandard frame: small, for thin links and long retention.
    Zstd,
}

/// Zstandard's own default: beyond it, time grows faster than size falls.
const ZSTD_LEVEL: i32 = 3;

/// A body that does not decompress to the length its header says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("batch body does not decompress by {compression} to {want} bytes")]
pub struct Uncompressible {
    compression: Compression,
    want: usize,
}

impl Compression {
    /// The two bits that stand for it in a batch's flags.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    /// What two bits of a batch's flags stand for.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Compresses `raw`, or tells that it stays as it is because that is smaller.
    pub(crate) fn compress(self, raw: Bytes) -> (Self, Bytes) {
        let packed = match self {
            Self::None => return (Self::None, raw),
            Self::Lz4 => Some(lz4_flex::block::compress(&raw)),
            Self::Zstd => zstd::bulk::compress(&raw, ZSTD_LEVEL).ok(),
        };
        match packed {
            Some(packed) if packed.len() < raw.len() => (self, packed.into()),
            _ => (Self::None, raw),
        }
    }

    /// Decompresses `body` to exactly `len` bytes; `len` has been checked against its limit.
    pub(crate) fn decompress(self, body: Bytes, len: usize) -> Result<Bytes, Uncompressible> {
        let raw: Option<Bytes> = match self {
            Self::None => Some(body),
            Self::Lz4 => lz4_flex::block::decompress(&body, len).ok().map(Into::into),
            Self::Zstd => zstd::bulk::decompress(&body, len).ok().map(Into::into),
        };
        raw.filter(|raw| raw.len() == len).ok_or(Uncompressible { compression: self, want: len })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

impl FromStr for Compression {
    type Err = BadCompression;

    fn from_str(s: &str) -> Result<Self, BadCompression> {
        match s {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            _ => Err(BadCompression(s.into())),
        }
    }
}

/// A word that names no compression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown compression '{0}': one of none, lz4, zstd")]
pub struct BadCompression(String);
