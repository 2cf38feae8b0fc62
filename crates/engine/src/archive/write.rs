//! From a tar into a tree.

use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use insula_base::thread;
use insula_store::layers::{IsFolder, Limits, Onto, Whiteouts, unpack_onto};
use rustix::io::Errno;

use super::WriteOptions;
use crate::tree::{Last, Place, Tree};
use crate::{Error, Result};

/// Unpacks `archive` into the folder at `place`.
pub(super) fn unpack(
    tree: &Tree,
    place: &mut Place,
    archive: impl BufRead + Send,
    options: WriteOptions,
) -> Result<()> {
    let folder = writable(tree, place)?;
    let source = decompressed(archive)?;
    let root = place.path.clone();
    let is_folder = |path: &Path| {
        let there = tree.resolve(&root.join(path), Last::Keep).ok()?;
        if there.dir().is_some() { Some(true) } else { there.entry.map(|_| false) }
    };
    let first_id = tree.first_id();
    // A running container's folders are merged as they are.
    let is_folder: Option<&IsFolder<'_>> = if tree.is_merged() { Some(&is_folder) } else { None };
    let onto = Onto { first_id, keep_kinds: options.keep_kinds, is_folder };
    if first_id == 0 {
        return extract(source, folder.as_fd(), onto);
    }
    // A thread of its own: it takes the ids of the container's root and never gives them back.
    std::thread::scope(|scope| {
        let work = thread::scoped(scope, "unpack", || {
            insula_sys::fsid::make_files_as(first_id, first_id)
                .map_err(|error| Error::io("act as the container's root on", &place.path, error))?;
            extract(source, folder.as_fd(), onto)
        })
        .map_err(Error::Thread)?;
        work.join().unwrap_or_else(|_| Err(Error::Internal("the unpacking thread ended".to_owned())))
    })
}

fn extract(source: Box<dyn BufRead + Send + '_>, folder: BorrowedFd<'_>, onto: Onto<'_>) -> Result<()> {
    unpack_onto(source, folder, &Limits::default(), Whiteouts::Ordinary, onto)?;
    Ok(())
}

/// The folder to write in: that of the writable layer, copied up where it is the image's.
fn writable(tree: &Tree, place: &mut Place) -> Result<OwnedFd> {
    let fail = |error: Errno, path: &Path| Error::io("copy up", path, error);
    let path = place.path.clone();
    tree.copy_up(place).map_err(|error| fail(error, &path))?;
    let folder = place.dir().and_then(|dir| dir.upper()).ok_or_else(|| fail(Errno::NOENT, &path))?;
    rustix::io::fcntl_dupfd_cloexec(folder, 0).map_err(|error| fail(error, &path))
}

/// Plain, gzip, zstd, xz or bzip2, told by the first bytes.
pub(crate) fn decompressed<'a>(source: impl BufRead + Send + 'a) -> Result<Box<dyn BufRead + Send + 'a>> {
    insula_store::decompressed(source)
        .map_err(|error| Error::InvalidArgument(format!("reading the archive: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn archives_are_told_by_their_first_bytes() {
        let text = b"what is in it, again and again ".repeat(1000);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&text).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let zstd = zstd::encode_all(&text[..], 1).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&text).unwrap();
        let bzip2 = bzip2.finish().unwrap();
        let twice = |packed: &[u8]| [packed, packed].concat();
        let mut plain = Vec::new();
        decompressed(&twice(&bzip2)[..]).unwrap().read_to_end(&mut plain).unwrap();
        assert_eq!(plain.len(), 2 * text.len(), "one after another, as gzip's");
        for packed in [text.clone(), xz.finish().unwrap(), gzip.finish().unwrap(), zstd, bzip2] {
            let mut plain = Vec::new();
            decompressed(&packed[..]).unwrap().read_to_end(&mut plain).unwrap();
            assert!(plain == text);
        }
        let mut plain = Vec::new();
        assert!(decompressed(&b"BZh91AY&SY...."[..]).unwrap().read_to_end(&mut plain).is_err());
        assert!(decompressed(&b"BZh is no magic"[..]).is_ok());
    }
}
