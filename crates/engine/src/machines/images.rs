//! Roots of containers as file systems in one file, which our own machine maps into a guest's memory: machines of one
//! image have its files once, in the host's page cache.
//!
//! ```text
//! machines/images/<layer>.erofs    all layers of an image, by the name of the topmost's folder, which stands for all
//! machines/images/new-…            one that is being made
//! ```
//!
//! One is made behind the back of the first container that could use it, and goes with its layer.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use insula_host::guest::erofs::{self, Attributes, Content, Node};
use insula_host::guest::{Kernel, maps_images};
use insula_spec::machine::{Backend, MachinePlan};
use rustix::fs::{FileType, Stat};

use super::Machines;
use crate::containers::row::Row;
use crate::tree::{Dir, Entry, Last, Tree};
use crate::{Engine, Error, Result};

const EXTENSION: &str = "erofs";
/// Begins the name of one that is being made.
const NEW: &str = "new-";
/// As many times the memory of its machine an image may have: the guest's kernel keeps 64 bytes for each page.
const LARGEST: u64 = 4;
/// Folders in folders, all of which are open at once.
const DEEPEST: usize = 100;

#[derive(Debug)]
pub(super) struct Images {
    folder: PathBuf,
    /// Names of those that are being made, or could not be.
    begun: Mutex<HashSet<PathBuf>>,
    /// Whether guests of a kernel can map them, by its modules' folder.
    mappable: Mutex<HashMap<PathBuf, bool>>,
}

/// An image that is to be made.
#[derive(Debug)]
pub(crate) struct WantedImage {
    place: PathBuf,
    layers: Vec<PathBuf>,
}

impl Images {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, begun: Mutex::default(), mappable: Mutex::default() }
    }

    /// Where that of these layers is, lowest first. None for the host's own system, which changes.
    fn place(&self, layers: &[PathBuf]) -> Option<PathBuf> {
        if layers.iter().any(|layer| layer == Path::new("/")) {
            return None;
        }
        Some(self.folder.join(layers.last()?.file_name()?).with_extension(EXTENSION))
    }

    fn mappable(&self, kernel: &Kernel) -> Result<bool> {
        let mut known = lock(&self.mappable);
        if let Some(mappable) = known.get(&kernel.modules) {
            return Ok(*mappable);
        }
        let mappable = maps_images(kernel)?;
        known.insert(kernel.modules.clone(), mappable);
        Ok(mappable)
    }

    /// Makes one, unless somebody does already, or nobody could.
    fn make(&self, wanted: &WantedImage) -> Result<bool> {
        let mut begun = lock(&self.begun);
        if wanted.place.is_file() || !begun.insert(wanted.place.clone()) {
            return Ok(false);
        }
        drop(begun);
        fs::create_dir_all(&self.folder).map_err(|error| Error::io("mkdir", &self.folder, error))?;
        let new = self.folder.join(format!("{NEW}{}", insula_base::random_hex(6)));
        let made = write(&wanted.layers, &new)
            .and_then(|()| fs::rename(&new, &wanted.place).map_err(|error| Error::io("rename", &new, error)));
        if made.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&new);
        }
        made.map(|()| true)
    }

    /// Removes those whose layers are gone: nobody can want them, and machines that have them go on.
    pub(super) fn rest(&self) {
        let Some(layers) = self.folder.ancestors().nth(2).map(|root| root.join("layers")) else { return };
        for path in self.files().unwrap_or_default() {
            let stays = path.file_stem().is_some_and(|layer| layers.join(layer).is_dir());
            let new = path.file_name().is_some_and(|name| name.as_bytes().starts_with(NEW.as_bytes()));
            if !stays && !new && fs::remove_file(&path).is_ok() {
                lock(&self.begun).remove(&path);
            }
        }
    }

    /// Removes what a daemon that was killed was making.
    pub(super) fn tidy_up(&self) -> Result<()> {
        for path in self.files()? {
            if path.file_name().is_some_and(|name| name.as_bytes().starts_with(NEW.as_bytes())) {
                fs::remove_file(&path).map_err(|error| Error::io("unlink", &path, error))?;
            }
        }
        self.rest();
        Ok(())
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        match fs::read_dir(&self.folder) {
            Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(Error::io("open", &self.folder, error)),
        }
    }
}

impl Machines {
    /// Has a machine map the root of its container, if it can: the image, or the one that is to be made for the next.
    pub(crate) fn use_image(&self, plan: &mut MachinePlan, row: &Row) -> Result<Option<WantedImage>> {
        // What is written goes to a layer of the host's, which only that can put over the others.
        if plan.backend != Backend::Kvm || !row.host.readonly_rootfs || !self.images.mappable(&plan.kernel)? {
            return Ok(None);
        }
        let Some(place) = self.images.place(&row.image.layers) else { return Ok(None) };
        match fs::metadata(&place) {
            Ok(found) if found.len() / plan.memory.max(1) < LARGEST => plan.image = Some(place),
            Ok(_) => {}
            Err(_) => return Ok(Some(WantedImage { place, layers: row.image.layers.clone() })),
        }
        Ok(None)
    }
}

impl Engine {
    /// Makes an image when there is time for it.
    pub(crate) fn make_image_soon(&self, wanted: WantedImage) {
        let engine = self.clone();
        let made = std::thread::Builder::new().name("image".to_owned()).spawn(move || {
            let image = wanted.place.display();
            match engine.0.machines.images.make(&wanted) {
                Ok(true) => tracing::info!(%image, "an image for machines was made"),
                Ok(false) => {}
                Err(error) => {
                    let error = insula_base::chain(&error);
                    tracing::warn!(%image, error, "an image for machines could not be made: files are served");
                }
            }
        });
        if let Err(error) = made {
            tracing::warn!(%error, "no thread to make an image for machines in");
        }
    }
}

/// Writes the files of all layers to an image in a new file.
fn write(layers: &[PathBuf], path: &Path) -> Result<()> {
    let failed = |error| Error::io("write", path, error);
    let file = File::options().write(true).create_new(true).open(path).map_err(failed)?;
    let kept = file.try_clone().map_err(failed)?;
    let tree = Tree::image(layers, &[])?;
    let root = tree.resolve(Path::new("/"), Last::Follow)?;
    let dir = root.dir().ok_or_else(|| Error::Internal(format!("{} is no folder", path.display())))?;
    let topmost = dir.topmost().ok_or_else(|| Error::Internal("an image without layers".to_owned()))?;
    let stat = rustix::fs::fstat(topmost).map_err(|error| failed(error.into()))?;
    let extended = insula_store::layers::attributes(topmost, b"/")?;
    let mut writer =
        Writer { image: erofs::Image::new(file, attributes(&stat, extended)), seen: HashMap::new() };
    let root = writer.image.root();
    writer.folder(root, dir, DEEPEST).map_err(failed)?;
    writer.image.finish().map_err(failed)?;
    kept.sync_all().map_err(failed)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Writer {
    image: erofs::Image,
    /// Files with more than one name, by device and number.
    seen: HashMap<(u64, u64), Node>,
}

impl Writer {
    fn folder(&mut self, node: Node, dir: &Dir, deeper: usize) -> std::io::Result<()> {
        let deeper = deeper
            .checked_sub(1)
            .ok_or_else(|| std::io::Error::other(format!("a folder in more than {DEEPEST} others")))?;
        for name in dir.names()? {
            let Some(entry) = dir.lookup(&name)? else { continue };
            let key = (entry.stat.st_dev, entry.stat.st_ino);
            if entry.dir.is_none()
                && let Some(known) = self.seen.get(&key)
            {
                self.image.link(node, name.as_bytes(), *known)?;
                continue;
            }
            let added = self.file(node, dir, &name, &entry)?;
            if entry.dir.is_none() && entry.stat.st_nlink > 1 {
                self.seen.insert(key, added);
            }
            if let Some(inner) = &entry.dir {
                self.folder(added, inner, deeper)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, node: Node, dir: &Dir, name: &OsStr, entry: &Entry) -> std::io::Result<Node> {
        let stat = &entry.stat;
        let (plain, bytes) = (attributes(stat, Vec::new()), name.as_bytes());
        match entry.kind() {
            FileType::Directory => {
                let own = entry.dir.as_ref().and_then(Dir::topmost);
                let extended = own.map(|own| extended(own, bytes)).transpose()?.unwrap_or_default();
                self.image.add(node, bytes, attributes(stat, extended), Content::Folder)
            }
            FileType::RegularFile => {
                let file = dir.open(name, entry)?;
                let extended = extended(file.as_fd(), bytes)?;
                let content = Content::File(&File::from(file), u64::try_from(stat.st_size).unwrap_or(0));
                self.image.add(node, bytes, attributes(stat, extended), content)
            }
            FileType::Symlink => {
                let target = dir.read_link(name, entry)?;
                self.image.add(node, bytes, plain, Content::Link(target.as_bytes()))
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let content =
                    Content::Device(rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                self.image.add(node, bytes, plain, content)
            }
            _ => self.image.add(node, bytes, plain, Content::Other),
        }
    }
}

fn extended(file: BorrowedFd<'_>, name: &[u8]) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    insula_store::layers::attributes(file, name).map_err(std::io::Error::other)
}

fn attributes(stat: &Stat, extended: Vec<(String, Vec<u8>)>) -> Attributes {
    Attributes {
        mode: stat.st_mode as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        seconds: stat.st_mtime,
        nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        extended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> (tempfile::TempDir, Images, Vec<PathBuf>) {
        let root = tempfile::tempdir().unwrap();
        let layers = ["one", "two"].map(|layer| root.path().join("layers").join(layer));
        for (layer, names) in
            layers.iter().zip([&["below", "both", "gone/x"][..], &["both", "gone/y", "top"]])
        {
            for name in names {
                fs::create_dir_all(layer.join(name).parent().unwrap()).unwrap();
                fs::write(layer.join(name), format!("{name} of {}", layer.display())).unwrap();
            }
        }
        let images = Images::new(root.path().join("machines/images"));
        (root, images, layers.to_vec())
    }

    #[test]
    fn one_is_made_once_and_goes_with_its_layer() {
        let (_root, images, layers) = images();
        let place = images.place(&layers).unwrap();
        assert!(place.ends_with("machines/images/two.erofs"));
        let wanted = WantedImage { place: place.clone(), layers: layers.clone() };
        assert!(images.make(&wanted).unwrap() && !images.make(&wanted).unwrap());
        let bytes = fs::read(&place).unwrap();
        let has = |what: String| bytes.windows(what.len()).any(|bytes| bytes == what.as_bytes());
        let of = |name: &str, layer: usize| has(format!("{name} of {}", layers[layer].display()));
        assert!(of("below", 0) && of("both", 1) && of("gone/x", 0) && of("top", 1) && !of("both", 0));
        fs::write(images.folder.join("new-1"), "").unwrap();
        images.rest();
        assert_eq!(images.files().unwrap().len(), 2);
        images.tidy_up().unwrap();
        assert_eq!(images.files().unwrap(), [place]);
        fs::remove_dir_all(&layers[1]).unwrap();
        images.rest();
        assert!(images.files().unwrap().is_empty());
        // The layer comes again.
        fs::create_dir(&layers[1]).unwrap();
        assert!(images.make(&wanted).unwrap());
    }

    #[test]
    fn one_that_cannot_be_made_is_not_tried_again_and_leaves_nothing() {
        let (_root, images, layers) = images();
        let deep: PathBuf = std::iter::repeat_n("d", DEEPEST).collect();
        fs::create_dir_all(layers[1].join(deep)).unwrap();
        let wanted = WantedImage { place: images.place(&layers).unwrap(), layers };
        assert!(images.make(&wanted).is_err() && images.files().unwrap().is_empty());
        assert!(!images.make(&wanted).unwrap());
    }

    #[test]
    fn the_hosts_own_system_has_none() {
        let (_root, images, _) = images();
        assert!(images.place(&["/".into()]).is_none() && images.place(&[]).is_none());
    }
}
