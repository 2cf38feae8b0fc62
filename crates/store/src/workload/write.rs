//! From containers to a file.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write};

use insula_base::Digest;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType};

use super::{DOCUMENT, STATE, SUM, Spooled};
use crate::images::save::{append, header, put};
use crate::{Error, Result, Store};

/// Writable layers and volumes, by digest: those that are the same are there once.
pub type State = BTreeMap<Digest, Spooled>;

impl Store {
    /// Writes a workload: `document`, the images by names or ids less the layers in `without`, and the state.
    pub fn write_workload(
        &self,
        document: &[u8],
        (images, without): (&[String], &BTreeSet<Digest>),
        state: &State,
        out: impl Write,
    ) -> Result<()> {
        let mut tar = Builder::new(Summing { out, hash: Sha256::new() });
        put(&mut tar, DOCUMENT, document)?;
        self.images().write_images(images, without, &mut tar)?;
        for (digest, part) in state {
            let name = format!("{STATE}{}.tar", digest.hex());
            let content = part.open()?.take(part.size());
            append(&mut tar, header(EntryType::Regular, 0o644, part.size()), &name, content)?;
        }
        let mut header = header(EntryType::Regular, 0o644, SUM_SIZE);
        header.as_old_mut().name[..SUM.len()].copy_from_slice(SUM.as_bytes());
        header.set_cksum();
        // The header of what holds the sum is part of it.
        let hash = tar.get_ref().hash.clone().chain_update(header.as_bytes());
        let sum = Digest::from_sha256(&hash.finalize().into());
        tar.append(&header, format!("{}\n", sum.hex()).as_bytes()).map_err(Error::Output)?;
        tar.finish().map_err(Error::Output)
    }
}

/// Sixty-four digits and a newline.
pub(super) const SUM_SIZE: u64 = 65;

struct Summing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
