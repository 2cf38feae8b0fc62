//! The kernel parameters that forwarding to containers needs.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::Error;

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const ALL_REDIRECTS: &str = "/proc/sys/net/ipv4/conf/all/accept_redirects";
const INTERFACES: &str = "/proc/sys/net/ipv4/conf";

/// Parameters that the kernel sets anew itself when forwarding is switched, with the values that they had before.
/// Only those that switching it off would leave different.
pub type Former = BTreeMap<String, String>;

/// Whether IPv4 forwarding is on: the one parameter of the whole host (network namespace) that
/// containers behind a bridge need.
pub fn forwarding() -> Result<bool, Error> {
    Ok(read(FORWARD)?.trim() != "0")
}

/// What is to be given back to [`disable_forwarding`], asked before [`enable_forwarding`]: interfaces that forward
/// by themselves, and that no redirects are taken (Documentation/networking/ip-sysctl.rst, `ip_forward`: a change
/// resets all parameters to what hosts, or routers, have).
pub fn before_forwarding() -> Result<Former, Error> {
    let mut former = forwarders(INTERFACES)?;
    let redirects = read(ALL_REDIRECTS)?;
    if redirects.trim() == "0" {
        former.insert(ALL_REDIRECTS.to_owned(), redirects.trim().to_owned());
    }
    Ok(former)
}

/// Switches IPv4 forwarding on.
pub fn enable_forwarding() -> Result<(), Error> {
    write(FORWARD, "1")
}

/// Switches IPv4 forwarding off again, and gives back what was otherwise before it was on.
pub fn disable_forwarding(former: &Former) -> Result<(), Error> {
    write(FORWARD, "0")?;
    give_back(former)
}

/// Interfaces that forward whatever the host does, `default` among them.
fn forwarders(folder: &str) -> Result<Former, Error> {
    let entries = std::fs::read_dir(folder).map_err(|source| refused("read", folder, source))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let of = |name: String| {
        let path = format!("{folder}/{name}/forwarding");
        // An interface may be gone again.
        let value = read(&path).ok()?.trim().to_owned();
        (value != "0").then_some((path, value))
    };
    Ok(names.filter(|name| name != "all").filter_map(of).collect())
}

fn give_back(former: &Former) -> Result<(), Error> {
    let there = former.iter().filter(|(path, _)| Path::new(path).exists());
    for (path, value) in there {
        write(path, value)?;
    }
    Ok(())
}

const FORWARD6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// Whether IPv6 forwarding is on, for the whole host.
pub fn forwarding6() -> Result<bool, Error> {
    Ok(read(FORWARD6)?.trim() != "0")
}

/// Interfaces that take router advertisements as long as the host forwards nothing, `default` among them.
pub fn advertised() -> Result<Vec<String>, Error> {
    let entries = std::fs::read_dir(INTERFACES6).map_err(|source| refused("read", INTERFACES6, source))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    // An interface may be gone again.
    let takes = |name: &String| read(&accept_ra(name)).is_ok_and(|value| value.trim() == "1");
    Ok(names.filter(|name| name != "all").filter(takes).collect())
}

/// Switches IPv6 forwarding on. A host that forwards ignores router advertisements unless told
/// otherwise; these interfaces, of [`advertised`], go on taking them.
pub fn enable_forwarding6(advertised: &[String]) -> Result<(), Error> {
    each_accept_ra(advertised, "1", "2")?;
    write(FORWARD6, "1")
}

/// As [`before_forwarding`], of IPv6.
pub fn before_forwarding6() -> Result<Former, Error> {
    forwarders(INTERFACES6)
}

/// Switches IPv6 forwarding off again, and gives back what was otherwise before, what these interfaces take as well.
pub fn disable_forwarding6(advertised: &[String], former: &Former) -> Result<(), Error> {
    write(FORWARD6, "0")?;
    give_back(former)?;
    each_accept_ra(advertised, "2", "1")
}

/// Lets an interface take no router advertisements, whatever the host's others do. A kernel without IPv6
/// has nothing to be told.
pub fn ignore_advertisements(name: &str) -> Result<(), Error> {
    let path = accept_ra(name);
    if Path::new(&path).exists() { write(&path, "0") } else { Ok(()) }
}

fn each_accept_ra(names: &[String], from: &str, to: &str) -> Result<(), Error> {
    for path in names.iter().map(|name| accept_ra(name)) {
        // An interface may be gone, or an administrator may have changed it.
        if read(&path).is_ok_and(|value| value.trim() == from) {
            write(&path, to)?;
        }
    }
    Ok(())
}

const INTERFACES6: &str = "/proc/sys/net/ipv6/conf";

fn accept_ra(name: &str) -> String {
    format!("{INTERFACES6}/{name}/accept_ra")
}

/// Lets packets from 127.0.0.0/8 leave by a bridge, so that ports published on the host's loopback
/// reach containers. The firewall keeps containers from using it the other way.
pub fn route_loopback(bridge: &str) -> Result<(), Error> {
    write(&format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), "1")
}

fn read(path: &str) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| refused("read", path, source))
}

fn write(path: &str, value: &str) -> Result<(), Error> {
    std::fs::write(path, value).map_err(|source| refused("write", path, source))
}

fn refused(action: &'static str, path: &str, source: io::Error) -> Error {
    Error::Refused { action, operand: path.to_owned(), detail: String::new(), source }
}
