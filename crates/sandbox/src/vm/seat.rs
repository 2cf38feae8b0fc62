//! A container's place in the machine of a tenant, seen from its monitor: a connection to who owns the machine,
//! and a stream into it.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use insula_base::Kind;
use insula_spec::machine::{TenantAnswer, TenantCall, TenantMachine};
use insula_spec::plan::InterfacePlan;
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::{Error, Result};

/// How long an answer may take: cards of a busy host.
const ANSWER: Duration = Duration::from_secs(180);
/// The longest line.
const LARGEST: usize = 1 << 20;

/// Where cards are, and what they are.
pub(super) type Placed = Vec<(usize, InterfacePlan)>;

#[derive(Debug)]
pub(super) struct Seat {
    control: OwnedFd,
    bytes: Vec<u8>,
    pub(super) channel: OwnedFd,
    pub(super) machine: TenantMachine,
    cards: Vec<(usize, InterfacePlan)>,
}

impl Seat {
    /// Takes a seat in the machine at `socket`; returns also the stream for the container's files.
    pub(super) fn take(
        socket: &Path,
        container: &str,
        interfaces: &[InterfacePlan],
    ) -> Result<(Self, OwnedFd)> {
        let control = connect(socket)?;
        let mut bytes = Vec::new();
        let (TenantAnswer::Status(machine), _) = call(&control, &mut bytes, &TenantCall::Status)? else {
            return Err(unexpected());
        };
        let join = TenantCall::Join { container: container.to_owned(), interfaces: interfaces.to_vec() };
        let (TenantAnswer::Cards(cards), streams) = call(&control, &mut bytes, &join)? else {
            return Err(unexpected());
        };
        let [channel, files] = <[OwnedFd; 2]>::try_from(streams).map_err(|_| unexpected())?;
        Ok((Self { control, bytes, channel, machine, cards }, files))
    }

    /// The cards that it has.
    pub(super) fn cards(&self) -> &Placed {
        &self.cards
    }

    /// The place of the card that has this name inside.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.cards.iter().find(|(_, plan)| plan.name == name).map(|(place, _)| *place)
    }

    /// Has other cards; those that come.
    pub(super) fn wire(&mut self, unplug: Vec<usize>, plug: Vec<InterfacePlan>) -> Result<Placed> {
        let wire = TenantCall::Wire { unplug: unplug.clone(), plug, shape: Vec::new() };
        let (TenantAnswer::Cards(cards), _) = call(&self.control, &mut self.bytes, &wire)? else {
            return Err(unexpected());
        };
        self.cards.retain(|(place, _)| !unplug.contains(place));
        self.cards.extend(cards.iter().cloned());
        Ok(cards)
    }

    /// Its cards send at other rates.
    pub(super) fn shape(&mut self, plans: &[InterfacePlan]) -> Result<()> {
        let placed = |plan: &InterfacePlan| Some((self.place(&plan.name)?, plan.rate));
        let shape = plans.iter().filter_map(placed).collect();
        let wire = TenantCall::Wire { unplug: Vec::new(), plug: Vec::new(), shape };
        call(&self.control, &mut self.bytes, &wire).map(drop)
    }

    /// Names of its cards, inside and on the host.
    pub(super) fn names(&self) -> Vec<(String, String)> {
        self.cards.iter().map(|(_, plan)| (plan.name.clone(), plan.host_name.clone())).collect()
    }

    /// Why the machine has ended, if that was said.
    pub(super) fn last_word(&mut self) -> Option<String> {
        let mut piece = vec![0; 64 << 10];
        while let Ok((1.., count)) = rustix::net::recv(&self.control, &mut piece, RecvFlags::DONTWAIT) {
            self.bytes.extend_from_slice(&piece[..count]);
        }
        self.bytes.split(|byte| *byte == b'\n').find_map(|line| match serde_json::from_slice(line) {
            Ok(TenantAnswer::Ended { why }) => Some(why),
            _ => None,
        })
    }

    /// Leaves the machine; what it had of it is free afterwards.
    pub(super) fn leave(mut self) {
        // Who has gone has freed everything.
        let _ = call(&self.control, &mut self.bytes, &TenantCall::Leave);
    }
}

fn connect(path: &Path) -> Result<OwnedFd> {
    let call = |call| move |source| Error::call(call, "the socket of a tenant's machine", source);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(Error::Invalid(format!("{} is no path of a socket", path.display())));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty()).map_err(call("open"))?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(call("socket"))?;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))
        .map_err(call("setsockopt"))?;
    let address =
        SocketAddrUnix::new(insula_sys::socket::path_in(folder.as_fd(), name)).map_err(call("bind"))?;
    rustix::net::connect(&socket, &address).map_err(call("connect"))?;
    Ok(socket)
}

/// Asks and waits. What was not asked for is the machine's end.
fn call(control: &OwnedFd, bytes: &mut Vec<u8>, call: &TenantCall) -> Result<(TenantAnswer, Vec<OwnedFd>)> {
    let failed = |call| move |source| Error::call(call, "a tenant's machine", source);
    let mut line = super::running::json(call)?;
    line.push(b'\n');
    insula_sys::socket::send_all(control.as_fd(), &line, &[]).map_err(failed("sendmsg"))?;
    let mut descriptors = Vec::new();
    loop {
        if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            return match serde_json::from_slice(&line).map_err(|_| unexpected())? {
                TenantAnswer::Failed { kind, message } => {
                    Err(Error::Guest { kind: Kind::from_code(kind), message, exit_code: 0 })
                }
                TenantAnswer::Ended { why } => Err(Error::Machine(why)),
                answer => Ok((answer, descriptors)),
            };
        }
        let mut piece = [0; 4096];
        let (count, more) = match insula_sys::socket::receive(control.as_fd(), &mut piece) {
            Err(error) if std::io::Error::from(error).kind() == ErrorKind::WouldBlock => {
                return Err(Error::Machine("the tenant's machine does not answer".to_owned()));
            }
            received => received.map_err(failed("recvmsg"))?,
        };
        if count == 0 || bytes.len() > LARGEST {
            return Err(Error::Machine(super::running::TENANT_ENDED.to_owned()));
        }
        bytes.extend_from_slice(&piece[..count]);
        descriptors.extend(more);
    }
}

fn unexpected() -> Error {
    Error::Machine("what owns the tenant's machine is not to be understood".to_owned())
}
