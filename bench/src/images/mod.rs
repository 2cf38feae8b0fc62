//! Images of some size: how long engines take to bring, keep and send them, what that costs in memory, and what
//! many containers of one cost.
//!
//! Each round is one life of each image with each engine: load, push, save, commit, export, rmi, pull, rmi.

pub(crate) mod archive;
mod copies;
pub(crate) mod measure;
mod registry;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use self::archive::Shape;
use self::copies::Copies;
use self::measure::{Shared, disk, peak, shared};
use self::registry::Registry;
use crate::peer::{Images, Peer};
use crate::report::OURS;
use crate::sample::Samples;
use crate::worker::execute;

/// No further round begins after this: rounds take half a minute a peer.
const BUDGET: Duration = Duration::from_secs(120);
/// Times that something is copied in each direction: once says more about what the disk does just then.
const COPIES: usize = 3;
/// Containers that run at once.
const MANY: usize = 100;
/// What daemons do when nothing is asked of them has happened after this.
const REST: Duration = Duration::from_secs(12);
const SKOPEO: &str = "skopeo";
/// Only copies a file from here to there.
const COREUTILS: &str = "cp(1), on the host";

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Load,
    Pull,
    Push,
    Save,
    Commit,
    Export,
    FileIn,
    FileOut,
    TreeIn,
    TreeOut,
    Remove,
}

impl Step {
    const ALL: [Self; 11] = [
        Self::Load,
        Self::Pull,
        Self::Push,
        Self::Save,
        Self::Commit,
        Self::Export,
        Self::FileIn,
        Self::FileOut,
        Self::TreeIn,
        Self::TreeOut,
        Self::Remove,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Save => "save",
            Self::Commit => "commit of 20 MB",
            Self::Export => "export",
            Self::FileIn => "cp of 100 MB in",
            Self::FileOut => "cp of 100 MB out",
            Self::TreeIn => "cp of 5000 files in",
            Self::TreeOut => "cp of 5000 files out",
            Self::Remove => "rmi",
        }
    }
}

/// What many containers of one image cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Many {
    count: usize,
    /// Bytes of disk that came with them.
    disk: u64,
    /// Of their first processes together.
    memory: Shared,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    rounds: usize,
    times: BTreeMap<(Shape, Step), Vec<(String, Samples)>>,
    /// Most memory, in KiB, while the large image was pulled.
    peaks: Vec<(String, u64)>,
    many: Vec<(String, Many)>,
}

impl Seen {
    fn push(&mut self, key: (Shape, Step), name: &str, time: Duration) {
        let peers = self.times.entry(key).or_default();
        let place = peers.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            peers.push((name.to_owned(), Samples::default()));
            peers.len() - 1
        });
        peers[place].1.push(time);
    }

    fn peak(&mut self, name: &str, kib: u64) {
        match self.peaks.iter_mut().find(|(known, _)| known == name) {
            Some((_, most)) => *most = kib.max(*most),
            None => self.peaks.push((name.to_owned(), kib)),
        }
    }
}

/// What all engines are given.
struct Given<'a> {
    folder: &'a Path,
    registry: Registry,
    archives: Vec<(Shape, PathBuf)>,
    copies: Copies,
}

impl Given<'_> {
    /// A registry with nothing in it.
    fn empty(&self) -> anyhow::Result<Registry> {
        let folder = self.folder.join("empty");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).context("remove what was pushed")?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Registry::start(&folder)
    }
}

/// At most so many rounds, and what many containers cost; less where the time is over. `more` are containers of
/// ours alone: with the others so many take minutes.
pub(crate) fn compare(
    folder: &Path,
    peers: &mut [Box<dyn Peer>],
    rounds: usize,
    more: Option<usize>,
) -> anyhow::Result<Seen> {
    let folder = folder.join("images");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let registry = Registry::start(&folder)?;
    let mut archives = Vec::new();
    for shape in Shape::ALL {
        let archive = archive::make(&folder, shape)?;
        registry.bring(&archive, &format!("{}:1", shape.name))?;
        archives.push((shape, archive));
    }
    let given = Given { folder: &folder, registry, archives, copies: Copies::make()? };
    let (began, mut seen) = (Instant::now(), Seen::default());
    let mut left_out: BTreeSet<String> = BTreeSet::new();
    while seen.rounds < rounds && began.elapsed() < BUDGET {
        seen.rounds += 1;
        eprintln!("bench: images, round {} of at most {rounds}", seen.rounds);
        for (shape, archive) in &given.archives {
            for peer in peers.iter_mut() {
                let name = peer.name().to_owned();
                if left_out.contains(&name) {
                    continue;
                }
                let Some(images) = peer.images() else { continue };
                let life = Life { given: &given, images, name: &name, shape: *shape, seen: &mut seen };
                if let Err(error) = life.run(archive) {
                    eprintln!("bench: {name} is left out of images ({}): {error:#}", shape.name);
                    left_out.insert(name);
                }
            }
            by_skopeo(&given, *shape, archive, &mut seen)?;
            if *shape == Shape::SINGLE {
                by_coreutils(&given, *shape, &mut seen)?;
            }
        }
    }
    for peer in peers.iter_mut() {
        let name = peer.name().to_owned();
        if left_out.contains(&name) {
            continue;
        }
        let Some(images) = peer.images() else { continue };
        for count in [MANY].into_iter().chain(more.filter(|_| name == OURS)) {
            eprintln!("bench: {count} containers with {name}");
            match many(&given, images, count) {
                Ok(many) => seen.many.push((name.clone(), many)),
                Err(error) => eprintln!("bench: {name} is left out of {count} containers: {error:#}"),
            }
        }
    }
    Ok(seen)
}

/// One life of an image with one engine.
struct Life<'a> {
    given: &'a Given<'a>,
    images: &'a mut dyn Images,
    name: &'a str,
    shape: Shape,
    seen: &'a mut Seen,
}

impl Life<'_> {
    fn step(&mut self, step: Step, words: &[&str]) -> anyhow::Result<()> {
        let time = self.images.timed(words)?;
        self.seen.push((self.shape, step), self.name, time);
        Ok(())
    }

    fn run(mut self, archive: &Path) -> anyhow::Result<()> {
        let image = format!("{}:1", self.shape.name);
        let insecure = self.images.insecure();
        self.step(Step::Load, &["load", "-i", &archive.display().to_string()])?;
        // An empty registry: nothing is there that need not be sent, or is only to be given another name.
        let empty = self.given.empty()?;
        let own = empty.name(&image);
        self.images.output(&["tag", &image, &own])?;
        self.step(Step::Push, &[&["push"], insecure, &[&own]].concat())?;
        let out = self.given.folder.join("out.tar").display().to_string();
        self.step(Step::Save, &["save", "-o", &out, &image])?;
        std::fs::remove_file(&out).context("remove what was saved")?;
        drop(empty);
        self.images.output(&[
            "run",
            "-d",
            "--network",
            "none",
            "--name",
            "timed",
            &image,
            "/bin/sleep",
            "1000",
        ])?;
        self.images.output(&[
            "exec",
            "timed",
            "/bin/busybox",
            "dd",
            "if=/dev/urandom",
            "of=/made",
            "bs=1M",
            "count=20",
        ])?;
        self.step(Step::Commit, &["commit", "timed", "made:1"])?;
        self.step(Step::Export, &["export", "-o", &out, "timed"])?;
        std::fs::remove_file(&out).context("remove what was exported")?;
        if self.shape == Shape::SINGLE {
            self.copies()?;
        }
        let removal = self.images.removal();
        self.images.output(&[removal, &["timed"]].concat())?;
        self.images.output(&["rmi", "made:1"])?;
        self.step(Step::Remove, &["rmi", &image, &own])?;
        let there = self.given.registry.name(&image);
        let folder = self.images.folder().to_owned();
        let words = [&["pull"], insecure, &[there.as_str()]].concat();
        let (pulled, most) = peak(&folder, || self.images.timed(&words));
        self.seen.push((self.shape, Step::Pull), self.name, pulled?);
        if self.shape == Shape::LARGE {
            self.seen.peak(self.name, most);
        }
        self.images.output(&["rmi", &there]).map(drop)
    }
}

impl Life<'_> {
    /// Both ways, into and out of a container that runs.
    fn copies(&mut self) -> anyhow::Result<()> {
        let given = self.given;
        let steps =
            [(Copies::FILE, Step::FileIn, Step::FileOut), (Copies::TREE, Step::TreeIn, Step::TreeOut)];
        for (turn, (name, into, out)) in (0..COPIES).flat_map(|turn| steps.map(|step| (turn, step))) {
            // Nothing is at this place, and nobody waits for what was written before.
            let inside = format!("timed:/{name}{turn}");
            rustix::fs::sync();
            Copies::have_memory();
            self.step(into, &["cp", &given.copies.source(name).display().to_string(), &inside])?;
            Copies::have_memory();
            self.step(out, &["cp", &inside, &given.copies.target(name)?.display().to_string()])?;
        }
        Ok(())
    }
}

/// skopeo only copies: what it pulls is not unpacked, and what it pushes is read from the archive.
fn by_skopeo(given: &Given<'_>, shape: Shape, archive: &Path, seen: &mut Seen) -> anyhow::Result<()> {
    let image = format!("{}:1", shape.name);
    let empty = given.empty()?;
    let (from, to) = (format!("docker-archive:{}", archive.display()), empty.name(&image));
    let to = format!("docker://{to}");
    let pushed = execute(&[SKOPEO, "copy", "-q", "--dest-tls-verify=false", &from, &to].map(str::to_owned))?;
    seen.push((shape, Step::Push), SKOPEO, pushed.time().context("skopeo copy")?);
    let folder = given.folder.join("skopeo");
    let from = format!("docker://{}", given.registry.name(&image));
    let to = format!("oci:{}", folder.display());
    let pull = [SKOPEO, "copy", "-q", "--src-tls-verify=false", &from, &to].map(str::to_owned);
    let (pulled, most) = peak(&folder, || execute(&pull));
    seen.push((shape, Step::Pull), SKOPEO, pulled?.time().context("skopeo copy")?);
    if shape == Shape::LARGE {
        seen.peak(SKOPEO, most);
    }
    std::fs::remove_dir_all(&folder).context("remove what skopeo made")
}

/// The same file onto the same disk, by a program that does nothing else: nobody can be faster who writes a file.
fn by_coreutils(given: &Given<'_>, shape: Shape, seen: &mut Seen) -> anyhow::Result<()> {
    let to = given.folder.join("copied");
    for _ in 0..COPIES {
        rustix::fs::sync();
        Copies::have_memory();
        let words =
            ["cp", &given.copies.source(Copies::FILE).display().to_string(), &to.display().to_string()];
        let copied = execute(&words.map(str::to_owned))?;
        seen.push((shape, Step::FileIn), COREUTILS, copied.time().context("cp")?);
        std::fs::remove_file(&to).context("remove what was copied")?;
    }
    Ok(())
}

/// Disk and memory of many containers of the large image. Whatever fails, none of them stays.
fn many(given: &Given<'_>, images: &mut dyn Images, count: usize) -> anyhow::Result<Many> {
    let (shape, archive) = &given.archives[0];
    let image = format!("{}:1", shape.name);
    images.output(&["load", "-i", &archive.display().to_string()])?;
    let names: Vec<String> = (0..count).map(|number| format!("many{number}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let measured = measured(images, &image, &all);
    let removal = images.removal();
    let removed = images.output(&[removal, &all].concat());
    let measured = measured?;
    removed?;
    images.output(&["rmi", &image])?;
    Ok(measured)
}

/// Bytes below a folder, once a daemon has had the time to put its books in order.
fn settled(folder: &Path) -> anyhow::Result<u64> {
    std::thread::sleep(REST);
    disk(folder)
}

fn measured(images: &mut dyn Images, image: &str, names: &[&str]) -> anyhow::Result<Many> {
    let data = images.data();
    let before = settled(&data)?;
    for name in names {
        images.output(&["run", "-d", "--network", "none", "--name", name, image, "/bin/sleep", "1000"])?;
    }
    let disk = settled(&data)?.saturating_sub(before);
    let pids = images.output(&[&["inspect", "-f", "{{.State.Pid}}"], names].concat())?;
    let pids: Vec<u32> =
        pids.lines().map(|pid| pid.trim().parse()).collect::<Result<_, _>>().context("pids")?;
    Ok(Many { count: names.len(), disk, memory: shared(&pids)? })
}
