//! The table as `nft` reads it.

use std::fmt::Write as _;

use super::{Forward, Guest, Zone};

/// What the tables hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) zones: &'a [Zone],
    pub(super) forwards: &'a [Forward],
    pub(super) guests: &'a [Guest],
    /// Chains and sets of others.
    pub(super) mirror: &'a str,
    /// Whether the kernel filters what passes between the ports of a bridge.
    pub(super) bridged: bool,
    /// Interfaces by which ports on every address are reached; none is all.
    pub(super) exposed: &'a [String],
}

/// Tables of this name in place of those there may be, in one transaction.
pub(super) fn tables(name: &str, parts: &Parts<'_>) -> String {
    let Parts { zones, mirror, .. } = *parts;
    // `add` before `delete`, since deleting what is not there would fail.
    let mut text = format!(
        "add table inet {name}
delete table inet {name}
table inet {name} {{
{}{}	set exposed {{ type ifname; {} }}
{CHAINS}{}{}{mirror}}}
",
        zone_sets(zones),
        port_sets(parts.forwards),
        elements(parts.exposed.iter().map(|name| format!("\"{name}\""))),
        inbound(parts.exposed),
        forward(zones),
    );
    if parts.bridged {
        // A rule that finds nothing is paid for with every packet.
        let apart = zones.iter().any(|zone| zone.apart) || parts.guests.iter().any(|guest| guest.is_apart());
        let _ = write!(
            text,
            "add table bridge {name}
delete table bridge {name}
table bridge {name} {{
{}{SPOOFED}{}}}
",
            guest_sets(parts.guests),
            if apart { APART } else { "" },
        );
    }
    text
}

/// An empty chain for each of the tables, by which they are known to be those that were made now.
pub(super) fn marks(name: &str, mark: &str, bridged: bool) -> String {
    let of = |family: &str| format!("table {family} {name} {{\n\tchain {mark} {{\n\t}}\n}}\n");
    format!("{}{}", of("inet"), if bridged { of("bridge") } else { String::new() })
}

/// How many rules a text of tables has for those of a family, but for copies of others' rules.
pub(super) fn rules(text: &str, family: &str) -> usize {
    let (mut count, mut within, mut ours) = (0, false, false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match line.bytes().take_while(|byte| *byte == b'\t').count() {
            0 if first == "table" => within = second == family,
            1 => ours = first == "chain" && !second.starts_with(super::mirror::PREFIX),
            2 if within && ours && first != "type" && !first.is_empty() => count += 1,
            _ => {}
        }
    }
    count
}

fn zone_sets(zones: &[Zone]) -> String {
    let names = |wanted: fn(&Zone) -> bool| {
        elements(zones.iter().filter(|zone| wanted(zone)).map(|zone| format!("\"{}\"", zone.bridge)))
    };
    let v6 = || zones.iter().filter_map(|zone| Some((zone, zone.v6.as_ref()?)));
    let within = elements(zones.iter().map(|zone| format!("\"{0}\" . \"{0}\"", zone.bridge)));
    let hidden = zones.iter().filter(|zone| zone.masquerade);
    let subnets = elements(hidden.map(|zone| format!("{}/{}", zone.subnet, zone.prefix)));
    let members = elements(zones.iter().map(|zone| format!("{}/{}", zone.subnet, zone.prefix)));
    let members6 = elements(v6().map(|(_, v6)| format!("{}/{}", v6.subnet, v6.prefix)));
    let hidden6 = v6().filter(|(_, v6)| v6.masquerade);
    let subnets6 = elements(hidden6.map(|(_, v6)| format!("{}/{}", v6.subnet, v6.prefix)));
    let gateways = elements(zones.iter().map(|zone| zone.gateway.to_string()));
    let gateways6 = elements(v6().map(|(_, v6)| v6.gateway.to_string()));
    let own = elements(zones.iter().map(|zone| format!("\"{}\" . {}", zone.bridge, zone.gateway)));
    let own6 = elements(v6().map(|(zone, v6)| format!("\"{}\" . {}", zone.bridge, v6.gateway)));
    format!(
        "	set bridges {{ type ifname; {} }}
	set internal {{ type ifname; {} }}
	set within {{ type ifname . ifname; {within} }}
	set subnets {{ type ipv4_addr; flags interval; {subnets} }}
	set subnets6 {{ type ipv6_addr; flags interval; {subnets6} }}
	set members {{ type ipv4_addr; flags interval; {members} }}
	set members6 {{ type ipv6_addr; flags interval; {members6} }}
	set gateways {{ type ipv4_addr; {gateways} }}
	set gateways6 {{ type ipv6_addr; {gateways6} }}
	set own_gateways {{ type ifname . ipv4_addr; {own} }}
	set own_gateways6 {{ type ifname . ipv6_addr; {own6} }}
",
        names(|_| true),
        names(|zone| zone.internal),
    )
}

fn port_sets(forwards: &[Forward]) -> String {
    let mut text = String::new();
    for (v4, suffix, kind) in [(true, "", "ipv4_addr"), (false, "6", "ipv6_addr")] {
        let of = || forwards.iter().filter(move |forward| forward.to.is_ipv4() == v4);
        let all = || of().filter(|forward| forward.address.is_none());
        let some = || of().filter_map(|forward| Some((forward, forward.address?)));
        let ports = elements(all().map(|forward| {
            format!("{} . {} : {} . {}", forward.proto, forward.port, forward.to, forward.to_port)
        }));
        let published = elements(all().map(|forward| format!("{} . {}", forward.proto, forward.port)));
        let addressed_ports = elements(some().map(|(forward, address)| {
            let Forward { proto, port, to, to_port, .. } = forward;
            format!("{address} . {proto} . {port} : {to} . {to_port}")
        }));
        let addressed = elements(
            some().map(|(forward, address)| format!("{address} . {} . {}", forward.proto, forward.port)),
        );
        let _ = write!(
            text,
            "	map ports{suffix} {{ type inet_proto . inet_service : {kind} . inet_service; {ports} }}
	map addressed_ports{suffix} {{ type {kind} . inet_proto . inet_service : {kind} . inet_service; {addressed_ports} }}
	set published{suffix} {{ type inet_proto . inet_service; {published} }}
	set addressed{suffix} {{ type {kind} . inet_proto . inet_service; {addressed} }}
"
        );
    }
    text
}

fn guest_sets(guests: &[Guest]) -> String {
    let names = |wanted: fn(&Guest) -> bool| {
        elements(guests.iter().filter(|guest| wanted(guest)).map(|guest| format!("\"{}\"", guest.port)))
    };
    let of = |v4: bool| {
        let guarded = guests.iter().filter(|guest| guest.guarded && guest.address.is_ipv4() == v4);
        elements(
            guarded.map(|guest| format!("\"{}\" . {} . {}", guest.port, hardware(guest.mac), guest.address)),
        )
    };
    let apart = guests.iter().filter(|guest| guest.is_apart());
    let masters =
        elements(apart.filter_map(|guest| Some(format!("\"{}\" . {}", guest.port, hardware(guest.apart?)))));
    format!(
        "	set guarded {{ type ifname; {} }}
	set apart {{ type ifname; {} }}
	set masters {{ type ifname . ether_addr; {masters} }}
	set guests {{ type ifname . ether_addr . ipv4_addr; {} }}
	set guests6 {{ type ifname . ether_addr . ipv6_addr; {} }}
",
        names(Guest::is_guarded),
        names(Guest::is_apart),
        of(true),
        of(false),
    )
}

/// Where packets from elsewhere are translated.
fn inbound(exposed: &[String]) -> String {
    let hidden = match exposed {
        [] => "",
        _ => {
            "		fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @addressed_ports
		fib daddr type local dnat ip6 to ip6 daddr . meta l4proto . th dport map @addressed_ports6
		iifname != @exposed iifname != @bridges return
"
        }
    };
    format!(
        "	chain inbound {{
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 127.0.0.0/8 return
{hidden}		fib daddr type local jump published
	}}
"
    )
}

fn hardware(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// What passes to and from containers. Most packets are of connections that stand, which need no second look, but
/// where there are internal networks: what a container of one sends could belong to what it has elsewhere.
fn forward(zones: &[Zone]) -> String {
    let internal = match zones.iter().any(|zone| zone.internal) {
        true => {
            "		iifname @internal iifname . oifname != @within drop
		oifname @internal iifname . oifname != @within drop
"
        }
        false => "",
    };
    format!(
        "	chain forward {{
		type filter hook forward priority filter; policy accept;
{internal}		ct state established,related return
		oifname != @bridges return
		iifname . oifname @within return
		ct status dnat return
		drop
	}}
"
    )
}

/// Those that never change. Every packet that reaches the host passes the guard, which stands between conntrack and
/// translation: what belongs to a published port leaves it at once, and what conntrack does not know is judged.
const CHAINS: &str = "
	chain guard {
		type filter hook prerouting priority mangle; policy accept;
		ct status dnat return
		ip daddr != 127.0.0.0/8 ip daddr != @gateways return
		iifname . ip daddr @own_gateways return
		ip6 daddr != @gateways6 return
		iifname . ip6 daddr @own_gateways6 return
		iifname @bridges drop
	}
	chain published {
		dnat ip to ip daddr . meta l4proto . th dport map @addressed_ports
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @addressed_ports6
		meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports
		meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @ports6
	}
	chain local {
		type nat hook output priority -100; policy accept;
		fib daddr type local jump published
	}
	chain outbound {
		type nat hook postrouting priority srcnat; policy accept;
		oifname @bridges ct status dnat ip saddr @members masquerade
		oifname @bridges ct status dnat ip6 saddr @members6 masquerade
		oifname @bridges ip saddr 127.0.0.0/8 masquerade
		oifname @bridges ip6 saddr ::1 masquerade
		ip saddr @subnets oifname != @bridges masquerade
		ip6 saddr @subnets6 oifname != @bridges masquerade
	}
";

/// Of the table that sees what passes between the ports of a bridge. Router advertisements come from the
/// host alone, so nobody is asked for any: each question would go to all ports, again and again. Link-local and
/// unspecified addresses are needed to find neighbours.
const SPOOFED: &str = "
	chain spoofed {
		type filter hook prerouting priority -300; policy accept;
		ether type ip iifname . ether saddr . ip saddr @guests return
		iifname != @guarded return
		ether type arp iifname . arp saddr ether . arp saddr ip @guests return
		ether type != ip6 drop
		icmpv6 type { nd-router-solicit, nd-router-advert } drop
		ip6 saddr fe80::/10 return
		ip6 saddr :: return
		iifname . ether saddr . ip6 saddr != @guests6 drop
	}
";

/// Of the same table, for bridges whose ports see the host alone.
const APART: &str = "
	chain apart_from {
		type filter hook prerouting priority -299; policy accept;
		iifname != @apart return
		ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 return
		iifname . ether daddr != @masters drop
	}
	chain unheard_by {
		type filter hook forward priority 0; policy accept;
		iifname @apart ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 drop
	}
";

/// nft refuses an empty list.
fn elements(items: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for item in items {
        let _ = write!(text, "{}{item}", if text.is_empty() { "elements = { " } else { ", " });
    }
    if !text.is_empty() {
        text.push_str(" }");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::Zone6;

    #[test]
    fn elements_are_listed_only_when_there_are_some() {
        let none = Parts { zones: &[], forwards: &[], guests: &[], mirror: "", bridged: true, exposed: &[] };
        let text = tables("insula-test", &none);
        assert!(text.contains("set bridges { type ifname;  }"), "{text}");
        let zone = Zone {
            bridge: "b0".to_owned(),
            subnet: [172, 30, 0, 0].into(),
            prefix: 16,
            masquerade: true,
            internal: false,
            gateway: [172, 30, 0, 1].into(),
            apart: false,
            v6: Some(Zone6 {
                subnet: "fd00::".parse().unwrap(),
                prefix: 64,
                gateway: "fd00::1".parse().unwrap(),
                masquerade: true,
            }),
        };
        let to = [172, 30, 0, 2].into();
        let to6 = "fd00::2".parse().unwrap();
        let loopback6 = Some("::1".parse().unwrap());
        let forwards = [
            Forward { proto: 6, address: None, port: 80, to, to_port: 8080 },
            Forward { proto: 17, address: Some([127, 0, 0, 1].into()), port: 53, to, to_port: 53 },
            Forward { proto: 6, address: None, port: 81, to: to6, to_port: 8080 },
            Forward { proto: 17, address: loopback6, port: 53, to: to6, to_port: 53 },
        ];
        let guest = Guest {
            port: "v1".to_owned(),
            mac: [2, 0, 0, 0, 0, 10],
            address: to,
            guarded: true,
            apart: Some([2, 0, 0, 0, 0, 1]),
        };
        let parts = Parts {
            zones: &[zone],
            forwards: &forwards,
            guests: &[guest],
            mirror: "",
            bridged: true,
            exposed: &["eth0".to_owned()],
        };
        let text = tables("insula-test", &parts);
        for part in [
            "elements = { \"b0\" . \"b0\" }",
            "set internal { type ifname;  }",
            "elements = { 172.30.0.0/16 }",
            "elements = { fd00::/64 }",
            "set own_gateways { type ifname . ipv4_addr; elements = { \"b0\" . 172.30.0.1 } }",
            "set apart { type ifname; elements = { \"v1\" } }",
            "elements = { \"v1\" . 02:00:00:00:00:0a . 172.30.0.2 }",
            "set exposed { type ifname; elements = { \"eth0\" } }",
            "iifname != @exposed iifname != @bridges return",
            "set published { type inet_proto . inet_service; elements = { 6 . 80 } }",
            "elements = { 6 . 80 : 172.30.0.2 . 8080 }",
            "elements = { 127.0.0.1 . 17 . 53 : 172.30.0.2 . 53 }",
            "elements = { 6 . 81 : fd00::2 . 8080 }",
            "elements = { ::1 . 17 . 53 : fd00::2 . 53 }",
            "set published6 { type inet_proto . inet_service; elements = { 6 . 81 } }",
            "set members6 { type ipv6_addr; flags interval; elements = { fd00::/64 } }",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(text.contains("chain apart_from") && !text.contains("iifname @internal"), "{text}");
        let zone = Zone { internal: true, ..parts.zones[0].clone() };
        let text = tables("insula-test", &Parts { zones: &[zone], guests: &[], ..parts });
        assert!(!text.contains("chain apart_from") && text.contains("iifname @internal"), "{text}");
    }
}
