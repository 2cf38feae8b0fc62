//! Log drivers: what is kept, what is sent, and that it is all of it.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use insula_tests::{Daemon, daemon, holds, text};

const ALONE: &[&str] = &["--network", "none"];

/// All files of a container's log.
fn log_files(daemon: &Daemon, id: &str) -> Vec<PathBuf> {
    let folder = daemon.instance().root().join("containers").join(id);
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_string_lossy().contains(".log")).collect()
}

#[test]
fn the_driver_local_keeps_every_byte_over_rotations() {
    let daemon = daemon!();
    let options = ["--log-driver", "local", "--log-opt", "max-size=20k", "--log-opt", "max-file=1000"];
    let script = "seq 1 5000; printf 'a\\377b\\0c\\n'; head -c 40000 /dev/zero | tr '\\0' x; printf '\\nend'; sleep 1000";
    let id = daemon.detached(&[ALONE, &options].concat(), script);
    let files = |end: &str| {
        let files = log_files(&daemon, &id).into_iter();
        files.filter(|file| file.to_string_lossy().ends_with(end)).count()
    };
    let logs = || daemon.command(&["logs", &id]).output().unwrap().stdout;
    // Between two rotations the files look as they do at the end. A line without its end is written last.
    holds("all whole lines are written", || logs().ends_with(b"x\n"));
    holds("rotated files are compressed", || files(".gz") > 3 && files("") == files(".gz") + 1);
    daemon.insula(&["kill", &id]).ok();
    let logs = logs();
    let mut expected: Vec<u8> = (1..=5000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    expected.extend_from_slice(b"a\xffb\0c\n");
    expected.extend_from_slice(&[b'x'; 40_000]);
    expected.extend_from_slice(b"\nend");
    assert!(logs == expected, "{} bytes of {}", logs.len(), expected.len());
    assert_eq!(
        daemon.insula(&["logs", "-n", "2", &id]).ok(),
        format!("{}\nend", "x".repeat(40_000 % 16_384))
    );
    let stamped = daemon.insula(&["logs", "-t", "-n", "1", &id]);
    assert!(stamped.ok().ends_with("Z end") && stamped.ok().starts_with("20"), "{}", stamped.stdout);
}

#[test]
fn rotated_logs_stay_within_their_bound() {
    let daemon = daemon!();
    let options = ["--log-opt", "max-size=100k", "--log-opt", "max-file=3", "--log-opt", "compress=true"];
    let id = daemon.detached(&[ALONE, &options].concat(), "seq 1 50000");
    assert_eq!(daemon.insula(&["wait", &id]).ok(), "0");
    let sizes = log_files(&daemon, &id).into_iter().map(|file| file.metadata().unwrap().len());
    let total: u64 = sizes.sum();
    assert!((100..=3 * (100 << 10) + (64 << 10)).contains(&total), "{total}");
    let kept = daemon.insula(&["logs", &id]);
    let numbers: Vec<u32> = kept.ok().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers.last(), Some(&50000));
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "the newest, without a gap");
}

#[test]
fn details_show_what_was_noted() {
    let daemon = daemon!();
    let flags = ["--label", "tier=front end", "-e", "A=1", "--log-opt", "labels=tier", "--log-opt", "env=A"];
    let tag = ["--log-opt", "tag={{.Name}}", "--name", "web"];
    daemon.insula(&[&["run"], ALONE, &flags, &tag, &["busybox", "echo", "hi"]].concat()).ok();
    assert_eq!(daemon.insula(&["logs", "--details", "web"]).ok(), "A=1,tag=web,tier=front+end hi");
    assert_eq!(daemon.insula(&["logs", "web"]).ok(), "hi");
    let wrong = ["run", "--rm", "--log-opt", "tag={{.Nope}}", "busybox", "true"];
    daemon.insula(&wrong).fails(125, &["invalid log tag", ".ImageName"]);
}

#[test]
fn syslog_gets_messages_and_logs_still_shows_them() {
    let daemon = daemon!();
    let socket = daemon.folder().join("log");
    let receiver = UnixDatagram::bind(&socket).unwrap();
    receiver.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let address = format!("syslog-address=unixgram://{}", text(&socket));
    let options = ["--log-driver", "syslog", "--log-opt", &address, "--log-opt", "tag=web"];
    let id = daemon.detached(&[ALONE, &options].concat(), "echo out; echo err >&2; sleep 1000");
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut bytes = [0; 512];
        let count = receiver.recv(&mut bytes).unwrap();
        seen.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
    }
    seen.sort();
    assert!(
        seen[0].starts_with("<27>") && seen[0].ends_with("]: err\n") && seen[0].contains(" web["),
        "{seen:?}"
    );
    assert!(seen[1].starts_with("<30>") && seen[1].ends_with("]: out\n"), "{seen:?}");
    holds("both are kept too", || daemon.insula(&["logs", &id]).stdout.lines().count() == 1);
    daemon.insula(&["rm", "-f", &id]).ok();
    // Nobody receives: the start says so.
    drop(receiver);
    std::fs::remove_file(&socket).unwrap();
    let refused = daemon.insula(&[&["run", "--rm"], ALONE, &options, &["busybox", "true"]].concat());
    refused.fails(125, &["failed to initialize logging driver", text(&socket)]);
    let none = [&["--log-opt", "cache-disabled=true"], &options[..]].concat();
    let _receiver = UnixDatagram::bind(&socket).unwrap();
    let id = daemon.detached(&[ALONE, &none].concat(), "true");
    daemon.insula(&["logs", &id]).fails(1, &["does not support reading"]);
}

#[test]
fn syslog_is_sent_over_networks_too() {
    let daemon = daemon!();
    let patience = Some(std::time::Duration::from_secs(20));
    let run = |scheme: &str, address: SocketAddr, format: &str| {
        let address = format!("syslog-address={scheme}://{address}");
        let format = format!("syslog-format={format}");
        let options = ["--log-driver", "syslog", "--log-opt", &address, "--log-opt", &format];
        let more = ["--log-opt", "tag=web", "--log-opt", "syslog-facility=local3"];
        daemon.detached(&[ALONE, &options, &more].concat(), "echo out; echo err >&2")
    };
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_read_timeout(patience).unwrap();
    run("udp", receiver.local_addr().unwrap(), "rfc3164");
    let mut heard: Vec<String> = (0..2)
        .map(|_| {
            let mut bytes = [0; 512];
            let count = receiver.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..count]).into_owned()
        })
        .collect();
    heard.sort();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for (message, priority, text) in [(&heard[0], 155, "err"), (&heard[1], 158, "out")] {
        let form =
            message.starts_with(&format!("<{priority}>")) && message.ends_with(&format!("]: {text}\n"));
        assert!(form && message.contains(&format!(" {host} web[")), "{heard:?}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    run("tcp", listener.local_addr().unwrap(), "rfc5424");
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(patience).unwrap();
    // The monitor ends with its container, and the connection with it.
    let mut heard = String::new();
    stream.read_to_string(&mut heard).unwrap();
    let mut lines: Vec<&str> = heard.lines().collect();
    lines.sort_unstable();
    for (line, priority, text) in [(lines[0], 155, "err"), (lines[1], 158, "out")] {
        let form = line.starts_with(&format!("<{priority}>1 2")) && line.ends_with(&format!(" web - {text}"));
        assert!(form && line.contains(&format!("Z {host} web ")), "{lines:?}");
    }
}

#[test]
fn a_journal_gets_entries_with_all_fields() {
    let mut daemon = daemon!();
    daemon.stop();
    let folder = daemon.folder().join("journal");
    std::fs::create_dir(&folder).unwrap();
    let journal = UnixDatagram::bind(folder.join("socket")).unwrap();
    journal.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    // A `/run` of the daemon's own, with this journal in it.
    let script =
        "mount -t tmpfs run /run && mkdir -p /run/systemd/journal && mount --bind {} /run/systemd/journal";
    daemon.restart_with_mounts(&script.replace("{}", text(&folder)));
    let flags =
        ["--log-driver", "journald", "--name", "web", "--label", "tier=front", "--log-opt", "labels=tier"];
    let id = daemon.detached(&[ALONE, &flags].concat(), "echo out; echo err >&2; sleep 1000");
    let mut heard: Vec<String> = (0..2)
        .map(|_| {
            let mut bytes = [0; 2048];
            let count = journal.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..count]).into_owned()
        })
        .collect();
    heard.sort_by_key(|entry| entry.contains("MESSAGE=err"));
    for (entry, priority, message) in [(&heard[0], "6", "out"), (&heard[1], "3", "err")] {
        for field in [
            format!("CONTAINER_ID_FULL={id}"),
            "CONTAINER_NAME=web".to_owned(),
            "TIER=front".to_owned(),
            format!("PRIORITY={priority}"),
            format!("MESSAGE={message}"),
        ] {
            assert!(entry.lines().any(|line| line == field), "{field} in {entry}");
        }
    }
    holds("it is kept too", || daemon.insula(&["logs", "web"]).stdout == "out\n");
    daemon.insula(&["rm", "-f", "web"]).ok();
}

#[test]
fn a_host_without_a_journal_says_so() {
    let daemon = daemon!();
    let run = ["run", "--rm", "--network", "none", "--log-driver", "journald", "busybox", "true"];
    if std::path::Path::new("/run/systemd/journal/socket").exists() {
        daemon.insula(&run).ok();
    } else {
        daemon.insula(&run).fails(125, &["journald is not enabled on this host"]);
    }
    daemon
        .insula(&["run", "--rm", "--log-driver", "fluentd", "busybox", "true"])
        .fails(125, &["logger: no log driver named 'fluentd' is registered"]);
}
