//! What the guest sees: its address, and packets of all connections in two queues.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde_json::Value;
use vm_memory::Bytes;

use super::backend::{Event, Host, Word, word};
use super::connection::{BUFFER, Connection, Pair, State};
use super::request::{HOST, Head, LENGTH, STREAM, operation};
use crate::error::{Error, Result};
use crate::memory::GuestRam;
use crate::virtio::{Chain, Device, Kind, Progress, Queues, ROUND};

const RECEIVE: usize = 0;
const SEND: usize = 1;
const EVENTS: usize = 2;
/// Connections at once, and who has connected and not said where.
pub(super) const MOST: usize = 256;
/// Refusals that the guest has not taken. With more of them nothing more is heard of it.
const MOST_RESETS: usize = 256;
/// What is moved at once: as much as the guest may send.
const PIECE: usize = BUFFER as usize;
/// The first port that who connects on the host gets: far from those that programs have.
const FIRST_PORT: u32 = 1 << 30;
/// `VIRTIO_VSOCK_OP_INVALID`
const INVALID: u16 = 0;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// The device, for one guest.
#[derive(Debug)]
pub struct Vsock {
    address: u64,
    host: Host,
    /// By numbers that are never given again.
    connections: BTreeMap<u64, Connection>,
    pairs: BTreeMap<Pair, u64>,
    /// Who has connected and not said where.
    callers: BTreeMap<u64, OwnedFd>,
    /// There may be more who have connected, and more answers of the broker's: they are told of once.
    calls: bool,
    answers: bool,
    next_id: u64,
    next_port: u32,
    /// Connections with something to say, each once.
    due: VecDeque<u64>,
    resets: VecDeque<Head>,
    /// The guest is to forget all connections.
    forgets: bool,
    piece: Box<[u8]>,
}

impl Vsock {
    /// A guest with this CID. Who connects to `listener` says `CONNECT port` and a line's end, and is connected to
    /// who listens in the guest; `broker` is a socket of messages that answers for the host's ports: a message is
    /// the number of a question in eight bytes and a port in four, little endian; its answer the number, and the
    /// connection with it, which does not wait, or no connection.
    pub fn new(address: u32, listener: Option<OwnedFd>, broker: OwnedFd) -> Result<Self> {
        if address <= HOST as u32 || address == u32::MAX {
            return Err(Error::Shape(format!("{address} is no address of a guest's sockets")));
        }
        Ok(Self {
            address: address.into(),
            host: Host::new(listener, broker)?,
            connections: BTreeMap::new(),
            pairs: BTreeMap::new(),
            callers: BTreeMap::new(),
            calls: false,
            answers: false,
            next_id: 0,
            next_port: FIRST_PORT,
            due: VecDeque::new(),
            resets: VecDeque::new(),
            forgets: false,
            piece: vec![0; PIECE].into_boxed_slice(),
        })
    }

    /// Everything that can be done now.
    fn serve(&mut self, queues: &mut Queues<'_>) -> Result<Progress> {
        self.tell(queues)?;
        let host = self.hear_host()?;
        // Refusals that are taken make room for what is heard, which has answers.
        let before = self.deliver(queues)?;
        let heard = self.hear_guest(queues)?;
        let after = self.deliver(queues)?;
        Ok(host.or(before).or(heard).or(after))
    }

    fn hear_host(&mut self) -> Result<Progress> {
        let (events, mut more) = self.host.events()?;
        for event in events {
            match event {
                Event::Call => self.calls = true,
                Event::Answer => self.answers = true,
                Event::Socket { id, writable, ended, gone } => {
                    if self.callers.contains_key(&id) {
                        self.hear_caller(id, ended);
                    }
                    self.stir(id, writable, gone);
                }
            }
        }
        more |= self.calls && self.accept();
        more |= self.answers && self.hear_broker();
        Ok(if more { Progress::More } else { Progress::Waits })
    }

    /// Whether there may be more who call, and can be heard now.
    fn accept(&mut self) -> bool {
        for _ in 0..ROUND {
            let socket = match self.host.accept() {
                Ok(Some(socket)) => socket,
                Ok(None) => {
                    self.calls = false;
                    return false;
                }
                // With the next that happens.
                Err(_) => return false,
            };
            // Who is one too many sees that it is closed.
            if let Some(id) = self.new_id()
                && self.host.watch(socket.as_fd(), id).is_ok()
            {
                self.callers.insert(id, socket);
            }
        }
        true
    }

    /// Whether there may be more answers.
    fn hear_broker(&mut self) -> bool {
        for _ in 0..ROUND {
            let Some((id, socket)) = self.host.answer() else {
                self.answers = false;
                return false;
            };
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if connection.state != State::Brokered {
                continue;
            }
            match socket.filter(|socket| self.host.watch(socket.as_fd(), id).is_ok()) {
                Some(socket) => {
                    connection.open(socket);
                    self.speak(id);
                }
                None => self.reset_connection(id),
            }
        }
        true
    }

    fn stir(&mut self, id: u64, writable: bool, gone: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.stir(writable, gone);
        match connection.state {
            State::Asked if connection.is_gone() => self.reset_connection(id),
            State::Draining if connection.is_drained() || connection.is_gone() => self.remove(id),
            _ => self.speak(id),
        }
    }

    /// Who has `ended` says no more than is there.
    fn hear_caller(&mut self, id: u64, ended: bool) {
        let Some(socket) = self.callers.get(&id) else { return };
        let port = match word(socket) {
            Word::None if !ended => return,
            Word::Connect(port) => Some(port),
            Word::None | Word::Wrong => None,
        };
        let Some(socket) = self.callers.remove(&id) else { return };
        // Who cannot be understood sees that it is closed.
        let Some(guest) = port else { return };
        let pair = Pair { host: self.free_port(guest), guest };
        self.pairs.insert(pair, id);
        self.connections.insert(id, Connection::to_guest(pair, socket));
        self.speak(id);
    }

    /// A port of the host's that no connection to this one of the guest's has.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            // More ports than connections: one of them is free.
            self.next_port = if host == u32::MAX - 1 { FIRST_PORT } else { host + 1 };
            if !self.pairs.contains_key(&Pair { host, guest }) {
                return host;
            }
        }
    }

    /// None if there are too many connections.
    fn new_id(&mut self) -> Option<u64> {
        let id = self.next_id;
        let room = self.connections.len() + self.callers.len() < MOST;
        room.then(|| {
            self.next_id += 1;
            id
        })
    }

    /// What the guest sends, as long as it takes the refusals of that.
    fn hear_guest(&mut self, queues: &mut Queues<'_>) -> Result<Progress> {
        let mut heard = 0;
        while heard < ROUND && self.resets.len() < MOST_RESETS {
            let Some(chain) = queues.pop(SEND)? else { break };
            let head = chain.head_index();
            self.hear(chain, queues.memory())?;
            queues.done(SEND, head, 0)?;
            heard += 1;
        }
        if heard > 0 {
            queues.signal(SEND)?;
        }
        Ok(Progress::after(heard))
    }

    fn hear(&mut self, chain: Chain<'_>, memory: &GuestRam) -> Result<()> {
        let Ok(mut reader) = chain.clone().reader(memory) else {
            // Pages that are not the guest's own memory: a program may have them sent from a file in that memory, and
            // the device is not its alone. The head is the kernel's.
            self.refuse(&head_alone(chain, memory)?);
            return Ok(());
        };
        let mut bytes = [0; LENGTH];
        reader.read_exact(&mut bytes).map_err(misuse)?;
        let head = Head::parse(&bytes);
        let length = head.length as usize;
        // Nothing else has data: what follows a head is left there.
        if head.operation == operation::DATA {
            if length > PIECE.min(reader.available_bytes()) {
                self.refuse(&head);
                return Ok(());
            }
            reader.read_exact(&mut self.piece[..length]).map_err(misuse)?;
        }
        self.hear_packet(&head);
        Ok(())
    }

    /// A packet, whose data lie in `piece`.
    fn hear_packet(&mut self, head: &Head) {
        let pair = Pair { host: head.destination_port, guest: head.source_port };
        let id = self.pairs.get(&pair).copied();
        if head.source != self.address {
            // It has another name, and an answer would go there. Of a connection it says that it is from before that
            // name was given.
            return id.into_iter().for_each(|id| self.remove(id));
        }
        match (id, head.operation) {
            _ if head.destination != HOST || head.kind != STREAM => self.owe_reset(head),
            (Some(id), _) => self.hear_connection(id, head),
            (None, operation::REQUEST) => self.hear_request(pair, head),
            (None, _) => self.owe_reset(head),
        }
    }

    fn hear_request(&mut self, pair: Pair, head: &Head) {
        match self.new_id() {
            Some(id) if self.host.ask(id, pair.host) => {
                self.pairs.insert(pair, id);
                self.connections.insert(id, Connection::from_guest(pair, head));
            }
            _ => self.owe_reset(head),
        }
    }

    fn hear_connection(&mut self, id: u64, head: &Head) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.hear_credit(head);
        match (head.operation, connection.state) {
            (operation::RESET, _) => return self.remove(id),
            (operation::RESPONSE, State::Asked) if connection.is_known() && connection.agreed() => {}
            (operation::DATA, State::Open) if head.length as usize <= connection.room() => {
                connection.take(&self.piece[..head.length as usize]);
            }
            (operation::SHUTDOWN, State::Open) => {
                connection.guest_ends(head.flags);
                if connection.guest_has_ended() {
                    return self.drain(id);
                }
            }
            (operation::CREDIT_UPDATE, _) => {}
            (operation::CREDIT_REQUEST, State::Open) => connection.tell_credit(),
            // Against the rules, or more than it may send.
            _ => return self.reset_connection(id),
        }
        self.speak(id);
    }

    /// The guest is done with a connection: it is told so, and what it sent before is still passed on.
    fn drain(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let drained = connection.is_drained() || connection.is_gone();
        let pair = connection.pair;
        connection.drain();
        self.pairs.remove(&pair);
        self.owe_reset_of(pair);
        if drained {
            self.remove(id);
        }
    }

    /// Ends a connection that the guest knows of, or does not.
    fn reset_connection(&mut self, id: u64) {
        if let Some(connection) = self.connections.get(&id)
            && connection.is_known()
        {
            self.owe_reset_of(connection.pair);
        }
        self.remove(id);
    }

    fn remove(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if self.pairs.get(&connection.pair) == Some(&id) {
            self.pairs.remove(&connection.pair);
        }
        if connection.due {
            // A guest that takes nothing would have it grow.
            self.due.retain(|due| *due != id);
        }
    }

    fn owe_reset_of(&mut self, pair: Pair) {
        let reset = Head { operation: operation::RESET, ..Head::default() };
        self.resets.push_back(self.addressed(pair, reset));
    }

    /// Refuses a packet that has come: see [`MOST_RESETS`]. A refusal has none.
    fn owe_reset(&mut self, head: &Head) {
        if head.operation != operation::RESET {
            self.resets.push_back(head.reset());
        }
    }

    /// Refuses a packet, and the connection that it is of.
    fn refuse(&mut self, head: &Head) {
        // A refusal is not refused.
        let operation = if head.operation == operation::RESET { operation::RESET } else { INVALID };
        self.hear_packet(&Head { operation, ..*head });
    }

    fn addressed(&self, pair: Pair, head: Head) -> Head {
        Head {
            source: HOST,
            destination: self.address,
            source_port: pair.host,
            destination_port: pair.guest,
            kind: STREAM,
            ..head
        }
    }

    /// A connection gets its turn, if it has something to say.
    fn speak(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.due
            && connection.has_word()
        {
            connection.due = true;
            self.due.push_back(id);
        }
    }

    /// Packets to the guest, one of each connection in turn.
    fn deliver(&mut self, queues: &mut Queues<'_>) -> Result<Progress> {
        let memory = queues.memory();
        let mut delivered = 0;
        // What was before is forgotten first.
        while !self.forgets && delivered < ROUND && !(self.resets.is_empty() && self.due.is_empty()) {
            let Some(chain) = queues.pop(RECEIVE)? else { break };
            let head = chain.head_index();
            let mut writer = chain.writer(memory).map_err(misuse)?;
            // Without room for data nothing could be read of a stream, and it would look as if it had ended.
            let room = writer.available_bytes().checked_sub(LENGTH).filter(|room| *room > 0);
            let room = room.ok_or_else(|| misuse("a short buffer"))?;
            let Some((packet, length)) = self.next_packet(room) else {
                queues.unpop(RECEIVE);
                break;
            };
            writer.write_all(&packet.bytes()).map_err(misuse)?;
            writer.write_all(&self.piece[..length]).map_err(misuse)?;
            queues.done(RECEIVE, head, (LENGTH + length) as u32)?;
            delivered += 1;
        }
        if delivered > 0 {
            queues.signal(RECEIVE)?;
        }
        Ok(Progress::after(delivered))
    }

    /// The next packet for the guest, and how much of `piece` follows it.
    fn next_packet(&mut self, room: usize) -> Option<(Head, usize)> {
        if let Some(reset) = self.resets.pop_front() {
            return Some((reset, 0));
        }
        let room = room.min(PIECE);
        while let Some(id) = self.due.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.due = false;
            let said = connection.next(&mut self.piece[..room]);
            let pair = connection.pair;
            self.speak(id);
            if let Some((head, length)) = said {
                return Some((self.addressed(pair, head), length));
            }
        }
        None
    }

    /// Has the guest forget its connections, if it is to.
    fn tell(&mut self, queues: &mut Queues<'_>) -> Result<()> {
        if !self.forgets {
            return Ok(());
        }
        let Some(chain) = queues.pop(EVENTS)? else { return Ok(()) };
        let head = chain.head_index();
        let mut writer = chain.writer(queues.memory()).map_err(misuse)?;
        writer.write_all(&TRANSPORT_RESET).map_err(misuse)?;
        self.forgets = false;
        queues.done(EVENTS, head, TRANSPORT_RESET.len() as u32)?;
        queues.signal(EVENTS)
    }
}

/// The head of a packet in its first buffer.
fn head_alone(mut chain: Chain<'_>, memory: &GuestRam) -> Result<Head> {
    let first = chain.next().filter(|first| !first.is_write_only() && first.len() as usize >= LENGTH);
    let mut bytes = [0; LENGTH];
    let first = first.ok_or_else(|| misuse("a packet without a head"))?;
    memory.read_slice(&mut bytes, first.addr()).map_err(misuse)?;
    Ok(Head::parse(&bytes))
}

fn misuse(why: impl ToString) -> Error {
    Error::Guest { device: "socket device", why: why.to_string() }
}

impl Device for Vsock {
    fn kind(&self) -> Kind {
        Kind::Socket
    }

    /// `VIRTIO_VSOCK_F_STREAM`; a driver that does not know the bit means the same.
    fn features(&self) -> u64 {
        1
    }

    fn queues(&self) -> usize {
        3
    }

    /// `struct virtio_vsock_config`: the guest's CID.
    fn configuration(&self) -> Vec<u8> {
        self.address.to_le_bytes().to_vec()
    }

    /// All connections end.
    fn reset(&mut self) {
        self.connections.clear();
        self.pairs.clear();
        self.callers.clear();
        self.due.clear();
        self.resets.clear();
        self.forgets = false;
    }

    fn notified(&mut self, _queue: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        self.serve(queues)
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.host.source()]
    }

    fn ready(&mut self, _source: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        self.serve(queues)
    }

    /// Connections are not kept.
    fn save(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    /// The guest had connections, and another address.
    fn restore(&mut self, _state: &Value) -> Result<()> {
        self.reset();
        self.forgets = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

    use super::*;

    #[test]
    fn a_guest_that_takes_nothing_has_nothing_kept_of_what_has_ended() {
        let messages = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (broker, inside) = messages().unwrap();
        let mut device = Vsock::new(77, None, inside).unwrap();
        for _ in 0..10 {
            let said = |operation| Head {
                source: 77,
                destination: HOST,
                source_port: 5000,
                destination_port: 90,
                kind: STREAM,
                operation,
                ..Head::default()
            };
            device.hear_packet(&said(operation::REQUEST));
            let mut question = [0; 12];
            recv(&broker, &mut question, RecvFlags::empty()).unwrap();
            let (host, _other) = messages().unwrap();
            insula_sys::socket::send(broker.as_fd(), &question[..8], &[host.as_fd()]).unwrap();
            device.hear_host().unwrap();
            assert_eq!(device.due.len(), 1, "an answer is owed");
            device.hear_packet(&said(operation::RESET));
            assert!(device.due.is_empty() && device.connections.is_empty() && device.resets.is_empty());
        }
    }
}
