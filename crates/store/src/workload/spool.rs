//! Archives that are made before they are sent, since their digest and length come first.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use insula_base::Digest;
use sha2::{Digest as _, Sha256};

use crate::content::Incoming;
use crate::{Content, Error, Result, Store};

/// Bytes that are written at a time.
const BUFFER: usize = 256 << 10;

/// A file of the store's that nobody else knows. Dropped, it is gone; what a crash leaves is swept at the next
/// open.
#[derive(Debug)]
pub struct Spooled {
    incoming: Incoming,
    digest: Digest,
    size: u64,
}

impl Spooled {
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn path(&self) -> &Path {
        self.incoming.path()
    }

    pub(super) fn open(&self) -> Result<File> {
        File::open(self.path()).map_err(|e| Error::io("open", self.path(), e))
    }
}

impl Store {
    /// Keeps what `write` writes.
    pub fn spool(&self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Spooled> {
        spool(self.content(), write)
    }
}

pub(super) fn spool(content: &Content, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Spooled> {
    let sink = Sink { incoming: content.begin()?, hash: Sha256::new(), size: 0 };
    let mut out = BufWriter::with_capacity(BUFFER, sink);
    write(&mut out)?;
    let sink = out.into_inner().map_err(|error| Error::Output(error.into_error()))?;
    let digest = Digest::from_sha256(&sink.hash.finalize().into());
    Ok(Spooled { incoming: sink.incoming, digest, size: sink.size })
}

/// Keeps a stream as it comes.
pub(super) fn take_in(content: &Content, mut input: impl Read) -> Result<Spooled> {
    spool(content, |out| {
        let mut buffer = vec![0; BUFFER];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => out.write_all(&buffer[..count]).map_err(Error::Output)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Input(error)),
            }
        }
    })
}

struct Sink {
    incoming: Incoming,
    hash: Sha256,
    size: u64,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.incoming.write(bytes).map_err(|error| match error {
            Error::Io { source, .. } => source,
            error => io::Error::other(error),
        })?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
