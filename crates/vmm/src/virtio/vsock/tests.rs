//! A guest that is the test, between programs of the host that are the test too.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use proptest::prelude::*;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use vm_memory::{Bytes, GuestAddress};

use super::Vsock;
use super::connection::BUFFER;
use super::device::MOST;
use super::request::{HOST, Head, LENGTH, NO_RECEIVE, NO_SEND, NOTHING, STREAM, operation};
use crate::jail::{Filter, Role};
use crate::memory::Memory;
use crate::virtio::Unplugged;

const READY: u32 = 1 | 2 | 8;
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 64;
const SIZE: u16 = 256;
const RECEIVE: usize = 0;
const SEND: usize = 1;
const EVENTS: usize = 2;
const CID: u32 = 77;
/// Where what a queue's buffers hold lies: as much as the largest packet for each that is sent.
const BUFFERS: u64 = 1 << 20;
const LARGE: u64 = 128 << 10;
/// What the guest says that it can take, and its own port.
const TAKES: u32 = 1 << 16;
const PORT: u32 = 5000;

fn table(queue: usize) -> u64 {
    0x1000 + queue as u64 * 0x6000
}

fn available(queue: usize) -> u64 {
    table(queue) + 0x2000
}

fn used(queue: usize) -> u64 {
    table(queue) + 0x4000
}

struct Guest {
    device: Unplugged,
    broker: OwnedFd,
    socket: std::path::PathBuf,
    folder: tempfile::TempDir,
    offered: [u16; 3],
    seen: [u16; 3],
    sends: u64,
}

impl Guest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (broker, inside) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::io::ioctl_fionbio(&broker, true).unwrap();
        let device = Vsock::new(CID, Some(listener.into()), inside).unwrap();
        let device = Unplugged::new(Box::new(device), Memory::new(64 << 20).unwrap()).unwrap();
        let mut this = Self { device, broker, socket, folder, offered: [0; 3], seen: [0; 3], sends: 0 };
        this.begin();
        this
    }

    fn set(&mut self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    fn status(&mut self) -> u32 {
        let mut value = [0; 4];
        self.device.read(0x70, &mut value);
        u32::from_le_bytes(value)
    }

    fn begin(&mut self) {
        self.set(0x70, 0);
        self.set(0x24, 1);
        self.set(0x20, 1);
        self.set(0x70, READY);
        for queue in 0..3 {
            self.set(0x30, queue as u32);
            self.set(0x38, SIZE.into());
            for (register, address) in [(0x80, table(queue)), (0x90, available(queue)), (0xa0, used(queue))] {
                self.set(register, address as u32);
            }
            self.set(0x44, 1);
            self.put(available(queue) + 2, &0u16.to_le_bytes());
            self.put(used(queue) + 2, &0u16.to_le_bytes());
        }
        (self.offered, self.seen) = ([0; 3], [0; 3]);
        self.set(0x70, READY | DRIVER_OK);
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.device.ram().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.device.ram().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Puts one buffer into a queue, without a word about it.
    fn offer(&mut self, queue: usize, address: u64, length: u32, flags: u16) {
        let number = self.offered[queue];
        let slot = u64::from(number % SIZE);
        let descriptor =
            [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &[0; 2]].concat();
        self.put(table(queue) + slot * 16, &descriptor);
        self.put(available(queue) + 4 + slot * 2, &(slot as u16).to_le_bytes());
        self.offered[queue] = number.wrapping_add(1);
        self.put(available(queue) + 2, &self.offered[queue].to_le_bytes());
    }

    /// Takes so many packets, of pages.
    fn listen(&mut self, buffers: u16) {
        let waiting = self.offered[RECEIVE].wrapping_sub(u16::from_le_bytes(self.get(used(RECEIVE) + 2)));
        for _ in 0..buffers.min(SIZE - waiting) {
            let slot = u64::from(self.offered[RECEIVE] % SIZE);
            self.offer(RECEIVE, BUFFERS + slot * 4096, 4096, 2);
        }
        self.device.notify(RECEIVE);
    }

    /// Packets that have come.
    fn heard(&mut self) -> Vec<(Head, Vec<u8>)> {
        let mut packets = Vec::new();
        while self.seen[RECEIVE] != u16::from_le_bytes(self.get(used(RECEIVE) + 2)) {
            let entry = used(RECEIVE) + 4 + u64::from(self.seen[RECEIVE] % SIZE) * 8;
            let slot = u32::from_le_bytes(self.get(entry));
            let length = u32::from_le_bytes(self.get(entry + 4)) as usize;
            let place = BUFFERS + u64::from(slot) * 4096;
            let head = Head::parse(&self.get(place));
            let mut data = vec![0; length - LENGTH];
            self.device.ram().read_slice(&mut data, GuestAddress(place + LENGTH as u64)).unwrap();
            assert_eq!(data.len(), head.length as usize);
            packets.push((head, data));
            self.seen[RECEIVE] = self.seen[RECEIVE].wrapping_add(1);
        }
        packets
    }

    /// The one packet that has come.
    fn answer(&mut self) -> (Head, Vec<u8>) {
        let mut packets = self.heard();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    fn say(&mut self, head: Head, data: &[u8]) {
        self.whisper(head, data);
        self.device.notify(SEND);
    }

    /// Without a word about it.
    fn whisper(&mut self, head: Head, data: &[u8]) {
        let place = (32 << 20) + self.sends % 200 * LARGE;
        self.sends += 1;
        self.put(place, &[&head.bytes()[..], data].concat());
        self.offer(SEND, place, (LENGTH + data.len()) as u32, 0);
    }

    /// A packet of this guest's to a port of the host.
    fn packet(port: u32, operation: u16) -> Head {
        Head {
            source: CID.into(),
            destination: HOST,
            source_port: PORT,
            destination_port: port,
            kind: STREAM,
            operation,
            buffer: TAKES,
            ..Head::default()
        }
    }

    fn send(&mut self, port: u32, data: &[u8]) {
        self.say(Head { length: data.len() as u32, ..Self::packet(port, operation::DATA) }, data);
    }

    /// Until nothing new has happened: who has connected is looked at after that.
    fn stir(&mut self) {
        for _ in 0..3 {
            self.device.ready(0);
        }
    }

    /// The question to the broker.
    fn question(&self) -> Option<(u64, u32)> {
        let mut question = [0; 12];
        let (_, length) = recv(&self.broker, &mut question, RecvFlags::empty()).ok()?;
        assert_eq!(length, 12);
        let (number, port) = question.split_at(8);
        Some((u64::from_le_bytes(number.try_into().unwrap()), u32::from_le_bytes(port.try_into().unwrap())))
    }

    fn reply(&mut self, number: u64, socket: Option<&UnixStream>) {
        let sockets: Vec<_> = socket.iter().map(AsFd::as_fd).collect();
        insula_sys::socket::send(self.broker.as_fd(), &number.to_le_bytes(), &sockets).unwrap();
        self.stir();
    }

    /// A connection to port 90 that a program in the guest has made; the host's end.
    fn connected(&mut self) -> UnixStream {
        self.say(Self::packet(90, operation::REQUEST), &[]);
        let (number, port) = self.question().unwrap();
        assert_eq!(port, 90);
        let (ours, theirs) = pair();
        self.reply(number, Some(&theirs));
        let (head, _) = self.answer();
        assert_eq!(
            (head.operation, head.source_port, head.destination_port),
            (operation::RESPONSE, 90, PORT)
        );
        assert_eq!(head.buffer, BUFFER);
        ours
    }
}

/// Neither waits.
fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    for end in [&ours, &theirs] {
        end.set_nonblocking(true).unwrap();
    }
    (ours, theirs)
}

/// What is there.
fn read(socket: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = [0; 65536];
    loop {
        match socket.read(&mut piece) {
            Ok(0) => return all,
            Ok(count) => all.extend(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whether the other end sends no more.
fn ended(socket: &mut UnixStream) -> bool {
    matches!(socket.read(&mut [0]), Ok(0))
}

#[test]
fn a_program_of_the_host_talks_to_one_of_the_guest() {
    let mut guest = Guest::new();
    guest.listen(16);
    let mut host = UnixStream::connect(&guest.socket).unwrap();
    host.set_nonblocking(true).unwrap();
    host.write_all(b"CONN").unwrap();
    guest.stir();
    assert!(guest.heard().is_empty());
    host.write_all(b"ECT 5000\nfirst ").unwrap();
    guest.stir();
    let (head, _) = guest.answer();
    let port = 1 << 30;
    assert_eq!((head.source, head.destination, head.kind), (HOST, CID.into(), STREAM));
    assert_eq!((head.operation, head.source_port, head.destination_port), (operation::REQUEST, port, PORT));
    assert!(read(&mut host).is_empty(), "nobody has agreed");
    // It takes eight bytes.
    guest.say(Head { buffer: 8, ..Guest::packet(port, operation::RESPONSE) }, &[]);
    assert_eq!(read(&mut host), b"OK 1073741824\n");
    host.write_all(b"second").unwrap();
    guest.stir();
    let said: Vec<u8> = guest.heard().into_iter().flat_map(|(_, data)| data).collect();
    assert_eq!(said, b"first se", "no more than it takes");
    guest.say(Head { buffer: 8, forwarded: 6, ..Guest::packet(port, operation::CREDIT_UPDATE) }, &[]);
    assert_eq!(guest.answer().1, b"cond");
    guest.send(port, b"and back");
    assert_eq!(read(&mut host), b"and back");
    guest.say(Head { flags: NOTHING, ..Guest::packet(port, operation::SHUTDOWN) }, &[]);
    assert_eq!(guest.answer().0.operation, operation::RESET);
    assert!(ended(&mut host));
    // The next has another port.
    let mut next = UnixStream::connect(&guest.socket).unwrap();
    next.write_all(b"CONNECT 5000\n").unwrap();
    guest.stir();
    assert_eq!(guest.answer().0.source_port, port + 1);
    guest.say(Guest::packet(port + 1, operation::RESET), &[]);
    assert!(ended(&mut next), "nobody listens in the guest");
}

#[test]
fn who_cannot_be_understood_is_let_go() {
    let mut guest = Guest::new();
    guest.listen(4);
    for word in ["\n", "CONNECT\n", "CONNECT x\n", "CONNECT +1\n", "CONNECT 4294967296\n", &"C".repeat(40)] {
        let mut host = UnixStream::connect(&guest.socket).unwrap();
        host.write_all(word.as_bytes()).unwrap();
        guest.stir();
        assert!(matches!(host.read(&mut [0]), Ok(0) | Err(_)), "{word}");
    }
    assert!(guest.heard().is_empty());
    // Nor is the guest told of one who has gone before it could hear of him.
    for looked in [true, false] {
        let mut guest = Guest::new();
        let mut host = UnixStream::connect(&guest.socket).unwrap();
        host.write_all(b"CONNECT 5000\n").unwrap();
        if looked {
            guest.stir();
        }
        drop(host);
        guest.stir();
        guest.listen(4);
        assert!(guest.heard().is_empty());
    }
}

#[test]
fn who_leaves_in_the_middle_of_his_word_takes_no_place() {
    let mut guest = Guest::new();
    guest.listen(4);
    for _ in 0..=MOST {
        let mut host = UnixStream::connect(&guest.socket).unwrap();
        host.write_all(b"CONN").unwrap();
        drop(host);
        guest.stir();
    }
    // Who only says no more is not waited for either.
    let mut host = UnixStream::connect(&guest.socket).unwrap();
    host.write_all(b"CONN").unwrap();
    guest.stir();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    guest.stir();
    // Half a word was never read.
    let end = host.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    let mut host = UnixStream::connect(&guest.socket).unwrap();
    host.write_all(b"CONNECT 5000\n").unwrap();
    guest.stir();
    assert_eq!(guest.answer().0.operation, operation::REQUEST);
}

#[test]
fn a_guest_that_wants_to_hear_nothing_is_told_who_has_gone() {
    let mut guest = Guest::new();
    guest.listen(16);
    let mut host = guest.connected();
    guest.say(Head { flags: NO_RECEIVE, ..Guest::packet(90, operation::SHUTDOWN) }, &[]);
    host.write_all(b"to nobody").unwrap();
    guest.stir();
    assert!(guest.heard().is_empty());
    drop(host);
    guest.stir();
    let (head, _) = guest.answer();
    assert_eq!((head.operation, head.flags), (operation::SHUTDOWN, NOTHING));
}

#[test]
fn a_connection_that_the_guest_has_ended_says_no_more() {
    let mut guest = Guest::new();
    guest.listen(1);
    let _host = guest.connected();
    let (mut like, _other) = pair();
    let taken = std::iter::from_fn(|| like.write_all(&[9; 4096]).ok()).count();
    // Room is owed for what the socket takes, but the guest hears nothing; some more waits here.
    for _ in 0..taken + 4 {
        guest.send(90, &[9; 4096]);
    }
    guest.say(Head { flags: NOTHING, ..Guest::packet(90, operation::SHUTDOWN) }, &[]);
    guest.listen(16);
    assert_eq!(guest.answer().0.operation, operation::RESET);
}

#[test]
fn a_program_of_the_guest_talks_to_one_of_the_host() {
    let mut guest = Guest::new();
    guest.listen(16);
    guest.say(Guest::packet(91, operation::REQUEST), &[]);
    let (number, _) = guest.question().unwrap();
    guest.reply(number, None);
    let (head, _) = guest.answer();
    assert_eq!((head.operation, head.source_port, head.destination_port), (operation::RESET, 91, PORT));
    let mut host = guest.connected();
    guest.send(90, b"question");
    assert_eq!(read(&mut host), b"question");
    host.write_all(b"answer").unwrap();
    // The host says no more, but hears what the guest has to say.
    host.shutdown(std::net::Shutdown::Write).unwrap();
    guest.stir();
    let heard = guest.heard();
    assert_eq!(heard[0].1, b"answer");
    assert_eq!((heard[1].0.operation, heard[1].0.flags, heard.len()), (operation::SHUTDOWN, NO_SEND, 2));
    guest.send(90, b"more");
    assert_eq!(read(&mut host), b"more");
    guest.say(Head { flags: NO_SEND, ..Guest::packet(90, operation::SHUTDOWN) }, &[]);
    assert!(ended(&mut host));
    drop(host);
    guest.stir();
    let (head, _) = guest.answer();
    assert_eq!((head.operation, head.flags), (operation::SHUTDOWN, NOTHING));
    guest.say(Guest::packet(90, operation::RESET), &[]);
    assert!(guest.heard().is_empty());
}

#[test]
fn who_does_not_read_is_told_of_as_deaf() {
    let mut guest = Guest::new();
    guest.listen(16);
    let mut host = guest.connected();
    host.write_all(b"enough").unwrap();
    host.shutdown(std::net::Shutdown::Read).unwrap();
    guest.send(90, b"more");
    let heard = guest.heard();
    assert!(heard.iter().any(|(_, data)| data == b"enough"), "what he said comes all the same");
    let last = heard.last().unwrap().0;
    assert_eq!((last.operation, last.flags), (operation::SHUTDOWN, NO_RECEIVE));
}

#[test]
fn no_more_is_kept_than_was_granted() {
    let mut guest = Guest::new();
    guest.listen(64);
    let mut host = guest.connected();
    let piece = vec![7; 4096];
    // The socket's own buffer, then ours.
    let (mut sent, mut told) = (0u32, 0u32);
    loop {
        for (head, _) in guest.heard() {
            assert_eq!(head.operation, operation::CREDIT_UPDATE);
            told = head.forwarded;
        }
        if sent - told + piece.len() as u32 > BUFFER {
            break;
        }
        guest.send(90, &piece);
        sent += piece.len() as u32;
    }
    assert!(sent > BUFFER && sent <= told + BUFFER, "{sent} {told}");
    // What was granted arrives when the host reads at last, and more may be sent then.
    let first = read(&mut host).len() as u32;
    assert!(first >= told && first < sent, "{first}");
    guest.stir();
    assert_eq!(first + read(&mut host).len() as u32, sent);
    let (head, _) = guest.heard().pop().unwrap();
    assert_eq!((head.operation, head.forwarded), (operation::CREDIT_UPDATE, sent));
    // A guest that sends more than that loses the connection.
    for _ in 0..2 * (sent / 4096) {
        guest.send(90, &piece);
    }
    let heard = guest.heard();
    let reset = heard.iter().position(|(head, _)| head.operation == operation::RESET);
    assert!(reset.is_some(), "{heard:?}");
    // What it had sent before is lost with it.
    read(&mut host);
    assert!(ended(&mut host));
    assert_eq!(guest.status() & NEEDS_RESET, 0);
}

#[test]
fn what_the_guest_sent_before_it_closed_arrives() {
    let mut guest = Guest::new();
    guest.listen(64);
    let mut host = guest.connected();
    let mut sent = 0;
    let mut told = 0;
    while sent - told + 4096 <= BUFFER {
        guest.send(90, &[9; 4096]);
        sent += 4096;
        told = guest.heard().last().map_or(told, |(head, _)| head.forwarded);
    }
    guest.say(Head { flags: NOTHING, ..Guest::packet(90, operation::SHUTDOWN) }, &[]);
    assert_eq!(guest.answer().0.operation, operation::RESET, "it need not wait");
    let mut got = 0;
    while !ended(&mut host) {
        got += 1 + read(&mut host).len() as u32;
        guest.stir();
    }
    assert_eq!(got, sent);
}

#[test]
fn there_are_no_more_connections_than_that() {
    let mut guest = Guest::new();
    guest.listen(SIZE);
    let mut asked = 0;
    for port in 0..MOST as u32 + 20 {
        guest.say(Guest::packet(port, operation::REQUEST), &[]);
        asked += usize::from(guest.question().is_some());
    }
    assert_eq!(asked, MOST);
    let heard = guest.heard();
    assert!(heard.iter().all(|(head, _)| head.operation == operation::RESET) && heard.len() == 20);
    // Who comes from the host is one too many as well.
    let mut host = UnixStream::connect(&guest.socket).unwrap();
    guest.stir();
    assert!(ended(&mut host));
    // One that goes makes room.
    guest.say(Guest::packet(7, operation::RESET), &[]);
    guest.say(Guest::packet(7, operation::REQUEST), &[]);
    assert!(guest.question().is_some());
}

#[test]
fn who_does_not_take_refusals_is_not_heard() {
    let mut guest = Guest::new();
    for number in 0..400 {
        guest.whisper(Guest::packet(number, operation::DATA), &[]);
        guest.device.notify(SEND);
        if number >= 255 {
            // The ring is full of packets that were heard, up to a point.
            let heard = u16::from_le_bytes(guest.get(used(SEND) + 2));
            assert!(heard <= 256, "{heard}");
        }
    }
    let mut refused = 0;
    while refused < 400 {
        guest.listen(100);
        let heard = guest.heard();
        assert!(!heard.is_empty(), "{refused}");
        refused += heard.len();
    }
    assert_eq!(u16::from_le_bytes(guest.get(used(SEND) + 2)), 400);
}

#[test]
fn packets_against_the_rules_are_refused() {
    let mut guest = Guest::new();
    guest.listen(SIZE);
    // Who is not there, another type, another host.
    let seqpacket = Head { kind: 2, ..Guest::packet(90, operation::REQUEST) };
    let elsewhere = Head { destination: 5, ..Guest::packet(90, operation::REQUEST) };
    for packet in [Guest::packet(90, operation::DATA), Guest::packet(90, 99), seqpacket, elsewhere] {
        guest.say(packet, &[]);
        let (head, _) = guest.answer();
        assert_eq!(
            (head.operation, head.kind, head.source),
            (operation::RESET, packet.kind, packet.destination)
        );
        assert_eq!((head.source_port, head.destination_port), (90, PORT));
    }
    // Under another name, and what is a refusal itself.
    guest.say(Head { source: 3, ..Guest::packet(90, operation::REQUEST) }, &[]);
    guest.say(Guest::packet(90, operation::RESET), &[]);
    assert!(guest.heard().is_empty() && guest.question().is_none());
    // A second request, an agreement that nobody asked for, more data than there are: that connection is lost.
    let more = Head { length: 9, ..Guest::packet(90, operation::DATA) };
    let huge = Head { length: u32::MAX, ..Guest::packet(90, operation::DATA) };
    let request = Guest::packet(90, operation::REQUEST);
    for packet in [request, Guest::packet(90, operation::RESPONSE), Guest::packet(90, 0), more, huge] {
        let mut host = guest.connected();
        guest.say(packet, b"data");
        assert_eq!(guest.answer().0.operation, operation::RESET, "{packet:?}");
        assert!(ended(&mut host));
    }
    assert_eq!(guest.status() & NEEDS_RESET, 0);
    // A packet from pages that are not the guest's memory: the head is.
    let mut host = guest.connected();
    let place = 40 << 20;
    guest.put(place, &Guest::packet(90, operation::DATA).bytes());
    let slot = guest.offered[SEND] % SIZE;
    guest.offer(SEND, place, LENGTH as u32, 1);
    let next = (slot + 1) % SIZE;
    guest.put(table(SEND) + u64::from(slot) * 16 + 14, &next.to_le_bytes());
    let beyond = [&(1u64 << 40).to_le_bytes()[..], &4096u32.to_le_bytes(), &[0; 4]].concat();
    guest.put(table(SEND) + u64::from(next) * 16, &beyond);
    guest.device.notify(SEND);
    assert_eq!(guest.answer().0.operation, operation::RESET);
    assert!(ended(&mut host));
    assert_eq!(guest.status() & NEEDS_RESET, 0);
    // Half a head breaks the device.
    guest.offer(SEND, place, 40, 0);
    guest.device.notify(SEND);
    assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn a_guest_that_goes_on_from_a_snapshot_forgets_its_connections() {
    let mut guest = Guest::new();
    guest.listen(16);
    let mut host = guest.connected();
    let place = 50 << 20;
    guest.offer(EVENTS, place, 4, 2);
    guest.put(place, &[1; 4]);
    guest.device.notify(EVENTS);
    assert_eq!(guest.get::<2>(used(EVENTS) + 2), [0; 2], "nothing has happened");
    guest.device.save_and_restore().unwrap();
    guest.device.notify(EVENTS);
    assert_eq!(guest.get::<2>(used(EVENTS) + 2), [1, 0]);
    assert_eq!(guest.get::<4>(place), [0; 4]);
    assert!(ended(&mut host));
    // Once.
    guest.offer(EVENTS, place, 4, 2);
    guest.device.notify(EVENTS);
    assert_eq!(guest.get::<2>(used(EVENTS) + 2), [1, 0]);
    let mut address = [0; 8];
    guest.device.read(0x100, &mut address);
    assert_eq!(u64::from_le_bytes(address), u64::from(CID));
}

#[test]
fn a_copy_hears_of_its_address_before_all_else() {
    let mut guest = Guest::new();
    guest.listen(16);
    // One that is there before the copy looks for the first time.
    let listener = UnixListener::bind(guest.folder.path().join("another")).unwrap();
    let mut host = UnixStream::connect(guest.folder.path().join("another")).unwrap();
    host.write_all(b"CONNECT 5000\n").unwrap();
    let (_broker, inside) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let device = Vsock::new(CID + 1, Some(listener.into()), inside).unwrap();
    guest.device.save_and_restore_in(Box::new(device)).unwrap();
    for queue in [RECEIVE, SEND, EVENTS] {
        guest.device.notify(queue);
    }
    guest.stir();
    assert!(guest.heard().is_empty());
    guest.offer(EVENTS, 50 << 20, 4, 2);
    guest.device.notify(EVENTS);
    let mut address = [0; 8];
    guest.device.read(0x100, &mut address);
    assert_eq!(u64::from_le_bytes(address), u64::from(CID + 1));
    let (head, _) = guest.answer();
    assert_eq!((head.operation, head.destination), (operation::REQUEST, u64::from(CID + 1)));
    // The guest answers by the name that it had: who asked comes again, and the guest has no answer.
    let answer = Guest::packet(head.source_port, operation::RESPONSE);
    guest.say(answer, &[]);
    assert!(guest.heard().is_empty() && ended(&mut host));
}

#[test]
fn addresses_that_are_no_guests_are_refused() {
    for (address, fine) in [(0, false), (2, false), (3, true), (u32::MAX - 1, true), (u32::MAX, false)] {
        let (broker, _) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        assert_eq!(Vsock::new(address, None, broker).is_ok(), fine, "{address}");
    }
}

#[test]
fn what_it_calls_passes_the_filter_of_devices() {
    // What does not pass ends this process.
    std::thread::spawn(|| {
        let mut guest = Guest::new();
        guest.listen(32);
        guest.say(Guest::packet(90, operation::REQUEST), &[]);
        let (number, _) = guest.question().unwrap();
        let (mut ours, theirs) = pair();
        let mut host = UnixStream::connect(&guest.socket).unwrap();
        host.write_all(b"CONNECT 5000\nhello").unwrap();
        insula_sys::socket::send(guest.broker.as_fd(), &number.to_le_bytes(), &[theirs.as_fd()]).unwrap();
        insula_sys::process::no_new_privileges().unwrap();
        Filter::with_sockets(Role::Devices).unwrap().install().unwrap();
        guest.stir();
        guest.send(90, b"x");
        assert_eq!(ours.read(&mut [0; 9]).unwrap(), 1);
        guest.say(Guest::packet(1 << 30, operation::RESPONSE), &[]);
        guest.say(Head { flags: NO_SEND, ..Guest::packet(90, operation::SHUTDOWN) }, &[]);
        assert_eq!(ours.read(&mut [0; 9]).unwrap(), 0);
        guest.say(Head { flags: NOTHING, ..Guest::packet(90, operation::SHUTDOWN) }, &[]);
        let operations: Vec<_> = guest.heard().iter().map(|(head, _)| head.operation).collect();
        assert!(operations.contains(&operation::DATA), "{operations:?}");
        // It is removed by somebody who may.
        let Guest { folder, .. } = guest;
        folder
    })
    .join()
    .unwrap();
}

/// What happens next to a connection.
#[derive(Debug, Clone, Copy)]
enum Step {
    HostWrites(u16),
    HostReads(u16),
    GuestSends(u16),
    GuestPasses(u16),
    GuestListens(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..5000u16).prop_map(Step::HostWrites),
        (1..9000u16).prop_map(Step::HostReads),
        (1..5000u16).prop_map(Step::GuestSends),
        (1..5000u16).prop_map(Step::GuestPasses),
        (1..5u8).prop_map(Step::GuestListens),
    ]
}

/// Bytes by their place in a stream.
fn bytes(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|place| (place % 251) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the order: each side gets what the other has sent, in order, and neither more than it takes.
    #[test]
    fn streams_arrive_as_they_were_sent(takes in 1u32..20_000, steps in prop::collection::vec(step(), 1..120)) {
        let mut guest = Guest::new();
        guest.listen(1);
        let mut host = guest.connected();
        let mut waiting = VecDeque::new();
        let (mut to_guest, mut at_guest, mut passed) = (0usize, 0usize, 0usize);
        let (mut to_host, mut at_host, mut granted) = (0usize, 0usize, BUFFER as usize);
        for step in steps {
            let credit = Head { buffer: takes, forwarded: passed as u32, ..Guest::packet(90, operation::CREDIT_UPDATE) };
            match step {
                Step::HostWrites(count) => {
                    to_guest += host.write(&bytes(to_guest, count.into())).unwrap_or(0);
                    guest.stir();
                }
                Step::HostReads(count) => {
                    let mut piece = vec![0; count.into()];
                    let count = host.read(&mut piece).unwrap_or(0);
                    prop_assert_eq!(&piece[..count], &bytes(at_host, count)[..]);
                    at_host += count;
                    guest.stir();
                }
                Step::GuestSends(count) => {
                    let count = usize::from(count).min(granted - to_host);
                    let head = Head { operation: operation::DATA, length: count as u32, ..credit };
                    guest.say(head, &bytes(to_host, count));
                    to_host += count;
                }
                Step::GuestPasses(count) => {
                    let count = usize::from(count).min(waiting.len());
                    let taken: Vec<u8> = waiting.drain(..count).collect();
                    prop_assert_eq!(&taken, &bytes(passed, count));
                    passed += count;
                    guest.say(Head { forwarded: passed as u32, ..credit }, &[]);
                }
                Step::GuestListens(count) => guest.listen(count.into()),
            }
            for (head, data) in guest.heard() {
                prop_assert!(matches!(head.operation, operation::DATA | operation::CREDIT_UPDATE), "{:?}", head);
                granted = head.forwarded as usize + BUFFER as usize;
                at_guest += data.len();
                waiting.extend(data);
                // The first words were of a guest that takes more.
                prop_assert!(at_guest - passed <= (takes.max(TAKES)) as usize);
            }
            prop_assert!(at_guest <= to_guest && at_host <= to_host);
        }
    }
}
