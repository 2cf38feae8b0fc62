//! The first process of a guest. It sets the machine up ([`machine`]), makes it the one that the host means
//! ([`furnish`]) with the container's files ([`files`]), and serves the channel ([`bridge`]): requests go on to a monitor with the process wall, the
//! same that serves containers on a host, and the standard streams of its processes go through the channel. In a
//! tenant's machine there is such a process for each container ([`tenant`]).
//!
//! What the host says is believed: it has made this machine. What containers do is not: they are behind the
//! process wall.

mod bridge;
mod cards;
mod error;
mod files;
mod furnish;
mod image;
mod machine;
mod names;
mod processes;
mod tenant;

use std::os::fd::{AsFd, OwnedFd};

use insula_monitor_core::Monitor;
use insula_sandbox::ns::Namespaces;
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::system::RebootCommand;

use error::{Context, Result};

/// Serves until the machine ends; a failure is said on the console and ends it.
pub fn run() -> ! {
    let Err(error) = serve();
    eprintln!("insula-agent: {}", insula_base::chain(&error));
    // What can be done about a failure is to end; the kernel panics if not even that works.
    let _ = rustix::system::reboot(RebootCommand::Restart);
    process::exit_now(1)
}

fn serve() -> Result<std::convert::Infallible> {
    rustix::process::umask(rustix::fs::Mode::empty());
    machine::set_up()?;
    match machine::channel()? {
        machine::Channel::Container(channel) => {
            let monitor = start_monitor()?;
            bridge::Bridge::new(channel, monitor)?.serve()?;
            Err(error::Error::NoChannel)
        }
        machine::Channel::Tenant(channel) => tenant::serve(channel),
    }
}

/// Starts a monitor with the process wall, and nothing else of this process'; the connection to it.
pub(crate) fn start_monitor() -> Result<OwnedFd> {
    let (connection, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .context("socketpair", "for the monitor")?;
    match process::clone(CloneFlags::empty(), None).context("clone3", "the monitor")? {
        Clone::Child => {
            process::close_from_3_but(&[theirs.as_fd()]);
            if let Err(error) = monitor(theirs) {
                eprintln!("insula-agent: the monitor: {error}");
                process::exit_now(1)
            }
            process::exit_now(0)
        }
        Clone::Parent { .. } => Ok(connection),
    }
}

fn monitor(control: OwnedFd) -> Result<(), String> {
    let chain = |error: &dyn std::error::Error| insula_base::chain(error);
    let sandbox = Namespaces::new().map_err(|error| chain(&error))?;
    Monitor::new(sandbox, control).and_then(Monitor::run).map_err(|error| chain(&error))
}
