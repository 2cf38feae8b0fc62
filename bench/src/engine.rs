//! Engines with Docker's verbs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::daemon::Daemon;
use crate::image;
use crate::memory::{Memory, helpers, pss, rss};
use crate::peer::{IDLE, Images, Peer, Scenario};
use crate::traffic::{self, Crowd, Turn};
use crate::volatile;
use crate::worker::{Done, Worker, execute, words};

/// What engines differ in.
trait Dialect {
    fn name(&self) -> &str;
    /// Program and the arguments before the verb.
    fn prefix(&self) -> Vec<String>;
    fn execute(&mut self, words: &[String]) -> anyhow::Result<Done>;
    /// Processes that serve all containers.
    fn daemons(&self) -> Vec<u32>;
    /// Whether what its networks carry is compared.
    fn publishes(&self) -> bool {
        true
    }
    /// How a running container is removed at once.
    fn removal(&self) -> &'static [&'static str] {
        &["rm", "-f"]
    }
    /// What `push` and `pull` need for a registry without TLS.
    fn insecure(&self) -> &'static [&'static str] {
        &[]
    }
    /// Whether it has Docker's log drivers.
    fn keeps_dockers_logs(&self) -> bool {
        true
    }
    /// What a command of the host begins with that is to reach its networks.
    fn host(&self) -> Vec<String> {
        Vec::new()
    }
    /// Starts what it needs.
    fn begin(&mut self) -> anyhow::Result<()>;
    fn end(&mut self);
    fn folder(&self) -> &Path;
    /// What lasts, by its name in the folder.
    fn data(&self) -> &'static str;
}

impl<D: Dialect> Peer for D {
    fn name(&self) -> &str {
        Dialect::name(self)
    }

    fn version(&self) -> String {
        let program = self.prefix().remove(0);
        execute(&[program, "--version".into()]).and_then(|done| done.output()).unwrap_or_default()
    }

    fn prepare(&mut self) -> anyhow::Result<()> {
        let folder = Dialect::folder(self).to_owned();
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        self.begin()?;
        let archive = image::archive(&folder)?;
        call(self, &["import", &archive.display().to_string(), "busybox"])?;
        Ok(())
    }

    fn time(&mut self, scenario: Scenario) -> anyhow::Result<Option<Duration>> {
        let time = match scenario {
            Scenario::RunAlone | Scenario::RunCold => {
                timed(self, &["run", "--rm", "--network", "none", "busybox", "/bin/true"])?
            }
            Scenario::RunBridge => timed(self, &["run", "--rm", "busybox", "/bin/true"])?,
            Scenario::RunPublished => {
                timed(self, &["run", "--rm", "-p", "127.0.0.1::80", "busybox", "/bin/true"])?
            }
            Scenario::StopRemove => {
                call(self, &idle("timed"))?;
                timed(self, &["stop", "-t", "0", "timed"])? + timed(self, &["rm", "timed"])?
            }
            Scenario::Detached => {
                let time = timed(self, &idle("timed"))?;
                remove(self, "timed")?;
                time
            }
            Scenario::Exec => {
                // One idle container serves all rounds; `memory` made it.
                timed(self, &["exec", "idle0", "/bin/true"])?
            }
            Scenario::JsonLog | Scenario::LocalLog if !self.keeps_dockers_logs() => return Ok(None),
            Scenario::JsonLog => written(self, "json-file")?,
            Scenario::LocalLog => written(self, "local")?,
        };
        Ok(Some(time))
    }

    fn memory(&mut self) -> anyhow::Result<Option<Memory>> {
        let daemons = self.daemons();
        let of_daemons: Vec<u64> = daemons.iter().map(|pid| rss(*pid)).collect::<Result<_, _>>()?;
        let mut total = 0;
        let names: Vec<String> = (0..IDLE).map(|n| format!("idle{n}")).collect();
        for name in &names {
            call(self, &idle(name))?;
        }
        // Idle is what nothing has happened to for a while.
        std::thread::sleep(std::time::Duration::from_secs(3));
        for name in &names {
            let first = call(self, &["inspect", "-f", "{{.State.Pid}}", name])?;
            let first = first.parse().with_context(|| format!("{first:?} is no pid"))?;
            for helper in helpers(first, &daemons)? {
                total += pss(helper)?;
            }
        }
        for name in &names[1..] {
            remove(self, name)?;
        }
        let daemon_rss = (!of_daemons.is_empty()).then(|| of_daemons.iter().sum());
        Ok(Some(Memory { helper_pss: total / IDLE as u64, daemon_rss }))
    }

    fn images(&mut self) -> Option<&mut dyn Images> {
        Some(self)
    }

    fn traffic(&mut self) -> anyhow::Result<Option<Turn>> {
        if !self.publishes() {
            return Ok(None);
        }
        let folder = self.folder().to_owned();
        let host = self.host();
        traffic::turn(&mut |words| measured(self, words), &host, &folder).map(Some)
    }

    fn crowd(&mut self) -> anyhow::Result<Option<Crowd>> {
        // With the others it takes minutes.
        if Dialect::name(self) != "insula" {
            return Ok(None);
        }
        traffic::crowd(&mut |words| measured(self, words)).map(Some)
    }

    fn clean(&mut self) {
        // What is not there cannot be removed; what is there must not stay.
        for name in (0..IDLE).map(|n| format!("idle{n}")).chain(["timed".to_owned()]) {
            let _ = remove(self, &name);
        }
        self.end();
    }
}

impl<D: Dialect> Images for D {
    fn timed(&mut self, words: &[&str]) -> anyhow::Result<Duration> {
        timed(self, words)
    }

    fn each(&mut self, count: usize, at_once: usize, words: &[&str]) -> anyhow::Result<Duration> {
        let script = "seq 1 \"$1\" | { n=$2; shift 2; xargs -P \"$n\" -I{} \"$@\"; }";
        let shell = ["sh", "-c", script, "sh", &count.to_string(), &at_once.to_string()].map(str::to_owned);
        let words = [&shell[..], &full(self, words)].concat();
        self.execute(&words)?.time().with_context(|| words.join(" "))
    }

    fn output(&mut self, words: &[&str]) -> anyhow::Result<String> {
        call(self, words)
    }

    fn insecure(&self) -> &'static [&'static str] {
        Dialect::insecure(self)
    }

    fn removal(&self) -> &'static [&'static str] {
        Dialect::removal(self)
    }

    fn folder(&self) -> &Path {
        Dialect::folder(self)
    }

    fn data(&self) -> PathBuf {
        Dialect::folder(self).join(Dialect::data(self))
    }
}

fn idle(name: &str) -> [&str; 9] {
    ["run", "-d", "--network", "none", "--name", name, "busybox", "/bin/sleep", "1000"]
}

fn full<D: Dialect + ?Sized>(engine: &D, rest: &[&str]) -> Vec<String> {
    engine.prefix().into_iter().chain(rest.iter().map(|word| (*word).to_owned())).collect()
}

fn timed<D: Dialect + ?Sized>(engine: &mut D, rest: &[&str]) -> anyhow::Result<Duration> {
    let words = full(engine, rest);
    engine.execute(&words)?.time().with_context(|| words.join(" "))
}

fn call<D: Dialect + ?Sized>(engine: &mut D, rest: &[&str]) -> anyhow::Result<String> {
    let words = full(engine, rest);
    engine.execute(&words)?.output().with_context(|| words.join(" "))
}

/// What it prints, and how long it takes.
fn measured<D: Dialect + ?Sized>(engine: &mut D, rest: &[&str]) -> anyhow::Result<(String, Duration)> {
    let words = full(engine, rest);
    let done = engine.execute(&words)?;
    let output = done.output().with_context(|| words.join(" "))?;
    Ok((output, done.time()?))
}

fn remove<D: Dialect + ?Sized>(engine: &mut D, name: &str) -> anyhow::Result<()> {
    let words = [engine.removal(), &[name]].concat();
    call(engine, &words).map(drop)
}

/// How long a million lines take, from the command to the container's end, nobody reading them.
fn written<D: Dialect + ?Sized>(engine: &mut D, driver: &str) -> anyhow::Result<Duration> {
    let run = ["run", "-d", "--network", "none", "--name", "timed", "--log-driver", driver];
    let bounds = ["--log-opt", "max-size=10m", "--log-opt", "max-file=2"];
    let command = ["busybox", "/bin/busybox", "seq", "1", "1000000"];
    let begun = timed(engine, &[&run[..], &bounds, &command].concat())?;
    let ended = timed(engine, &["wait", "timed"])?;
    remove(engine, "timed")?;
    Ok(begun + ended)
}

/// A daemon's command in a network namespace of its own, if there is a script for it: what one engine has in the
/// kernel's tables every packet of another one passes as well.
fn program(path: &Path, script: Option<&str>) -> Command {
    let Some(script) = script else { return Command::new(path) };
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-ec", &format!("{script}\nexec \"$0\" \"$@\"")]).arg(path);
    command
}

const LONELY: &str = "ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward";
/// Docker loads `br_netfilter`, which hands every packet of a bridge to the tables of IP; a host that has insula alone
/// does not have it.
const LONELY_WITHOUT_DOCKER: &str = "ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward
for tables in iptables ip6tables arptables; do
    file=/proc/sys/net/bridge/bridge-nf-call-$tables
    if [ -e $file ]; then echo 0 >$file; fi
done";

/// What executes a command in the network namespace of a daemon.
fn beside(daemon: Option<&Daemon>) -> Vec<String> {
    let namespace = daemon.map(|daemon| format!("--net=/proc/{}/ns/net", daemon.pid()));
    namespace.map_or_else(Vec::new, |namespace| vec!["nsenter".to_owned(), namespace])
}

/// Ours.
#[derive(Debug)]
pub(crate) struct Insula {
    folder: PathBuf,
    programs: PathBuf,
    arguments: &'static [&'static str],
    alone: bool,
    daemon: Option<Daemon>,
}

impl Insula {
    pub(crate) fn new(folder: &Path) -> Self {
        let programs = std::env::var_os("INSULA_BIN_DIR").unwrap_or_else(|| "target/release".into());
        Self {
            folder: folder.to_owned(),
            programs: programs.into(),
            arguments: &[],
            alone: false,
            daemon: None,
        }
    }

    /// With arguments for its daemon.
    pub(crate) fn with(self, arguments: &'static [&'static str]) -> Self {
        Self { arguments, ..self }
    }

    /// In a network namespace of its own.
    pub(crate) fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// Of its daemon.
    pub(crate) fn socket(&self) -> PathBuf {
        volatile::of(&self.folder).join("insula.sock")
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Of its daemon, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }
}

impl Dialect for Insula {
    fn name(&self) -> &str {
        "insula"
    }

    fn prefix(&self) -> Vec<String> {
        let socket = format!("unix://{}", self.socket().display());
        words(&self.programs.join("insula"), &["--host", &socket])
    }

    fn execute(&mut self, words: &[String]) -> anyhow::Result<Done> {
        execute(words)
    }

    fn daemons(&self) -> Vec<u32> {
        self.daemon.iter().map(Daemon::pid).collect()
    }

    fn host(&self) -> Vec<String> {
        beside(self.daemon.as_ref().filter(|_| self.alone))
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let mut command =
            program(&self.programs.join("insulad"), self.alone.then_some(LONELY_WITHOUT_DOCKER));
        command.arg("--root").arg(self.folder.join("l")).arg("--run").arg(volatile::make(&self.folder)?);
        command.args(self.arguments);
        self.daemon = Some(Daemon::start(command, &self.socket(), &self.folder.join("log"))?);
        Ok(())
    }

    fn end(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop();
        }
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn data(&self) -> &'static str {
        "l"
    }
}

/// dockerd with a containerd of its own.
#[derive(Debug)]
pub(crate) struct Docker {
    folder: PathBuf,
    alone: bool,
    daemon: Option<Daemon>,
}

impl Docker {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), alone: false, daemon: None }
    }

    /// In a network namespace of its own.
    pub(crate) fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("docker.sock")
    }
}

impl Dialect for Docker {
    fn name(&self) -> &str {
        "docker"
    }

    fn prefix(&self) -> Vec<String> {
        // The distribution's client beside the distribution's daemon, whatever else is in PATH.
        let program =
            ["/usr/bin/docker"].into_iter().find(|path| Path::new(path).exists()).unwrap_or("docker");
        words(Path::new(program), &["-H", &format!("unix://{}", self.socket().display())])
    }

    fn execute(&mut self, words: &[String]) -> anyhow::Result<Done> {
        execute(words)
    }

    fn daemons(&self) -> Vec<u32> {
        let own: Vec<u32> = self.daemon.iter().map(Daemon::pid).collect();
        let below = own.iter().flat_map(|pid| children(*pid)).collect::<Vec<_>>();
        [own, below].concat()
    }

    fn host(&self) -> Vec<String> {
        beside(self.daemon.as_ref().filter(|_| self.alone))
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let mut command = program(Path::new("dockerd"), self.alone.then_some(LONELY));
        command
            .arg("--data-root")
            .arg(self.folder.join("data"))
            .arg("--exec-root")
            .arg(volatile::make(&self.folder)?);
        command.arg("-H").arg(format!("unix://{}", self.socket().display()));
        command.arg("--pidfile").arg(self.folder.join("pid"));
        self.daemon = Some(Daemon::start(command, &self.socket(), &self.folder.join("log"))?);
        Ok(())
    }

    fn end(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop();
        }
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn data(&self) -> &'static str {
        "data"
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut all: Vec<u32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // Children belong to the thread that made them.
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// podman with crun, or with runc where there is no crun.
#[derive(Debug)]
pub(crate) struct Podman {
    folder: PathBuf,
    worker: Option<Worker>,
}

impl Podman {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), worker: None }
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("containers.conf")
    }
}

impl Dialect for Podman {
    fn name(&self) -> &str {
        "podman"
    }

    fn prefix(&self) -> Vec<String> {
        let runtime = if Path::new("/usr/bin/crun").exists() { "crun" } else { "runc" };
        let at = |name: &str| self.folder.join(name).display().to_string();
        let volatile = |name: &str| volatile::of(&self.folder).join(name).display().to_string();
        words(
            Path::new("/usr/bin/podman"),
            &[
                "--root",
                &at("root"),
                "--runroot",
                &volatile("run"),
                "--tmpdir",
                &volatile("tmp"),
                "--runtime",
                runtime,
                "--cgroup-manager",
                "cgroupfs",
                "--storage-driver",
                "overlay",
                "--network-config-dir",
                &at("networks"),
            ],
        )
    }

    fn execute(&mut self, words: &[String]) -> anyhow::Result<Done> {
        let setting = format!("CONTAINERS_CONF={}", self.configuration().display());
        // env(1) replaces itself by podman: one exec, 0.5 ms of 150.
        let words = [vec!["env".to_owned(), setting], words.to_vec()].concat();
        self.worker.as_mut().context("podman was not prepared")?.execute(&words)
    }

    fn insecure(&self) -> &'static [&'static str] {
        &["--tls-verify=false"]
    }

    fn publishes(&self) -> bool {
        false
    }

    fn keeps_dockers_logs(&self) -> bool {
        false
    }

    fn removal(&self) -> &'static [&'static str] {
        // Otherwise it waits ten seconds for a first process that ignores SIGTERM.
        &["rm", "-f", "-t", "0"]
    }

    fn daemons(&self) -> Vec<u32> {
        Vec::new()
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        // Podman's own defaults raise limits above what root may have on some hosts.
        let text = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
                    [engine]\nevents_logger = \"file\"\n";
        fs::write(self.configuration(), text).context("write containers.conf")?;
        self.worker = Some(Worker::start()?);
        Ok(())
    }

    fn end(&mut self) {
        self.worker = None;
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn data(&self) -> &'static str {
        "root"
    }
}
