//! What earlier versions of the API look like: one table of rules a document.
//!
//! Documents are built as the newest version has them. A client that speaks an earlier one gets the
//! same document with these rules applied, in their order: fields that came later are taken out,
//! fields that are gone are put back. The versions are those of the published history of the API.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    ApiVersion, ContainerCreateResponse, ContainerInspect, ContainerSummary, DiskUsage, ImageInspect,
    ImageSummary, Network, SystemInfo, Version, Volume, VolumeListResponse, WaitResponse,
};

type Object = Map<String, Value>;

/// How one field differs between versions; numbers are minor versions.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// It came with this version.
    Since(u16),
    /// It is gone from this version on.
    Until(u16),
    /// Versions before this one have it with another value, made of the object that it is in.
    Before(u16, fn(&Object) -> Value),
    /// It is, or its elements are, a document with rules of its own.
    Is(&'static [Rule]),
}

/// A field, as a path with dots; `*` stands for every element of a list or a map.
#[derive(Debug, Clone, Copy)]
pub struct Rule(&'static str, Change);

/// Above every version.
const EVERY: u16 = u16::MAX;

use Change::{Before, Is, Since, Until};

/// A document of which earlier versions differ.
pub trait Versioned: Serialize {
    /// How.
    const RULES: &'static [Rule];
}

/// Writes a document as a version of the API has it.
///
/// # Errors
/// When the document cannot be written as JSON: a defect.
pub fn to_json<T: Versioned + ?Sized>(document: &T, version: ApiVersion) -> serde_json::Result<Vec<u8>> {
    if !matters(T::RULES, version) {
        return serde_json::to_vec(document);
    }
    let mut value = serde_json::to_value(document)?;
    apply(T::RULES, version, &mut value);
    serde_json::to_vec(&value)
}

fn matters(rules: &[Rule], version: ApiVersion) -> bool {
    rules.iter().any(|Rule(_, change)| match change {
        Since(minor) | Before(minor, _) => version < ApiVersion::v1(*minor),
        Until(minor) => version >= ApiVersion::v1(*minor),
        Is(rules) => matters(rules, version),
    })
}

fn apply(rules: &[Rule], version: ApiVersion, document: &mut Value) {
    for rule in rules {
        if !matters(std::slice::from_ref(rule), version) {
            continue;
        }
        let Rule(path, change) = *rule;
        if let Is(rules) = change {
            visit(document, path, &mut |value| apply(rules, version, value));
            continue;
        }
        let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
        visit(document, parent, &mut |value| {
            let Some(object) = value.as_object_mut() else { return };
            if let Before(_, make) = change {
                let made = make(object);
                object.insert(field.to_owned(), made);
            } else {
                object.remove(field);
            }
        });
    }
}

/// Calls `act` with everything that `path` leads to.
fn visit(value: &mut Value, path: &str, act: &mut dyn FnMut(&mut Value)) {
    if path.is_empty() {
        return act(value);
    }
    let (head, rest) = path.split_once('.').unwrap_or((path, ""));
    match (head, value) {
        ("*", Value::Array(list)) => list.iter_mut().for_each(|value| visit(value, rest, act)),
        ("*", Value::Object(map)) => map.values_mut().for_each(|value| visit(value, rest, act)),
        (name, Value::Object(map)) => {
            if let Some(value) = map.get_mut(name) {
                visit(value, rest, act);
            }
        }
        _ => {}
    }
}

impl<T: Versioned> Versioned for Vec<T> {
    const RULES: &'static [Rule] = &[Rule("*", Is(T::RULES))];
}

fn zero(_: &Object) -> Value {
    0.into()
}

fn no(_: &Object) -> Value {
    false.into()
}

fn null(_: &Object) -> Value {
    Value::Null
}

/// A container's place in one network.
const ENDPOINT: &[Rule] = &[
    // The container's short id and its host name were aliases like others; the first name is its own.
    Rule(
        "Aliases",
        Before(45, |endpoint| {
            let list = |name: &str| endpoint.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
            let mut aliases = list("Aliases");
            let others = list("DNSNames").into_iter().skip(1);
            aliases.extend(others.filter(|name| !list("Aliases").contains(name)));
            if aliases.is_empty() { Value::Null } else { aliases.into() }
        }),
    ),
    Rule("DNSNames", Since(44)),
    Rule("GwPriority", Since(48)),
    Rule("DriverOpts", Since(32)),
];

/// The same in lists, which tell less of it.
const ENDPOINT_IN_LIST: &[Rule] =
    &[Rule("DNSNames", Since(44)), Rule("GwPriority", Since(48)), Rule("DriverOpts", Since(32))];

const MOUNT: &[Rule] = &[
    Rule("Consistency", Since(28)),
    Rule("BindOptions.NonRecursive", Since(40)),
    Rule("BindOptions.CreateMountpoint", Since(42)),
    Rule("BindOptions.ReadOnlyNonRecursive", Since(44)),
    Rule("BindOptions.ReadOnlyForceRecursive", Since(44)),
    Rule("VolumeOptions.Subpath", Since(45)),
    Rule("TmpfsOptions.Options", Since(46)),
];

const HOST_CONFIG: &[Rule] = &[
    Rule("AutoRemove", Since(25)),
    Rule("NanoCpus", Since(25)),
    Rule("CpuCount", Since(25)),
    Rule("CpuPercent", Since(25)),
    Rule("CpuRealtimePeriod", Since(25)),
    Rule("CpuRealtimeRuntime", Since(25)),
    Rule("Init", Since(25)),
    Rule("Mounts", Since(25)),
    Rule("DeviceCgroupRules", Since(28)),
    Rule("DeviceRequests", Since(40)),
    Rule("KernelMemoryTCP", Before(42, |host| host.get("KernelMemoryTCP").cloned().unwrap_or(json!(0)))),
    Rule("KernelMemoryTCP", Since(40)),
    Rule("CgroupnsMode", Since(41)),
    Rule("Annotations", Since(43)),
    Rule("KernelMemory", Before(42, |host| host.get("KernelMemory").cloned().unwrap_or(json!(0)))),
    Rule("Mounts.*", Is(MOUNT)),
];

const CONTAINER_CONFIG: &[Rule] = &[
    Rule("StopTimeout", Since(25)),
    Rule("Healthcheck.StartPeriod", Since(29)),
    Rule("Healthcheck.StartInterval", Since(44)),
];

impl Versioned for ContainerInspect {
    const RULES: &'static [Rule] = &[
        Rule("Platform", Since(32)),
        Rule("ImageManifestDescriptor", Since(48)),
        Rule("HostConfig", Is(HOST_CONFIG)),
        Rule("Config", Is(CONTAINER_CONFIG)),
        Rule("NetworkSettings.Networks.*", Is(ENDPOINT)),
    ];
}

impl Versioned for ContainerSummary {
    const RULES: &'static [Rule] = &[
        Rule("HostConfig.Annotations", Since(46)),
        Rule("ImageManifestDescriptor", Since(48)),
        Rule("NetworkSettings.Networks.*", Is(ENDPOINT_IN_LIST)),
    ];
}

impl Versioned for ContainerCreateResponse {
    // A list that is never null came with Go's `[]string{}`; older ones write a nil slice.
    const RULES: &'static [Rule] = &[Rule(
        "Warnings",
        Before(25, |answer| {
            let warnings = answer.get("Warnings").cloned().unwrap_or_default();
            if warnings.as_array().is_some_and(Vec::is_empty) { Value::Null } else { warnings }
        }),
    )];
}

impl Versioned for WaitResponse {
    const RULES: &'static [Rule] = &[Rule("Error", Since(34))];
}

fn virtual_size(image: &Object) -> Value {
    image.get("Size").cloned().unwrap_or(json!(0))
}

/// Images without any name had names that are none; of those with names of one kind the others were `null`.
fn named(image: &Object, field: &str, other: &str, none: &str) -> Value {
    let names = |field: &str| image.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let is_none = |name: &Value| name.as_str().is_some_and(|name| name.starts_with("<none>"));
    match names(field) {
        own if !own.is_empty() => own.into(),
        _ if names(other).iter().all(is_none) => json!([none]),
        _ => Value::Null,
    }
}

/// As in lists, with the number of containers, which disk use always had.
const IMAGE_OF_DISK_USE: &[Rule] = &[
    Rule("RepoTags", Before(43, |image| named(image, "RepoTags", "RepoDigests", "<none>:<none>"))),
    Rule("RepoDigests", Before(43, |image| named(image, "RepoDigests", "RepoTags", "<none>@<none>"))),
    Rule("VirtualSize", Before(44, virtual_size)),
    Rule("Manifests", Since(47)),
    Rule("Descriptor", Since(48)),
];

impl Versioned for ImageSummary {
    const RULES: &'static [Rule] =
        &[Rule("", Is(IMAGE_OF_DISK_USE)), Rule("Containers", Before(51, |_| json!(-1)))];
}

impl Versioned for ImageInspect {
    const RULES: &'static [Rule] = &[
        Rule("Metadata", Since(31)),
        Rule("VirtualSize", Before(44, virtual_size)),
        Rule("Container", Before(45, |_| json!(""))),
        // Gone with 1.45, and still read by docker-compose 1.29, which speaks whatever is newest.
        Rule(
            "ContainerConfig",
            Before(EVERY, |image| {
                // The build that made the image; what it was is not part of an image.
                let mut config = json!({ "Config": image.get("Config").cloned().unwrap_or_default() });
                visit(&mut config, "Config.*", &mut |value| {
                    *value = match value {
                        Value::String(_) => json!(""),
                        Value::Bool(_) => json!(false),
                        Value::Number(_) => json!(0),
                        _ => Value::Null,
                    }
                });
                config["Config"].take()
            }),
        ),
        Rule("Config", Is(CONTAINER_CONFIG)),
        Rule(
            "Config.Labels",
            Before(EVERY, |config| match config.get("Labels") {
                Some(Value::Object(labels)) if !labels.is_empty() => labels.clone().into(),
                _ => Value::Null,
            }),
        ),
        // Fields of a container that an image never had.
        Rule("Config.Hostname", Until(50)),
        Rule("Config.Domainname", Until(50)),
        Rule("Config.AttachStdin", Until(50)),
        Rule("Config.AttachStdout", Until(50)),
        Rule("Config.AttachStderr", Until(50)),
        Rule("Config.Tty", Until(50)),
        Rule("Config.OpenStdin", Until(50)),
        Rule("Config.StdinOnce", Until(50)),
        Rule("Config.Image", Until(50)),
        Rule("Config.NetworkDisabled", Until(50)),
        Rule("Config.MacAddress", Until(50)),
        Rule("Config.StopTimeout", Until(50)),
        Rule("Manifests", Since(48)),
        Rule("Descriptor", Since(48)),
    ];
}

impl Versioned for SystemInfo {
    const RULES: &'static [Rule] = &[
        // `name=seccomp,profile=builtin` was `seccomp`.
        Rule(
            "SecurityOptions",
            Before(25, |info| {
                let options =
                    info.get("SecurityOptions").and_then(Value::as_array).cloned().unwrap_or_default();
                let bare = |option: &Value| {
                    let text = option.as_str().unwrap_or_default();
                    text.trim_start_matches("name=").split(',').next().unwrap_or_default().into()
                };
                options.iter().map(bare).collect::<Vec<Value>>().into()
            }),
        ),
        Rule("Isolation", Since(25)),
        Rule("Warnings", Since(39)),
        Rule("PidsLimit", Since(40)),
        Rule("CgroupVersion", Since(41)),
        Rule("DefaultAddressPools", Since(41)),
        Rule("KernelMemory", Before(42, no)),
        Rule("KernelMemoryTCP", Before(42, no)),
        Rule("KernelMemoryTCP", Since(40)),
        Rule("CDISpecDirs", Since(44)),
        Rule("Runtimes.*.status", Since(44)),
        Rule("Containerd", Since(46)),
        Rule("GenericResources", Before(EVERY, null)),
        // Gone with 1.48, where they always were empty.
        Rule("RegistryConfig.AllowNondistributableArtifactsCIDRs", Until(48)),
        Rule("RegistryConfig.AllowNondistributableArtifactsHostnames", Until(48)),
        Rule("FirewallBackend", Since(49)),
        Rule("BridgeNfIptables", Before(50, no)),
        Rule("BridgeNfIp6tables", Before(50, no)),
        Rule("DiscoveredDevices", Since(50)),
    ];
}

impl Versioned for Version {
    const RULES: &'static [Rule] =
        &[Rule("MinAPIVersion", Since(25)), Rule("Platform", Since(35)), Rule("Components", Since(35))];
}

impl Versioned for Network {
    const RULES: &'static [Rule] = &[
        Rule("Created", Since(25)),
        Rule("Ingress", Since(29)),
        Rule("ConfigFrom", Since(30)),
        Rule("ConfigOnly", Since(30)),
        Rule("EnableIPv4", Since(48)),
    ];
}

impl Versioned for Volume {
    const RULES: &'static [Rule] = &[Rule("Options", Since(25)), Rule("CreatedAt", Since(31))];
}

impl Versioned for VolumeListResponse {
    const RULES: &'static [Rule] = &[Rule("Volumes.*", Is(Volume::RULES))];
}

impl Versioned for DiskUsage {
    const RULES: &'static [Rule] = &[
        Rule("Images.*", Is(IMAGE_OF_DISK_USE)),
        Rule("Containers.*", Is(ContainerSummary::RULES)),
        Rule("Volumes.*", Is(Volume::RULES)),
        Rule("BuilderSize", Before(42, zero)),
        Rule("BuilderSize", Since(31)),
        Rule("BuildCache", Before(31, null)),
        Rule("BuildCache.*.Parent", Before(42, |_| json!(""))),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EndpointSettings, HealthConfig, HostConfig, Labels};

    fn at<T: Versioned>(document: &T, minor: u16) -> Value {
        serde_json::from_slice(&to_json(document, ApiVersion::v1(minor)).unwrap()).unwrap()
    }

    #[test]
    fn containers_have_the_fields_of_the_version() {
        let endpoint = EndpointSettings {
            aliases: vec!["db".to_owned()],
            dns_names: vec!["db".to_owned(), "0123456789ab".to_owned()],
            ..EndpointSettings::default()
        };
        let mut inspect = ContainerInspect {
            host_config: HostConfig {
                annotations: Labels::from([("a".to_owned(), "b".to_owned())]),
                ..HostConfig::default()
            },
            ..ContainerInspect::default()
        };
        inspect.config.healthcheck =
            Some(HealthConfig { start_interval: 1, start_period: 1, ..Default::default() });
        inspect.network_settings.networks.insert("net".to_owned(), endpoint);
        let network = |minor| at(&inspect, minor)["NetworkSettings"]["Networks"]["net"].clone();
        assert_eq!(network(45)["Aliases"], json!(["db"]));
        assert_eq!(network(44)["Aliases"], json!(["db", "0123456789ab"]));
        assert_eq!(network(44)["DNSNames"], json!(["db", "0123456789ab"]));
        assert_eq!(network(43)["Aliases"], json!(["db", "0123456789ab"]));
        assert!(network(43).get("DNSNames").is_none());
        let host = |minor| at(&inspect, minor)["HostConfig"].clone();
        assert!(host(43)["Annotations"].is_object() && host(42).get("Annotations").is_none());
        assert!(host(42).get("KernelMemory").is_none() && host(41)["KernelMemory"] == 0);
        assert!(host(41).get("CgroupnsMode").is_some() && host(40).get("CgroupnsMode").is_none());
        let health = |minor| at(&inspect, minor)["Config"]["Healthcheck"].clone();
        assert_eq!(health(44), json!({"StartPeriod": 1, "StartInterval": 1}));
        assert_eq!(health(43), json!({"StartPeriod": 1}));
        assert_eq!(health(28), json!({}));
    }

    #[test]
    fn images_have_the_fields_of_the_version() {
        let list = vec![ImageSummary { size: 7, containers: 2, ..ImageSummary::default() }];
        let of = |minor| at(&list, minor)[0].clone();
        assert_eq!(of(51)["Containers"], 2);
        assert_eq!(of(50)["Containers"], -1);
        assert!(of(44).get("VirtualSize").is_none());
        assert_eq!((&of(43)["VirtualSize"], &of(43)["RepoTags"]), (&json!(7), &json!([])));
        assert_eq!(of(42)["RepoTags"], json!(["<none>:<none>"]));
        assert_eq!(of(42)["RepoDigests"], json!(["<none>@<none>"]));
        let tagged = ImageSummary { repo_tags: vec!["a:1".to_owned()], ..ImageSummary::default() };
        assert_eq!(
            (&at(&tagged, 42)["RepoDigests"], &at(&tagged, 43)["RepoDigests"]),
            (&json!(null), &json!([]))
        );
        let inspect = ImageInspect::default();
        let of = |minor| at(&inspect, minor);
        assert!(of(50)["Config"].get("Hostname").is_none() && of(50)["Config"].get("Env").is_some());
        assert_eq!(of(49)["Config"]["Hostname"], "");
        assert!(of(45).get("Container").is_none());
        assert_eq!((&of(44)["Container"], &of(44)["ContainerConfig"]["Tty"]), (&json!(""), &json!(false)));
    }

    #[test]
    fn the_engine_has_the_fields_of_the_version() {
        let info = SystemInfo {
            security_options: vec!["name=seccomp,profile=builtin".to_owned()],
            ..SystemInfo::default()
        };
        assert_eq!(at(&info, 24)["SecurityOptions"], json!(["seccomp"]));
        assert_eq!(at(&info, 25)["SecurityOptions"], json!(["name=seccomp,profile=builtin"]));
        assert_eq!(at(&info, 49)["BridgeNfIptables"], false);
        assert!(at(&info, 50).get("BridgeNfIptables").is_none());
        assert!(at(&info, 39).get("KernelMemoryTCP").is_none() && at(&info, 41)["KernelMemoryTCP"] == false);
        let version = Version::default();
        assert!(at(&version, 34).get("Components").is_none() && at(&version, 35)["Components"].is_array());
        let usage = DiskUsage { images: vec![ImageSummary::default()], ..DiskUsage::default() };
        assert_eq!(at(&usage, 41)["BuilderSize"], 0);
        assert!(at(&usage, 42).get("BuilderSize").is_none());
        assert_eq!(at(&usage, 43)["Images"][0]["VirtualSize"], 0);
    }
}
