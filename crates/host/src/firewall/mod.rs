//! Our own nftables table: masquerading, published ports, isolation of bridges. Nobody else's rules
//! are read into it or touched, and it accepts nothing that another table drops: each of its
//! chains lets go what it has no reason to stop, and the administrator's chains judge it as well.
//!
//! ```text
//! set bridges            our bridges
//! set within             each bridge paired with itself: traffic that stays within one
//! set internal           those of them that nothing enters or leaves
//! set subnets, subnets6  subnets that are masqueraded
//! map ports, ports6      protocol . port of the host            → address . port of a container
//! set published, addressed, published6, addressed6
//!                        the ports and addresses of the maps, for the judges
//! set members, members6  subnets of all our bridges
//! chain made_…           empty: by its name the tables are told from others that somebody put in their place
//! set guests, guests6    (table bridge) port of a bridge . hardware address . address of a container
//! map addressed_ports, addressed_ports6
//!                        address . protocol . port of the host  → address . port of a container
//!
//! judgeN    prerouting   what the administrator's input chains say about published ports (see `mirror`)
//! spoofed   prerouting   (table bridge) a container sends from its own addresses alone
//! apart     forward      (table bridge) neighbours on a bridge without inter-container communication
//! guard     prerouting   a container cannot speak to the host's addresses on other bridges, nor to the host's loopback (route_localnet is on)
//! inbound   prerouting   published ports, for what comes from elsewhere and from containers
//! local     output       published ports, for the host's own programs, 127.0.0.1 included
//! outbound  postrouting  masquerading of what leaves the subnets, of the host's loopback towards
//!                        containers, of what returns to the bridge that it came from
//! forward   forward      to our bridges pass answers, neighbours and published ports only
//! ```
//!
//! The table is put in place as a whole, in one transaction, by the `nft` program. A container's ports
//! are elements of the maps, added and removed by a netlink message of our own: no program is started.

mod batch;
mod check;
mod mirror;
mod policy;
mod text;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use insula_base::{Kind, Kinded};
use insula_sys::netlink::Socket;

use self::batch::Family;
use self::mirror::Mirror;
use crate::netlink;
use crate::netlink::message::messages;

pub use check::{Deviation, Element};

/// A bridge whose containers are masqueraded and kept apart from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Name of the bridge.
    pub bridge: String,
    pub subnet: Ipv4Addr,
    pub prefix: u8,
    /// Whether what leaves it gets the host's address.
    pub masquerade: bool,
    /// Nothing goes in or out.
    pub internal: bool,
    /// Its containers do not see each other.
    pub apart: bool,
    /// The host's address on it.
    pub gateway: Ipv4Addr,
    pub v6: Option<Zone6>,
}

/// The IPv6 subnet of a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone6 {
    pub subnet: Ipv6Addr,
    pub prefix: u8,
    pub gateway: Ipv6Addr,
    pub masquerade: bool,
}

/// A container's interface, and an address that it may send from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Guest {
    /// Name of the bridge's port.
    pub port: String,
    pub mac: [u8; 6],
    pub address: IpAddr,
    /// Packets from other addresses are dropped.
    pub guarded: bool,
    /// It does not see its neighbours, but the bridge alone, whose hardware address this is.
    pub apart: Option<[u8; 6]>,
}

impl Guest {
    /// Whether its port is to be in the set of those that are guarded; the first address counts for all.
    fn is_guarded(&self) -> bool {
        self.guarded && self.address.is_ipv4()
    }

    fn is_apart(&self) -> bool {
        self.apart.is_some() && self.address.is_ipv4()
    }
}

/// A port of the host that leads to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Protocol number of the IP header.
    pub proto: u8,
    /// `None` is every address of the host of `to`'s family; another is of that family.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub to: IpAddr,
    pub to_port: u16,
}

/// An operation on the firewall that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program that makes the table is not there.
    #[error("the nft program is not found: install the package nftables")]
    NoProgram,
    /// Starting it or speaking with it failed.
    #[error("{call} nft")]
    Program { call: &'static str, source: io::Error },
    /// It refused the table.
    #[error("nft refused the table {table}: {message}")]
    Refused { table: String, message: String },
    /// The kernel refused elements.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoProgram => Kind::Unsupported,
            Self::Program { .. } | Self::Refused { .. } => Kind::Internal,
            Self::Netlink(error) => error.kind(),
        }
    }
}

impl Error {
    /// Whether the reason is that the table, or an element of it, is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Netlink(error) if error.kind() == Kind::NotFound)
    }
}

/// Tells when anybody changes rules of nftables.
#[derive(Debug)]
pub struct Changes(Socket);

impl Changes {
    /// Listens from now on.
    pub fn listen() -> Result<Self, Error> {
        /// NFNLGRP_NFTABLES.
        const GROUP: u32 = 7;
        let socket = batch::open()?;
        socket
            .join(GROUP)
            .map_err(|source| netlink::Error::Socket { call: "listen to changes of nftables", source })?;
        Ok(Self(socket))
    }

    /// Takes what has been told so far, and returns whether another process has changed something. What was
    /// lost counts as another's.
    pub fn take(&self) -> bool {
        let mut buffer = vec![0; 64 << 10];
        let mut foreign = false;
        loop {
            match self.0.receive(&mut buffer) {
                Ok(count) => foreign |= foreign_change(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return foreign,
                Err(_) => foreign = true,
            }
        }
    }
}

/// Names of the sockets by which this process changes rules. The kernel also says which process made a
/// change, but by its number in the first namespace of all, which tells nothing in another.
static OWN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn own_sockets() -> MutexGuard<'static, BTreeSet<u32>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a datagram ends a change that another process made.
fn foreign_change(datagram: &[u8]) -> bool {
    const NEWGEN: u16 = 10 << 8 | 15;
    let own = own_sockets();
    messages(datagram).any(|message| message.kind == NEWGEN && !own.contains(&message.socket))
}

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// By what the tables are known that were put in place last.
#[derive(Debug)]
struct Made {
    /// A chain that they have, and none before them.
    mark: String,
    seals: Vec<(Family, batch::Seal)>,
}

/// The table of one instance, in the network namespace of the thread that opened it, which is the
/// one to call [`Firewall::install`] too.
///
/// The socket stays open: closing one waits until the kernel has destroyed what was removed, which
/// takes a grace period of many milliseconds.
#[derive(Debug)]
pub struct Firewall {
    table: String,
    /// Of its socket.
    name: u32,
    /// Interfaces by which ports are reached that are published on every address; none is all.
    exposed: Vec<String>,
    socket: Mutex<Socket>,
    mirror: Mutex<Mirror>,
    /// Nothing while the tables are not in place.
    made: Mutex<Option<Made>>,
    /// Whether there is a table for bridges, in kernels that can.
    bridged: AtomicBool,
}

impl Drop for Firewall {
    fn drop(&mut self) {
        own_sockets().remove(&self.name);
    }
}

impl Firewall {
    /// The table of this name: letters, digits, `-`. Ports that are published on every address are reached
    /// by the interfaces `exposed`, by all if there are none.
    pub fn open(table: String, exposed: Vec<String>) -> Result<Self, Error> {
        let socket = batch::open()?;
        let name = socket
            .name()
            .map_err(|source| netlink::Error::Socket { call: "name a netfilter socket", source })?;
        own_sockets().insert(name);
        Ok(Self {
            table,
            exposed,
            name,
            socket: Mutex::new(socket),
            mirror: Mutex::default(),
            made: Mutex::default(),
            bridged: AtomicBool::new(true),
        })
    }

    /// A request and its answers belong together. An answer that a panic left unread is of no
    /// harm: it is of a request that was carried out or refused as a whole.
    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table's name.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Puts the table in place with these contents, in one transaction that replaces what was there.
    /// Starts one program.
    ///
    /// Input chains of others that cannot be copied are left out, and [`Firewall::warnings`] says so.
    pub fn install(&self, zones: &[Zone], forwards: &[Forward], guests: &[Guest]) -> Result<(), Error> {
        let bridged = self.bridged.load(Ordering::Relaxed);
        let ours = text::Parts { zones, forwards, guests, mirror: "", bridged, exposed: &self.exposed };
        let (mut mirror, mut output) = self.install_guarded(ours)?;
        if !output.status.success() && bridged {
            output = self.replace(&text::Parts { bridged: false, ..ours })?;
            if output.status.success() {
                self.bridged.store(false, Ordering::Relaxed);
                mirror.warnings.push(
                    "this kernel does not filter bridges (NF_TABLES_BRIDGE): containers with NET_RAW may send \
                     from others' addresses, and com.docker.network.bridge.enable_icc=false has no effect"
                        .to_owned(),
                );
            }
        }
        if output.status.success() {
            *self.mirror() = mirror;
            return Ok(());
        }
        let message: String =
            String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ").chars().take(500).collect();
        Err(Error::Refused { table: self.table.clone(), message })
    }

    /// The table with the copies of others' chains, without them where they are what is refused.
    fn install_guarded(&self, ours: text::Parts<'_>) -> Result<(Mirror, Output), Error> {
        /// Times that rules may change while they are read.
        const MOST_READINGS: usize = 5;
        let mut mirror = mirror::read(&self.table)?;
        let mut readings = 1;
        loop {
            // What is refused is not tried again before it changes.
            mirror.seen = mirror.seen();
            let output = self.replace(&text::Parts { mirror: &mirror.text, ..ours })?;
            if output.status.success() || mirror.text.is_empty() {
                return Ok((mirror, output));
            }
            let again = mirror::read(&self.table)?;
            if again.seen() == mirror.seen || readings == MOST_READINGS {
                mirror.warnings.push(format!(
                    "input rules of other nftables tables do not guard published ports: {}",
                    String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default()
                ));
                mirror.text.clear();
                return Ok((mirror, self.replace(&ours)?));
            }
            (mirror, readings) = (again, readings + 1);
        }
    }

    /// Puts tables in place, and notes by what they will be known.
    fn replace(&self, parts: &text::Parts<'_>) -> Result<Output, Error> {
        let mark = format!("made_{}", insula_base::random_hex(8));
        let made = text::tables(&self.table, parts);
        let output = nft(&format!("{made}{}", text::marks(&self.table, &mark, parts.bridged)))?;
        if output.status.success() {
            let families: &[_] = if parts.bridged { &Family::ALL } else { &Family::ALL[..1] };
            let seals = families.iter().map(|family| {
                // One that is gone already is one that has been altered.
                let found = batch::seal(&self.socket(), &self.table, *family, &mark)?;
                let handle = found.map_or(0, |seal| seal.handle);
                Ok((*family, batch::Seal { handle, rules: text::rules(&made, family.name()) }))
            });
            let seals = seals.collect::<Result<_, Error>>()?;
            *self.made() = Some(Made { mark, seals });
        }
        Ok(output)
    }

    /// Whether the input chains of others are other ones than those that were copied.
    pub fn outdated(&self) -> Result<bool, Error> {
        Ok(mirror::read(&self.table)?.seen() != self.mirror().seen)
    }

    /// Whether somebody has removed the tables since they were put in place, emptied them, or put others
    /// in their place, as one who flushes the ruleset does, or who loads one that was saved.
    pub fn altered(&self) -> Result<bool, Error> {
        let made = self.made();
        let Some(made) = made.as_ref() else { return Ok(false) };
        let socket = self.socket();
        for (family, seal) in &made.seals {
            let intact =
                || Ok::<_, Error>(batch::seal(&socket, &self.table, *family, &made.mark)? == Some(*seal));
            // A list of rules that is read while others change theirs may have gaps.
            if !intact()? && !intact()? && !intact()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn made(&self) -> MutexGuard<'_, Option<Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What of the host's filter does not guard published ports, for the user.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.mirror().warnings.iter().cloned().chain(policy::input_warnings()).collect()
    }

    /// Which rules of others drop forwarded packets by default, as dockerd's do, and how to let a bridge's pass;
    /// rules for IPv6 alone count when the bridge has it. Starts programs when there are such rules.
    pub fn forward_warnings(&self, bridge: &str, v6: bool) -> Result<Vec<String>, Error> {
        policy::forward_warnings(&self.socket(), &self.table, bridge, v6)
    }

    /// Which of these ports (address, name of the protocol, number) other hosts would not reach if they were
    /// published, since the input rules of others drop by default and do not name them, and how to change it.
    /// Starts programs when there are such rules.
    pub fn port_warnings(&self, ports: &[(Option<IpAddr>, &str, u16)]) -> Result<Vec<String>, Error> {
        policy::port_warnings(&self.socket(), &self.table, ports)
    }

    fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the tables and everything in them; that they are gone already is fine.
    pub fn uninstall(&self) -> Result<(), Error> {
        for family in Family::ALL {
            match batch::delete_table(&self.socket(), &self.table, family) {
                Err(error) if error.is_missing() => {}
                result => result?,
            }
        }
        *self.mirror() = Mirror::default();
        *self.made() = None;
        Ok(())
    }

    /// Whether the table is there. Somebody may have flushed all rules.
    pub fn installed(&self) -> Result<bool, Error> {
        match batch::probe_table(&self.socket(), &self.table) {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Those that can be told apart.
    fn bridged<'a>(&self, guests: &'a [Guest]) -> &'a [Guest] {
        if self.bridged.load(Ordering::Relaxed) { guests } else { &[] }
    }

    /// Adds ports and guests, all or none of up to a thousand ports. One that is there already with the
    /// same target is fine; [`Error::is_missing`] tells that the table is gone.
    pub fn add(&self, forwards: &[Forward], guests: &[Guest]) -> Result<(), Error> {
        let socket = self.socket();
        let guests = self.bridged(guests);
        let (first, rest) = forwards.split_at(forwards.len().min(batch::MOST));
        if !first.is_empty() || !guests.is_empty() {
            batch::add(&socket, &self.table, first, guests)?;
        }
        rest.chunks(batch::MOST).try_for_each(|part| batch::add(&socket, &self.table, part, &[]))
    }

    /// Removes ports and guests; those that are gone already are fine.
    pub fn remove(&self, forwards: &[Forward], guests: &[Guest]) -> Result<(), Error> {
        let socket = self.socket();
        let guests = self.bridged(guests);
        if forwards.len() <= batch::MOST && !(forwards.is_empty() && guests.is_empty()) {
            match batch::remove(&socket, &self.table, forwards, guests) {
                Err(error) if error.is_missing() => {}
                result => return result,
            }
        }
        // One that is gone fails the batch as a whole: the others go one by one.
        for guest in guests {
            match batch::remove(&socket, &self.table, &[], std::slice::from_ref(guest)) {
                Err(error) if error.is_missing() => {}
                result => result?,
            }
        }
        for part in forwards.chunks(batch::MOST) {
            match batch::remove(&socket, &self.table, part, &[]) {
                Err(error) if error.is_missing() => {
                    part.iter().try_for_each(|forward| {
                        match batch::remove(&socket, &self.table, std::slice::from_ref(forward), &[]) {
                            Err(error) if error.is_missing() => Ok(()),
                            result => result,
                        }
                    })?
                }
                result => result?,
            }
        }
        Ok(())
    }
}

/// Runs `nft -f -`. Daemons' `PATH` may lack the folder of system programs.
fn nft(text: &str) -> Result<Output, Error> {
    for program in ["nft", "/usr/sbin/nft", "/sbin/nft"] {
        let mut command = Command::new(program);
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::Program { call: "start", source }),
        };
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
        let output =
            child.wait_with_output().map_err(|source| Error::Program { call: "wait for", source })?;
        // When it ends early its own words say more than our broken pipe.
        return match written {
            Err(source) if output.status.success() => Err(Error::Program { call: "write to", source }),
            _ => Ok(output),
        };
    }
    Err(Error::NoProgram)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests6;
#[cfg(test)]
mod tests_sctp;
