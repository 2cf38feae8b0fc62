//! Docker's json-file format on disk: `NAME` is the current file, `NAME.1` the one before it and
//! so on; each line is an object with `log`, `stream` and `time`. Files are written by the monitor,
//! which may write and rotate while they are read.
//!
//! A record is complete once its newline is there. What is no record (a disk that was full, a file
//! edited by hand) is passed over.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Deserialize;

/// Bytes read at once.
const BLOCK: usize = 64 << 10;
/// A longer line is no record of ours: the monitor splits output after 16 KiB, which JSON's escapes
/// make six times longer at most.
const LINE_MAX: usize = 1 << 20;
/// Rotated files that are looked for.
const FILES_MAX: u32 = 10_000;

/// Where a workload wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A line of a log, or a part of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub stream: Stream,
    pub time: Timestamp,
    /// With the newline, unless the line goes on in the next record.
    pub bytes: Vec<u8>,
}

/// Reads the records of a log from the oldest file to the newest, and on as they are written.
#[derive(Debug)]
pub(super) struct LogFiles {
    path: PathBuf,
    /// Files that follow the current one, the next last.
    later: Vec<File>,
    current: Option<Cursor>,
}

#[derive(Debug)]
struct Cursor {
    file: File,
    /// Where the next block is read from.
    offset: u64,
    buffer: Vec<u8>,
    /// Bytes at the beginning of the buffer that were given out.
    used: usize,
    /// In the middle of a line that is too long.
    skipping: bool,
}

impl LogFiles {
    /// The log at `path`, from the last `tail` records on, or from the first.
    pub(super) fn open(path: &Path, tail: Option<u64>) -> io::Result<Self> {
        let mut files = open_all(path)?;
        let mut offset = 0;
        if let Some(mut wanted) = tail {
            // From the newest file backwards; those before the one where the tail starts are not read.
            let mut first = files.len();
            for (index, file) in files.iter().enumerate().rev() {
                let (at, found) = tail_offset(file, wanted)?;
                (first, offset) = (index, at);
                wanted -= found;
                if wanted == 0 {
                    break;
                }
            }
            files.drain(..first);
        }
        files.reverse();
        let current = files.pop().map(|file| Cursor::at(file, offset));
        Ok(Self { path: path.to_owned(), later: files, current })
    }

    /// The next record that is completely written; `None` when there is none now.
    pub(super) fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            let Some(cursor) = &mut self.current else {
                if !self.advance()? {
                    return Ok(None);
                }
                continue;
            };
            while let Some(line) = cursor.line()? {
                if let Some(record) = parse(line) {
                    return Ok(Some(record));
                }
            }
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// To the file after the current one, which was read to its end. Whether there is one.
    fn advance(&mut self) -> io::Result<bool> {
        if self.later.is_empty() {
            self.later = self.newer()?;
            // The current file may have grown between its end and its rotation: it is looked at once more.
            if !self.later.is_empty() && self.current.as_ref().is_some_and(|cursor| cursor.has_more()) {
                return Ok(true);
            }
        }
        match self.later.pop() {
            Some(file) => {
                self.current = Some(Cursor::at(file, 0));
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Files that were begun since the current one, the oldest last. All there are, when the current
    /// one was rotated away while it was read.
    fn newer(&self) -> io::Result<Vec<File>> {
        let current = self.current.as_ref().map(|cursor| identity(&cursor.file)).transpose()?;
        if current.is_some() && identity_of(&self.path)? == current {
            return Ok(Vec::new());
        }
        let mut files = open_all(&self.path)?;
        if let Some(current) = current {
            let mut known = 0;
            for (index, file) in files.iter().enumerate() {
                if identity(file)? == current {
                    known = index + 1;
                }
            }
            files.drain(..known);
        }
        files.reverse();
        Ok(files)
    }
}

impl Cursor {
    fn at(file: File, offset: u64) -> Self {
        Self { file, offset, buffer: Vec::new(), used: 0, skipping: false }
    }

    fn has_more(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.len() > self.offset)
    }

    /// The next complete line without its newline.
    fn line(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            if let Some(length) = self.buffer[self.used..].iter().position(|byte| *byte == b'\n') {
                let start = self.used;
                self.used += length + 1;
                if std::mem::take(&mut self.skipping) {
                    continue;
                }
                return Ok(Some(&self.buffer[start..start + length]));
            }
            self.buffer.drain(..self.used);
            self.used = 0;
            if self.buffer.len() > LINE_MAX {
                self.buffer.clear();
                self.skipping = true;
            }
            let held = self.buffer.len();
            self.buffer.resize(held + BLOCK, 0);
            let read = read_at(&self.file, &mut self.buffer[held..], self.offset);
            let count = *read.as_ref().unwrap_or(&0);
            self.buffer.truncate(held + count);
            read?;
            if count == 0 {
                if self.file.metadata()?.len() >= self.offset {
                    return Ok(None);
                }
                // Emptied in place, as a log of a single file is when it is full.
                (self.offset, self.skipping) = (0, false);
                self.buffer.clear();
                continue;
            }
            self.offset += count as u64;
        }
    }
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Where the last `wanted` complete records of a file begin, and how many there are from there on.
fn tail_offset(file: &File, wanted: u64) -> io::Result<(u64, u64)> {
    let mut end = file.metadata()?.len();
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

/// Every file of the log, the oldest first. A file that is rotated meanwhile is taken once.
fn open_all(path: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    let mut seen = Vec::new();
    for number in 0..FILES_MAX {
        match File::open(numbered(path, number)) {
            Ok(file) => {
                let identity = identity(&file)?;
                if !seen.contains(&identity) {
                    seen.push(identity);
                    files.push(file);
                }
            }
            // Between two renames of a rotation there is no current file for a moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    files.reverse();
    Ok(files)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

fn identity_of(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(line: &[u8]) -> Option<LogLine> {
    #[derive(Deserialize)]
    struct Record {
        log: String,
        stream: String,
        time: Timestamp,
    }
    let record: Record = serde_json::from_slice(line).ok()?;
    let stream = match record.stream.as_str() {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    Some(LogLine { stream, time: record.time, bytes: record.log.into_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    fn record(text: &str, second: u32) -> String {
        let log = serde_json::to_string(text).unwrap();
        format!("{{\"log\":{log},\"stream\":\"stdout\",\"time\":\"2026-01-01T00:00:{second:02}.5Z\"}}\n")
    }

    fn append(path: &Path, text: &str) {
        OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn rotate(path: &Path, files: u32) {
        for number in (0..files).rev() {
            // The first rotations have fewer files.
            let _ = fs::rename(numbered(path, number), numbered(path, number + 1));
        }
        let _ = fs::remove_file(numbered(path, files));
    }

    fn rest(log: &mut LogFiles) -> Vec<String> {
        std::iter::from_fn(|| log.next().unwrap())
            .map(|line| String::from_utf8(line.bytes).unwrap())
            .collect()
    }

    fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
        range.map(|n| format!("{n}\n")).collect()
    }

    /// Ten records in three files, the last four in the current one.
    fn three_files() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x-json.log");
        for n in 0..10 {
            append(&path, &record(&format!("{n}\n"), n));
            if n == 2 || n == 5 {
                rotate(&path, 5);
            }
        }
        (folder, path)
    }

    #[test]
    fn all_files_are_read_in_order() {
        let (_folder, path) = three_files();
        assert_eq!(rest(&mut LogFiles::open(&path, None).unwrap()), numbers(0..10));
    }

    #[test]
    fn tails_cross_files() {
        let (_folder, path) = three_files();
        for wanted in 0..13 {
            let mut log = LogFiles::open(&path, Some(wanted)).unwrap();
            let first = 10u32.saturating_sub(u32::try_from(wanted).unwrap());
            assert_eq!(rest(&mut log), numbers(first..10), "tail {wanted}");
        }
    }

    #[test]
    fn tails_cross_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let long = "y".repeat(BLOCK / 3);
        for n in 0..20 {
            append(&path, &record(&format!("{n} {long}\n"), n));
        }
        let lines = rest(&mut LogFiles::open(&path, Some(7)).unwrap());
        assert_eq!(lines.len(), 7);
        assert!(lines[0].starts_with("13 ") && lines[6].starts_with("19 "));
    }

    #[test]
    fn what_is_written_later_follows_also_after_rotations() {
        let (_folder, path) = three_files();
        let mut log = LogFiles::open(&path, Some(1)).unwrap();
        assert_eq!(rest(&mut log), numbers(9..10));
        append(&path, &record("10\n", 0));
        rotate(&path, 5);
        append(&path, &record("11\n", 0));
        rotate(&path, 5);
        append(&path, &record("12\n", 0));
        assert_eq!(rest(&mut log), numbers(10..13));
        assert_eq!(rest(&mut log), numbers(0..0));
        append(&path, &record("13\n", 0));
        assert_eq!(rest(&mut log), numbers(13..14));
    }

    #[test]
    fn a_file_that_was_rotated_away_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        append(&path, &record("0\n", 0));
        let mut log = LogFiles::open(&path, None).unwrap();
        assert_eq!(rest(&mut log), numbers(0..1));
        for n in 1..6 {
            rotate(&path, 2);
            append(&path, &record(&format!("{n}\n"), 0));
        }
        assert_eq!(rest(&mut log), numbers(4..6));
    }

    #[test]
    fn a_file_emptied_in_place_is_read_from_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        append(&path, &record(&"a".repeat(500), 0));
        let mut log = LogFiles::open(&path, None).unwrap();
        assert_eq!(rest(&mut log).len(), 1);
        File::create(&path).unwrap();
        append(&path, &record("1\n", 0));
        assert_eq!(rest(&mut log), numbers(1..2));
    }

    #[test]
    fn a_record_counts_once_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (whole, part) = (record("0\n", 0), record("1\n", 0));
        append(&path, &whole);
        append(&path, &part[..20]);
        let mut log = LogFiles::open(&path, None).unwrap();
        assert_eq!(rest(&mut log), numbers(0..1));
        append(&path, &part[20..]);
        assert_eq!(rest(&mut log), numbers(1..2));
    }

    #[test]
    fn what_is_no_record_is_passed_over_in_bounded_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        append(&path, "not json\n{}\n\n{\"log\":1}\n");
        append(&path, &"z".repeat(3 * LINE_MAX));
        append(&path, "\n");
        append(&path, &record("0\n", 0));
        let mut log = LogFiles::open(&path, None).unwrap();
        assert_eq!(rest(&mut log), numbers(0..1));
        assert!(log.current.unwrap().buffer.capacity() < 2 * (LINE_MAX + 2 * BLOCK));
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFiles::open(&path, Some(3)).unwrap();
        assert_eq!(rest(&mut log), numbers(0..0));
        append(&path, &record("0\n", 0));
        assert_eq!(rest(&mut log), numbers(0..1));
    }
}
