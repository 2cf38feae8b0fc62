//! What is on the host: leftovers of a daemon, and a neighbour that is another machine as far as
//! the network can tell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use insula_base::{Instance, random_hex};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;

/// What a daemon and its containers have on the host.
#[derive(Debug, Default)]
pub struct Leaks {
    pub processes: Vec<u32>,
    pub mounts: Vec<PathBuf>,
    /// Files that are the content of loop devices. They go with the last mount: a mount namespace that anybody has
    /// made on this host meanwhile keeps a copy of it, so these do not count as left.
    pub disks: Vec<PathBuf>,
    /// Cgroups of containers.
    pub cgroups: Vec<PathBuf>,
    /// Interfaces plugged into the instance's bridge.
    pub ports: Vec<String>,
    /// Network namespaces and other pins of `ip netns`.
    pub sandboxes: Vec<PathBuf>,
    /// What the instance has for all its containers, while its daemon runs or containers do: bridge, table of
    /// rules, cgroups above theirs.
    pub shared: Vec<String>,
}

impl Leaks {
    pub(crate) fn of(instance: &Instance, folder: &Path) -> Self {
        let sandboxes = instance.run().join("sandboxes");
        Self {
            processes: processes(instance, folder),
            mounts: mounts_below(folder),
            disks: disks_below(folder),
            cgroups: roots(instance).iter().flat_map(|root| folders_in(root)).collect(),
            ports: names_in(&PathBuf::from("/sys/class/net").join(instance.bridge()).join("brif")),
            sandboxes: folders_in(&sandboxes),
            shared: shared(instance),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.processes.is_empty()
            && self.mounts.is_empty()
            && self.cgroups.is_empty()
            && self.ports.is_empty()
            && self.sandboxes.is_empty()
            && self.shared.is_empty()
    }

    /// Removes all of it, and what an instance keeps for good: its bridge, table and cgroups.
    pub(crate) fn clear(&self, instance: &Instance) {
        for pid in &self.processes {
            if let Some(pid) = Pid::from_raw(*pid as i32) {
                // It may have ended by itself meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        for mount in self.mounts.iter().rev() {
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
        quiet("ip", &["link", "delete", &instance.bridge()]);
        if let Some(tag) = instance.tag() {
            let made = names_in(Path::new("/sys/class/net"));
            for name in made.iter().filter(|name| name.starts_with(&format!("in-{tag}-"))) {
                quiet("ip", &["link", "delete", name]);
            }
        }
        for family in ["ip", "ip6", "inet", "bridge"] {
            quiet("nft", &["delete", "table", family, &instance.table()]);
        }
        for root in roots(instance) {
            remove_cgroups(&root);
        }
    }
}

fn shared(instance: &Instance) -> Vec<String> {
    let bridge = PathBuf::from("/sys/class/net").join(instance.bridge());
    let paths = roots(instance).into_iter().chain([bridge]).filter(|path| path.exists());
    let tables = Outcome::of(Command::new("nft").args(["list", "tables"]), b"");
    let tables = tables
        .stdout
        .lines()
        .filter(|line| line.ends_with(&format!(" {}", instance.table())))
        .map(str::to_owned)
        .collect::<Vec<_>>();
    paths.map(|path| path.display().to_string()).chain(tables).collect()
}

/// That the thing is not there is as good.
fn quiet(program: &str, arguments: &[&str]) {
    let _ = Command::new(program).args(arguments).output();
}

/// The instance's cgroup in every hierarchy, where it is.
fn roots(instance: &Instance) -> Vec<PathBuf> {
    cgroups_called(&instance.cgroup())
}

/// The cgroup `name` in every hierarchy where it is.
#[must_use]
pub fn cgroups_called(name: &str) -> Vec<PathBuf> {
    let hierarchies = folders_in(Path::new("/sys/fs/cgroup")).into_iter();
    let all = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]);
    all.map(|hierarchy| hierarchy.join(name)).filter(|root| root.is_dir()).collect()
}

/// Removes a cgroup and those below it, whose processes have ended.
pub fn remove_cgroups(folder: &Path) {
    for child in folders_in(folder) {
        remove_cgroups(&child);
    }
    // Busy while a killed process is on its way out; then the next instance's test run finds it.
    for _ in 0..200 {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::park_timeout(std::time::Duration::from_millis(10));
            }
            _ => return,
        }
    }
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()).collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Processes in the instance's cgroups, and those that were started with its folder.
fn processes(instance: &Instance, folder: &Path) -> Vec<u32> {
    let group = format!("/{}/", instance.cgroup());
    let needle = folder.as_os_str().as_encoded_bytes();
    names_in(Path::new("/proc"))
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(|pid: &u32| *pid != std::process::id())
        .filter(|pid| {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let groups = String::from_utf8_lossy(&read("cgroup")).into_owned();
            let contains = |bytes: Vec<u8>| bytes.windows(needle.len()).any(|window| window == needle);
            let ours = contains(read("environ")) || contains(read("cmdline"));
            // A zombie has neither memory nor a way to leave; its parent is who counts.
            ours || groups.lines().any(|line| format!("{line}/").contains(&group))
        })
        .collect()
}

/// Files that loop devices have, those that are gone among them.
fn disks_below(folder: &Path) -> Vec<PathBuf> {
    let devices = Path::new("/sys/block");
    let files = names_in(devices).into_iter().map(|name| devices.join(name).join("loop/backing_file"));
    let files = files.filter_map(|file| fs::read_to_string(file).ok());
    files.map(|file| PathBuf::from(file.trim_end())).filter(|file| file.starts_with(folder)).collect()
}

fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    targets.filter(|target| target.starts_with(folder)).collect()
}

/// An address of this host that is not loopback.
#[must_use]
pub fn host_address() -> String {
    let output = Outcome::of(Command::new("ip").args(["-4", "-o", "addr", "show", "scope", "global"]), b"");
    let words: Vec<&str> = output.ok().split_whitespace().collect();
    let address = words.iter().position(|word| *word == "inet").map(|at| words[at + 1]).unwrap();
    address.split('/').next().unwrap().to_owned()
}

/// An address of this host's loopback that no other process of tests has: all of 127.0.0.0/8 is loopback.
#[must_use]
pub fn own_loopback() -> String {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    format!("127.{}.{middle}.{low}", 64 + high % 64)
}

/// A network namespace with a link to the host.
#[derive(Debug)]
pub struct Neighbour {
    name: String,
    /// The host's address on the link.
    pub host: String,
    /// The neighbour's.
    pub address: String,
}

impl Neighbour {
    /// A neighbour on a link of its own.
    #[must_use]
    pub fn new() -> Self {
        let tag = random_hex(3);
        let (name, link) = (format!("insula-test-{tag}"), format!("it-{tag}"));
        let octet = u32::from_str_radix(&tag, 16).unwrap();
        let net = format!("10.{}.{}", 200 + octet % 50, (octet / 50) % 250);
        let neighbour = Self { name: name.clone(), host: format!("{net}.1"), address: format!("{net}.2") };
        let ip = |arguments: &str| {
            Outcome::of(Command::new("ip").args(arguments.split(' ')), b"").exits(0);
        };
        ip(&format!("netns add {name}"));
        ip(&format!("link add {link} type veth peer name eth0 netns {name}"));
        ip(&format!("addr add {net}.1/24 dev {link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {name} addr add {net}.2/24 dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} link set lo up"));
        neighbour
    }

    /// Fetches a page from there: its body, or nothing.
    pub fn fetch(&self, host: &str, port: &str) -> String {
        let arguments = ["netns", "exec", &self.name, "busybox", "nc", "-w", "5", host, port];
        let outcome = Outcome::of(Command::new("ip").args(arguments), b"GET / HTTP/1.0\r\n\r\n");
        outcome.stdout.lines().last().unwrap_or_default().to_owned()
    }
}

impl Default for Neighbour {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        quiet("ip", &["netns", "delete", &self.name]);
    }
}
