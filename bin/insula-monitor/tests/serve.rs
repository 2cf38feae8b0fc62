//! A monitor over its protocol: real containers from a root file system with busybox in it. Needs
//! root and busybox-static; says so and passes without them, unless `INSULA_TEST_REQUIRE` names root.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use insula_base::ContainerId;
use insula_proto::{
    Attachment, Call, Create, Empty, Exec, FrameReader, Outcome, Reply, Request, Signal, encode,
};
use insula_spec::plan::*;

/// Whether the tests can run here.
fn root() -> bool {
    let able = rustix::process::geteuid().is_root() && Path::new("/bin/busybox").exists();
    if !able {
        let required = std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.contains("root"), "needs root and /bin/busybox (busybox-static)");
        eprintln!("skipped: needs root and /bin/busybox (busybox-static)");
    }
    able
}

struct Session {
    monitor: Child,
    stream: UnixStream,
    reader: FrameReader,
    next: u64,
    events: Vec<Outcome>,
    folder: tempfile::TempDir,
    id: ContainerId,
}

impl Session {
    fn new() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let monitor = Command::new(env!("CARGO_BIN_EXE_insula-monitor"))
            .arg("serve")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        // Too long for the address of a socket, on purpose.
        let folder = tempfile::Builder::new()
            .prefix(&format!("insula-test-{}-", "long".repeat(25)))
            .tempdir()
            .unwrap();
        for name in ["layer/bin", "layer/etc", "container/upper", "container/work", "run"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        fs::copy("/bin/busybox", folder.path().join("layer/bin/busybox")).unwrap();
        for name in ["sh", "id", "cat", "true", "sleep", "ls", "mount", "stty", "kill", "hostname", "grep"] {
            std::os::unix::fs::symlink("busybox", folder.path().join("layer/bin").join(name)).unwrap();
        }
        fs::write(
            folder.path().join("layer/etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n",
        )
        .unwrap();
        let id = ContainerId::random();
        Self {
            monitor,
            stream: ours,
            reader: FrameReader::default(),
            next: 1,
            events: Vec::new(),
            folder,
            id,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The parent of the container's group.
    fn groups(&self) -> String {
        format!("insula-test-{}", self.id.short())
    }

    fn plan(&self, args: &[&str]) -> ContainerPlan {
        ContainerPlan {
            id: self.id.clone(),
            process: process(args),
            init: InitPlan::Process,
            rootfs: RootfsPlan {
                layers: vec![self.path("layer")],
                idmap: true,
                upper: Some(UpperPlan {
                    upper: self.path("container/upper"),
                    work: self.path("container/work"),
                    volatile: false,
                }),
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
            cgroup: CgroupPlan { path: format!("{}/c", self.groups()), resources: Resources::default() },
            devices: Vec::new(),
            device_rules: Vec::new(),
            security: SecurityPlan {
                seccomp: SeccompPlan::Default,
                masked_paths: vec!["/proc/kcore".into(), "/proc/acpi".into(), "/sys/firmware".into()],
                readonly_paths: vec!["/proc/sys".into()],
                privileged: false,
            },
            sysctls: Default::default(),
            stdio: StdioPlan::default(),
            log: LogPlan::JsonFile {
                path: self.path("log"),
                max_size: 0,
                max_files: 1,
                compress: false,
                attributes: Default::default(),
            },
            machine: None,
            bundle: None,
        }
    }

    fn send(&mut self, call: Call, sockets: &[OwnedFd]) -> u64 {
        let id = self.next;
        self.next += 1;
        let frame = encode(&Request::new(id, call));
        let with: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        insula_sys::socket::send_all(self.stream.as_fd(), &frame, &with).unwrap();
        id
    }

    fn receive(&mut self) -> Reply {
        loop {
            if let Some(reply) = self.reader.pop::<Reply>().unwrap() {
                return reply;
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "the monitor is gone");
            self.reader.push(&buffer[..count], []).unwrap();
        }
    }

    fn call(&mut self, call: Call, sockets: &[OwnedFd]) -> Outcome {
        let id = self.send(call, sockets);
        loop {
            let reply = self.receive();
            let outcome = reply.outcome.unwrap();
            if reply.id == id {
                return outcome;
            }
            self.events.push(outcome);
        }
    }

    fn create(&mut self, plan: &ContainerPlan, attached: Vec<(OwnedFd, Attachment)>) -> Outcome {
        let (sockets, attachments): (Vec<_>, Vec<_>) = attached.into_iter().unzip();
        let call = Create {
            plan: serde_json::to_vec(plan).unwrap(),
            folder: self.path("run").to_str().unwrap().into(),
            attachments,
            start: true,
            template: false,
        };
        self.call(Call::Create(call), &sockets)
    }

    fn event(&mut self) -> Outcome {
        if self.events.is_empty() { self.receive().outcome.unwrap() } else { self.events.remove(0) }
    }

    fn exit_code(&mut self) -> i32 {
        loop {
            if let Outcome::Exited(exited) = self.event() {
                return exited.code;
            }
        }
    }

    /// Runs to the end: exit code and log.
    fn run(&mut self, plan: &ContainerPlan) -> (i32, String) {
        let outcome = self.create(plan, Vec::new());
        assert!(matches!(outcome, Outcome::Started(_)), "{outcome:?}");
        let code = self.exit_code();
        (code, self.log())
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.path("log")).unwrap();
        text.lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["log"].as_str().unwrap().to_owned()
            })
            .collect()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        // With its daemon gone an idle monitor ends; one with a container is told to.
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
        if let Ok(layout) = insula_host::cgroup::Layout::probe()
            && let Ok(group) = insula_host::cgroup::Group::open(&layout, &self.groups())
        {
            let _ = group.kill();
            let _ = group.remove();
        }
    }
}

fn process(args: &[&str]) -> ProcessPlan {
    ProcessPlan {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/usr/bin:/bin".into()],
        cwd: "/".into(),
        capabilities: ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"].map(String::from).to_vec(),
        ..ProcessPlan::default()
    }
}

#[test]
fn a_program_runs_as_root_of_its_own_and_its_code_is_told() {
    if !root() {
        return;
    }
    let mut session = Session::new();
    let script = "id -u; hostname; cat /proc/self/uid_map; echo err >&2; exit 7";
    let (code, log) = session.run(&session.plan(&["sh", "-c", script]));
    let words: Vec<&str> = log.split_whitespace().collect();
    assert_eq!(code, 7);
    assert_eq!(&words[..5], ["0", "box", "0", "1900000000", "65536"]);
    assert!(words.contains(&"err"));
    let record = fs::read_to_string(session.path("run/exit.json")).unwrap();
    assert!(record.contains("\"code\":7"), "{record}");
    assert!(session.monitor.wait().unwrap().success());
    assert!(!session.path("run/task.sock").exists());
}

#[test]
fn files_keep_the_owners_that_they_have_inside() {
    if !root() {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let mut session = Session::new();
    let (code, log) = session.run(&session.plan(&["sh", "-c", "echo x > /made; ls -ln /made /bin/busybox"]));
    assert_eq!(code, 0, "{log}");
    assert_eq!(log.matches("0        0").count(), 2, "{log}");
    assert_eq!(fs::metadata(session.path("container/upper/made")).unwrap().uid(), 0);
}

#[test]
fn what_cannot_be_executed_says_why() {
    if !root() {
        return;
    }
    for (program, code, message) in [
        ("nothere", 127, "executable file not found in $PATH"),
        ("/bin/nothere", 127, "no such file or directory"),
        ("/etc/passwd", 126, "permission denied"),
    ] {
        let mut session = Session::new();
        let plan = session.plan(&[program]);
        let Outcome::Failed(failed) = session.create(&plan, Vec::new()) else { panic!("it started") };
        assert_eq!(failed.exit_code, code, "{}", failed.message);
        assert!(failed.message.contains(message), "{}", failed.message);
    }
}

#[test]
fn clients_get_the_streams_and_give_input() {
    if !root() {
        return;
    }
    let mut session = Session::new();
    let mut plan = session.plan(&["sh", "-c", "cat; echo done >&2"]);
    plan.stdio = StdioPlan { open_stdin: true, stdin_once: true, ..StdioPlan::default() };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let attachment = Attachment {
        stdin: true,
        stdout: true,
        stderr: true,
        multiplexed: true,
        already_read: b"early ".to_vec(),
        ..Attachment::default()
    };
    let outcome = session.create(&plan, vec![(theirs.into(), attachment)]);
    assert!(matches!(outcome, Outcome::Started(_)), "{outcome:?}");
    std::io::Write::write_all(&mut ours, b"late\n").unwrap();
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = Vec::new();
    ours.read_to_end(&mut all).unwrap();
    let plain: Vec<u8> = demultiplex(&all);
    assert_eq!(String::from_utf8(plain).unwrap(), "early late\ndone\n");
    assert_eq!(session.exit_code(), 0);
}

fn demultiplex(mut bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        plain.extend_from_slice(&rest[..length]);
        bytes = &rest[length..];
    }
    plain
}

#[test]
fn a_terminal_is_one() {
    if !root() {
        return;
    }
    let mut session = Session::new();
    let mut plan = session.plan(&["stty", "size"]);
    plan.stdio = StdioPlan { tty: true, columns: 91, rows: 33, open_stdin: true, stdin_once: true };
    let (code, log) = session.run(&plan);
    assert_eq!((code, log.trim()), (0, "33 91"));
}

#[test]
fn processes_join_and_signals_reach_them() {
    if !root() {
        return;
    }
    let mut session = Session::new();
    let plan = session.plan(&["sleep", "1000"]);
    let outcome = session.create(&plan, Vec::new());
    assert!(matches!(outcome, Outcome::Started(_)), "{outcome:?}");
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let exec = Exec {
        exec: "one".into(),
        process: serde_json::to_vec(&ProcessPlan {
            user: "web".into(),
            ..process(&["sh", "-c", "id -u; hostname; cat /proc/1/comm; exit 3"])
        })
        .unwrap(),
        stdio: serde_json::to_vec(&StdioPlan::default()).unwrap(),
        attachments: vec![Attachment { stdout: true, stderr: true, ..Attachment::default() }],
        remembered: true,
        ..Exec::default()
    };
    let again = Exec { exec: "two".into(), attachments: Vec::new(), ..exec.clone() };
    let outcome = session.call(Call::Exec(exec), &[theirs.into()]);
    assert!(matches!(outcome, Outcome::Started(_)), "{outcome:?}");
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    assert_eq!(text, "33\nbox\nsleep\n");
    let Outcome::ExecExited(exited) = session.event() else { panic!("not the exec's end") };
    assert_eq!((exited.exec.as_str(), exited.code), ("one", 3));
    let Outcome::Status(status) = session.call(Call::Status(Empty {}), &[]) else { panic!("not a status") };
    assert_eq!(status.ended_execs, [exited], "the next daemon is told too");
    let done = |outcome: Outcome| assert!(!matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    done(session.call(Call::Freeze(Empty {}), &[]));
    // One that was asked for a moment before: it is not waited for, and the thaw comes through.
    let Outcome::Failed(refused) = session.call(Call::Exec(again.clone()), &[]) else { panic!("it runs") };
    assert!(refused.message.contains("is paused"), "{refused:?}");
    done(session.call(Call::Thaw(Empty {}), &[]));
    done(session.call(Call::Exec(again), &[]));
    done(session.call(Call::Stats(Empty {}), &[]));
    let Outcome::ExecExited(exited) = session.event() else { panic!("not the exec's end") };
    assert_eq!((exited.exec.as_str(), exited.code), ("two", 3));
    let signal = Signal { signal: 9, ..Signal::default() };
    let outcome = session.call(Call::Signal(signal), &[]);
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    assert_eq!(session.exit_code(), 137);
}

#[test]
fn an_init_of_the_images_own_manages_its_groups() {
    if !root() {
        return;
    }
    let second = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .find(|folder| Path::new(folder).join("cgroup.subtree_control").exists());
    let Some(second) = second else {
        eprintln!("skipped: needs cgroup2");
        return;
    };
    let mut session = Session::new();
    // As systemd does: away from the root of what it was given, then controllers on for what is below.
    let script = format!(
        "cd {second} && mkdir init.scope && echo $$ >init.scope/cgroup.procs && \
         for one in $(cat cgroup.controllers); do echo +$one >cgroup.subtree_control || echo lost; done; \
         (echo 99999 >cgroup.max.depth) 2>/dev/null || echo bounded; \
         echo moved; exec sleep 1000"
    );
    let mut plan = session.plan(&["sh", "-c", &script]);
    plan.init = InitPlan::System;
    plan.mounts.push(MountPlan { readonly: true, ..mount("/sys/fs/cgroup", MountSource::Cgroup) });
    let outcome = session.create(&plan, Vec::new());
    assert!(matches!(outcome, Outcome::Started(_)), "{outcome:?}");
    while !session.path("log").exists() || !session.log().contains("moved") {
        std::thread::yield_now();
    }
    assert_eq!(session.log(), "bounded\nmoved\n");
    // Who comes later is let in where the init went.
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let exec = Exec {
        exec: "one".into(),
        process: serde_json::to_vec(&process(&["cat", "/proc/self/cgroup"])).unwrap(),
        stdio: serde_json::to_vec(&StdioPlan::default()).unwrap(),
        attachments: vec![Attachment { stdout: true, stderr: true, ..Attachment::default() }],
        ..Exec::default()
    };
    let outcome = session.call(Call::Exec(exec), &[theirs.into()]);
    assert!(matches!(outcome, Outcome::Started(_)), "{outcome:?}");
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    let controllers = fs::read_to_string(Path::new(second).join("cgroup.subtree_control")).unwrap();
    let expected = if controllers.contains("memory") { "0::/init.scope\n" } else { "0::/\n" };
    assert!(text.contains(expected), "{text}");
    let signal = Signal { signal: 9, ..Signal::default() };
    session.call(Call::Signal(signal), &[]);
    assert_eq!(session.exit_code(), 137);
}

fn mount(target: &str, source: MountSource) -> MountPlan {
    MountPlan { target: target.into(), source, readonly: false, nosuid: false, nodev: false, noexec: false }
}

#[test]
fn an_init_of_ours_reaps_and_forwards() {
    if !root() {
        return;
    }
    let mut session = Session::new();
    let script = "trap 'exit 5' TERM; cat /proc/1/cmdline; echo; grep -h CapEff /proc/1/status \
                  /proc/2/status; echo $$; while :; do sleep 0.05; done";
    let mut plan = session.plan(&["sh", "-c", script]);
    plan.process.user = "web".into();
    plan.init = InitPlan::Reaper;
    let outcome = session.create(&plan, Vec::new());
    assert!(matches!(outcome, Outcome::Started(_)), "{outcome:?}");
    // The last line in the log says that the trap is set.
    while !session.path("log").exists() || !session.log().ends_with("2\n") {
        std::thread::yield_now();
    }
    // Nothing of the host shows; the init may signal, whoever the program is; that is an ordinary user.
    let title = session.log().lines().next().map(|line| line.trim_end_matches('\0').to_owned());
    assert_eq!(title.as_deref(), Some("insula-init"));
    let (_, rest) = session.log().split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert_eq!(rest, "CapEff:\t0000000000000020\nCapEff:\t0000000000000000\n2\n");
    let signal = Signal { signal: 15, ..Signal::default() };
    session.call(Call::Signal(signal), &[]);
    assert_eq!(session.exit_code(), 5);
}

#[test]
fn the_host_image_hides_what_it_is_told() {
    if !root() {
        return;
    }
    let mut session = Session::new();
    let mut plan =
        session.plan(&["sh", "-c", "ls /root /home; ls -d /etc/shadow; id -u; touch /root/new && echo made"]);
    plan.rootfs.layers = vec!["/".into()];
    plan.rootfs.hidden = vec!["/root".into(), "/home".into(), "/etc/shadow".into(), "/no/such".into()];
    let (_, log) = session.run(&plan);
    assert!(
        log.contains("/etc/shadow: No such file") || log.contains("cannot access '/etc/shadow'"),
        "{log}"
    );
    // Standard output and error are two pipes: their lines may change places.
    assert!(log.contains("0\n") && log.contains("made\n"), "{log}");
}

/// Lets this thread, and whoever it starts, meet a kernel that takes layers of an overlay as paths only:
/// fsconfig(2) with FSCONFIG_SET_FD fails as it does before Linux 6.13.
fn forget_layers_as_descriptors() {
    use insula_sys::seccomp::{Instruction, set_filter};
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let instruction = |code, jump_false, k| Instruction { code, jump_true: 0, jump_false, k };
    let program = [
        instruction(LOAD, 0, 0),
        instruction(EQUAL, 3, 431),
        // The lower half of the second argument.
        instruction(LOAD, 0, 24),
        instruction(EQUAL, 1, 5),
        instruction(RETURN, 0, 0x0005_0000 | 22),
        instruction(RETURN, 0, 0x7fff_0000),
    ];
    set_filter(&program, 0).unwrap();
}

#[test]
fn layers_are_stacked_on_older_kernels_too() {
    if !root() {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    forget_layers_as_descriptors();
    let mut session = Session::new();
    fs::create_dir_all(session.path("top/etc")).unwrap();
    fs::write(session.path("top/etc/passwd"), "top\n").unwrap();
    let script = "cat /etc/passwd; cat /etc/group; echo x > /made; ls -ln /made /bin/busybox";
    let mut plan = session.plan(&["sh", "-c", script]);
    fs::write(session.path("layer/etc/group"), "bottom\n").unwrap();
    plan.rootfs.layers.push(session.path("top"));
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let (code, log) = session.run(&plan);
    assert_eq!(code, 0, "{log}");
    assert!(log.starts_with("top\nbottom\n"), "{log}");
    assert_eq!(log.matches("0        0").count(), 2, "{log}");
    assert_eq!(fs::metadata(session.path("container/upper/made")).unwrap().uid(), 0);
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(after.matches("insula-test").count(), before.matches("insula-test").count(), "{after}");
}

#[test]
fn what_goes_wrong_in_the_child_that_stacks_layers_is_told() {
    if !root() {
        return;
    }
    forget_layers_as_descriptors();
    let mut session = Session::new();
    let mut plan = session.plan(&["true"]);
    // overlayfs wants two folders.
    let same = session.path("container/upper");
    plan.rootfs.upper = Some(UpperPlan { upper: same.clone(), work: same, volatile: false });
    let Outcome::Failed(failed) = session.create(&plan, Vec::new()) else { panic!("it started") };
    assert!(failed.message.contains("mount the overlay: Invalid argument"), "{}", failed.message);
}

#[test]
fn a_death_for_want_of_memory_is_told_before_the_exit() {
    if !root() {
        return;
    }
    // The kernel's own message may come after the process is gone.
    for _ in 0..10 {
        let mut session = Session::new();
        // All at once: less than 10 ms pass between the first event and the last.
        let mut plan = session.plan(&["busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]);
        let memory = 16 << 20;
        plan.cgroup.resources =
            Resources { memory: Some(memory), memory_swap: Some(memory as i64), ..Resources::default() };
        let outcome = session.create(&plan, Vec::new());
        assert!(matches!(outcome, Outcome::Started(_)), "{outcome:?}");
        let event = session.event();
        assert!(matches!(event, Outcome::Oom(_)), "{event:?}");
        assert_eq!(session.exit_code(), 137);
    }
}

#[test]
fn a_newer_daemon_is_answered_clearly() {
    if !root() {
        return;
    }
    let mut session = Session::new();
    let plan = session.plan(&["sleep", "1000"]);
    assert!(matches!(session.create(&plan, Vec::new()), Outcome::Started(_)));
    // A call of a number that is not given yet, with two descriptors that this monitor knows nothing of.
    let id = session.next;
    session.next += 1;
    let unknown = Request { id, call: None, descriptors: 2 };
    let mut bytes = encode(&unknown).split_off(4);
    bytes.extend([0xa2, 0x38, 3, b'n', b'e', b'w']);
    let frame = [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], &bytes].concat();
    let (first, second) = UnixStream::pair().unwrap();
    let with = [first.as_fd(), second.as_fd()];
    insula_sys::socket::send_all(session.stream.as_fd(), &frame, &with).unwrap();
    let reply = session.receive();
    assert_eq!(reply.id, id);
    let Some(Outcome::Failed(failed)) = reply.outcome else { panic!("{reply:?}") };
    assert_eq!((failed.kind(), failed.exit_code), (insula_base::Kind::Unsupported, 0), "{failed:?}");
    assert!(failed.message.contains("does not know"), "{failed:?}");
    // Its descriptors are closed, and are not those of the next request.
    drop((first, second));
    let (client, theirs) = UnixStream::pair().unwrap();
    let attach = insula_proto::Attach {
        exec: String::new(),
        attachment: Some(Attachment { stdout: true, ..Attachment::default() }),
    };
    assert!(matches!(session.call(Call::Attach(attach), &[theirs.into()]), Outcome::Done(_)));
    // A field that is not known is passed over: the signal is what an older daemon would have sent.
    let signal = Request::new(session.next, Call::Signal(Signal { signal: 9, ..Signal::default() }));
    session.next += 1;
    let mut bytes = encode(&signal).split_off(4);
    bytes.extend([0xa2, 0x38, 3, b'n', b'e', b'w']);
    let frame = [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], &bytes].concat();
    insula_sys::socket::send_all(session.stream.as_fd(), &frame, &[]).unwrap();
    assert_eq!(session.exit_code(), 137);
    let mut end = Vec::new();
    let mut client = client;
    client.read_to_end(&mut end).unwrap();
    assert_eq!(end, b"");
}
