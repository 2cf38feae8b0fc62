//! The steps of a recipe, as bytes.

use std::io::{self, BufRead, Write};

use super::PATH_BYTES_MAX;

const END: u8 = 0;
const RAW: u8 = 1;
const OPEN: u8 = 2;
const DATA: u8 = 3;
const MOVED: u8 = 4;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// So many bytes of the recipe come next, as they are.
    Raw(u64),
    /// A file of the layer.
    Open(Vec<u8>),
    /// Bytes of the opened file.
    Data { offset: u64, length: u64 },
    /// What was at the path until now is in the folder of what was replaced.
    Moved { number: u64, path: Vec<u8> },
}

/// Reads steps. Bytes of [`Step::Raw`] are to be taken from [`Steps::source`] before the next one;
/// the reader skips what was not.
#[derive(Debug)]
pub struct Steps<R> {
    source: R,
    raw: u64,
}

impl<R: BufRead> Steps<R> {
    pub fn new(source: R) -> Self {
        Self { source, raw: 0 }
    }

    /// The next step, `None` at the end.
    pub fn step(&mut self) -> io::Result<Option<Step>> {
        while self.raw > 0 {
            let count = self.raw_bytes()?.len();
            self.consume(count);
        }
        let mut tag = [0];
        self.source.read_exact(&mut tag)?;
        Ok(Some(match tag[0] {
            END => return Ok(None),
            RAW => {
                self.raw = self.number()?;
                Step::Raw(self.raw)
            }
            OPEN => Step::Open(self.path()?),
            DATA => Step::Data { offset: self.number()?, length: self.number()? },
            MOVED => Step::Moved { number: self.number()?, path: self.path()? },
            _ => return Err(damaged("it has a step that is not known")),
        }))
    }

    /// Bytes of the current [`Step::Raw`]; empty when all were taken.
    pub fn raw_bytes(&mut self) -> io::Result<&[u8]> {
        if self.raw == 0 {
            return Ok(&[]);
        }
        let bytes = self.source.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = bytes.len().min(usize::try_from(self.raw).unwrap_or(usize::MAX));
        Ok(&bytes[..count])
    }

    /// Takes bytes that [`Steps::raw_bytes`] returned.
    pub fn consume(&mut self, count: usize) {
        self.source.consume(count);
        self.raw = self.raw.saturating_sub(count as u64);
    }

    fn number(&mut self) -> io::Result<u64> {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let mut byte = [0];
            self.source.read_exact(&mut byte)?;
            let part = u64::from(byte[0] & 0x7f);
            if shift > 63 || (shift == 63 && part > 1) {
                return Err(damaged("it has a number that is too large"));
            }
            value |= part << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
            shift += 7;
        }
    }

    fn path(&mut self) -> io::Result<Vec<u8>> {
        let length = self.number()?;
        let length = usize::try_from(length).ok().filter(|length| *length <= PATH_BYTES_MAX);
        let mut path = vec![0; length.ok_or_else(|| damaged("it has a path that is too long"))?];
        self.source.read_exact(&mut path)?;
        Ok(path)
    }
}

/// Writes one step; the bytes of [`Step::Raw`] are the caller's to write.
pub(super) fn write(out: &mut impl Write, step: &Step) -> io::Result<()> {
    match step {
        Step::Raw(length) => {
            out.write_all(&[RAW])?;
            write_number(out, *length)
        }
        Step::Open(path) => {
            out.write_all(&[OPEN])?;
            write_path(out, path)
        }
        Step::Data { offset, length } => {
            out.write_all(&[DATA])?;
            write_number(out, *offset)?;
            write_number(out, *length)
        }
        Step::Moved { number, path } => {
            out.write_all(&[MOVED])?;
            write_number(out, *number)?;
            write_path(out, path)
        }
    }
}

pub(super) fn write_end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[END])
}

fn write_path(out: &mut impl Write, path: &[u8]) -> io::Result<()> {
    write_number(out, path.len() as u64)?;
    out.write_all(path)
}

fn write_number(out: &mut impl Write, mut value: u64) -> io::Result<()> {
    let mut bytes = [0; 10];
    let mut count = 0;
    loop {
        bytes[count] = (value & 0x7f) as u8 | if value > 0x7f { 0x80 } else { 0 };
        count += 1;
        value >>= 7;
        if value == 0 {
            return out.write_all(&bytes[..count]);
        }
    }
}

fn damaged(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
