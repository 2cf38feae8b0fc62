//! The engine of an ordinary user.

use insula_tests::{
    Daemon, Ids, Lan, OnDrop, Ordinary, Outcome, echo_datagrams, echoes, eventually, holds, images, skip,
    text,
};

const PAGE: &str = "mkdir /p; echo served >/p/index.html; exec httpd -f -p 80 -h /p";

/// A user, or the end of the test.
macro_rules! user {
    ($ids:ident) => {
        match Ordinary::new(Ids::$ids) {
            Some(user) => user,
            None => return,
        }
    };
}

/// The last line of what the host gets from a port of its loopback; empty if nothing.
fn fetched(user: &Ordinary, port: &str) -> String {
    let mut command = user.lan.command(&["busybox", "nc", "-w", "5", "127.0.0.1", port]);
    let outcome = Outcome::of(&mut command, b"GET / HTTP/1.0\r\n\r\n");
    outcome.stdout.lines().last().unwrap_or_default().to_owned()
}

/// A script that prints a page's body. The static busybox's wget dies of the C library's resolver.
fn fetch(address: &str) -> String {
    format!(r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 {address} 80 | tail -n 1")
}

/// What a neighbour gets of the container `web`, by its name.
fn by_name(daemon: &Daemon) -> String {
    let script = "nslookup web 127.0.0.11 | awk '/^Address: / {print $2}'";
    let address = daemon.sh(&["--network", "site"], script).ok().to_owned();
    daemon.sh(&["--network", "site"], &fetch(&address)).ok().to_owned()
}

#[test]
fn containers_of_a_user_run_and_are_reached() {
    let user = user!(Many);
    let mut daemon = user.daemon();
    daemon.sh(&["--network", "none"], "id -u; ls /dev/null").ok();
    assert_eq!(daemon.sh(&["-u", "1000:1000"], "id -u; id -g").ok(), "1000\n1000");
    daemon.insula(&["network", "create", "site"]).ok();
    daemon.insula(&["volume", "create", "kept"]).ok();
    let web = daemon.detached(
        &["--name", "web", "--network", "site", "-p", "18080:80", "-p", "18053:5353/udp", "-v", "kept:/kept"],
        PAGE,
    );
    daemon.exec("web", "echo kept >/kept/file").ok();
    holds("the port leads in", || fetched(&user, "18080") == "served");
    echo_datagrams(daemon.pid_of(&web), 5353);
    let echoes = || user.lan.inside(|| echoes("127.0.0.1:18053"));
    holds("datagrams are answered", echoes);
    holds("for another host too", || user.lan.fetched(18080) == "served");
    assert_eq!(by_name(&daemon), "served");
    assert!(daemon.insula(&["top", "web"]).ok().contains("httpd"));
    daemon
        .insula(&["run", "--rm", "-p", "18080:80", "busybox", "true"])
        .fails(125, &["port is already allocated"]);

    daemon.kill();
    holds("without a daemon", || fetched(&user, "18080") == "served");
    holds("datagrams too", echoes);
    daemon.restart();
    assert_eq!(daemon.inspect("web", "/Id"), web.as_str());
    assert_eq!(daemon.exec("web", "cat /kept/file").ok(), "kept");
    holds("with the next one", || fetched(&user, "18080") == "served");
    assert_eq!(by_name(&daemon), "served", "still");
    daemon.insula(&["stop", "-t", "1", "web"]).ok();
    holds("a port is closed with its container", || fetched(&user, "18080").is_empty());
    daemon.insula(&["start", "web"]).ok();
    holds("it is open again", || fetched(&user, "18080") == "served");
    daemon.insula(&["network", "disconnect", "site", "web"]).ok();
    assert_eq!(fetched(&user, "18080"), "", "nothing leads to what is not there");
    daemon.insula(&["rm", "-f", "web"]).ok();

    // Nobody watches over a container any more: it ends too.
    let id = daemon.sleeper(&["-u", "1000"]);
    let pid = daemon.pid_of(&id);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    let monitor = rustix::process::Pid::from_raw(parent).unwrap();
    rustix::process::kill_process(monitor, rustix::process::Signal::KILL).unwrap();
    daemon.reaches(&id, "exited");
    holds("its processes end", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    daemon.insula(&["rm", &id]).ok();
    assert_eq!(daemon.sh(&["-v", "kept:/kept"], "cat /kept/file").ok(), "kept");
}

#[test]
fn what_a_user_cannot_have_is_said() {
    let user = user!(Many);
    let daemon = user.daemon();
    daemon
        .insula(&["run", "--rm", "-m", "64m", "busybox", "true"])
        .fails(125, &["limits (memory) need control groups"]);
    daemon
        .insula(&["run", "--rm", "-p", "80:80", "busybox", "true"])
        .fails(125, &["80/tcp is root's", "8080:80"]);
    daemon.insula(&["run", "--rm", "-p", "18082:80/sctp", "busybox", "true"]).fails(125, &["sctp"]);
    daemon.insula(&["run", "--rm", "--pid", "host", "busybox", "true"]).fails(125, &["--pid host"]);
    daemon.insula(&["run", "--rm", "--isolation", "vm", "busybox", "true"]).fails(125, &["ordinary user"]);
    let info = daemon.insula(&["info"]);
    info.ok();
    for word in ["name=rootless", "Cgroup Driver: none", "No control groups"] {
        assert!(format!("{}{}", info.stdout, info.stderr).contains(word), "{word}: {info}");
    }
    let id = daemon.sleeper(&[]);
    daemon.insula(&["pause", &id]).fails(1, &["no freezer"]);
    daemon.insula(&["commit", &id, "kept"]).fails(1, &["cannot be held still", "--pause=false"]);
    daemon.insula(&["commit", "--pause=false", &id, "kept"]).ok();
    let stats = daemon.insula(&["stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", &id]);
    assert!(stats.ok().starts_with("2 ") && !stats.ok().contains(" 0B"), "{stats}");
    // Files of the host's root are nobody's.
    daemon.sh(&["-v", "/etc:/host"], "touch /host/insula-test").fails(1, &["touch"]);
}

/// What a way out is made of, as udev has it, or as hosts without udev do.
fn give_tun(user: &Ordinary, mode: &str) {
    let node = user.lan.path("tun");
    let node = text(&node);
    user.lan.lines(&format!(
        "mknod {node} c 10 200
        chmod {mode} {node}
        mount --bind {node} /dev/net/tun"
    ));
}

#[test]
fn a_user_who_may_not_open_the_way_out_is_told() {
    let user = user!(Many);
    give_tun(&user, "0600");
    let daemon = user.daemon();
    let info = daemon.insula(&["info"]);
    let said = format!("{}{}", info.stdout, info.stderr);
    let programs = ["pasta", "slirp4netns"].map(|name| std::path::Path::new("/usr/bin").join(name));
    let advice = match programs.iter().any(|program| program.exists()) {
        true => "chmod 0666 /dev/net/tun",
        false => "install passt or slirp4netns",
    };
    assert!(said.contains("containers reach no other host") && said.contains(advice), "{info}");
}

#[test]
fn a_user_reaches_other_hosts() {
    for (way, package) in [("pasta", "passt"), ("slirp4netns", "slirp4netns")] {
        if !std::path::Path::new("/usr/bin").join(way).exists() {
            skip(package, &format!("{way} is not there"));
            continue;
        }
        let user = user!(Many);
        give_tun(&user, "0666");
        // The host has a way on, as those of users have. The other program is not there.
        user.lan.lines(&format!("ip route add default via {}", Lan::OUTSIDE));
        let other = if way == "pasta" { "slirp4netns" } else { "pasta" };
        if std::path::Path::new("/usr/bin").join(other).exists() {
            user.lan.lines(&format!("mount --bind /dev/null /usr/bin/{other}"));
        }
        let daemon = user.daemon();
        // By a client that ends last: this pasta keeps connections whose client has said all that it has to say.
        let asks = "printf 'GET / HTTP/1.0\\r\\n\\r\\n'; tail -n 1 >&2";
        let script = format!("timeout 20 nc {} 80 -e sh -c \"{asks}\"", Lan::OUTSIDE);
        let outcome = daemon.sh(&[], &script);
        assert_eq!(outcome.stderr.trim(), "outside", "{way}: {}", daemon.log());
    }
}

#[test]
fn one_id_is_enough_for_a_command_that_starts_the_daemon() {
    let user = user!(One);
    let (home, session) = (user.folder("home"), user.folder("session"));
    let (archive, rootfs) = (home.join("busybox.tar"), home.join("rootfs.tar"));
    std::fs::write(&archive, images::busybox().docker_archive()).unwrap();
    // Like that, but with files of root's alone.
    let program = std::fs::read("/bin/busybox").unwrap();
    let layer = images::Layer::default().folder("bin/", 0o755).file("bin/busybox", 0o755, &program);
    std::fs::write(&rootfs, layer.symlink("bin/id", "busybox").bytes()).unwrap();
    let places = [format!("HOME={}", text(&home)), format!("XDG_RUNTIME_DIR={}", text(&session))];
    let insula = user.program("insula");
    let own = |words: &[&str]| user.run(&[&["env", &places[0], &places[1], &insula], words].concat());
    let imported = own(&["import", text(&rootfs), "small"]);
    let started = imported.stderr.split("(pid ").nth(1).and_then(|rest| rest.split(')').next());
    let started = started.map(str::to_owned);
    let pid = rustix::process::Pid::from_raw(started.expect("a pid").parse().unwrap()).unwrap();
    let ended = OnDrop(|| rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap());
    imported.ok();
    assert_eq!(own(&["run", "--rm", "small", "/bin/id", "-u"]).ok(), "0");
    own(&["load", "-i", text(&archive)]).fails(1, &["chown to an id that this user has not"]);
    assert!(own(&["info"]).stderr.contains("only one id can be used"), "{}", own(&["info"]));
    drop(ended);
    let record = session.join("insula/rootless/holder.json");
    eventually("its namespaces end", || (!record.exists()).then_some(()));
}
