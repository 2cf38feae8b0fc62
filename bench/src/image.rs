//! The image of the comparison: the static busybox, nothing else.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// A root file system below `folder`.
pub(crate) fn tree(folder: &Path) -> anyhow::Result<PathBuf> {
    let root = folder.join("rootfs");
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(name)).with_context(|| format!("make {name}"))?;
    }
    let source = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let program = root.join("bin/busybox");
    fs::copy(source.context("busybox is missing: install busybox-static")?, &program)
        .context("copy busybox")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    for applet in ["sh", "true", "sleep"] {
        symlink("busybox", root.join("bin").join(applet)).with_context(|| format!("link {applet}"))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    Ok(root)
}

/// The same as a tar.
pub(crate) fn archive(folder: &Path) -> anyhow::Result<PathBuf> {
    let root = tree(folder)?;
    let path = folder.join("rootfs.tar");
    let status = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&path).arg(".").status();
    if status.context("run tar")?.success() { Ok(path) } else { bail!("tar failed") }
}
