//! Elements of the table's maps by nf_tables netlink messages.

use std::net::IpAddr;

use insula_sys::netlink::{Family as SocketFamily, Socket};

use super::{Error, Forward, Guest};
use crate::netlink;
use crate::netlink::message::{Batch, CREATE};

/// As many elements as surely fit one attribute of 64 KiB.
pub(super) const MOST: usize = 1000;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const GETTABLE: u16 = SUBSYSTEM << 8 | 1;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const NEWSETELEM: u16 = SUBSYSTEM << 8 | 12;
const DELSETELEM: u16 = SUBSYSTEM << 8 | 14;

const TABLE_NAME: u16 = 1;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;

/// `nfgenmsg`: family, version, and for the frame of a batch the subsystem, big-endian.
const FRAME: [u8; 4] = [0, 0, 0, SUBSYSTEM as u8];
const INET: [u8; 4] = [1, 0, 0, 0];

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Inet,
    Bridge,
}

impl Family {
    fn header(self) -> &'static [u8; 4] {
        match self {
            Self::Inet => &INET,
            Self::Bridge => &[7, 0, 0, 0],
        }
    }
}

pub(super) fn open() -> Result<Socket, Error> {
    Ok(Socket::open(SocketFamily::Netfilter)
        .map_err(|source| netlink::Error::Socket { call: "open a netfilter socket", source })?)
}

/// A transaction: all of what `fill` requests, or nothing.
fn transact<'a>(socket: &Socket, table: &'a str, fill: impl FnOnce(&mut Batch<'a>)) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.begin(BATCH_BEGIN, 0, &FRAME, "begin a change of the nftables table", table);
    fill(&mut batch);
    batch.begin(BATCH_END, 0, &FRAME, "end a change of the nftables table", table);
    Ok(batch.run(socket)?)
}

pub(super) fn add(socket: &Socket, table: &str, forwards: &[Forward], guests: &[Guest]) -> Result<(), Error> {
    const ACTION: &str = "publish ports in the nftables table";
    transact(socket, table, |batch| {
        elements(batch, NEWSETELEM, CREATE, ACTION, table, forwards);
        admitted(batch, NEWSETELEM, CREATE, "admit to the nftables table", table, guests);
    })
}

pub(super) fn remove(
    socket: &Socket,
    table: &str,
    forwards: &[Forward],
    guests: &[Guest],
) -> Result<(), Error> {
    const ACTION: &str = "withdraw ports from the nftables table";
    transact(socket, table, |batch| {
        elements(batch, DELSETELEM, 0, ACTION, table, forwards);
        admitted(batch, DELSETELEM, 0, "expel from the nftables table", table, guests);
    })
}

pub(super) fn delete_table(socket: &Socket, table: &str, family: Family) -> Result<(), Error> {
    transact(socket, table, |batch| {
        batch.begin(DELTABLE, 0, family.header(), "delete the nftables table", table);
        batch.text(TABLE_NAME, table);
    })
}

pub(super) fn probe_table(socket: &Socket, table: &str) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.begin(GETTABLE, 0, &INET, "look for the nftables table", table);
    batch.text(TABLE_NAME, table);
    batch.acknowledge();
    Ok(batch.run(socket)?)
}

/// One message a map that has elements.
fn elements<'a>(
    batch: &mut Batch<'a>,
    kind: u16,
    flags: u16,
    action: &'static str,
    table: &'a str,
    forwards: &[Forward],
) {
    let lists = [
        ("ports", true, false, true),
        ("addressed_ports", true, true, true),
        ("published", true, false, false),
        ("addressed", true, true, false),
        ("ports6", false, false, true),
        ("addressed_ports6", false, true, true),
        ("published6", false, false, false),
        ("addressed6", false, true, false),
    ];
    for (map, v4, addressed, mapped) in lists {
        let member =
            |forward: &&Forward| forward.to.is_ipv4() == v4 && forward.address.is_some() == addressed;
        let mut members = forwards.iter().filter(member).peekable();
        if members.peek().is_none() {
            continue;
        }
        batch.begin(kind, flags, &INET, action, table);
        batch.text(LIST_TABLE, table);
        batch.text(LIST_SET, map);
        let list = batch.nest(LIST_ELEMENTS);
        for forward in members {
            let element = batch.nest(LIST_ELEM);
            value(batch, ELEM_KEY, &key(forward));
            if mapped {
                value(batch, ELEM_DATA, &target(forward));
            }
            batch.close(&element);
        }
        batch.close(&list);
    }
}

/// Who may send from which port of a bridge, one message a family.
fn admitted<'a>(
    batch: &mut Batch<'a>,
    kind: u16,
    flags: u16,
    action: &'static str,
    table: &'a str,
    guests: &[Guest],
) {
    type Wanted = fn(&Guest) -> bool;
    for (set, v4) in [("guests", true), ("guests6", false)] {
        let mut members =
            guests.iter().filter(|guest| guest.guarded && guest.address.is_ipv4() == v4).peekable();
        if members.peek().is_none() {
            continue;
        }
        batch.begin(kind, flags, Family::Bridge.header(), action, table);
        batch.text(LIST_TABLE, table);
        batch.text(LIST_SET, set);
        let list = batch.nest(LIST_ELEMENTS);
        for guest in members {
            let element = batch.nest(LIST_ELEM);
            value(batch, ELEM_KEY, &guest_key(guest));
            batch.close(&element);
        }
        batch.close(&list);
    }
    let lists: [(&str, Wanted); 2] = [("guarded", Guest::is_guarded), ("apart", Guest::is_apart)];
    let masters = guests.iter().filter_map(|guest| Some((guest, guest.apart?))).filter(|(g, _)| g.is_apart());
    for (guest, master) in masters {
        batch.begin(kind, flags, Family::Bridge.header(), action, table);
        batch.text(LIST_TABLE, table);
        batch.text(LIST_SET, "masters");
        let list = batch.nest(LIST_ELEMENTS);
        let element = batch.nest(LIST_ELEM);
        let mut key = guest_key(guest);
        key[16..22].copy_from_slice(&master);
        value(batch, ELEM_KEY, &key[..24]);
        batch.close(&element);
        batch.close(&list);
    }
    for (set, wanted) in lists {
        let mut members = guests.iter().filter(|guest| wanted(guest)).peekable();
        if members.peek().is_none() {
            continue;
        }
        batch.begin(kind, flags, Family::Bridge.header(), action, table);
        batch.text(LIST_TABLE, table);
        batch.text(LIST_SET, set);
        let list = batch.nest(LIST_ELEMENTS);
        for guest in members {
            let element = batch.nest(LIST_ELEM);
            value(batch, ELEM_KEY, &guest_key(guest)[..16]);
            batch.close(&element);
        }
        batch.close(&list);
    }
}

/// Name of the port in 16 bytes, hardware address in 8, address.
fn guest_key(guest: &Guest) -> Vec<u8> {
    let mut key = vec![0; 24];
    let name = guest.port.as_bytes();
    let length = name.len().min(15);
    key[..length].copy_from_slice(&name[..length]);
    key[16..22].copy_from_slice(&guest.mac);
    push_address(&mut key, guest.address);
    key
}

fn push_address(key: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => key.extend(address.octets()),
        IpAddr::V6(address) => key.extend(address.octets()),
    }
}

fn value(batch: &mut Batch<'_>, kind: u16, bytes: &[u8]) {
    let nest = batch.nest(kind);
    batch.attribute(DATA_VALUE, bytes);
    batch.close(&nest);
}

/// Each part of a concatenation begins at a multiple of four bytes.
fn key(forward: &Forward) -> Vec<u8> {
    let mut key = Vec::with_capacity(24);
    if let Some(address) = forward.address {
        push_address(&mut key, address);
    }
    key.extend([forward.proto, 0, 0, 0]);
    push_port(&mut key, forward.port);
    key
}

fn target(forward: &Forward) -> Vec<u8> {
    let mut target = Vec::with_capacity(20);
    push_address(&mut target, forward.to);
    push_port(&mut target, forward.to_port);
    target
}

fn push_port(key: &mut Vec<u8>, port: u16) {
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
}
