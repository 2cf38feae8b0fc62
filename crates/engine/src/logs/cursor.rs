//! The records of one file, from a place on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use flate2::read::GzDecoder;
use insula_proto::LogEntry;
use jiff::Timestamp;
use serde::Deserialize;

use super::file::{LogFormat, LogLine, Stream};
use super::tail::Start;

/// Bytes read at once.
pub(super) const BLOCK: usize = 64 << 10;
/// A longer line is no record of ours: the monitor splits output after 16 KiB, which JSON's escapes
/// make six times longer at most.
pub(super) const LINE_MAX: usize = 1 << 20;

/// Where bytes come from.
#[derive(Debug)]
pub(super) enum Source {
    Plain {
        file: File,
        /// Where the next block is read from.
        offset: u64,
        /// What comes behind it is not wanted.
        end: Option<u64>,
    },
    /// Complete; nothing is added to it.
    Compressed(Box<GzDecoder<File>>),
}

#[derive(Debug)]
pub(super) struct Cursor {
    source: Source,
    format: LogFormat,
    /// Records to pass over.
    skip: u64,
    buffer: Vec<u8>,
    /// Bytes at the beginning of the buffer that were given out.
    used: usize,
    /// In the middle of a line that is too long.
    skipping: bool,
    /// Where the next record begins is not known any more.
    damaged: bool,
}

impl Cursor {
    pub(super) fn at(mut source: Source, format: LogFormat, start: Start) -> Self {
        if let Source::Plain { offset, .. } = &mut source {
            *offset = start.offset;
        }
        let (buffer, skip) = (Vec::new(), start.skip);
        Self { source, format, skip, buffer, used: 0, skipping: false, damaged: false }
    }

    /// Bytes of memory.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.buffer.capacity()
    }

    pub(super) fn has_more(&self) -> bool {
        match &self.source {
            Source::Plain { file, offset, .. } => {
                !self.damaged && file.metadata().is_ok_and(|meta| meta.len() > *offset)
            }
            Source::Compressed(_) => false,
        }
    }

    /// The next complete record; `None` at the end of what is there.
    pub(super) fn record(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            let record = match self.format {
                LogFormat::Json => match self.line()? {
                    None => return Ok(None),
                    Some(line) => parse(line),
                },
                LogFormat::Local => match self.entry()? {
                    None => return Ok(None),
                    Some(entry) => line_of(entry),
                },
            };
            if self.skip > 0 {
                self.skip -= 1;
            } else if record.is_some() {
                return Ok(record);
            }
        }
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
            if self.buffer.len() - self.used > LINE_MAX {
                self.used = self.buffer.len();
                self.skipping = true;
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// The next complete message.
    fn entry(&mut self) -> io::Result<Option<LogEntry>> {
        while !self.damaged {
            match LogEntry::split_from(&self.buffer[self.used..]) {
                Ok(Some((entry, used))) => {
                    self.used += used;
                    return Ok(Some(entry));
                }
                Ok(None) if self.fill()? => {}
                Ok(None) => return Ok(None),
                Err(insula_proto::Damaged) => self.damaged = true,
            }
        }
        Ok(None)
    }

    /// Reads on; whether there was more.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let held = self.buffer.len();
        self.buffer.resize(held + BLOCK, 0);
        let read = match &mut self.source {
            Source::Plain { file, offset, end } => {
                let wanted = end.map_or(BLOCK as u64, |end| end.saturating_sub(*offset)).min(BLOCK as u64);
                // No more than a block.
                read_at(file, &mut self.buffer[held..held + wanted as usize], *offset)
            }
            Source::Compressed(decoder) => decoder.read(&mut self.buffer[held..]),
        };
        let count = *read.as_ref().unwrap_or(&0);
        self.buffer.truncate(held + count);
        read?;
        if let Source::Plain { file, offset, end } = &mut self.source {
            if count == 0 && end.is_none() && file.metadata()?.len() < *offset {
                // Emptied in place, as a log of a single file may be.
                (*offset, self.skipping) = (0, false);
                self.buffer.clear();
                return Ok(true);
            }
            *offset += count as u64;
        }
        Ok(count > 0)
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

fn stream(name: &str) -> Option<Stream> {
    match name {
        "stdout" => Some(Stream::Stdout),
        "stderr" => Some(Stream::Stderr),
        _ => None,
    }
}

fn parse(line: &[u8]) -> Option<LogLine> {
    #[derive(Deserialize)]
    struct Record {
        log: String,
        stream: String,
        time: Timestamp,
        #[serde(default)]
        attrs: BTreeMap<String, String>,
    }
    let record: Record = serde_json::from_slice(line).ok()?;
    Some(LogLine {
        stream: stream(&record.stream)?,
        time: record.time,
        bytes: record.log.into_bytes(),
        attributes: record.attrs,
    })
}

fn line_of(entry: LogEntry) -> Option<LogLine> {
    let goes_on = entry.partial && !entry.partial_log_metadata.is_some_and(|part| part.last);
    let mut bytes = entry.line;
    if !goes_on {
        bytes.push(b'\n');
    }
    Some(LogLine {
        stream: stream(&entry.source)?,
        time: Timestamp::from_nanosecond(entry.time_nano.into()).ok()?,
        bytes,
        attributes: BTreeMap::new(),
    })
}
