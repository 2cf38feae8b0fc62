//! The column PORTS: neighbouring ports are one range.

use insula_models::PortSummary;
use insula_spec::sites::{Site, Speech};

/// `0.0.0.0:8080-8081->80-81/tcp, 443/tcp`.
pub(crate) fn display(ports: &[PortSummary]) -> String {
    let mut sorted: Vec<&PortSummary> = ports.iter().collect();
    sorted.sort_by_key(|port| (port.private_port, port.ip.clone(), port.public_port, port.r#type.clone()));
    let mut ranges: Vec<Range> = Vec::new();
    for port in sorted {
        // Ranges are kept for each address and protocol apart, as their members come in turns.
        match ranges.iter_mut().rev().find(|range| range.of(port)) {
            Some(range) if range.is_followed_by(port) => range.length += 1,
            Some(range) if range.holds(port) => {}
            _ => ranges.push(Range::new(port)),
        }
    }
    ranges.iter().map(Range::text).collect::<Vec<_>>().join(", ")
}

/// Host names that one line shows, unless all are asked for.
const MOST_NAMES: usize = 3;

/// `shop.example.org->80/http`, behind the ports.
pub(crate) fn with_names(ports: &[PortSummary], names: &[String], cut: bool) -> String {
    let sites = names.iter().filter_map(|name| name.parse::<Site>().ok());
    let mut all: Vec<String> = Some(display(ports)).filter(|text| !text.is_empty()).into_iter().collect();
    let most = if cut { MOST_NAMES } else { usize::MAX };
    all.extend(sites.take(most).map(|site| format!("{}->{}", site.name, at(&site))));
    if names.len() > most {
        all.push(format!("and {} more", names.len() - most));
    }
    all.join(", ")
}

/// A host name's end at the container: `80/http`.
pub(crate) fn at(site: &Site) -> String {
    let protocol = match site.speech {
        Speech::Http | Speech::Plain => "http",
        Speech::H2c => "h2c",
        Speech::Tls => "tls",
    };
    format!("{}/{protocol}", site.port.unwrap_or_default())
}

struct Range<'a> {
    first: &'a PortSummary,
    length: u16,
}

impl<'a> Range<'a> {
    fn new(first: &'a PortSummary) -> Self {
        Self { first, length: 1 }
    }

    fn of(&self, port: &PortSummary) -> bool {
        self.first.ip == port.ip
            && self.first.r#type == port.r#type
            && (self.first.public_port == 0) == (port.public_port == 0)
    }

    fn is_followed_by(&self, port: &PortSummary) -> bool {
        let published = self.first.public_port != 0;
        port.private_port.checked_sub(self.length) == Some(self.first.private_port)
            && (!published || port.public_port.checked_sub(self.length) == Some(self.first.public_port))
    }

    fn holds(&self, port: &PortSummary) -> bool {
        self.length == 1
            && self.first.private_port == port.private_port
            && self.first.public_port == port.public_port
    }

    fn text(&self) -> String {
        let span = |first: u16| match self.length {
            1 => first.to_string(),
            length => format!("{first}-{}", u32::from(first) + u32::from(length) - 1),
        };
        let private = format!("{}/{}", span(self.first.private_port), self.first.r#type);
        if self.first.public_port == 0 {
            return private;
        }
        let ip = match self.first.ip.as_str() {
            ip if ip.contains(':') => format!("[{ip}]"),
            ip => ip.to_owned(),
        };
        format!("{ip}:{}->{private}", span(self.first.public_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: &str, private_port: u16, public_port: u16) -> PortSummary {
        PortSummary { ip: ip.to_owned(), private_port, public_port, r#type: "tcp".to_owned() }
    }

    #[test]
    fn neighbours_are_a_range() {
        let ports = [
            port("0.0.0.0", 80, 8080),
            port("::", 80, 8080),
            port("0.0.0.0", 81, 8081),
            port("::", 81, 8081),
            port("", 443, 0),
            port("", 444, 0),
            port("127.0.0.1", 90, 9000),
        ];
        assert_eq!(
            display(&ports),
            "0.0.0.0:8080-8081->80-81/tcp, [::]:8080-8081->80-81/tcp, 127.0.0.1:9000->90/tcp, 443-444/tcp"
        );
        assert_eq!(display(&[]), "");
        let names = ["a.org:80", "*.b.org:50051/h2c", "c:8080/http", "d:443/tls"].map(str::to_owned);
        let shown = "a.org->80/http, *.b.org->50051/h2c, c->8080/http, and 1 more";
        assert_eq!(with_names(&[], &names, true), shown);
        assert!(with_names(&ports[..1], &names, false).ends_with(", c->8080/http, d->443/tls"));
    }
}
