//! What `cp` copies: one large file, and a tree of small ones, in memory, so that the host's disk has no part.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use super::archive::Content;

const FILE: u64 = 100_000_000;
const FILES: u64 = 5000;
/// Of one small file, at most.
const SMALL: u64 = 8 << 10;
/// More than any of the copies takes.
const MEMORY: usize = 384 << 20;

/// The sources, and a place to copy to.
#[derive(Debug)]
pub(crate) struct Copies {
    folder: TempDir,
}

impl Copies {
    pub(crate) const FILE: &str = "file";
    pub(crate) const TREE: &str = "tree";

    pub(crate) fn make() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("insula-bench-").tempdir_in("/dev/shm");
        let copies = Self { folder: folder.context("make a folder in memory")? };
        let mut content = Content::new(1);
        copies.write(Path::new(Self::FILE), &mut content, FILE)?;
        for number in 0..FILES {
            let size = content.size(SMALL);
            let name = Path::new(Self::TREE).join((number % 64).to_string()).join(number.to_string());
            copies.write(&name, &mut content, size)?;
        }
        fs::create_dir(copies.folder.path().join("out")).context("make a folder")?;
        Ok(copies)
    }

    pub(crate) fn source(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path where nothing is.
    pub(crate) fn target(&self, name: &str) -> anyhow::Result<PathBuf> {
        let out = self.folder.path().join("out");
        fs::remove_dir_all(&out).and_then(|()| fs::create_dir(&out)).context("empty a folder")?;
        Ok(out.join(name))
    }

    /// Touches memory and lets go of it again, so that whoever copies next has pages that this machine has. What a
    /// virtual machine does not use its host takes back, and gives again page by page: a file of 100 MB then takes six
    /// times as long to write, whoever writes it.
    pub(crate) fn have_memory() {
        drop(std::hint::black_box(vec![1u8; MEMORY]));
    }

    fn write(&self, name: &Path, content: &mut Content, size: u64) -> anyhow::Result<()> {
        let path = self.source("").join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).context("make a folder")?;
        }
        let mut file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        io::copy(content.of(size, false), &mut file).with_context(|| format!("write {}", path.display()))?;
        Ok(())
    }
}
