//! Records in files: Docker's json-file, one object a line with `log`, `stream`, `attrs` and `time`, and
//! Docker's local, see [`insula_proto::LogEntry`].

use insula_proto::{LogEntry, PartialLogEntry};

use super::rotated::Rotated;
use super::{Moment, Record, Stream};

#[derive(Debug)]
pub(super) struct LogFile {
    format: Format,
    file: Rotated,
    /// Records being put together, kept to reuse its memory.
    batch: Vec<u8>,
    /// The last write failed: said once, not for every line.
    failing: bool,
}

#[derive(Debug)]
pub(super) enum Format {
    /// With `,"attrs":{…}` of every record, or nothing.
    Json {
        attributes: Vec<u8>,
    },
    Local,
}

impl Format {
    pub(super) fn json(attributes: &std::collections::BTreeMap<String, String>) -> Self {
        let mut text = Vec::new();
        for (name, value) in attributes {
            text.extend_from_slice(if text.is_empty() { b",\"attrs\":{\"" } else { b"\",\"" });
            escape(&mut text, name.as_bytes());
            text.extend_from_slice(b"\":\"");
            escape(&mut text, value.as_bytes());
        }
        if !text.is_empty() {
            text.extend_from_slice(b"\"}");
        }
        Self::Json { attributes: text }
    }
}

impl LogFile {
    pub(super) fn new(format: Format, file: Rotated) -> Self {
        Self { format, file, batch: Vec::new(), failing: false }
    }

    pub(super) fn record(&mut self, record: &Record<'_>, moment: &Moment) {
        match &self.format {
            Format::Json { attributes } => json(&mut self.batch, record, attributes, moment),
            Format::Local => local(&mut self.batch, record, moment.nanoseconds),
        }
        if self.batch.len() >= self.file.portion() {
            self.flush();
        }
    }

    /// Writes the records. What cannot be written (a full disk) is lost to the log, and said; the container
    /// goes on.
    pub(super) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match self.file.append(&self.batch) {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !self.failing {
                    crate::report("output is lost to the log", &error);
                }
                self.failing = true;
            }
        }
        self.batch.clear();
    }

    pub(super) fn work(&mut self) -> bool {
        self.file.work()
    }

    pub(super) fn trim(&mut self) {
        self.batch = Vec::new();
    }
}

fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

fn json(out: &mut Vec<u8>, record: &Record<'_>, attributes: &[u8], moment: &Moment) {
    out.extend_from_slice(b"{\"log\":\"");
    escape(out, record.line);
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(name(record.stream).as_bytes());
    out.push(b'"');
    out.extend_from_slice(attributes);
    out.extend_from_slice(b",\"time\":\"");
    moment.append_to(out);
    out.extend_from_slice(b"\"}\n");
}

fn local(out: &mut Vec<u8>, record: &Record<'_>, time_nano: i64) {
    let metadata = record.part.map(|part| PartialLogEntry {
        last: part.last,
        id: part.id.to_owned(),
        ordinal: part.ordinal,
    });
    let entry = LogEntry {
        source: name(record.stream).to_owned(),
        time_nano,
        line: record.line.strip_suffix(b"\n").unwrap_or(record.line).to_vec(),
        partial: metadata.is_some(),
        partial_log_metadata: metadata,
    };
    entry.append_to(out);
}

/// Bytes that stand for themselves in a JSON string.
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        plain[byte] = false;
        byte += 1;
    }
    plain[b'"' as usize] = false;
    plain[b'\\' as usize] = false;
    plain
};

/// A JSON string, RFC 8259 section 7. Bytes that are not UTF-8 become U+FFFD, as in Docker's files.
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        let mut rest = chunk.valid().as_bytes();
        while let Some(at) = rest.iter().position(|byte| !PLAIN[usize::from(*byte)]) {
            out.extend_from_slice(&rest[..at]);
            match rest[at] {
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
                byte => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            }
            rest = &rest[at + 1..];
        }
        out.extend_from_slice(rest);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}
