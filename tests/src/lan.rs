//! A host of a test's own, as far as its network and its settings go, and another one beside it.

use std::io::{BufRead, BufReader};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{Daemon, Outcome, eventually};

/// What a firewall writes to, and where it looks for others.
const SETTINGS: &str = "
mount -t tmpfs tmpfs \"$0\"
for folder in /etc/ufw /etc/default /etc/firewalld /var/log; do
    [ -d $folder ] || continue
    mkdir -p \"$0$folder\"
    cp -a $folder/. \"$0$folder\"
    mount --bind \"$0$folder\" $folder
done
mount -t tmpfs tmpfs /run
";

/// Namespaces for the network and for mounts of a host, and a link to a second one. What is done to
/// its firewall, forwarding and settings ends with it.
#[derive(Debug)]
pub struct Lan {
    /// Daemons that the test started there; they end first.
    children: Vec<Child>,
    host: Holder,
    outside: Holder,
    folder: tempfile::TempDir,
}

/// A process that keeps namespaces until its input ends, which is when the test does, however it ends.
#[derive(Debug)]
struct Holder(Child);

impl Holder {
    fn new(kinds: &[&str], setup: &str, folder: &Path) -> Self {
        // A new namespace begins with what the host's has, which others may have changed.
        let common =
            "echo 0 >/proc/sys/net/ipv4/ip_forward\nip link set lo up\necho ready\nexec cat >/dev/null";
        let script = format!("{setup}\n{common}");
        let mut command = Command::new("unshare");
        command.args(kinds).args(["sh", "-ec", &script]).arg(folder);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{command:?}");
        Self(child)
    }

    fn namespace(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It ends by itself then.
        let _ = self.0.wait();
    }
}

/// Runs this on a thread in a network namespace: sockets that it makes belong there.
pub fn within_network<T: Send>(namespace: &Path, run: impl FnOnce() -> T + Send) -> T {
    let namespace = std::fs::File::open(namespace).unwrap();
    let entered = || {
        insula_sys::netlink::enter_network(namespace.as_fd()).unwrap();
        run()
    };
    std::thread::scope(|scope| scope.spawn(entered).join().unwrap())
}

/// Sends back what comes to a port of UDP in the network of a process, for as long as the test lasts.
pub fn echo_datagrams(pid: u64, port: u16) {
    let namespace = format!("/proc/{pid}/ns/net");
    let socket = within_network(Path::new(&namespace), || UdpSocket::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..count], from);
        }
    });
}

/// Whether a datagram to this address comes back, soon.
#[must_use]
pub fn echoes(address: &str) -> bool {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut bytes = [0; 8];
    socket.send_to(b"echo", address).is_ok()
        && socket.recv(&mut bytes).is_ok_and(|count| &bytes[..count] == b"echo")
}

impl Lan {
    /// The host's address.
    pub const HOST: &str = "198.51.100.1";
    /// That of the one beside it, which has no way to containers but by the host's address. On its port 80 is a
    /// page that says `outside`.
    pub const OUTSIDE: &str = "198.51.100.2";

    /// Two hosts with a cable between them.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes namespaces")]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("insula-lan-").tempdir().unwrap();
        let settings = folder.path().join("settings");
        std::fs::create_dir(&settings).unwrap();
        let host = Holder::new(&["--net", "--mount", "--propagation", "private"], SETTINGS, &settings);
        let outside = Holder::new(&["--net"], "", &settings);
        let lan = Self { children: Vec::new(), host, outside, folder };
        let peer = lan.outside.0.id().to_string();
        lan.run(&["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &peer]).ok();
        let here = |words: &[&str]| Outcome::of(&mut lan.command(words), b"").exits(0).clone();
        let there = |words: &[&str]| Outcome::of(&mut lan.outside(words), b"").exits(0).clone();
        here(&["ip", "addr", "add", &format!("{}/24", Self::HOST), "dev", "eth0"]);
        there(&["ip", "addr", "add", &format!("{}/24", Self::OUTSIDE), "dev", "eth0"]);
        here(&["ip", "link", "set", "eth0", "up"]);
        there(&["ip", "link", "set", "eth0", "up"]);
        std::fs::write(lan.path("index.html"), "outside\n").unwrap();
        let mut lan = lan;
        let page = lan.path("").display().to_string();
        let serve = ["setpriv", "--pdeathsig", "KILL", "busybox", "httpd", "-f", "-p", "80", "-h", &page];
        let server = lan.outside(&serve).stdin(Stdio::null()).spawn().unwrap();
        lan.children.push(server);
        within_network(Path::new(&lan.outside.namespace("net")), || {
            eventually("the page is served", || TcpStream::connect((Self::OUTSIDE, 80)).ok());
        });
        lan
    }

    /// What precedes a command that is to run on the host.
    pub(crate) fn entrance(&self) -> Vec<String> {
        let of = |flag: &str, kind| format!("--{flag}={}", self.host.namespace(kind));
        vec!["nsenter".to_owned(), of("net", "net"), of("mount", "mnt"), "--".to_owned()]
    }

    /// A command on the host.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let entrance = self.entrance();
        let mut command = Command::new(&entrance[0]);
        command.args(&entrance[1..]).args(words);
        command
    }

    /// Runs a command on the host.
    pub fn run(&self, words: &[&str]) -> Outcome {
        Outcome::of(&mut self.command(words), b"")
    }

    /// Runs lines of words on the host, each of which succeeds.
    #[track_caller]
    pub fn lines(&self, text: &str) {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.run(&line.split_whitespace().collect::<Vec<_>>()).exits(0);
        }
    }

    fn outside(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.outside.namespace("net"))).arg("--").args(words);
        command
    }

    /// Runs this on a thread whose network is the host's: sockets that it makes belong there.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        within_network(Path::new(&self.host.namespace("net")), run)
    }

    /// Starts a program on the host that serves until the end, and waits until `ready` succeeds there.
    pub fn serve(&mut self, program: &[&str], ready: &[&str]) {
        // It ends with the test, however that ends.
        let mut command = self.command(&[&["setpriv", "--pdeathsig", "KILL"], program].concat());
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        eventually("it serves", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?}: {}", std::fs::read_to_string(self.path("log")).unwrap());
            (self.run(ready).code == 0).then_some(())
        });
        self.children.push(child);
    }

    /// A path of the test's own.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A daemon on the host.
    #[must_use]
    pub fn daemon(&self) -> Daemon {
        Daemon::within(self.entrance())
    }

    /// All rules, or those of one table (`&["ip", "filter"]`), without counters.
    pub fn rules(&self, table: &[&str]) -> String {
        let listing: &[&str] = if table.is_empty() { &["list", "ruleset"] } else { &["list", "table"] };
        self.run(&[&["nft", "-s"], listing, table].concat()).exits(0).stdout.clone()
    }

    /// The last line of what the other host gets from a port of this one; empty if nothing.
    pub fn fetched(&self, port: u16) -> String {
        let mut command = self.outside(&["busybox", "nc", "-w", "1", Self::HOST, &port.to_string()]);
        let outcome = Outcome::of(&mut command, b"GET / HTTP/1.0\r\n\r\n");
        outcome.stdout.lines().last().unwrap_or_default().to_owned()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
                // It may have ended by itself; what it started ends with it if it is asked.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("-- rules of the host\n{}", self.run(&["nft", "list", "ruleset"]).stdout);
            eprintln!("-- the log\n{}", std::fs::read_to_string(self.path("log")).unwrap_or_default());
        }
    }
}
