//! What other people's rules do to our traffic. We never change them; we say what is in the way.

use std::process::{Command, Stdio};

use super::{Error, batch};
use crate::netlink::message::{Batch, DUMP, attributes, text_of};

const GETCHAIN: u16 = 10 << 8 | 4;
const NEWCHAIN: u16 = 10 << 8 | 3;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
const HOOK_FORWARD: u32 = 2;
const POLICY_DROP: u32 = 0;
/// NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
/// Programs of the iptables family: where the kernel lists their tables, and what nftables calls them.
const PROGRAMS: [(&str, &str, &str); 2] =
    [("iptables", "ip_tables_names", "ip"), ("ip6tables", "ip6_tables_names", "ip6")];

/// A chain at the forward hook that drops what nobody accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dropping {
    family: &'static str,
    table: String,
    chain: String,
}

/// Texts for the user: which foreign rules drop forwarded packets by default, as dockerd's do, and
/// how to let a bridge's pass; rules for IPv6 alone count when the bridge has it. Empty when nothing is in
/// the way. Starts programs when there is.
pub fn forward_warnings(own_table: &str, bridge: &str, v6: bool) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    for found in dropping_chains()?.into_iter().filter(|found| v6 || found.family != "ip6") {
        if found.table == own_table || mentions(&["nft", "list", "table", found.family, &found.table], bridge)
        {
            continue;
        }
        warnings.push(warning(&found, bridge));
    }
    for (program, names, family) in PROGRAMS {
        let legacy = format!("{program}-legacy");
        let counts = v6 || family == "ip";
        if counts && legacy_drops(&legacy, names) && !mentions(&[&legacy, "-S"], bridge) {
            warnings.push(format!(
                "{legacy} drops forwarded packets by default (chain FORWARD): containers on {bridge} \
                 cannot reach other hosts; allow them with: \
                 {legacy} -I FORWARD -i {bridge} -j ACCEPT; {legacy} -I FORWARD -o {bridge} -j ACCEPT"
            ));
        }
    }
    Ok(warnings)
}

fn warning(found: &Dropping, bridge: &str) -> String {
    let Dropping { family, table, chain } = found;
    let program = PROGRAMS.iter().find(|known| known.2 == *family).map(|known| known.0);
    let remedy = if let (Some(program), "filter", "FORWARD") = (program, table.as_str(), chain.as_str()) {
        let target = if has_chain("DOCKER-USER") { "DOCKER-USER" } else { "FORWARD" };
        format!("{program} -I {target} -i {bridge} -j ACCEPT; {program} -I {target} -o {bridge} -j ACCEPT")
    } else {
        format!(
            "nft insert rule {family} {table} {chain} iifname {bridge} accept; \
             nft insert rule {family} {table} {chain} oifname {bridge} accept"
        )
    };
    format!(
        "the nftables chain {family} {table} {chain} drops forwarded packets by default: containers on \
         {bridge} cannot reach other hosts; allow them with: {remedy}"
    )
}

fn chains(mut visit: impl FnMut(u8, String, String, &[u8])) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.begin(GETCHAIN, DUMP, &[0; 4], "list", "nftables chains");
    batch.exchange(&batch::open()?, |kind, payload| {
        if kind != NEWCHAIN || payload.len() < 4 {
            return;
        }
        let named = |wanted| attributes(&payload[4..]).find(|(kind, _)| *kind == wanted);
        let name = |wanted| named(wanted).map(|(_, text)| text_of(text)).unwrap_or_default();
        visit(payload[0], name(CHAIN_TABLE), name(CHAIN_NAME), &payload[4..]);
    })?;
    Ok(())
}

fn dropping_chains() -> Result<Vec<Dropping>, Error> {
    let mut found = Vec::new();
    chains(|family, table, chain, payload| {
        let Some((_, family)) = FAMILIES.into_iter().find(|(number, _)| *number == family) else { return };
        let value = |wanted| attributes(payload).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let hook = value(CHAIN_HOOK)
            .and_then(|hook| attributes(hook).find(|(kind, _)| *kind == HOOK_NUMBER))
            .and_then(|(_, number)| number.first_chunk().map(|raw| u32::from_be_bytes(*raw)));
        let policy =
            value(CHAIN_POLICY).and_then(|value| value.first_chunk()).map(|raw| u32::from_be_bytes(*raw));
        if (hook, policy) == (Some(HOOK_FORWARD), Some(POLICY_DROP)) {
            found.push(Dropping { family, table, chain });
        }
    })?;
    Ok(found)
}

fn has_chain(name: &str) -> bool {
    let mut found = false;
    // Only the wording of a hint depends on it.
    let _ = chains(|_, _, chain, _| found |= chain == name);
    found
}

/// Whether the words of a listing name the bridge: somebody has made a rule for it.
fn mentions(listing: &[&str], bridge: &str) -> bool {
    let split = |letter: char| !(letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.'));
    output(listing).is_some_and(|text| text.split(split).any(|word| word == bridge))
}

/// The kernel lists the tables of iptables-legacy that are in use; only then is it asked.
fn legacy_drops(program: &str, names: &str) -> bool {
    let names = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
    names.lines().any(|name| name == "filter")
        && output(&[program, "-S", "FORWARD"])
            .is_some_and(|text| text.lines().any(|line| line.trim() == "-P FORWARD DROP"))
}

fn output(command: &[&str]) -> Option<String> {
    let (program, arguments) = command.split_first()?;
    let found = [(*program).to_owned(), format!("/usr/sbin/{program}")].into_iter().find_map(|program| {
        Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
    })?;
    Some(String::from_utf8_lossy(&found.stdout).into_owned())
}
