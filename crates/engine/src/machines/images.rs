//! Roots of containers as file systems in one file, which our own machine maps into a guest's memory: machines of one
//! image have its files once, in the host's page cache.
//!
//! ```text
//! machines/images/<layer>.<folders>.erofs    all layers of an image, by the name of the topmost's folder, which stands
//!                                            for all, and by what tells these folders from others of the same names
//! machines/images/new-…                      one that is being made
//! ```
//!
//! One is made behind the back of the first container that could use it, and goes with its layer. A layer that was put
//! right has another folder, and its image is made anew.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use insula_base::Digest;
use insula_host::guest::erofs::{self, Attributes, Content, Node};
use insula_host::guest::{Kernel, maps_images};
use insula_spec::machine::{Backend, MachinePlan};
use rustix::fs::{FileType, Stat};
use sha2::Digest as _;

use super::Machines;
use crate::containers::row::Row;
use crate::tree::{Dir, Entry, Last, Tree};
use crate::{Engine, Error, Result};

const EXTENSION: &str = "erofs";
/// Begins the name of one that is being made.
const NEW: &str = "new-";
/// As many times the memory of its machine an image may have: the guest's kernel keeps 64 bytes for each page.
const LARGEST: u64 = 4;
/// Of the free space, the part that one may take.
const SHARE: u64 = 4;
/// Of how they are written: those of another one are not used.
const VERSION: u32 = 2;
/// Digits of what tells folders apart.
const FOLDERS: usize = 16;
/// Folders in folders, all of which are open at once.
const DEEPEST: usize = 100;

#[derive(Debug)]
pub(super) struct Images {
    folder: PathBuf,
    begun: Mutex<Begun>,
    /// Whether guests of a kernel can map them, by its modules' folder.
    mappable: Mutex<HashMap<PathBuf, bool>>,
}

/// By the names of images.
#[derive(Debug, Default)]
struct Begun {
    making: HashSet<PathBuf>,
    /// Those that could not be made, and would not be another time: for machines of this memory and less.
    refused: HashMap<PathBuf, u64>,
}

/// An image that is to be made.
#[derive(Debug)]
pub(crate) struct WantedImage {
    place: PathBuf,
    layers: Vec<PathBuf>,
    /// Of the machine that could use it, in bytes.
    memory: u64,
}

impl Images {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, begun: Mutex::default(), mappable: Mutex::default() }
    }

    /// Where that of these layers is, lowest first. None for the host's own system, which changes.
    pub(super) fn place(&self, layers: &[PathBuf]) -> Result<Option<PathBuf>> {
        if layers.iter().any(|layer| layer == Path::new("/")) {
            return Ok(None);
        }
        let Some(layer) = layers.last().and_then(|layer| layer.file_name()) else { return Ok(None) };
        let mut hash = sha2::Sha256::new();
        hash.update(format!("{VERSION}\0"));
        for layer in layers {
            // A number that was free may be given again; the time of the last change then is another one.
            let found = fs::metadata(layer).map_err(|error| Error::io("stat", layer, error))?;
            hash.update(format!("{} {} {}\0", found.ino(), found.ctime(), found.ctime_nsec()));
        }
        let folders = Digest::from_sha256(&hash.finalize().into());
        let mut name = layer.to_owned();
        name.push(format!(".{}.{EXTENSION}", &folders.hex()[..FOLDERS]));
        Ok(Some(self.folder.join(name)))
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

    /// Makes one, unless somebody does already, or nobody could. The layers are to stay until it is made.
    fn make(&self, wanted: &WantedImage) -> Result<bool> {
        {
            let mut begun = lock(&self.begun);
            let refused = begun.refused.get(&wanted.place).is_some_and(|memory| *memory >= wanted.memory);
            if refused || wanted.place.is_file() || !begun.making.insert(wanted.place.clone()) {
                return Ok(false);
            }
        }
        let made = self.put(wanted);
        let mut begun = lock(&self.begun);
        begun.making.remove(&wanted.place);
        if let Some(memory) = made.as_ref().err().and_then(|error| refused(error, wanted.memory)) {
            begun.refused.insert(wanted.place.clone(), memory);
        }
        made.map(|()| true)
    }

    /// Writes one and gives it its name, in the place of those of other folders of the same names.
    fn put(&self, wanted: &WantedImage) -> Result<()> {
        fs::create_dir_all(&self.folder).map_err(|error| Error::io("mkdir", &self.folder, error))?;
        let new = self.folder.join(format!("{NEW}{}", insula_base::random_hex(6)));
        let made = self.write(wanted, &new).and_then(|()| {
            if self.place(&wanted.layers)?.as_ref() != Some(&wanted.place) {
                return Err(Error::Conflict("the layers have changed meanwhile".to_owned()));
            }
            fs::rename(&new, &wanted.place).map_err(|error| Error::io("rename", &new, error))
        });
        if made.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&new);
            return made;
        }
        let layer = layer_of(&wanted.place);
        for other in self.files()?.into_iter().filter(|path| *path != wanted.place && layer_of(path) == layer)
        {
            fs::remove_file(&other).map_err(|error| Error::io("unlink", &other, error))?;
        }
        Ok(())
    }

    /// Writes one, as large as its machine and the disk can take.
    fn write(&self, wanted: &WantedImage, path: &Path) -> Result<()> {
        let disk =
            rustix::fs::statvfs(&self.folder).map_err(|error| Error::io("statvfs", &self.folder, error))?;
        let share = disk.f_bavail.saturating_mul(disk.f_frsize) / SHARE;
        let largest = wanted.memory.saturating_mul(LARGEST);
        write(&wanted.layers, path, largest.min(share)).map_err(|error| match error {
            Error::Io { call, path, source }
                if share < largest && source.kind() == ErrorKind::FileTooLarge =>
            {
                Error::Io { call, path, source: std::io::Error::new(ErrorKind::StorageFull, source) }
            }
            error => error,
        })
    }

    /// Removes those whose layers are gone: nobody can want them, and machines that have them go on. The bytes that
    /// they had on the disk.
    pub(super) fn rest(&self) -> u64 {
        let Some(layers) = self.folder.ancestors().nth(2).map(|root| root.join("layers")) else { return 0 };
        let stays = |place: &Path| layer_of(place).is_some_and(|layer| layers.join(layer).is_dir());
        let mut freed = 0;
        for (path, size) in self.made().unwrap_or_default() {
            // The next time, if it is in somebody's way now.
            if !stays(&path) && fs::remove_file(&path).is_ok() {
                freed += size;
            }
        }
        lock(&self.begun).refused.retain(|place, _| stays(place));
        freed
    }

    /// Those that are not being made, and the bytes that they have on the disk.
    pub(super) fn made(&self) -> Result<Vec<(PathBuf, u64)>> {
        let sized = |path: PathBuf| fs::metadata(&path).ok().map(|found| (path, found.blocks() * 512));
        Ok(self.files()?.into_iter().filter(|path| !is_new(path)).filter_map(sized).collect())
    }

    /// Takes those away that are not to stay: nobody finds them any more.
    pub(super) fn take_unless(&self, stays: impl Fn(&Path) -> bool) -> Result<Taken> {
        let mut taken = Taken::default();
        for (path, size) in self.made()?.into_iter().filter(|(path, _)| !stays(path)) {
            let hidden = self.folder.join(format!("{NEW}{}", insula_base::random_hex(6)));
            match fs::rename(&path, &hidden) {
                Ok(()) => taken.0.push((hidden, size)),
                Err(error) => tracing::warn!(image = %path.display(), %error, "it was not taken away"),
            }
        }
        Ok(taken)
    }

    /// Removes what a daemon that was killed was making, or taking away.
    pub(super) fn tidy_up(&self) -> Result<()> {
        for path in self.files()?.into_iter().filter(|path| is_new(path)) {
            fs::remove_file(&path).map_err(|error| Error::io("unlink", &path, error))?;
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

/// Images that were taken away, and the bytes that they have on the disk.
#[derive(Debug, Default)]
pub(super) struct Taken(Vec<(PathBuf, u64)>);

impl Taken {
    /// Machines that have them go on.
    pub(super) fn remove(self) -> Result<u64> {
        let mut freed = 0;
        for (path, size) in self.0 {
            fs::remove_file(&path).map_err(|error| Error::io("unlink", &path, error))?;
            freed += size;
        }
        Ok(freed)
    }
}

impl Machines {
    /// Has a machine map the root of its container, if it can: the image, or the one that is to be made for the next.
    pub(crate) fn use_image(&self, plan: &mut MachinePlan, row: &Row) -> Result<Option<WantedImage>> {
        // What is written goes to a layer of the host's, which only that can put over the others.
        if plan.backend != Backend::Kvm || !row.host.readonly_rootfs || !self.images.mappable(&plan.kernel)? {
            return Ok(None);
        }
        let (layers, memory) = (row.image.layers.clone(), plan.memory);
        // Of layers that are not there the start itself says so.
        let Ok(Some(place)) = self.images.place(&layers) else { return Ok(None) };
        match fs::metadata(&place) {
            Ok(found) if found.len() <= memory.saturating_mul(LARGEST) => plan.image = Some(place),
            Ok(_) => {}
            Err(_) => return Ok(Some(WantedImage { place, layers, memory })),
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
            // Whoever removes the container or its image meanwhile.
            let lease = engine.store().images().lease_folders(&wanted.layers);
            let made = lease.map_err(Error::from).and_then(|_lease| engine.0.machines.images.make(&wanted));
            match made {
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

fn is_new(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(NEW.as_bytes()))
}

/// The layer in the name of an image; none of one that has another name.
fn layer_of(place: &Path) -> Option<&str> {
    let (layer, folders) = place.file_stem()?.to_str()?.rsplit_once('.')?;
    (folders.len() == FOLDERS).then_some(layer)
}

/// The memory of machines that an image is refused for, if an error of its making lasts.
fn refused(error: &Error, memory: u64) -> Option<u64> {
    let Error::Io { source, .. } = error else { return None };
    match source.kind() {
        ErrorKind::FileTooLarge => Some(memory),
        ErrorKind::InvalidInput => Some(u64::MAX),
        _ => None,
    }
}

/// Writes the files of all layers to an image in a new file.
fn write(layers: &[PathBuf], path: &Path, largest: u64) -> Result<()> {
    let failed = |error| Error::io("write", path, error);
    let tree = Tree::image(layers, &[])?;
    let root = tree.resolve(Path::new("/"), Last::Follow)?;
    let dir = root.dir().ok_or_else(|| Error::Internal(format!("{} is no folder", path.display())))?;
    let size = total(dir, DEEPEST, &mut HashSet::new()).map_err(failed)?;
    if size > largest {
        let why = format!("files of {} MiB where {} MiB fit", size >> 20, largest >> 20);
        return Err(failed(std::io::Error::new(ErrorKind::FileTooLarge, why)));
    }
    let file = File::options().write(true).create_new(true).open(path).map_err(failed)?;
    let kept = file.try_clone().map_err(failed)?;
    let topmost = dir.topmost().ok_or_else(|| Error::Internal("an image without layers".to_owned()))?;
    let stat = rustix::fs::fstat(topmost).map_err(|error| failed(error.into()))?;
    let extended = insula_store::layers::attributes(topmost, b"/")?;
    let image = erofs::Image::new(file, attributes(&stat, extended), largest);
    let mut writer = Writer { image, seen: HashMap::new() };
    let root = writer.image.root();
    writer.folder(root, dir, DEEPEST).map_err(failed)?;
    writer.image.finish().map_err(failed)?;
    kept.sync_all().map_err(failed)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of the files in a folder and those in it, each file once.
fn total(dir: &Dir, deeper: usize, seen: &mut HashSet<(u64, u64)>) -> std::io::Result<u64> {
    let deeper = one_less(deeper)?;
    let mut size = 0u64;
    for name in dir.names()? {
        let entry = entry(dir, &name)?;
        let stat = &entry.stat;
        let more = match &entry.dir {
            Some(inner) => total(inner, deeper, seen)?,
            None if entry.kind() != FileType::RegularFile => 0,
            None if stat.st_nlink > 1 && !seen.insert((stat.st_dev, stat.st_ino)) => 0,
            None => u64::try_from(stat.st_size).unwrap_or(0),
        };
        size = size.saturating_add(more);
    }
    Ok(size)
}

/// What a name that was listed stands for.
fn entry(dir: &Dir, name: &OsStr) -> std::io::Result<Entry> {
    let gone = || std::io::Error::new(ErrorKind::NotFound, format!("{} is gone", name.display()));
    dir.lookup(name)?.ok_or_else(gone)
}

fn one_less(deeper: usize) -> std::io::Result<usize> {
    let why = || format!("a folder in more than {DEEPEST} others");
    deeper.checked_sub(1).ok_or_else(|| std::io::Error::new(ErrorKind::InvalidInput, why()))
}

struct Writer {
    image: erofs::Image,
    /// Files with more than one name, by device and number.
    seen: HashMap<(u64, u64), Node>,
}

impl Writer {
    fn folder(&mut self, node: Node, dir: &Dir, deeper: usize) -> std::io::Result<()> {
        let deeper = one_less(deeper)?;
        for name in dir.names()? {
            let entry = self::entry(dir, &name)?;
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

    const MEMORY: u64 = 8 << 20;

    fn wanted(images: &Images, layers: &[PathBuf]) -> WantedImage {
        let place = images.place(layers).unwrap().unwrap();
        WantedImage { place, layers: layers.to_vec(), memory: MEMORY }
    }

    #[test]
    fn one_is_made_once_and_goes_with_its_layer() {
        let (_root, images, layers) = images();
        let wanted = wanted(&images, &layers);
        let place = wanted.place.clone();
        assert_eq!(layer_of(&place), Some("two"));
        assert!(images.make(&wanted).unwrap() && !images.make(&wanted).unwrap());
        let bytes = fs::read(&place).unwrap();
        let has = |what: String| bytes.windows(what.len()).any(|bytes| bytes == what.as_bytes());
        let of = |name: &str, layer: usize| has(format!("{name} of {}", layers[layer].display()));
        assert!(of("below", 0) && of("both", 1) && of("gone/x", 0) && of("top", 1) && !of("both", 0));
        fs::write(images.folder.join("new-1"), "").unwrap();
        assert_eq!(images.rest(), 0);
        assert_eq!(images.files().unwrap().len(), 2);
        images.tidy_up().unwrap();
        assert_eq!(images.files().unwrap(), [place]);
        let size = fs::metadata(&wanted.place).unwrap().blocks() * 512;
        assert_eq!(images.made().unwrap(), [(wanted.place, size)]);
        fs::remove_dir_all(&layers[1]).unwrap();
        assert_eq!(images.rest(), size);
        assert!(images.files().unwrap().is_empty() && size > 0);
    }

    #[test]
    fn those_that_are_taken_away_are_not_found_before_they_are_removed() {
        let (_root, images, layers) = images();
        let wanted = wanted(&images, &layers);
        assert!(images.make(&wanted).unwrap());
        let size = images.made().unwrap()[0].1;
        let kept = images.take_unless(|path| path == wanted.place).unwrap();
        assert_eq!(kept.remove().unwrap(), 0);
        let taken = images.take_unless(|_| false).unwrap();
        assert!(images.made().unwrap().is_empty() && images.files().unwrap().len() == 1);
        assert!(images.make(&wanted).unwrap(), "it is made anew");
        assert_eq!(taken.remove().unwrap(), size);
        assert_eq!(images.files().unwrap(), [wanted.place]);
    }

    #[test]
    fn one_of_a_layer_that_was_put_right_is_made_anew() {
        let (root, images, layers) = images();
        let damaged = wanted(&images, &layers);
        assert!(images.make(&damaged).unwrap());
        let kept = root.path().join("kept");
        fs::rename(&layers[0], &kept).unwrap();
        assert!(images.place(&layers).is_err());
        fs::create_dir(&layers[0]).unwrap();
        let right = wanted(&images, &layers);
        assert_ne!(right.place, damaged.place);
        // As a daemon of before has them.
        let old = images.folder.join("two.erofs");
        fs::write(&old, "").unwrap();
        images.rest();
        assert!(!old.exists());
        assert!(images.make(&right).unwrap());
        assert_eq!(images.files().unwrap(), [right.place]);
        // Whoever began with the damaged one does not finish.
        assert!(matches!(images.put(&damaged), Err(Error::Conflict(_))));
        assert_eq!(images.files().unwrap().len(), 1);
    }

    #[test]
    fn one_that_is_too_large_is_not_written_and_tried_again_for_a_larger_machine() {
        let (_root, images, layers) = images();
        let large = File::create(layers[1].join("large")).unwrap();
        large.set_len(64 << 20).unwrap();
        let mut wanted = wanted(&images, &layers);
        let error = images.make(&wanted).unwrap_err();
        assert!(
            matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::FileTooLarge),
            "{error:?}"
        );
        assert!(images.files().unwrap().is_empty() && !images.make(&wanted).unwrap());
        wanted.memory = 64 << 20;
        assert!(images.make(&wanted).unwrap());
        let made = fs::metadata(&wanted.place).unwrap();
        assert!(made.len() > 64 << 20 && made.blocks() * 512 < 4 << 20);
    }

    #[test]
    fn an_error_that_passes_is_not_kept() {
        let (root, images, layers) = images();
        let place = wanted(&images, &layers).place;
        fs::create_dir(root.path().join("machines")).unwrap();
        fs::write(&images.folder, "no folder").unwrap();
        let wanted = WantedImage { place, layers, memory: MEMORY };
        assert!(images.make(&wanted).is_err());
        fs::remove_file(&images.folder).unwrap();
        assert!(images.make(&wanted).unwrap());
        // Somebody removes it, and it is made again.
        fs::remove_file(&wanted.place).unwrap();
        assert!(images.make(&wanted).unwrap());
    }

    #[test]
    fn one_that_cannot_be_made_is_not_tried_again_and_leaves_nothing() {
        let (_root, images, layers) = images();
        let deep: PathBuf = std::iter::repeat_n("d", DEEPEST).collect();
        fs::create_dir_all(layers[1].join(deep)).unwrap();
        let wanted = wanted(&images, &layers);
        assert!(images.make(&wanted).is_err() && images.files().unwrap().is_empty());
        assert!(!images.make(&wanted).unwrap());
        fs::remove_dir_all(&layers[1]).unwrap();
        images.rest();
        assert!(lock(&images.begun).refused.is_empty());
    }

    #[test]
    fn the_hosts_own_system_has_none() {
        let (_root, images, _) = images();
        assert!(images.place(&["/".into()]).unwrap().is_none() && images.place(&[]).unwrap().is_none());
    }
}
