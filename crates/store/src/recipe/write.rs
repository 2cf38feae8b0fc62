//! A recipe, written while the archive is read.

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::renameat;
use zstd::stream::write::Encoder;

use super::steps::{self, Step};
use super::{HEAD_BYTES, Head, PATH_BYTES_MAX, REPLACED, REPLACED_MAX, TAR};
use crate::{Error, Result};

/// Raw bytes that are gathered to one step.
const RAW_MAX: usize = 64 << 10;
/// Headers repeat themselves: the fastest level leaves a twentieth.
const LEVEL: i32 = 1;

/// Writes one recipe into a folder of its own.
pub(crate) struct Recorder {
    folder: PathBuf,
    /// Where the layer is unpacked, as the kernel names it.
    layer: PathBuf,
    out: Encoder<'static, BufWriter<File>>,
    raw: Vec<u8>,
    replaced: Option<File>,
    head: Head,
    /// What failed while nobody could be told.
    failed: Option<io::Error>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Begins a recipe in an empty folder, of a layer that is unpacked into another on the same file system.
    pub(crate) fn begin(folder: &Path, layer: BorrowedFd<'_>) -> Result<Self> {
        let path = folder.join(TAR);
        let fail = |e: io::Error| Error::io("write", &path, e);
        let mut file = File::create(&path).map_err(fail)?;
        file.write_all(&[0; HEAD_BYTES]).map_err(fail)?;
        let mut out = Encoder::new(BufWriter::new(file), LEVEL).map_err(fail)?;
        out.include_checksum(true).map_err(fail)?;
        Ok(Self {
            folder: folder.to_owned(),
            layer: real_path(layer)?,
            out,
            raw: Vec::with_capacity(RAW_MAX),
            replaced: None,
            head: Head { replaced: 0, length: 0, in_files: 0 },
            failed: None,
        })
    }

    /// Content of the file `name` comes next. `false`: it cannot be named, so its content is kept as it is.
    fn open(&mut self, folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
        let Some(path) = self.path(folder, name) else { return Ok(false) };
        self.flush_raw()?;
        steps::write(&mut self.out, &Step::Open(path)).map(|()| true)
    }

    /// The real path of what is in an open folder, from the root of the layer.
    fn path(&self, folder: BorrowedFd<'_>, name: &[u8]) -> Option<Vec<u8>> {
        let folder = real_path(folder).ok()?;
        let below = folder.strip_prefix(&self.layer).ok()?.as_os_str().as_bytes();
        let path = if below.is_empty() { name.to_vec() } else { [below, b"/", name].concat() };
        (path.len() <= PATH_BYTES_MAX).then_some(path)
    }

    fn raw(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.head.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(RAW_MAX - self.raw.len()));
            self.raw.extend_from_slice(now);
            bytes = rest;
            if self.raw.len() == RAW_MAX {
                self.flush_raw()?;
            }
        }
        Ok(())
    }

    fn flush_raw(&mut self) -> io::Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        steps::write(&mut self.out, &Step::Raw(self.raw.len() as u64))?;
        self.out.write_all(&self.raw)?;
        self.raw.clear();
        Ok(())
    }

    fn data(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.head.length += length;
        self.head.in_files += length;
        steps::write(&mut self.out, &Step::Data { offset, length })
    }

    /// Moves away what an entry is about to replace: the archive has its content all the same.
    fn keep(&mut self, folder: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let number = self.head.replaced;
        if number >= REPLACED_MAX {
            let what = "the number of entries that a layer replaces".to_owned();
            return Err(Error::Limit { what, limit: REPLACED_MAX.into() });
        }
        let path = self.folder.join(REPLACED);
        let Some(real) = self.path(folder, name) else {
            return Err(Error::Archive("it replaces a file whose path is too long".to_owned()));
        };
        let to = match self.replaced.take() {
            Some(to) => to,
            None => {
                crate::root::make_folder(&path, 0o700)?;
                File::open(&path).map_err(|e| Error::io("open", &path, e))?
            }
        };
        renameat(folder, name, &to, number.to_string()).map_err(|e| Error::io("rename", &path, e))?;
        self.replaced = Some(to);
        self.head.replaced += 1;
        let step = Step::Moved { number: number.into(), path: real };
        self.flush_raw()
            .and_then(|()| steps::write(&mut self.out, &step))
            .map_err(|e| Error::io("write", &self.folder, e))
    }

    /// Writes what is left, and the head.
    pub(crate) fn finish(mut self) -> Result<Head> {
        let path = self.folder.join(TAR);
        let fail = |e: io::Error| Error::io("write", &path, e);
        if let Some(error) = self.failed.take() {
            return Err(fail(error));
        }
        self.flush_raw().and_then(|()| steps::write_end(&mut self.out)).map_err(fail)?;
        let buffer = self.out.finish().map_err(fail)?;
        let file = buffer.into_inner().map_err(|e| fail(e.into_error()))?;
        file.write_all_at(&self.head.bytes(), 0).map_err(fail)?;
        Ok(self.head)
    }
}

/// Where an open folder is.
fn real_path(folder: BorrowedFd<'_>) -> Result<PathBuf> {
    let link = format!("/proc/self/fd/{}", folder.as_raw_fd());
    std::fs::read_link(&link).map_err(|e| Error::io("readlink", Path::new(&link), e))
}

/// A stream whose bytes are recorded as they are read: as they are, unless they are said to be in a file.
#[derive(Debug)]
pub(crate) struct Recording<R> {
    source: R,
    recorder: Option<Recorder>,
    /// What is read goes to a file that the recipe names.
    in_file: bool,
}

impl<R: BufRead> Recording<R> {
    pub(crate) fn new(source: R, recorder: Option<Recorder>) -> Self {
        Self { source, recorder, in_file: false }
    }

    /// The real path of what is in an open folder, from the root of the layer, where there is a recipe.
    pub(crate) fn path(&self, folder: BorrowedFd<'_>, name: &[u8]) -> Option<Vec<u8>> {
        self.recorder.as_ref()?.path(folder, name)
    }

    /// The content of a file follows, in these parts: offset and length.
    pub(crate) fn begin_file(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        parts: &[(u64, u64)],
    ) -> Result<()> {
        let Some(recorder) = &mut self.recorder else { return Ok(()) };
        let fail = |e: io::Error| Error::io("write", Path::new(TAR), e);
        let parts = || parts.iter().filter(|(_, length)| *length > 0);
        if parts().next().is_none() || !recorder.open(folder.as_fd(), name).map_err(fail)? {
            return Ok(());
        }
        for (offset, length) in parts() {
            recorder.data(*offset, *length).map_err(fail)?;
        }
        self.in_file = true;
        Ok(())
    }

    /// The content of the file was read.
    pub(crate) fn end_file(&mut self) {
        self.in_file = false;
    }

    /// To be called before something is removed for an entry that replaces it. Whether that is done thereby.
    pub(crate) fn keep_replaced(&mut self, folder: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
        match &mut self.recorder {
            Some(recorder) => recorder.keep(folder, name).map(|()| true),
            None => Ok(false),
        }
    }

    /// The recipe, when all was read.
    pub(crate) fn into_recorder(self) -> Option<Recorder> {
        self.recorder
    }

    fn record(&mut self, bytes: usize) {
        let Some(recorder) = self.recorder.as_mut().filter(|_| !self.in_file && bytes > 0) else { return };
        // The bytes were returned a moment ago and are still there.
        let result = self.source.fill_buf().and_then(|buffer| recorder.raw(&buffer[..bytes]));
        if let Err(error) = result {
            recorder.failed.get_or_insert(error);
        }
    }
}

impl<R: BufRead> Read for Recording<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.len().min(into.len());
        let bytes = self.source.fill_buf()?;
        into[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Recording<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.source.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.record(count);
        self.source.consume(count);
    }
}
