//! What other people's rules do to our traffic. We never change them; we say what is in the way.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use insula_base::Instance;
use insula_sys::netlink::Socket;

use super::{Error, batch};
use crate::netlink::message::{Batch, DUMP, attributes, text_of};

const GETCHAIN: u16 = 10 << 8 | 4;
const NEWCHAIN: u16 = 10 << 8 | 3;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
const POLICY_DROP: u32 = 0;
/// NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
/// Programs of the iptables family: where the kernel lists their tables, and what nftables calls them.
const PROGRAMS: [(&str, &str, &str); 2] =
    [("iptables", "ip_tables_names", "ip"), ("ip6tables", "ip6_tables_names", "ip6")];
/// Ports that one warning names.
const MOST_TOLD: usize = 5;
/// Chains by which ufw is known.
const UFW: [&str; 2] = ["ufw-user-forward", "ufw6-user-forward"];

/// A base chain that drops or rejects what none of its rules accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dropping {
    family: &'static str,
    table: String,
    chain: String,
}

/// All chains, as far as they matter here.
#[derive(Debug, Default)]
struct Chains {
    dropping: Vec<Dropping>,
    /// Base chains that accept by policy; their last rule may say otherwise.
    accepting: Vec<(u8, Dropping)>,
    ufw: bool,
    docker_user: bool,
}

/// Texts for the user: which foreign rules drop forwarded packets by default, as dockerd's do, and
/// how to let a bridge's pass; rules for IPv6 alone count when the bridge has it. Empty when nothing is in
/// the way. Starts programs when there is.
pub(super) fn forward_warnings(
    socket: &Socket,
    own_table: &str,
    bridge: &str,
    v6: bool,
) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    let chains = chains(socket, own_table, HOOK_FORWARD)?;
    for found in chains.dropping.iter().filter(|found| v6 || found.family != "ip6") {
        if !mentions(&["nft", "list", "table", found.family, &found.table], bridge) {
            warnings.push(chains.forward_warning(found, bridge));
        }
    }
    for (program, names, family) in PROGRAMS {
        let legacy = format!("{program}-legacy");
        let rules = if v6 || family == "ip" { legacy_rules(&legacy, names) } else { Vec::new() };
        if legacy_drops(&rules, "FORWARD") && !rules.iter().any(|rule| has_word(rule, bridge)) {
            let remedy = match rules.iter().any(|rule| UFW.iter().any(|chain| has_word(rule, chain))) {
                true => ufw_route(bridge),
                false => {
                    format!(
                        "{legacy} -I FORWARD -i {bridge} -j ACCEPT; {legacy} -I FORWARD -o {bridge} -j ACCEPT"
                    )
                }
            };
            warnings.push(format!(
                "{legacy} drops forwarded packets by default (chain FORWARD): containers on {bridge} \
                 cannot reach other hosts, nor other hosts their published ports; allow them with: {remedy}"
            ));
        }
    }
    Ok(warnings)
}

/// Texts for the user about input rules that do not guard published ports although their author
/// may think so. Starts programs where iptables-legacy is in use.
pub(super) fn input_warnings() -> Vec<String> {
    let mut warnings = Vec::new();
    for (program, names, _) in PROGRAMS {
        let legacy = format!("{program}-legacy");
        let rules = legacy_rules(&legacy, names);
        if legacy_drops(&rules, "INPUT") || rules.iter().any(|rule| rule.starts_with("-A INPUT ")) {
            warnings.push(format!(
                "the input rules of {legacy} do not guard published ports, which nftables cannot copy them \
                 for: filter published ports in its chain FORWARD (-m conntrack --ctorigdstport PORT)"
            ));
        }
    }
    warnings
}

/// Ports to be published (address, protocol, port) that the input chains of others drop by default and do not
/// name: texts for the user. Starts programs when there are such chains.
pub(super) fn port_warnings(
    socket: &Socket,
    own_table: &str,
    ports: &[(Option<IpAddr>, &str, u16)],
) -> Result<Vec<String>, Error> {
    // What the host alone reaches no filter of others judges.
    let ports: Vec<_> = ports.iter().filter(|(ip, ..)| !ip.is_some_and(|ip| ip.is_loopback())).collect();
    if ports.is_empty() {
        return Ok(Vec::new());
    }
    let chains = chains(socket, own_table, HOOK_INPUT)?;
    let mut warnings = Vec::new();
    for found in chains.dropping.iter().filter(|found| found.family != "ip6") {
        let Some(listing) = output(&["nft", "-s", "list", "table", found.family, &found.table]) else {
            continue;
        };
        let unnamed: Vec<_> = ports.iter().filter(|(_, _, port)| !names_port(&listing, *port)).collect();
        if unnamed.is_empty() {
            continue;
        }
        let told = &unnamed[..unnamed.len().min(MOST_TOLD)];
        let mut names: Vec<_> = told.iter().map(|(_, protocol, port)| format!("{port}/{protocol}")).collect();
        if unnamed.len() > told.len() {
            names.push(format!("{} more", unnamed.len() - told.len()));
        }
        let remedies: Vec<_> =
            told.iter().map(|(_, protocol, port)| chains.port_remedy(found, protocol, *port)).collect();
        let Dropping { family, table, chain } = found;
        warnings.push(format!(
            "the nftables chain {family} {table} {chain} drops incoming packets by default, for published ports, \
             too, and does not name {}: other hosts cannot reach what is published there; allow them with: {}",
            names.join(", "),
            remedies.join("; ")
        ));
    }
    Ok(warnings)
}

impl Chains {
    fn forward_warning(&self, found: &Dropping, bridge: &str) -> String {
        let Dropping { family, table, chain } = found;
        // It accepts what was translated.
        let ports = if table == "firewalld" { "" } else { ", nor other hosts their published ports" };
        let remedy = match program_of(found, "FORWARD") {
            _ if table == "firewalld" => {
                format!(
                    "firewall-cmd --permanent --zone=trusted --add-interface={bridge}; firewall-cmd --reload"
                )
            }
            Some(_) if self.ufw => ufw_route(bridge),
            Some(program) => {
                let target = if self.docker_user { "DOCKER-USER" } else { "FORWARD" };
                format!(
                    "{program} -I {target} -i {bridge} -j ACCEPT; {program} -I {target} -o {bridge} -j ACCEPT"
                )
            }
            None => format!(
                "nft insert rule {family} {table} {chain} iifname {bridge} accept; \
                 nft insert rule {family} {table} {chain} oifname {bridge} accept"
            ),
        };
        format!(
            "the nftables chain {family} {table} {chain} drops forwarded packets by default: containers on \
             {bridge} cannot reach other hosts{ports}; allow them with: {remedy}"
        )
    }

    fn port_remedy(&self, found: &Dropping, protocol: &str, port: u16) -> String {
        let Dropping { family, table, chain } = found;
        match program_of(found, "INPUT") {
            _ if table == "firewalld" => {
                format!("firewall-cmd --permanent --add-port={port}/{protocol}; firewall-cmd --reload")
            }
            Some(_) if self.ufw => format!("ufw allow {port}/{protocol}"),
            Some(program) => format!("{program} -I INPUT -p {protocol} --dport {port} -j ACCEPT"),
            None => format!("nft insert rule {family} {table} {chain} {protocol} dport {port} accept"),
        }
    }
}

/// The member of the iptables family whose chain it is.
fn program_of(found: &Dropping, chain: &str) -> Option<&'static str> {
    let program = PROGRAMS.iter().find(|known| known.2 == found.family).map(|known| known.0);
    program.filter(|_| found.table == "filter" && found.chain == chain)
}

fn ufw_route(bridge: &str) -> String {
    format!("ufw route allow in on {bridge}; ufw route allow out on {bridge}")
}

fn chains(socket: &Socket, own_table: &str, wanted: u32) -> Result<Chains, Error> {
    let mut found = Chains::default();
    let mut batch = Batch::new();
    batch.begin(GETCHAIN, DUMP, &[0; 4], "list", "nftables chains");
    batch.exchange(socket, |kind, payload| {
        if kind != NEWCHAIN || payload.len() < 4 {
            return;
        }
        let value = |wanted| attributes(&payload[4..]).find(|(kind, _)| *kind == wanted).map(|(_, raw)| raw);
        let name = |wanted| value(wanted).map(text_of).unwrap_or_default();
        let (table, chain) = (name(CHAIN_TABLE), name(CHAIN_NAME));
        found.ufw |= UFW.contains(&chain.as_str());
        found.docker_user |= chain == "DOCKER-USER";
        let Some((number, family)) = FAMILIES.into_iter().find(|(number, _)| *number == payload[0]) else {
            return;
        };
        let hook = value(CHAIN_HOOK).and_then(|hook| attributes(hook).find(|(kind, _)| *kind == HOOK_NUMBER));
        // Other instances of ours drop what goes to their bridges alone.
        let ours = table == own_table || Instance::has_table(&table);
        if ours || hook.and_then(|(_, raw)| number_of(raw)) != Some(wanted) {
            return;
        }
        let base = Dropping { family, table, chain };
        match value(CHAIN_POLICY).and_then(number_of) {
            Some(POLICY_DROP) => found.dropping.push(base),
            _ => found.accepting.push((number, base)),
        }
    })?;
    for (number, base) in std::mem::take(&mut found.accepting) {
        let mut last = false;
        batch::rules(socket, number, &base.table, Some(&base.chain), |rule| last = drops_all(rule))?;
        if last {
            found.dropping.push(base);
        }
    }
    Ok(found)
}

fn number_of(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|raw| u32::from_be_bytes(*raw))
}

/// Whether a rule (its attributes) drops or rejects whatever comes to it.
fn drops_all(rule: &[u8]) -> bool {
    const RULE_EXPRESSIONS: u16 = 4;
    const EXPR_NAME: u16 = 1;
    const EXPR_DATA: u16 = 2;
    const TARGET_NAME: u16 = 1;
    const IMMEDIATE_DATA: u16 = 2;
    const DATA_VERDICT: u16 = 2;
    const VERDICT_CODE: u16 = 1;
    let within = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, raw)| raw);
    let Some(expressions) = within(rule, RULE_EXPRESSIONS) else { return false };
    let mut drops = false;
    for (_, expression) in attributes(expressions) {
        let data = within(expression, EXPR_DATA).unwrap_or_default();
        let verdict = || within(within(within(data, IMMEDIATE_DATA)?, DATA_VERDICT)?, VERDICT_CODE);
        match within(expression, EXPR_NAME).map(text_of).as_deref() {
            Some("counter" | "log") => {}
            Some("reject") => drops = true,
            Some("immediate") if verdict().and_then(number_of) == Some(POLICY_DROP) => drops = true,
            Some("target") if within(data, TARGET_NAME).is_some_and(|name| text_of(name) == "REJECT") => {
                drops = true;
            }
            _ => return false,
        }
    }
    drops
}

/// Whether the words of a listing name the bridge: somebody has made a rule for it.
fn mentions(listing: &[&str], bridge: &str) -> bool {
    output(listing).is_some_and(|text| has_word(&text, bridge))
}

fn has_word(text: &str, wanted: &str) -> bool {
    text.split(|letter: char| !(letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.')))
        .any(|word| word == wanted)
}

/// Whether a port, or a range around it, is among the words of a listing.
fn names_port(text: &str, port: u16) -> bool {
    text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '-')).any(|word| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if (first..=last).contains(&port))
    })
}

/// The rules of a filter table of iptables-legacy, as it writes them. The kernel lists the tables that are in
/// use; only then is it asked.
fn legacy_rules(program: &str, names: &str) -> Vec<String> {
    let names = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
    if !names.lines().any(|name| name == "filter") {
        return Vec::new();
    }
    output(&[program, "-S"]).unwrap_or_default().lines().map(|line| line.trim().to_owned()).collect()
}

fn legacy_drops(rules: &[String], chain: &str) -> bool {
    let appended = format!("-A {chain} ");
    let last = rules.iter().rev().find_map(|rule| rule.strip_prefix(&appended)).unwrap_or_default();
    rules.contains(&format!("-P {chain} DROP")) || last == "-j DROP" || last.starts_with("-j REJECT")
}

fn output(command: &[&str]) -> Option<String> {
    let (program, arguments) = command.split_first()?;
    let found = [(*program).to_owned(), format!("/usr/sbin/{program}")].into_iter().find_map(|program| {
        Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
    })?;
    Some(String::from_utf8_lossy(&found.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_named_by_its_number_or_a_range() {
        let listing = "tcp dport { 80, 8000-8100 } accept\nudp dport 53 accept # handle 9";
        for port in [80, 8000, 8050, 8100, 53, 9] {
            assert!(names_port(listing, port), "{port}");
        }
        for port in [79, 8101, 54, 1] {
            assert!(!names_port(listing, port), "{port}");
        }
    }

    #[test]
    fn the_last_rule_of_iptables_counts_as_its_policy() {
        let rules = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert!(legacy_drops(&rules("-P FORWARD DROP\n-A FORWARD -i x -j ACCEPT"), "FORWARD"));
        assert!(legacy_drops(&rules("-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with y"), "FORWARD"));
        for accepting in
            ["-P FORWARD ACCEPT", "-P INPUT DROP", "-A FORWARD -j DROP\n-A FORWARD -i x -j ACCEPT"]
        {
            assert!(!legacy_drops(&rules(accepting), "FORWARD"), "{accepting}");
        }
    }
}
