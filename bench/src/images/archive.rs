//! Images of some size, as archives that every engine loads: programs, text and what does not compress, in many
//! files, always the same bytes.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

use crate::image;

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layers: u64,
    /// Bytes of all layers together, about.
    pub(crate) size: u64,
}

impl Shape {
    pub(crate) const LARGE: Self = Self { name: "large", layers: 6, size: 500 << 20 };
    pub(crate) const SINGLE: Self = Self { name: "single", layers: 1, size: 100 << 20 };
    pub(crate) const ALL: [Self; 2] = [Self::LARGE, Self::SINGLE];
}

/// Bytes of one file: the mean of what Debian's packages have.
const FILE: u64 = 32 << 10;

/// Makes `<folder>/<name>.tar` with an image of that name and the tag 1.
pub(crate) fn make(folder: &Path, shape: Shape) -> anyhow::Result<PathBuf> {
    let path = folder.join(format!("{}.tar", shape.name));
    let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    let mut archive = Builder::new(BufWriter::new(file));
    let (mut members, mut diffs) = (Vec::new(), Vec::new());
    for number in 0..shape.layers {
        let layer = folder.join("layer.tar");
        let digest = write_layer(folder, &layer, shape, number)?;
        let member = format!("{digest}/layer.tar");
        let mut source = File::open(&layer).context("open a layer")?;
        archive.append_data(&mut header(source.metadata()?.len()), &member, &mut source)?;
        std::fs::remove_file(&layer).context("remove a layer's file")?;
        members.push(member);
        diffs.push(format!("sha256:{digest}"));
    }
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diffs},
        "history": diffs.iter().map(|_| json!({"created_by": "bench"})).collect::<Vec<_>>(),
    });
    let config = config.to_string();
    let name = format!("{}.json", hex(&Sha256::digest(&config)));
    let manifest =
        json!([{"Config": name, "RepoTags": [format!("{}:1", shape.name)], "Layers": members}]).to_string();
    for (name, text) in [(name.as_str(), &config), ("manifest.json", &manifest)] {
        archive.append_data(&mut header(text.len() as u64), name, text.as_bytes())?;
    }
    archive.into_inner()?.flush().context("write the archive")?;
    Ok(path)
}

/// Writes one layer; its digest.
fn write_layer(folder: &Path, path: &Path, shape: Shape, number: u64) -> anyhow::Result<String> {
    let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
    let mut layer = Builder::new(Hashed { file: BufWriter::new(file), hash: Sha256::new() });
    layer.mode(tar::HeaderMode::Deterministic);
    layer.follow_symlinks(false);
    if number == 0 {
        let tree = folder.join(shape.name);
        layer.append_dir_all(".", image::tree(&tree)?).context("add busybox")?;
        std::fs::remove_dir_all(&tree).context("remove the tree of busybox")?;
    }
    let mut content = Content::new(number + 1);
    for file in 0..shape.size / shape.layers / FILE {
        // From an eighth of the mean to nearly twice it; of three files two are text.
        let size = FILE / 8 + content.size(FILE * 7 / 4);
        let name = format!("data/{number}/{}/{file}", file % 64);
        layer.append_data(&mut header(size), name, content.of(size, file % 3 != 0))?;
    }
    let mut hashed = layer.into_inner()?;
    hashed.file.flush().context("write a layer")?;
    Ok(hex(&hashed.hash.finalize()))
}

fn header(size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(size);
    header
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Hashed {
    file: BufWriter<File>,
    hash: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Bytes of files: xorshift's, or words chosen by it.
pub(crate) struct Content {
    state: u64,
    left: u64,
    text: bool,
}

const WORDS: [&[u8; 8]; 16] = [
    b"insula: ",
    b"a house ",
    b"of many ",
    b"tenants,",
    b" walls\n\t",
    b"doors { ",
    b"return x",
    b"windows;",
    b"} else {",
    b"\nstreet ",
    b"corner( ",
    b"number) ",
    b"= 0x00ff",
    b" /* yard",
    b" */ 1234",
    b"56789;\n\n",
];

impl Content {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed, left: 0, text: false }
    }

    /// The next file.
    pub(crate) fn of(&mut self, size: u64, text: bool) -> &mut Self {
        (self.left, self.text) = (size, text);
        self
    }

    /// Some size below a bound.
    pub(crate) fn size(&mut self, below: u64) -> u64 {
        self.next() % below
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

impl Read for Content {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        for piece in into[..count].chunks_mut(8) {
            let number = self.next();
            let bytes = if self.text { *WORDS[(number >> 59) as usize % 16] } else { number.to_le_bytes() };
            piece.copy_from_slice(&bytes[..piece.len()]);
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_as_long_as_it_should_be() {
        let mut bytes = Vec::new();
        let mut content = Content { state: 1, left: 1001, text: true };
        content.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 1001);
        let mut again = Vec::new();
        Content { state: 1, left: 1001, text: true }.read_to_end(&mut again).unwrap();
        assert_eq!(bytes, again);
    }
}
