//! The monitor's program, on a mount that nothing can be written through.
//!
//! A container can have the program that starts it executed once more, as `/proc/self/exe`, and then sees
//! it in its own `/proc`. With the host's user ids its root could write to it, were it not for the mount
//! (CVE-2019-5736 of other engines). The mount is attached nowhere, so nobody can make it writable again.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use insula_sys::mount::{MountAttributes, set_attributes};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

/// A program to execute.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    mount: Option<OwnedFd>,
}

impl Program {
    /// The program at `path`; by its path alone where the mount cannot be made, which the log says.
    pub(super) fn new(path: PathBuf) -> Self {
        let mount = protected(&path).inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "mount the monitor's program read-only");
        });
        Self { path, mount: mount.ok() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn command(&self) -> Command {
        let Some(mount) = &self.mount else { return Command::new(&self.path) };
        // It is closed by the very execution that it is looked up for.
        let mut command = Command::new(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        command.arg0(&self.path);
        command
    }
}

fn protected(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, path, flags)?;
    let attributes =
        MountAttributes { readonly: true, nosuid: true, nodev: true, ..MountAttributes::default() };
    set_attributes(mount.as_fd(), attributes, false)?;
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, ErrorKind};
    use std::os::unix::fs::PermissionsExt;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn who_sees_the_program_run_cannot_write_to_it() {
        if !rustix::process::geteuid().is_root() {
            assert!(!std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default().contains("root"), "needs root");
            eprintln!("skipped: needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::copy(std::fs::canonicalize("/bin/sh").unwrap(), &path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = Program::new(path.clone());
        let mut child = program
            .command()
            .args(["-c", "echo $0; read x"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut name = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut name).unwrap();
        assert_eq!(Path::new(name.trim()), path);
        // Held open while it runs, opened anew when it does not: no busy text stands in the way then.
        let seen = std::fs::File::open(format!("/proc/{}/exe", child.id())).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        let again = format!("/proc/self/fd/{}", seen.as_raw_fd());
        let error = std::fs::OpenOptions::new().write(true).open(again).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
        std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    }
}
