//! A file that is rotated by size: `x.log`, `x.log.1`, … with the newest having the smallest number.
//! Those with a number may be compressed, `x.log.1.gz`, a piece at a time between other work.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};

use crate::error::{Context, Result};

/// Bytes that are compressed at once: some milliseconds.
const PIECE: usize = 128 << 10;

#[derive(Debug)]
pub(crate) struct Rotated {
    path: PathBuf,
    file: File,
    size: u64,
    limits: Limits,
    compressing: Option<Compressing>,
}

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes after which the file is rotated; 0 is never.
    pub(crate) max_size: u64,
    pub(crate) max_files: u32,
    pub(crate) compress: bool,
}

/// A file with a number, on its way to its compressed form.
#[derive(Debug)]
struct Compressing {
    /// Where it is now: it may be rotated meanwhile.
    number: u32,
    source: File,
    sink: GzEncoder<File>,
}

impl Rotated {
    /// Bytes that are to be appended at once at most: many of them fit into a file.
    pub(crate) fn portion(&self) -> usize {
        const MOST: u64 = 128 << 10;
        match self.limits.max_size {
            0 => MOST as usize,
            size => (size / 4).min(MOST) as usize,
        }
    }

    pub(crate) fn open(path: PathBuf, limits: Limits) -> Result<Self> {
        let file = append_to(&path)?;
        let size = file.metadata().context("fstat", path.display())?.len();
        let limits = Limits { max_files: limits.max_files.max(1), ..limits };
        let mut rotated = Self { path, file, size, limits, compressing: None };
        rotated.tidy();
        rotated.begin()?;
        Ok(rotated)
    }

    /// Appends whole records. What could be written only in part is taken back, since what follows would
    /// have no beginning.
    pub(crate) fn append(&mut self, batch: &[u8]) -> Result<()> {
        if self.limits.max_size != 0
            && self.size != 0
            && self.size + batch.len() as u64 > self.limits.max_size
        {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(batch) {
            let _ = self.file.set_len(self.size);
            return Err(error).context("write", self.path.display());
        }
        self.size += batch.len() as u64;
        Ok(())
    }

    /// Whether something is left to do.
    pub(crate) fn has_work(&self) -> bool {
        self.compressing.is_some()
    }

    /// Does a piece of what is left to do; whether there is more.
    pub(crate) fn work(&mut self) -> bool {
        let Some(compressing) = &mut self.compressing else { return false };
        match compressing.step() {
            Ok(false) => return true,
            // The next one, if there is one.
            Ok(true) => match self.complete().and_then(|()| self.begin()) {
                Ok(()) => return self.compressing.is_some(),
                Err(error) => crate::report("compressing a log", &error),
            },
            Err(error) => crate::report("compressing a log", &error),
        }
        // It stays as it is.
        self.abandon();
        false
    }

    fn rotate(&mut self) -> Result<()> {
        let last = self.limits.max_files - 1;
        if let Some(compressing) = &mut self.compressing {
            compressing.number += 1;
            if compressing.number > last {
                self.abandon();
            }
        }
        for form in [Form::Plain, Form::Compressed] {
            if last > 0 {
                gone(&self.numbered(last, form))?;
            }
            for n in (1..=last).rev() {
                let from = self.numbered(n - 1, form);
                match std::fs::rename(&from, self.numbered(n, form)) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(error).context("rename", from.display());
                    }
                    _ => {}
                }
            }
        }
        if last == 0 {
            // Readers that follow keep the old file; a fresh one takes its name.
            gone(&self.path)?;
        }
        self.file = append_to(&self.path)?;
        self.size = 0;
        self.begin()
    }

    /// Begins with the newest file that is to be compressed, unless one is on its way.
    fn begin(&mut self) -> Result<()> {
        if !self.limits.compress || self.compressing.is_some() {
            return Ok(());
        }
        let plain = (1..self.limits.max_files).find(|n| self.numbered(*n, Form::Plain).exists());
        let Some(number) = plain else { return Ok(()) };
        let from = self.numbered(number, Form::Plain);
        let source = File::open(&from).context("open", from.display())?;
        // Readers know by it which file they were reading.
        let noted = insula_proto::RotatedFrom::of(&source.metadata().context("fstat", from.display())?);
        let to = self.unfinished();
        let sink = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&to);
        let sink = sink.context("open", to.display())?;
        let sink = GzBuilder::new().extra(noted.to_bytes()).write(sink, Compression::fast());
        self.compressing = Some(Compressing { number, source, sink });
        Ok(())
    }

    fn complete(&mut self) -> Result<()> {
        let Some(compressing) = self.compressing.take() else { return Ok(()) };
        let number = compressing.number;
        let (from, to) = (self.unfinished(), self.numbered(number, Form::Compressed));
        compressing.sink.finish().context("write", from.display())?;
        std::fs::rename(&from, &to).context("rename", from.display())?;
        gone(&self.numbered(number, Form::Plain))
    }

    /// Leaves the file as it is.
    fn abandon(&mut self) {
        self.compressing = None;
        let _ = std::fs::remove_file(self.unfinished());
    }

    /// After a monitor that was killed: a file that is there in both forms is complete in the compressed one.
    fn tidy(&self) {
        let _ = std::fs::remove_file(self.unfinished());
        for n in 1..self.limits.max_files {
            if self.numbered(n, Form::Compressed).exists() {
                let _ = std::fs::remove_file(self.numbered(n, Form::Plain));
            }
        }
    }

    fn unfinished(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".gz.tmp");
        PathBuf::from(name)
    }

    fn numbered(&self, n: u32, form: Form) -> PathBuf {
        let end = match form {
            Form::Plain => "",
            Form::Compressed => ".gz",
        };
        let mut name = self.path.clone().into_os_string();
        if n == 0 {
            // The current file is never compressed: there is no such name.
            name.push(end);
        } else {
            name.push(format!(".{n}{end}"));
        }
        PathBuf::from(name)
    }
}

impl Drop for Rotated {
    fn drop(&mut self) {
        if self.compressing.is_some() {
            self.abandon();
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Form {
    Plain,
    Compressed,
}

impl Compressing {
    /// Whether all of it is done.
    fn step(&mut self) -> Result<bool> {
        let mut piece = vec![0; PIECE];
        let count = self.source.read(&mut piece).context("read", "a rotated log")?;
        self.sink.write_all(&piece[..count]).context("write", "a compressed log")?;
        Ok(count == 0)
    }
}

fn gone(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("unlink", path.display()),
        _ => Ok(()),
    }
}

fn append_to(path: &Path) -> Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path).context("open", path.display())
}
