//! Kernels of distributions: where they are and what they are called.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use insula_spec::machine::KernelPlan;

use super::{Error, elf};

/// A kernel with its modules.
pub type Kernel = KernelPlan;

/// Names that distributions give to kernels, and that of one which is not compressed.
const NAMES: [&str; 5] = ["vmlinuz-", "kernel-", "linux-", "Image-", PLAIN];
/// An ELF file: its release is the rest of its name.
const PLAIN: &str = "vmlinux-";

/// The kernels below `root` (`/` for the host's own), those made for clouds first, then by release, newest
/// first. Those without modules are left out. Of one that is there compressed and not the latter is taken, which
/// starts sooner.
#[must_use]
pub fn installed(root: &Path) -> Vec<Kernel> {
    let mut found: Vec<Kernel> = Vec::new();
    for image in images(root) {
        if let Ok(kernel) = describe(root, &image)
            && !found.iter().any(|known| known.release == kernel.release)
        {
            found.push(kernel);
        }
    }
    let rank = |kernel: &Kernel| (kernel.release.contains("cloud"), numbers(&kernel.release));
    found.sort_by_key(|kernel| std::cmp::Reverse(rank(kernel)));
    found
}

/// The kernel that a path means: a bootable file, or a folder that has one as a package unpacks it.
pub fn find(path: &Path) -> Result<Kernel, Error> {
    let path = fs::canonicalize(path).map_err(Error::io("find", path))?;
    if path.is_dir() {
        return installed(&path).into_iter().next().ok_or(Error::NotAKernel(path));
    }
    // `boot/vmlinuz-6.1` and `usr/lib/modules/6.1/vmlinuz` have the root two and four folders up.
    let root = if path.file_name().is_some_and(|name| name == "vmlinuz") {
        let up = path.ancestors().nth(3).unwrap_or(Path::new("/"));
        if up.ends_with("usr") { up.parent().unwrap_or(Path::new("/")) } else { up }
    } else {
        path.ancestors().nth(2).unwrap_or(Path::new("/"))
    };
    describe(root, &path)
}

fn images(root: &Path) -> Vec<PathBuf> {
    let mut images: Vec<PathBuf> = Vec::new();
    for entry in entries(&root.join("boot")) {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if NAMES.iter().any(|start| name.starts_with(start)) && !name.ends_with(".old") {
            images.push(entry);
        }
    }
    for modules in ["usr/lib/modules", "lib/modules"] {
        images.extend(entries(&root.join(modules)).into_iter().map(|folder| folder.join("vmlinuz")));
    }
    images.retain(|image| image.is_file());
    images.sort_by_key(|image| !is_plain(image));
    images
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn describe(root: &Path, image: &Path) -> Result<Kernel, Error> {
    let release = release(image)?;
    let modules = ["usr/lib/modules", "lib/modules"]
        .into_iter()
        .map(|folder| root.join(folder).join(&release))
        .find(|folder| folder.join("modules.dep").is_file());
    match modules {
        Some(modules) => Ok(Kernel { image: image.to_owned(), modules, release }),
        None => Err(Error::NoModules { release, image: image.to_owned() }),
    }
}

fn is_plain(image: &Path) -> bool {
    image.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PLAIN))
}

/// The release of a bootable file.
fn release(image: &Path) -> Result<String, Error> {
    let file = File::open(image).map_err(Error::io("open", image))?;
    if !elf::is_elf(&file) {
        return written(image, &file);
    }
    let name = image.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let release = name.strip_prefix(PLAIN).filter(|release| is_release(release.as_bytes()));
    let release = release.ok_or_else(|| malformed(image))?;
    if !elf::has_pvh_entry(&file) {
        return Err(Error::NoEntry(image.to_owned()));
    }
    Ok(release.to_owned())
}

/// What a compressed one says it is: Documentation/arch/x86/boot.rst, `kernel_version`.
fn written(image: &Path, file: &File) -> Result<String, Error> {
    const HEADER: u64 = 0x202;
    const VERSION: u64 = 0x20e;
    const LONGEST: usize = 256;
    let wrong = || malformed(image);
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, HEADER).map_err(|_| wrong())?;
    let mut pointer = [0; 2];
    file.read_exact_at(&mut pointer, VERSION).map_err(|_| wrong())?;
    if magic != *b"HdrS" {
        return Err(wrong());
    }
    let mut text = [0; LONGEST];
    let length =
        file.read_at(&mut text, u64::from(u16::from_le_bytes(pointer)) + 0x200).map_err(|_| wrong())?;
    let text = text[..length].split(|byte| *byte == 0).next().unwrap_or_default();
    let word = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    if !is_release(word) {
        return Err(wrong());
    }
    Ok(String::from_utf8_lossy(word).into_owned())
}

/// It is the name of a folder, and must not lead elsewhere.
fn is_release(word: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_+~".contains(byte);
    !word.is_empty() && !word.starts_with(b".") && word.iter().all(plain)
}

fn malformed(image: &Path) -> Error {
    Error::Malformed { path: image.to_owned(), what: "a Linux kernel" }
}

/// What a release is ordered by: `6.1.0-56-cloud` is 6, 1, 0, 56.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|letter: char| !letter.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(root: &Path, release: &str) {
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::create_dir_all(root.join("lib/modules").join(release)).unwrap();
        fs::write(root.join("lib/modules").join(release).join("modules.dep"), "").unwrap();
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        image[0x300..0x300 + release.len()].copy_from_slice(release.as_bytes());
        fs::write(root.join("boot").join(format!("vmlinuz-{release}")), image).unwrap();
    }

    #[test]
    fn kernels_for_clouds_come_first_then_the_newest() {
        let root = tempfile::tempdir().unwrap();
        for release in ["6.1.0-9-amd64", "6.1.0-10-amd64", "5.10.0-1-cloud-amd64"] {
            kernel(root.path(), release);
        }
        fs::write(root.path().join("boot/vmlinuz-odd"), "not a kernel").unwrap();
        let releases: Vec<String> = installed(root.path()).into_iter().map(|kernel| kernel.release).collect();
        assert_eq!(releases, ["5.10.0-1-cloud-amd64", "6.1.0-10-amd64", "6.1.0-9-amd64"]);
        let image = root.path().join("boot/vmlinuz-6.1.0-9-amd64");
        assert_eq!(find(&image).unwrap().release, "6.1.0-9-amd64");
        assert_eq!(find(root.path()).unwrap().release, "5.10.0-1-cloud-amd64");
    }

    #[test]
    fn one_that_is_not_compressed_is_taken_before_the_other() {
        let root = tempfile::tempdir().unwrap();
        kernel(root.path(), "6.1.9-small");
        let plain = root.path().join("boot/vmlinux-6.1.9-small");
        fs::write(&plain, elf::tests::kernel(b"Xen\0", 18)).unwrap();
        let found = installed(root.path());
        assert_eq!(found.iter().map(|kernel| &kernel.image).collect::<Vec<_>>(), [&plain]);
        assert_eq!(find(&plain).unwrap().release, "6.1.9-small");
        // Nothing can boot an ELF file without that entry; the compressed one is there still.
        fs::write(&plain, elf::tests::kernel(b"GNU\0", 3)).unwrap();
        assert!(matches!(find(&plain), Err(Error::NoEntry(_))));
        assert!(installed(root.path())[0].image.ends_with("boot/vmlinuz-6.1.9-small"));
    }

    #[test]
    fn what_is_no_kernel_is_said_to_be_none() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(find(root.path()), Err(Error::NotAKernel(_))));
        kernel(root.path(), "6.1.0-9-amd64");
        fs::remove_dir_all(root.path().join("lib")).unwrap();
        let image = root.path().join("boot/vmlinuz-6.1.0-9-amd64");
        assert!(matches!(find(&image), Err(Error::NoModules { .. })));
        let mut bytes = fs::read(&image).unwrap();
        bytes[0x300..0x307].copy_from_slice(b"../etc\0");
        fs::write(&image, bytes).unwrap();
        assert!(matches!(find(&image), Err(Error::Malformed { .. })));
    }
}
