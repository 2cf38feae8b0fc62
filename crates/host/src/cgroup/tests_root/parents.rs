//! Where groups are made, and who may change them.

use std::fs;
use std::os::unix::fs::MetadataExt;

use insula_base::Kinded;
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::*;

/// A folder for groups in every hierarchy, made as someone else would make it.
struct Foreign(Layout, String);

impl Foreign {
    fn new() -> Self {
        let (layout, name) = (Layout::probe().unwrap(), format!("insula-test-{}", random_hex(8)));
        for hierarchy in &layout.hierarchies {
            fs::create_dir(hierarchy.root.join(&name)).unwrap();
        }
        Self(layout, name)
    }

    fn below(&self, name: &str) -> String {
        format!("{}/{name}", self.1)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let group = Group::open(&self.0, &self.1).unwrap();
        let _ = group.kill();
        let _ = group.remove();
    }
}

#[test]
fn groups_that_the_container_made_go_too() {
    if !is_root() {
        return;
    }
    let group = Owned::probed(Resources::default());
    let nested = group.2.hierarchies[0].root.join(&group.3).join("made/by/the/container");
    fs::create_dir_all(&nested).unwrap();
    Group::open(&group.2, &group.3).unwrap().remove().unwrap();
    assert!(!nested.exists());
}

#[test]
fn parents_that_nobody_finished_are_finished() {
    if !is_root() {
        return;
    }
    let foreign = Foreign::new();
    let group = Group::create(&foreign.0, &foreign.below("c"), Purpose::Limit).unwrap();
    let resources = Resources {
        pids: Some(9),
        cpuset_cpus: Some("0".into()),
        memory: Some(64 << 20),
        ..Resources::default()
    };
    assert_eq!(group.limit(&resources).unwrap(), [""; 0]);
    assert_eq!(Shell::run(&group, "echo in").output(), "in\n");
}

#[test]
fn cpus_of_a_parent_are_left_as_they_are() {
    if !is_root() {
        return;
    }
    let foreign = Foreign::new();
    let Some(cpuset) = foreign.0.v1("cpuset") else {
        eprintln!("skipped: needs cpuset of version 1");
        return;
    };
    let parent = cpuset.root.join(&foreign.1);
    fs::write(parent.join("cpuset.cpus"), "0").unwrap();
    fs::write(parent.join("cpuset.mems"), "0").unwrap();
    let group = Group::create(&foreign.0, &foreign.below("a/c"), Purpose::Limit).unwrap();
    let output = Shell::run(&group, "grep Cpus_allowed_list /proc/self/status").output();
    assert_eq!(output, "Cpus_allowed_list:\t0\n");
    assert_eq!(fs::read_to_string(parent.join("cpuset.cpus")).unwrap(), "0\n");
    assert_eq!(fs::read_to_string(parent.join("cgroup.clone_children")).unwrap(), "0\n");
}

#[test]
fn what_is_delegated_belongs_to_the_owner() {
    if !is_root() {
        return;
    }
    let foreign = Foreign::new();
    let purpose = Purpose::Delegate { owner: 1_900_000_000 };
    let group = Group::create(&foreign.0, &foreign.below("c"), purpose).unwrap();
    let owner = |member: &member::Member, file| fs::metadata(member.path.join(file)).unwrap().uid();
    for member in foreign.0.hierarchies.iter().map(|each| member::Member::open(each, &foreign.below("c"))) {
        let member = member.unwrap();
        let handed = !matches!(member.version, Version::V1(_));
        assert_eq!(owner(&member, "") != 0, handed, "{}", member.path.display());
        assert_eq!(owner(&member, "cgroup.procs") != 0, handed, "{}", member.path.display());
        if member.version == Version::V2 {
            // Who has the group manages what is below, never its own bounds.
            assert_eq!(owner(&member, "cgroup.subtree_control"), 1_900_000_000);
            assert_eq!(owner(&member, "cgroup.max.depth"), 0);
        }
    }
    assert!(
        foreign.0.hierarchies.iter().all(|each| !matches!(each.version, Version::V2)) || group.v2().is_some()
    );
}

/// The first controller that groups of version 2 can have, any of the host's.
fn some_controller(group: &Group) -> Option<String> {
    let text = group.v2()?.read("cgroup.controllers").unwrap()?;
    text.split_whitespace().next().map(str::to_owned)
}

#[test]
fn a_process_follows_an_init_that_moved_on() {
    if !is_root() {
        return;
    }
    let foreign = Foreign::new();
    let mut second = foreign.0.clone();
    second.hierarchies.retain(|each| each.version == Version::V2);
    let Some(root) = second.hierarchies.first().map(|each| each.root.clone()) else {
        eprintln!("skipped: needs cgroup2");
        return;
    };
    // On a hybrid host the groups' only controller may be one that insula has no use for.
    let controllers = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap();
    let parent = root.join(&foreign.1);
    let Some(controller) = controllers.split_whitespace().next() else {
        eprintln!("skipped: needs a controller of cgroup2 that is turned on");
        return;
    };
    fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let group = Group::create(&second, &foreign.below("c"), Purpose::Limit).unwrap();
    assert!(some_controller(&group).is_some());
    let moved = parent.join("c/init.scope");
    fs::create_dir(&moved).unwrap();
    let mut first = Shell::run(&group, "echo x; exec sleep 1000");
    assert_eq!(first.byte(), b'x');
    let pid = first.0.id().cast_signed();
    fs::write(moved.join("cgroup.procs"), pid.to_string()).unwrap();
    fs::write(parent.join("c/cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    let plain = group.add(other.id().cast_signed());
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(plain.unwrap_err().is(rustix::io::Errno::BUSY));
    let entry = group.entry_to(pid).unwrap();
    let found = rustix::fs::fstat(entry.birthplace().unwrap()).unwrap();
    assert_eq!(found.st_ino, fs::metadata(&moved).unwrap().ino());
}

#[test]
fn processes_at_the_root_of_a_container_make_room() {
    if !is_root() {
        return;
    }
    let foreign = Foreign::new();
    let Some(second) = foreign.0.hierarchies.iter().find(|each| each.version == Version::V2 && each.limits)
    else {
        eprintln!("skipped: needs cgroup2 with controllers for limits");
        return;
    };
    // What a container's own mount of cgroup2 shows as its root.
    let above = Group::create(&foreign.0, &foreign.below("c"), Purpose::Limit).unwrap();
    let root = second.root.join(foreign.below("c"));
    let mut inside = Shell::run(&above, "echo x; exec sleep 1000");
    assert_eq!(inside.byte(), b'x');
    let layout = Layout { hierarchies: vec![Hierarchy { root: root.clone(), ..second.clone() }] };
    let group = Group::create(&layout, "insula/c", Purpose::Limit).unwrap();
    assert_eq!(group.limit(&Resources { pids: Some(9), ..Resources::default() }).unwrap(), [""; 0]);
    let moved = fs::read_to_string(root.join("init/cgroup.procs")).unwrap();
    assert_eq!(moved.trim(), inside.0.id().to_string());
    // Below the root nobody is moved: who put processes there is told.
    fs::create_dir(root.join("taken")).unwrap();
    fs::write(root.join("taken/cgroup.procs"), inside.0.id().to_string()).unwrap();
    let error = Group::create(&layout, "taken/c", Purpose::Limit).unwrap_err();
    assert!(matches!(error, Error::Occupied(_)), "{error}");
}

#[test]
fn read_only_hierarchies_are_said_to_be_so() {
    if !is_root() {
        return;
    }
    let layout = Layout::probe().unwrap();
    let folder = std::env::temp_dir().join(format!("insula-test-{}", random_hex(8)));
    fs::create_dir(&folder).unwrap();
    // The mount is in a namespace of this thread's own and goes with it.
    let closed = std::thread::spawn({
        let (mut hierarchy, root) = (layout.hierarchies[0].clone(), folder.clone());
        move || {
            insula_sys::process::unshare(insula_sys::process::CloneFlags::NEWNS).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            rustix::mount::mount_bind(&hierarchy.root, &root).unwrap();
            rustix::mount::mount_remount(&root, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
            hierarchy.root = root;
            let layout = Layout { hierarchies: vec![hierarchy] };
            Group::create(&layout, "insula-test-closed/c", Purpose::Limit).unwrap_err()
        }
    });
    let error = closed.join();
    fs::remove_dir(&folder).unwrap();
    let error = error.unwrap();
    assert!(matches!(error, Error::ReadOnly(_)), "{error}");
    assert_eq!(error.kind(), insula_base::Kind::Unsupported);
}
