//! What a program is executed as for the kernel's security modules: apparmor(7).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};

use insula_spec::plan::ProcessPlan;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::paths;
use crate::error::{Context, Error, Result};

/// Has the next execution of this process change to its profile. What is written must be the process' own file of
/// `/proc` and nothing that only looks like it; opened and written with the same rights, as the kernel wants it.
pub(super) fn label(process: &ProcessPlan, proc: Option<BorrowedFd<'_>>) -> Result<()> {
    let profile = process.exact.as_ref().and_then(|exact| exact.apparmor.as_ref());
    let Some(profile) = profile else { return Ok(()) };
    let needs = || Error::Invalid("process.apparmorProfile: the container mounts no /proc".to_owned());
    let proc = proc.ok_or_else(needs)?;
    let own = rustix::process::getpid().as_raw_nonzero();
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let open = |name: &str| {
        let path = format!("{own}/attr/{name}");
        rustix::fs::openat2(proc, path.as_str(), flags, Mode::empty(), paths::within_one_mount())
    };
    // The second one is shared by all modules, and all there is before Linux 5.8.
    let file = match open("apparmor/exec") {
        Err(Errno::NOENT) => open("exec"),
        file => file,
    };
    let file = file.context("openat2", "process.apparmorProfile")?;
    paths::check_proc(&file, "process.apparmorProfile")?;
    File::from(file)
        .write_all(format!("exec {profile}").as_bytes())
        .context("write", format_args!("process.apparmorProfile {profile:?}"))
}

/// The same where the container's `/proc` is known by its path alone.
pub(crate) fn label_by_path(process: &ProcessPlan) -> Result<()> {
    if process.exact.as_ref().is_none_or(|exact| exact.apparmor.is_none()) {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).context("open", "/proc")?;
    label(process, Some(proc.as_fd()))
}
