//! Templates of machines: which there are, whether one is what a container needs, and how it is read.
//!
//! ```text
//! templates/<id>/memory          the guest's memory, sparse
//! templates/<id>/state           everything else of the machine, as its backend has written it
//! templates/<id>/template.json   [`Document`]: what it was made of, and checksums of both
//! templates/new-…                one that is being made
//! ```
//!
//! The id names everything that a machine was made of: backend, kernel, agent, shape, the host's processor.
//! Whatever changes of these, a template of before is not found any more. What is in the files is checked when
//! they are read, which happens once: into memory that nobody can write to any more, not even who has it open,
//! since every machine maps it and a broken one must not reach the others.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use insula_base::Digest;
use insula_host::guest;
use insula_spec::machine::{Backend, MachinePlan, TemplateFor, TemplateMade, TemplateOrder, TemplatePlan};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::{Error, Result};

/// The document and the files that it describes.
const VERSION: u32 = 2;
const DOCUMENT: &str = "template.json";
/// Begins the name of one that is being made.
const NEW: &str = "new-";
/// Digits of an id.
const ID: usize = 16;
/// A document is some hundred bytes, a state some hundred KiB.
const LARGEST_DOCUMENT: u64 = 64 << 10;
const LARGEST_STATE: u64 = 64 << 20;
/// How long the memory of a template is kept that no machine is made of.
const IDLE: Duration = Duration::from_secs(600);

/// What a machine is, as far as its template must be the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) backend: Backend,
    pub(crate) release: String,
    pub(crate) cpus: u32,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) interfaces: usize,
    /// Enough for a container engine in a container.
    pub(crate) engine: bool,
    #[serde(default)]
    pub(crate) whom: TemplateFor,
    /// With sockets to the host.
    #[serde(default)]
    pub(crate) vsock: bool,
}

/// A template on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Document {
    version: u32,
    pub(crate) shape: Shape,
    /// Release of the kernel that answered.
    pub(crate) release: String,
    /// Milliseconds that its boot took.
    pub(crate) boot: u64,
    /// Seconds since 1970.
    pub(crate) created: i64,
    memory: Digest,
    state: Digest,
}

/// One that was found on disk.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: String,
    /// None where it cannot be read.
    pub(crate) document: Option<Document>,
    /// Bytes on disk.
    pub(crate) size: u64,
}

/// One that machines can be made of.
#[derive(Debug)]
pub(crate) struct Loaded {
    release: String,
    memory: OwnedFd,
    state: OwnedFd,
    /// Of memory and state: no two templates have both.
    digests: [Digest; 2],
}

/// What a machine is given of a template: the plan, and its memory and state.
pub(crate) type Copy = (TemplatePlan, [OwnedFd; 2]);

#[derive(Debug)]
pub(crate) struct Templates {
    folder: PathBuf,
    loaded: Mutex<HashMap<String, (Arc<Loaded>, Instant)>>,
    /// Ids of those that are being made.
    making: Mutex<Vec<String>>,
    made: Condvar,
}

impl Templates {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, loaded: Mutex::default(), making: Mutex::default(), made: Condvar::new() }
    }

    /// What a new machine goes on from, if there is a template for it. One that cannot be used is removed.
    pub(crate) fn copy(&self, id: &str) -> Option<(Arc<Loaded>, Copy)> {
        let copy = |loaded: Arc<Loaded>| loaded.copy().map(|copy| (loaded, copy));
        match self.load(id).and_then(|loaded| loaded.map(copy).transpose()) {
            Ok(copy) => copy,
            Err(error) => {
                let error = insula_base::chain(&error);
                tracing::warn!(template = id, error, "a template is of no use and is removed");
                let _ = self.remove(id);
                None
            }
        }
    }

    fn load(&self, id: &str) -> Result<Option<Arc<Loaded>>> {
        let mut loaded = lock(&self.loaded);
        if let Some((found, used)) = loaded.get_mut(id) {
            *used = Instant::now();
            return Ok(Some(found.clone()));
        }
        let folder = self.folder.join(id);
        let Some(document) = read(&folder)? else { return Ok(None) };
        let found = Arc::new(document.load(&folder)?);
        loaded.insert(id.to_owned(), (found.clone(), Instant::now()));
        Ok(Some(found))
    }

    /// Frees the memory of those that no machine was made of for a while.
    pub(crate) fn rest(&self) {
        lock(&self.loaded).retain(|_, (_, used)| used.elapsed() < IDLE);
    }

    /// A folder for a new template, unless somebody makes it already.
    pub(crate) fn begin(&self, id: &str) -> Result<Option<Making<'_>>> {
        let mut making = lock(&self.making);
        if making.iter().any(|other| other == id) {
            return Ok(None);
        }
        let folder = self.folder.join(format!("{NEW}{}", insula_base::random_hex(6)));
        fs::create_dir_all(&folder).map_err(|error| Error::io("mkdir", &folder, error))?;
        making.push(id.to_owned());
        Ok(Some(Making { templates: self, id: id.to_owned(), folder }))
    }

    /// Waits as long as somebody makes this one.
    pub(crate) fn await_maker(&self, id: &str) {
        let making = lock(&self.making);
        let busy = |making: &mut Vec<String>| making.iter().any(|other| other == id);
        drop(self.made.wait_while(making, busy).unwrap_or_else(PoisonError::into_inner));
    }

    /// Those on disk, by their ids.
    pub(crate) fn list(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for id in self.names()?.into_iter().filter(|name| !name.starts_with(NEW)) {
            let folder = self.folder.join(&id);
            let document = read(&folder).unwrap_or_default();
            found.push(Found { id, document, size: size(&folder) });
        }
        found.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(found)
    }

    /// Removes one; machines that were made of it go on. False if there is none.
    pub(crate) fn remove(&self, id: &str) -> Result<bool> {
        self.replace(id, |_| Ok(true), |_| Ok(()))
    }

    /// Removes one that a copy was made of, unless another one has its name by now. False if it is not there.
    pub(crate) fn remove_used(&self, id: &str, used: &Loaded) -> Result<bool> {
        let same = |folder: &Path| {
            Ok(read(folder)?.is_some_and(|found| [found.memory, found.state] == used.digests))
        };
        self.replace(id, same, |_| Ok(()))
    }

    /// Takes one away, if it is one that `goes`, and puts another one in its place; nobody reads one meanwhile. Whether
    /// there was one.
    fn replace(
        &self,
        id: &str,
        goes: impl FnOnce(&Path) -> Result<bool>,
        put: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<bool> {
        let place = self.folder.join(id);
        let gone = self.folder.join(format!("{NEW}{}", insula_base::random_hex(6)));
        let mut loaded = lock(&self.loaded);
        if !goes(&place)? {
            return Ok(false);
        }
        loaded.remove(id);
        let found = match fs::rename(&place, &gone) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(Error::io("rename", &place, error)),
        };
        put(&place)?;
        drop(loaded);
        if found {
            fs::remove_dir_all(&gone).map_err(|error| Error::io("remove", &gone, error))?;
        }
        Ok(found)
    }

    /// Removes what a daemon that was killed has left of templates that it made.
    pub(crate) fn tidy_up(&self) -> Result<()> {
        for name in self.names()?.into_iter().filter(|name| name.starts_with(NEW)) {
            let folder = self.folder.join(name);
            fs::remove_dir_all(&folder).map_err(|error| Error::io("remove", &folder, error))?;
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("open", &self.folder, error)),
        };
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }
}

/// A template that is being made; what is left of one that was not finished goes with this.
#[derive(Debug)]
pub(crate) struct Making<'a> {
    templates: &'a Templates,
    id: String,
    folder: PathBuf,
}

impl Making<'_> {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is in the folder is a template from now on.
    pub(crate) fn finish(&self, shape: Shape, made: TemplateMade) -> Result<Document> {
        let (_, memory) = sealed(&self.folder.join(TemplateOrder::MEMORY), shape.memory)?;
        let (_, state) = sealed(&self.folder.join(TemplateOrder::STATE), LARGEST_STATE)?;
        let TemplateMade { release, boot } = made;
        let created = jiff::Timestamp::now().as_second();
        let document = Document { version: VERSION, shape, release, boot, created, memory, state };
        let bytes = serde_json::to_vec(&document)
            .map_err(|error| Error::Internal(format!("write a template: {error}")))?;
        let path = self.folder.join(DOCUMENT);
        insula_base::replace(&path, &bytes, 0o600, insula_base::Durability::Machine)
            .map_err(|error| Error::io("write", &path, error))?;
        let put = |place: &Path| {
            fs::rename(&self.folder, place).map_err(|error| Error::io("rename", &self.folder, error))
        };
        self.templates.replace(&self.id, |_| Ok(true), put)?;
        Ok(document)
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        // After a good end it is not there any more.
        let _ = fs::remove_dir_all(&self.folder);
        lock(&self.templates.making).retain(|id| *id != self.id);
        self.templates.made.notify_all();
    }
}

impl Document {
    fn load(&self, folder: &Path) -> Result<Loaded> {
        let (memory, found) = sealed(&folder.join(TemplateOrder::MEMORY), self.shape.memory)?;
        if found != self.memory {
            return Err(damaged(folder, "its memory is not what was saved"));
        }
        let (state, found) = sealed(&folder.join(TemplateOrder::STATE), LARGEST_STATE)?;
        if found != self.state {
            return Err(damaged(folder, "its state is not what was saved"));
        }
        let digests = [self.memory.clone(), self.state.clone()];
        Ok(Loaded { release: self.release.clone(), memory, state, digests })
    }
}

impl Loaded {
    fn copy(&self) -> Result<Copy> {
        let duplicate = |descriptor: &OwnedFd| {
            descriptor.try_clone().map_err(|error| Error::io("dup", Path::new("a template"), error))
        };
        let plan =
            TemplatePlan { release: self.release.clone(), memory: PathBuf::new(), state: PathBuf::new() };
        Ok((plan, [duplicate(&self.memory)?, duplicate(&self.state)?]))
    }
}

/// Names everything that a machine is made of, files by what tells versions apart: path, size and time.
pub(super) fn id(plan: &MachinePlan, whom: TemplateFor, interfaces: usize) -> Result<String> {
    let mut hash = sha2::Sha256::new();
    hash.update(format!(
        "{VERSION} {} {} {} {interfaces}{}{} {}\0",
        plan.backend.name(),
        plan.cpus,
        plan.memory,
        match whom {
            TemplateFor::Container => "",
            TemplateFor::Tenant => " tenant",
        },
        // Whatever the address is: a copy has its own.
        if plan.vsock.is_some() { " vsock" } else { "" },
        processor()
    ));
    // The initial RAM disk's own name stands for the agent and the kernel's modules.
    let program = match plan.backend {
        Backend::Qemu => guest::emulator().map(Path::to_owned),
        Backend::Kvm => Some(plan.vmm.clone()),
    };
    for path in [Some(&plan.kernel.image), Some(&plan.initramfs), program.as_ref()].into_iter().flatten() {
        let found = fs::metadata(path).map_err(|error| Error::io("stat", path, error))?;
        let (size, seconds, nanoseconds) = (found.size(), found.mtime(), found.mtime_nsec());
        hash.update(format!("{} {size} {seconds} {nanoseconds}\0", path.display()));
    }
    Ok(Digest::from_sha256(&hash.finalize().into()).hex()[..ID].to_owned())
}

/// What the host's processor can do: a guest must not wake up on another one.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim()).to_owned()
    };
    ["model name", "stepping", "microcode", "flags"].map(of).join("\n")
}

fn read(folder: &Path) -> Result<Option<Document>> {
    let path = folder.join(DOCUMENT);
    let failed = |error| Error::io("read", &path, error);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, LARGEST_DOCUMENT), &mut bytes)
        .map_err(failed)?;
    let document: Document = serde_json::from_slice(&bytes)
        .map_err(|error| damaged(folder, &format!("{DOCUMENT} cannot be read: {error}")))?;
    if document.version != VERSION {
        return Err(damaged(folder, &format!("it is of version {}, not {VERSION}", document.version)));
    }
    Ok(Some(document))
}

/// A copy of a file in memory that cannot be changed any more, and the digest of what is in it. Holes stay.
fn sealed(path: &Path, largest: u64) -> Result<(OwnedFd, Digest)> {
    let failed = |call: &'static str| move |error: std::io::Error| Error::io(call, path, error);
    let from = File::open(path).map_err(failed("open"))?;
    let size = from.metadata().map_err(failed("fstat"))?.len();
    if size > largest {
        return Err(Error::Internal(format!("{} has {size} bytes, more than {largest}", path.display())));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let to = rustix::fs::memfd_create("insula-template", flags)
        .map_err(|error| failed("memfd_create")(error.into()))?;
    let to = File::from(to);
    to.set_len(size).map_err(failed("ftruncate"))?;
    let mut hash = sha2::Sha256::new();
    hash.update(size.to_le_bytes());
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(&from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(failed("lseek")(error.into())),
        };
        let count = piece.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
        from.read_exact_at(&mut piece[..count], at).map_err(failed("pread"))?;
        for (number, page) in piece[..count].chunks(PAGE).enumerate() {
            let place = at + (number * PAGE) as u64;
            // What is a hole on one file system may be zeros on another.
            if page.iter().any(|byte| *byte != 0) {
                hash.update(place.to_le_bytes());
                hash.update(page);
                to.write_all_at(page, place).map_err(failed("pwrite"))?;
            }
        }
        at += count as u64;
    }
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(to.as_fd(), all)
        .map_err(|error| failed("fcntl F_ADD_SEALS")(error.into()))?;
    Ok((to.into(), Digest::from_sha256(&hash.finalize().into())))
}

const PAGE: usize = 4096;

fn size(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|found| found.blocks() * 512).sum()
}

fn damaged(folder: &Path, why: &str) -> Error {
    Error::Internal(format!("the template {}: {why}", folder.display()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use insula_spec::machine::KernelPlan;

    use super::*;

    const MEMORY: u64 = 8 << 20;

    fn shape() -> Shape {
        let release = "6.1".to_owned();
        let whom = TemplateFor::Container;
        Shape {
            backend: Backend::Qemu,
            release,
            cpus: 1,
            memory: MEMORY,
            interfaces: 0,
            engine: false,
            whom,
            vsock: false,
        }
    }

    fn make(templates: &Templates, id: &str) {
        make_of(templates, id, b"state");
    }

    fn make_of(templates: &Templates, id: &str, state: &[u8]) {
        let making = templates.begin(id).unwrap().unwrap();
        assert!(templates.begin(id).unwrap().is_none(), "one at a time");
        let memory = File::create(making.folder().join(TemplateOrder::MEMORY)).unwrap();
        memory.set_len(MEMORY).unwrap();
        memory.write_all_at(b"kernel", 4 << 20).unwrap();
        fs::write(making.folder().join(TemplateOrder::STATE), state).unwrap();
        making.finish(shape(), TemplateMade { release: "6.1".into(), boot: 7 }).unwrap();
    }

    #[test]
    fn what_was_made_is_found_and_cannot_be_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let templates = Templates::new(folder.path().join("templates"));
        assert!(templates.list().unwrap().is_empty() && templates.copy("0a").is_none());
        make(&templates, "0a");
        let (_, (plan, [memory, state])) = templates.copy("0a").unwrap();
        assert_eq!(plan.release, "6.1");
        let (memory, state) = (File::from(memory), File::from(state));
        let mut bytes = [0; 6];
        memory.read_exact_at(&mut bytes, 4 << 20).unwrap();
        assert_eq!(&bytes, b"kernel");
        assert!(memory.write_at(b"x", 0).is_err() && state.set_len(0).is_err());
        let listed = templates.list().unwrap();
        assert!(listed.len() == 1 && listed[0].size > 0 && listed[0].size < 1 << 20, "{listed:?}");
        assert!(templates.remove("0a").unwrap() && !templates.remove("0a").unwrap());
        assert!(templates.copy("0a").is_none());
    }

    #[test]
    fn what_was_refused_goes_but_not_another_one_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let templates = Templates::new(folder.path().to_owned());
        make(&templates, "0a");
        let (used, _) = templates.copy("0a").unwrap();
        make_of(&templates, "0a", b"another");
        assert!(!templates.remove_used("0a", &used).unwrap());
        let (newer, _) = templates.copy("0a").unwrap();
        assert!(templates.remove_used("0a", &newer).unwrap());
        assert!(!templates.remove_used("0a", &newer).unwrap() && templates.copy("0a").is_none());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_that_is_damaged_is_not_used_and_goes() {
        for (file, place) in [(TemplateOrder::MEMORY, 5 << 20), (TemplateOrder::STATE, 2), (DOCUMENT, 0)] {
            let folder = tempfile::tempdir().unwrap();
            let templates = Templates::new(folder.path().to_owned());
            make(&templates, "0a");
            let path = folder.path().join("0a").join(file);
            File::options().write(true).open(&path).unwrap().write_all_at(b"!", place).unwrap();
            assert!(templates.copy("0a").is_none(), "{file}");
            assert!(templates.list().unwrap().is_empty(), "{file}");
        }
    }

    #[test]
    fn a_tenants_template_is_no_containers() {
        let folder = tempfile::tempdir().unwrap();
        let (image, initramfs) = (folder.path().join("kernel"), folder.path().join("agent"));
        for file in [&image, &initramfs] {
            fs::write(file, b"x").unwrap();
        }
        let plan = MachinePlan {
            backend: Backend::Kvm,
            vmm: image.clone(),
            kernel: KernelPlan { image, modules: PathBuf::new(), release: "6.1".to_owned() },
            initramfs,
            cpus: 1,
            memory: MEMORY,
            patience: 1,
            folder: PathBuf::new(),
            template: None,
            image: None,
            tenant: None,
            vsock: None,
        };
        let of = |whom, interfaces| id(&plan, whom, interfaces).unwrap();
        assert_eq!(of(TemplateFor::Tenant, 2), of(TemplateFor::Tenant, 2));
        assert_ne!(of(TemplateFor::Tenant, 2), of(TemplateFor::Container, 2));
        assert_ne!(of(TemplateFor::Tenant, 2), of(TemplateFor::Tenant, 3));
        let with = |vsock| id(&MachinePlan { vsock, ..plan.clone() }, TemplateFor::Container, 2).unwrap();
        assert_eq!(with(Some(3)), with(Some(4)), "a copy has an address of its own");
        assert_ne!(with(Some(3)), with(None));
    }

    #[test]
    fn what_was_not_finished_goes() {
        let folder = tempfile::tempdir().unwrap();
        let templates = Templates::new(folder.path().to_owned());
        drop(templates.begin("0a").unwrap());
        assert!(templates.names().unwrap().is_empty());
        fs::create_dir(folder.path().join("new-1")).unwrap();
        templates.tidy_up().unwrap();
        assert!(templates.names().unwrap().is_empty());
    }
}
