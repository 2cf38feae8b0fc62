//! What is on the disk below the root, as du(1) counts it: blocks, folders too, and a file with several
//! names once. Every file belongs to one kind, so the kinds add up to the whole.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use insula_base::{ChainId, ContainerId};

use crate::{Error, Result, Store};

/// Bytes on the disk, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Unpacked layers.
    pub layers: u64,
    /// Files that several layers share, by who has them.
    pub shared: Vec<SharedFiles>,
    /// What makes the archives of layers again.
    pub recipes: u64,
    /// Layers that are kept compressed, as they came.
    pub compressed: u64,
    /// Manifests and configurations.
    pub documents: u64,
    /// What is on its way in, or out.
    pub pending: u64,
    pub containers: BTreeMap<ContainerId, ContainerUsage>,
    pub volumes: BTreeMap<String, u64>,
    /// What commands of builds keep.
    pub caches: u64,
    /// Machines that were booted and saved, for copies.
    pub templates: u64,
    /// Roots of containers that machines map into their memory.
    pub mapped_images: u64,
    /// What machines boot with.
    pub machines: u64,
    pub database: u64,
    /// The rest: folders themselves, the lock, the reserve.
    pub other: u64,
}

/// Files that the same layers have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SharedFiles {
    /// Each with the number of names that a file has there.
    pub layers: Vec<(ChainId, u32)>,
    /// Length of all of them, each counted once.
    pub bytes: u64,
}

/// Bytes of one container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// The writable layer.
    pub upper: u64,
    pub logs: u64,
    /// Overlay's scratch folder and the folders themselves.
    pub other: u64,
}

impl ContainerUsage {
    #[must_use]
    pub fn total(&self) -> u64 {
        self.upper + self.logs + self.other
    }
}

impl Usage {
    /// Everything that images take.
    #[must_use]
    pub fn images(&self) -> u64 {
        self.layers + self.recipes + self.compressed + self.documents
    }

    /// Everything below the root.
    #[must_use]
    pub fn total(&self) -> u64 {
        let containers: u64 = self.containers.values().map(ContainerUsage::total).sum();
        let volumes: u64 = self.volumes.values().sum();
        let machines = self.templates + self.mapped_images + self.machines;
        self.images()
            + self.pending
            + containers
            + volumes
            + self.caches
            + machines
            + self.database
            + self.other
    }
}

impl Store {
    /// Counts everything, which takes about a second for a million files.
    pub fn usage(&self) -> Result<Usage> {
        let kept: HashSet<String> =
            self.images().compressed_blobs()?.into_iter().map(|digest| digest.hex().to_owned()).collect();
        let root = self.root();
        let meta = fs::symlink_metadata(root).map_err(|e| Error::io("stat", root, e))?;
        let mut count = Count { device: meta.dev(), seen: HashSet::new() };
        let mut usage = Usage { other: count.one(&meta), ..Usage::default() };
        for (name, path) in children(root)? {
            match name.as_str() {
                "layers" => count_layers(&mut count, &path, &mut usage)?,
                "content" => count_content(&mut count, &path, &kept, &mut usage)?,
                "containers" => count_containers(&mut count, &path, &mut usage)?,
                "volumes" => {
                    usage.other += count.itself(&path)?;
                    for (name, path) in children(&path)? {
                        *usage.volumes.entry(name).or_default() += count.tree(&path)?;
                    }
                }
                "caches" => usage.caches += count.tree(&path)?,
                "templates" => usage.templates += count.tree(&path)?,
                "machines" => count_machines(&mut count, &path, &mut usage)?,
                name if name.starts_with("state.db") => usage.database += count.tree(&path)?,
                _ => usage.other += count.tree(&path)?,
            }
        }
        Ok(usage)
    }
}

fn count_layers(count: &mut Count, path: &Path, usage: &mut Usage) -> Result<()> {
    usage.other += count.itself(path)?;
    let mut shared = Shared::default();
    for (name, path) in children(path)? {
        match (name.as_str(), format!("sha256:{name}").parse()) {
            ("recipes", _) => usage.recipes += count.tree(&path)?,
            ("tmp", _) => usage.pending += count.tree(&path)?,
            (_, Ok(digest)) => {
                shared.layers.push(ChainId(digest));
                usage.layers += count.tree_seen(&path, &mut |meta| shared.see(meta))?;
            }
            // The second names of files.
            _ => usage.layers += count.tree(&path)?,
        }
    }
    usage.shared = shared.finish();
    Ok(())
}

/// Which layers have a file.
#[derive(Default)]
struct Shared {
    layers: Vec<ChainId>,
    /// Inode → length, and layers with numbers of names.
    files: HashMap<u64, (u64, Vec<(usize, u32)>)>,
}

impl Shared {
    /// A file of the last layer.
    fn see(&mut self, meta: &Metadata) {
        if !meta.is_file() || meta.nlink() < 2 {
            return;
        }
        let layer = self.layers.len().saturating_sub(1);
        let (_, having) = self.files.entry(meta.ino()).or_insert_with(|| (meta.len(), Vec::new()));
        match having.last_mut() {
            Some((last, names)) if *last == layer => *names += 1,
            _ => having.push((layer, 1)),
        }
    }

    fn finish(self) -> Vec<SharedFiles> {
        let mut groups: HashMap<Vec<(usize, u32)>, u64> = HashMap::new();
        for (length, having) in self.files.into_values().filter(|(_, having)| having.len() > 1) {
            *groups.entry(having).or_default() += length;
        }
        let named = |(layer, names): (usize, u32)| (self.layers[layer].clone(), names);
        groups
            .into_iter()
            .map(|(having, bytes)| SharedFiles { layers: having.into_iter().map(named).collect(), bytes })
            .collect()
    }
}

fn count_content(count: &mut Count, path: &Path, kept: &HashSet<String>, usage: &mut Usage) -> Result<()> {
    usage.other += count.itself(path)?;
    for (name, path) in children(path)? {
        if name != "blobs" {
            usage.pending += count.tree(&path)?;
            continue;
        }
        usage.other += count.itself(&path)?;
        for (_, path) in children(&path)? {
            usage.other += count.itself(&path)?;
            for (name, path) in children(&path)? {
                let bytes = count.tree(&path)?;
                if kept.contains(&name) { usage.compressed += bytes } else { usage.documents += bytes }
            }
        }
    }
    Ok(())
}

fn count_containers(count: &mut Count, path: &Path, usage: &mut Usage) -> Result<()> {
    usage.other += count.itself(path)?;
    for (name, path) in children(path)? {
        let Ok(id) = name.parse::<ContainerId>() else {
            usage.pending += count.tree(&path)?;
            continue;
        };
        let mut one = ContainerUsage { other: count.itself(&path)?, ..ContainerUsage::default() };
        for (name, path) in children(&path)? {
            let bytes = count.tree(&path)?;
            match name.as_str() {
                // One with a size has all in its disk, or in its folder.
                "upper" | "disk" | "layer" => one.upper += bytes,
                "work" => one.other += bytes,
                _ => one.logs += bytes,
            }
        }
        usage.containers.insert(id, one);
    }
    Ok(())
}

fn count_machines(count: &mut Count, path: &Path, usage: &mut Usage) -> Result<()> {
    usage.machines += count.itself(path)?;
    for (name, path) in children(path)? {
        let bytes = count.tree(&path)?;
        if name == "images" { usage.mapped_images += bytes } else { usage.machines += bytes }
    }
    Ok(())
}

/// What comes and goes while it is counted is no error.
fn children(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(Error::io("readdir", folder, error)),
    };
    let named = |entry: fs::DirEntry| (entry.file_name().to_string_lossy().into_owned(), entry.path());
    Ok(entries.filter_map(|entry| entry.ok().map(named)).collect())
}

pub(crate) struct Count {
    device: u64,
    /// Files with several names that were counted.
    seen: HashSet<u64>,
}

impl Count {
    /// Of what is on the file system of `root`.
    pub(crate) fn of(root: &Path) -> Result<Self> {
        let meta = fs::symlink_metadata(root).map_err(|e| Error::io("stat", root, e))?;
        Ok(Self { device: meta.dev(), seen: HashSet::new() })
    }

    fn one(&mut self, meta: &Metadata) -> u64 {
        let again = !meta.is_dir() && meta.nlink() > 1 && !self.seen.insert(meta.ino());
        if again { 0 } else { meta.blocks() * 512 }
    }

    fn itself(&mut self, path: &Path) -> Result<u64> {
        match fs::symlink_metadata(path) {
            Ok(meta) => Ok(self.one(&meta)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(Error::io("stat", path, error)),
        }
    }

    /// A file, or a folder with all that is in it on the same file system.
    pub(crate) fn tree(&mut self, path: &Path) -> Result<u64> {
        self.tree_seen(path, &mut |_| {})
    }

    /// The same; everything that is in it is shown.
    fn tree_seen(&mut self, path: &Path, see: &mut dyn FnMut(&Metadata)) -> Result<u64> {
        let mut total = 0;
        let mut waiting = vec![path.to_owned()];
        while let Some(path) = waiting.pop() {
            let meta = match fs::symlink_metadata(&path) {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("stat", &path, error)),
            };
            if meta.dev() != self.device {
                continue;
            }
            total += self.one(&meta);
            see(&meta);
            if meta.is_dir() {
                waiting.extend(children(&path)?.into_iter().map(|(_, path)| path));
            }
        }
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_add_up_to_what_du_says() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let id: ContainerId = "7".repeat(64).parse().unwrap();
        let container = store.create_container_dir(&id, None).unwrap();
        fs::write(container.upper().join("file"), vec![1; 100_000]).unwrap();
        fs::write(container.logs().join("json.log"), vec![1; 10_000]).unwrap();
        let data = store.volume_data("data").unwrap();
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("one"), vec![1; 50_000]).unwrap();
        fs::hard_link(data.join("one"), data.join("two")).unwrap();
        fs::File::create(data.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let machines = ["templates/0a/memory", "machines/images/0b.erofs", "machines/initramfs"];
        for (number, name) in machines.iter().enumerate() {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![1; (number + 1) * 100_000]).unwrap();
        }
        let usage = store.usage().unwrap();
        for (number, bytes) in [usage.templates, usage.mapped_images, usage.machines].into_iter().enumerate()
        {
            let least = (number as u64 + 1) * 100_000;
            assert!((least..least + 50_000).contains(&bytes), "{usage:?}");
        }
        let said = std::process::Command::new("du").args(["-s", "-B1"]).arg(folder.path()).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        assert_eq!(usage.total().to_string(), said.split_whitespace().next().unwrap(), "{usage:?}");
        assert!(usage.containers[&id].upper >= 100_000 && usage.containers[&id].logs >= 10_000);
        assert!((50_000..100_000).contains(&usage.volumes["data"]), "{usage:?}");
        assert!(usage.database > 0);
    }
}
