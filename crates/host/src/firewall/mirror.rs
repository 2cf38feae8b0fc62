//! The administrator's filter of incoming packets, applied to published ports.
//!
//! A published port is translated before the kernel decides that a packet is for the host, so no
//! `input` chain ever sees it. What the administrator says there holds nevertheless: the `input` chains of
//! nftables are copied into our table, where they judge the first packet of every connection to a
//! published port before it is translated. The copy is made anew when the rules change.
//!
//! What cannot be copied (rules of iptables that nftables has no words for) is said.

use std::fmt::Write as _;
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
const HOOK_PRIORITY: u16 = 2;
const LOCAL_IN: u32 = 1;
const DROP: u32 = 0;
/// NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 and what nft calls them.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (IPV4, "ip"), (IPV6, "ip6")];
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// Text of one table that is copied; lists of a hundred thousand addresses are below it.
const LARGEST: usize = 8 << 20;
/// What names of copies begin with.
pub(super) const PREFIX: &str = "theirs";
/// Tables that are copied.
const MOST: usize = 16;

/// Copies of chains, in the words of nft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) text: String,
    /// What could not be copied, for the user.
    pub(super) warnings: Vec<String>,
    /// All of it as it was read.
    pub(super) seen: String,
}

impl Mirror {
    pub(super) fn seen(&self) -> String {
        format!("{}{}", self.text, self.warnings.join("\n"))
    }
}

/// A base chain at the input hook.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Base {
    family: u8,
    table: String,
    chain: String,
    priority: i32,
    drops: bool,
}

/// Reads what others filter. Starts a program for each table that does, none where nobody does.
pub(super) fn read(own: &str) -> Result<Mirror, Error> {
    let mut bases = bases(own)?;
    bases.sort_by_key(|base| base.priority);
    let mut tables: Vec<(u8, String)> = bases.iter().map(|base| (base.family, base.table.clone())).collect();
    tables.sort();
    tables.dedup();
    tables.truncate(MOST);
    let mut mirror = Mirror::default();
    for (number, (family, table)) in tables.iter().enumerate() {
        let Some((_, name)) = FAMILIES.iter().find(|known| known.0 == *family) else { continue };
        let prefix = format!("{PREFIX}{number}_");
        let within =
            bases.iter().enumerate().filter(|(_, base)| base.family == *family && base.table == *table);
        let copied = list(name, table).and_then(|text| copy(&text, &prefix));
        match copied {
            Ok(Copied { text, omitted }) => {
                mirror.text.push_str(&text);
                if let Some(first) = omitted.first() {
                    mirror.warnings.push(format!(
                        "{} of the nftables table {name} {table} cannot be copied and do not guard published ports, \
                         such as {first:?}; filter them in a forward chain",
                        match omitted.len() {
                            1 => "a rule".to_owned(),
                            count => format!("{count} rules"),
                        }
                    ));
                }
                for (rank, base) in within {
                    mirror.text.push_str(&judge(rank, &prefix, base));
                }
            }
            Err(why) => mirror.warnings.push(format!(
                "the input rules of the nftables table {name} {table} do not guard published ports: {why}; \
                 filter them in a forward chain"
            )),
        }
    }
    Ok(mirror)
}

fn bases(own: &str) -> Result<Vec<Base>, Error> {
    let mut found = Vec::new();
    let mut batch = Batch::new();
    batch.begin(GETCHAIN, DUMP, &[0; 4], "list", "nftables chains");
    batch.exchange(&batch::open()?, |kind, payload| {
        if kind == NEWCHAIN && payload.len() >= 4 && FAMILIES.iter().any(|known| known.0 == payload[0]) {
            found.extend(base(payload[0], &payload[4..]).filter(|base| base.table != own));
        }
    })?;
    Ok(found)
}

fn base(family: u8, payload: &[u8]) -> Option<Base> {
    let value = |wanted| attributes(payload).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let number = |bytes: &[u8]| bytes.first_chunk().map(|raw| u32::from_be_bytes(*raw));
    let hook = value(CHAIN_HOOK)?;
    let of_hook =
        |wanted| attributes(hook).find(|(kind, _)| *kind == wanted).and_then(|(_, raw)| number(raw));
    if of_hook(HOOK_NUMBER)? != LOCAL_IN {
        return None;
    }
    Some(Base {
        family,
        table: text_of(value(CHAIN_TABLE)?),
        chain: text_of(value(CHAIN_NAME)?),
        priority: of_hook(HOOK_PRIORITY).unwrap_or_default() as i32,
        drops: value(CHAIN_POLICY).and_then(number) == Some(DROP),
    })
}

/// The table without its counters.
fn list(family: &str, table: &str) -> Result<String, String> {
    for program in ["nft", "/usr/sbin/nft"] {
        let output = Command::new(program)
            .args(["-s", "list", "table", family, table])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        if let Ok(output) = output.as_ref()
            && output.status.success()
        {
            return String::from_utf8(output.stdout.clone()).map_err(|_| "they are no text".to_owned());
        }
    }
    Err("nft cannot list them".to_owned())
}

/// A chain that has a copied one judge, and what follows from its policy.
fn judge(rank: usize, prefix: &str, base: &Base) -> String {
    let end = if base.drops { "\n\t\tdrop" } else { "" };
    let priority = -149 + i32::try_from(rank).unwrap_or(40).min(40);
    let mut doors = String::new();
    for (family, name, word, suffix) in [(IPV4, "ipv4", "ip", ""), (IPV6, "ipv6", "ip6", "6")] {
        // A table of the other family has no word about these packets.
        if base.family == family || ![IPV4, IPV6].contains(&base.family) {
            let _ = write!(
                doors,
                "\t\tmeta nfproto {name} meta l4proto . th dport @published{suffix} goto verdict{rank}\n\
                 \t\t{word} daddr . meta l4proto . th dport @addressed{suffix} goto verdict{rank}\n"
            );
        }
    }
    format!(
        "\tchain verdict{rank} {{\n\t\tjump {prefix}{}{end}\n\t}}\n\
         \tchain judge{rank} {{\n\t\ttype filter hook prerouting priority {priority}; policy accept;\n\
         \t\tiifname @bridges return\n\t\tct state != new return\n\t\tfib daddr type != local return\n\
         {doors}\t}}\n",
        base.chain
    )
}

/// A table under other names.
#[derive(Debug, Default, PartialEq, Eq)]
struct Copied {
    text: String,
    /// Rules that nftables has no words for.
    omitted: Vec<String>,
}

/// Sets, maps and chains of a table under other names. Base chains become plain ones; those of other hooks
/// are left out, and so are rules that nftables has no words for, which are returned. Anything else that is not
/// understood is an error.
fn copy(text: &str, prefix: &str) -> Result<Copied, String> {
    if text.len() > LARGEST {
        return Err(format!("they are longer than {LARGEST} bytes"));
    }
    let mut copied = String::new();
    let mut omitted = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let mut words = line.split_whitespace();
        let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !line.starts_with('\t') || line.starts_with("\t\t") || !line.ends_with('{') {
            continue;
        }
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "\t}").collect();
        match kind {
            "set" | "map" => {}
            "chain" => {
                let hooked = block.first().is_some_and(|first| first.contains(" hook "));
                if hooked && !block[0].contains(" hook input ") {
                    continue;
                }
            }
            _ => continue,
        }
        let _ = writeln!(copied, "\t{kind} {prefix}{name} {{");
        for line in &block {
            if kind == "chain" && line.contains(" hook input ") {
                continue;
            }
            match renamed(line, prefix)? {
                Some(line) => {
                    let _ = writeln!(copied, "{line}");
                }
                None if kind == "chain" && !for_ports(line) => {}
                None if kind == "chain" => omitted.push(line.trim().to_owned()),
                None => {
                    return Err(format!("the {kind} {name} has no words in nftables that could be copied"));
                }
            }
        }
        copied.push_str("\t}\n");
    }
    Ok(Copied { text: copied, omitted })
}

/// Whether a rule is about packets that a published port can have.
fn for_ports(rule: &str) -> bool {
    let protocol = rule.trim().strip_prefix("meta l4proto ").and_then(|rest| rest.split(' ').next());
    protocol.is_none_or(|protocol| !protocol.contains("icmp"))
}

/// One line with the names of chains and sets changed; nothing where the rule is one of iptables that nftables
/// has no words for, or needs what belongs to its table.
fn renamed(line: &str, prefix: &str) -> Result<Option<String>, String> {
    let foreign =
        ["xt match", "xt target", "# xt_", "ct helper set", "quota name", "limit name", "synproxy name"];
    if foreign.iter().any(|foreign| line.contains(foreign)) {
        return Ok(None);
    }
    let mut text = String::with_capacity(line.len() + 16);
    let mut quoted = false;
    let mut rest = line;
    while let Some(letter) = rest.chars().next() {
        quoted ^= letter == '"';
        let after_space = text.ends_with([' ', '\t']);
        if !quoted
            && after_space
            && let Some(named) = rest.strip_prefix("counter name \"")
        {
            // The counter stays with its owner.
            let end = named.find('"').ok_or("a name without its end")?;
            rest = named[end + 1..].trim_start();
            continue;
        }
        let verb = ["jump ", "goto "].into_iter().find(|verb| rest.starts_with(verb));
        if let (false, true, Some(verb)) = (quoted, after_space, verb) {
            text.push_str(verb);
            text.push_str(prefix);
            rest = &rest[verb.len()..];
            continue;
        }
        text.push(letter);
        rest = &rest[letter.len_utf8()..];
        // `@th,16,16` are bytes of a packet, `@name` is a set.
        let raw = ["ll,", "nh,", "th,", "ih,"].iter().any(|base| rest.starts_with(base));
        if letter == '@' && !quoted && !raw {
            text.push_str(prefix);
        }
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "table inet filter {
\tset friends {
\t\ttype ipv4_addr
\t\telements = { 10.0.0.1, 10.0.0.2 }
\t}

\tcounter seen {
\t\tpackets 0 bytes 0
\t}

\tchain input {
\t\ttype filter hook input priority filter; policy drop;
\t\tct state established,related accept
\t\tip saddr @friends counter name \"seen\" accept comment \"jump @friends\"
\t\ttcp dport vmap { 22 : jump ssh, 80 : goto web }
\t\t@th,16,16 443 jump web
\t}

\tchain ssh {
\t\taccept
\t}

\tchain web {
\t\tlimit rate 5/second accept
\t}

\tchain forward {
\t\ttype filter hook forward priority filter; policy accept;
\t\toifname \"eth0\" drop
\t}
}
";

    #[test]
    fn chains_and_sets_get_names_of_their_own() {
        let Copied { text: copied, omitted } = copy(TABLE, "t_").unwrap();
        assert_eq!(omitted, [""; 0]);
        for part in [
            "\tset t_friends {\n\t\ttype ipv4_addr\n",
            "\tchain t_input {\n\t\tct state established,related accept\n",
            "\t\tip saddr @t_friends accept comment \"jump @friends\"\n",
            "vmap { 22 : jump t_ssh, 80 : goto t_web }",
            "@th,16,16 443 jump t_web",
        ] {
            assert!(copied.contains(part), "{part} in {copied}");
        }
        for part in ["forward", "counter", "hook"] {
            assert!(!copied.contains(part), "{part} in {copied}");
        }
    }

    #[test]
    fn a_rule_that_has_no_words_is_left_out_and_told() {
        let text = TABLE.replace("limit rate 5/second accept", "xt match \"recent\" accept");
        let copied = copy(&text, "t_").unwrap();
        assert_eq!(copied.omitted, ["xt match \"recent\" accept"]);
        let text =
            TABLE.replace("limit rate 5/second accept", "meta l4proto ipv6-icmp xt match icmp6 accept");
        assert_eq!(copy(&text, "t_").unwrap().omitted, [""; 0], "no published port is of ICMP");
        assert!(copied.text.contains("\tchain t_web {\n\t}\n"), "{}", copied.text);
        assert!(copied.text.contains("\t\tct state established,related accept\n"), "{}", copied.text);
        assert!(copy(&TABLE.replace("type ipv4_addr", "xt match \"x\""), "t_").is_err());
        assert!(copy(&"x".repeat(LARGEST + 1), "t_").is_err());
        assert_eq!(copy("", "t_").unwrap(), Copied::default());
    }
}
