//! What the guest sees of a card, and how frames go to and from its tap.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde_json::Value;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU,
    VIRTIO_NET_HDR_GSO_NONE,
};
use virtio_queue::Reader;

use super::limit::{Limit, monotonic};
use crate::error::{Error, Result};
use crate::virtio::{Device, Kind, Progress, Queues, ROUND};

const RECEIVE: usize = 0;
const SEND: usize = 1;
/// The first of what is watched.
const TAP: usize = 0;
/// The header before each frame, as the tap has it too.
const HEADER: usize = 12;
/// A frame of 64 KiB that is yet to be cut in pieces, and its header.
const LARGEST: usize = 65_550 + HEADER;

/// A card on a tap that was opened without packet information and with the 12 byte virtio header
/// (`IFF_NO_PI`, `IFF_VNET_HDR`, `TUNSETVNETHDRSZ`), and does not wait.
#[derive(Debug)]
pub struct Card {
    tap: File,
    address: [u8; 6],
    mtu: u16,
    limit: Option<Limit>,
    /// A frame that came when the guest had no buffer for it.
    held: Option<usize>,
    incoming: Box<[u8]>,
    outgoing: Box<[u8]>,
}

impl Card {
    #[must_use]
    pub fn new(tap: File, address: [u8; 6], mtu: u16) -> Self {
        let buffer = || vec![0; LARGEST].into_boxed_slice();
        Self { tap, address, mtu, limit: None, held: None, incoming: buffer(), outgoing: buffer() }
    }

    /// The same that sends no more than `control` says, a socket of messages that does not wait: each is a rate in
    /// bits a second, eight bytes, little endian; 0 is as much as it can, as before the first.
    pub fn limited(self, control: OwnedFd) -> Result<Self> {
        self.limited_by(control, monotonic)
    }

    pub(super) fn limited_by(self, control: OwnedFd, now: fn() -> std::time::Duration) -> Result<Self> {
        Ok(Self { limit: Some(Limit::new(control, now)?), ..self })
    }

    /// Frames from the tap into the guest's buffers, until one of them has no more.
    fn receive(&mut self, queues: &mut Queues<'_>) -> Result<Progress> {
        let memory = queues.memory();
        let mut delivered = 0;
        while delivered < ROUND {
            let Some(length) = self.next_frame()? else { break };
            let Some(chain) = queues.pop(RECEIVE)? else {
                self.held = Some(length);
                break;
            };
            let head = chain.head_index();
            let mut writer = chain.writer(memory).map_err(|error| misuse(&error.to_string()))?;
            // A frame that does not fit is lost, as the specification has it.
            let written = if writer.available_bytes() >= length {
                writer.write(&self.incoming[..length]).map_err(|error| misuse(&error.to_string()))?
            } else {
                0
            };
            queues.done(RECEIVE, head, written as u32)?;
            delivered += 1;
        }
        if delivered > 0 {
            queues.signal(RECEIVE)?;
        }
        Ok(Progress::after(delivered))
    }

    /// The length of the frame in `incoming`: the one held back, or the tap's next.
    fn next_frame(&mut self) -> Result<Option<usize>> {
        if let Some(length) = self.held.take() {
            return Ok(Some(length));
        }
        match self.tap.read(&mut self.incoming) {
            Ok(0) => Ok(None),
            Ok(length) => {
                // The number of buffers that the frame takes; the tap leaves it out.
                if let Some(count) = self.incoming.get_mut(10..HEADER) {
                    count.copy_from_slice(&1u16.to_le_bytes());
                }
                Ok(Some(length))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The interface is down, which ends when somebody takes it up again.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(error) => Err(Error::call("read", "a tap", error)),
        }
    }

    /// The guest's frames to the tap, until there is none, the next one has to wait, or the round is over.
    fn send(&mut self, queues: &mut Queues<'_>) -> Result<Progress> {
        let memory = queues.memory();
        let mut returned: usize = 0;
        // Each round, so that whoever fills the queue without end still gets another rate.
        self.limit.iter_mut().for_each(Limit::refresh);
        while returned < ROUND {
            let Some(chain) = queues.pop(SEND)? else { break };
            let head = chain.head_index();
            // A frame of pages that are not the guest's own memory is lost, as one of a strange length is: a program may
            // have it sent from a file in that memory, and the card is not its alone.
            let reader = chain.reader(memory).ok();
            let length = reader.as_ref().map_or(0, Reader::available_bytes);
            if let Some(mut reader) = reader
                && (HEADER..=LARGEST).contains(&length)
            {
                let frame = &mut self.outgoing[..length];
                reader.read_exact(frame).map_err(|error| misuse(&error.to_string()))?;
                if let Some(limit) = &mut self.limit
                    && !limit.allows(on_the_wire(frame))?
                {
                    queues.unpop(SEND);
                    break;
                }
                // A tap that is full, down, or does not like the frame drops it, as any wire may.
                let _ = self.tap.write(&self.outgoing[..length]);
            }
            queues.done(SEND, head, 0)?;
            returned += 1;
        }
        if returned > 0 {
            queues.signal(SEND)?;
        }
        Ok(Progress::after(returned))
    }
}

impl Device for Card {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
        ]
        .iter()
        .fold(0, |features, bit| features | 1 << bit)
    }

    fn queues(&self) -> usize {
        2
    }

    /// `struct virtio_net_config` (specification 1.2, 5.1.4).
    fn configuration(&self) -> Vec<u8> {
        let mut space = vec![0; 12];
        space[..6].copy_from_slice(&self.address);
        space[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        space
    }

    /// The tap may make frames as large as the guest said that it takes.
    fn activate(&mut self, features: u64, _queues: &Queues<'_>) -> Result<()> {
        let offers = |bit: u32| features & (1 << bit) != 0;
        let mut offload = 0;
        if offers(VIRTIO_NET_F_GUEST_CSUM) {
            offload |= libc::TUN_F_CSUM;
            if offers(VIRTIO_NET_F_GUEST_TSO4) {
                offload |= libc::TUN_F_TSO4;
            }
            if offers(VIRTIO_NET_F_GUEST_TSO6) {
                offload |= libc::TUN_F_TSO6;
            }
        }
        set_offload(&self.tap, offload);
        // Nobody was told of what came before.
        self.limit.iter_mut().for_each(Limit::refresh);
        Ok(())
    }

    /// What was sent still counts.
    fn reset(&mut self) {
        self.held = None;
        set_offload(&self.tap, 0);
    }

    fn notified(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        match queue {
            RECEIVE => self.receive(queues),
            _ => self.send(queues),
        }
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let limit = self.limit.iter().flat_map(Limit::sources);
        std::iter::once(self.tap.as_fd()).chain(limit).collect()
    }

    fn ready(&mut self, source: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        if source == TAP {
            return self.receive(queues);
        }
        // The time has come, or there is another rate.
        self.send(queues)
    }

    fn save(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    fn restore(&mut self, _state: &Value) -> Result<()> {
        Ok(())
    }
}

/// Bytes that go out for a frame behind its header, which says into how many pieces it is yet to be cut: each has a
/// head of its own (specification 1.2, 5.1.6). The kernel goes by the frame's own heads and not by the length that is
/// said of them. Where these cannot be told, they count as what costs most: half of the frame.
fn on_the_wire(frame: &[u8]) -> usize {
    let (said, frame) = frame.split_at(HEADER.min(frame.len()));
    let piece = said.get(4..6).map_or(0, |two| usize::from(two[0]) | usize::from(two[1]) << 8);
    let kind = said.get(1).copied().unwrap_or(0);
    if u32::from(kind) == VIRTIO_NET_HDR_GSO_NONE || piece == 0 {
        return frame.len();
    }
    let head = head(frame).unwrap_or(frame.len() / 2);
    let pieces = frame.len().saturating_sub(head).div_ceil(piece);
    frame.len() + pieces.saturating_sub(1) * head
}

/// How long the heads of Ethernet, IP and TCP are, tags and options included.
fn head(frame: &[u8]) -> Option<usize> {
    const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
    const TCP: u8 = 6;
    /// Options of each hop, a route, options of the destination.
    const EXTENSIONS: [u8; 3] = [0, 43, 60];
    let mut at = 12;
    while frame.get(at..at + 2).is_some_and(|kind| TAGS.iter().any(|tag| kind == tag)) {
        at += 4;
    }
    let kind = frame.get(at..at + 2)?;
    at += 2;
    let mut next = match kind {
        [0x08, 0x00] => {
            let (length, next) = (frame.get(at)? & 15, *frame.get(at + 9)?);
            at += usize::from(length) * 4;
            next
        }
        [0x86, 0xdd] => {
            at += 40;
            *frame.get(at - 34)?
        }
        _ => return None,
    };
    while kind == [0x86, 0xdd] && EXTENSIONS.contains(&next) {
        next = *frame.get(at)?;
        at += (usize::from(*frame.get(at + 1)?) + 1) * 8;
    }
    let words = frame.get(at + 12).filter(|_| next == TCP)? >> 4;
    Some(at + usize::from(words) * 4)
}

fn set_offload(tap: &File, offload: libc::c_uint) {
    use std::os::fd::AsRawFd;
    // SAFETY: the argument is a number, not a pointer.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload)) };
    if result < 0 {
        // Frames then come in ordinary sizes with their checksums, which every guest takes.
        tracing::warn!(error = %io::Error::last_os_error(), "TUNSETOFFLOAD");
    }
}

fn misuse(why: &str) -> Error {
    Error::Guest { device: "network card", why: why.to_owned() }
}
