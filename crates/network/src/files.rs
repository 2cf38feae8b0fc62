//! Text of `/etc/resolv.conf`, `/etc/hosts` and `/etc/hostname`. Pure functions, except for the one
//! that reads the host's resolvers.

use std::fmt::Write as _;
use std::net::IpAddr;

/// Used when the host has no resolver that a container could reach, as Docker does.
pub const FALLBACK_RESOLVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// Lines and bytes of a resolver file that are read; more is ignored.
const MAX_FILE: usize = 64 * 1024;

/// The user's `--dns`, `--dns-search` and `--dns-option`. What is empty comes from the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    pub servers: Vec<IpAddr>,
    /// A single `.` stands for no search domain at all.
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// What the host's resolv.conf says, as far as containers need it.
#[derive(Debug, Default)]
struct Resolvers<'a> {
    servers: Vec<&'a str>,
    search: Vec<&'a str>,
    options: Vec<&'a str>,
}

/// The host's resolv.conf; where that names systemd-resolved's own address alone, the file in which
/// it lists the servers behind it. Empty when there is none.
#[must_use]
pub fn host_resolv_conf() -> String {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if parse(&text).servers == ["127.0.0.53"] {
        return std::fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or(text);
    }
    text
}

/// The container's resolv.conf from the host's and the user's wishes.
///
/// `shares_host` is for containers in the host's namespace, which reach resolvers on the host's
/// loopback. In others those are left out, and when nothing remains [`FALLBACK_RESOLVERS`] stand in.
#[must_use]
pub fn resolv_conf(host: &str, dns: &Dns, shares_host: bool) -> String {
    let found = parse(host);
    let mut text = String::new();
    let search: Vec<&str> = if dns.search.is_empty() {
        found.search
    } else {
        dns.search.iter().map(String::as_str).filter(|domain| *domain != ".").collect()
    };
    if dns.servers.is_empty() {
        let mut servers: Vec<&str> =
            found.servers.into_iter().filter(|server| shares_host || reachable(server)).collect();
        if servers.is_empty() {
            servers.extend(FALLBACK_RESOLVERS);
        }
        servers.iter().for_each(|server| line(&mut text, "nameserver", server));
    } else {
        dns.servers.iter().for_each(|server| line(&mut text, "nameserver", &server.to_string()));
    }
    if !search.is_empty() {
        line(&mut text, "search", &search.join(" "));
    }
    let options: Vec<&str> =
        if dns.options.is_empty() { found.options } else { dns.options.iter().map(String::as_str).collect() };
    if !options.is_empty() {
        line(&mut text, "options", &options.join(" "));
    }
    text
}

/// resolv.conf of a container whose name server is the daemon's. A plain name is asked for as it is first,
/// so that it is not looked for elsewhere before it is found among the containers.
#[must_use]
pub fn resolv_conf_named(host: &str, dns: &Dns) -> String {
    let servers = vec![IpAddr::V4(insula_host::resolver::ADDRESS)];
    let mut options = if dns.options.is_empty() {
        parse(host).options.into_iter().map(str::to_owned).collect()
    } else {
        dns.options.clone()
    };
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    resolv_conf(host, &Dns { servers, search: dns.search.clone(), options }, false)
}

/// The name servers of a resolv.conf, without those of a link.
#[must_use]
pub(crate) fn servers(text: &str) -> Vec<IpAddr> {
    parse(text).servers.iter().filter_map(|server| server.parse().ok()).collect()
}

/// The container's hosts file: loopback, then `extra` (`--add-host`), then its own addresses.
#[must_use]
pub fn hosts(addresses: &[IpAddr], hostname: &str, domain: &str, extra: &[(String, IpAddr)]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for (name, ip) in extra {
        let _ = writeln!(text, "{ip}\t{name}");
    }
    let full = if domain.is_empty() { hostname.to_owned() } else { format!("{hostname}.{domain}") };
    for address in addresses.iter().filter(|_| !hostname.is_empty()) {
        let _ = match full.split_once('.') {
            None => writeln!(text, "{address}\t{full}"),
            Some((short, _)) => writeln!(text, "{address}\t{full} {short}"),
        };
    }
    text
}

/// The hosts file of a container in the host's namespace: `extra` wins, then all that the host's says.
#[must_use]
pub fn hosts_of_host(host: &str, extra: &[(String, IpAddr)]) -> String {
    let mut text = String::new();
    for (name, ip) in extra {
        let _ = writeln!(text, "{ip}\t{name}");
    }
    text + host
}

/// The container's hostname file.
#[must_use]
pub fn hostname(name: &str) -> String {
    format!("{name}\n")
}

fn line(text: &mut String, keyword: &str, value: &str) {
    text.push_str(keyword);
    text.push(' ');
    text.push_str(value);
    text.push('\n');
}

/// resolv.conf(5): the last `search` or `domain` counts, options add up, three servers are used.
fn parse(host: &str) -> Resolvers<'_> {
    let mut found = Resolvers::default();
    let end = (0..=MAX_FILE.min(host.len())).rev().find(|end| host.is_char_boundary(*end)).unwrap_or(0);
    for text in host[..end].lines() {
        let text = text.split(['#', ';']).next().unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => found.servers.extend(words.next().filter(|word| is_address(word))),
            Some("search") => found.search = words.filter(|word| *word != ".").collect(),
            Some("domain") => found.search = words.take(1).collect(),
            Some("options") => found.options.extend(words),
            _ => {}
        }
    }
    found.servers.truncate(3);
    found
}

/// An address, with or without a scope (`fe80::1%eth0`).
fn address_of(server: &str) -> Option<IpAddr> {
    server.split('%').next().and_then(|address| address.parse().ok())
}

fn is_address(server: &str) -> bool {
    address_of(server).is_some()
}

/// Whether a container with a namespace of its own can reach the resolver: loopback is its own,
/// a link-local address needs an interface that it has not.
fn reachable(server: &str) -> bool {
    match address_of(server) {
        Some(IpAddr::V4(address)) => !address.is_loopback() && !address.is_unspecified(),
        // The default bridge has no IPv6 yet.
        Some(IpAddr::V6(_)) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# made by hand\nnameserver 10.0.0.2 ; office\nnameserver fe80::1%eth0\n\
                        nameserver 127.0.0.53\nsearch corp.example example\noptions edns0 trust-ad\n";

    #[test]
    fn the_hosts_resolvers_are_taken_over() {
        assert_eq!(
            resolv_conf(HOST, &Dns::default(), false),
            "nameserver 10.0.0.2\nsearch corp.example example\noptions edns0 trust-ad\n"
        );
        assert_eq!(
            resolv_conf(HOST, &Dns::default(), true),
            "nameserver 10.0.0.2\nnameserver fe80::1%eth0\nnameserver 127.0.0.53\n\
             search corp.example example\noptions edns0 trust-ad\n"
        );
    }

    #[test]
    fn resolvers_on_loopback_alone_fall_back() {
        for host in ["nameserver 127.0.0.53\n", "", "nameserver\nnameserver x\n"] {
            assert_eq!(
                resolv_conf(host, &Dns::default(), false),
                "nameserver 8.8.8.8\nnameserver 8.8.4.4\n",
                "{host:?}"
            );
        }
    }

    #[test]
    fn the_users_wishes_win() {
        let dns = Dns {
            servers: vec!["1.1.1.1".parse().unwrap(), "::1".parse().unwrap()],
            search: vec![".".to_owned()],
            options: vec!["ndots:2".to_owned()],
        };
        assert_eq!(resolv_conf(HOST, &dns, false), "nameserver 1.1.1.1\nnameserver ::1\noptions ndots:2\n");
    }

    #[test]
    fn the_last_search_counts_and_long_files_end() {
        let host = format!("search a b\ndomain c\n{}\nnameserver 9.9.9.9\n", "#é".repeat(MAX_FILE));
        assert_eq!(
            resolv_conf(&host, &Dns::default(), false),
            "nameserver 8.8.8.8\nnameserver 8.8.4.4\nsearch c\n"
        );
    }

    #[test]
    fn a_named_container_asks_the_daemon() {
        let text = resolv_conf_named(HOST, &Dns::default());
        assert_eq!(
            text,
            "nameserver 127.0.0.11\nsearch corp.example example\noptions edns0 trust-ad ndots:0\n"
        );
        let dns = Dns { options: vec!["ndots:3".to_owned()], ..Dns::default() };
        assert!(resolv_conf_named("", &dns).ends_with("options ndots:3\n"));
    }

    #[test]
    fn hosts_file() {
        let loopback = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                        fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\n\
                        ff02::2\tip6-allrouters\n";
        let extra = [("db".to_owned(), "10.1.1.1".parse().unwrap())];
        let address = ["172.30.0.2".parse().unwrap()];
        assert_eq!(hosts(&address, "web", "", &extra), format!("{loopback}10.1.1.1\tdb\n172.30.0.2\tweb\n"));
        assert_eq!(
            hosts(&address, "web", "example.org", &[]),
            format!("{loopback}172.30.0.2\tweb.example.org web\n")
        );
        assert_eq!(
            hosts(&address, "web.example.org", "", &[]),
            format!("{loopback}172.30.0.2\tweb.example.org web\n")
        );
        assert_eq!(hosts_of_host("::1 host\n", &extra), "10.1.1.1\tdb\n::1 host\n");
        assert_eq!(hosts(&[], "web", "", &[]), loopback);
        assert_eq!(hostname("web"), "web\n");
    }
}
