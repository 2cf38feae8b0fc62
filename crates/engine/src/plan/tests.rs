use insula_models::RestartPolicy;
use insula_store::Store;

use super::*;
use crate::containers::row::tests::row;

fn plan(row: &Row, joined: Joined) -> ContainerPlan {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let folder = store.container_dir(&row.id);
    let inputs = Inputs {
        row,
        folder: &folder,
        names: folder.path(),
        cgroup: format!("insula/{}", row.id),
        interfaces: Vec::new(),
        resolver: false,
        joined,
        volumes: Path::new("/volumes"),
        points: Path::new("/points"),
        machine: None,
    };
    let plan = build(inputs).unwrap();
    // The folder of the test has another name each time.
    let text = serde_json::to_string(&plan).unwrap().replace(root.path().to_str().unwrap(), "/root-folder");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_plan_of_a_plain_container() {
    insta::assert_json_snapshot!(plan(&row(), Joined::default()));
}

#[test]
fn privileged_is_everything_of_the_host() {
    let mut row = row();
    row.host = HostConfig { privileged: true, ..HostConfig::default() };
    complete(&mut row.host);
    row.ids = None;
    let plan = plan(&row, Joined::default());
    assert_eq!(plan.namespaces.user, UserNamespace::Host);
    assert_eq!(row.host.userns_mode, "host");
    assert_eq!(plan.device_rules, [devices::all()]);
    assert_eq!(plan.security.seccomp, insula_spec::plan::SeccompPlan::Unconfined);
    assert!(plan.security.privileged && plan.security.masked_paths.is_empty());
    assert!(plan.process.capabilities.contains(&"CAP_SYS_ADMIN".to_owned()));
    assert!(plan.devices.iter().any(|device| device.path == "/dev/null"));
    assert!(!plan.devices.iter().any(|device| device.path.starts_with("/dev/pts")));
}

#[test]
fn joined_namespaces_bring_their_ids() {
    let mut row = row();
    row.ids = None;
    let ids = Some(IdRange { first: 5, count: 65536 });
    let joined = Joined { pid: None, network: Some(42), ids };
    let plan = plan(&row, joined);
    assert_eq!(plan.namespaces.network, Namespace::Path("/proc/42/ns/net".into()));
    assert_eq!(plan.namespaces.pid, Namespace::Private);
    let path = PathBuf::from("/proc/42/ns/user");
    assert_eq!(plan.namespaces.user, UserNamespace::Path { path, first: 5, count: 65536 });
}

#[test]
fn modes_of_the_host_opt_out_of_the_user_namespace() {
    for change in [
        |host: &mut HostConfig| host.network_mode = "host".into(),
        |host: &mut HostConfig| host.pid_mode = "host".into(),
        |host: &mut HostConfig| host.ipc_mode = "host".into(),
        |host: &mut HostConfig| host.userns_mode = "host".into(),
    ] {
        let mut host = HostConfig::default();
        change(&mut host);
        complete(&mut host);
        assert_eq!(host.userns_mode, "host");
    }
    let mut host = HostConfig::default();
    complete(&mut host);
    assert_eq!(host.userns_mode, "private");
}

#[test]
fn users_mounts_replace_the_engines() {
    let mut row = row();
    row.mounts.push(MountRow {
        target: "/dev/shm".into(),
        source: SourceRow::Bind { path: "/proc".into(), recursive: true, propagation: "rslave".into() },
        readonly: true,
        mode: "ro".into(),
    });
    row.mounts.push(MountRow {
        target: "/data".into(),
        source: SourceRow::Volume { name: "v".into(), anonymous: false, copy: true, folder: None },
        readonly: false,
        mode: String::new(),
    });
    let plan = plan(&row, Joined::default());
    let at = |target: &str| {
        let mut found = plan.mounts.iter().filter(|mount| mount.target == target);
        let mount = found.next().unwrap();
        assert!(found.next().is_none(), "{target}");
        mount
    };
    assert!(at("/dev/shm").readonly);
    let MountSource::Bind { propagation, idmap, recursive, .. } = &at("/dev/shm").source else { panic!() };
    assert_eq!((*propagation, *idmap, *recursive), (Propagation::Slave, false, true));
    let MountSource::Bind { path, .. } = &at("/data").source else { panic!() };
    assert_eq!(path, Path::new("/volumes/v/_data"));
}

#[test]
fn what_is_mounted_in_a_folder_comes_after_what_is_mounted_on_it() {
    let mut row = row();
    for target in ["/dev", "/etc", "/sys", "/etc/hosts"] {
        row.mounts.push(MountRow {
            target: target.into(),
            source: SourceRow::Volume { name: "v".into(), anonymous: false, copy: true, folder: None },
            readonly: false,
            mode: String::new(),
        });
    }
    let plan = plan(&row, Joined::default());
    let targets: Vec<&str> = plan.mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(
        targets,
        [
            "/dev/mqueue",
            "/sys/fs/cgroup",
            "/dev",
            "/etc",
            "/sys",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/etc/hosts"
        ]
    );
    row.host.ipc_mode = "shareable".into();
    assert!(self::plan(&row, Joined::default()).mounts.iter().any(|mount| mount.target == "/dev/shm"));
}

#[test]
fn nothing_of_the_engines_is_mounted_in_what_the_host_shares() {
    let order = |propagation: &str| {
        let mut row = row();
        for (target, propagation) in [("/h", propagation), ("/etc", "rprivate")] {
            row.mounts.push(MountRow {
                target: target.into(),
                source: SourceRow::Bind {
                    path: "/srv".into(),
                    recursive: true,
                    propagation: propagation.into(),
                },
                readonly: true,
                mode: String::new(),
            });
        }
        let plan = plan(&row, Joined::default());
        let place = |target: &str| plan.mounts.iter().position(|mount| mount.target == target).unwrap();
        ["/dev/shm", "/etc/hosts"].map(|own| place(own) < place("/h"))
    };
    assert_eq!(order("rshared"), [true, true]);
    assert_eq!(order("shared"), [true, true]);
    assert_eq!(order("rslave"), [false, false]);
}

#[test]
fn inits_are_found() {
    let with = |program: &str, init: Option<bool>, system: &str| {
        let mut row = row();
        row.config.cmd = Some(vec![program.to_owned()]);
        row.host.init = init;
        row.host.init_system = system.to_owned();
        super::init(&row)
    };
    assert_eq!(with("sh", None, ""), InitPlan::Process);
    assert_eq!(with("sh", Some(true), ""), InitPlan::Reaper);
    assert_eq!(with("sh", None, "systemd"), InitPlan::System);
    assert_eq!(with("/sbin/init", None, ""), InitPlan::System);
    assert_eq!(with("/sbin/init", Some(false), ""), InitPlan::Process);
}

#[test]
fn what_was_left_open_is_filled_in() {
    let mut host = HostConfig { memory: 100 << 20, ..HostConfig::default() };
    complete(&mut host);
    assert_eq!((host.memory_swap, host.shm_size), (200 << 20, SHM_SIZE));
    assert_eq!((host.network_mode.as_str(), host.ipc_mode.as_str()), ("bridge", "private"));
    assert_eq!(host.restart_policy, RestartPolicy { name: "no".into(), maximum_retry_count: 0 });
    assert!(!host.masked_paths.unwrap().is_empty());
    let mut bare =
        HostConfig { security_opt: vec!["systempaths=unconfined".into()], ..HostConfig::default() };
    complete(&mut bare);
    assert!(bare.masked_paths.unwrap().is_empty());
}
