//! Maps of sparse members, in the four formats that GNU tar has written.

use std::io::BufRead;

use super::header::{EntryKind, Header, positive};
use super::pax::{Extensions, decimal};
use super::{Archive, malformed};
use crate::Result;

/// Segments of one file; more are no file that a writer found worth it.
const SEGMENTS_MAX: usize = 1 << 16;

/// Where the data of a sparse file belongs.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) real_size: u64,
    pub(super) segments: Vec<(u64, u64)>,
}

/// The map of a member, if it has one. Of format 1.0 the map is read from the member's data.
pub(super) fn map<R: BufRead>(
    archive: &mut Archive<R>,
    header: &Header,
    extensions: &Extensions,
) -> Result<Option<Map>> {
    let records = &extensions.sparse;
    let (real_size, numbers) = if header.kind == EntryKind::GnuSparse {
        (positive(&header.block[483..495])?, old_map(archive, header)?)
    } else if header.kind != EntryKind::File {
        return Ok(None);
    } else if records.major == Some(1) && records.minor == Some(0) {
        let real_size = records.real_size.ok_or_else(|| malformed("a sparse member has no size"))?;
        (real_size, map_in_data(archive)?)
    } else if let (Some(real_size), false) = (records.real_size, records.numbers.is_empty()) {
        (real_size, records.numbers.clone())
    } else {
        return Ok(None);
    };
    checked(real_size, &numbers, archive.left()).map(Some)
}

/// Four pairs in the header, then blocks of 21 pairs, each with a sign whether another follows.
fn old_map<R: BufRead>(archive: &mut Archive<R>, header: &Header) -> Result<Vec<u64>> {
    let mut numbers = pairs(&header.block[386..482])?;
    let mut more = header.block[482] != 0;
    while more {
        let block = archive.read_extra_block()?;
        numbers.extend(pairs(&block[..504])?);
        check_count(numbers.len())?;
        more = block[504] != 0;
    }
    Ok(numbers)
}

fn pairs(bytes: &[u8]) -> Result<Vec<u64>> {
    // Unused places are NULs; a pair of no length at the end of a file is written as such.
    bytes.chunks_exact(12).take_while(|number| number[0] != 0).map(positive).collect()
}

/// Decimal numbers on lines, how many pairs first, padded to a block.
fn map_in_data<R: BufRead>(archive: &mut Archive<R>) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    let mut line = Vec::new();
    let mut expected = None;
    while expected.is_none_or(|count| numbers.len() < count) {
        for byte in archive.read_block()? {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(malformed("a sparse map is malformed"));
                }
                continue;
            }
            let number = decimal(&line)?;
            line.clear();
            match expected {
                None => {
                    let count = usize::try_from(number).unwrap_or(usize::MAX).saturating_mul(2);
                    check_count(count)?;
                    expected = Some(count);
                }
                Some(_) => numbers.push(number),
            }
            if expected.is_some_and(|count| numbers.len() == count) {
                break;
            }
        }
    }
    Ok(numbers)
}

fn check_count(numbers: usize) -> Result<()> {
    if numbers <= 2 * SEGMENTS_MAX { Ok(()) } else { Err(malformed("a sparse map is too long")) }
}

/// Segments ascend, lie within the file, and use the data up.
fn checked(real_size: u64, numbers: &[u64], data: u64) -> Result<Map> {
    let wrong = || malformed("a sparse map contradicts itself");
    check_count(numbers.len())?;
    if !numbers.len().is_multiple_of(2) || real_size > i64::MAX as u64 {
        return Err(wrong());
    }
    let mut segments = Vec::with_capacity(numbers.len() / 2);
    let (mut end, mut total) = (0u64, 0u64);
    for pair in numbers.chunks_exact(2) {
        let (offset, length) = (pair[0], pair[1]);
        if offset < end {
            return Err(wrong());
        }
        end = offset.checked_add(length).filter(|end| *end <= real_size).ok_or_else(wrong)?;
        total += length;
        if length > 0 {
            segments.push((offset, length));
        }
    }
    if total == data { Ok(Map { real_size, segments }) } else { Err(wrong()) }
}
