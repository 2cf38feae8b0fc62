//! `RUN --mount`: what a command sees beside its root, and what leaves no trace in its layer.
//!
//! Folders of stages and images are merged for the command as its own root is, so nothing is copied, and what it
//! writes there goes to a folder that nobody keeps. Secrets are files below the run folder while their command
//! runs, and variables that are in no row.

use std::any::Any;
use std::io::BufReader;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use insula_base::thread;
use insula_build::dockerfile::{CopySources, Mount, MountKind, Sharing, Transfer};
use insula_build::{CopyOp, Ignore, RunOp};
use insula_store::layers::{Limits, Whiteouts, unpack};
use insula_store::{CacheOwner, Scratch, Store};
use rustix::fs::FileType;
use tokio::runtime::Handle;

use super::agents::Serving;
use super::caches::{self, Guard};
use super::files::{Attributes, Copying, Times, missing};
use super::named::Source;
use super::stage::Stepping;
use super::{Building, Secret};
use crate::containers::row::{MountRow, SourceRow};
use crate::tree::{Last, Place, Tree};
use crate::{Error, Result, blocking};

/// Where a secret is that says nothing else.
const SECRETS: &str = "/run/secrets";
/// Where an agent is that says nothing else; its number follows.
const AGENTS: &str = "/run/buildkit/ssh_agent";

/// What a mount shows files of.
#[derive(Debug, Clone)]
pub(super) enum Shown {
    Nothing,
    Context,
    Of(Source),
}

/// Everything that a command's container gets for its mounts.
#[derive(Default)]
pub(super) struct Mounted {
    pub(super) rows: Vec<MountRow>,
    /// `NAME=value`, written nowhere.
    pub(super) secrets: Vec<String>,
    given: Vec<Given>,
    /// What has to stay as long as the container does.
    pub(super) held: Vec<Box<dyn Any + Send>>,
}

/// A secret that becomes a file when the ids of its container are known.
struct Given {
    path: PathBuf,
    /// None for what is there already.
    bytes: Option<Secret>,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// A folder that goes with whoever needed it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a folder of secrets is left");
        }
    }
}

impl Stepping<'_> {
    /// What the mounts of a command show, and what that makes of its key.
    pub(super) async fn shown(&self, run: &RunOp) -> Result<(Vec<Shown>, Vec<String>)> {
        let (mut all, mut parts) = (Vec::new(), Vec::new());
        for mount in &run.mounts {
            let shown = match (mount.kind, mount.from.as_deref()) {
                (MountKind::Bind | MountKind::Cache, Some(name)) => Shown::Of(self.source(name).await?),
                (MountKind::Bind, None) => Shown::Context,
                _ => Shown::Nothing,
            };
            match &shown {
                Shown::Nothing => {}
                Shown::Of(Source::Stack(built)) => parts.push(built.top()),
                Shown::Of(Source::Folder(_)) | Shown::Context => {
                    let (building, shown, path) = (self.building.clone(), shown.clone(), source_of(mount));
                    parts.push(blocking(move || digest_of(&building, &shown, &path)).await?);
                }
            }
            all.push(shown);
        }
        Ok((all, parts))
    }

    /// Makes everything that the mounts need, after waiting for caches that others have to themselves.
    pub(super) async fn mounted(&self, run: &RunOp, shown: Vec<Shown>) -> Result<Mounted> {
        if run.mounts.is_empty() && run.script.is_none() {
            return Ok(Mounted::default());
        }
        let guards = self.guards(run, &shown).await;
        let (building, run) = (self.building.clone(), run.clone());
        blocking(move || {
            let store = building.engine.store();
            let mut making = Making {
                building: &building,
                scratch: store.images().scratch()?,
                secrets: None,
                agents: 0,
                mounted: Mounted::default(),
            };
            for (number, (mount, shown)) in run.mounts.iter().zip(shown).enumerate() {
                making.one(number, mount, shown, &guards)?;
            }
            if let Some(script) = &run.script {
                making.script(&script.path, script.content.as_bytes())?;
            }
            let Making { scratch, secrets, mut mounted, .. } = making;
            mounted.held.push(Box::new(guards));
            mounted.held.push(Box::new(scratch));
            mounted.held.push(Box::new(secrets));
            Ok(mounted)
        })
        .await
    }

    /// The caches of a command, always in the same order, so that no two wait for each other.
    async fn guards(&self, run: &RunOp, shown: &[Shown]) -> Vec<(usize, Guard)> {
        let mut wanted: Vec<(String, Sharing, usize)> = Vec::new();
        for (number, mount) in run.mounts.iter().enumerate().filter(|(_, m)| m.kind == MountKind::Cache) {
            let from = match &shown[number] {
                Shown::Of(Source::Stack(built)) => format!("{}{}", built.top(), source_of(mount)),
                Shown::Of(Source::Folder(name)) => format!("folder {name}{}", source_of(mount)),
                _ => String::new(),
            };
            let id = mount.id.clone().or_else(|| mount.target.clone()).unwrap_or_default();
            wanted.push((caches::key(&id, &from), mount.sharing, number));
        }
        // Of several on one cache the strictest is first, and the others go along with it.
        let rank = |sharing: Sharing| match sharing {
            Sharing::Locked => 0,
            Sharing::Shared => 1,
            Sharing::Private => 2,
        };
        wanted.sort_by_key(|(key, sharing, number)| (key.clone(), rank(*sharing), *number));
        let mut guards: Vec<(usize, Guard)> = Vec::new();
        for (key, sharing, number) in wanted {
            let known = guards.iter().find(|(_, guard)| guard.key == key && sharing != Sharing::Private);
            let guard = match known {
                Some((_, guard)) => Guard::along(guard),
                None => self.building.engine.0.caches.take(&key, sharing).await,
            };
            guards.push((number, guard));
        }
        guards
    }
}

/// Below `from`, the root if it is not said.
fn source_of(mount: &Mount) -> String {
    format!("/{}", mount.source.as_deref().unwrap_or_default().trim_start_matches('/'))
}

impl Shown {
    /// The files, if there are any.
    fn tree(&self, building: &Building) -> Result<Option<Tree>> {
        Ok(Some(match self {
            Self::Nothing => return Ok(None),
            Self::Context => Tree::running(building.context.path(), 0)?,
            Self::Of(Source::Stack(built)) => built.tree()?,
            Self::Of(Source::Folder(name)) => building.folder(name)?,
        }))
    }
}

/// What is at a path of what came with the request: names, modes and contents.
fn digest_of(building: &Building, shown: &Shown, path: &str) -> Result<String> {
    let tree = shown.tree(building)?.ok_or_else(|| missing(Path::new(path)))?;
    Ok(copying(&tree, path, &Tree::image(&[], &[])?, &Ignore::default())?.digest()?.to_string())
}

fn copying<'a>(tree: &'a Tree, path: &str, target: &Tree, ignore: &'a Ignore) -> Result<Copying<'a>> {
    let mut plain = String::new();
    for sign in path.chars() {
        if matches!(sign, '*' | '?' | '[' | '\\') {
            plain.push('\\');
        }
        plain.push(sign);
    }
    let sources = CopySources { paths: vec![plain], ..CopySources::default() };
    let op = CopyOp {
        add: false,
        transfer: Transfer { sources, ..Transfer::default() },
        destination: "/".to_owned(),
    };
    Copying::plan(&op, tree, target, ignore, Attributes::default(), Times { now: 0, latest: None })
}

struct Making<'a> {
    building: &'a Building,
    /// For changes that nobody keeps.
    scratch: Scratch,
    secrets: Option<Folder>,
    /// Agents so far.
    agents: usize,
    mounted: Mounted,
}

impl Making<'_> {
    fn one(&mut self, number: usize, mount: &Mount, shown: Shown, guards: &[(usize, Guard)]) -> Result<()> {
        let target = mount.target.clone().unwrap_or_default();
        match mount.kind {
            MountKind::Bind => {
                let tree = shown.tree(self.building)?.ok_or_else(|| missing(Path::new("/")))?;
                let readonly = mount.readonly.unwrap_or(true);
                let source = self.bind(number, &tree, &source_of(mount), readonly)?;
                self.row(target, source, readonly);
                self.mounted.held.push(Box::new(shown));
            }
            MountKind::Cache => {
                let guard = guards.iter().find(|(of, _)| *of == number).map(|(_, guard)| guard);
                let guard = guard.ok_or_else(|| Error::Internal("a cache has no guard".to_owned()))?;
                let path = self.cache(mount, &target, &shown, &guard.key)?;
                self.row(target, SourceRow::Own { path, mapped: true }, mount.readonly.unwrap_or(false));
            }
            MountKind::Tmpfs => {
                let source = SourceRow::Tmpfs {
                    size: mount.size,
                    mode: Some(0o1777),
                    nosuid: true,
                    nodev: true,
                    noexec: false,
                    uid: None,
                    gid: None,
                };
                self.row(target, source, false);
            }
            MountKind::Secret => self.secret(number, mount)?,
            MountKind::Ssh => self.agent(number, mount)?,
        }
        Ok(())
    }

    fn row(&mut self, target: String, source: SourceRow, readonly: bool) {
        self.mounted.rows.push(MountRow { target, source, readonly, mode: String::new() });
    }

    fn bind(&self, number: usize, tree: &Tree, path: &str, readonly: bool) -> Result<SourceRow> {
        let path = Path::new(path);
        let place = tree.resolve(path, Last::Follow)?;
        let fail = |error| Error::io("readlink", path, error);
        if let Some(dir) = place.dir() {
            let mut layers = dir.paths().map_err(fail)?;
            layers.reverse();
            let top = dir.topmost().map(rustix::fs::fstat).transpose();
            let top = top.map_err(|e| Error::io("fstat", path, e))?;
            if layers.is_empty() {
                layers.push(folder(&self.scratch.path().join(format!("{number}-empty")), 0o755)?);
            }
            let changes = self.scratch.path().join(number.to_string());
            if !readonly {
                folder(&changes, 0o700)?;
                folder(&changes.join("work"), 0o700)?;
                let upper = folder(&changes.join("upper"), 0o755)?;
                if let Some(stat) = top {
                    own(&upper, stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)?;
                }
            }
            return Ok(SourceRow::Merged { layers, changes: (!readonly).then_some(changes) });
        }
        self.file(number, &place, readonly)
    }

    /// One file; a copy of it where it may be changed.
    fn file(&self, number: usize, place: &Place, readonly: bool) -> Result<SourceRow> {
        let (Some(parent), Some(entry)) = (place.parent(), &place.entry) else {
            return Err(missing(&place.path));
        };
        if entry.kind() != FileType::RegularFile {
            return Err(Error::InvalidArgument(format!(
                "{} is neither a folder nor a file and cannot be mounted",
                place.path.display()
            )));
        }
        let fail = |error| Error::io("copy", &place.path, error);
        let path = parent.path_of(&place.name, entry).map_err(fail)?;
        if readonly {
            return Ok(SourceRow::Own { path, mapped: true });
        }
        let copy = self.scratch.path().join(number.to_string());
        std::fs::copy(&path, &copy).map_err(fail)?;
        own(&copy, entry.stat.st_mode & 0o7777, entry.stat.st_uid, entry.stat.st_gid)?;
        Ok(SourceRow::Own { path: copy, mapped: true })
    }

    /// The folder of a cache, which begins with what it is said to.
    fn cache(&self, mount: &Mount, target: &str, shown: &Shown, key: &str) -> Result<PathBuf> {
        let (uid, gid) = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
        let owner = CacheOwner { uid, gid, mode: mount.mode.unwrap_or(0o755) };
        self.building.note_cache(key, &format!("cached mount {target}"))?;
        let tree = shown.tree(self.building)?;
        self.building.engine.0.caches.make(self.building.engine.store(), key, owner, |folder| match &tree {
            Some(tree) => fill(tree, &source_of(mount), folder),
            None => Ok(()),
        })
    }

    fn secret(&mut self, number: usize, mount: &Mount) -> Result<()> {
        let base = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
        let id =
            mount.id.clone().or_else(|| mount.source.clone()).or_else(|| mount.target.as_ref().map(base));
        let id = id.unwrap_or_default();
        let Some(secret) = Handle::current().block_on(self.building.request.secret(&id))? else {
            return match mount.required {
                true => Err(Error::InvalidArgument(format!("secret {id}: not found"))),
                false => Ok(()),
            };
        };
        if let Some(name) = &mount.env {
            let value = std::str::from_utf8(secret.bytes()).ok().filter(|value| !value.contains('\0'));
            let value = value.ok_or_else(|| {
                Error::InvalidArgument(format!("secret {id} is no text, which the variable {name} has to be"))
            })?;
            self.mounted.secrets.push(format!("{name}={value}"));
            if mount.target.is_none() {
                return Ok(());
            }
        }
        let path = self.secrets_folder()?.join(number.to_string());
        let target = mount.target.clone().unwrap_or_else(|| format!("{SECRETS}/{}", base(&id)));
        self.row(target, SourceRow::Own { path: path.clone(), mapped: false }, true);
        let (uid, gid) = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
        self.mounted.given.push(Given {
            path,
            bytes: Some(secret),
            mode: mount.mode.unwrap_or(0o400),
            uid,
            gid,
        });
        Ok(())
    }

    /// A socket behind which is an agent of whoever builds.
    fn agent(&mut self, number: usize, mount: &Mount) -> Result<()> {
        let id = mount.id.as_deref().unwrap_or("default");
        let Some(connections) = self.building.agents.connections(id) else {
            return match mount.required {
                true => Err(Error::InvalidArgument(format!(
                    "RUN --mount=type=ssh: there is no agent {id}: give one with --ssh {id}"
                ))),
                false => Ok(()),
            };
        };
        if crate::machines::wanted(&self.building.request.host.isolation) {
            return Err(Error::Unsupported(format!(
                "RUN --mount=type=ssh,id={id}: agents do not reach into machines: build with --isolation process"
            )));
        }
        let folder = self.secrets_folder()?;
        let path = folder.join(number.to_string());
        let fail = |error| Error::io("bind", &path, error);
        // The name of a socket is shorter than that of a file may be.
        let open = std::fs::File::open(&folder).map_err(fail)?;
        let short = format!("/proc/self/fd/{}/{number}", open.as_raw_fd());
        let listener = UnixListener::bind(short).map_err(fail)?;
        self.mounted.held.push(Box::new(Serving::begin(listener, connections).map_err(fail)?));
        let target = mount.target.clone().unwrap_or_else(|| format!("{AGENTS}.{}", self.agents));
        if self.agents == 0 {
            self.mounted.secrets.push(format!("SSH_AUTH_SOCK={target}"));
        }
        self.agents += 1;
        self.row(target, SourceRow::Own { path: path.clone(), mapped: false }, false);
        let (uid, gid) = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
        self.mounted.given.push(Given { path, bytes: None, mode: mount.mode.unwrap_or(0o600), uid, gid });
        Ok(())
    }

    fn secrets_folder(&mut self) -> Result<PathBuf> {
        if let Some(Folder(path)) = &self.secrets {
            return Ok(path.clone());
        }
        let all = folder_of_secrets(self.building);
        let path = all.join(insula_base::random_hex(16));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|e| Error::io("mkdir", &path, e))?;
        self.secrets = Some(Folder(path.clone()));
        Ok(path)
    }

    /// A program that is written in the Dockerfile.
    fn script(&mut self, target: &str, content: &[u8]) -> Result<()> {
        let path = self.scratch.path().join("script");
        std::fs::write(&path, content).map_err(|e| Error::io("write", &path, e))?;
        own(&path, 0o755, 0, 0)?;
        self.row(target.to_owned(), SourceRow::Own { path, mapped: true }, true);
        Ok(())
    }
}

fn folder_of_secrets(building: &Building) -> PathBuf {
    building.engine.instance().run().join("builds")
}

impl Mounted {
    /// Writes the secrets, for a container whose root is `first` on the host.
    pub(super) fn give(&mut self, ids: Option<(u32, u32)>) -> Result<()> {
        let outside = |id: u32| match ids {
            None => Ok(id),
            Some((first, count)) if id < count => Ok(first + id),
            Some((_, count)) => Err(Error::InvalidArgument(format!(
                "a secret cannot belong to {id}: ids end at {}",
                count - 1
            ))),
        };
        for given in std::mem::take(&mut self.given) {
            let fail = |error| Error::io("write", &given.path, error);
            if let Some(bytes) = &given.bytes {
                let mut file = std::fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&given.path)
                    .map_err(fail)?;
                std::io::Write::write_all(&mut file, bytes.bytes()).map_err(fail)?;
            }
            own(&given.path, given.mode & 0o7777, outside(given.uid)?, outside(given.gid)?)?;
        }
        Ok(())
    }
}

fn folder(path: &Path, mode: u32) -> Result<PathBuf> {
    std::fs::DirBuilder::new().mode(mode).create(path).map_err(|e| Error::io("mkdir", path, e))?;
    Ok(path.to_owned())
}

fn own(path: &Path, mode: u32, uid: u32, gid: u32) -> Result<()> {
    chown(path, Some(uid), Some(gid)).map_err(|e| Error::io("chown", path, e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| Error::io("chmod", path, e))
}

/// Copies what is in a folder of a tree, or a file.
fn fill(tree: &Tree, path: &str, folder: &Path) -> Result<()> {
    let fail = |error| Error::io("pipe", folder, error);
    let everything = Ignore::default();
    let copying = copying(tree, path, &Tree::image(&[], &[])?, &everything)?;
    let root = std::fs::File::open(folder).map_err(|e| Error::io("open", folder, e))?;
    let (reader, mut writer) = std::io::pipe().map_err(fail)?;
    std::thread::scope(|scope| {
        let writing = move || copying.write(&mut writer).map(drop);
        let written = thread::scoped(scope, "copy", writing).map_err(Error::Thread)?;
        let unpacked = unpack(BufReader::new(reader), root.as_fd(), &Limits::default(), Whiteouts::Ordinary);
        let written =
            written.join().unwrap_or_else(|_| Err(Error::Internal("the copy of a cache ended".to_owned())));
        // A reader that ended early is why the writer could not go on.
        unpacked?;
        written
    })
}

/// What a daemon that was killed left of secrets.
pub(super) fn sweep(store: &Store, run: &Path) -> Result<()> {
    let secrets = run.join("builds");
    match std::fs::remove_dir_all(&secrets) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("remove", &secrets, error));
        }
        _ => {}
    }
    caches::sweep(store)
}
