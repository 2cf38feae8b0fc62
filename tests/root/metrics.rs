//! Numbers for Prometheus.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use insula_tests::{Daemon, daemon, eventually, holds};

fn told(daemon: &Daemon) -> String {
    let answer = daemon.api("GET", "/metrics", "");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    answer.text()
}

/// As a reader of OpenMetrics 1.0 checks it: families are described once, before their samples, which are
/// numbers and no two of which are the same.
fn check_format(text: &str) {
    let body = text.strip_suffix("# EOF\n").expect("it ends with EOF");
    let (mut families, mut series) = (BTreeSet::new(), BTreeSet::new());
    let mut family = ("", "");
    for line in body.lines() {
        if let Some(described) = line.strip_prefix("# ") {
            let (word, rest) = described.split_once(' ').unwrap();
            let (name, value) = rest.split_once(' ').unwrap();
            assert!(!value.is_empty(), "{line}");
            match word {
                "TYPE" => family.1 = value,
                "HELP" => {
                    assert!(families.insert(name), "{name} is described twice");
                    family = (name, "");
                }
                "UNIT" => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(series.insert(sample), "twice: {line}");
        let name = sample.split('{').next().unwrap();
        let ends: &[&str] = match family.1 {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_count", "_sum"],
            "info" => &["_info"],
            "gauge" => &[""],
            other => panic!("{line}: a {other}"),
        };
        assert!(ends.iter().any(|end| name == format!("{}{end}", family.0)), "{line} in {family:?}");
    }
    assert!(families.len() > 8, "{families:?}");
}

#[test]
fn what_happens_is_counted() {
    let daemon = daemon!();
    daemon.sleeper(&["--name", "box", "--network", "none"]);
    daemon.insula(&["run", "--network", "none", "busybox", "nosuch"]).exits(127);
    daemon.insula(&["inspect", "nosuch"]).exits(1);
    let text = told(&daemon);
    check_format(&text);
    for line in [
        "insula_containers{state=\"running\"} 1\n",
        "insula_operations_total{operation=\"start\",outcome=\"success\"} 1\n",
        "insula_operations_total{operation=\"start\",outcome=\"failure\"} 1\n",
        "insula_events_total{type=\"container\",action=\"start\"} 1\n",
        "insula_requests_total{method=\"POST\",route=\"/containers/create\",code=\"201\"} 2\n",
        "insula_requests_total{method=\"GET\",route=\"/containers/{id}/json\",code=\"404\"} 1\n",
        "insula_request_duration_seconds_count{method=\"POST\",route=\"/containers/create\"} 2\n",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    daemon.insula(&["kill", "box"]).ok();
    holds("its end is counted", || {
        told(&daemon).contains("insula_events_total{type=\"container\",action=\"die\"} 1\n")
    });
}

#[test]
fn over_tcp_there_are_numbers_and_nothing_else() {
    let mut daemon = daemon!(bare);
    assert!(!daemon.log().contains("serving metrics"), "nobody asked for it");
    daemon.stop();
    daemon.restart_with_config("metrics-addr = \"127.0.0.1:0\"\n");
    // The API's own socket answers before.
    let address = eventually("the metrics are served", || {
        let log = daemon.log();
        let line = log
            .split_inclusive('\n')
            .find(|line| line.ends_with('\n') && line.contains("serving metrics"))?;
        Some(line.split("address=").nth(1)?.split_whitespace().next()?.to_owned())
    });
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = ask("/metrics");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("insula_engine_info{version="), "{answer}");
    for path in ["/containers/json", "/info", "/_ping"] {
        assert!(ask(path).starts_with("HTTP/1.1 404"), "{path}");
    }
}

#[test]
fn what_interfaces_carry_is_counted() {
    let daemon = daemon!();
    daemon.insula(&["network", "create", "site"]).ok();
    let id = daemon.sleeper(&["--name", "box", "--network", "site"]);
    daemon.sleeper(&["--name", "alone", "--network", "none"]);
    let carried = |direction: &str| {
        let labels = format!(r#"{{id="{id}",name="box",interface="eth0",direction="{direction}"}}"#);
        let prefix = format!("insula_container_network_bytes_total{labels} ");
        let text = told(&daemon);
        check_format(&text);
        text.lines().find_map(|line| line.strip_prefix(&prefix)?.parse::<u64>().ok()).unwrap()
    };
    let before = carried("transmit");
    daemon.exec("box", "ping -c 1 -s 10000 $(ip route | awk '/default/ {print $3}')").ok();
    assert!(carried("transmit") >= before + 10_000);
    assert!(carried("receive") >= 10_000, "the answer came back");
    assert!(!told(&daemon).contains(r#"name="alone",interface="eth0""#));
    daemon.insula(&["rm", "-f", "box"]).ok();
    assert!(!told(&daemon).contains(r#"name="box""#), "it is gone with its container");
}
