//! Templates: a machine that was booted and saved right before it would have taken a container. Copies of it
//! go on from there, each in a private mapping of the template's memory.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use insula_host::cgroup::{Group, Layout, Purpose};
use insula_host::netlink::EmptyNamespace;
use insula_proto::{Call, Empty};
use insula_spec::machine::{TemplateFor, TemplateMade, TemplateOrder, card, spare_cards};
use insula_spec::plan::Resources;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::io::Errno;

use super::backend::{self, Begin, Files, Interface, Machine, Parts};
use super::console::Console;
use super::deadline::Deadline;
use super::link::Link;
use super::running::ready;
use super::sockets::Inside;
use crate::{Error, Result};

/// How long the boot may take: nobody waits for it.
const BOOT: Duration = Duration::from_secs(300);
/// Beside the guest's memory, for what runs it.
const OVERHEAD: u64 = 512 << 20;
/// Nobody.
const USER: u32 = 65534;
const PAGE: usize = 4096;

/// Makes a template in an empty folder, or gives up when `who` wants it has closed its end. For a process of one
/// thread whose umask is 0.
pub fn make(order: &TemplateOrder, folder: &Path, who: BorrowedFd<'_>) -> Result<TemplateMade> {
    let group = Group::create(&Layout::probe()?, &order.cgroup, Purpose::Limit)?;
    let made = make_in(order, folder, who, &group);
    let killed = group.kill();
    let removed = group.remove();
    let made = made?;
    killed?;
    removed?;
    Ok(made)
}

fn make_in(order: &TemplateOrder, folder: &Path, who: BorrowedFd<'_>, group: &Group) -> Result<TemplateMade> {
    group.limit(&Resources { memory: Some(order.machine.memory + OVERHEAD), ..Resources::default() })?;
    let (memory, state) = (memfd("memory")?, memfd("state")?);
    rustix::fs::ftruncate(&memory, order.machine.memory)
        .map_err(|source| Error::call("ftruncate", "a template's memory", source))?;
    // Nobody serves files yet, but a port that nobody is at is closed.
    let (_port, port_inside) = backend::pair()?;
    let (files, cards) = match order.whom {
        TemplateFor::Container => {
            (Files::Port(port_inside), order.interfaces + spare_cards(order.interfaces))
        }
        TemplateFor::Tenant => (Files::None, order.interfaces),
    };
    let mut machine = backend::start(Parts {
        plan: &order.machine,
        begin: Begin::BootIn(crate::duplicate(memory.as_fd())?),
        files,
        interfaces: interfaces(cards)?,
        sockets: order.machine.vsock.map(|_| Inside::alone()).transpose()?,
        uid: USER,
        gid: USER,
        entry: &group.entry()?,
    })?;
    let made = save(&mut machine, &state, who);
    machine.process.end();
    let made = made?;
    keep(&memory.into(), &folder.join(TemplateOrder::MEMORY))?;
    keep(&state.into(), &folder.join(TemplateOrder::STATE))?;
    Ok(made)
}

fn save(machine: &mut Machine, state: &OwnedFd, who: BorrowedFd<'_>) -> Result<TemplateMade> {
    let began = Instant::now();
    let mut boot = Boot {
        machine,
        who,
        link: Link::default(),
        console: Console::default(),
        deadline: Deadline::since(began, BOOT),
    };
    boot.until(|link| link.hello().is_some())?;
    let took = began.elapsed();
    // The monitor in the guest answers: it waits for a container. The agent of a tenant's machine refuses: it waits
    // for a request of another kind.
    let number = boot.link.ask(Call::Status(Empty {}));
    boot.until(|link| link.answer(number).is_some())?;
    let release = boot.link.hello().unwrap_or_default().to_owned();
    machine.control.save(state)?;
    Ok(TemplateMade { release, boot: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) })
}

/// A machine that boots.
struct Boot<'a> {
    machine: &'a Machine,
    who: BorrowedFd<'a>,
    link: Link,
    console: Console,
    deadline: Deadline,
}

impl Boot<'_> {
    fn until(&mut self, mut done: impl FnMut(&mut Link) -> bool) -> Result<()> {
        loop {
            self.console.read(self.machine.console.as_fd());
            let open = self.link.serve(self.machine.channel.as_fd())?;
            if done(&mut self.link) {
                return Ok(());
            }
            if !open || ready(self.machine.process.pidfd.as_fd()) {
                return Err(self.failed("the machine ended before it could be saved"));
            }
            self.wait()?;
        }
    }

    fn wait(&self) -> Result<()> {
        // Whatever the guest sends meanwhile.
        let time = self.deadline.left().ok_or_else(|| self.late())?;
        let channel = if self.link.has_more() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut polled = [
            PollFd::new(&self.machine.channel, channel),
            PollFd::new(&self.machine.console, PollFlags::IN),
            PollFd::new(&self.machine.process.pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(self.who, PollFlags::empty()),
        ];
        match rustix::event::poll(&mut polled, Some(&time)) {
            Ok(0) => Err(self.late()),
            Ok(_) if polled[3].revents().contains(PollFlags::HUP) => {
                Err(Error::Machine("nobody wants the template any more".to_owned()))
            }
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(source) => Err(Error::call("poll", "for a template", source)),
        }
    }

    fn late(&self) -> Error {
        self.failed(&format!("the guest's agent did not answer within {}", self.deadline))
    }

    fn failed(&self, what: &str) -> Error {
        Error::Machine(format!("{what}; its console ends with:\n{}", self.console.tail()))
    }
}

/// Interfaces that lead nowhere: taps of a namespace that nobody is in.
fn interfaces(count: usize) -> Result<Vec<Interface>> {
    let namespace = EmptyNamespace::new().map_err(insula_container::Error::from)?;
    let taps = namespace.inside(|| {
        (0..count)
            .map(|place| insula_sys::tun::open_tap(&format!("card{place}")))
            .collect::<Result<Vec<_>, _>>()
    });
    let taps = taps
        .map_err(insula_container::Error::from)?
        .map_err(|source| Error::call("ioctl TUNSETIFF", "/dev/net/tun", source))?;
    // Nobody sends yet.
    let interface = |(place, tap)| Interface::new(card(place), 0, tap).map(|(interface, _)| interface);
    taps.into_iter().enumerate().map(interface).collect()
}

fn memfd(name: &'static str) -> Result<OwnedFd> {
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)
        .map_err(|source| Error::call("memfd_create", "for a template", source))
}

/// Writes what is in memory to a new file, which has holes where there is nothing or zeros.
fn keep(from: &File, path: &Path) -> Result<()> {
    let failed = |call: &'static str| move |source| Error::File { call, path: path.to_owned(), source };
    let size = from.metadata().map_err(failed("fstat"))?.len();
    let to = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed("open"))?;
    to.set_len(size).map_err(failed("ftruncate"))?;
    let mut piece = vec![0; 64 * PAGE];
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(failed("lseek")(error.into())),
        };
        let count = piece.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
        from.read_exact_at(&mut piece[..count], at).map_err(failed("pread"))?;
        for (number, page) in piece[..count].chunks(PAGE).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                to.write_all_at(page, at + (number * PAGE) as u64).map_err(failed("pwrite"))?;
            }
        }
        at += count as u64;
    }
    to.sync_all().map_err(failed("fsync"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_empty_takes_no_place() {
        let memory = File::from(memfd("test").unwrap());
        memory.set_len(64 << 20).unwrap();
        memory.write_all_at(b"begin", 0).unwrap();
        memory.write_all_at(&[0; 1 << 20], 8 << 20).unwrap();
        memory.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let folder = std::env::temp_dir().join(format!("insula-template-{}", insula_base::random_hex(6)));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("memory");
        keep(&memory, &path).unwrap();
        let kept = std::fs::read(&path).unwrap();
        let blocks = std::fs::metadata(&path).unwrap().blocks();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(kept.len(), 64 << 20);
        assert!(kept.starts_with(b"begin\0") && kept.ends_with(b"\0end"));
        assert!(kept.iter().filter(|byte| **byte != 0).count() == 8 && blocks * 512 <= 64 << 10, "{blocks}");
    }
}
