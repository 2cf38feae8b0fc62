//! The root file system as one detached mount: shared layers below, the writable one on top.
//!
//! Layers are handed to overlayfs as descriptors of idmapped clones (Linux 6.13 and later), so
//! nothing is ever attached in the builder's mount namespace. Older kernels only take paths in an
//! attached tree; there a short-lived child attaches the clones in a mount namespace of its own
//! ([`attached`]).

mod attached;

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use insula_spec::plan::{RootfsPlan, UpperPlan};
use insula_sys::mount::MountAttributes;
use insula_sys::process;
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::error::{Context, Error, Result};
use crate::idmap::detached;

pub(crate) use attached::maps_layers;

/// Image layers must not be able to point elsewhere by extended attributes.
const OPTIONS: [(&str, &str); 3] = [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")];

/// A root file system, and what it was made of. The overlay has clones of its own of all parts, which may go any time;
/// with each that goes the kernel waits for every processor to have switched, an init that mounts meanwhile included.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) mount: OwnedFd,
    pub(crate) parts: Vec<OwnedFd>,
}

impl From<OwnedFd> for Root {
    fn from(mount: OwnedFd) -> Self {
        Self { mount, parts: Vec::new() }
    }
}

/// Builds the root file system of a plan, its ids mapped by `namespace` where the plan says so;
/// `maker` is the container's root as the host sees it.
pub(crate) fn build(plan: &RootfsPlan, namespace: Option<BorrowedFd<'_>>, maker: u32) -> Result<Root> {
    let idmap = if plan.idmap { namespace } else { None };
    let attributes = MountAttributes { idmap, ..MountAttributes::default() };
    match (&plan.upper, plan.layers.as_slice()) {
        (_, []) => Err(Error::Invalid("a root file system needs at least one layer".to_owned())),
        (None, [only]) if plan.whole => detached(only, false, attributes).map(Root::from),
        (None, [only]) => {
            detached(only, false, MountAttributes { readonly: true, ..attributes }).map(Root::from)
        }
        (upper, layers) => {
            let layers =
                layers.iter().map(|path| detached(path, false, attributes)).collect::<Result<Vec<_>>>()?;
            overlay(layers, upper.as_ref(), attributes, maker)
        }
    }
}

/// Whether file systems of containers can be made of folders below `root`: an error says what is missing. Makes a
/// folder there for it and removes it again. For a process of one thread.
pub fn probe_layers(root: &Path) -> Result<()> {
    let folder = root.join("probe");
    let remove = || match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    // Who was killed here before left it.
    remove().context("rmdir", folder.display())?;
    let of = |name: &str| folder.join(name);
    for name in ["lower", "upper", "work"] {
        std::fs::create_dir_all(of(name)).context("mkdir", folder.display())?;
    }
    let plan = RootfsPlan {
        layers: vec![of("lower")],
        upper: Some(UpperPlan { upper: of("upper"), work: of("work"), volatile: false }),
        hidden: Vec::new(),
        idmap: false,
        readonly: false,
        whole: false,
    };
    let built = build(&plan, None, 0);
    remove().context("rmdir", folder.display())?;
    built.map(drop).map_err(|error| {
        let kind = file_system(root).unwrap_or_else(|| "a file system".to_owned());
        Error::Unsupported(format!(
            "{} is on {kind}, which takes no writable layers of containers ({}); choose a folder on another file system, \
             such as ext4, xfs, btrfs or tmpfs",
            root.display(),
            insula_base::chain(&error)
        ))
    })
}

/// The kind of file system that a path is on, as proc_pid_mountinfo(5) names it.
fn file_system(path: &Path) -> Option<String> {
    let device = rustix::fs::stat(path).ok()?.st_dev;
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(|line| {
        (line.split(' ').nth(2)? == device)
            .then(|| line.split_once(" - ")?.1.split(' ').next().map(str::to_owned))?
    })
}

/// Whether a mount's root is a folder.
pub(crate) fn is_folder(mount: &OwnedFd) -> Result<bool> {
    let mode = rustix::fs::fstat(mount).context("fstat", "a root file system")?.st_mode;
    Ok(rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Directory)
}

/// `layers` lowest first.
fn overlay(
    layers: Vec<OwnedFd>,
    upper: Option<&UpperPlan>,
    attributes: MountAttributes<'_>,
    maker: u32,
) -> Result<Root> {
    let writable = upper.map(|upper| Writable::open(upper, attributes)).transpose()?;
    let volatile = upper.filter(|upper| upper.volatile);
    // overlayfs works on the writable layer as who made it: that must be someone whom a mapped layer
    // knows, the container's root.
    let mapped = attributes.idmap.is_some();
    let maker = if mapped { maker } else { 0 };
    let stacked = || {
        // What fails may leave a mark, too.
        volatile.map_or(Ok(()), forget_former_use)?;
        match by_descriptors(&layers, writable.as_ref(), maker)? {
            Some(overlay) => Ok(overlay),
            None => attached::overlay(&layers, writable.as_ref(), mapped, maker),
        }
    };
    let mount = match (stacked(), volatile) {
        (Err(_), Some(upper)) => {
            see_errors(&upper.upper)?;
            stacked()?
        }
        (made, _) => made?,
    };
    if let Some(upper) = upper {
        takes_changes(&mount, upper, maker)?;
    }
    Ok(Root { mount, parts: layers.into_iter().chain(writable.map(|all| all.tree)).collect() })
}

/// After an error in writing back that nobody has asked for, overlayfs mounts nothing volatile on a file system
/// (`ovl_fill_super` in fs/overlayfs/super.c). What is volatile is not what the error matters for.
fn see_errors(folder: &Path) -> Result<()> {
    let folder =
        rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context("open", folder.display())?;
    // It says the error.
    let _ = rustix::fs::syncfs(&folder);
    Ok(())
}

/// overlayfs leaves a mark in the work folder of what it was told not to sync, and does not take that again: the host
/// may have crashed in between. After that a container whose layer is volatile is removed, if anything of it ever ran.
fn forget_former_use(upper: &UpperPlan) -> Result<()> {
    let mark = upper.work.join("work/incompat/volatile");
    match std::fs::remove_dir_all(&mark) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("unlink", mark.display())
        }
        _ => Ok(()),
    }
}

/// Where overlayfs cannot make a folder of its own in the work folder, for the disk is full, it says so in the
/// kernel's log alone and becomes read-only (`ovl_make_workdir` in the kernel's fs/overlayfs/super.c): every
/// program would fail later, with words that lead nowhere.
fn takes_changes(overlay: &OwnedFd, upper: &UpperPlan, maker: u32) -> Result<()> {
    let flags = rustix::fs::fstatvfs(overlay).context("fstatvfs", "the overlay")?.f_flag;
    if !flags.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    // For the reason, what overlayfs has tried.
    let probe = upper.work.join("probe");
    process::with_file_system_id(maker, || std::fs::create_dir(&probe))
        .context("setfsuid", "to make a folder")?
        .context("mkdir", probe.display())?;
    std::fs::remove_dir(&probe).context("rmdir", probe.display())?;
    let source = std::io::ErrorKind::ReadOnlyFilesystem.into();
    Err(Error::Call { call: "mount", on: format!("{} to be written to", upper.upper.display()), source })
}

/// None where the kernel does not take descriptors.
fn by_descriptors(layers: &[OwnedFd], writable: Option<&Writable>, maker: u32) -> Result<Option<OwnedFd>> {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen", "overlay")?;
    // The topmost layer comes first in overlayfs' own order.
    let lower = layers.iter().rev().map(|layer| ("lowerdir+", layer));
    let volatile = writable.is_some_and(|all| all.volatile);
    let writable =
        writable.iter().flat_map(|all| [("upperdir", &all.upper.folder), ("workdir", &all.work.folder)]);
    for (key, folder) in lower.chain(writable) {
        match rustix::mount::fsconfig_set_fd(&fs, key, folder) {
            // The latter where overlayfs itself does not know the new mount calls, before Linux 6.5.
            Err(Errno::INVAL | Errno::OPNOTSUPP) if key == "lowerdir+" => return Ok(None),
            result => result.context("fsconfig", key)?,
        }
    }
    for (key, value) in [("source", "overlay")].into_iter().chain(OPTIONS) {
        rustix::mount::fsconfig_set_string(&fs, key, value).context("fsconfig", key)?;
    }
    let flags = [("userxattr", process::in_user_namespace()), ("volatile", volatile)];
    for (flag, _) in flags.into_iter().filter(|(_, wanted)| *wanted) {
        rustix::mount::fsconfig_set_flag(&fs, flag).context("fsconfig", flag)?;
    }
    process::with_file_system_id(maker, || rustix::mount::fsconfig_create(&fs))
        .context("setfsuid", "to create the overlay")?
        .context("fsconfig", "to create the overlay")?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .context("fsmount", "the overlay")
        .map(Some)
}

/// The upper and work folders, opened below one clone: overlayfs wants both on the same mount.
#[derive(Debug)]
struct Writable {
    upper: Opened,
    work: Opened,
    /// The clone: when its descriptor goes before the overlay has its own, it is taken apart.
    tree: OwnedFd,
    volatile: bool,
}

#[derive(Debug)]
struct Opened {
    name: OsString,
    folder: OwnedFd,
}

impl Writable {
    fn open(plan: &UpperPlan, attributes: MountAttributes<'_>) -> Result<Self> {
        let folder = |path: &Path| path.parent().map(Path::to_owned);
        let common = folder(&plan.upper)
            .filter(|parent| Some(parent) == folder(&plan.work).as_ref())
            .ok_or_else(|| {
                Error::Invalid(format!("{} and its work folder have no common parent", plan.upper.display()))
            })?;
        let tree = detached(&common, false, attributes)?;
        let open = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_owned();
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let folder = rustix::fs::openat(tree.as_fd(), &name, flags, Mode::empty())
                .context("openat", path.display())?;
            Ok::<_, Error>(Opened { name, folder })
        };
        Ok(Self { upper: open(&plan.upper)?, work: open(&plan.work)?, tree, volatile: plan.volatile })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unmounts on every way out.
    struct Mounted<'a>(&'a Path);

    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }

    /// The plan of an overlay in a new tmpfs at `folder`, if this is root.
    fn on_tmpfs<'a>(
        folder: &'a Path,
        size: &std::ffi::CStr,
        volatile: bool,
    ) -> Option<(RootfsPlan, Mounted<'a>)> {
        if !rustix::process::geteuid().is_root() {
            assert!(!std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default().contains("root"), "needs root");
            eprintln!("skipped: needs root");
            return None;
        }
        let none = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", folder, "tmpfs", none, Some(size)).unwrap();
        let mounted = Mounted(folder);
        let of = |name: &str| folder.join(name);
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(of(name)).unwrap();
        }
        let plan = RootfsPlan {
            layers: vec![of("lower")],
            upper: Some(UpperPlan { upper: of("upper"), work: of("work"), volatile }),
            hidden: Vec::new(),
            idmap: false,
            readonly: false,
            whole: false,
        };
        Some((plan, mounted))
    }

    /// As [`build`]; None where a child would do it.
    fn built(plan: &RootfsPlan) -> Option<Root> {
        match build(plan, None, 0) {
            Err(Error::Call { call: "clone3", .. }) => {
                eprintln!(
                    "skipped: before Linux 6.13 a child stacks layers, which no test of many threads clones"
                );
                None
            }
            built => Some(built.unwrap()),
        }
    }

    /// overlayfs refuses a layer that it was not to sync, where its mark says that it was used before.
    #[test]
    fn a_volatile_layer_is_mounted_again() {
        let folder = tempfile::tempdir().unwrap();
        let Some((plan, _mounted)) = on_tmpfs(folder.path(), c"mode=755", true) else { return };
        let mark = folder.path().join("work/work/incompat/volatile");
        for _ in 0..2 {
            let Some(root) = built(&plan) else { return };
            assert!(mark.is_dir(), "it is volatile");
            drop(root);
            assert!(mark.is_dir(), "the mark stays");
        }
        let synced = |plan: &RootfsPlan| {
            let upper = plan.upper.clone().map(|upper| UpperPlan { volatile: false, ..upper });
            RootfsPlan { upper, ..plan.clone() }
        };
        assert!(build(&synced(&plan), None, 0).is_err(), "nobody takes it for synced");
    }

    #[test]
    fn an_overlay_that_a_full_disk_makes_read_only_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let Some((plan, _mounted)) = on_tmpfs(folder.path(), c"mode=755,size=1m,nr_inodes=12", false) else {
            return;
        };
        let of = |name: &str| folder.path().join(name);
        let Some(root) = built(&plan) else { return };
        drop(root);
        std::fs::remove_dir_all(of("work")).unwrap();
        std::fs::create_dir(of("work")).unwrap();
        let taken = (0..100).take_while(|number| std::fs::File::create(of(&number.to_string())).is_ok());
        assert!(taken.count() < 12);
        let error = build(&plan, None, 0).unwrap_err();
        let message = insula_base::chain(&error);
        assert!(message.contains("work/probe") && message.contains("No space left"), "{message}");
    }
}
