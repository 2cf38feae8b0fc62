//! What runs a prepared root file system: no engine, no image, no network. What an engine cannot be
//! faster than, if it used them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::floor::{self, FLOOR};
use crate::image;
use crate::memory::Memory;
use crate::peer::{Images, Peer, Scenario};
use crate::traffic::{Crowd, Turn};
use crate::volatile;
use crate::worker::{Worker, execute, words};

/// How it is told what to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// runc's command line and a `config.json`.
    Oci,
    /// A file of its own.
    Lxc,
    /// Flags alone.
    Nspawn,
    /// Nothing: it is made here ([`FLOOR`]).
    Floor,
}

#[derive(Debug)]
pub(crate) struct Bundle {
    program: String,
    kind: Kind,
    folder: PathBuf,
    worker: Option<Worker>,
    runs: u32,
    /// Control groups that were there before.
    groups: Vec<PathBuf>,
}

/// Control groups that these programs leave behind.
const LEFT: [&str; 3] = ["payload", "supervisor", "lxc.pivot"];

/// Those of `LEFT` that are there, in any hierarchy.
fn groups() -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let top = hierarchies.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]);
    let all = top.flat_map(|folder| LEFT.map(|name| folder.join(name)));
    all.filter(|path| path.is_dir()).collect()
}

impl Bundle {
    /// One of [`Self::PROGRAMS`].
    pub(crate) fn new(program: &str, folder: &Path) -> Self {
        let kind = match program {
            "lxc-start" => Kind::Lxc,
            "systemd-nspawn" => Kind::Nspawn,
            FLOOR => Kind::Floor,
            _ => Kind::Oci,
        };
        Self {
            program: program.to_owned(),
            kind,
            folder: folder.to_owned(),
            worker: None,
            runs: 0,
            groups: groups(),
        }
    }

    pub(crate) const PROGRAMS: [&str; 5] = ["crun", "runc", "lxc-start", "systemd-nspawn", FLOOR];

    fn words(&self, rest: &[&str]) -> Vec<String> {
        words(Path::new(&self.program), rest)
    }

    /// What a run takes.
    fn run(&self, id: &str) -> Vec<String> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        match self.kind {
            Kind::Oci => {
                let bundle = self.folder.display().to_string();
                let state = volatile::of(&self.folder).display().to_string();
                self.words(&["--root", &state, "run", "--bundle", &bundle, id])
            }
            Kind::Lxc => self.words(&["-F", "-n", id, "-P", &path("state"), "-f", &path("config")]),
            Kind::Nspawn => {
                let flags = ["--quiet", "--register=no", "--keep-unit", "--private-network", "--machine", id];
                self.words(&[&flags[..], &["-D", &path("rootfs"), "/bin/true"]].concat())
            }
            Kind::Floor => {
                words(&self.folder.join(FLOOR), &[&self.folder.display().to_string(), id, "/bin/true"])
            }
        }
    }

    /// Writes what the program is to be told.
    fn describe(&self, worker: &mut Worker) -> anyhow::Result<()> {
        match self.kind {
            Kind::Oci => document(&self.folder, &self.program, worker),
            Kind::Lxc => {
                fs::create_dir_all(self.folder.join("state")).context("make a folder")?;
                let root = self.folder.join("rootfs");
                let text = format!(
                    "lxc.rootfs.path = dir:{}\nlxc.uts.name = bench\nlxc.net.0.type = empty\n\
                     lxc.mount.auto = proc:mixed sys:ro\nlxc.init.cmd = /bin/true\n",
                    root.display()
                );
                fs::write(self.folder.join("config"), text).context("write the configuration")
            }
            // It wants to see that somebody meant this to be a system.
            Kind::Nspawn => {
                fs::create_dir_all(self.folder.join("rootfs/usr")).context("make a folder")?;
                fs::write(self.folder.join("rootfs/etc/os-release"), "ID=bench\n").context("write os-release")
            }
            Kind::Floor => floor::compile(&self.folder).map(drop),
        }
    }
}

/// Writes a `config.json` as `program` proposes it, which any host can carry out.
pub(crate) fn document(folder: &Path, program: &str, worker: &mut Worker) -> anyhow::Result<()> {
    let script = "cd \"$0\" && \"$1\" spec";
    let spec = ["sh", "-c", script, &folder.display().to_string(), program].map(str::to_owned);
    worker.execute(&spec)?.output().context("write the specification")?;
    change(folder, |document| {
        document["process"]["terminal"] = false.into();
        // Raising limits above the host's own is refused to root on some hosts.
        document["process"]["rlimits"] = serde_json::json!([]);
    })?;
    arguments(folder, &["/bin/true"])
}

/// Has the bundle execute something else.
pub(crate) fn arguments(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    change(folder, |document| document["process"]["args"] = serde_json::json!(arguments))
}

fn change(folder: &Path, change: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
    let path = folder.join("config.json");
    let mut document: Value = serde_json::from_slice(&fs::read(&path)?).context("config.json")?;
    change(&mut document);
    fs::write(&path, document.to_string()).context("write config.json")
}

impl Peer for Bundle {
    fn name(&self) -> &str {
        &self.program
    }

    fn version(&self) -> String {
        if self.kind == Kind::Floor {
            return "a program of this project in static C, no engine".to_owned();
        }
        let output = execute(&self.words(&["--version"])).and_then(|done| done.output());
        output.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
    }

    fn prepare(&mut self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("make {}", self.folder.display()))?;
        image::tree(&self.folder)?;
        volatile::make(&self.folder)?;
        let mut worker = Worker::start()?;
        self.describe(&mut worker)?;
        self.worker = Some(worker);
        self.time(Scenario::RunAlone).map(drop)
    }

    fn time(&mut self, scenario: Scenario) -> anyhow::Result<Option<Duration>> {
        if !matches!(scenario, Scenario::RunAlone | Scenario::RunCold) {
            return Ok(None);
        }
        self.runs += 1;
        let id = format!("insula-bench-{}-{}", std::process::id(), self.runs);
        let words = self.run(&id);
        // All hierarchies of control groups, as for insula.
        if self.kind == Kind::Floor {
            return execute(&words)?.time().map(Some);
        }
        let worker = self.worker.as_mut().context("the runtime was not prepared")?;
        worker.execute(&words)?.time().map(Some)
    }

    fn memory(&mut self) -> anyhow::Result<Option<Memory>> {
        Ok(None)
    }

    fn images(&mut self) -> Option<&mut dyn Images> {
        None
    }

    fn traffic(&mut self) -> anyhow::Result<Option<Turn>> {
        Ok(None)
    }

    fn crowd(&mut self) -> anyhow::Result<Option<Crowd>> {
        Ok(None)
    }

    fn clean(&mut self) {
        self.worker = None;
        for group in groups().into_iter().filter(|group| !self.groups.contains(group)) {
            let _ = fs::remove_dir(group);
        }
    }
}
