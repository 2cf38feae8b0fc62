//! The table as `nft` reads it.

use std::fmt::Write as _;

use super::{Forward, Zone};

/// A table of this name in place of the one there may be, in one transaction.
pub(super) fn table(name: &str, zones: &[Zone], forwards: &[Forward]) -> String {
    let bridges = elements(zones.iter().map(|zone| format!("\"{}\"", zone.bridge)));
    let within = elements(zones.iter().map(|zone| format!("\"{0}\" . \"{0}\"", zone.bridge)));
    let subnets = elements(zones.iter().map(|zone| format!("{}/{}", zone.subnet, zone.prefix)));
    let ports = elements(forwards.iter().filter(|forward| forward.address.is_none()).map(|forward| {
        format!("{} . {} : {} . {}", forward.proto, forward.port, forward.to, forward.to_port)
    }));
    let addressed = elements(forwards.iter().filter_map(|forward| {
        let address = forward.address?;
        let Forward { proto, port, to, to_port, .. } = forward;
        Some(format!("{address} . {proto} . {port} : {to} . {to_port}"))
    }));
    // `add` before `delete`, since deleting what is not there would fail.
    format!(
        "add table inet {name}
delete table inet {name}
table inet {name} {{
	set bridges {{ type ifname; {bridges} }}
	set within {{ type ifname . ifname; {within} }}
	set subnets {{ type ipv4_addr; flags interval; {subnets} }}
	map ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; {ports} }}
	map addressed_ports {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; {addressed} }}
{CHAINS}}}
"
    )
}

/// Those that never change.
const CHAINS: &str = "
	chain guard {
		type filter hook prerouting priority raw; policy accept;
		iifname @bridges ip daddr 127.0.0.0/8 drop
	}
	chain published {
		dnat ip to ip daddr . meta l4proto . th dport map @addressed_ports
		dnat ip to meta l4proto . th dport map @ports
	}
	chain inbound {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 127.0.0.0/8 return
		fib daddr type local jump published
	}
	chain local {
		type nat hook output priority -100; policy accept;
		fib daddr type local jump published
	}
	chain outbound {
		type nat hook postrouting priority srcnat; policy accept;
		oifname @bridges ct status dnat ip saddr @subnets masquerade
		oifname @bridges ip saddr 127.0.0.0/8 masquerade
		ip saddr @subnets oifname != @bridges masquerade
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		oifname != @bridges return
		ct state established,related return
		iifname . oifname @within return
		ct status dnat return
		drop
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

    #[test]
    fn elements_are_listed_only_when_there_are_some() {
        let text = table("insula-test", &[], &[]);
        assert!(text.contains("set bridges { type ifname;  }"), "{text}");
        let zone = Zone { bridge: "b0".to_owned(), subnet: [172, 30, 0, 0].into(), prefix: 16 };
        let to = [172, 30, 0, 2].into();
        let forwards = [
            Forward { proto: 6, address: None, port: 80, to, to_port: 8080 },
            Forward { proto: 17, address: Some([127, 0, 0, 1].into()), port: 53, to, to_port: 53 },
        ];
        let text = table("insula-test", &[zone], &forwards);
        for part in [
            "elements = { \"b0\" . \"b0\" }",
            "elements = { 172.30.0.0/16 }",
            "elements = { 6 . 80 : 172.30.0.2 . 8080 }",
            "elements = { 127.0.0.1 . 17 . 53 : 172.30.0.2 . 53 }",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
