//! The first process of a tenant's machine. Each container that comes gets a process of its own, which does for it
//! what the first process does in a machine with one container: a bridge to a monitor, in a mount namespace of its
//! own with the container's files. All that these say to the host goes through one channel.

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use insula_base::Kinded;
use insula_host::netlink::Routes;
use insula_proto::channel::{ChannelFrame, Kind, greeting};
use insula_proto::{Call, Done, Failed, Outcome, Reply, Request};
use insula_sandbox::mux::Mux;
use insula_spec::machine::{GuestPlan, card};
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::event::PollFd;
use rustix::mount::MountPropagationFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::bridge::Bridge;
use crate::cards::{Devices, named};
use crate::error::{Context, Error, Result};
use crate::{bridge, furnish, machine};

const SIGCHLD: i32 = 17;

/// Serves as long as the machine runs.
pub(crate) fn serve(channel: OwnedFd) -> Result<Infallible> {
    Tenant::new(channel)?.serve()
}

#[derive(Debug)]
struct Tenant {
    mux: Mux,
    children: OwnedFd,
    devices: Devices,
}

impl Tenant {
    /// Greets the host.
    fn new(channel: OwnedFd) -> Result<Self> {
        let children = process::signal_descriptor(&[SIGCHLD]).context("signalfd", "for children")?;
        let mut mux = Mux::new(channel)?;
        mux.put(Kind::Hello, 0, &greeting(&machine::release()?));
        // Files of containers pass through here: what it does for memory to be freed must not wait for memory that
        // it frees itself, prctl(2).
        process::flush_io(true).context("prctl", "PR_SET_IO_FLUSHER")?;
        process::ignore_broken_pipes(true);
        Ok(Self { mux, children, devices: Devices::default() })
    }

    fn serve(mut self) -> Result<Infallible> {
        loop {
            let turn = self.mux.turn()?;
            if !turn.open {
                return Err(Error::NoChannel);
            }
            for frame in turn.frames {
                self.take(frame)?;
            }
            while process::take_signal(self.children.as_fd()).context("read", "a signal")?.is_some() {}
            while process::reap().context("waitpid", "for a child")?.is_some() {}
            self.wait()?;
        }
    }

    fn wait(&self) -> Result<()> {
        let mut polled: Vec<_> = self.mux.watched().collect();
        polled.push(PollFd::new(&self.children, rustix::event::PollFlags::IN));
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))
            .context("poll", "the channel")?;
        Ok(())
    }

    fn take(&mut self, frame: ChannelFrame) -> Result<()> {
        match frame.kind {
            Kind::Open => {
                // Its streams end, and the host hears of that. The others go on.
                if let Err(error) = self.open(frame.stream) {
                    eprintln!("insula-agent: a container: {}", insula_base::chain(&error));
                }
                Ok(())
            }
            Kind::Request => {
                let request: Request = insula_proto::decode(&frame.payload)?;
                let outcome = match self.request(request.call) {
                    Ok(()) => Outcome::Done(Done::default()),
                    Err(error) => failed(&error),
                };
                let reply = Reply { id: request.id, outcome: Some(outcome) };
                self.mux.put(Kind::Reply, 0, &insula_proto::encode(&reply)[4..]);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn request(&mut self, call: Option<Call>) -> Result<()> {
        let Some(Call::Furnish(call)) = call else { return Err(Error::NotHere) };
        let plan: GuestPlan = serde_json::from_slice(&call.plan)?;
        furnish::identity(&plan)?;
        self.devices = Devices::find(plan.spare)?;
        Ok(())
    }

    /// A container comes: a process for it, and both its streams.
    fn open(&mut self, number: u32) -> Result<()> {
        let ((channel, inside), (files, files_inside)) = (pair()?, pair()?);
        self.mux.open(number, channel)?;
        self.mux.open(number.wrapping_add(1), files)?;
        let devices = self.devices.clone();
        match process::clone(CloneFlags::NEWNS, None).context("clone3", "for a container")? {
            Clone::Child => {
                process::close_from_3_but(&[inside.as_fd(), files_inside.as_fd()]);
                if let Err(error) = attend(inside, files_inside, devices) {
                    eprintln!("insula-agent: a container: {}", insula_base::chain(&error));
                    process::exit_now(1)
                }
                process::exit_now(0)
            }
            // Its descriptors here go, so that its end is seen.
            Clone::Parent { .. } => Ok(()),
        }
    }
}

/// Serves one container until the host has let it go.
fn attend(channel: OwnedFd, files: OwnedFd, devices: Devices) -> Result<()> {
    process::flush_io(false).context("prctl", "PR_SET_IO_FLUSHER")?;
    process::unblock_signals().context("sigprocmask", "for a container")?;
    let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", alone).context("mount", "the namespace as private")?;
    bridge::clear_folder();
    let monitor = crate::start_monitor()?;
    let served = Bridge::for_container(channel, monitor, files, devices).and_then(Bridge::serve);
    bridge::clear_folder();
    served
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .context("socketpair", "for a container")
}

/// What a request comes to that could not be carried out.
pub(crate) fn failed(error: &Error) -> Outcome {
    Outcome::Failed(Failed { kind: error.kind().code(), message: insula_base::chain(error), exit_code: 0 })
}

impl Devices {
    /// The cards of a machine that has `count`, each known by what it is plugged into from now on: names and
    /// addresses change.
    fn find(count: usize) -> Result<Self> {
        let routes = Routes::open()?;
        let mut devices = Vec::new();
        for place in 0..count {
            let name = named(&card(place))?;
            let path = format!("/sys/class/net/{name}/device");
            devices.push(fs::read_link(&path).context("readlink", path)?);
            routes.rename(&name, &Self::waiting(place))?;
        }
        Ok(Self(devices))
    }
}
