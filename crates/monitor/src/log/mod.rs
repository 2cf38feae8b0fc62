//! Where output goes: put together line by line, then to files ([`file`], [`rotated`]), to syslog or to
//! systemd's journal.

mod file;
mod journal;
mod rotated;
mod syslog;

use std::time::Duration;

use insula_spec::plan::LogPlan;

use self::file::{Format, LogFile};
use self::journal::Journal;
use self::rotated::{Limits, Rotated};
use self::syslog::Syslog;
use crate::clock;
use crate::error::Result;

/// Bytes after which a line without end is written as a part, as Docker does.
const LONGEST_LINE: usize = 16 << 10;
/// How soon a receiver that took nothing is tried again.
const SOON: Duration = Duration::from_secs(1);

/// Whether output waits to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    Busy,
    Idle,
}

/// Which stream a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A line, with its newline if it has come, or a part of one.
#[derive(Debug, Clone, Copy)]
struct Record<'a> {
    stream: Stream,
    line: &'a [u8],
    part: Option<Part<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    /// The same for all parts of a line.
    id: &'a str,
    ordinal: i32,
    last: bool,
}

/// When a record came. Each has its own time, a nanosecond after the one before it at least, so that who reads
/// a log can say up to where; only a clock that is set back begins anew.
#[derive(Debug)]
struct Moment {
    nanoseconds: i64,
    /// RFC 3339 to the last digit, without the zone.
    digits: Vec<u8>,
}

/// Clocks that go back by less are not set back: they are read on different processors, or are coarse.
const SET_BACK: i64 = 1_000_000_000;

impl Moment {
    /// That of the next record, which comes now. Times before `next` are taken.
    fn now(next: i64) -> Self {
        let now = clock::now();
        let nanoseconds = if now < next && next - now < SET_BACK { next } else { now };
        Self { nanoseconds, digits: clock::digits(nanoseconds).into_bytes() }
    }

    /// Goes on to the next record.
    fn step(&mut self) {
        const FRACTION: usize = "2026-01-31T08:05:09.".len();
        self.nanoseconds += 1;
        for digit in self.digits[FRACTION..].iter_mut().rev() {
            if *digit < b'9' {
                *digit += 1;
                return;
            }
            *digit = b'0';
        }
        self.digits = clock::digits(self.nanoseconds).into_bytes();
    }

    /// As Go writes it: zeros at the end of the fraction are cut.
    fn append_to(&self, out: &mut Vec<u8>) {
        let mut text = self.digits.as_slice();
        while let [shorter @ .., last] = text
            && matches!(last, b'0' | b'.')
        {
            text = shorter;
            if *last == b'.' {
                break;
            }
        }
        out.extend_from_slice(text);
        out.push(b'Z');
    }
}

/// A log that takes output in pieces and writes it line by line.
#[derive(Debug)]
pub(crate) struct Log {
    sinks: Vec<Sink>,
    /// What came after the last line end, for standard output and error.
    open: [OpenLine; 2],
    /// Times before are taken.
    next: i64,
}

#[derive(Debug)]
enum Sink {
    File(LogFile),
    Syslog(Syslog),
    Journal(Journal),
}

/// A line whose end has not come.
#[derive(Debug, Default)]
struct OpenLine {
    bytes: Vec<u8>,
    /// Its name and how many parts of it are written, once it is too long for one.
    parts: Option<(String, i32)>,
}

impl Log {
    /// Opens or continues the log that a plan asks for. Fails where nobody would receive it.
    pub(crate) fn open(plan: &LogPlan) -> Result<Self> {
        let mut sinks = Vec::new();
        let mut next = Some(plan);
        while let Some(plan) = next.take() {
            let sink = match plan {
                LogPlan::None => continue,
                LogPlan::JsonFile { path, max_size, max_files, compress, attributes } => {
                    let limits = Limits { max_size: *max_size, max_files: *max_files, compress: *compress };
                    let file = Rotated::open(path.clone(), limits)?;
                    Sink::File(LogFile::new(Format::json(attributes), file))
                }
                LogPlan::Local { path, max_size, max_files, compress } => {
                    let limits = Limits { max_size: *max_size, max_files: *max_files, compress: *compress };
                    Sink::File(LogFile::new(Format::Local, Rotated::open(path.clone(), limits)?))
                }
                LogPlan::Syslog { syslog, cache } => {
                    next = cache.as_deref();
                    Sink::Syslog(Syslog::connect(syslog)?)
                }
                LogPlan::Journald { fields, cache } => {
                    next = cache.as_deref();
                    Sink::Journal(Journal::connect(fields)?)
                }
            };
            sinks.push(sink);
        }
        Ok(Self { sinks, open: Default::default(), next: 0 })
    }

    /// Takes a piece of output. Whole lines are written at once, a rest is kept for later.
    pub(crate) fn take(&mut self, stream: Stream, mut bytes: &[u8]) {
        if self.sinks.is_empty() {
            return;
        }
        let mut moment = Moment::now(self.next);
        let open = &mut self.open[stream as usize];
        while let Some(end) = line_end(open.bytes.len(), bytes) {
            let (line, rest) = bytes.split_at(end);
            open.end(&mut self.sinks, stream, line, &mut moment);
            bytes = rest;
        }
        self.next = moment.nanoseconds;
        open.bytes.extend_from_slice(bytes);
        self.flush();
    }

    /// Writes what no line end followed. At the end of the stream.
    pub(crate) fn finish(&mut self) {
        let mut moment = Moment::now(self.next);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let open = &mut self.open[stream as usize];
            if !open.bytes.is_empty() {
                open.end(&mut self.sinks, stream, b"", &mut moment);
            }
        }
        self.flush();
        for sink in &mut self.sinks {
            if let Sink::Syslog(syslog) = sink {
                syslog.finish();
            }
        }
    }

    fn flush(&mut self) {
        for sink in &mut self.sinks {
            match sink {
                Sink::File(file) => file.flush(),
                Sink::Syslog(syslog) => syslog.flush(),
                Sink::Journal(_) => {}
            }
        }
    }

    /// Does a piece of what is left to do, and says when to come back for more, if ever. Files are compressed when
    /// there is nothing else to do: they stay within their bound as they are.
    pub(crate) fn work(&mut self, load: Load) -> Option<Duration> {
        let one = |sink: &mut Sink| match sink {
            Sink::File(file) => file.work(load).then_some(Duration::ZERO),
            Sink::Syslog(syslog) => {
                syslog.flush();
                syslog.waits().then_some(SOON)
            }
            Sink::Journal(_) => None,
        };
        self.sinks.iter_mut().filter_map(one).min()
    }

    /// Gives back the memory of a burst.
    pub(crate) fn trim(&mut self) {
        for sink in &mut self.sinks {
            if let Sink::File(file) = sink {
                file.trim();
            }
        }
    }
}

impl OpenLine {
    /// Writes it with what came last, at `moment`, which goes on.
    fn end(&mut self, sinks: &mut [Sink], stream: Stream, rest: &[u8], moment: &mut Moment) {
        let complete = rest.ends_with(b"\n");
        let line = if self.bytes.is_empty() {
            rest
        } else {
            self.bytes.extend_from_slice(rest);
            &self.bytes
        };
        if !complete && self.parts.is_none() {
            self.parts = Some((insula_base::random_hex(32), 0));
        }
        if let Some((_, ordinal)) = &mut self.parts {
            *ordinal += 1;
        }
        let part = self.parts.as_ref().map(|(id, ordinal)| Part { id, ordinal: *ordinal, last: complete });
        let record = Record { stream, line, part };
        for sink in sinks {
            match sink {
                Sink::File(file) => file.record(&record, moment),
                Sink::Syslog(syslog) => syslog.record(&record, moment),
                Sink::Journal(journal) => journal.record(&record),
            }
        }
        moment.step();
        self.bytes.clear();
        if complete {
            self.parts = None;
        }
    }
}

/// Where the current line ends in `bytes`, `held` bytes of it being known already: after the next
/// newline, or where the line has grown too long.
fn line_end(held: usize, bytes: &[u8]) -> Option<usize> {
    let room = LONGEST_LINE.saturating_sub(held);
    let window = &bytes[..bytes.len().min(room)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(at) => Some(at + 1),
        None if window.len() == room => Some(room),
        None => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use insula_proto::LogEntry;

    use super::*;

    pub(in crate::log) struct Folder(PathBuf);

    impl Folder {
        pub(in crate::log) fn new() -> Self {
            let path = std::env::temp_dir().join(format!("insula-log-{}", insula_base::random_hex(6)));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        pub(in crate::log) fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn log(&self, max_size: u64, max_files: u32) -> Log {
            let path = self.0.join("x.log");
            let attributes = Default::default();
            let plan = LogPlan::JsonFile { path, max_size, max_files, compress: false, attributes };
            Log::open(&plan).unwrap()
        }

        fn local(&self, max_size: u64) -> Log {
            let path = self.0.join("x.log");
            Log::open(&LogPlan::Local { path, max_size, max_files: 3, compress: true }).unwrap()
        }

        fn entries(&self, name: &str) -> Vec<LogEntry> {
            let mut bytes = std::fs::read(self.0.join(name)).unwrap();
            if name.ends_with(".gz") {
                let mut plain = Vec::new();
                std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut plain)
                    .unwrap();
                bytes = plain;
            }
            let mut rest = &bytes[..];
            let mut entries = Vec::new();
            while let Some((entry, used)) = LogEntry::split_from(rest).unwrap() {
                entries.push(entry);
                rest = &rest[used..];
            }
            assert!(rest.is_empty());
            entries
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn lines(&self, name: &str) -> Vec<serde_json::Value> {
            let text = std::fs::read_to_string(self.0.join(name)).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn lines_are_entries_and_streams_do_not_mix() {
        let folder = Folder::new();
        let mut log = folder.log(0, 1);
        log.take(Stream::Stdout, b"one\ntw");
        log.take(Stream::Stderr, b"err\n");
        log.take(Stream::Stdout, b"o\n\x01\"\\\xff\n");
        log.take(Stream::Stdout, b"rest");
        log.finish();
        let found: Vec<_> = folder
            .lines("x.log")
            .iter()
            .map(|l| (l["stream"].as_str().unwrap().to_owned(), l["log"].as_str().unwrap().to_owned()))
            .collect();
        let expected = [
            ("stdout", "one\n"),
            ("stderr", "err\n"),
            ("stdout", "two\n"),
            ("stdout", "\u{1}\"\\\u{fffd}\n"),
            ("stdout", "rest"),
        ];
        assert_eq!(found, expected.map(|(s, l)| (s.to_owned(), l.to_owned())));
    }

    #[test]
    fn each_record_has_its_own_time_and_a_clock_that_is_set_back_is_believed() {
        let text = |moment: &Moment| {
            let mut out = Vec::new();
            moment.append_to(&mut out);
            String::from_utf8(out).unwrap()
        };
        let mut moment = Moment { nanoseconds: 1_999_999_998, digits: clock::digits(1_999_999_998).into() };
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(text(&moment));
            assert_eq!(seen.last(), Some(&clock::rfc3339(moment.nanoseconds)));
            moment.step();
        }
        let expected = ["01.999999998Z", "01.999999999Z", "02Z", "02.000000001Z"];
        assert_eq!(seen, expected.map(|end| format!("1970-01-01T00:00:{end}")));
        let now = clock::now();
        assert_eq!(Moment::now(now + SET_BACK / 2).nanoseconds, now + SET_BACK / 2);
        let back = Moment::now(now + 100 * SET_BACK).nanoseconds;
        assert!((now..now + 50 * SET_BACK).contains(&back));
        let folder = Folder::new();
        let mut log = folder.local(0);
        (0..3).for_each(|_| log.take(Stream::Stdout, &b"x\n".repeat(1000)));
        let entries = folder.entries("x.log");
        assert!(entries.len() == 3000 && entries.is_sorted_by(|a, b| a.time_nano < b.time_nano));
    }

    #[test]
    fn long_lines_are_split_and_nothing_is_lost() {
        let folder = Folder::new();
        let mut log = folder.log(0, 1);
        let line = vec![b'x'; LONGEST_LINE * 2 + 10];
        for piece in line.chunks(7000) {
            log.take(Stream::Stdout, piece);
        }
        log.finish();
        let lengths: Vec<_> =
            folder.lines("x.log").iter().map(|l| l["log"].as_str().unwrap().len()).collect();
        assert_eq!(lengths, [LONGEST_LINE, LONGEST_LINE, 10]);
    }

    #[test]
    fn rotation_keeps_as_many_files_as_asked() {
        for files in 1..4u32 {
            let folder = Folder::new();
            let mut log = folder.log(200, files);
            for n in 0..20 {
                log.take(Stream::Stdout, format!("line {n:04}\n").as_bytes());
            }
            let mut names: Vec<_> = std::fs::read_dir(&folder.0)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            assert_eq!(names.len() as u32, files, "{names:?}");
            let newest = folder.lines("x.log");
            assert_eq!(newest.last().unwrap()["log"], "line 0019\n");
        }
    }

    #[test]
    fn local_entries_have_no_newline_and_parts_are_numbered() {
        let folder = Folder::new();
        let mut log = folder.local(0);
        log.take(Stream::Stdout, b"one\n\xff\n");
        log.take(Stream::Stderr, &[b'x'; LONGEST_LINE + 1]);
        log.take(Stream::Stderr, b"\nend");
        log.finish();
        let found = folder.entries("x.log");
        let parts = |entry: &LogEntry| entry.partial_log_metadata.clone().map(|p| (p.ordinal, p.last));
        let seen: Vec<_> =
            found.iter().map(|entry| (entry.source.as_str(), entry.line.len(), parts(entry))).collect();
        let expected = [
            ("stdout", 3, None),
            ("stdout", 1, None),
            ("stderr", LONGEST_LINE, Some((1, false))),
            ("stderr", 1, Some((2, true))),
            ("stderr", 3, Some((1, false))),
        ];
        assert_eq!(seen, expected);
        assert_eq!(found[1].line, [0xff]);
        assert!(found.iter().all(|entry| entry.partial == entry.partial_log_metadata.is_some()));
    }

    #[test]
    fn rotated_files_are_compressed_piece_by_piece() {
        let folder = Folder::new();
        let mut log = folder.local(400);
        let round = |from: u32, log: &mut Log| {
            for n in from..from + 12 {
                log.take(Stream::Stdout, format!("line {n:04}\n").as_bytes());
            }
        };
        round(0, &mut log);
        assert_eq!(folder.names(), ["x.log", "x.log.1", "x.log.gz.tmp"]);
        assert_eq!(log.work(Load::Busy), Some(Duration::ZERO), "later");
        assert_eq!(folder.names(), ["x.log", "x.log.1", "x.log.gz.tmp"]);
        while log.work(Load::Idle).is_some() {}
        assert_eq!(folder.names(), ["x.log", "x.log.1.gz"]);
        // Rotated again before it was compressed.
        round(12, &mut log);
        round(24, &mut log);
        assert_eq!(folder.names(), ["x.log", "x.log.1", "x.log.2", "x.log.gz.tmp"]);
        while log.work(Load::Idle).is_some() {}
        assert_eq!(folder.names(), ["x.log", "x.log.1.gz", "x.log.2.gz"]);
        round(36, &mut log);
        drop(log);
        // What was not done is done by the next monitor.
        let mut log = folder.local(400);
        while log.work(Load::Idle).is_some() {}
        assert_eq!(folder.names(), ["x.log", "x.log.1.gz", "x.log.2.gz"]);
        let all: Vec<_> =
            ["x.log.2.gz", "x.log.1.gz", "x.log"].iter().flat_map(|name| folder.entries(name)).collect();
        assert!(all.windows(2).all(|pair| pair[0].line < pair[1].line) && all.len() > 20);
        assert_eq!(all.last().unwrap().line, b"line 0047");
    }

    #[test]
    fn attributes_are_in_every_record() {
        let folder = Folder::new();
        let attributes = [("tag", "a\"b"), ("tier", "front")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let plan = LogPlan::JsonFile {
            path: folder.path("x.log"),
            max_size: 0,
            max_files: 1,
            compress: false,
            attributes: attributes.into(),
        };
        let mut log = Log::open(&plan).unwrap();
        log.take(Stream::Stdout, b"one\n");
        assert_eq!(folder.lines("x.log")[0]["attrs"], serde_json::json!({"tag": "a\"b", "tier": "front"}));
    }
}
