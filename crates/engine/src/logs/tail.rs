//! Where the last records of a file begin.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;

use flate2::read::GzDecoder;
use insula_proto::MAX_ENTRY;

use super::cursor::{BLOCK, Cursor, Source};
use super::file::LogFormat;

/// A place in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) offset: u64,
    /// Records after it that are not wanted: compressed files are read from their beginning only.
    pub(super) skip: u64,
}

/// Where the last `wanted` complete records of a file begin, and how many there are from there on.
pub(super) fn start(source: &mut Source, format: LogFormat, wanted: u64) -> io::Result<(Start, u64)> {
    match (source, format) {
        (Source::Plain { file, end, .. }, LogFormat::Json) => {
            lines(file, length(file, *end)?, wanted).map(|(offset, found)| (Start { offset, skip: 0 }, found))
        }
        (Source::Plain { file, end, .. }, LogFormat::Local) => entries(file, length(file, *end)?, wanted)
            .map(|(offset, found)| (Start { offset, skip: 0 }, found)),
        (Source::Compressed(decoder), _) => {
            let count = || decoder.get_ref().try_clone();
            let mut again = count()?;
            again.rewind()?;
            let counted = Source::Compressed(Box::new(GzDecoder::new(again)));
            let mut cursor = Cursor::at(counted, format, Start::default());
            let mut total = 0;
            while cursor.record()?.is_some() {
                total += 1;
            }
            // The clone has moved the place in the file, which both share.
            let mut file = count()?;
            file.rewind()?;
            **decoder = GzDecoder::new(file);
            let found = wanted.min(total);
            Ok((Start { offset: 0, skip: total - found }, found))
        }
    }
}

fn length(file: &File, end: Option<u64>) -> io::Result<u64> {
    end.map_or_else(|| Ok(file.metadata()?.len()), Ok)
}

fn lines(file: &File, mut end: u64, wanted: u64) -> io::Result<(u64, u64)> {
    let (mut found, mut seen) = (0, false);
    let mut block = vec![0; BLOCK];
    // A record ends with its newline, and the one before it ends just before it begins.
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let length = usize::try_from(end - start).unwrap_or(BLOCK);
        let part = &mut block[..length];
        file.read_exact_at(part, start)?;
        for index in (0..part.len()).rev().filter(|index| part[*index] == b'\n') {
            if seen {
                found += 1;
            }
            if found == wanted {
                return Ok((start + index as u64 + 1, found));
            }
            seen = true;
        }
        end = start;
    }
    Ok((0, found + u64::from(seen)))
}

/// From the end backwards by the lengths behind the messages; from the beginning if those do not lead there.
fn entries(file: &File, size: u64, wanted: u64) -> io::Result<(u64, u64)> {
    let mut end = size;
    let mut found = 0;
    while end > 0 && found < wanted {
        let mut tail = [0; 4];
        if end < 8 {
            return from_the_beginning(file, size, wanted);
        }
        file.read_exact_at(&mut tail, end - 4)?;
        let length = u64::from(u32::from_be_bytes(tail));
        let mut head = [0; 4];
        let whole = length > 0 && length <= MAX_ENTRY as u64 && length + 8 <= end;
        if whole {
            file.read_exact_at(&mut head, end - length - 8)?;
        }
        if !whole || head != tail {
            // It is being written now, or it is damaged.
            return from_the_beginning(file, size, wanted);
        }
        end -= length + 8;
        found += 1;
    }
    Ok((end, found))
}

fn from_the_beginning(file: &File, size: u64, wanted: u64) -> io::Result<(u64, u64)> {
    let mut starts = std::collections::VecDeque::new();
    let mut reader = io::BufReader::new(file.try_clone()?);
    reader.rewind()?;
    let (mut at, mut head) = (0, [0; 4]);
    while reader.read_exact(&mut head).is_ok() {
        let length = u64::from(u32::from_be_bytes(head));
        if length == 0 || length > MAX_ENTRY as u64 || at + length + 8 > size {
            break;
        }
        starts.push_back(at);
        if starts.len() as u64 > wanted {
            starts.pop_front();
        }
        at += length + 8;
        // Lengths are bounded far below what an offset holds.
        reader.seek_relative((length + 4) as i64)?;
    }
    Ok((starts.front().copied().unwrap_or(at), starts.len() as u64))
}
