//! An archive, made again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use zstd::stream::read::Decoder;

use super::steps::{Step, Steps};
use super::{HEAD_BYTES, REPLACED, TAR, read_head};
use crate::{Error, Result};

type Source = BufReader<Decoder<'static, BufReader<File>>>;

/// Path of what was replaced → how many files were opened before, and its number; ascending.
type Moved = HashMap<Vec<u8>, Vec<(u64, u64)>>;

/// Bytes of a file that are read ahead of who wants them in small pieces.
const AHEAD: usize = 128 << 10;

/// An archive as it came, without compression.
pub struct Replay {
    path: PathBuf,
    steps: Steps<Source>,
    length: u64,
    layer: File,
    replaced: Option<File>,
    moved: Moved,
    opened: u64,
    file: Option<File>,
    at: At,
}

/// What the next bytes come from.
#[derive(Debug, Clone, Copy)]
enum At {
    Step,
    Raw,
    Data { offset: u64, left: u64 },
    End,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Replay {
    /// Opens a recipe, and the folder that its layer is unpacked in.
    pub fn open(recipe: &Path, layer: &Path) -> Result<Self> {
        let path = recipe.join(TAR);
        let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        let head = read_head(&path, &file)?;
        let mut replay = Self {
            steps: steps(&path, &file)?,
            length: head.length,
            layer: File::open(layer).map_err(|e| Error::io("open", layer, e))?,
            replaced: None,
            moved: HashMap::new(),
            opened: 0,
            file: None,
            at: At::Step,
            path,
        };
        if head.replaced > 0 {
            let folder = recipe.join(REPLACED);
            replay.replaced = Some(File::open(&folder).map_err(|e| Error::io("open", &folder, e))?);
            replay.moved = moves(steps(&replay.path, &file)?, head.replaced)
                .map_err(|e| Error::io("read", &replay.path, e))?;
            // The steps share one place in the file.
            replay.steps = steps(&replay.path, &file)?;
        }
        Ok(replay)
    }

    /// Bytes of the whole archive.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    fn advance(&mut self) -> io::Result<()> {
        self.at = match self.steps.step()? {
            None => At::End,
            Some(Step::Raw(_)) => At::Raw,
            Some(Step::Open(path)) => {
                self.file = Some(self.open_file(&path)?);
                self.opened += 1;
                At::Step
            }
            Some(Step::Data { offset, length }) => At::Data { offset, left: length },
            Some(Step::Moved { .. }) => At::Step,
        };
        Ok(())
    }

    fn open_file(&self, path: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let opened = match (self.moved_to(path), &self.replaced) {
            (Some(to), Some(replaced)) => openat2(replaced, to, flags, Mode::empty(), resolve),
            _ => openat2(&self.layer, path, flags, Mode::empty(), resolve),
        };
        let file = opened.map_err(|e| self.fail(path, &e.into()))?;
        let stat = fstat(&file).map_err(|e| self.fail(path, &e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.fail(path, &io::Error::other("it is no regular file")));
        }
        Ok(file.into())
    }

    /// Where a path is by now, if it was replaced after this step: the first move took it away.
    fn moved_to(&self, path: &[u8]) -> Option<Vec<u8>> {
        if self.moved.is_empty() {
            return None;
        }
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let first = ends
            .chain([path.len()])
            .filter_map(|end| {
                let moves = self.moved.get(&path[..end])?;
                let (_, number) = moves.iter().find(|(before, _)| *before > self.opened)?;
                Some((*number, end))
            })
            .min()?;
        Some([first.0.to_string().as_bytes(), &path[first.1..]].concat())
    }

    fn fail(&self, path: &[u8], error: &io::Error) -> io::Error {
        let path = String::from_utf8_lossy(path);
        io::Error::new(error.kind(), format!("the file {path:?} of the layer: {error}"))
    }

    fn read_file(&mut self, into: &mut [u8], offset: u64, left: u64) -> io::Result<usize> {
        let file = self.file.as_ref().ok_or_else(|| io::Error::other("the recipe names no file"))?;
        let wanted = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = file.read_at(&mut into[..wanted], offset)?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file of the layer is too short"));
        }
        let left = left - count as u64;
        self.at = if left == 0 { At::Step } else { At::Data { offset: offset + count as u64, left } };
        Ok(count)
    }
}

impl Read for Replay {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.at {
                At::Step => self.advance()?,
                At::End => return Ok(0),
                At::Data { left: 0, .. } => self.at = At::Step,
                At::Data { offset, left } => return self.read_file(into, offset, left),
                At::Raw => {
                    let bytes = self.steps.raw_bytes()?;
                    if bytes.is_empty() {
                        self.at = At::Step;
                        continue;
                    }
                    let count = bytes.len().min(into.len());
                    into[..count].copy_from_slice(&bytes[..count]);
                    self.steps.consume(count);
                    return Ok(count);
                }
            }
        }
    }
}

fn steps(path: &Path, file: &File) -> Result<Steps<Source>> {
    let fail = |e| Error::io("read", path, e);
    let mut file = file.try_clone().map_err(fail)?;
    file.seek(SeekFrom::Start(HEAD_BYTES as u64)).map_err(fail)?;
    let decoder = Decoder::with_buffer(BufReader::with_capacity(AHEAD, file)).map_err(fail)?;
    Ok(Steps::new(BufReader::with_capacity(AHEAD, decoder)))
}

fn moves<R: io::BufRead>(mut steps: Steps<R>, replaced: u32) -> io::Result<Moved> {
    let mut moved = Moved::new();
    let (mut opened, mut found) = (0u64, 0);
    while let Some(step) = steps.step()? {
        match step {
            Step::Open(_) => opened += 1,
            Step::Moved { number, path } => {
                found += 1;
                if found > replaced {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "more was replaced than its head says",
                    ));
                }
                moved.entry(path).or_default().push((opened, number));
            }
            Step::Raw(_) | Step::Data { .. } => {}
        }
    }
    Ok(moved)
}
