//! Logs on disk: `NAME` is the current file, `NAME.1` the one before it and so on; older ones may be
//! compressed, `NAME.2.gz`. Files are written by the monitor, which may write, rotate and compress
//! while they are read.
//!
//! What is no record (a disk that was full, a file edited by hand) is passed over.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use insula_proto::RotatedFrom;
use jiff::Timestamp;

use super::cursor::{Cursor, Source};
use super::tail;

/// Rotated files that are looked for.
const FILES_MAX: u32 = 10_000;

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Docker's json-file: each line is an object with `log`, `stream`, `time` and perhaps `attrs`.
    Json,
    /// Docker's local: [`insula_proto::LogEntry`].
    Local,
}

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
    /// What the driver noted of it.
    pub attributes: BTreeMap<String, String>,
}

/// Reads the records of a log from the oldest file to the newest, and on as they are written.
#[derive(Debug)]
pub(super) struct LogFiles {
    path: PathBuf,
    format: LogFormat,
    /// Files that follow the current one, the next last.
    later: Vec<LogFile>,
    current: Option<(Identity, Cursor)>,
    extent: Extent,
}

/// How far a log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// To where it ends when it is opened: who writes faster than it is read has it end too.
    AsItIs,
    /// On as it is written.
    Growing,
}

/// Device and inode, and when it came to be, since inodes are used again; those of the file that it was made of
/// for a compressed one.
type Identity = (u64, u64, u64);

/// One file of a log.
#[derive(Debug)]
pub(super) struct LogFile {
    pub(super) source: Source,
    identity: Identity,
    /// Bytes of the file that it was made of, for a compressed one.
    made_of: Option<u64>,
}

impl LogFile {
    /// Whether both are the same file, found by two names.
    fn is(&self, other: &Self) -> bool {
        self.identity == other.identity && self.length() == other.length()
    }

    /// As it was written.
    fn length(&self) -> Option<u64> {
        match &self.source {
            Source::Plain { file, .. } => file.metadata().ok().map(|meta| meta.len()),
            Source::Compressed(_) => self.made_of,
        }
    }
}

impl LogFiles {
    /// The log at `path`, from the last `tail` records on, or from the first.
    pub(super) fn open(
        path: &Path,
        format: LogFormat,
        tail: Option<u64>,
        extent: Extent,
    ) -> io::Result<Self> {
        let mut files = open_all(path)?;
        for file in files.iter_mut().filter(|_| extent == Extent::AsItIs) {
            if let Source::Plain { file, end, .. } = &mut file.source {
                *end = Some(file.metadata()?.len());
            }
        }
        let mut start = tail::Start::default();
        if let Some(mut wanted) = tail {
            // From the newest file backwards; those before the one where the tail starts are not read.
            let mut first = files.len();
            for (index, file) in files.iter_mut().enumerate().rev() {
                let (at, found) = tail::start(&mut file.source, format, wanted)?;
                (first, start) = (index, at);
                wanted -= found;
                if wanted == 0 {
                    break;
                }
            }
            files.drain(..first);
        }
        files.reverse();
        let current = files.pop().map(|file| (file.identity, Cursor::at(file.source, format, start)));
        Ok(Self { path: path.to_owned(), format, later: files, current, extent })
    }

    /// The next record that is completely written; `None` when there is none now.
    pub(super) fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if let Some((_, cursor)) = &mut self.current
                && let Some(record) = cursor.record()?
            {
                return Ok(Some(record));
            }
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// To the file after the current one, which was read to its end. Whether there is one.
    fn advance(&mut self) -> io::Result<bool> {
        if self.later.is_empty() && self.extent == Extent::Growing {
            self.later = self.newer()?;
            // The current file may have grown between its end and its rotation: it is looked at once more.
            if !self.later.is_empty() && self.current.as_ref().is_some_and(|(_, cursor)| cursor.has_more()) {
                return Ok(true);
            }
        }
        match self.later.pop() {
            Some(file) => {
                let cursor = Cursor::at(file.source, self.format, tail::Start::default());
                self.current = Some((file.identity, cursor));
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Files that were begun since the current one, the oldest last. All there are, when the current
    /// one was rotated away while it was read.
    fn newer(&self) -> io::Result<Vec<LogFile>> {
        let current = self.current.as_ref().map(|(identity, _)| *identity);
        if current.is_some() && identity_of(&self.path)? == current {
            return Ok(Vec::new());
        }
        let mut files = open_all(&self.path)?;
        if let Some(current) = current {
            let known = files.iter().rposition(|file| file.identity == current);
            files.drain(..known.map_or(0, |index| index + 1));
        }
        files.reverse();
        Ok(files)
    }
}

/// Every file of the log, the oldest first. A file that is rotated or compressed meanwhile is taken once.
fn open_all(path: &Path) -> io::Result<Vec<LogFile>> {
    let mut files: Vec<LogFile> = Vec::new();
    let mut missing = 0;
    for number in 0..FILES_MAX {
        match open_one(path, number) {
            Ok(file) if files.iter().any(|known| known.is(&file)) => {}
            Ok(file) => files.push(file),
            // Between two renames of a rotation one of the names is free for a moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound && missing == 0 => missing += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    files.reverse();
    Ok(files)
}

/// A file by its number, as it was written or compressed.
fn open_one(path: &Path, number: u32) -> io::Result<LogFile> {
    match File::open(numbered(path, number, "")) {
        Ok(file) => {
            let identity = identity(&file.metadata()?);
            Ok(LogFile { source: Source::Plain { file, offset: 0, end: None }, identity, made_of: None })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && number > 0 => {
            let file = File::open(numbered(path, number, ".gz"))?;
            let own = identity(&file.metadata()?);
            let decoder = GzDecoder::new(file);
            // The monitor notes which file it was.
            let noted = decoder.header().and_then(|header| RotatedFrom::from_bytes(header.extra()?));
            let identity = noted.map_or(own, |noted| (own.0, noted.inode, noted.born));
            let made_of = noted.map(|noted| noted.length);
            Ok(LogFile { source: Source::Compressed(Box::new(decoder)), identity, made_of })
        }
        Err(error) => Err(error),
    }
}

fn numbered(path: &Path, number: u32, end: &str) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{number}{end}"));
    name.into()
}

fn identity(meta: &Metadata) -> Identity {
    let of = RotatedFrom::of(meta);
    (meta.dev(), of.inode, of.born)
}

fn identity_of(path: &Path) -> io::Result<Option<Identity>> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(Some(identity(&meta))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cursor::{BLOCK, LINE_MAX};
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
            let _ = fs::rename(numbered(path, number, ""), numbered(path, number + 1, ""));
        }
        let _ = fs::remove_file(numbered(path, files, ""));
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
        assert_eq!(
            rest(&mut LogFiles::open(&path, LogFormat::Json, None, Extent::Growing).unwrap()),
            numbers(0..10)
        );
    }

    #[test]
    fn tails_cross_files() {
        let (_folder, path) = three_files();
        for wanted in 0..13 {
            let mut log = LogFiles::open(&path, LogFormat::Json, Some(wanted), Extent::Growing).unwrap();
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
        let lines = rest(&mut LogFiles::open(&path, LogFormat::Json, Some(7), Extent::Growing).unwrap());
        assert_eq!(lines.len(), 7);
        assert!(lines[0].starts_with("13 ") && lines[6].starts_with("19 "));
    }

    #[test]
    fn what_is_written_later_follows_also_after_rotations() {
        let (_folder, path) = three_files();
        let mut log = LogFiles::open(&path, LogFormat::Json, Some(1), Extent::Growing).unwrap();
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
        let mut log = LogFiles::open(&path, LogFormat::Json, None, Extent::Growing).unwrap();
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
        let mut log = LogFiles::open(&path, LogFormat::Json, None, Extent::Growing).unwrap();
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
        let mut log = LogFiles::open(&path, LogFormat::Json, None, Extent::Growing).unwrap();
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
        let mut log = LogFiles::open(&path, LogFormat::Json, None, Extent::Growing).unwrap();
        assert_eq!(rest(&mut log), numbers(0..1));
        assert!(log.current.unwrap().1.held() < 2 * (LINE_MAX + 2 * BLOCK));
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFiles::open(&path, LogFormat::Json, Some(3), Extent::Growing).unwrap();
        assert_eq!(rest(&mut log), numbers(0..0));
        append(&path, &record("0\n", 0));
        assert_eq!(rest(&mut log), numbers(0..1));
    }

    /// Twelve records of the driver local: three files, the middle one compressed as the monitor does it.
    fn local_files() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("container.log");
        for (name, range) in [(".2", 0..4), (".1", 4..8), ("", 8..12)] {
            let mut bytes = Vec::new();
            for n in range {
                let line = format!("{n}").into_bytes();
                let source = "stdout".to_owned();
                insula_proto::LogEntry { source, line, time_nano: n, ..Default::default() }
                    .append_to(&mut bytes);
            }
            fs::write(folder.path().join(format!("container.log{name}")), bytes).unwrap();
        }
        compress(&path, 1);
        (folder, path)
    }

    fn compress(path: &Path, number: u32) {
        compress_as(path, number, RotatedFrom::of(&fs::metadata(numbered(path, number, "")).unwrap()));
    }

    fn compress_as(path: &Path, number: u32, noted: RotatedFrom) {
        let plain = numbered(path, number, "");
        let to = File::create(numbered(path, number, ".gz")).unwrap();
        let extra = noted.to_bytes();
        let mut sink = flate2::GzBuilder::new().extra(extra).write(to, flate2::Compression::fast());
        sink.write_all(&fs::read(&plain).unwrap()).unwrap();
        sink.finish().unwrap();
        fs::remove_file(plain).unwrap();
    }

    #[test]
    fn an_inode_that_is_used_again_is_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        append(&path, &(0..3).map(|n| record(&n.to_string(), n)).collect::<String>());
        let before = RotatedFrom::of(&fs::metadata(&path).unwrap());
        rotate(&path, 1);
        append(&path, &(3..5).map(|n| record(&n.to_string(), n)).collect::<String>());
        let now = RotatedFrom::of(&fs::metadata(&path).unwrap());
        // As when the file was gone before the current one was made; even in the same moment.
        for noted in
            [RotatedFrom { inode: now.inode, ..before }, RotatedFrom { length: before.length, ..now }]
        {
            if !numbered(&path, 1, "").exists() {
                append(
                    &numbered(&path, 1, ""),
                    &(0..3).map(|n| record(&n.to_string(), n)).collect::<String>(),
                );
            }
            compress_as(&path, 1, noted);
            let mut log = LogFiles::open(&path, LogFormat::Json, None, Extent::Growing).unwrap();
            assert_eq!(rest(&mut log).len(), 5, "{noted:?}");
        }
    }

    #[test]
    fn local_logs_are_read_from_any_record_on() {
        let (_folder, path) = local_files();
        for tail in 0..14u64 {
            let mut log = LogFiles::open(&path, LogFormat::Local, Some(tail), Extent::Growing).unwrap();
            let first = 12u32.saturating_sub(tail as u32);
            assert_eq!(rest(&mut log), numbers(first..12), "{tail}");
        }
        assert_eq!(
            rest(&mut LogFiles::open(&path, LogFormat::Local, None, Extent::Growing).unwrap()),
            numbers(0..12)
        );
    }

    #[test]
    fn a_file_that_is_compressed_while_it_is_read_is_read_once() {
        let (_folder, path) = local_files();
        let mut log = LogFiles::open(&path, LogFormat::Local, None, Extent::Growing).unwrap();
        let mut seen: Vec<_> =
            (0..9).map(|_| String::from_utf8(log.next().unwrap().unwrap().bytes).unwrap()).collect();
        fs::rename(numbered(&path, 1, ".gz"), numbered(&path, 2, ".gz")).unwrap();
        fs::remove_file(numbered(&path, 2, "")).unwrap();
        fs::rename(&path, numbered(&path, 1, "")).unwrap();
        compress(&path, 1);
        let mut bytes = Vec::new();
        let (source, line) = ("stderr".to_owned(), b"12".to_vec());
        insula_proto::LogEntry { source, line, ..Default::default() }.append_to(&mut bytes);
        fs::write(&path, bytes).unwrap();
        seen.extend(rest(&mut log));
        assert_eq!(seen, numbers(0..13));
    }

    #[test]
    fn a_damaged_local_file_is_left_at_its_damage() {
        let (folder, path) = local_files();
        let second = folder.path().join("container.log.2");
        let mut bytes = fs::read(&second).unwrap();
        bytes.truncate(bytes.len() - 3);
        bytes.extend_from_slice(&[0xff; 40]);
        fs::write(second, bytes).unwrap();
        let mut log = LogFiles::open(&path, LogFormat::Local, None, Extent::Growing).unwrap();
        assert_eq!(rest(&mut log), [numbers(0..3), numbers(4..12)].concat());
    }
}
