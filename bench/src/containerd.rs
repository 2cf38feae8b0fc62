//! containerd by its own command line: what engines that use it cannot be faster than.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::daemon::Daemon;
use crate::images::archive::{self, Shape};
use crate::memory::{Memory, helpers, pss, rss};
use crate::peer::{IDLE, Images, Peer, Scenario};
use crate::traffic::{Crowd, Turn};
use crate::volatile;
use crate::worker::{Done, execute, words};

const PROGRAM: &str = "ctr";
/// What it calls the image of the comparison.
const IMAGE: &str = "docker.io/library/busybox:1";

#[derive(Debug)]
pub(crate) struct Containerd {
    folder: PathBuf,
    daemon: Option<Daemon>,
    runs: u32,
}

impl Containerd {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), daemon: None, runs: 0 }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("sock")
    }

    fn execute(&self, rest: &[&str]) -> anyhow::Result<Done> {
        let socket = self.socket().display().to_string();
        let words = words(Path::new(PROGRAM), &[&["--address", &socket], rest].concat());
        execute(&words)
    }

    fn timed(&self, rest: &[&str]) -> anyhow::Result<Duration> {
        self.execute(rest)?.time().with_context(|| rest.join(" "))
    }

    fn begin(&self, id: &str) -> anyhow::Result<Duration> {
        self.timed(&["run", "-d", IMAGE, id, "/bin/sleep", "1000"])
    }

    /// Its task, then what is known of it.
    fn remove(&self, id: &str) -> anyhow::Result<Duration> {
        Ok(self.timed(&["task", "rm", "-f", id])? + self.timed(&["container", "rm", id])?)
    }

    fn first_process(&self, id: &str) -> anyhow::Result<u32> {
        let all = self.execute(&["task", "ls"])?.output()?;
        let mut lines = all.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|words| words.first() == Some(&id)).with_context(|| format!("no task {id}"))?;
        line.get(1).and_then(|pid| pid.parse().ok()).with_context(|| format!("{line:?} has no pid"))
    }

    fn measured(&self, daemon: u32) -> anyhow::Result<Memory> {
        let daemon_rss = rss(daemon)?;
        let names: Vec<String> = (0..IDLE).map(|n| format!("idle{n}")).collect();
        for name in &names {
            self.begin(name)?;
        }
        std::thread::sleep(Duration::from_secs(3));
        let mut total = 0;
        for name in &names {
            for helper in helpers(self.first_process(name)?, &[daemon])? {
                total += pss(helper)?;
            }
        }
        for name in &names[1..] {
            self.remove(name)?;
        }
        Ok(Memory { helper_pss: total / IDLE as u64, daemon_rss: Some(daemon_rss) })
    }
}

impl Peer for Containerd {
    fn name(&self) -> &str {
        PROGRAM
    }

    fn version(&self) -> String {
        let output = execute(&words(Path::new(PROGRAM), &["--version"])).and_then(|done| done.output());
        output.unwrap_or_default()
    }

    fn prepare(&mut self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("make {}", self.folder.display()))?;
        let at = |name: &str| self.folder.join(name);
        // Nothing of the host's own containerd is used, nor what only Kubernetes needs.
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = {:?}\n",
            at("data"),
            volatile::make(&self.folder)?,
            self.socket()
        );
        fs::write(at("config.toml"), text).context("write containerd's configuration")?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(at("config.toml"));
        self.daemon = Some(Daemon::start(command, &self.socket(), &at("log"))?);
        let archive = archive::make(&self.folder, Shape { name: "busybox", layers: 1, size: 0 })?;
        self.timed(&["image", "import", &archive.display().to_string()])?;
        self.time(Scenario::RunAlone).map(drop)
    }

    fn time(&mut self, scenario: Scenario) -> anyhow::Result<Option<Duration>> {
        self.runs += 1;
        let id = format!("timed{}", self.runs);
        let time = match scenario {
            Scenario::RunAlone | Scenario::RunCold => {
                self.timed(&["run", "--rm", IMAGE, &id, "/bin/true"])?
            }
            Scenario::Detached => {
                let time = self.begin(&id)?;
                self.remove(&id)?;
                time
            }
            Scenario::Exec => self.timed(&["task", "exec", "--exec-id", &id, "idle0", "/bin/true"])?,
            Scenario::StopRemove => {
                self.begin(&id)?;
                self.remove(&id)?
            }
            // It makes no networks and keeps no logs.
            Scenario::RunBridge | Scenario::RunPublished | Scenario::JsonLog | Scenario::LocalLog => {
                return Ok(None);
            }
        };
        Ok(Some(time))
    }

    fn memory(&mut self) -> anyhow::Result<Option<Memory>> {
        let daemon = self.daemon.as_ref().context("containerd was not prepared")?.pid();
        self.measured(daemon).map(Some)
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
        let Some(mut daemon) = self.daemon.take() else { return };
        // What it was interrupted with may be there as well.
        let left =
            self.execute(&["container", "ls", "-q"]).and_then(|done| done.output()).unwrap_or_default();
        for id in left.lines() {
            let _ = self.remove(id);
        }
        daemon.stop();
    }
}
