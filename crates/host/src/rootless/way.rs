//! The way out of the network namespace: a program that speaks for it with sockets of the user's.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use insula_sys::process as processes;
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

use super::error::{Context, Error};
use crate::process::Process;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What both programs need; everybody may open it where udev has made it.
const TUN: &str = "/dev/net/tun";
/// Where pasta listens for queries to the host's first name server; link-local, so nobody else's.
const PASTA_NAMES: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Bytes of a socket's path, with the zero behind it (unix(7)).
const LONGEST_SOCKET: usize = 108;
/// slirp4netns(1) has its name server there.
const SLIRP_NAMES: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// What carries packets to other hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WayOut {
    Pasta(Process),
    Slirp4netns(Process),
    None,
}

impl fmt::Display for WayOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pasta(_) => "pasta",
            Self::Slirp4netns(_) => "slirp4netns",
            Self::None => "none",
        })
    }
}

/// One for the namespace of this process, the first that comes up; what is missing if none does.
pub(super) fn open(pid: i32, folder: &Path) -> Result<(WayOut, Option<String>), Error> {
    let (mut said, mut there) = (Vec::new(), false);
    let mut ways = [("pasta", pasta as Start), ("slirp4netns", slirp4netns)];
    if find("pasta").is_some_and(|program| hangs(&program)) {
        ways.reverse();
    }
    for (name, start) in ways {
        match find(name) {
            None => said.push(format!("{name} is not there")),
            Some(program) => {
                there = true;
                match start(&program, pid, folder)? {
                    Ok(way) => return Ok((way, None)),
                    Err(why) => said.push(format!("{name}: {why}")),
                }
            }
        }
    }
    let advice = if there { advice() } else { INSTALL };
    let why = format!(
        "containers reach no other host ({}): {advice}. Each other and published ports they have",
        said.join("; ")
    );
    Ok((WayOut::None, Some(why)))
}

const INSTALL: &str = "install passt or slirp4netns";

/// What helps where a program is there and does not come up.
fn advice() -> &'static str {
    match File::options().read(true).write(true).open(TUN).map_err(|error| error.kind()) {
        Err(ErrorKind::PermissionDenied) => "as root: chmod 0666 /dev/net/tun, which is root's alone",
        Err(ErrorKind::NotFound) => "as root: modprobe tun, since there is no /dev/net/tun",
        _ => INSTALL,
    }
}

/// A way, or what the program says against it.
type Start = fn(&Path, i32, &Path) -> Result<Result<WayOut, String>, Error>;

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Whether it is one that does not know its own version, as Debian 12's: it keeps connections whose client has said all
/// that it has to say, until somebody gives up. Another is slower, and does what it is asked.
fn hangs(pasta: &Path) -> bool {
    let said = Command::new(pasta).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).starts_with("pasta unknown version"))
}

/// Ends those that have this path among their words: their starter was killed before it could note them.
fn sweep_all(path: &Path) {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let needle = path.as_os_str().as_encoded_bytes();
    for pid in pids {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.split(|byte| *byte == 0).any(|word| word == needle) {
            // It may end by itself this instant.
            let _ = processes::kill(pid, 15);
        }
    }
}

/// Ends one whose starter was killed before it could say so.
fn sweep(pid_file: &Path) {
    let Ok(text) = std::fs::read_to_string(pid_file) else { return };
    let Ok(pid) = text.trim().parse::<i32>() else { return };
    let needle = pid_file.as_os_str().as_encoded_bytes();
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if command.split(|byte| *byte == 0).any(|word| word == needle) {
        // It may end by itself this instant.
        let _ = processes::kill(pid, 15);
    }
}

/// pasta(1): it puts itself into the background once all is up.
fn pasta(program: &Path, pid: i32, folder: &Path) -> Result<Result<WayOut, String>, Error> {
    let (pid_file, log) = (folder.join("way.pid"), folder.join("way.log"));
    sweep(&pid_file);
    let words = File::create(&log).context("create", log.display())?;
    // Only where it is needed: answers of the host's first name server come from there then, whoever was asked.
    let host = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let names = replaced(&host, PASTA_NAMES).map(|_| PASTA_NAMES.to_string());
    let status = Command::new(program)
        // Without a map of the gateway's address containers do not reach the host's loopback.
        .args(["--config-net", "--no-map-gw"])
        .args(names.iter().flat_map(|names| ["--dns-forward", names]))
        .args(["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--pid"])
        .arg(&pid_file)
        .arg(pid.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(words)
        .process_group(0)
        .status()
        .context("execute", program.display())?;
    if !status.success() {
        return Ok(Err(last_words(&log)));
    }
    let text = std::fs::read_to_string(&pid_file).context("read", pid_file.display())?;
    let process = text.trim().parse().ok().and_then(process);
    Ok(process.map(WayOut::Pasta).ok_or_else(|| "it has ended".to_owned()))
}

/// slirp4netns(1): it stays in the foreground and writes to a descriptor when all is up.
fn slirp4netns(program: &Path, pid: i32, folder: &Path) -> Result<Result<WayOut, String>, Error> {
    let (log, api) = (folder.join("way.log"), folder.join("way.sock"));
    sweep_all(&api);
    // What it is known by, if the path is one of a socket. One that is gone may have left it.
    let known = api.as_os_str().len() < LONGEST_SOCKET;
    let _ = std::fs::remove_file(&api);
    let words = File::create(&log).context("create", log.display())?;
    let (mut ready, theirs) = std::io::pipe().context("pipe", "for slirp4netns")?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).context("fcntl", "a pipe")?;
    let child = Command::new(program)
        .args(["--configure", "--mtu=65520", "--disable-host-loopback"])
        .arg(format!("--ready-fd={}", theirs.as_raw_fd()))
        .args(known.then(|| [OsStr::new("--api-socket"), api.as_os_str()]).into_iter().flatten())
        .args([&pid.to_string(), "tap0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(words)
        .process_group(0)
        .spawn()
        .context("execute", program.display())?;
    drop(theirs);
    if !matches!(ready.read(&mut [0]), Ok(1)) {
        return Ok(Err(last_words(&log)));
    }
    let process = process(child.id() as i32);
    Ok(process.map(WayOut::Slirp4netns).ok_or_else(|| "it has ended".to_owned()))
}

fn process(pid: i32) -> Option<Process> {
    Process::start_time(pid).map(|started| Process { pid, started })
}

fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it ended without a word")
        .trim()
        .to_owned()
}

impl WayOut {
    fn process(&self) -> Option<Process> {
        match self {
            Self::Pasta(process) | Self::Slirp4netns(process) => Some(*process),
            Self::None => None,
        }
    }

    pub(super) fn gone(&self) -> bool {
        self.process().is_none_or(Process::gone)
    }

    /// It does not notice by itself that nobody is there any more.
    pub(super) fn end(&self) {
        if let Some(process) = self.process().filter(|process| process.runs()) {
            // It may end by itself this instant.
            let _ = processes::kill(process.pid, 15);
        }
    }

    /// Name servers on the host's loopback are not that of the namespace: there the way's own is asked, which asks
    /// them. For who is in the mount namespace.
    pub(super) fn name_servers(&self, folder: &Path) -> Result<(), Error> {
        let own = match self {
            Self::Pasta(_) => PASTA_NAMES,
            Self::Slirp4netns(_) => SLIRP_NAMES,
            Self::None => return Ok(()),
        };
        let Ok(text) = std::fs::read_to_string(RESOLV_CONF) else { return Ok(()) };
        let Some(text) = replaced(&text, own) else { return Ok(()) };
        let path = folder.join("resolv.conf");
        std::fs::write(&path, text).context("write", path.display())?;
        let place = std::fs::canonicalize(RESOLV_CONF).context("find", RESOLV_CONF)?;
        rustix::mount::mount_bind(&path, &place).context("mount", place.display())
    }
}

/// The text with this name server in place of those on loopback, if there are any.
fn replaced(text: &str, own: Ipv4Addr) -> Option<String> {
    let server = |line: &str| line.trim().strip_prefix("nameserver").map(|rest| rest.trim().to_owned());
    let local =
        |line: &&str| server(line).is_some_and(|server| server.starts_with("127.") || server == "::1");
    if !text.lines().any(|line| local(&line)) {
        return None;
    }
    let others = text.lines().filter(|line| !local(line));
    let lines: Vec<String> =
        std::iter::once(format!("nameserver {own}")).chain(others.map(str::to_owned)).collect();
    Some(format!("{}\n", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_on_loopback_are_replaced() {
        let own = Ipv4Addr::new(10, 0, 2, 3);
        assert_eq!(replaced("nameserver 192.0.2.1\nsearch a\n", own), None);
        assert_eq!(replaced("", own), None);
        let text = "# x\nnameserver 127.0.0.53\noptions edns0\nnameserver ::1\nnameserver 192.0.2.1\n";
        let expected = "nameserver 10.0.2.3\n# x\noptions edns0\nnameserver 192.0.2.1\n";
        assert_eq!(replaced(text, own).as_deref(), Some(expected));
    }
}
