//! containerd with folders of its own, and its command line.

use std::fs;
use std::path::Path;
use std::process::Command;

use insula_tests::{Outcome, guest, holds, images, program, skip};

use super::place::Place;
use super::{AT_A_TERMINAL, at_a_terminal, of, runtime};

/// One that runs.
pub(super) struct Containerd {
    pub(super) place: Place,
    /// Pid of who waits for it.
    daemon: u32,
    /// containerd's own kind of it, which is the parent of control groups where nobody says another.
    namespace: String,
    image: String,
}

impl Containerd {
    fn start() -> Option<Self> {
        let place = Place::with(&["containerd", "ctr"])?;
        let namespace = place.group.clone();
        Some(Self::with(place, namespace, "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"))
    }

    /// With what the VM wall takes.
    fn with_machines() -> Option<Self> {
        if let Some(missing) = guest::missing() {
            skip("tcg", missing);
            return None;
        }
        Self::start()
    }

    /// With the part for Kubernetes, whose pods have `image`, too.
    pub(super) fn for_kubernetes(image: &images::Image) -> Option<Self> {
        let place = Place::with(&["containerd", "ctr", "curl"])?;
        fs::write(place.path("busybox.tar"), image.docker_archive()).unwrap();
        let cri = format!(
            "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"docker.io/library/busybox:latest\"\n\
             restrict_oom_score_adj = true\ndisable_apparmor = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\ndefault_runtime_name = \"insula\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.insula]\n\
             runtime_type = \"io.containerd.insula.v2\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.insula-vm]\n\
             runtime_type = \"io.containerd.insula-vm.v2\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = {0:?}\n",
            place.at("cni"),
        );
        fs::create_dir(place.path("cni")).unwrap();
        let network = serde_json::json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [{
            "type": "bridge", "bridge": "pods", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": place.at("addresses"),
                "ranges": [[{"subnet": "10.23.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
        }]});
        fs::write(place.path("cni/pods.conflist"), network.to_string()).unwrap();
        Some(Self::with(place, "k8s.io".to_owned(), &cri))
    }

    fn with(place: Place, namespace: String, plugins: &str) -> Self {
        let folders = ["root", "state", "sock", "sock.ttrpc"].map(|name| place.at(name));
        let [root, state, sock, ttrpc] = folders;
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n{plugins}\
             [grpc]\naddress = {sock:?}\n[ttrpc]\naddress = {ttrpc:?}\n"
        );
        fs::write(place.path("config.toml"), config).unwrap();
        let daemon = serve(&place);
        let mut engine = Self { place, daemon, namespace, image: String::new() };
        let archive = engine.place.at("busybox.tar");
        of(engine.ctr(&["images", "import", "--snapshotter", "native", &archive])).ok();
        engine.image = "docker.io/library/busybox:latest".to_owned();
        engine
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = ctr(&self.place);
        command.args(["--namespace", &self.namespace]).args(arguments);
        command
    }

    fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Command {
        let own = ["run", "--snapshotter", "native"];
        self.ctr(&[&own[..], flags, &[&self.image, id], command].concat())
    }

    /// By our shim.
    fn shimmed(&self, flags: &[&str], id: &str, command: &[&str]) -> Command {
        self.run(&[&["--runtime", "io.containerd.insula.v2"], flags].concat(), id, command)
    }

    /// By our shim, with a machine.
    fn walled(&self, flags: &[&str], id: &str, command: &[&str]) -> Command {
        self.run(&[&["--runtime", "io.containerd.insula-vm.v2"], flags].concat(), id, command)
    }

    fn exec(&self, id: &str, script: &str) -> Outcome {
        of(self.ctr(&["task", "exec", "--exec-id", "more", id, "sh", "-c", script]))
    }

    fn tasks(&self) -> String {
        of(self.ctr(&["task", "list"])).ok().to_owned()
    }

    /// Status of a task by its name.
    fn is(&self, id: &str, status: &str) -> bool {
        let tasks = self.tasks();
        tasks.lines().any(|line| line.starts_with(id) && line.ends_with(status))
    }

    /// A word of a task's line, as the place counts pids.
    fn pid(&self, id: &str) -> String {
        let tasks = self.tasks();
        let line = tasks.lines().find(|line| line.starts_with(id)).unwrap_or_else(|| panic!("{id}: {tasks}"));
        line.split_whitespace().nth(1).unwrap().to_owned()
    }

    fn bundle_file(&self, id: &str, name: &str) -> String {
        let folder = format!("state/io.containerd.runtime.v2.task/{}/{id}", self.namespace);
        fs::read_to_string(self.place.path(&folder).join(name)).unwrap()
    }

    fn kill(&self, pid: &str) {
        let mut kill = self.place.command("kill");
        kill.args(["-KILL", pid]);
        of(kill).ok();
    }

    /// As by the kernel, and anew.
    fn restart(&mut self, meanwhile: impl FnOnce(&Self)) {
        let children = format!("/proc/{0}/task/{0}/children", self.daemon);
        let pid = fs::read_to_string(children).unwrap().trim().to_owned();
        of({
            let mut kill = Command::new("kill");
            kill.args(["-KILL", &pid]);
            kill
        })
        .ok();
        holds("containerd has ended", || !Path::new("/proc").join(&pid).exists());
        meanwhile(self);
        self.daemon = serve(&self.place);
    }

    /// Neither control groups nor shims.
    fn is_empty(&self) -> bool {
        let mut sockets = self.place.command("find");
        sockets.args(["/run/containerd/s", "-type", "s"]);
        self.place.groups().is_empty() && of(sockets).stdout.is_empty()
    }
}

fn ctr(place: &Place) -> Command {
    let mut command = place.command("ctr");
    command.args(["--address", &place.at("sock")]);
    command
}

fn serve(place: &Place) -> u32 {
    let mut daemon = place.command("containerd");
    // Where it looks for shims.
    let shim = program("containerd-shim-insula-v2");
    let shims = place.path("shims");
    for name in ["containerd-shim-insula-v2", "containerd-shim-insula-vm-v2"] {
        let _ = fs::create_dir(&shims);
        let _ = std::os::unix::fs::symlink(&shim, shims.join(name));
    }
    let folders = std::env::var("PATH").unwrap_or_default();
    daemon.env("PATH", format!("{}:/usr/sbin:{folders}", shims.display()));
    // Where machines have their parts.
    daemon.env("INSULA_ROOT", place.path("insula"));
    if guest::missing().is_none() {
        fs::create_dir_all(place.path("insula/machines")).unwrap();
        fs::write(place.path("insula/machines/kernel"), guest::kernel_folder().to_str().unwrap()).unwrap();
    }
    place.daemon(daemon.args(["--config", &place.at("config.toml")]), || {
        let mut version = ctr(place);
        version.arg("version");
        version
    })
}

/// ctr tells the exit code as a warning.
fn deleted(engine: &Containerd, which: &[&str], code: &str) {
    let said = of(engine.ctr(&[&["task", "delete"], which].concat()));
    assert!(said.stderr.contains(&format!("exit code {code}")), "{said}");
}

/// What a container goes through by either shim.
fn lives(engine: &Containerd, run: impl Fn(&[&str], &str, &[&str]) -> Command) {
    let said = of(run(&["--rm"], "one", &["sh", "-c", "echo out; exit 5"]));
    assert_eq!((said.code, said.stdout.as_str()), (5, "out\n"), "{said}");
    of(run(&["--rm"], "one", &["no-such-program"])).fails(1, &["executable file not found"]);
    at_a_terminal(&run(&["--rm", "--tty"], "one", &["sh", "-c", AT_A_TERMINAL]));
    of(run(&["--detach", "--memory-limit", "67108864"], "two", &["sleep", "1000"])).ok();
    engine.exec("two", "exit 4").exits(4);
    of(engine.ctr(&["task", "pause", "two"])).ok();
    assert!(engine.is("two", "PAUSED"));
    of(engine.ctr(&["task", "resume", "two"])).ok();
    of(engine.ctr(&["task", "metrics", "two"])).shows(&["67108864"]);
    of(engine.ctr(&["task", "kill", "--signal", "KILL", "two"])).ok();
    holds("it stops", || engine.is("two", "STOPPED"));
    deleted(engine, &["two"], "137");
    of(engine.ctr(&["container", "delete", "two"])).ok();
    holds("nothing is left of the containers", || engine.is_empty());
}

/// Its streams wait for whoever attaches.
fn attaches(engine: &Containerd, run: impl Fn(&[&str], &str, &[&str]) -> Command) {
    let script = "read line; echo \"got $line\"; exit 6";
    of(run(&["--detach"], "waits", &["sh", "-c", script])).ok();
    let said = Outcome::of(&mut engine.ctr(&["task", "attach", "waits"]), b"by attach\n");
    assert_eq!((said.code, said.stdout.as_str()), (6, "got by attach\n"), "{said}");
    // Whoever sees its end that way deletes the task.
    of(engine.ctr(&["container", "delete", "waits"])).ok();
}

#[test]
fn runtime_of_runcs_shim() {
    let Some(engine) = Containerd::start() else { return };
    let runtime = runtime();
    lives(&engine, |flags, id, command| {
        engine.run(&[&["--runc-binary", &runtime], flags].concat(), id, command)
    });
}

#[test]
fn shim() {
    let Some(engine) = Containerd::start() else { return };
    lives(&engine, |flags, id, command| engine.shimmed(flags, id, command));
    attaches(&engine, |flags, id, command| engine.shimmed(flags, id, command));

    let mut read = engine.shimmed(&["--rm"], "one", &["sh", "-c", "read line; echo \"$line\"; echo err >&2"]);
    let said = Outcome::of(&mut read, b"through a pipe\n");
    assert_eq!((said.code, said.stdout.as_str()), (0, "through a pipe\n"), "{said}");
    assert!(said.stderr.contains("err\n"), "{said}");

    of(engine.shimmed(&["--detach"], "two", &["sleep", "1000"])).ok();
    let exec = ["task", "exec", "--tty", "--exec-id", "more", "two", "sh", "-c", AT_A_TERMINAL];
    at_a_terminal(&engine.ctr(&exec));
    engine.exec("two", "exec no-such-program").exits(127);
    of(engine.ctr(&["task", "exec", "--exec-id", "more", "two", "no-such-program"]))
        .fails(1, &["executable file not found"]);
    of(engine.ctr(&["task", "exec", "--detach", "--exec-id", "long", "two", "sleep", "1000"])).ok();
    of(engine.ctr(&["task", "ps", "two"])).shows(&["long"]);
    of(engine.ctr(&["task", "kill", "--exec-id", "long", "--signal", "KILL", "two"])).ok();
    of(engine.ctr(&["task", "delete", "two"])).fails(1, &["must be stopped"]);
    deleted(&engine, &["--force", "two"], "137");
    of(engine.ctr(&["container", "delete", "two"])).ok();
    holds("nothing is left of the containers", || engine.is_empty());
}

/// In place of CRIU, which does not know the kernel of every host: it notes what it is told, and begins another
/// process.
const CRIU: &str = r#"#!/bin/sh
umask 077
for part; do
    case $before in --images-dir) images=$part ;; --pidfile) told=$part ;; esac
    before=$part
done
echo "$*" >>"${0%/*}/told"
case $1 in
    dump) echo dumped >"$images/pages" ;;
    restore) grep -q dumped "$images/pages" || exit 1; sleep 1000 <&- >&- 2>&- & echo $! >"$told" ;;
esac
"#;

#[test]
fn a_container_of_the_shim_goes_on_from_a_checkpoint() {
    let Some(engine) = Containerd::start() else { return };
    let criu = engine.place.path("shims/criu");
    fs::write(&criu, CRIU).unwrap();
    fs::set_permissions(&criu, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    of(engine.shimmed(&["--detach"], "one", &["sleep", "1000"])).ok();
    let before = engine.pid("one");
    of(engine.ctr(&["container", "checkpoint", "--task", "--image", "one", "saved"])).ok();
    assert!(engine.is("one", "RUNNING"));
    let ends = || {
        of(engine.ctr(&["task", "kill", "--signal", "KILL", "one"])).ok();
        holds("it stops", || engine.is("one", "STOPPED"));
        deleted(&engine, &["one"], "137");
        of(engine.ctr(&["container", "delete", "one"])).ok();
    };
    ends();
    of(engine.ctr(&["container", "restore", "--live", "one", "saved"])).ok();
    assert!(engine.is("one", "RUNNING") && engine.pid("one") != before, "{}", engine.tasks());
    ends();
    // containerd stops the container meanwhile.
    let told = fs::read_to_string(engine.place.path("shims/told")).unwrap();
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].contains("--leave-running --freeze-cgroup /"), "{told}");
    assert!(lines[1].starts_with("restore ") && lines.len() == 2, "{told}");
    holds("nothing is left of the containers", || engine.is_empty());
}

#[test]
fn shim_with_machines() {
    let Some(engine) = Containerd::with_machines() else { return };
    lives(&engine, |flags, id, command| engine.walled(flags, id, command));
    attaches(&engine, |flags, id, command| engine.walled(flags, id, command));

    let script = "cat /proc/sys/kernel/random/boot_id; read line; echo \"$line\"; echo err >&2";
    let mut read = engine.walled(&["--rm"], "one", &["sh", "-c", script]);
    let said = Outcome::of(&mut read, b"through a pipe\n");
    let host = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let (kernel, line) = said.stdout.split_once('\n').unwrap();
    assert_eq!((said.code, line), (0, "through a pipe\n"), "{said}");
    assert!(said.stderr.contains("err\n") && kernel != host.trim(), "{said}");

    of(engine.walled(&["--detach"], "two", &["sleep", "1000"])).ok();
    let exec = ["task", "exec", "--tty", "--exec-id", "more", "two", "sh", "-c", AT_A_TERMINAL];
    at_a_terminal(&engine.ctr(&exec));
    of(engine.ctr(&["task", "exec", "--exec-id", "more", "two", "no-such-program"]))
        .fails(1, &["executable file not found"]);
    of(engine.ctr(&["task", "ps", "two"])).ok();
    of(engine.ctr(&["task", "checkpoint", "two"]))
        .fails(1, &["a checkpoint of one container behind the VM wall is not supported"]);
    of(engine.ctr(&["task", "exec", "--detach", "--exec-id", "long", "two", "sleep", "1000"])).ok();
    of(engine.ctr(&["task", "kill", "--exec-id", "long", "--signal", "KILL", "two"])).ok();
    of(engine.ctr(&["task", "delete", "two"])).fails(1, &["must be stopped"]);
    deleted(&engine, &["--force", "two"], "137");
    of(engine.ctr(&["container", "delete", "two"])).ok();
    holds("nothing is left of the containers", || engine.is_empty());

    // What a guest cannot have is refused before anything boots.
    of(engine.walled(&["--rm", "--net-host"], "one", &["true"])).fails(1, &["behind the VM wall"]);
    holds("nothing is left of what was refused", || engine.is_empty());
}

#[test]
fn nothing_is_left_of_a_shim_with_a_machine_that_is_killed() {
    let Some(engine) = Containerd::with_machines() else { return };
    of(engine.walled(&["--detach"], "one", &["sleep", "1000"])).ok();
    engine.kill(&engine.bundle_file("one", "shim.pid"));
    holds("containerd cleans up", || engine.is_empty() && !engine.tasks().contains("one"));
    of(engine.ctr(&["container", "delete", "one"])).ok();
}

#[test]
fn events_of_the_shim_are_in_order() {
    let Some(engine) = Containerd::start() else { return };
    let file = engine.place.path("events");
    let seen = || fs::read_to_string(&file).unwrap();
    let mut events = engine.ctr(&["events"]);
    // It ends with the place.
    let mut listener = events.stdout(fs::File::create(&file).unwrap()).spawn().unwrap();
    holds("somebody listens", || {
        of(engine.ctr(&["namespaces", "label", &engine.namespace, "a=b"])).ok();
        !seen().is_empty()
    });
    of(engine.shimmed(&["--detach"], "one", &["sleep", "1000"])).ok();
    engine.exec("one", "exit 4").exits(4);
    of(engine.ctr(&["task", "pause", "one"])).ok();
    of(engine.ctr(&["task", "resume", "one"])).ok();
    deleted(&engine, &["--force", "one"], "137");
    holds("the last event comes", || seen().contains("/tasks/delete"));
    let text = seen();
    let names = text.lines().filter_map(|line| line.split("/tasks/").nth(1)?.split(' ').next());
    let order =
        ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete"];
    assert_eq!(names.collect::<Vec<_>>(), order, "{text}");
    drop(engine);
    listener.wait().unwrap();
}

#[test]
fn containers_of_the_shim_outlive_containerd() {
    let Some(engine) = Containerd::start() else { return };
    outlive(engine, Containerd::shimmed);
}

/// The machine of one of them is killed meanwhile.
#[test]
fn containers_with_machines_outlive_containerd() {
    let Some(engine) = Containerd::with_machines() else { return };
    outlive(engine, Containerd::walled);
}

fn outlive(mut engine: Containerd, run: fn(&Containerd, &[&str], &str, &[&str]) -> Command) {
    let waiting = ["sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done"];
    of(run(&engine, &["--detach"], "stays", &waiting)).ok();
    of(run(&engine, &["--detach"], "ends", &["sleep", "1000"])).ok();
    let pid = engine.pid("ends");
    engine.restart(|engine| engine.kill(&pid));
    assert!(engine.is("stays", "RUNNING"), "{}", engine.tasks());
    holds("the end while containerd was away is known", || engine.is("ends", "STOPPED"));
    deleted(&engine, &["ends"], "137");
    engine.exec("stays", "exit 4").exits(4);
    of(engine.ctr(&["task", "kill", "stays"])).ok();
    holds("it stops", || engine.is("stays", "STOPPED"));
    deleted(&engine, &["stays"], "9");
    holds("nothing is left of the containers", || engine.is_empty());
}

#[test]
fn nothing_is_left_of_a_shim_that_is_killed() {
    let Some(engine) = Containerd::start() else { return };
    of(engine.shimmed(&["--detach"], "one", &["sleep", "1000"])).ok();
    engine.kill(&engine.bundle_file("one", "shim.pid"));
    holds("containerd cleans up", || engine.is_empty() && !engine.tasks().contains("one"));
    of(engine.ctr(&["container", "delete", "one"])).ok();
}
