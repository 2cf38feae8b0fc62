//! Hostile guests: an input is a program for the driver of a device, which writes registers, rings and
//! descriptors as it likes, well and badly.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use insula_vmm_core::relay::Exchange;
use insula_vmm_core::virtio::balloon::Balloon;
use insula_vmm_core::virtio::block::{Access, Disk};
use insula_vmm_core::virtio::console::Console;
use insula_vmm_core::virtio::entropy::Entropy;
use insula_vmm_core::virtio::fs::SharedFolder;
use insula_vmm_core::virtio::image::Image;
use insula_vmm_core::virtio::net::Card;
use insula_vmm_core::virtio::vsock::Vsock;
use insula_vmm_core::virtio::{Device, Unplugged};
use insula_vmm_core::{Memory, Ports};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use vm_memory::{Bytes, GuestAddress};

const MEMORY: u64 = 1 << 20;
/// Beyond it buffers may lie; below are the rings, three pages a queue.
const BUFFERS: u64 = 0x8_0000;
const PAGE: u64 = 4096;
/// Steps of one program: what is longer only takes more time.
const STEPS: usize = 400;
const ACKNOWLEDGED: u32 = 3;
const FEATURES_OK: u32 = 8;
const DRIVER_OK: u32 = 4;
/// Of what a disk holds that must not change.
const MARK: u8 = 0xa5;
const DISK: u64 = 64 << 10;

/// What a step does; its operands follow.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum Step {
    /// Features (one of them more or less), and the size of all queues.
    SetUp = 0,
    WriteRegister = 1,
    Read = 2,
    Write = 3,
    Store = 4,
    Request = 5,
    Notify = 6,
    Offer = 7,
    Ready = 8,
    PeerSends = 9,
    PeerTakes = 10,
    SaveAndRestore = 11,
}

const WRITABLE: u8 = 2;
const INDIRECT: u8 = 4;
const ANYWHERE: u8 = 8;
const LONG: u8 = 16;
const ASTRAY: u8 = 32;

/// Bytes of a program; beyond its end there are zeros.
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let count = N.min(self.0.len());
        bytes[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        bytes
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    /// Within the memory, most of the time.
    fn address(&mut self) -> u64 {
        u64::from(self.word()) % (MEMORY + PAGE)
    }

    fn piece(&mut self, length: usize) -> &[u8] {
        let (piece, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        piece
    }
}

/// A driver, and what is at the host's side of its device.
struct Driver {
    device: Unplugged,
    peers: Vec<UnixStream>,
    /// Who connects the guest to programs of the host: every other time.
    broker: Option<OwnedFd>,
    /// Where the next descriptors go, and how many requests were offered, for each queue.
    rings: Vec<(u16, u16)>,
    size: u16,
}

impl Driver {
    fn new(device: Box<dyn Device>, peers: Vec<UnixStream>) -> anyhow::Result<Self> {
        let device = Unplugged::new(device, Memory::new(MEMORY)?)?;
        for peer in &peers {
            peer.set_nonblocking(true)?;
        }
        let rings = vec![(0, 0); device.queues()];
        Ok(Self { device, peers, broker: None, rings, size: 1 })
    }

    fn run(&mut self, data: &[u8]) {
        self.steps(data);
        // Whatever was done to it, a driver that begins anew finds it in order.
        self.set_up(0, 8);
        assert_eq!(self.register(0x70), ACKNOWLEDGED | FEATURES_OK | DRIVER_OK, "it does not start again");
    }

    fn steps(&mut self, data: &[u8]) {
        let mut program = Program(data);
        for _ in 0..STEPS {
            if program.0.is_empty() {
                break;
            }
            self.step(&mut program);
            self.connect();
            assert_eq!(self.register(0), 0x7472_6976, "the device is not itself any more");
        }
    }

    fn step(&mut self, program: &mut Program<'_>) {
        let step = program.byte() % 12;
        let queue = |byte: u8, all: usize| usize::from(byte) % (all + 1);
        match step {
            s if s == Step::SetUp as u8 => {
                let [toggled, exponent] = program.bytes();
                self.set_up(toggled, u32::from(exponent % 9));
            }
            s if s == Step::WriteRegister as u8 => {
                let offset = program.byte();
                self.set(u64::from(offset) & !3, program.word());
            }
            s if s == Step::Read as u8 => {
                let (offset, width) = (program.short() % 4096, program.byte() % 9);
                self.device.read(offset.into(), &mut [0; 8][..width.into()]);
            }
            s if s == Step::Write as u8 => {
                let (offset, width) = (program.short() % 4096, program.byte() % 9);
                self.device.write(offset.into(), &program.bytes::<8>()[..width.into()]);
            }
            s if s == Step::Store as u8 => {
                let (address, length) = (program.address(), program.byte());
                // What lies beyond the memory is nowhere.
                let _ = self.device.ram().write_slice(program.piece(length.into()), GuestAddress(address));
            }
            s if s == Step::Request as u8 => self.request(program),
            s if s == Step::Notify as u8 => {
                self.device.notify(queue(program.byte(), self.device.queues()));
            }
            s if s == Step::Offer as u8 => {
                let queue = queue(program.byte(), self.device.queues());
                let index = program.short();
                self.store(avail(queue) + 2, &index.to_le_bytes());
                self.device.notify(queue);
            }
            s if s == Step::Ready as u8 => {
                let _ = self.device.ready(queue(program.byte(), self.device.sources()));
            }
            s if s == Step::PeerSends as u8 => {
                let [number, value] = program.bytes();
                let bytes = vec![value; program.short().into()];
                if let Some(mut peer) = self.peers.get(usize::from(number)) {
                    // One that does not take it has enough.
                    let _ = peer.write(&bytes);
                    let _ = self.device.ready(number.into());
                }
            }
            s if s == Step::PeerTakes as u8 => {
                let number = usize::from(program.byte());
                if let Some(mut peer) = self.peers.get(number) {
                    let _ = peer.read(&mut vec![0; 65536]);
                    let _ = self.device.ready(number);
                }
            }
            _ => {
                // What cannot be saved says so.
                let _ = self.device.save_and_restore();
            }
        }
    }

    /// Answers what the device asks its broker: its connections are peers from then on.
    fn connect(&mut self) {
        let Some(broker) = &self.broker else { return };
        let mut question = [0; 12];
        while let Ok((_, 12)) = recv(broker, &mut question, RecvFlags::DONTWAIT) {
            let pair = UnixStream::pair().ok().filter(|_| question[8] % 2 == 0);
            for end in pair.iter().flat_map(|(one, other)| [one, other]) {
                let _ = end.set_nonblocking(true);
            }
            let sent: Vec<_> = pair.iter().map(|(theirs, _)| theirs.as_fd()).collect();
            let _ = insula_sys::socket::send(broker.as_fd(), &question[..8], &sent);
            self.peers.extend(pair.map(|(_, ours)| ours));
            let _ = self.device.ready(0);
        }
    }

    /// As the specification has it (1.2, 3.1.1), but for the features.
    fn set_up(&mut self, toggled: u8, exponent: u32) {
        self.set(0x70, 0);
        self.set(0x70, ACKNOWLEDGED);
        for page in 0..2 {
            self.set(0x14, page);
            let mut features = self.register(0x10);
            if toggled != 0 && u32::from(toggled) / 32 % 2 == page {
                features ^= 1 << (toggled % 32);
            }
            self.set(0x24, page);
            self.set(0x20, features);
        }
        self.set(0x70, ACKNOWLEDGED | FEATURES_OK);
        self.size = 1 << exponent;
        for queue in 0..self.device.queues() {
            self.set(0x30, queue as u32);
            self.set(0x38, self.size.into());
            for (register, address) in
                [(0x80, table(queue)), (0x90, avail(queue)), (0xa0, avail(queue) + PAGE)]
            {
                self.set(register, address as u32);
                self.set(register + 4, 0);
            }
            self.store(avail(queue), &[0; 4]);
            self.store(avail(queue) + PAGE, &[0; 4]);
            self.set(0x44, 1);
        }
        self.rings.fill((0, 0));
        self.set(0x70, ACKNOWLEDGED | FEATURES_OK | DRIVER_OK);
    }

    /// Some buffers, one after the other, in a queue that is told of.
    fn request(&mut self, program: &mut Program<'_>) {
        let [queue, count] = program.bytes();
        let queue = usize::from(queue) % self.device.queues();
        let (mut at, offered) = self.rings[queue];
        let (head, count) = (at % self.size, 1 + count % 6);
        for left in (0..count).rev() {
            let kind = program.byte();
            let address =
                if kind & ANYWHERE == 0 { program.address() } else { u64::from_le_bytes(program.bytes()) };
            let length = if kind & LONG == 0 { program.short().into() } else { program.word() };
            let next = if kind & ASTRAY == 0 { (at + 1) % self.size } else { program.short() };
            let flags = u16::from(left > 0) | u16::from(kind & (WRITABLE | INDIRECT));
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&address.to_le_bytes());
            descriptor[8..12].copy_from_slice(&length.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&next.to_le_bytes());
            self.store(table(queue) + u64::from(at % self.size) * 16, &descriptor);
            at = at.wrapping_add(1);
        }
        self.store(avail(queue) + 4 + u64::from(offered % self.size) * 2, &head.to_le_bytes());
        let offered = offered.wrapping_add(1);
        self.store(avail(queue) + 2, &offered.to_le_bytes());
        self.rings[queue] = (at, offered);
        self.device.notify(queue);
    }

    fn register(&mut self, offset: u64) -> u32 {
        let mut value = [0; 4];
        self.device.read(offset, &mut value);
        u32::from_le_bytes(value)
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    fn store(&self, address: u64, bytes: &[u8]) {
        // A queue that is none has its rings beyond the memory.
        let _ = self.device.ram().write_slice(bytes, GuestAddress(address));
    }
}

fn table(queue: usize) -> u64 {
    queue as u64 * 3 * PAGE
}

fn avail(queue: usize) -> u64 {
    table(queue) + PAGE
}

/// Runs `data` against what `make` gives.
fn drive(data: &[u8], make: impl FnOnce() -> anyhow::Result<Driver>) -> Driver {
    let mut driver = make().unwrap_or_else(|error| panic!("no device to fuzz: {error:#}"));
    driver.run(data);
    driver
}

/// A disk: what is read-only stays as it is, and no disk grows.
pub(crate) fn disk(data: &[u8]) {
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let file = image().unwrap_or_else(|error| panic!("no disk to fuzz: {error:#}"));
        drive(data, || Driver::new(Box::new(Disk::new(file.try_clone()?, access, "fuzz")?), Vec::new()));
        let mut content = vec![0; DISK as usize + 1];
        let length = std::os::unix::fs::FileExt::read_at(&file, &mut content, 0).unwrap_or(0);
        assert_eq!(length as u64, DISK, "a disk has another length");
        let changed = content[..length].iter().any(|byte| *byte != MARK);
        assert!(access == Access::ReadWrite || !changed, "a read-only disk was written to");
    }
}

fn image() -> anyhow::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("insula-fuzz", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(&[MARK; DISK as usize])?;
    Ok(file)
}

/// A network card, whose tap is a socket of packets. It may send one bit a second, so that what is over the first
/// burst waits, until the other end of its control says otherwise.
pub(crate) fn card(data: &[u8]) {
    drive(data, || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let ((tap, peer), (inside, control)) = (pair()?, pair()?);
        rustix::io::write(&control, &1u64.to_le_bytes())?;
        let card = Card::new(File::from(tap), [2, 0, 0, 0, 0, 1], 1500).limited(inside)?;
        // Reads and writes are those of a stream. Nobody is at the timer's other end.
        let (timer, _) = UnixStream::pair()?;
        Driver::new(Box::new(card), vec![UnixStream::from(peer), timer, UnixStream::from(control)])
    });
}

/// A console of two ports.
pub(crate) fn console(data: &[u8]) {
    drive(data, || {
        let (one, other) = (UnixStream::pair()?, UnixStream::pair()?);
        let console = Console::new([("one".to_owned(), one.0), ("other".to_owned(), other.0)])?;
        Driver::new(Box::new(console), vec![one.1, other.1])
    });
}

/// Sockets to the host, two programs of which have said where they want to; more are connected when the guest asks.
pub(crate) fn sockets(data: &[u8]) {
    drive(data, sockets_driver);
}

fn sockets_driver() -> anyhow::Result<Driver> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("vsock");
    let listener = UnixListener::bind(&path)?;
    let mut peers = Vec::new();
    for port in [5000, 5001] {
        let mut peer = UnixStream::connect(&path)?;
        writeln!(peer, "CONNECT {port}")?;
        peers.push(peer);
    }
    let (broker, inside) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&broker, true)?;
    let mut driver = Driver::new(Box::new(Vsock::new(3, Some(listener.into()), inside)?), peers)?;
    driver.broker = Some(broker);
    Ok(driver)
}

/// A balloon: whatever is put into it or reported, no more than the guest's memory is touched.
pub(crate) fn balloon(data: &[u8]) {
    drive(data, || Driver::new(Box::new(Balloon::new()), Vec::new()));
}

/// The device of a file in the guest's memory.
pub(crate) fn mapped_image(data: &[u8]) {
    drive(data, || Driver::new(Box::new(Image::new(4 << 30, 2 << 20)), Vec::new()));
}

/// The source of entropy.
pub(crate) fn entropy(data: &[u8]) {
    drive(data, || Driver::new(Box::new(Entropy), Vec::new()));
}

/// A shared folder, whose server takes what it is told and works nothing off.
pub(crate) fn folder(data: &[u8]) {
    let (ours, theirs) = UnixStream::pair().unwrap_or_else(|error| panic!("no sockets to fuzz: {error}"));
    let server = std::thread::spawn(move || serve_nothing(theirs));
    drop(drive(data, || Driver::new(Box::new(SharedFolder::new("share", ours)?), Vec::new())));
    // It ends with the device.
    assert!(server.join().is_ok());
}

/// Answers those requests of the vhost-user protocol that have an answer.
fn serve_nothing(mut socket: UnixStream) {
    const GET_FEATURES: u32 = 1;
    const GET_VRING_BASE: u32 = 11;
    const ANSWER: u32 = 1 | 4;
    let mut head = [0; 12];
    while socket.read_exact(&mut head).is_ok() {
        let [request, _, size] =
            [0, 4, 8].map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        let mut body = vec![0; size as usize];
        if socket.read_exact(&mut body).is_err() {
            return;
        }
        let answer = match request {
            // VIRTIO_F_VERSION_1
            GET_FEATURES => (1u64 << 32).to_le_bytes().to_vec(),
            GET_VRING_BASE => body,
            _ => continue,
        };
        let words = [request, ANSWER, answer.len() as u32];
        let message: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).chain(answer).collect();
        if socket.write_all(&message).is_err() {
            return;
        }
    }
}

/// Serial line, keyboard controller, clock, power: pairs of accesses.
pub(crate) fn ports(data: &[u8]) {
    // Where something answers, and beside it.
    const NEAR: [u16; 5] = [0x3f8, 0x60, 0x70, 0x600, 0x5ff];
    let console = Box::new(std::io::sink());
    let ports = Ports::new(console).unwrap_or_else(|error| panic!("no ports to fuzz: {error}"));
    let mut program = Program(data);
    for _ in 0..STEPS * 10 {
        if program.0.is_empty() {
            break;
        }
        let [kind, place, width] = program.bytes();
        let port = match NEAR.get(usize::from(kind) / 2 % 8) {
            Some(base) => base + u16::from(place % 8),
            None => program.short(),
        };
        let width = usize::from(width % 9);
        if kind & 1 == 0 {
            ports.read(port, &mut [0; 8][..width]);
        } else {
            ports.write(port, &program.bytes::<8>()[..width]);
        }
    }
    // An end is one that a guest can ask for.
    use insula_vmm_core::Stop;
    assert!(matches!(ports.stop(), None | Some(Stop::PowerOff | Stop::Reset)));
}

/// What carries messages between a guest and a server of files; both send what they like.
pub(crate) fn relay(data: &[u8]) {
    let mut exchange = Exchange::new().unwrap_or_else(|error| panic!("no relay to fuzz: {error}"));
    let mut program = Program(data);
    for _ in 0..STEPS {
        if program.0.is_empty() {
            return;
        }
        let went = match program.byte() % 4 {
            0 => {
                let length = program.short();
                if exchange.listens() {
                    exchange.hear(program.piece(length.into()));
                }
                exchange.ask().map(drop)
            }
            1 => {
                let (address, length) = (u64::from(program.word()) % (16 << 20), program.byte());
                // What lies beyond the memory is nowhere.
                let _ = exchange.ram().write_slice(program.piece(length.into()), GuestAddress(address));
                Ok(())
            }
            2 => exchange.take_answers(),
            _ => {
                exchange.sent(program.short().into());
                Ok(())
            }
        };
        assert!(exchange.under_way() <= 32 && exchange.waiting() <= (200 << 10));
        assert!(exchange.outbound().len() <= (1 << 20) + (200 << 10));
        if went.is_err() {
            return;
        }
    }
}

/// Programs that do what devices are for.
pub(crate) mod seeds {
    use super::{BUFFERS, INDIRECT, Step, WRITABLE};

    fn set_up() -> Vec<u8> {
        vec![Step::SetUp as u8, 0, 5]
    }

    fn store(address: u64, bytes: &[u8]) -> Vec<u8> {
        let place = (address as u32).to_le_bytes();
        [&[Step::Store as u8], &place[..], &[bytes.len() as u8], bytes].concat()
    }

    /// Buffers: what they are, where, and how long.
    fn request(queue: u8, buffers: &[(u8, u64, u16)]) -> Vec<u8> {
        let mut bytes = vec![Step::Request as u8, queue, buffers.len() as u8 - 1];
        for (kind, address, length) in buffers {
            bytes.push(*kind);
            bytes.extend((*address as u32).to_le_bytes());
            bytes.extend(length.to_le_bytes());
        }
        bytes
    }

    fn disk_request(operation: u32, sector: u64, data: (u8, u64, u16)) -> Vec<u8> {
        let header = [&operation.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let outcome = (WRITABLE, BUFFERS + 64, 1);
        [store(BUFFERS, &header), request(0, &[(0, BUFFERS, 16), data, outcome])].concat()
    }

    pub(crate) fn disks() -> Vec<Vec<u8>> {
        let data = BUFFERS + 4096;
        let range = [&3u64.to_le_bytes()[..], &2u32.to_le_bytes(), &[0; 4]].concat();
        let operations = [
            disk_request(0, 1, (WRITABLE, data, 1024)),
            disk_request(1, 7, (0, data, 512)),
            disk_request(8, 0, (WRITABLE, data, 20)),
            [store(data, &range), disk_request(11, 0, (0, data, 16))].concat(),
            disk_request(4, 0, (0, data, 0)),
        ];
        let all = operations.concat();
        operations.into_iter().chain([all]).map(|bytes| [set_up(), bytes].concat()).collect()
    }

    pub(crate) fn cards() -> Vec<Vec<u8>> {
        let mut bytes = set_up();
        bytes.extend(request(0, &[(WRITABLE, BUFFERS, 2048)]));
        bytes.extend([Step::PeerSends as u8, 0, 7, 100, 0]);
        bytes.extend(request(1, &[(0, BUFFERS, 12), (0, BUFFERS + 4096, 1000)]));
        bytes.extend([Step::PeerTakes as u8, 0, Step::SaveAndRestore as u8]);
        // More than may go at once, then another rate, and the timer.
        let mut waits = set_up();
        for _ in 0..3 {
            waits.extend(request(1, &[(0, BUFFERS, 12), (0, BUFFERS, 40_000)]));
        }
        waits.extend([Step::PeerSends as u8, 2, 0, 8, 0, Step::Ready as u8, 1, Step::SaveAndRestore as u8]);
        vec![bytes, waits, indirect()]
    }

    pub(crate) fn consoles() -> Vec<Vec<u8>> {
        let mut bytes = set_up();
        let control = |port: u8, event: u8| {
            let message = [port, 0, 0, 0, event, 0, 1, 0];
            [store(BUFFERS, &message), request(3, &[(0, BUFFERS, 8)])].concat()
        };
        for _ in 0..4 {
            bytes.extend(request(2, &[(WRITABLE, BUFFERS + 4096, 64)]));
        }
        for (port, event) in [(0, 0), (1, 3), (1, 6), (2, 3), (2, 6)] {
            bytes.extend(control(port, event));
        }
        bytes.extend(request(4, &[(WRITABLE, BUFFERS + 8192, 500)]));
        bytes.extend([Step::PeerSends as u8, 0, 9, 200, 3]);
        bytes.extend(request(5, &[(0, BUFFERS, 4000)]));
        bytes.extend([Step::PeerTakes as u8, 0, Step::SaveAndRestore as u8, Step::Ready as u8, 1]);
        vec![bytes, indirect()]
    }

    pub(crate) fn balloons() -> Vec<Vec<u8>> {
        let page = BUFFERS + 4096;
        let number = ((page >> 12) as u32).to_le_bytes();
        let reports = request(2, &[(WRITABLE, page, 8192), (WRITABLE, page + 16384, 4096)]);
        let inflates = [store(BUFFERS, &number), request(0, &[(0, BUFFERS, 4)])].concat();
        vec![[set_up(), reports, inflates.clone()].concat(), [set_up(), inflates].concat(), indirect()]
    }

    /// A packet of the guest's: its ports, what it says, and its flags.
    fn packet(ports: (u32, u32), operation: u16, flags: u32, length: u16) -> Vec<u8> {
        let addresses = [3u64.to_le_bytes(), 2u64.to_le_bytes()].concat();
        let words = [ports.0, ports.1, length.into(), 1 | u32::from(operation) << 16, flags, 1 << 16, 0];
        let head = words.iter().fold(addresses, |head, word| [&head[..], &word.to_le_bytes()].concat());
        let data = (0, BUFFERS + 4096, length);
        let buffers = [(0, BUFFERS, 44), data];
        [store(BUFFERS, &head), request(1, if length == 0 { &buffers[..1] } else { &buffers })].concat()
    }

    pub(crate) fn sockets() -> Vec<Vec<u8>> {
        let mut begin = set_up();
        for number in 0..12 {
            begin.extend(request(0, &[(WRITABLE, BUFFERS + 8192 + number * 4096, 4096)]));
        }
        let sends = |peer: u8| vec![Step::PeerSends as u8, peer, 7, 100, 3];
        let takes = |peer: u8| vec![Step::PeerTakes as u8, peer];
        // Those of the host have the first ports that there are; the third peer is whom the guest asks for.
        let theirs = [(5000, 1 << 30), (5001, (1 << 30) + 1)];
        let ours = (700, 90);
        let talk = [
            packet(theirs[0], 2, 0, 0),
            packet(theirs[1], 3, 0, 0),
            packet(ours, 1, 0, 0),
            packet(theirs[0], 5, 0, 1000),
            packet(ours, 5, 0, 900),
            sends(0),
            sends(2),
            takes(0),
            takes(2),
            packet(ours, 7, 0, 0),
            packet(ours, 4, 2, 0),
            packet(theirs[0], 4, 3, 0),
        ];
        let event = [request(2, &[(WRITABLE, BUFFERS, 8)]), vec![Step::SaveAndRestore as u8]].concat();
        let notified = vec![Step::Notify as u8, 2];
        vec![
            [begin.clone(), talk.concat()].concat(),
            [begin.clone(), packet((1, 91), 1, 0, 0), packet((1, 91), 99, 0, 0)].concat(),
            [begin, packet(ours, 1, 0, 0), event, notified, packet(ours, 5, 0, 10)].concat(),
            indirect(),
        ]
    }

    pub(crate) fn others() -> Vec<Vec<u8>> {
        vec![[set_up(), request(0, &[(WRITABLE, BUFFERS, 300)])].concat(), indirect()]
    }

    /// A table of its own with one descriptor after which it comes again.
    fn indirect() -> Vec<u8> {
        let circle = [&BUFFERS.to_le_bytes()[..], &16u32.to_le_bytes(), &[3, 0, 0, 0]].concat();
        let table = BUFFERS + 8192;
        [set_up(), store(table, &circle), request(0, &[(INDIRECT, table, 0xfff0)])].concat()
    }

    pub(crate) fn ports() -> Vec<Vec<u8>> {
        // A letter, the divisor, a loop back; an index and its register.
        vec![
            vec![1, 0, 1, b'x', 0, 0, 0, 0, 0, 0, 0, 1, 3, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 4, 1, 0x10],
            vec![5, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0, 4, 1, 1, 7, 0, 1, 0x34],
        ]
    }

    pub(crate) fn relays() -> Vec<Vec<u8>> {
        let say = |bytes: &[u8]| [&[0], &(bytes.len() as u16).to_le_bytes()[..], bytes].concat();
        let put = |address: u32, bytes: &[u8]| {
            [&[1], &address.to_le_bytes()[..], &[bytes.len() as u8], bytes].concat()
        };
        let mut question = [104u32.to_le_bytes(), 26u32.to_le_bytes()].concat();
        question.resize(104, 0);
        // The answer lies in the first slot, behind the question; the ring of what was returned is the sixth page.
        let answer = 6 * 4096 + ((128 << 10) + 4096);
        let length = 80u32.to_le_bytes();
        let returned = put(5 * 4096, &[0, 0, 1, 0, 0, 0, 0, 0, 80, 0, 0, 0]);
        vec![[say(&question), put(answer, &length), returned, vec![2, 3, 80, 0]].concat()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the driver reads of the ring of what was returned.
    fn returned(driver: &Driver, queue: usize) -> u16 {
        driver.device.ram().read_obj(GuestAddress(avail(queue) + PAGE + 2)).unwrap()
    }

    #[test]
    fn what_a_mutation_begins_with_is_done() {
        let file = image().unwrap();
        let disk = Disk::new(file.try_clone().unwrap(), Access::ReadWrite, "fuzz").unwrap();
        let mut driver = Driver::new(Box::new(disk), Vec::new()).unwrap();
        driver.steps(seeds::disks().last().unwrap());
        assert_eq!((returned(&driver, 0), driver.register(0x70)), (5, 15));
        let mut content = [0; 2048];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut content, 3 * 512).unwrap();
        // Two sectors were discarded, and one was overwritten with what was there.
        assert!(content[..1024].iter().all(|byte| *byte == 0));
        assert!(content[1024..].iter().all(|byte| *byte == MARK));

        let (port, peer) = UnixStream::pair().unwrap();
        let console = Console::new([("one".to_owned(), port)]).unwrap();
        let mut driver = Driver::new(Box::new(console), vec![peer]).unwrap();
        driver.steps(&seeds::consoles()[0]);
        assert_eq!([2, 3, 4, 5].map(|queue| returned(&driver, queue)), [3, 5, 1, 1]);

        let mut driver = sockets_driver().unwrap();
        driver.steps(&seeds::sockets()[0]);
        assert_eq!(driver.peers.len(), 3, "the guest was connected to whom it wanted");
        assert_eq!((returned(&driver, 1), driver.register(0x70)), (8, 15));
        let taken = returned(&driver, 0);
        // Two requests, an agreement, data of two, credit, the end of one.
        assert!((7..=12).contains(&taken), "{taken}");

        let mut driver = Driver::new(Box::new(Entropy), Vec::new()).unwrap();
        driver.steps(&seeds::others()[0]);
        assert_eq!((returned(&driver, 0), driver.register(0x70)), (1, 15));
        // A chain that goes in circles: the device needs a reset (64).
        driver.steps(&seeds::others()[1]);
        assert_eq!((returned(&driver, 0), driver.register(0x70)), (0, 79));
    }
}
