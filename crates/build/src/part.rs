//! Archives in front of the context: those of folders that came along.
//!
//! ```text
//! for each folder, in the order of their names:   chunk … chunk, an empty one
//! then:                                           the context
//!
//! chunk:   bytes in it, big endian, 4 bytes │ the bytes
//! ```

use std::io::{self, BufWriter, Read, Write};

/// Bytes of a chunk.
const CHUNK_MAX: usize = 1 << 20;
/// Bytes of one that is written.
const CHUNK: usize = 256 << 10;

/// One archive of several on its way out: chunks with their lengths in front.
#[derive(Debug)]
pub struct Framed<W: Write>(BufWriter<Chunks<W>>);

impl<W: Write> Framed<W> {
    /// Where others may stand before it, and behind.
    pub fn new(sink: W) -> Self {
        Self(BufWriter::with_capacity(CHUNK, Chunks(sink)))
    }

    /// Writes the end. Dropped without it, the archive is cut.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn finish(self) -> io::Result<()> {
        let Chunks(mut sink) = self.0.into_inner().map_err(io::IntoInnerError::into_error)?;
        sink.write_all(&[0; 4])
    }
}

impl<W: Write> Write for Framed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[derive(Debug)]
struct Chunks<W: Write>(W);

impl<W: Write> Write for Chunks<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK);
        if count > 0 {
            self.0.write_all(&(count as u32).to_be_bytes())?;
            self.0.write_all(&bytes[..count])?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// One archive of several.
#[derive(Debug)]
pub struct Part<'a, R> {
    source: &'a mut R,
    left: usize,
    ended: bool,
}

impl<'a, R: Read> Part<'a, R> {
    /// The archive that comes next.
    pub fn new(source: &'a mut R) -> Self {
        Self { source, left: 0, ended: false }
    }

    /// Reads what nobody wanted of it, so that the next one follows.
    ///
    /// # Errors
    /// When the input ends before.
    pub fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink()).map(drop)
    }

    fn begin(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        self.source.read_exact(&mut length)?;
        self.left = u32::from_be_bytes(length) as usize;
        self.ended = self.left == 0;
        if self.left > CHUNK_MAX {
            let why = format!("a chunk of a folder has {} bytes, more than {CHUNK_MAX}", self.left);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(())
    }
}

impl<R: Read> Read for Part<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended && !into.is_empty() {
            self.begin()?;
        }
        let room = self.left.min(into.len());
        if room == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut into[..room])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_framed_is_read_again() {
        let long = vec![7; CHUNK + 3];
        let mut framed_bytes = Vec::new();
        for part in [&long[..], b"", b"x"] {
            let mut framed = Framed::new(&mut framed_bytes);
            framed.write_all(part).unwrap();
            framed.finish().unwrap();
        }
        let mut source = &framed_bytes[..];
        for part in [&long[..], b"", b"x"] {
            let mut read = Vec::new();
            Part::new(&mut source).read_to_end(&mut read).unwrap();
            assert!(read == part);
        }
        assert!(source.is_empty());
    }

    #[test]
    fn parts_end_where_they_say() {
        let bytes = b"\0\0\0\x02ab\0\0\0\x01c\0\0\0\0\0\0\0\x01d\0\0\0\0rest";
        let mut source = &bytes[..];
        let mut part = Part::new(&mut source);
        let mut text = [0; 1];
        part.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"a");
        part.finish().unwrap();
        let mut text = String::new();
        Part::new(&mut source).read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), source), ("d", &b"rest"[..]));
        for wrong in [&b"\0\0\0\x02a"[..], b"\0\0", b"\xff\0\0\0a", b""] {
            assert!(Part::new(&mut &wrong[..]).finish().is_err(), "{wrong:?}");
        }
    }
}
