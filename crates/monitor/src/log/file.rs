//! Records in files: Docker's json-file, one object a line with `log`, `stream`, `attrs` and `time`, and
//! Docker's local, see [`insula_proto::LogEntry`].

use insula_proto::{LogEntry, PartialLogEntry};

use super::rotated::Rotated;
use super::{Load, Moment, Record, Stream};

#[derive(Debug)]
pub(super) struct LogFile {
    format: Format,
    file: Rotated,
    /// Records being put together, kept to reuse its memory.
    batch: Vec<u8>,
    /// Of the driver local, kept to reuse its memory too.
    entry: Box<LogEntry>,
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
        Self { format, file, batch: Vec::new(), entry: Box::default(), failing: false }
    }

    pub(super) fn record(&mut self, record: &Record<'_>, moment: &Moment) {
        match &self.format {
            Format::Json { attributes } => json(&mut self.batch, record, attributes, moment),
            Format::Local => local(&mut self.batch, &mut self.entry, record, moment.nanoseconds),
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

    pub(super) fn work(&mut self, load: Load) -> bool {
        match load {
            Load::Busy => self.file.has_work(),
            Load::Idle => self.file.work(),
        }
    }

    pub(super) fn trim(&mut self) {
        (self.batch, self.entry) = (Vec::new(), Box::default());
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

fn local(out: &mut Vec<u8>, entry: &mut LogEntry, record: &Record<'_>, time_nano: i64) {
    name(record.stream).clone_into(&mut entry.source);
    entry.time_nano = time_nano;
    entry.line.clear();
    entry.line.extend_from_slice(record.line.strip_suffix(b"\n").unwrap_or(record.line));
    entry.partial_log_metadata = record.part.map(|part| PartialLogEntry {
        last: part.last,
        id: part.id.to_owned(),
        ordinal: part.ordinal,
    });
    entry.partial = entry.partial_log_metadata.is_some();
    entry.append_to(out);
}

/// Whether a byte stands for itself in a JSON string.
const fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

/// How many bytes at the beginning stand for themselves. Most of what is written are lines of plain text, which
/// are looked at eight bytes at a time.
fn plain(bytes: &[u8]) -> usize {
    const fn every(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    const TOPS: u64 = every(0x80);
    // Whether a byte of a word is 0, and whether one is less than 0x20: both may say so of a byte above one that
    // is, and never of none.
    let zero = |word: u64| word.wrapping_sub(every(1)) & !word & TOPS;
    let control = |word: u64| word.wrapping_sub(every(0x20)) & !word & TOPS;
    let (words, _) = bytes.as_chunks::<8>();
    let whole = words.iter().take_while(|word| {
        let word = u64::from_ne_bytes(**word);
        (control(word) | zero(word ^ every(b'"')) | zero(word ^ every(b'\\'))) == 0
    });
    let whole = whole.count() * 8;
    whole + bytes[whole..].iter().take_while(|byte| is_plain(**byte)).count()
}

/// A JSON string, RFC 8259 section 7. Bytes that are not UTF-8 become U+FFFD, as in Docker's files.
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return escape_text(out, text);
    }
    for chunk in bytes.utf8_chunks() {
        escape_text(out, chunk.valid());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn escape_text(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    loop {
        let (stands, behind) = rest.split_at(plain(rest));
        out.extend_from_slice(stands);
        let Some((byte, left)) = behind.split_first() else { return };
        match byte {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            byte => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
        rest = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_reads_back_from_json() {
        let every: String = (0..0x180).filter_map(char::from_u32).collect();
        for from in (0..every.len()).filter(|at| every.is_char_boundary(*at)) {
            // Each character comes at every place of a word, with plain text before and behind it.
            for text in [&every[from..], &format!("plain text {} and more", &every[from..])] {
                let mut out = b"\"".to_vec();
                escape(&mut out, text.as_bytes());
                out.push(b'"');
                assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
            }
        }
        let mut out = Vec::new();
        escape(&mut out, b"abcdefgh\xffij\n");
        assert_eq!(out, "abcdefgh\u{fffd}ij\\n".as_bytes());
    }
}
