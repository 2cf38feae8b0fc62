//! The kernel parameters that forwarding to containers needs.

use std::io;

use super::Error;

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Whether IPv4 forwarding is on: the one parameter of the whole host (network namespace) that
/// containers behind a bridge need.
pub fn forwarding() -> Result<bool, Error> {
    Ok(read(FORWARD)?.trim() != "0")
}

/// Switches IPv4 forwarding on.
pub fn enable_forwarding() -> Result<(), Error> {
    write(FORWARD, "1")
}

/// Switches IPv4 forwarding off again.
pub fn disable_forwarding() -> Result<(), Error> {
    write(FORWARD, "0")
}

const FORWARD6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// Whether IPv6 forwarding is on, for the whole host.
pub fn forwarding6() -> Result<bool, Error> {
    Ok(read(FORWARD6)?.trim() != "0")
}

/// Switches IPv6 forwarding on. A host that forwards ignores router advertisements unless told
/// otherwise; interfaces that take them go on doing so.
pub fn enable_forwarding6() -> Result<(), Error> {
    each_accept_ra("1", "2")?;
    write(FORWARD6, "1")
}

/// Switches IPv6 forwarding off again.
pub fn disable_forwarding6() -> Result<(), Error> {
    write(FORWARD6, "0")?;
    each_accept_ra("2", "1")
}

fn each_accept_ra(from: &str, to: &str) -> Result<(), Error> {
    const FOLDER: &str = "/proc/sys/net/ipv6/conf";
    let entries = std::fs::read_dir(FOLDER).map_err(|source| refused("read", FOLDER, source))?;
    for entry in entries.flatten() {
        let path = format!("{FOLDER}/{}/accept_ra", entry.file_name().to_string_lossy());
        // An interface may be gone again.
        if read(&path).is_ok_and(|value| value.trim() == from) && path != format!("{FOLDER}/all/accept_ra") {
            write(&path, to)?;
        }
    }
    Ok(())
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
