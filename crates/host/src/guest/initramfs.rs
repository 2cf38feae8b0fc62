//! The initial RAM disk of a guest: the agent as its init, and the modules that it loads, in order.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use insula_base::Digest;
use sha2::Digest as _;

use super::{Archive, Error, Kernel, Modules};

/// What every guest needs.
const BASE: [&str; 4] = ["virtio_mmio", "virtio_console", "virtiofs", "virtio_net"];

/// What makes a guest better, as far as the kernel has it: memory that is free goes back to the host, and networks
/// have rates.
const MORE: [&str; 2] = ["virtio_balloon", "sch_tbf"];

/// What a container engine in a guest needs beside it, as far as the kernel has it.
const ENGINE: [&str; 14] = [
    "overlay",
    "bridge",
    "veth",
    "nf_tables",
    "nft_masq",
    "nft_nat",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nf_conntrack",
    "tun",
    "br_netfilter",
    "nft_reject_inet",
    "loop",
];

/// What a guest needs to map the root of a container: the device's drivers, the file system, and what makes changes
/// to it possible. Where the kernel lacks one of them files are served.
const IMAGES: [&str; 4] = ["virtio_pmem", "nd_pmem", "erofs", "overlay"];

/// How roots of containers reach a guest that a machine can map them into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    Served,
    /// With the drivers for that, as far as the kernel has them.
    Mapped,
}

/// What a guest needs for sockets to its host.
const SOCKETS: &str = "vmw_vsock_virtio_transport";

/// Whether a guest has sockets to its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sockets {
    None,
    /// With their driver, which must be there.
    Vsock,
}

/// Which modules a guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Features {
    /// Enough for containers.
    Containers,
    /// Enough for a container engine in a container.
    Engine,
}

type Parts = (Features, Images, Sockets);

/// The drivers of a guest. Those that nothing works without must be there, of the others those that the kernel has.
#[must_use]
pub fn drivers(features: Features) -> Vec<&'static str> {
    match features {
        Features::Containers => [&BASE[..], &MORE].concat(),
        Features::Engine => [&BASE[..], &MORE, &ENGINE].concat(),
    }
}

/// Whether a kernel has what every guest needs.
pub fn check(kernel: &Kernel) -> Result<(), Error> {
    Modules::read(&kernel.modules, &kernel.release)?.order(&BASE).map(drop)
}

/// Whether a kernel has all that a guest needs to map the root of a container.
pub fn maps_images(kernel: &Kernel) -> Result<bool, Error> {
    Ok(has_all(&Modules::read(&kernel.modules, &kernel.release)?, &IMAGES))
}

fn has_all(modules: &Modules, drivers: &[&str]) -> bool {
    modules.having(drivers).len() == drivers.len()
}

/// The initial RAM disk for a kernel, made if `cache` does not have it: same kernel and same agent, same file.
pub fn initramfs(
    kernel: &Kernel,
    agent: &Path,
    parts: (Features, Images, Sockets),
    cache: &Path,
) -> Result<PathBuf, Error> {
    let path = cache.join(format!("initramfs-{}", &key(kernel, agent, parts)?.hex()[..16]));
    if path.is_file() {
        return Ok(path);
    }
    let bytes = build(kernel, agent, parts)?;
    fs::create_dir_all(cache).map_err(Error::io("mkdir", cache))?;
    insula_base::replace(&path, &bytes, 0o644, insula_base::Durability::Machine)
        .map_err(Error::io("write", &path))?;
    Ok(path)
}

/// Names what goes into it by what tells versions apart: path, size and time.
fn key(kernel: &Kernel, agent: &Path, (features, images, sockets): Parts) -> Result<Digest, Error> {
    let mut hash = sha2::Sha256::new();
    hash.update(format!("3 {:?} {images:?} {sockets:?} {}\0", drivers(features), kernel.release));
    for path in [&kernel.modules.join("modules.dep"), agent] {
        let found = fs::metadata(path).map_err(Error::io("stat", path))?;
        let (size, seconds, nanoseconds) = (found.size(), found.mtime(), found.mtime_nsec());
        hash.update(format!("{} {size} {seconds} {nanoseconds}\0", path.display()));
    }
    Ok(Digest::from_sha256(&hash.finalize().into()))
}

fn build(kernel: &Kernel, agent: &Path, (features, images, sockets): Parts) -> Result<Vec<u8>, Error> {
    let modules = Modules::read(&kernel.modules, &kernel.release)?;
    let drivers = drivers(features);
    let (needed, wanted) = drivers.split_at(BASE.len());
    let mut drivers = [needed, &modules.having(wanted)].concat();
    if images == Images::Mapped && has_all(&modules, &IMAGES) {
        drivers.extend(IMAGES);
    }
    if sockets == Sockets::Vsock {
        drivers.push(SOCKETS);
    }
    let mut archive = Archive::default();
    archive.device("dev/console", 0o600, 5, 1);
    for folder in ["proc", "sys", "new"] {
        archive.folder(folder);
    }
    let program = fs::read(agent).map_err(Error::io("read", agent))?;
    if !is_static(&program) {
        return Err(Error::NotStatic(agent.to_owned()));
    }
    archive.file("init", 0o755, &program);
    archive.folder("modules");
    for (number, (name, path)) in modules.order(&drivers)?.into_iter().enumerate() {
        archive.file(&format!("modules/{number:03}-{name}"), 0o644, &modules.load(&path)?);
    }
    Ok(archive.finish())
}

/// Whether an ELF program asks for no interpreter: elf(5), PT_INTERP.
fn is_static(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let word = |at: usize| program.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let half = |at: usize| program.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    let (Some(table), Some(size), Some(count)) = (word(0x20), half(0x36), half(0x38)) else { return false };
    let kinds = (0..usize::from(count)).map(|number| {
        let at = usize::try_from(table).ok()?.checked_add(number * usize::from(size))?;
        program.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
    });
    program.starts_with(b"\x7fELF\x02")
        && kinds.into_iter().all(|kind| kind.is_some_and(|kind| kind != PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(kind: u32) -> Vec<u8> {
        let mut program = vec![0; 0x80];
        program[..5].copy_from_slice(b"\x7fELF\x02");
        program[0x20..0x28].copy_from_slice(&0x40u64.to_le_bytes());
        program[0x36..0x38].copy_from_slice(&0x38u16.to_le_bytes());
        program[0x38..0x3a].copy_from_slice(&1u16.to_le_bytes());
        program[0x40..0x44].copy_from_slice(&kind.to_le_bytes());
        program
    }

    #[test]
    fn programs_that_need_libraries_are_told_from_others() {
        assert!(is_static(&elf(1)));
        assert!(!is_static(&elf(3)));
        assert!(!is_static(b"#!/bin/sh") && !is_static(b""));
        let mut cut = elf(1);
        cut.truncate(0x42);
        assert!(!is_static(&cut));
    }

    #[test]
    fn a_kernel_with_everything_built_in_takes_no_modules() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let builtin: String = drivers(Features::Engine)
            .iter()
            .map(|driver| format!("kernel/drivers/{}.ko\n", driver.replace('_', "-")))
            .collect();
        fs::write(at("modules.dep"), "").unwrap();
        fs::write(at("modules.builtin"), &builtin).unwrap();
        fs::write(at("agent"), elf(1)).unwrap();
        let kernel =
            Kernel { image: at("vmlinuz"), modules: folder.path().to_owned(), release: "1.2".into() };
        check(&kernel).unwrap();
        let parts = (Features::Engine, Images::Served, Sockets::None);
        let archive = build(&kernel, &at("agent"), parts).unwrap();
        let archive = String::from_utf8_lossy(&archive);
        assert!(archive.contains("modules\0") && !archive.contains("modules/"), "no module is in it");
        // One that every guest needs is missing.
        fs::write(at("modules.builtin"), builtin.replace("virtiofs", "other")).unwrap();
        assert!(matches!(check(&kernel), Err(Error::NoDriver { driver, .. }) if driver == "virtiofs"));
    }

    #[test]
    fn a_guest_maps_images_if_its_kernel_has_all_that_it_takes() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let names = [&BASE[..], &IMAGES[..]].concat();
        for name in &names {
            fs::write(at(&format!("{name}.ko")), elf(1)).unwrap();
        }
        fs::write(at("agent"), elf(1)).unwrap();
        let kernel =
            Kernel { image: at("vmlinuz"), modules: folder.path().to_owned(), release: "1.2".into() };
        let has_driver = |left_out: &str, images| {
            let lines = names.iter().filter(|name| **name != left_out).map(|name| format!("{name}.ko:\n"));
            fs::write(at("modules.dep"), lines.collect::<String>()).unwrap();
            // Made anew.
            let _ = fs::remove_dir_all(at("cache"));
            let parts = (Features::Containers, images, Sockets::None);
            let made = initramfs(&kernel, &at("agent"), parts, &at("cache")).unwrap();
            String::from_utf8_lossy(&fs::read(made).unwrap()).contains("virtio_pmem")
        };
        assert!(has_driver("", Images::Mapped) && maps_images(&kernel).unwrap());
        assert!(!has_driver("", Images::Served));
        assert!(!has_driver("erofs", Images::Mapped) && !maps_images(&kernel).unwrap());
    }

    #[test]
    fn it_is_made_once_for_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("modules")).unwrap();
        let names = ["virtio_mmio", "virtio_console", "virtiofs", "virtio_net"];
        let dep: String = names.iter().map(|name| format!("{name}.ko:\n")).collect();
        for name in names {
            fs::write(at("modules").join(format!("{name}.ko")), elf(1)).unwrap();
        }
        fs::write(at("modules/modules.dep"), dep).unwrap();
        fs::write(at("agent"), elf(1)).unwrap();
        let kernel = Kernel { image: at("vmlinuz"), modules: at("modules"), release: "1.2".into() };
        let with = |sockets| {
            initramfs(&kernel, &at("agent"), (Features::Containers, Images::Served, sockets), &at("cache"))
        };
        let make = || with(Sockets::None);
        let first = make().unwrap();
        assert_eq!(make().unwrap(), first);
        // A driver that was asked for must be there.
        assert!(matches!(with(Sockets::Vsock), Err(Error::NoDriver { driver, .. }) if driver == SOCKETS));
        assert_eq!(fs::read_dir(at("cache")).unwrap().count(), 1);
        fs::write(at("agent"), [elf(1), vec![0]].concat()).unwrap();
        assert_ne!(make().unwrap(), first, "another agent");
        fs::write(at("agent"), [elf(3), vec![0; 2]].concat()).unwrap();
        assert!(matches!(make(), Err(Error::NotStatic(_))));
    }
}
