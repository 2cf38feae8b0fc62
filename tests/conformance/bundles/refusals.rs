//! What insula does not do it does not do in silence.

use serde_json::{Value, json};

use super::{Bundle, Runtime};

#[test]
fn a_profile_needs_a_host_that_has_them() {
    let Some(runtime) = Runtime::insula() else { return };
    if std::path::Path::new("/sys/module/apparmor").exists() {
        return insula_tests::skip("a host without AppArmor", "this one has it");
    }
    let mut bundle = Bundle::new(&runtime, "true");
    bundle.config["process"]["apparmorProfile"] = json!("docker-default");
    let (code, _, errors) = bundle.outcome();
    assert!(code == 1 && errors.contains("process.apparmorProfile: the host has no AppArmor"), "{errors}");
    assert!(!bundle.path("state").join(&bundle.id).exists() && !bundle.has_groups());
}

#[test]
fn contexts_need_a_host_that_has_them() {
    let Some(runtime) = Runtime::insula() else { return };
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return insula_tests::skip("a host without SELinux", "this one has it");
    }
    for field in ["/process/selinuxLabel", "/linux/mountLabel"] {
        let mut bundle = Bundle::new(&runtime, "true");
        let (parent, name) = field.rsplit_once('/').unwrap();
        bundle.config.pointer_mut(parent).unwrap()[name] = json!("system_u:system_r:container_t:s0");
        let (code, _, errors) = bundle.outcome();
        let expected = format!("{}: the host has no SELinux", field[1..].replace('/', "."));
        assert!(code == 1 && errors.contains(&expected), "{errors}");
        assert!(!bundle.path("state").join(&bundle.id).exists() && !bundle.has_groups());
    }
}

#[test]
fn shares_of_caches_need_a_host_that_has_them() {
    let Some(runtime) = Runtime::insula() else { return };
    if std::path::Path::new("/sys/fs/resctrl/schemata").exists() {
        return insula_tests::skip("a host without resctrl", "this one has it");
    }
    let mut bundle = Bundle::new(&runtime, "true");
    bundle.config["linux"]["intelRdt"] = json!({"l3CacheSchema": "L3:0=f"});
    let (code, _, errors) = bundle.outcome();
    assert!(code == 1 && errors.contains("linux.intelRdt: the host has no /sys/fs/resctrl"), "{errors}");
    assert!(!bundle.path("state").join(&bundle.id).exists() && !bundle.has_groups());
}

#[test]
fn what_is_not_supported_is_named_and_leaves_nothing() {
    let Some(runtime) = Runtime::insula() else { return };
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 4] = [
        ("vm: this property is not supported", |c| c["vm"] = json!({"kernel": {"path": "/x"}})),
        ("mounts[0].options: \"tmpcopyup\" is for a tmpfs that is not /dev", |c| {
            c["mounts"] = json!([{"destination": "/dev", "type": "tmpfs", "options": ["tmpcopyup"]}]);
        }),
        ("mounts: would be the host's: the container has no mount namespace of its own", |c| {
            c["linux"]["namespaces"] = json!([]);
            c["hostname"] = json!("");
        }),
        ("process.args[0]: invalid type: integer `3`, expected a string", |c| {
            c["process"]["args"] = json!([3]);
        }),
    ];
    for (text, change) in cases {
        let mut bundle = Bundle::new(&runtime, "true");
        change(&mut bundle.config);
        let (code, _, errors) = bundle.outcome();
        assert!(code == 1 && errors.contains(text), "{errors}");
        assert!(!bundle.path("state").join(&bundle.id).exists() && !bundle.has_groups());
    }
}
