//! What every wall has to do, whatever it is made of: one suite, run against the one that `INSULA_TEST_WALL` names
//! (`namespaces`, or a machine's backend). `tests/vm` runs it and says where a machine's parts
//! are: `INSULA_TEST_PARTS` is a folder with `insula-vmm` and `insula-agent`, `INSULA_TEST_KERNEL` one with a kernel.
//!
//! Not libtest's harness: who makes a wall is a process of one thread.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on panics, and says what passed"
)]

use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use insula_base::{ContainerId, Kind, Kinded};
use insula_host::guest::{self, Features, Images, Sockets};
use insula_sandbox::{Error, Event, ExecPlan, Frozen, Result, Sandbox, SignalTarget, Streams, Wall, When};
use insula_spec::machine::{Backend, MachinePlan};
use insula_spec::plan::*;
use rustix::event::{PollFd, PollFlags, Timespec};
use tempfile::TempDir;

const TERM: i32 = 15;
const KILL: i32 = 9;
/// Generous: a machine may be emulated on a busy host.
const PATIENCE: Duration = Duration::from_secs(180);

/// What it is about, and what is done in a sandbox of its own.
type Case = (&'static str, fn(&mut Container));

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let Ok(wall) = std::env::var("INSULA_TEST_WALL") else {
        eprintln!("skipped: tests/vm runs this suite and says against which wall");
        return;
    };
    rustix::process::umask(rustix::fs::Mode::empty());
    let cases: [Case; 4] = [
        ("an empty sandbox has nothing to do", empty),
        ("a program runs to its end and its streams are its own", program),
        ("what cannot be executed leaves the sandbox empty", missing),
        ("a container is entered, watched, held still, limited and ended", life),
    ];
    for (name, case) in cases {
        for ahead in [Group::None, Group::Its, Group::Another] {
            let mut container = Container::new(&wall, ahead);
            case(&mut container);
            container.wall.destroy().unwrap();
            container.wall.destroy().unwrap();
            drop(container);
        }
        println!("conforms: {wall}: {name}");
    }
    assert_eq!(groups(), Vec::<PathBuf>::new());
}

/// Which control group was made before the container was known.
#[derive(Debug, Clone, Copy)]
enum Group {
    None,
    Its,
    Another,
}

fn group_of(id: &ContainerId) -> String {
    format!("{}{}", prefix_of_groups(), id.short())
}

fn prefix_of_groups() -> String {
    format!("insula-test-{}-", std::process::id())
}

/// Those of this process that there are.
fn groups() -> Vec<PathBuf> {
    let roots = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    let below = roots.chain([PathBuf::from("/sys/fs/cgroup")]).filter_map(|root| fs::read_dir(root).ok());
    below
        .flatten()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix_of_groups()))
        .map(|entry| entry.path())
        .collect()
}

/// The machine around a container, if the wall has one.
fn machine(wall: &str, folder: &TempDir) -> Option<MachinePlan> {
    let backend = match wall {
        "namespaces" => return None,
        "qemu" => Backend::Qemu,
        "kvm" => Backend::Kvm,
        other => panic!("there is no wall {other}"),
    };
    let at = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let parts = at("INSULA_TEST_PARTS");
    let kernel = guest::find(&at("INSULA_TEST_KERNEL")).unwrap();
    let cache = std::env::temp_dir().join(format!("insula-test-{}", std::process::id()));
    let initramfs = guest::initramfs(
        &kernel,
        &parts.join("insula-agent"),
        (Features::Containers, Images::Served, Sockets::None),
        &cache,
    )
    .unwrap();
    // Its own copy is enough, so that nothing is left.
    let own = folder.path().join("initramfs");
    fs::rename(initramfs, &own).unwrap();
    fs::remove_dir_all(cache).unwrap();
    Some(MachinePlan {
        backend,
        vmm: parts.join("insula-vmm"),
        kernel,
        initramfs: own,
        cpus: 1,
        memory: 192 << 20,
        patience: 180,
        folder: folder.path().to_owned(),
        template: None,
        image: None,
        tenant: None,
        vsock: None,
    })
}

/// A sandbox, and what it is to hold.
struct Container {
    wall: Wall,
    id: ContainerId,
    folder: TempDir,
    machine: Option<MachinePlan>,
    events: VecDeque<Event>,
}

impl Container {
    fn new(wall: &str, ahead: Group) -> Self {
        let folder = tempfile::Builder::new().prefix("insula-wall-").tempdir().unwrap();
        for name in ["layer/bin", "layer/etc", "upper", "work"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let bin = folder.path().join("layer/bin");
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for name in ["sh", "id", "cat", "sleep", "stty", "hostname", "kill"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        let machine = machine(wall, &folder);
        let (id, events) = (ContainerId::random(), VecDeque::new());
        let group = match ahead {
            Group::None => None,
            Group::Its => Some(group_of(&id)),
            Group::Another => Some(group_of(&ContainerId::random())),
        };
        let wall = Wall::new(group.as_deref()).unwrap();
        Self { wall, id, folder, machine, events }
    }

    fn plan(&self, script: &str) -> ContainerPlan {
        let path = |name: &str| self.folder.path().join(name);
        ContainerPlan {
            id: self.id.clone(),
            process: process(&["sh", "-c", script]),
            init: InitPlan::Process,
            rootfs: RootfsPlan {
                layers: vec![path("layer")],
                idmap: true,
                upper: Some(UpperPlan { upper: path("upper"), work: path("work"), volatile: false }),
                readonly: false,
                whole: false,
                hidden: Vec::new(),
            },
            mounts: Vec::new(),
            namespaces: NamespacesPlan {
                user: UserNamespace::Private { first: 1_900_000_000, count: 65536 },
                pid: Namespace::Private,
                network: Namespace::Private,
                ipc: Namespace::Private,
                uts: Namespace::Private,
                cgroup: Namespace::Private,
            },
            hostname: "box".into(),
            domainname: String::new(),
            interfaces: Vec::new(),
            resolver: false,
            cgroup: CgroupPlan { path: self.group(), resources: Resources::default() },
            devices: Vec::new(),
            device_rules: Vec::new(),
            security: SecurityPlan {
                seccomp: SeccompPlan::Default,
                masked_paths: vec!["/proc/kcore".into()],
                readonly_paths: vec!["/proc/sys".into()],
                privileged: false,
            },
            sysctls: Default::default(),
            stdio: StdioPlan::default(),
            log: LogPlan::None,
            machine: self.machine.clone(),
            bundle: None,
        }
    }

    fn group(&self) -> String {
        group_of(&self.id)
    }

    /// Waits until something happens, here or at one of `ends`.
    fn turn(&mut self, what: &str, deadline: Instant, ends: &[BorrowedFd<'_>]) {
        let event_fd = self.wall.event_fd();
        let mut polled = vec![PollFd::from_borrowed_fd(event_fd, PollFlags::IN)];
        polled.extend(ends.iter().map(|end| PollFd::from_borrowed_fd(*end, PollFlags::IN)));
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().try_into().unwrap(), tv_nsec: 0 };
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&left))).unwrap();
        assert!(ready > 0, "{what}: nothing happens");
        while let Some(event) = self.wall.next_event().unwrap() {
            self.events.push_back(event);
        }
    }

    /// What comes from an end, until `enough` or its own end.
    fn read(&mut self, end: &OwnedFd, enough: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut text = String::new();
        while !enough(&text) {
            let mut piece = [0; 4096];
            let mut polled = [PollFd::new(end, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            if rustix::event::poll(&mut polled, Some(&now)).unwrap() == 0 {
                self.turn(&format!("after {text:?}"), deadline, &[end.as_fd()]);
                continue;
            }
            match rustix::io::read(end, &mut piece) {
                // A terminal whose other side has gone.
                Ok(0) | Err(rustix::io::Errno::IO) => break,
                Err(rustix::io::Errno::AGAIN) => {}
                read => text.push_str(std::str::from_utf8(&piece[..read.unwrap()]).unwrap()),
            }
        }
        text
    }

    fn line(&mut self, end: &OwnedFd) -> String {
        self.read(end, |text| text.ends_with('\n')).trim().to_owned()
    }

    /// The next event.
    fn event(&mut self, what: &str) -> Event {
        let deadline = Instant::now() + PATIENCE;
        while self.events.is_empty() {
            self.turn(what, deadline, &[]);
        }
        self.events.pop_front().unwrap()
    }

    fn exec(&mut self, id: &str, script: &str, stdio: StdioPlan) -> Result<Streams> {
        let process = process(&["sh", "-c", script]);
        let plan = ExecPlan { id: id.to_owned(), process, stdio, privileged: false };
        self.wall.exec(&plan).map(|created| created.streams)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let layout = insula_host::cgroup::Layout::probe().unwrap();
        let group = insula_host::cgroup::Group::open(&layout, &self.group()).unwrap();
        if !group.is_empty() {
            let (killed, removed) = (group.kill(), group.remove());
            assert!(std::thread::panicking(), "its control group is left: {killed:?} {removed:?}");
        }
    }
}

fn process(args: &[&str]) -> ProcessPlan {
    ProcessPlan {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/bin".into(), "WORD=said".into()],
        cwd: "/".into(),
        capabilities: ["CAP_CHOWN", "CAP_KILL"].map(String::from).to_vec(),
        ..ProcessPlan::default()
    }
}

fn pipes(streams: Streams) -> (Option<OwnedFd>, OwnedFd, OwnedFd) {
    match streams {
        Streams::Pipes { stdin, stdout, stderr } => (stdin, stdout, stderr),
        Streams::Terminal(_) | Streams::Inherited => panic!("pipes were asked for"),
    }
}

fn kind<T>(result: Result<T>) -> Kind {
    match result {
        Ok(_) => panic!("that cannot be done"),
        Err(error) => error.kind(),
    }
}

fn empty(container: &mut Container) {
    assert_eq!(container.wall.next_event().unwrap(), None);
    assert_eq!(kind(container.wall.start()), Kind::Conflict);
    assert_eq!(kind(container.exec("one", "true", StdioPlan::default())), Kind::Conflict);
    assert_eq!(kind(container.wall.signal(SignalTarget::First, TERM)), Kind::Conflict);
    assert_eq!(kind(container.wall.stats().map(drop)), Kind::Conflict);
    assert_eq!(kind(container.wall.freeze(Frozen::Yes)), Kind::Conflict);
}

fn program(container: &mut Container) {
    let script = "cat; echo $WORD $(id -u) $(hostname); echo error >&2; echo kept >/file; exit 7";
    let mut plan = container.plan(script);
    plan.stdio.open_stdin = true;
    let created = container.wall.create(plan, When::Later).unwrap();
    assert!(created.pid > 0);
    let (stdin, stdout, stderr) = pipes(created.streams);
    assert_eq!(container.wall.next_event().unwrap(), None, "it was not started");
    container.wall.start().unwrap();
    let stdin = stdin.unwrap();
    rustix::io::write(&stdin, b"input\n").unwrap();
    drop(stdin);
    assert_eq!(container.read(&stdout, |_| false), "input\nsaid 0 box\n");
    assert_eq!(container.read(&stderr, |_| false), "error\n");
    let end = container.event("the end of the program");
    assert_eq!(end, Event::Exited { code: 7, error: String::new() });
    container.wall.destroy().unwrap();
    let kept = container.folder.path().join("upper/file");
    assert_eq!(fs::read_to_string(kept).unwrap(), "kept\n", "the writable layer is the host's");
}

fn missing(container: &mut Container) {
    let mut plan = container.plan("");
    plan.process = process(&["/no/such"]);
    let error = container.wall.create(plan.clone(), When::Now).unwrap_err();
    assert_eq!(error.exit_code(), Some(127), "{error}");
    // As empty as before: it takes another one.
    plan.process = process(&["sh", "-c", "exit 3"]);
    let mut beyond = plan.clone();
    beyond.cgroup.resources.cpuset_cpus = Some("4095".into());
    container.wall.create(beyond, When::Now).unwrap_err();
    container.wall.create(plan, When::Now).unwrap();
    let end = container.event("the end of the second program");
    assert_eq!(end, Event::Exited { code: 3, error: String::new() });
}

fn life(container: &mut Container) {
    let plan = container.plan("trap 'exit 5' TERM; echo up; while :; do sleep 1000 & wait $!; done");
    let created = container.wall.create(plan.clone(), When::Now).unwrap();
    assert!(created.pid > 0);
    let (_, stdout, _stderr) = pipes(created.streams);
    assert_eq!(container.line(&stdout), "up");
    assert_eq!(kind(container.wall.create(plan, When::Now).map(drop)), Kind::Conflict);
    execs(container);
    terminal(container);
    watch(container);
    container.wall.signal(SignalTarget::First, TERM).unwrap();
    let end = container.event("the end of the container");
    assert_eq!(end, Event::Exited { code: 5, error: String::new() });
}

fn execs(container: &mut Container) {
    let stdio = StdioPlan { open_stdin: true, ..StdioPlan::default() };
    let (stdin, stdout, _stderr) = pipes(container.exec("one", "cat; exit 4", stdio).unwrap());
    assert_eq!(kind(container.exec("one", "true", StdioPlan::default())), Kind::AlreadyExists);
    let stdin = stdin.unwrap();
    // More than any pipe or window holds, there and back.
    let sent = "0123456789abcdef".repeat(16 << 10);
    let mut rest = sent.as_bytes();
    let mut seen = String::new();
    rustix::io::ioctl_fionbio(&stdin, true).unwrap();
    while seen.len() < sent.len() {
        while !rest.is_empty() {
            match rustix::io::write(&stdin, rest) {
                Ok(count) => rest = &rest[count..],
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => panic!("{error}"),
            }
        }
        seen.push_str(&container.read(&stdout, |text| !text.is_empty()));
    }
    assert_eq!(seen, sent);
    drop(stdin);
    let end = container.event("the end of a process");
    assert_eq!(end, Event::ExecExited { id: "one".to_owned(), code: 4 });
    assert_eq!(kind(container.wall.signal(SignalTarget::Exec("one"), TERM)), Kind::NotFound);
    let (_, stdout, _stderr) =
        pipes(container.exec("two", "echo up; exec sleep 1000", StdioPlan::default()).unwrap());
    assert_eq!(container.line(&stdout), "up");
    container.wall.signal(SignalTarget::Exec("two"), KILL).unwrap();
    let end = container.event("the end of a process that was killed");
    assert_eq!(end, Event::ExecExited { id: "two".to_owned(), code: 128 + KILL });
}

fn terminal(container: &mut Container) {
    let stdio = StdioPlan { tty: true, open_stdin: true, columns: 80, rows: 24, ..StdioPlan::default() };
    let script = "stty size; read word; stty size; echo $word";
    let Streams::Terminal(end) = container.exec("term", script, stdio).unwrap() else {
        panic!("a terminal was asked for")
    };
    assert_eq!(container.line(&end), "24 80");
    container.wall.resize(Some("term"), 100, 40).unwrap();
    rustix::io::write(&end, b"typed\n").unwrap();
    let rest = container.read(&end, |_| false).replace("\r\n", "\n");
    assert_eq!(rest, "typed\n40 100\ntyped\n");
    let end = container.event("the end of what has a terminal");
    assert_eq!(end, Event::ExecExited { id: "term".to_owned(), code: 0 });
    assert!(matches!(container.wall.resize(None, 80, 24), Err(Error::NoTerminal | Error::Guest { .. })));
}

fn watch(container: &mut Container) {
    let stats = container.wall.stats().unwrap();
    assert!(stats.memory_usage.unwrap() > 0 && stats.cpu_total.unwrap() > 0, "{stats:?}");
    assert!(stats.pids.unwrap() >= 2, "{stats:?}");
    let limits = Resources { pids: Some(33), ..Resources::default() };
    assert_eq!(container.wall.update(&limits).unwrap(), Vec::<String>::new());
    assert_eq!(container.wall.stats().unwrap().pids_limit, Some(33));

    container.wall.freeze(Frozen::Yes).unwrap();
    assert!(container.wall.stats().unwrap().pids.unwrap() >= 2);
    container.wall.freeze(Frozen::No).unwrap();
    let (_, stdout, _stderr) = pipes(container.exec("three", "echo on", StdioPlan::default()).unwrap());
    assert_eq!(container.read(&stdout, |_| false), "on\n");
    let end = container.event("the end of a process after the pause");
    assert_eq!(end, Event::ExecExited { id: "three".to_owned(), code: 0 });
}
