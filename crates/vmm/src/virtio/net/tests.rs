//! A card whose tap is a socket of packets, by a clock that the test sets.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use vm_memory::{Bytes, GuestAddress};

use super::Card;
use super::limit::monotonic;
use crate::jail::{Filter, Role};
use crate::memory::Memory;
use crate::virtio::{Progress, Unplugged};

const READY: u32 = 1 | 2 | 8;
const DRIVER_OK: u32 = 4;
const SEND: usize = 1;
const TIMER: usize = 1;
const CONTROL: usize = 2;
const SIZE: u16 = 256;
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x5000;
const FRAME: u64 = 1000;
const BURST: u64 = 64 << 10;
/// A million bytes a second.
const RATE: u64 = 8_000_000;

thread_local! {
    static CLOCK: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

struct Sender {
    device: Unplugged,
    tap: OwnedFd,
    control: OwnedFd,
}

impl Sender {
    fn new(rate: u64) -> Self {
        Self::by(rate, || CLOCK.get())
    }

    fn by(rate: u64, now: fn() -> Duration) -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let ((tap, theirs), (control, inside)) = (pair(), pair());
        rustix::io::write(&control, &rate.to_le_bytes()).unwrap();
        let card = Card::new(File::from(theirs), [2, 0, 0, 0, 0, 1], 1500);
        let card = card.limited_by(inside, now).unwrap();
        let device = Unplugged::new(Box::new(card), Memory::new(1 << 20).unwrap()).unwrap();
        let mut this = Self { device, tap, control };
        this.begin();
        this
    }

    fn set(&mut self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    /// As a driver does; the whole ring is offered, all of it frames of one size.
    fn begin(&mut self) {
        self.set(0x70, 0);
        self.set(0x24, 1);
        self.set(0x20, 1);
        self.set(0x70, READY);
        self.set(0x30, SEND as u32);
        self.set(0x38, SIZE.into());
        for (register, address) in [(0x80, TABLE), (0x90, AVAILABLE), (0xa0, USED)] {
            self.set(register, address as u32);
        }
        self.set(0x44, 1);
        let ram = self.device.ram();
        for number in 0..SIZE {
            let descriptor = GuestAddress(TABLE + u64::from(number) * 16);
            ram.write_obj(0x8000u64, descriptor).unwrap();
            ram.write_obj(12 + FRAME, GuestAddress(descriptor.0 + 8)).unwrap();
            ram.write_obj(number, GuestAddress(AVAILABLE + 4 + u64::from(number) * 2)).unwrap();
        }
        ram.write_obj(SIZE, GuestAddress(AVAILABLE + 2)).unwrap();
        ram.write_obj(0u16, GuestAddress(USED + 2)).unwrap();
        self.set(0x70, READY | DRIVER_OK);
    }

    /// Bytes of frames that came out of the tap.
    fn taken(&self) -> u64 {
        let mut piece = [0; 4096];
        let mut taken = 0;
        while let Ok((length, _)) = recv(&self.tap, &mut piece, RecvFlags::empty()) {
            taken += length as u64 - 12;
        }
        taken
    }

    /// Frames that the driver has back.
    fn returned(&self) -> u16 {
        self.device.ram().read_obj(GuestAddress(USED + 2)).unwrap()
    }
}

#[test]
fn a_card_sends_no_more_than_its_rate() {
    let mut sender = Sender::new(RATE);
    sender.device.notify(SEND);
    let mut sent = sender.taken();
    assert_eq!(sent, (BURST / FRAME + 1) * FRAME, "the burst");
    for millisecond in 1..=100 {
        CLOCK.set(Duration::from_millis(millisecond));
        // A guest that does not wait gains nothing by it.
        sender.device.notify(SEND);
        sender.device.ready(TIMER);
        sent += sender.taken();
        let most = BURST + FRAME + RATE / 8 * millisecond / 1000;
        assert!((most - 2 * FRAME..=most).contains(&sent), "{sent} bytes after {millisecond} ms");
    }
    assert_eq!(u64::from(sender.returned()) * FRAME, sent);
}

/// What a frame begins with that is to be cut by the hundred bytes, of whose head no byte is said to be one.
fn cut(kind: u8, head: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = vec![0; 12 + FRAME as usize];
    (bytes[1], bytes[4]) = (kind, 100);
    head.iter().for_each(|(at, byte)| bytes[12 + at] = *byte);
    bytes
}

#[test]
fn a_frame_that_is_yet_to_be_cut_counts_with_the_heads_of_its_pieces() {
    let plain = cut(1, &[(12, 8), (14, 0x45), (23, 6), (46, 5 << 4)]);
    let options = cut(1, &[(12, 8), (14, 0x4f), (23, 6), (86, 15 << 4)]);
    let tagged = cut(1, &[(12, 0x81), (16, 8), (18, 0x45), (27, 6), (50, 5 << 4)]);
    let longer = cut(4, &[(12, 0x86), (13, 0xdd), (20, 60), (54, 6), (55, 1), (82, 8 << 4)]);
    let strange = cut(1, &[(12, 0x88), (13, 0x47), (14, 0x45), (23, 6), (46, 5 << 4)]);
    let not_tcp = cut(3, &[(12, 8), (14, 0x45), (23, 17)]);
    for (frame, head) in
        [(plain, 54), (options, 134), (tagged, 58), (longer, 102), (strange, FRAME / 2), (not_tcp, FRAME / 2)]
    {
        let mut sender = Sender::new(RATE);
        sender.device.ram().write_slice(&frame, GuestAddress(0x8000)).unwrap();
        sender.device.notify(SEND);
        let wire = FRAME + (FRAME - head).div_ceil(100).saturating_sub(1) * head;
        assert_eq!(sender.taken(), (BURST / wire + 1) * FRAME, "a head of {head}");
    }
}

#[test]
fn a_driver_that_fills_the_queue_as_fast_as_it_is_worked_off_has_one_round() {
    let mut sender = Sender::new(0);
    assert_eq!(sender.device.notify(SEND), Progress::More);
    assert_eq!(sender.returned(), SIZE);
    // The next round finds nothing.
    assert_eq!(sender.device.notify(SEND), Progress::Waits);
}

#[test]
fn a_frame_that_is_not_in_the_guests_memory_is_lost() {
    let mut sender = Sender::new(RATE);
    // As of a page of the image, behind the memory.
    sender.device.ram().write_obj(4u64 << 30, GuestAddress(TABLE)).unwrap();
    sender.device.notify(SEND);
    let sent = BURST / FRAME + 1;
    assert_eq!((u64::from(sender.returned()), sender.taken()), (1 + sent, sent * FRAME));
}

#[test]
fn a_driver_that_begins_anew_gains_nothing() {
    let mut sender = Sender::new(RATE);
    sender.device.notify(SEND);
    assert!(sender.taken() > BURST);
    for _ in 0..3 {
        sender.begin();
        sender.device.notify(SEND);
        assert_eq!((sender.taken(), sender.returned()), (0, 0));
    }
}

#[test]
fn a_rate_is_lifted_and_set_while_frames_wait() {
    let mut sender = Sender::new(RATE);
    sender.device.notify(SEND);
    let first = sender.returned();
    assert!(first < SIZE);
    rustix::io::write(&sender.control, &0u64.to_le_bytes()).unwrap();
    sender.device.ready(CONTROL);
    assert_eq!(sender.returned(), SIZE, "nothing holds them back");
    // A tap that is full loses frames.
    sender.taken();
    rustix::io::write(&sender.control, &RATE.to_le_bytes()).unwrap();
    sender.begin();
    sender.device.notify(SEND);
    assert_eq!(sender.returned(), first, "the burst again");
}

#[test]
fn what_it_calls_passes_the_filter_of_devices() {
    // What does not pass ends this process.
    std::thread::spawn(|| {
        let mut sender = Sender::by(1, monotonic);
        insula_sys::process::no_new_privileges().unwrap();
        Filter::of(Role::Devices).unwrap().install().unwrap();
        sender.device.notify(SEND);
        assert!(sender.returned() < SIZE);
        rustix::io::write(&sender.control, &0u64.to_le_bytes()).unwrap();
        sender.device.ready(CONTROL);
        assert_eq!(sender.returned(), SIZE);
        // Of a thread that ends: the memory is unmapped.
        drop(sender);
    })
    .join()
    .unwrap();
}
