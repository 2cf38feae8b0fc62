//! Which modules of a kernel a driver needs and in which order, from its own `modules.dep`, depmod(8).

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Error;

/// A list of modules is a few hundred KiB; a module is at most some MiB.
const LARGEST_LIST: u64 = 16 << 20;
const LARGEST_MODULE: u64 = 64 << 20;

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    folder: PathBuf,
    release: String,
    /// Path and needs, by name.
    known: HashMap<String, (String, Vec<String>)>,
    builtin: HashSet<String>,
}

impl Modules {
    /// Reads the lists of a folder `lib/modules/RELEASE`.
    pub fn read(folder: &Path, release: &str) -> Result<Self, Error> {
        let dep = list(folder, "modules.dep")?;
        // Kernels without modules built in have no such list.
        let builtin = list(folder, "modules.builtin").unwrap_or_default();
        Ok(Self { folder: folder.to_owned(), release: release.to_owned(), ..Self::parse(&dep, &builtin) })
    }

    fn parse(dep: &str, builtin: &str) -> Self {
        let mut known = HashMap::new();
        for line in dep.lines() {
            let Some((path, needs)) = line.split_once(':') else { continue };
            let Some(name) = name_of(path) else { continue };
            let needs = needs.split_whitespace().filter_map(name_of).collect();
            known.insert(name, (path.to_owned(), needs));
        }
        let builtin = builtin.lines().filter_map(name_of).collect();
        Self { folder: PathBuf::new(), release: String::new(), known, builtin }
    }

    /// The modules that make `drivers` work, each after what it needs: name and path in the folder. What
    /// is built in needs no module.
    pub fn order(&self, drivers: &[&str]) -> Result<Vec<(String, PathBuf)>, Error> {
        let mut ordered = Vec::new();
        let mut seen = HashSet::new();
        for driver in drivers {
            self.visit(driver, &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    /// Those of `drivers` that this kernel has, built in or not.
    #[must_use]
    pub fn having<'a>(&self, drivers: &[&'a str]) -> Vec<&'a str> {
        let has = |driver: &&&str| self.known.contains_key(**driver) || self.builtin.contains(**driver);
        drivers.iter().filter(has).copied().collect()
    }

    fn visit(
        &self,
        name: &str,
        seen: &mut HashSet<String>,
        ordered: &mut Vec<(String, PathBuf)>,
    ) -> Result<(), Error> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some((path, needs)) = self.known.get(name) else {
            if self.builtin.contains(name) {
                return Ok(());
            }
            return Err(Error::NoDriver { release: self.release.clone(), driver: name.to_owned() });
        };
        for need in needs {
            self.visit(need, seen, ordered)?;
        }
        ordered.push((name.to_owned(), PathBuf::from(path)));
        Ok(())
    }

    /// A module as the kernel takes it, decompressed.
    pub fn load(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let path = self.folder.join(path);
        let file = std::fs::File::open(&path).map_err(Error::io("open", &path))?;
        let reader: Box<dyn Read> = match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => Box::new(liblzma::read::XzDecoder::new(file)),
            Some("gz") => Box::new(flate2::read::GzDecoder::new(file)),
            Some("zst") => Box::new(zstd::Decoder::new(file).map_err(Error::io("decompress", &path))?),
            _ => Box::new(file),
        };
        let mut bytes = Vec::new();
        reader.take(LARGEST_MODULE).read_to_end(&mut bytes).map_err(Error::io("read", &path))?;
        if !bytes.starts_with(b"\x7fELF") || bytes.len() as u64 == LARGEST_MODULE {
            return Err(Error::Malformed { path, what: "a module" });
        }
        Ok(bytes)
    }
}

fn list(folder: &Path, name: &str) -> Result<String, Error> {
    let path = folder.join(name);
    let file = std::fs::File::open(&path).map_err(Error::io("open", &path))?;
    let mut text = String::new();
    file.take(LARGEST_LIST).read_to_string(&mut text).map_err(Error::io("read", &path))?;
    Ok(text)
}

/// `kernel/drivers/virtio/virtio-ring.ko.xz` is `virtio_ring`.
fn name_of(path: &str) -> Option<String> {
    let file = path.trim().rsplit('/').next()?;
    let name = file.split_once(".ko").map(|(name, _)| name).filter(|name| !name.is_empty())?;
    Some(name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const DEP: &str = "kernel/a/virtio.ko: kernel/a/virtio_ring.ko\nkernel/a/virtio_ring.ko:\n\
        kernel/b/virtio-net.ko.xz: kernel/c/net_failover.ko kernel/c/failover.ko kernel/a/virtio.ko kernel/a/virtio_ring.ko\n\
        kernel/c/net_failover.ko: kernel/c/failover.ko\nkernel/c/failover.ko:\nodd line\n";

    fn names(modules: &Modules, drivers: &[&str]) -> Vec<String> {
        modules.order(drivers).unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn each_module_comes_after_what_it_needs_and_once() {
        let modules = Modules::parse(DEP, "kernel/fs/fuse.ko\n");
        assert_eq!(
            names(&modules, &["virtio", "virtio_net", "fuse"]),
            ["virtio_ring", "virtio", "failover", "net_failover", "virtio_net"]
        );
        assert!(
            matches!(modules.order(&["erofs"]), Err(Error::NoDriver { driver, .. }) if driver == "erofs")
        );
        assert_eq!(modules.having(&["erofs", "fuse", "virtio"]), ["fuse", "virtio"]);
    }

    #[test]
    fn modules_that_need_each_other_come_to_an_end() {
        let modules = Modules::parse("k/a.ko: k/b.ko\nk/b.ko: k/a.ko\n", "");
        assert_eq!(names(&modules, &["a"]), ["b", "a"]);
    }

    #[test]
    fn modules_are_decompressed_and_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let elf = b"\x7fELF and more";
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
        xz.write_all(elf).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(elf).unwrap();
        let files = [
            ("a.ko", elf.to_vec()),
            ("a.ko.xz", xz.finish().unwrap()),
            ("a.ko.gz", gz.finish().unwrap()),
            ("a.ko.zst", zstd::encode_all(&elf[..], 0).unwrap()),
        ];
        let mut modules = Modules::parse("", "");
        modules.folder = folder.path().to_owned();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            assert_eq!(modules.load(Path::new(name)).unwrap(), elf, "{name}");
        }
        std::fs::write(folder.path().join("b.ko"), "text").unwrap();
        assert!(matches!(modules.load(Path::new("b.ko")), Err(Error::Malformed { .. })));
    }
}
