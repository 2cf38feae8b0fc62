//! The container's root from an image in the machine's memory, with the kernel's `dax`: its files are where they are,
//! in the host's page cache, and take no memory of the guest's.
//!
//! ```text
//! /share/root = overlay of /image (EROFS, dax) and a tmpfs, which has the folders that things are mounted on
//! ```

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::mount::MountFlags;

use crate::error::{Context, Error, Result};

/// Where its block device is, made by the kernel's `nd_pmem`.
const DEVICE: &str = "/dev/pmem0";
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(5);
const PLACE: &str = "/image";
const CHANGES: &str = "/changes";
/// What `insula_container::share` calls it.
const ROOT: &str = "/share/root";
/// Devices behind registers in memory, by how the machine's tables call them.
const DEVICES: &str = "/sys/bus/platform/devices";
const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";
const NAME: &str = "LNRO0005:";

/// Over the root that is shared, which has the same files.
pub(crate) fn mount() -> Result<()> {
    find_device()?;
    for folder in [PLACE, CHANGES] {
        fs::create_dir(folder).context("mkdir", folder)?;
    }
    rustix::mount::mount(DEVICE, PLACE, "erofs", MountFlags::RDONLY, c"dax=always")
        .context("mount", format_args!("{DEVICE} on {PLACE}"))?;
    rustix::mount::mount("tmpfs", CHANGES, "tmpfs", MountFlags::empty(), c"mode=755,size=1m")
        .context("mount", format_args!("tmpfs on {CHANGES}"))?;
    for folder in ["/changes/upper", "/changes/work"] {
        fs::create_dir(folder).context("mkdir", folder)?;
    }
    let options = c"lowerdir=/image,upperdir=/changes/upper,workdir=/changes/work";
    rustix::mount::mount("overlay", ROOT, "overlay", MountFlags::empty(), options)
        .context("mount", format_args!("overlay on {ROOT}"))
}

/// In a copy of a template the place of the device was vacant when its driver looked: it is to look again.
fn find_device() -> Result<()> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .context("inotify_init1", "for devices")?;
    inotify::add_watch(&watch, "/dev", WatchFlags::CREATE).context("inotify_add_watch", "/dev")?;
    for entry in fs::read_dir(DEVICES).context("open", DEVICES)?.flatten() {
        let name = entry.file_name();
        let is_one = name.to_str().is_some_and(|name| name.starts_with(NAME));
        if is_one && !entry.path().join("driver").exists() {
            let bind = format!("{DRIVER}/bind");
            fs::write(&bind, name.as_encoded_bytes()).context("write", bind)?;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while !Path::new(DEVICE).exists() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::NoImage);
        }
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut polled = [PollFd::new(&watch, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&time)))
            .context("poll", "for devices")?;
        // What it says is of no interest, and that it says nothing is no error.
        let _ = rustix::io::read(&watch, &mut [0; 4096]);
    }
    Ok(())
}
