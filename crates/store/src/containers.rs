//! The folders of containers.
//!
//! ```text
//! containers/<id>/
//!   upper  work          the writable layer, where nobody asked for its size; or
//!   layer/               a folder with a project quota (insula_host::quota): upper and work are in there; or
//!   disk                 a file with a file system of that size (insula_host::disk), and
//!   layer/               where it is mounted, with the same in it
//!   json.log*            what the container writes, or container.log*, as its monitor names it
//!   logs/                the same in a folder, made last: where the writable layer has a size and cannot be seen
//!                        while it is not attached, and in roots of layout 1
//! containers/.removed-*  on its way out, or in, or made for a container to come; swept at the next open
//! ```
//!
//! A disk is mounted from when it is made, or first used after the host has started, until its container goes or
//! the daemon ends in order. That it is mounted already, by a daemon that was killed, is as good.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use insula_base::ContainerId;
use insula_host::disk;
use insula_host::quota::Quotas;
use insula_sys::failpoint::failpoint;

use crate::root::{DYING, make_folder, remove_any, set_aside};
use crate::{Error, Result, Store};

const DISK: &str = "disk";
const LAYER: &str = "layer";
const LOGS: &str = "logs";

/// How much a writable layer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSize {
    pub bytes: u64,
    pub writer: Writer,
}

/// Who writes into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// Somebody in a user namespace of its own: a quota of the file system holds.
    OwnIds,
    /// Somebody with the host's ids, who could give files to another project: nothing but a disk holds.
    HostIds,
}

impl Store {
    /// Why sizes of writable layers are not held by quotas of the file system; nothing where they are.
    #[must_use]
    pub fn without_quotas(&self) -> Option<&str> {
        self.quotas.as_ref().err().map(String::as_str)
    }

    /// Where a container's folders are, made or not. Those of a writable layer with a size of its own are seen
    /// after [`Store::attach_container_dir`] only.
    #[must_use]
    pub fn container_dir(&self, id: &ContainerId) -> ContainerDir {
        ContainerDir::at(self.containers_dir().join(id.as_str()))
    }

    /// Makes a container's folders; that they are there already is no error. `size` is that of its writable
    /// layer.
    pub fn create_container_dir(&self, id: &ContainerId, size: Option<LayerSize>) -> Result<ContainerDir> {
        let path = self.containers_dir().join(id.as_str());
        if size.is_none()
            && let Some(staged) = lock(&self.staged).pop()
            && fs::rename(&staged.folder, &path).is_ok()
        {
            return Ok(ContainerDir::at(path));
        }
        make_folder(&path, 0o700)?;
        let folder = make_layer(&path, size, self.quotas())?;
        folder.complete()?;
        Ok(folder)
    }

    /// Makes folders of this many containers to come, of no size, which then take a moment: their inodes are not found
    /// without reading the disk.
    pub fn stage_container_dirs(&self, many: usize) -> Result<()> {
        while lock(&self.staged).len() < many {
            let staged = self.begin_upper(None)?;
            lock(&self.staged).push(staged);
        }
        Ok(())
    }

    /// The same with a writable layer that was made before; it has the size that it was begun with.
    pub fn restore_container_dir(&self, id: &ContainerId, upper: &StagedUpper) -> Result<ContainerDir> {
        let path = self.containers_dir().join(id.as_str());
        fs::rename(&upper.folder, &path).map_err(|e| Error::io("rename", &upper.folder, e))?;
        let folder = ContainerDir::at(path);
        folder.complete()?;
        Ok(folder)
    }

    /// A writable layer for a container that is still to be made, of this size. What a crash leaves is swept at
    /// the next open.
    pub fn begin_upper(&self, size: Option<LayerSize>) -> Result<StagedUpper> {
        let name = format!("{DYING}{}", insula_base::random_hex(8));
        let path = self.containers_dir().join(name);
        make_folder(&path, 0o700)?;
        // From here on it is removed when something fails.
        let quotas = self.quotas.as_ref().ok().cloned();
        let mut staged = StagedUpper { folder: path, upper: PathBuf::new(), quotas };
        staged.upper = make_layer(&staged.folder, size, self.quotas())?.upper();
        Ok(staged)
    }

    /// A container's folders, its writable layer to be seen.
    pub fn attach_container_dir(&self, id: &ContainerId) -> Result<ContainerDir> {
        let folder = self.container_dir(id);
        if folder.has_disk() {
            let _turn = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
            if !disk::is_mounted(&folder.layer())? {
                disk::mount(&folder.disk(), &folder.layer())?;
            }
        }
        Ok(folder)
    }

    /// Unmounts a container's disk, if it has one. For one that does not run.
    pub fn detach_container_dir(&self, id: &ContainerId) -> Result<()> {
        let _turn = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        self.container_dir(id).detach()
    }

    /// The folder whose disk a mount at `target` is: a container's by its id, or, by another name, one that is
    /// being made or removed.
    #[must_use]
    pub fn disk_at<'a>(&self, target: &'a Path) -> Option<&'a str> {
        let name = target.strip_prefix(self.containers_dir()).ok()?.parent()?.to_str()?;
        let whole = !name.is_empty() && !name.contains('/') && target.ends_with(LAYER);
        whole.then_some(name)
    }

    /// How many errors the kernel has met in a container's disk; none where there is no disk, or it is not mounted.
    pub fn container_disk_errors(&self, id: &ContainerId) -> Result<u64> {
        let folder = self.container_dir(id);
        if !folder.has_disk() || !disk::is_mounted(&folder.layer())? {
            return Ok(0);
        }
        Ok(disk::errors(&folder.layer())?)
    }

    /// Repairs a container's disk, which must not be in use.
    pub fn repair_container_disk(&self, id: &ContainerId) -> Result<()> {
        let folder = self.container_dir(id);
        self.detach_container_dir(id)?;
        Ok(disk::repair(&folder.disk())?)
    }

    /// Removes a container's folders and everything in them. They vanish at once by a rename; what
    /// is then left half removed by a crash is swept at the next open.
    pub fn remove_container_dir(&self, id: &ContainerId) -> Result<()> {
        match set_aside(&self.container_dir(id).path, &self.containers_dir())? {
            Some(dying) => remove_folder(dying, self.quotas()),
            None => Ok(()),
        }
    }

    /// Every container that has a folder.
    pub fn container_dirs(&self) -> Result<Vec<ContainerId>> {
        let path = self.containers_dir();
        let mut ids = Vec::new();
        for entry in fs::read_dir(&path).map_err(|e| Error::io("readdir", &path, e))? {
            let entry = entry.map_err(|e| Error::io("readdir", &path, e))?;
            ids.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        Ok(ids)
    }

    fn quotas(&self) -> Option<&Quotas> {
        self.quotas.as_ref().ok().map(AsRef::as_ref)
    }

    fn containers_dir(&self) -> PathBuf {
        self.root().join("containers")
    }
}

/// A writable layer that no container has yet. Dropped, it is gone.
#[derive(Debug)]
pub struct StagedUpper {
    folder: PathBuf,
    upper: PathBuf,
    quotas: Option<Arc<Quotas>>,
}

impl StagedUpper {
    /// The folder to fill.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.upper
    }
}

impl Drop for StagedUpper {
    fn drop(&mut self) {
        // With its container it is elsewhere.
        if self.folder.exists()
            && let Err(error) = remove_folder(self.folder.clone(), self.quotas.as_deref())
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a writable layer is left for the next open"
            );
        }
    }
}

/// The folders of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDir {
    path: PathBuf,
    size: Size,
}

/// What holds the size of a writable layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// It has none.
    None,
    Quota,
    Disk,
}

impl ContainerDir {
    fn at(path: PathBuf) -> Self {
        // The folder is made after the disk.
        let size = match (path.join(LAYER).is_dir(), path.join(DISK).exists()) {
            (false, _) => Size::None,
            (true, false) => Size::Quota,
            (true, true) => Size::Disk,
        };
        Self { path, size }
    }

    /// The folder of the container.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The writable layer.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.writable().join("upper")
    }

    /// Overlay's scratch folder, on the same file system.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.writable().join("work")
    }

    /// Where log files are: beside the writable layer, or in a folder of their own where its being there also
    /// says that all else is.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        let own = self.path.join(LOGS);
        if own.is_dir() { own } else { self.path.clone() }
    }

    /// Whether all of it was made. Of one that has a size nothing can be seen while it is not attached, but for a
    /// folder that was made last.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.path.join(LOGS).is_dir() || (!self.is_sized() && self.work().is_dir())
    }

    /// The last step of making it.
    fn complete(&self) -> Result<()> {
        if self.is_sized() { make_folder(&self.path.join(LOGS), 0o700) } else { Ok(()) }
    }

    /// Whether the writable layer has a size of its own.
    #[must_use]
    pub fn is_sized(&self) -> bool {
        self.size != Size::None
    }

    /// Whether it has a disk of its own for that, which has to be mounted.
    #[must_use]
    pub fn has_disk(&self) -> bool {
        self.size == Size::Disk
    }

    /// The file that the disk is.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.path.join(DISK)
    }

    fn layer(&self) -> PathBuf {
        self.path.join(LAYER)
    }

    fn writable(&self) -> PathBuf {
        if self.is_sized() { self.layer() } else { self.path.clone() }
    }

    fn detach(&self) -> Result<()> {
        if self.has_disk() && disk::is_mounted(&self.layer())? {
            disk::unmount(&self.layer())?;
        }
        Ok(())
    }
}

fn lock(staged: &Mutex<Vec<StagedUpper>>) -> MutexGuard<'_, Vec<StagedUpper>> {
    staged.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the writable layer in the folder of a container.
fn make_layer(path: &Path, size: Option<LayerSize>, quotas: Option<&Quotas>) -> Result<ContainerDir> {
    if let Some(size) = size {
        hold(path, size, quotas)?;
    }
    let folder = ContainerDir::at(path.to_owned());
    // Overlay shows the upper folder's own mode as the mode of the container's root.
    make_folder(&folder.upper(), 0o755)?;
    make_folder(&folder.work(), 0o700)?;
    if folder.is_sized() {
        // overlayfs replaces it with one of its own. Where all is used up there would be no block for a first
        // one, and overlayfs would mount the layer read-only without a word.
        make_folder(&folder.work().join("work"), 0o000)?;
    }
    Ok(folder)
}

/// Makes the folder that a writable layer with a size is in. A part of it may be there, from one that was killed.
fn hold(path: &Path, size: LayerSize, quotas: Option<&Quotas>) -> Result<()> {
    let folder = ContainerDir::at(path.to_owned());
    let layer = folder.layer();
    match (folder.size, quotas) {
        (Size::Disk, _) => {}
        (Size::None, Some(quotas)) if size.writer == Writer::OwnIds => {
            make_folder(&layer, 0o700)?;
            return Ok(quotas.hold(&layer, size.bytes)?);
        }
        // Its project comes before anything is made in it.
        (Size::Quota, Some(quotas)) if quotas.of(&layer)?.is_none() => {
            return Ok(quotas.hold(&layer, size.bytes)?);
        }
        (Size::Quota, _) => return Ok(()),
        (Size::None, _) => {
            remove_any(&folder.disk())?;
            disk::make(&folder.disk(), size.bytes)?;
            make_folder(&layer, 0o700)?;
        }
    }
    if !disk::is_mounted(&layer)? {
        disk::mount(&folder.disk(), &layer)?;
    }
    failpoint("create.disk");
    Ok(())
}

/// Removes the folder of a container that nobody finds any more.
fn remove_folder(dying: PathBuf, quotas: Option<&Quotas>) -> Result<()> {
    let folder = ContainerDir::at(dying);
    if folder.has_disk() {
        folder.detach()?;
        failpoint("remove.disk");
        if let Err(error) = disk::give_up(&folder.disk(), &folder.layer()) {
            // It goes all the same, and its room when the last one that has it mounted ends.
            tracing::warn!(error = &error as &dyn std::error::Error, "a disk is still in use elsewhere");
        }
    }
    let project = match quotas {
        Some(quotas) if folder.size == Size::Quota => quotas.of(&folder.layer())?,
        _ => None,
    };
    remove_any(&folder.path)?;
    match (quotas, project) {
        (Some(quotas), Some(id)) => Ok(quotas.release(id)?),
        _ => Ok(()),
    }
}

/// Removes what was on its way out, or in, when the last daemon ended.
pub(crate) fn sweep(folder: &Path, quotas: Option<&Quotas>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io("readdir", folder, e))? {
        let entry = entry.map_err(|e| Error::io("readdir", folder, e))?;
        if entry.file_name().as_encoded_bytes().starts_with(DYING.as_bytes()) {
            remove_folder(entry.path(), quotas)?;
        }
    }
    quotas.map_or(Ok(()), |quotas| Ok(quotas.sweep()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_disks_are_told_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let at = |path: &str| store.disk_at(&store.containers_dir().join(path)).map(str::to_owned);
        assert_eq!(at("abc/layer").as_deref(), Some("abc"));
        for other in ["layer", "abc", "abc/upper", "abc/layer/layer", "../layers/abc/layer"] {
            assert_eq!(at(other), None, "{other}");
        }
    }

    #[test]
    fn container_folders_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let id = ContainerId::random();
        let made = store.create_container_dir(&id, None).unwrap();
        store.create_container_dir(&id, None).unwrap();
        fs::write(made.upper().join("file"), "x").unwrap();
        assert!(made.is_complete() && made.logs() == made.path() && !made.is_sized());
        fs::remove_dir(made.work()).unwrap();
        assert!(!made.is_complete());
        // As version 1 of the layout has it.
        make_folder(&made.path().join(LOGS), 0o700).unwrap();
        assert!(made.is_complete() && made.logs().ends_with(LOGS));
        assert_eq!(store.attach_container_dir(&id).unwrap(), made);
        assert_eq!(store.container_dirs().unwrap(), std::slice::from_ref(&id));
        store.remove_container_dir(&id).unwrap();
        store.remove_container_dir(&id).unwrap();
        assert!(store.container_dirs().unwrap().is_empty());
        assert_eq!(fs::read_dir(folder.path().join("containers")).unwrap().count(), 0);
    }

    #[test]
    fn a_writable_layer_that_nobody_wants_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (kept, id) = (store.begin_upper(None).unwrap(), ContainerId::random());
        fs::write(kept.path().join("file"), "x").unwrap();
        let restored = store.restore_container_dir(&id, &kept).unwrap();
        drop(kept);
        assert_eq!(fs::read(restored.upper().join("file")).unwrap(), b"x");
        drop(store.begin_upper(None).unwrap());
        assert_eq!(store.container_dirs().unwrap(), [id]);
        assert_eq!(fs::read_dir(folder.path().join("containers")).unwrap().count(), 1);
    }

    #[test]
    fn folders_that_were_made_before_are_those_of_the_next_containers() {
        let folder = tempfile::tempdir().unwrap();
        let all = folder.path().join("containers");
        let names = || -> Vec<String> {
            let entries = fs::read_dir(&all).unwrap().map(|entry| entry.unwrap().file_name());
            entries.map(|name| name.into_string().unwrap()).collect()
        };
        let store = Store::open(folder.path()).unwrap();
        store.stage_container_dirs(2).unwrap();
        store.stage_container_dirs(2).unwrap();
        assert!(names().len() == 2 && names().iter().all(|name| name.starts_with(DYING)));
        let ids = [(); 3].map(|()| ContainerId::random());
        for (left, id) in [1, 0, 0].into_iter().zip(&ids) {
            let made = store.create_container_dir(id, None).unwrap();
            assert!(made.is_complete() && made.path().join("upper").is_dir());
            assert_eq!(names().iter().filter(|name| name.starts_with(DYING)).count(), left);
        }
        store.stage_container_dirs(1).unwrap();
        // Where there is one already it stays.
        fs::write(store.container_dir(&ids[0]).upper().join("file"), "x").unwrap();
        let again = store.create_container_dir(&ids[0], None).unwrap();
        assert_eq!(fs::read(again.upper().join("file")).unwrap(), b"x");
        store.stage_container_dirs(2).unwrap();
        drop(store);
        assert_eq!(names().len(), 3, "those that nobody has are gone");
    }

    /// Where nothing is mounted, since who removed it has failed, its content is on no disk.
    #[test]
    fn a_layer_with_a_size_comes_and_goes() {
        if !rustix::process::geteuid().is_root() {
            assert!(!std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default().contains("root"), "needs root");
            eprintln!("skipped: needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let id = ContainerId::random();
        let staged =
            store.begin_upper(Some(LayerSize { bytes: disk::SMALLEST, writer: Writer::HostIds })).unwrap();
        fs::write(staged.path().join("file"), "x").unwrap();
        let made = store.restore_container_dir(&id, &staged).unwrap();
        drop(staged);
        assert!(made.is_sized() && made.has_disk());
        assert_eq!(fs::read(made.upper().join("file")).unwrap(), b"x");
        store.detach_container_dir(&id).unwrap();
        store.detach_container_dir(&id).unwrap();
        assert!(!made.upper().exists());
        store.attach_container_dir(&id).unwrap();
        assert_eq!(fs::read(made.upper().join("file")).unwrap(), b"x");
        let too_much = fs::write(made.upper().join("large"), vec![1; (disk::SMALLEST + 1) as usize]);
        assert_eq!(too_much.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        drop(store);
        // As a killed daemon leaves one that it was removing.
        fs::rename(made.path(), folder.path().join("containers/.removed-1")).unwrap();
        drop(Store::open(folder.path()).unwrap());
        assert_eq!(fs::read_dir(folder.path().join("containers")).unwrap().count(), 0);
    }
}
