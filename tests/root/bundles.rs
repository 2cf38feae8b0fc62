//! Containers as one file, and back.

use insula_tests::{Daemon, daemon};

/// A daemon with a container that changed its files and a volume, as a file.
fn bundled(daemon: &Daemon) -> Vec<u8> {
    daemon.insula(&["volume", "create", "--label", "a=b", "stock"]).ok();
    daemon.insula(&["network", "create", "back"]).ok();
    let script = "echo kept > /etc/kept; rm /bin/true; mkdir /made; chown 12:34 /etc/kept; \
                  echo 7 > /stock/count; chown 5:6 /stock; chmod 711 /stock; echo ready; exec sleep 1000";
    let flags = ["--name", "shop", "--network", "back", "-v", "stock:/stock", "-v", "/cache", "-e", "A=b"];
    daemon.detached(&flags, script);
    insula_tests::eventually("the script is done", || {
        daemon.insula(&["logs", "shop"]).stdout.contains("ready").then_some(())
    });
    let side = ["--name", "side", "--network", "container:shop"];
    daemon.insula(&[&["create"], &side[..], &["busybox", "sleep", "1000"]].concat()).ok();
    let output = daemon.command(&["bundle", "side", "shop"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(daemon.inspect("shop", "/State/Paused"), false);
    output.stdout
}

fn nothing_is_there(daemon: &Daemon) {
    for words in [&["ps", "-aq"][..], &["volume", "ls", "-q"], &["images", "-q", "busybox"]] {
        assert_eq!(daemon.insula(words).ok(), "", "{words:?}");
    }
    daemon.insula(&["network", "inspect", "back"]).exits(1);
}

#[test]
fn a_workload_goes_to_another_host_with_its_state() {
    let (here, there) = (daemon!(), daemon!(bare));
    here.insula(&["bundle", "nosuch"]).fails(1, &["nosuch"]);
    let file = bundled(&here);
    here.insula(&["bundle", "side"]).fails(1, &["side needs shop"]);
    // What was cut or altered makes nothing.
    let mut altered = file.clone();
    let at = altered.windows(4).rposition(|bytes| bytes == b"kept").unwrap();
    altered[at] = b'K';
    there.insula_with(&["unbundle", "-"], &altered).fails(1, &["altered"]);
    there.insula_with(&["unbundle", "-"], &file[..file.len() / 2]).exits(1);
    nothing_is_there(&there);
    // The name is taken on the host that it comes from.
    let refused = here.insula_with(&["unbundle", "-"], &file);
    refused.fails(1, &["container shop", "container side", "volume stock", "nothing was made"]);
    let made = there.insula_with(&["unbundle", "-"], &file);
    assert_eq!(made.ok(), "shop\nside");
    there.exec("shop", "test $(cat /etc/kept) = kept && test ! -e /bin/true && test -d /made").ok();
    let owners = there.exec("shop", "stat -c '%u:%g %a' /etc/kept /stock; cat /stock/count; echo $A");
    assert_eq!(owners.ok(), "12:34 644\n5:6 711\n7\nb");
    assert_eq!(there.insula(&["volume", "inspect", "-f", "{{.Labels.a}}", "stock"]).ok(), "b");
    assert_eq!(there.inspect("side", "/HostConfig/NetworkMode"), "container:shop");
    assert_eq!(there.inspect("side", "/State/Status"), "created");
    // With other names it is there twice, and the network is the same.
    let flags =
        ["--rename", "shop=shop2", "--rename", "side=side2", "--volume", "stock=stock2", "--no-start"];
    let anonymous = there.insula(&["volume", "ls", "-q"]);
    let cache = anonymous.ok().lines().find(|name| name.len() == 64).unwrap().to_owned();
    let other = format!("{cache}=cache2");
    let words = [&["unbundle"], &flags[..], &["--volume", &other, "-"]].concat();
    assert_eq!(there.insula_with(&words, &file).ok(), "shop2\nside2");
    assert_eq!(there.inspect("side2", "/HostConfig/NetworkMode"), "container:shop2");
    assert_eq!(there.inspect("shop2", "/State/Status"), "created");
    there.insula_with(&["unbundle", "--rename", "x=y", "-"], &file).fails(1, &["no container x"]);
}

#[test]
fn a_port_that_is_taken_is_told_before_anything_is_made() {
    let (here, there) = (daemon!(), daemon!(bare));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let publish = format!("127.0.0.1:{port}:80");
    here.insula(&["create", "--name", "web", "-p", &publish, "busybox", "sleep", "1000"]).ok();
    let file = here.folder().join("web.insula");
    let path = file.to_str().unwrap();
    here.insula(&["bundle", "-o", path, "web"]).ok();
    there.insula(&["unbundle", path]).fails(1, &[&format!("port {port}/tcp"), "nothing was made"]);
    nothing_is_there(&there);
    let change = format!("{port}=0");
    assert_eq!(there.insula(&["unbundle", "--port", &change, path]).ok(), "web");
    assert_eq!(there.inspect("web", "/HostConfig/PortBindings/80~1tcp/0/HostPort"), "0");
    // The images in it are an archive, and what the other host has need not travel.
    let small = here.folder().join("small.insula");
    here.insula(&["bundle", "--base", path, "-o", small.to_str().unwrap(), "web"]).ok();
    let size = |path: &std::path::Path| std::fs::metadata(path).unwrap().len();
    assert!(size(&small) < size(&file) / 4, "{} of {}", size(&small), size(&file));
    let words = ["unbundle", "--rename", "web=again", "--port", &change, small.to_str().unwrap()];
    assert_eq!(there.insula(&words).ok(), "again");
    here.insula(&["rm", "web"]).ok();
    here.insula(&["rmi", "busybox"]).ok();
    assert_eq!(here.insula(&["load", "-q", "-i", path]).ok(), "Loaded image: busybox:latest");
}

#[test]
fn who_sits_at_a_terminal_is_asked_for_what_is_taken() {
    let daemon = daemon!();
    daemon.insula(&["volume", "create", "stock"]).ok();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let publish = format!("127.0.0.1:{port}:80");
    let flags = ["create", "--name", "web", "-p", &publish, "-v", "stock:/stock", "busybox", "true"];
    daemon.insula(&flags).ok();
    let file = daemon.folder().join("web.insula");
    let path = file.to_str().unwrap();
    daemon.insula(&["bundle", "-o", path, "web"]).ok();
    // Who gives up gets nothing.
    let mut terminal = daemon.terminal(&["unbundle", path]);
    terminal.expect("Another name for it");
    terminal.send("\n");
    assert_eq!(terminal.wait(), 1, "{}", terminal.screen());
    assert!(terminal.screen().contains("nothing was made"), "{}", terminal.screen());
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok().lines().count(), 1);
    // An answer that is taken too is asked for again.
    let mut terminal = daemon.terminal(&["unbundle", path]);
    let taken = ["container web:", "container web:", "volume stock:", &format!("port {port}/tcp:")];
    for (asked, (question, answer)) in taken.into_iter().zip(["web", "again", "stock2", "0"]).enumerate() {
        insula_tests::holds("the next question", || terminal.screen().matches("give up): ").count() > asked);
        assert_eq!(terminal.screen().lines().rev().nth(1).and_then(|line| line.find(question)), Some(0));
        terminal.send(&format!("{answer}\n"));
    }
    assert_eq!(terminal.wait(), 0, "{}", terminal.screen());
    assert_eq!(daemon.inspect("again", "/HostConfig/PortBindings/80~1tcp/0/HostPort"), "0");
    assert_eq!(daemon.inspect("again", "/Mounts/0/Name"), "stock2");
}

#[test]
fn a_container_that_writes_is_bundled_as_it_is_at_one_moment() {
    let (here, there) = (daemon!(), daemon!(bare));
    // The volume is written first, then the writable layer: of one moment they differ by one at most.
    let script = "i=0; while true; do i=$((i + 1)); echo $i > /stock/new; mv /stock/new /stock/count; \
                  echo $i > /new; mv /new /count; done";
    here.detached(&["--name", "busy", "--network", "none", "-v", "stock:/stock"], script);
    insula_tests::eventually("it counts", || {
        here.exec("busy", "cat /count").stdout.trim().parse::<u64>().ok()
    });
    // Much to read lies between the two.
    here.exec("busy", "dd if=/dev/urandom of=/much bs=1M count=30").ok();
    let output = here.command(&["bundle", "busy"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let count = || here.exec("busy", "cat /count").ok().parse::<u64>().unwrap();
    let then = count();
    insula_tests::eventually("it goes on", || (count() > then).then_some(()));
    there.insula_with(&["unbundle", "--no-start", "-"], &output.stdout).ok();
    let read = |path: &str| {
        let out = there.folder().join("out");
        there.insula(&["cp", &format!("busy:{path}"), out.to_str().unwrap()]).ok();
        std::fs::read_to_string(&out).unwrap().trim().parse::<u64>().unwrap()
    };
    let (volume, layer) = (read("/stock/count"), read("/count"));
    assert!(volume == layer || volume == layer + 1, "{volume} in the volume, {layer} in the layer");
    assert!(layer > 0 && layer <= then);
}
