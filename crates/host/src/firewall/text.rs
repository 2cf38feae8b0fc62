//! The table as `nft` reads it.

use std::fmt::Write as _;

use super::{Forward, Zone};

/// A table of this name in place of the one there may be, in one transaction.
pub(super) fn table(name: &str, zones: &[Zone], forwards: &[Forward]) -> String {
    let bridges = elements(zones.iter().map(|zone| format!("\"{}\"", zone.bridge)));
    let within = elements(zones.iter().map(|zone| format!("\"{0}\" . \"{0}\"", zone.bridge)));
    let internal =
        elements(zones.iter().filter(|zone| zone.internal).map(|zone| format!("\"{}\"", zone.bridge)));
    let hidden = zones.iter().filter(|zone| zone.masquerade);
    let subnets = elements(hidden.map(|zone| format!("{}/{}", zone.subnet, zone.prefix)));
    let hidden6 = zones.iter().filter_map(|zone| zone.v6.as_ref()).filter(|v6| v6.masquerade);
    let subnets6 = elements(hidden6.map(|v6| format!("{}/{}", v6.subnet, v6.prefix)));
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
	set internal {{ type ifname; {internal} }}
	set subnets {{ type ipv4_addr; flags interval; {subnets} }}
	set subnets6 {{ type ipv6_addr; flags interval; {subnets6} }}
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
		ip6 saddr @subnets6 oifname != @bridges masquerade
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname @internal iifname . oifname != @within drop
		oifname @internal iifname . oifname != @within drop
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
    use crate::firewall::Zone6;

    #[test]
    fn elements_are_listed_only_when_there_are_some() {
        let text = table("insula-test", &[], &[]);
        assert!(text.contains("set bridges { type ifname;  }"), "{text}");
        let zone = Zone {
            bridge: "b0".to_owned(),
            subnet: [172, 30, 0, 0].into(),
            prefix: 16,
            masquerade: true,
            internal: false,
            v6: Some(Zone6 { subnet: "fd00::".parse().unwrap(), prefix: 64, masquerade: true }),
        };
        let to = [172, 30, 0, 2].into();
        let forwards = [
            Forward { proto: 6, address: None, port: 80, to, to_port: 8080 },
            Forward { proto: 17, address: Some([127, 0, 0, 1].into()), port: 53, to, to_port: 53 },
        ];
        let text = table("insula-test", &[zone], &forwards);
        for part in [
            "elements = { \"b0\" . \"b0\" }",
            "set internal { type ifname;  }",
            "elements = { 172.30.0.0/16 }",
            "elements = { fd00::/64 }",
            "elements = { 6 . 80 : 172.30.0.2 . 8080 }",
            "elements = { 127.0.0.1 . 17 . 53 : 172.30.0.2 . 53 }",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
