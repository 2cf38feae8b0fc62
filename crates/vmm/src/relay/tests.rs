use std::sync::atomic::Ordering;

use super::*;

/// A relay without a server: the test is the server, on the rings.
fn relay() -> (Relay, UnixStream) {
    let (port, guest) = UnixStream::pair().unwrap();
    let (own, other) = UnixStream::pair().unwrap();
    let events = (0..QUEUES).map(|_| Events::new().unwrap()).collect();
    // Speaks to nobody.
    drop(other);
    let relay = Relay {
        port,
        _server: Server::silent(own),
        memory: Memory::new(16 << 20).unwrap(),
        ring: Ring::new(RINGS),
        events,
        slots: vec![None; usize::from(SLOTS)],
        inbound: Vec::new(),
        outbound: Vec::new(),
    };
    (relay, guest)
}

fn question(length: u32, opcode: u32) -> Vec<u8> {
    let mut bytes = [length.to_le_bytes(), opcode.to_le_bytes()].concat();
    bytes.resize(length as usize, 7);
    bytes
}

/// Returns `slot` with an answer, as the `number`th one.
fn answer(relay: &Relay, number: u16, slot: u16, bytes: &[u8]) {
    let ram = relay.memory.ram();
    ram.write_slice(bytes, GuestAddress(buffers(slot.into()).1)).unwrap();
    let used = RINGS + 2 * 4096;
    ram.write_obj(u32::from(slot) * 2, GuestAddress(used + 4 + u64::from(number) * 8)).unwrap();
    ram.store(number + 1, GuestAddress(used + 2), Ordering::Release).unwrap();
}

fn send(guest: &UnixStream, bytes: &[u8]) {
    use std::io::Write;
    (&*guest).write_all(bytes).unwrap();
}

#[test]
fn questions_take_slots_and_answers_free_them() {
    let (mut relay, guest) = relay();
    send(&guest, &question(56, 3));
    assert!(relay.hear().unwrap());
    relay.ask().unwrap();
    assert_eq!(relay.slots.iter().flatten().count(), 1);
    answer(&relay, 0, 0, &question(20, 0));
    relay.take_answers().unwrap();
    assert_eq!((relay.outbound.len(), relay.slots.iter().flatten().count()), (20, 0));
    // One that is not answered.
    send(&guest, &question(48, 2));
    assert!(relay.hear().unwrap());
    relay.ask().unwrap();
    answer(&relay, 1, 0, b"");
    relay.take_answers().unwrap();
    assert_eq!((relay.outbound.len(), relay.slots.iter().flatten().count()), (20, 0));
    drop(guest);
    assert!(!relay.hear().unwrap());
}

#[test]
fn no_more_are_under_way_than_there_are_slots() {
    let (mut relay, guest) = relay();
    send(&guest, &question(40, 3).repeat(usize::from(SLOTS) + 2));
    assert!(relay.hear().unwrap());
    relay.ask().unwrap();
    assert!(relay.slots.iter().all(Option::is_some));
    assert_eq!(relay.inbound.len(), 80);
}

#[test]
fn what_breaks_the_rules_ends_it() {
    let (mut relay, guest) = relay();
    send(&guest, &[0xff; 64]);
    assert!(relay.hear().unwrap());
    assert!(relay.ask().is_err(), "a guest");

    let (mut relay, _guest) = self::relay();
    answer(&relay, 0, 3, &question(20, 0));
    assert!(relay.take_answers().is_err(), "a slot that nobody asked with");
}
