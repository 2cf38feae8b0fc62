//! Elements of the table's maps by nf_tables netlink messages.

use std::collections::BTreeSet;
use std::net::IpAddr;

use insula_sys::netlink::{Family as SocketFamily, Socket};

use super::{Error, Forward, Guest};
use crate::netlink;
use crate::netlink::message::{Batch, CREATE, DUMP, attributes, text_of};

/// As many elements as surely fit one attribute of 64 KiB.
pub(super) const MOST: usize = 1000;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const GETTABLE: u16 = SUBSYSTEM << 8 | 1;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const GETCHAIN: u16 = SUBSYSTEM << 8 | 4;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
const GETRULE: u16 = SUBSYSTEM << 8 | 7;
pub(super) const NEWSETELEM: u16 = SUBSYSTEM << 8 | 12;
const GETSETELEM: u16 = SUBSYSTEM << 8 | 13;
const DELSETELEM: u16 = SUBSYSTEM << 8 | 14;

const TABLE_NAME: u16 = 1;
const TABLE_HANDLE: u16 = 4;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
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

/// A map or set of ports.
#[derive(Debug, Clone, Copy)]
pub(super) struct PortList {
    pub(super) name: &'static str,
    v4: bool,
    /// Of ports that are published on one address of the host.
    addressed: bool,
    /// Whether it says where the port leads.
    pub(super) mapped: bool,
}

impl PortList {
    pub(super) fn has(&self, forward: &Forward) -> bool {
        forward.to.is_ipv4() == self.v4 && forward.address.is_some() == self.addressed
    }
}

const fn ports(name: &'static str, v4: bool, addressed: bool, mapped: bool) -> PortList {
    PortList { name, v4, addressed, mapped }
}

pub(super) const PORT_LISTS: [PortList; 8] = [
    ports("ports", true, false, true),
    ports("addressed_ports", true, true, true),
    ports("published", true, false, false),
    ports("addressed", true, true, false),
    ports("ports6", false, false, true),
    ports("addressed_ports6", false, true, true),
    ports("published6", false, false, false),
    ports("addressed6", false, true, false),
];

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Inet,
    Bridge,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::Inet, Self::Bridge];

    /// As nft calls it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        }
    }

    pub(super) fn header(self) -> &'static [u8; 4] {
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

/// By what a table is known to be as it was made: the kernel's number for it, which no other gets, and how many
/// rules it has but for those that are copies of others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) handle: u64,
    pub(super) rules: usize,
}

/// The seal of a table, if it is there and has the chain `mark`.
pub(super) fn seal(socket: &Socket, table: &str, family: Family, mark: &str) -> Result<Option<Seal>, Error> {
    match read_seal(socket, table, family, mark) {
        Err(error) if error.is_missing() => Ok(None),
        result => result.map(Some),
    }
}

fn read_seal(socket: &Socket, table: &str, family: Family, mark: &str) -> Result<Seal, Error> {
    let mut batch = Batch::new();
    batch.begin(GETTABLE, 0, family.header(), "look for the nftables table", table);
    batch.text(TABLE_NAME, table);
    batch.acknowledge();
    let mut handle = 0;
    batch.exchange(socket, |kind, payload| {
        let of = payload.get(4..).unwrap_or_default();
        let number = attributes(of).find(|(attribute, _)| *attribute == TABLE_HANDLE);
        if let (NEWTABLE, Some(raw)) = (kind, number.and_then(|(_, raw)| raw.first_chunk())) {
            handle = u64::from_be_bytes(*raw);
        }
    })?;
    let mut batch = Batch::new();
    batch.begin(GETCHAIN, 0, family.header(), "look for a chain of the nftables table", table);
    batch.text(CHAIN_TABLE, table);
    batch.text(CHAIN_NAME, mark);
    batch.acknowledge();
    batch.run(socket)?;
    let mut count = 0;
    rules(socket, family.header()[0], table, None, |rule| {
        let chain = attributes(rule).find(|(kind, _)| *kind == RULE_CHAIN).map(|(_, raw)| text_of(raw));
        count += usize::from(chain.is_some_and(|chain| !chain.starts_with(super::mirror::PREFIX)));
    })?;
    Ok(Seal { handle, rules: count })
}

/// Calls `visit` with the attributes of each rule of a table, or of one chain of it, in their order.
pub(super) fn rules(
    socket: &Socket,
    family: u8,
    table: &str,
    chain: Option<&str>,
    mut visit: impl FnMut(&[u8]),
) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.begin(GETRULE, DUMP, &[family, 0, 0, 0], "list the rules of the nftables table", table);
    batch.text(RULE_TABLE, table);
    if let Some(chain) = chain {
        batch.text(RULE_CHAIN, chain);
    }
    batch.exchange(socket, |kind, payload| {
        let rule = payload.get(4..).unwrap_or_default();
        let named = |wanted| attributes(rule).find(|(kind, _)| *kind == wanted).map(|(_, raw)| text_of(raw));
        let meant = named(RULE_TABLE).as_deref() == Some(table)
            && chain.is_none_or(|chain| named(RULE_CHAIN).as_deref() == Some(chain));
        if kind == NEWRULE && meant {
            visit(rule);
        }
    })?;
    Ok(())
}

/// Key and, in a map, data of every element of a set as the kernel has them.
pub(super) fn read(
    socket: &Socket,
    table: &str,
    family: Family,
    set: &str,
) -> Result<BTreeSet<Vec<u8>>, Error> {
    let mut found = BTreeSet::new();
    let mut batch = Batch::new();
    batch.begin(GETSETELEM, DUMP, family.header(), "list a set of the nftables table", table);
    batch.text(LIST_TABLE, table);
    batch.text(LIST_SET, set);
    batch.exchange(socket, |kind, payload| {
        if kind == NEWSETELEM {
            found.extend(elements_of(payload.get(4..).unwrap_or_default()));
        }
    })?;
    Ok(found)
}

fn elements_of(payload: &[u8]) -> Vec<Vec<u8>> {
    let within = |bytes: &'_ [u8], wanted| {
        attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value.to_vec())
    };
    let Some(list) = within(payload, LIST_ELEMENTS) else { return Vec::new() };
    let elements = attributes(&list).filter(|(kind, _)| *kind == LIST_ELEM);
    elements
        .filter_map(|(_, element)| {
            let mut bytes = within(&within(element, ELEM_KEY)?, DATA_VALUE)?;
            if let Some(data) = within(element, ELEM_DATA) {
                bytes.extend(within(&data, DATA_VALUE)?);
            }
            Some(bytes)
        })
        .collect()
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
    for list in &PORT_LISTS {
        let PortList { name: map, mapped, .. } = *list;
        let mut members = forwards.iter().filter(|forward| list.has(forward)).peekable();
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
pub(super) fn guest_key(guest: &Guest) -> Vec<u8> {
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
pub(super) fn key(forward: &Forward) -> Vec<u8> {
    let mut key = Vec::with_capacity(24);
    if let Some(address) = forward.address {
        push_address(&mut key, address);
    }
    key.extend([forward.proto, 0, 0, 0]);
    push_port(&mut key, forward.port);
    key
}

pub(super) fn target(forward: &Forward) -> Vec<u8> {
    let mut target = Vec::with_capacity(20);
    push_address(&mut target, forward.to);
    push_port(&mut target, forward.to_port);
    target
}

fn push_port(key: &mut Vec<u8>, port: u16) {
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
}
