//! The 512-byte header block: POSIX pax(1) "ustar Interchange Format" and GNU's variant.

use super::malformed;
use crate::{Error, Result};

pub(super) const BLOCK: usize = 512;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    File,
    HardLink,
    SymbolicLink,
    CharDevice,
    BlockDevice,
    Folder,
    Fifo,
    /// Extension headers; [`super::Archive::next_entry`] applies them and never returns them.
    PaxLocal,
    PaxGlobal,
    LongName,
    LongLink,
    GnuSparse,
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) kind: EntryKind,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) device: (u32, u32),
    pub(super) block: [u8; BLOCK],
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self> {
        if !Self::checksum_holds(block) {
            return Err(malformed("a tar header has a wrong checksum"));
        }
        let kind = kind(block[156])?;
        let device = if matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
            (small(&block[329..337])?, small(&block[337..345])?)
        } else {
            (0, 0)
        };
        Ok(Self {
            kind,
            path: path(block),
            link: field(&block[157..257]).to_vec(),
            mode: (number(&block[100..108])? & 0o7777) as u32,
            uid: positive(&block[108..116])?,
            gid: positive(&block[116..124])?,
            // Only these have content, whatever the header of another says.
            size: match kind {
                EntryKind::HardLink
                | EntryKind::SymbolicLink
                | EntryKind::CharDevice
                | EntryKind::BlockDevice
                | EntryKind::Folder
                | EntryKind::Fifo => 0,
                _ => positive(&block[124..136])?,
            },
            mtime: number(&block[136..148])?,
            device,
            block: *block,
        })
    }

    /// The sum of all bytes, the checksum itself as spaces; some old writers summed signed bytes.
    pub(super) fn checksum_holds(block: &[u8; BLOCK]) -> bool {
        let Ok(expected) = number(&block[148..156]) else { return false };
        let bytes =
            || block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        expected == unsigned || expected == signed
    }
}

fn kind(flag: u8) -> Result<EntryKind> {
    Ok(match flag {
        b'0' | 0 | b'7' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::SymbolicLink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Folder,
        b'6' => EntryKind::Fifo,
        b'x' | b'X' => EntryKind::PaxLocal,
        b'g' => EntryKind::PaxGlobal,
        b'L' => EntryKind::LongName,
        b'K' => EntryKind::LongLink,
        b'S' => EntryKind::GnuSparse,
        other => {
            return Err(Error::Archive(format!("a member has the unknown type {:?}", char::from(other))));
        }
    })
}

fn path(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = field(&block[..100]);
    let prefix = if block[257..263] == *b"ustar\0" { field(&block[345..500]) } else { &[] };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// Up to the first NUL.
fn field(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}

pub(super) fn positive(bytes: &[u8]) -> Result<u64> {
    u64::try_from(number(bytes)?).map_err(|_| malformed("a number in a tar header is negative"))
}

fn small(bytes: &[u8]) -> Result<u32> {
    u32::try_from(number(bytes)?).map_err(|_| malformed("a device number in a tar header is out of range"))
}

/// Octal digits among spaces and NULs, or GNU's base 256: the high bit set, then two's complement.
pub(super) fn number(bytes: &[u8]) -> Result<i64> {
    let wrong = || malformed("a number in a tar header is malformed");
    if bytes[0] & 0x80 != 0 {
        let negative = bytes[0] & 0x40 != 0;
        let start = i128::from(bytes[0] & 0x3f) - if negative { 0x40 } else { 0 };
        // At most 12 bytes: 95 bits.
        let value = bytes[1..].iter().fold(start, |value, byte| value << 8 | i128::from(*byte));
        return i64::try_from(value).map_err(|_| wrong());
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = bytes.iter().position(|byte| !is_blank(byte)) else { return Ok(0) };
    let digits = &bytes[start..];
    let end = digits.iter().position(is_blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(is_blank) {
        return Err(wrong());
    }
    digits[..end].iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => Ok(value << 3 | i64::from(digit - b'0')),
        _ => Err(wrong()),
    })
}
