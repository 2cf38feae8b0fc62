//! One machine in one process. What it is made of comes as one JSON document, its only argument;
//! everything that it uses, `/dev/kvm` too, is an open descriptor whose number the document names, so that
//! it runs in a jail without files and as nobody.
//!
//! `insula-vmm relay PORT SERVER` serves a guest's files through a port of its console, `insula_vmm_core::relay`.
//!
//! Exit codes: 0 when the guest switched the machine off, 1 when the machine could not be made or
//! failed, 2 when the document makes no sense, 3 when the guest asked for a reset.

mod document;
mod saved;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::Context;
use insula_vmm_core::jail::{self, Filter, Role};
use insula_vmm_core::virtio::{
    balloon::Balloon, block::Disk, console::Console, entropy::Entropy, fs::SharedFolder, image::Vacant,
    net::Card, vsock::Vsock,
};
use insula_vmm_core::{Host, Kernel, Machine, Memory, Running, Shape, Stop};

use document::{Begin, BootPart, Descriptors, Document, ImagePart, SnapshotPart};

const RESET: u8 = 3;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // Standard error is the console's other way out, which may be full: what it does not take is lost, and a
    // word about that would be lost with a panic.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .log_internal_errors(false)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let ["relay", port, server] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return match relay(port, server) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, &format!("{error:#}")),
        };
    }
    let [document] = arguments.as_slice() else {
        return fail(
            USAGE,
            "usage: insula-vmm JSON | insula-vmm relay PORT SERVER\n\nIt is started by insula; see docs/design/vmm.md.",
        );
    };
    let document = match serde_json::from_str(document) {
        Ok(document) => document,
        Err(error) => return fail(USAGE, &format!("the document: {error}")),
    };
    match run(document) {
        Ok(Stop::PowerOff) => ExitCode::SUCCESS,
        Ok(Stop::Reset) => ExitCode::from(RESET),
        Ok(Stop::Halt) => fail(1, "all processors halted"),
        Ok(Stop::Crash(why)) => fail(1, &why),
        Err(error) => fail(1, &format!("{error:#}")),
    }
}

fn fail(code: u8, message: &str) -> ExitCode {
    // Nobody may listen any more.
    let _ = writeln!(std::io::stderr(), "insula-vmm: {message}");
    ExitCode::from(code)
}

/// Serves a guest's files through a port: numbers of descriptors.
fn relay(port: &str, server: &str) -> anyhow::Result<()> {
    let take = |number: &str| -> anyhow::Result<UnixStream> {
        let number = number.parse().with_context(|| format!("the descriptor {number:?}"))?;
        Ok(UnixStream::from(
            insula_sys::inherit::take(number).with_context(|| format!("descriptor {number}"))?,
        ))
    };
    let (port, server) = (take(port)?, take(server)?);
    give_files_up()?;
    Ok(insula_vmm_core::relay::serve(port, server, Some(&Filter::of(Role::Relay)?))?)
}

fn run(document: Document) -> anyhow::Result<Stop> {
    let mut descriptors = Descriptors::of(&document)?;
    give_files_up()?;
    let console = Dropping(descriptors.take(document.console)?);
    rustix::io::ioctl_fionbio(&console.0, true).context("make the console's descriptor not wait")?;
    let host = Host::of(descriptors.take(document.kvm)?);
    let (mut running, control) = match &document.begin {
        Begin::Boot(part) => {
            let running = boot(host, console, &document, part, &mut descriptors)?;
            (running, part.saved.as_ref().map(|saved| descriptors.take(saved.control)).transpose()?)
        }
        Begin::Snapshot(part) => (go_on(host, console, &document, part, &mut descriptors)?, None),
    };
    // Last before the guest's first instruction.
    let role = if control.is_some() { Role::SavedDevices } else { Role::Devices };
    let filter = if document.sockets.is_some() { Filter::with_sockets(role) } else { Filter::of(role) };
    filter?.install()?;
    running.resume()?;
    match control {
        Some(control) => saved::run(&mut running, UnixStream::from(control)),
        None => Ok(running.run()?),
    }
}

fn boot(
    host: Host,
    console: Dropping,
    document: &Document,
    part: &BootPart,
    descriptors: &mut Descriptors,
) -> anyhow::Result<Running> {
    let memory = match &part.saved {
        Some(saved) => Memory::in_file(File::from(descriptors.take(saved.memory)?), document.memory)?,
        // Nobody maps it too.
        None if document.folders.is_empty() => Memory::own(document.memory)?,
        None => Memory::new(document.memory)?,
    };
    let mut machine =
        Machine::with_memory(host, document.cpus, memory, Box::new(console)).context("the machine")?;
    attach(&mut machine, document, descriptors)?;
    machine.confine(Filter::of(if part.saved.is_some() { Role::SavedProcessor } else { Role::Processor })?);
    let kernel = Kernel {
        image: File::from(descriptors.take(part.kernel)?),
        name: "the kernel".to_owned(),
        initrd: part.initramfs.map(|number| descriptors.take(number)).transpose()?.map(File::from),
        command_line: part.command_line.clone(),
    };
    Ok(machine.boot(&kernel)?)
}

fn go_on(
    host: Host,
    console: Dropping,
    document: &Document,
    part: &SnapshotPart,
    descriptors: &mut Descriptors,
) -> anyhow::Result<Running> {
    let (mut state, memory) = (descriptors.take(part.state)?.into(), descriptors.take(part.memory)?.into());
    let (mut machine, snapshot) = Machine::of_snapshot(host, &mut state, memory, Box::new(console))?;
    let (wanted, found) = (Shape { cpus: document.cpus, memory: document.memory }, snapshot.shape());
    if wanted != found {
        anyhow::bail!("the snapshot is of {found:?}, not of {wanted:?}");
    }
    attach(&mut machine, document, descriptors)?;
    machine.confine(Filter::of(Role::Processor)?);
    Ok(machine.restore(&snapshot)?)
}

/// Before anything of a guest's is looked at.
fn give_files_up() -> anyhow::Result<()> {
    if !jail::give_files_up().context("the jail")? {
        tracing::warn!(
            "this kernel has no Landlock: a machine that is broken out of could open files of nobody's"
        );
    }
    Ok(())
}

/// In the order that the guest sees: disks, ports, folders, cards, entropy, balloon, sockets, the image.
fn attach(machine: &mut Machine, document: &Document, descriptors: &mut Descriptors) -> anyhow::Result<()> {
    for disk in &document.disks {
        let file = File::from(descriptors.take(disk.descriptor)?);
        machine.attach(Box::new(Disk::new(file, disk.access(), &disk.id)?))?;
    }
    let ports = document
        .ports
        .iter()
        .map(|port| Ok((port.name.clone(), UnixStream::from(descriptors.take(port.descriptor)?))));
    let ports: Vec<_> = ports.collect::<anyhow::Result<_>>()?;
    if !ports.is_empty() {
        machine.attach(Box::new(Console::new(ports)?))?;
    }
    for folder in &document.folders {
        let socket = UnixStream::from(descriptors.take(folder.descriptor)?);
        machine.attach(Box::new(SharedFolder::new(&folder.tag, socket)?))?;
    }
    for card in &document.cards {
        let (tap, rate) = (File::from(descriptors.take(card.descriptor)?), descriptors.take(card.rate)?);
        rustix::io::ioctl_fionbio(&tap, true).context("make a tap's descriptor not wait")?;
        rustix::io::ioctl_fionbio(&rate, true).context("make a card's control not wait")?;
        machine.attach(Box::new(Card::new(tap, card.address()?, card.mtu).limited(rate)?))?;
    }
    machine.attach(Box::new(Entropy))?;
    machine.attach(Box::new(Balloon::new()))?;
    if let Some(sockets) = &document.sockets {
        let listener = sockets.listener.map(|number| descriptors.take(number)).transpose()?;
        let broker = descriptors.take(sockets.broker)?;
        machine.attach(Box::new(Vsock::new(sockets.address, listener, broker)?))?;
    }
    if let Some(number) = document.dirty_rate {
        machine.tell_dirty_rate(descriptors.take(number)?);
    }
    match document.image {
        ImagePart::None => Ok(()),
        ImagePart::Vacant => Ok(machine.attach(Box::new(Vacant))?),
        ImagePart::File(number) => {
            Ok(machine.attach_image(File::from(descriptors.take(number)?)).context("the image")?)
        }
    }
}

/// A console whose reader may be slow: what it does not take at once is lost.
struct Dropping(OwnedFd);

impl Write for Dropping {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = rustix::io::write(&self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for Dropping {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Dropping({})", self.0.as_raw_fd())
    }
}
