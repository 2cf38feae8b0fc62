//! What the kernel has, compared with what it was given.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::Ordering;

use super::batch::{self, Family, PORT_LISTS};
use super::{Error, Firewall, Forward, Guest};

/// An element of a set or map of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub set: &'static str,
    bytes: Vec<u8>,
}

/// Something of the table that is not as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deviation {
    /// There is no table, of this family.
    NoTable(&'static str),
    /// One that is not there.
    Missing(Element),
    /// One that nobody has.
    Foreign(Element),
}

type Sets = BTreeMap<&'static str, BTreeSet<Vec<u8>>>;

impl Firewall {
    /// How the elements of the tables differ from those of these ports and guests.
    pub fn deviations(&self, forwards: &[Forward], guests: &[Guest]) -> Result<Vec<Deviation>, Error> {
        let mut found = self.compare(Family::Inet, "inet", &port_sets(forwards))?;
        if self.bridged.load(Ordering::Relaxed) {
            found.extend(self.compare(Family::Bridge, "bridge", &guest_sets(guests))?);
        }
        Ok(found)
    }

    fn compare(&self, family: Family, word: &'static str, wanted: &Sets) -> Result<Vec<Deviation>, Error> {
        let mut found = Vec::new();
        for (&set, wanted) in wanted {
            let there = match batch::read(&self.socket(), &self.table, family, set) {
                Ok(there) => there,
                // Without its sets it is not the table that was made.
                Err(error) if error.is_missing() => return Ok(vec![Deviation::NoTable(word)]),
                Err(error) => return Err(error),
            };
            let element = |bytes: &Vec<u8>| Element { set, bytes: bytes.clone() };
            found.extend(wanted.difference(&there).map(element).map(Deviation::Missing));
            found.extend(there.difference(wanted).map(element).map(Deviation::Foreign));
        }
        Ok(found)
    }
}

fn port_sets(forwards: &[Forward]) -> Sets {
    PORT_LISTS
        .iter()
        .map(|list| {
            let members = forwards.iter().filter(|forward| list.has(forward));
            let bytes = members.map(|forward| {
                let mut bytes = batch::key(forward);
                if list.mapped {
                    bytes.extend(batch::target(forward));
                }
                bytes
            });
            (list.name, bytes.collect())
        })
        .collect()
}

fn guest_sets(guests: &[Guest]) -> Sets {
    let of = |wanted: &dyn Fn(&&Guest) -> bool, bytes: &dyn Fn(&Guest) -> Vec<u8>| {
        guests.iter().filter(wanted).map(bytes).collect::<BTreeSet<_>>()
    };
    let port = |guest: &Guest| batch::guest_key(guest)[..16].to_vec();
    let master = |guest: &Guest| {
        let mut key = batch::guest_key(guest);
        key.truncate(24);
        key[16..22].copy_from_slice(&guest.apart.unwrap_or_default());
        key
    };
    Sets::from([
        ("guests", of(&|guest| guest.guarded && guest.address.is_ipv4(), &batch::guest_key)),
        ("guests6", of(&|guest| guest.guarded && guest.address.is_ipv6(), &batch::guest_key)),
        ("guarded", of(&|guest| guest.is_guarded(), &port)),
        ("apart", of(&|guest| guest.is_apart(), &port)),
        ("masters", of(&|guest| guest.is_apart(), &master)),
    ])
}

impl fmt::Display for Element {
    /// The set, and of the element what a reader knows again: the port of a bridge, or protocol and port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set, bytes } = self;
        write!(f, "{set} ")?;
        match *set {
            "guests" | "guests6" | "guarded" | "apart" | "masters" => {
                let end = bytes.iter().take(16).position(|byte| *byte == 0).unwrap_or(bytes.len().min(16));
                f.write_str(&String::from_utf8_lossy(&bytes[..end]))
            }
            _ => {
                let address = match *set {
                    "addressed" | "addressed_ports" => 4,
                    "addressed6" | "addressed_ports6" => 16,
                    _ => 0,
                };
                match bytes.get(address..address + 6) {
                    Some(&[proto, _, _, _, high, low]) => {
                        let proto = match proto {
                            6 => "tcp".to_owned(),
                            17 => "udp".to_owned(),
                            132 => "sctp".to_owned(),
                            other => other.to_string(),
                        };
                        write!(f, "{}/{proto}", u16::from_be_bytes([high, low]))
                    }
                    _ => write!(f, "{bytes:02x?}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::tests::lan;
    use crate::netlink::tests::isolated;

    #[test]
    fn the_kernel_is_read_back() {
        isolated(|| {
            let lan = lan();
            let to = [172, 30, 0, 2].into();
            let to6 = "fd42::2".parse().unwrap();
            let forwards = [
                Forward { proto: 6, address: None, port: 8080, to, to_port: 80 },
                Forward { proto: 17, address: Some([127, 0, 0, 1].into()), port: 53, to, to_port: 53 },
                Forward { proto: 6, address: Some("::1".parse().unwrap()), port: 81, to: to6, to_port: 80 },
            ];
            let apart = super::super::tests::guests()
                .into_iter()
                .map(|guest| Guest { apart: Some([2, 0, 0, 0, 0, 1]), ..guest })
                .collect::<Vec<_>>();
            let (firewall, guests) = (&lan.firewall, super::super::tests::guests());
            firewall.add(&forwards, &[]).unwrap();
            assert_eq!(firewall.deviations(&forwards, &guests).unwrap(), []);
            // Somebody else's, and one that leads elsewhere.
            let moved = Forward { to_port: 81, ..forwards[0] };
            let found = firewall.deviations(&[moved, forwards[2]], &guests[..1]).unwrap();
            let texts: Vec<String> = found
                .iter()
                .map(|deviation| match deviation {
                    Deviation::NoTable(family) => format!("no {family}"),
                    Deviation::Missing(element) => format!("- {element}"),
                    Deviation::Foreign(element) => format!("+ {element}"),
                })
                .collect();
            assert_eq!(
                texts,
                [
                    "+ addressed 53/udp",
                    "+ addressed_ports 53/udp",
                    "- ports 8080/tcp",
                    "+ ports 8080/tcp",
                    "+ guarded insula-test-3",
                    "+ guests insula-test-3",
                    "+ guests6 insula-test-2",
                    "+ guests6 insula-test-3",
                ]
            );
            firewall.remove(&forwards, &guests).unwrap();
            firewall.add(&forwards, &apart).unwrap();
            assert_eq!(firewall.deviations(&forwards, &apart).unwrap(), []);
            firewall.uninstall().unwrap();
            let gone = [Deviation::NoTable("inet"), Deviation::NoTable("bridge")];
            assert_eq!(firewall.deviations(&[], &[]).unwrap(), gone);
        });
    }
}
