//! What a program is executed as for the kernel's security modules: apparmor(7), selinux(8).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use insula_spec::plan::ProcessPlan;
use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::paths;
use crate::error::{Context, Error, Result};

/// A label that is asked for: where, what is written before it to which of the files that take it.
struct Label {
    field: &'static str,
    before: &'static str,
    label: String,
    files: &'static [&'static str],
}

fn labels(process: &ProcessPlan) -> Vec<Label> {
    let Some(exact) = &process.exact else { return Vec::new() };
    let profile = exact.apparmor.as_ref().map(|profile| Label {
        field: "process.apparmorProfile",
        before: "exec ",
        label: profile.clone(),
        // The second one is shared by all modules, and all there is before Linux 5.8.
        files: &["apparmor/exec", "exec"],
    });
    let context = exact.selinux.as_ref().map(|context| Label {
        field: "process.selinuxLabel",
        before: "",
        label: context.clone(),
        files: &["exec"],
    });
    profile.into_iter().chain(context).collect()
}

/// Has the next execution of this process change to its labels. What is written must be the process' own file of
/// `/proc` and nothing that only looks like it; opened and written with the same rights, as the kernel wants it.
pub(super) fn label(process: &ProcessPlan, proc: Option<BorrowedFd<'_>>) -> Result<()> {
    for label in labels(process) {
        let needs = || Error::Invalid(format!("{}: the container mounts no /proc", label.field));
        write(&label, proc.ok_or_else(needs)?)?;
    }
    Ok(())
}

fn write(Label { field, before, label, files }: &Label, proc: BorrowedFd<'_>) -> Result<()> {
    let own = rustix::process::getpid().as_raw_nonzero();
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = Err(Errno::NOENT);
    for name in *files {
        let path = format!("{own}/attr/{name}");
        file = rustix::fs::openat2(proc, path.as_str(), flags, Mode::empty(), paths::within_one_mount());
        if !matches!(file, Err(Errno::NOENT)) {
            break;
        }
    }
    let file = file.context("openat2", field)?;
    paths::check_proc(&file, field)?;
    let text = format!("{before}{label}");
    File::from(file).write_all(text.as_bytes()).context("write", format_args!("{field} {label:?}"))
}

/// The same where the container's `/proc` is known by its path alone.
pub(crate) fn label_by_path(process: &ProcessPlan) -> Result<()> {
    if labels(process).is_empty() {
        return Ok(());
    }
    label(process, Some(proc()?.as_fd()))
}

fn proc() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open("/proc", flags, Mode::empty()).context("open", "/proc")
}

/// Has the keyring that this process makes next be of its program's context, until that is executed. For an init whose
/// root is the host's.
pub(super) fn label_keyring(process: &ProcessPlan) -> Result<()> {
    let Some(context) = context_of(process) else { return Ok(()) };
    let path = "/proc/thread-self/attr/keycreate";
    std::fs::write(path, context).context("write", format_args!("process.selinuxLabel {context:?} to {path}"))
}

/// The same for who has joined a container, whose `/proc` it sees.
pub(crate) fn label_keyring_inside(process: &ProcessPlan) -> Result<()> {
    let Some(context) = context_of(process) else { return Ok(()) };
    let field = "process.selinuxLabel";
    write(&Label { field, before: "", label: context.to_owned(), files: &["keycreate"] }, proc()?.as_fd())
}

fn context_of(process: &ProcessPlan) -> Option<&str> {
    process.exact.as_ref()?.selinux.as_deref()
}

/// Labels the folder of a new file system that takes no label for all of its files.
pub(super) fn label_folder(tree: &OwnedFd, target: &str, context: &str) -> Result<()> {
    let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
    // As the kernel gives it out: with its end.
    let value = [context.as_bytes(), b"\0"].concat();
    rustix::fs::setxattr(&path, "security.selinux", &value, XattrFlags::empty()).context("setxattr", target)
}
