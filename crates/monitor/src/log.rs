//! Docker's json-file log: one object a line, `log`, `stream` and `time`. Rotated by size:
//! `x.log`, `x.log.1`, … with the newest having the smallest number.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use insula_spec::plan::LogPlan;

use crate::clock;
use crate::error::{Context, Result};

/// Bytes after which a line without end is written as a part, as Docker does.
const LONGEST_LINE: usize = 16 << 10;

/// Which stream a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A log that takes output in pieces and writes it line by line.
#[derive(Debug)]
pub(crate) struct Log {
    file: Option<Rotated>,
    /// What came after the last line end, for standard output and error.
    open: [Vec<u8>; 2],
    /// Lines being put together, kept to reuse its memory.
    batch: Vec<u8>,
    /// The last write failed: said once, not for every line.
    failing: bool,
}

impl Log {
    /// Opens or continues the log that a plan asks for.
    pub(crate) fn open(plan: &LogPlan) -> Result<Self> {
        let file = match plan {
            LogPlan::None => None,
            LogPlan::JsonFile { path, max_size, max_files } => {
                Some(Rotated::open(path.clone(), *max_size, *max_files)?)
            }
        };
        Ok(Self { file, open: [Vec::new(), Vec::new()], batch: Vec::new(), failing: false })
    }

    /// Takes a piece of output. Whole lines are written at once, a rest is kept for later. What cannot be
    /// written (a full disk) is lost to the log, and said; the container goes on.
    pub(crate) fn take(&mut self, stream: Stream, mut bytes: &[u8]) {
        if self.file.is_none() {
            return;
        }
        let time = clock::rfc3339(clock::now());
        let open = &mut self.open[stream as usize];
        self.batch.clear();
        while let Some(end) = line_end(open.len(), bytes) {
            let (line, rest) = bytes.split_at(end);
            if open.is_empty() {
                entry(&mut self.batch, line, stream, &time);
            } else {
                open.extend_from_slice(line);
                entry(&mut self.batch, open, stream, &time);
                open.clear();
            }
            bytes = rest;
        }
        open.extend_from_slice(bytes);
        self.write_batch();
    }

    /// Writes what no line end followed. At the end of the stream.
    pub(crate) fn finish(&mut self) {
        let time = clock::rfc3339(clock::now());
        self.batch.clear();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let open = std::mem::take(&mut self.open[stream as usize]);
            if !open.is_empty() {
                entry(&mut self.batch, &open, stream, &time);
            }
        }
        self.write_batch();
    }

    fn write_batch(&mut self) {
        let Some(file) = &mut self.file else { return };
        if self.batch.is_empty() {
            return;
        }
        match file.append(&self.batch) {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !self.failing {
                    crate::report("output is lost to the log", &error);
                }
                self.failing = true;
            }
        }
    }

    /// Gives back the memory of a burst.
    pub(crate) fn trim(&mut self) {
        self.batch = Vec::new();
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

fn entry(out: &mut Vec<u8>, line: &[u8], stream: Stream, time: &str) {
    out.extend_from_slice(b"{\"log\":\"");
    escape(out, line);
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"\"}\n");
}

/// A JSON string, RFC 8259 section 7. Bytes that are not UTF-8 become U+FFFD, as in Docker's files.
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid().as_bytes();
        let mut clean = 0;
        for (at, byte) in valid.iter().enumerate() {
            let short = match byte {
                b'"' => b'"',
                b'\\' => b'\\',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                0..=0x1f => 0,
                _ => continue,
            };
            out.extend_from_slice(&valid[clean..at]);
            clean = at + 1;
            if short == 0 {
                out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
            } else {
                out.extend_from_slice(&[b'\\', short]);
            }
        }
        out.extend_from_slice(&valid[clean..]);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

#[derive(Debug)]
struct Rotated {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
    max_files: u32,
}

impl Rotated {
    fn open(path: PathBuf, max_size: u64, max_files: u32) -> Result<Self> {
        let file = append_to(&path)?;
        let size = file.metadata().context("fstat", path.display())?.len();
        Ok(Self { path, file, size, max_size, max_files: max_files.max(1) })
    }

    fn append(&mut self, batch: &[u8]) -> Result<()> {
        if self.max_size != 0 && self.size != 0 && self.size + batch.len() as u64 > self.max_size {
            self.rotate()?;
        }
        self.file.write_all(batch).context("write", self.path.display())?;
        self.size += batch.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> Result<()> {
        let numbered = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        for n in (1..self.max_files).rev() {
            let from = if n == 1 { self.path.clone() } else { numbered(n - 1) };
            match std::fs::rename(&from, numbered(n)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context("rename", from.display());
                }
                _ => {}
            }
        }
        if self.max_files == 1 {
            // Readers that follow keep the old file; a fresh one takes its name.
            std::fs::remove_file(&self.path).context("unlink", self.path.display())?;
        }
        self.file = append_to(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn append_to(path: &Path) -> Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path).context("open", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("insula-log-{}", insula_base::random_hex(6)));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn log(&self, max_size: u64, max_files: u32) -> Log {
            Log::open(&LogPlan::JsonFile { path: self.0.join("x.log"), max_size, max_files }).unwrap()
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
}
