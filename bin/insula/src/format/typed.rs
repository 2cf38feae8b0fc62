//! What templates find where a document says null, or nothing at all. Docker's own are of Go's types: a list that is
//! absent is an empty one, `{{if .State.Health}}` is no mistake, and of a map any name may be asked for. `json` shows
//! what the document says.

use std::sync::{Arc, LazyLock};

use gotmpl::Value;

use super::fields::{Data, Map};

/// What a field is in Go when nobody sets it.
#[derive(Debug, Clone, Copy)]
enum Zero {
    Pointer,
    Text,
    List,
    Map,
    Ports,
}

/// Fields that documents leave out when they are empty, by the name of the object that has them.
const LEFT_OUT: [(&str, &[(&str, Zero)]); 7] = [
    ("container", &[("SizeRw", Zero::Pointer), ("SizeRootFs", Zero::Pointer)]),
    ("image", &[("Variant", Zero::Text), ("OsVersion", Zero::Text)]),
    ("volume", &[("Status", Zero::Map), ("UsageData", Zero::Pointer), ("CreatedAt", Zero::Text)]),
    ("State", &[("Health", Zero::Pointer)]),
    ("Config", CONFIG),
    ("ContainerConfig", CONFIG),
    (
        "HostConfig",
        &[
            ("Annotations", Zero::Map),
            ("Init", Zero::Pointer),
            ("Mounts", Zero::List),
            ("StorageOpt", Zero::Map),
            ("Sysctls", Zero::Map),
            ("Tmpfs", Zero::Map),
        ],
    ),
];

const CONFIG: &[(&str, Zero)] = &[
    ("ExposedPorts", Zero::Ports),
    ("Healthcheck", Zero::Pointer),
    ("MacAddress", Zero::Text),
    ("Shell", Zero::List),
    ("StopSignal", Zero::Text),
    ("StopTimeout", Zero::Pointer),
];

/// Fields that have names of the user's, of which any may be asked for.
const MAPS: [&str; 19] = [
    "Annotations",
    "Attributes",
    "AuxiliaryAddresses",
    "Containers",
    "Data",
    "Details",
    "DriverOpts",
    "ExposedPorts",
    "Labels",
    "Networks",
    "Options",
    "PortBindings",
    "Ports",
    "Runtimes",
    "Status",
    "StorageOpt",
    "Sysctls",
    "Tmpfs",
    "Volumes",
];

/// Maps whose keys are no texts in Go: they are indexed and walked through, a field they have only if it is there.
const PORTS: [&str; 3] = ["ExposedPorts", "PortBindings", "Ports"];

/// Lists that say null when nobody sets them. What else says null points to nothing.
const LISTS: [&str; 37] = [
    "Aliases",
    "Binds",
    "BlkioDeviceReadBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceWriteIOps",
    "BlkioWeightDevice",
    "CapAdd",
    "CapDrop",
    "Cmd",
    "DNSNames",
    "DeviceCgroupRules",
    "DeviceRequests",
    "Devices",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "Entrypoint",
    "Env",
    "ExecIDs",
    "ExtraHosts",
    "GroupAdd",
    "Layers",
    "Links",
    "MaskedPaths",
    "Mounts",
    "OnBuild",
    "ReadonlyPaths",
    "RepoDigests",
    "RepoTags",
    "SecondaryIPAddresses",
    "SecondaryIPv6Addresses",
    "SecurityOpt",
    "Shell",
    "Test",
    "Ulimits",
    "VolumesFrom",
];

/// Empty values that are told from others by their place in memory.
struct Empty {
    null_list: Arc<[Value]>,
    null_map: Arc<Map>,
    null_ports: Arc<Map>,
    absent_list: Arc<[Value]>,
    absent_map: Arc<Map>,
    absent_ports: Arc<Map>,
    absent_text: Arc<str>,
    absent_pointer: Arc<str>,
}

static EMPTY: LazyLock<Empty> = LazyLock::new(|| Empty {
    null_list: Arc::from(Vec::new()),
    null_map: Arc::default(),
    null_ports: Arc::default(),
    absent_list: Arc::from(Vec::new()),
    absent_map: Arc::default(),
    absent_ports: Arc::default(),
    absent_text: Arc::from(""),
    absent_pointer: Arc::from(""),
});

/// A document that was inspected.
pub(crate) fn document(json: &serde_json::Value) -> Data {
    // Each kind has a field that no other has.
    let kinds = [("State", "container"), ("RootFS", "image"), ("Mountpoint", "volume")];
    let kind = kinds.into_iter().find(|(field, _)| json.get(field).is_some());
    let mut maps = vec![Arc::clone(&EMPTY.null_map), Arc::clone(&EMPTY.absent_map)];
    let value = of(json, kind.map_or("", |(_, name)| name), &mut maps);
    Data::new(value, maps)
}

/// Whether a field of this name is a map of names that a user chooses.
fn is_map(name: &str) -> bool {
    MAPS.contains(&name)
}

/// Whether the value stands for a pointer that the document leaves out: it may be asked for, nothing may of it.
pub(super) fn leads_nowhere(value: &Value) -> bool {
    matches!(value, Value::String(text) if Arc::ptr_eq(text, &EMPTY.absent_pointer))
}

/// Whether the value stands for a field that the document leaves out.
pub(super) fn left_out(value: &Value) -> bool {
    match value {
        Value::String(text) => Arc::ptr_eq(text, &EMPTY.absent_text) || leads_nowhere(value),
        Value::List(list) => Arc::ptr_eq(list, &EMPTY.absent_list),
        Value::Map(map) => {
            [&EMPTY.absent_map, &EMPTY.absent_ports].iter().any(|empty| Arc::ptr_eq(map, empty))
        }
        _ => false,
    }
}

/// Whether the document says null.
pub(super) fn is_null(value: &Value) -> bool {
    match value {
        Value::Nil => true,
        Value::List(list) => Arc::ptr_eq(list, &EMPTY.null_list) || Arc::ptr_eq(list, &EMPTY.absent_list),
        Value::Map(map) => {
            let nulls = [&EMPTY.null_map, &EMPTY.null_ports];
            left_out(value) || nulls.iter().any(|empty| Arc::ptr_eq(map, empty))
        }
        _ => false,
    }
}

/// The value of the field `name`; `maps` gets those that are maps of the user's.
fn of(json: &serde_json::Value, name: &str, maps: &mut Vec<Arc<Map>>) -> Value {
    match json {
        serde_json::Value::Null if PORTS.contains(&name) => Value::Map(Arc::clone(&EMPTY.null_ports)),
        serde_json::Value::Null if is_map(name) => Value::Map(Arc::clone(&EMPTY.null_map)),
        serde_json::Value::Null if LISTS.contains(&name) => Value::List(Arc::clone(&EMPTY.null_list)),
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Array(items) => {
            Value::from(items.iter().map(|item| of(item, "", maps)).collect::<Vec<_>>())
        }
        serde_json::Value::Object(fields) => {
            let mut map: Map = fields
                .iter()
                .map(|(field, value)| (Arc::from(field.as_str()), of(value, within(name, field), maps)))
                .collect();
            let absent = LEFT_OUT.iter().filter(|(object, _)| *object == name);
            for (field, zero) in absent.flat_map(|(_, fields)| fields.iter()) {
                map.entry(Arc::from(*field)).or_insert_with(|| zero.value());
            }
            let map = Arc::new(map);
            if is_map(name) && !PORTS.contains(&name) {
                maps.push(Arc::clone(&map));
            }
            Value::Map(map)
        }
        other => super::template::value(other),
    }
}

/// What the field of an object is taken for.
fn within<'a>(object: &str, field: &'a str) -> &'a str {
    match object {
        // Where a port leads is a list.
        "Ports" | "PortBindings" => LISTS[0],
        // A name of the user's, which means nothing.
        map if is_map(map) => "",
        "LogConfig" if field == "Config" => "Options",
        _ => field,
    }
}

impl Zero {
    fn value(self) -> Value {
        match self {
            Self::Pointer => Value::String(Arc::clone(&EMPTY.absent_pointer)),
            Self::Text => Value::String(Arc::clone(&EMPTY.absent_text)),
            Self::List => Value::List(Arc::clone(&EMPTY.absent_list)),
            Self::Map => Value::Map(Arc::clone(&EMPTY.absent_map)),
            Self::Ports => Value::Map(Arc::clone(&EMPTY.absent_ports)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::Compiled;
    use super::*;

    fn render(template: &str) -> anyhow::Result<String> {
        let json = serde_json::json!({
            "State": {"Pid": 42},
            "Config": {"Cmd": ["sleep"], "Entrypoint": null, "Labels": {"x.y": "z"}, "Volumes": null},
            "HostConfig": {"Binds": null, "PidsLimit": null, "PortBindings": null, "LogConfig": {"Config": {}}},
            "NetworkSettings": {"Ports": {"80/tcp": null}, "Networks": {"own": {"Aliases": null}}},
            "Machine": null,
        });
        Compiled::new(template)?.render(&document(&json))
    }

    #[test]
    fn what_is_absent_is_empty() {
        for (template, expected) in [
            ("{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}", "none"),
            ("{{with .Config.Healthcheck}}{{.Test}}{{end}}", ""),
            ("{{.HostConfig.Binds}} {{len .HostConfig.Binds}} {{.Config.Volumes}}", "[] 0 map[]"),
            ("{{range .HostConfig.Binds}}x{{end}}{{.Config.Entrypoint}}{{.Config.Cmd}}", "[][sleep]"),
            ("{{.HostConfig.Tmpfs}} {{.HostConfig.Mounts}} {{.Config.StopSignal}}|", "map[] [] |"),
            ("{{range $port, $at := .NetworkSettings.Ports}}{{$port}}{{$at}}{{end}}", "80/tcp[]"),
            ("{{if .HostConfig.PidsLimit}}some{{else}}none{{end}}", "none"),
            ("{{if .Machine}}a machine{{else}}none{{end}}{{.Machine}}", "none<nil>"),
            ("{{.State.Health}} {{.HostConfig.PidsLimit}}", "<nil> <nil>"),
            (
                "{{.HostConfig.PidsLimit | json}} {{$limit := .HostConfig.PidsLimit}}{{json $limit}}",
                "null null",
            ),
        ] {
            assert_eq!(render(template).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn names_of_users_need_not_be_there() {
        for (template, expected) in [
            ("{{index .Config.Labels \"x.y\"}}|{{index .Config.Labels \"no\"}}|", "z||"),
            ("{{if eq (index .Config.Labels \"no\") \"\"}}none{{end}}", "none"),
            ("{{index .HostConfig.LogConfig.Config \"no\"}}|", "|"),
            ("{{.Config.Labels.no}}", "<no value>"),
            ("{{.NetworkSettings.Networks.bridge.IPAddress}}", "<no value>"),
            ("{{with index .NetworkSettings.Networks \"bridge\"}}{{.IPAddress}}{{end}}", ""),
            ("{{with .Config.Labels}}{{.no}}{{end}}", "<no value>"),
            ("{{len .Config.ExposedPorts}}{{range .HostConfig.PortBindings}}x{{end}}", "0"),
            ("{{$labels := .Config.Labels}}{{$labels.no}}", "<no value>"),
            ("{{(index .NetworkSettings.Networks \"own\").Aliases}}", "[]"),
            ("{{.Config.Volumes.no}} {{.HostConfig.Tmpfs.no}}", "<no value> <no value>"),
            (
                "{{range $name, $value := .Config.Labels}}{{$name}}={{$value}} {{end}}{{len .Config.Labels}}",
                "x.y=z 1",
            ),
        ] {
            assert_eq!(render(template).unwrap(), expected, "{template}");
        }
        for wrong in [
            "{{.Nope}}",
            "{{.Config.Nope}}",
            "{{.Config.Cmd.Nope}}",
            "{{.State.Health.Status}}",
            "{{.Machine.Pid}}",
            "{{.State.no}}",
            "{{.NetworkSettings.Ports.no}}",
            "{{.Config.ExposedPorts.no}}",
            "{{.HostConfig.PortBindings.no}}",
            // One that may be absent excuses no other.
            "{{.Config.Labels.no}} {{.Nope}}",
            "{{.Config.Labels.Nope}} {{.Nope}}",
            "{{if .State.Health}}x{{end}}{{.Nope}}",
            "{{if .State.Health}}x{{end}}{{.State.Health.Status}}",
            "{{with .State}}{{.Nope}}{{end}}",
            "{{$state := .State}}{{$state.Nope}}",
            "{{(index .NetworkSettings.Networks \"own\").Nope}}",
            "{{define \"of\"}}{{.Nope}}{{end}}{{template \"of\" .State}}",
        ] {
            assert!(render(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn json_shows_what_the_document_says() {
        for (template, expected) in [
            ("{{json .State}}", r#"{"Pid":42}"#),
            ("{{json .State.Health}} {{json .HostConfig.Binds}} {{json .Config.Volumes}}", "null null null"),
            (
                "{{json .HostConfig}}",
                r#"{"Binds":null,"LogConfig":{"Config":{}},"PidsLimit":null,"PortBindings":null}"#,
            ),
            (
                "{{json .Config}}",
                r#"{"Cmd":["sleep"],"Entrypoint":null,"Labels":{"x.y":"z"},"Volumes":null}"#,
            ),
        ] {
            assert_eq!(render(template).unwrap(), expected, "{template}");
        }
    }
}
