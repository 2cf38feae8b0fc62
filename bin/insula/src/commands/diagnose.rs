//! `system info --diagnose`: one file that helps whoever looks for a fault, and has no secrets in it.
//!
//! Two nets: of each document only fields that are known to be harmless are taken, and in what is left values of
//! variables, labels and arguments are masked wherever they come up again, in messages for one.

mod mask;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use insula_client::{Client, EventsOptions, Filters, ListOptions};
use serde_json::{Map, Value, json};

use self::mask::{Mask, pick, without_credentials};
use crate::context::Context;
use crate::failure::{self, Outcome};
use crate::printer;

const README: &str = "What insula and its host look like, for whoever looks for a fault.

versions.json    of the command line, the daemon and the kernel
info.json        the host as the daemon sees it, counts, warnings
host.txt         kernel, memory, control groups, limits
daemon.txt       arguments, configuration, memory and descriptors of a daemon on this host
check.jsonl      what a check of everything that the engine has finds (insula system check)
events.jsonl     the last events, without labels and command lines
containers.json, images.json, networks.json, volumes.json, usage.json
                 what there is, its state and its last errors
failures.txt     what could not be found out

Left out: variables, labels, command lines, health checks, credentials of registries, what containers write.
Masked (***) wherever they come up in messages: values of variables and labels, and arguments.
The daemon's own log is not in here: journalctl -u insulad has it.
";

/// Fields of `GET /info`; proxies and registries may have credentials in their addresses.
const INFO: &[&str] = &[
    "ID",
    "Containers",
    "ContainersRunning",
    "ContainersPaused",
    "ContainersStopped",
    "Images",
    "Driver",
    "DriverStatus",
    "Plugins",
    "MemoryLimit",
    "SwapLimit",
    "CpuCfsPeriod",
    "CpuCfsQuota",
    "CPUShares",
    "CPUSet",
    "PidsLimit",
    "OomKillDisable",
    "IPv4Forwarding",
    "Debug",
    "NFd",
    "NGoroutines",
    "SystemTime",
    "LoggingDriver",
    "CgroupDriver",
    "CgroupVersion",
    "NEventsListener",
    "KernelVersion",
    "OperatingSystem",
    "OSVersion",
    "OSType",
    "Architecture",
    "NCPU",
    "MemTotal",
    "DockerRootDir",
    "ServerVersion",
    "Runtimes",
    "DefaultRuntime",
    "LiveRestoreEnabled",
    "Isolation",
    "Machines",
    "SecurityOptions",
    "Warnings",
];

/// Fields of a container, by path.
const CONTAINER: &[&str] = &[
    "Id",
    "Name",
    "Created",
    "Image",
    "Driver",
    "Platform",
    "RestartCount",
    "AppArmorProfile",
    "State/Status",
    "State/Running",
    "State/Paused",
    "State/Restarting",
    "State/OOMKilled",
    "State/Dead",
    "State/Pid",
    "State/ExitCode",
    "State/Error",
    "State/StartedAt",
    "State/FinishedAt",
    "State/Health/Status",
    "State/Health/FailingStreak",
    "HostConfig/NetworkMode",
    "HostConfig/RestartPolicy",
    "HostConfig/AutoRemove",
    "HostConfig/LogConfig/Type",
    "HostConfig/Privileged",
    "HostConfig/Isolation",
    "HostConfig/Memory",
    "HostConfig/MemorySwap",
    "HostConfig/NanoCpus",
    "HostConfig/CpuShares",
    "HostConfig/CpusetCpus",
    "HostConfig/PidsLimit",
    "HostConfig/CapAdd",
    "HostConfig/CapDrop",
    "HostConfig/ReadonlyRootfs",
    "HostConfig/UsernsMode",
    "HostConfig/PidMode",
    "HostConfig/IpcMode",
    "HostConfig/Init",
    "HostConfig/PortBindings",
    "NetworkSettings/Ports",
    "NetworkSettings/Networks",
];

const NETWORK: &[&str] = &[
    "Name",
    "Id",
    "Created",
    "Scope",
    "Driver",
    "EnableIPv6",
    "IPAM/Driver",
    "IPAM/Config",
    "Internal",
    "Attachable",
];
const VOLUME: &[&str] = &["Name", "Driver", "Scope", "CreatedAt", "Mountpoint", "UsageData"];
const IMAGE: &[&str] = &["Id", "RepoTags", "RepoDigests", "Created", "Size", "SharedSize", "Containers"];
/// Attributes of events; the others are labels.
const ATTRIBUTES: &[&str] =
    &["name", "image", "exitCode", "signal", "execDuration", "container", "driver", "type", "destination"];
/// Longest file of the host that is taken.
const LONGEST: usize = 64 << 10;

/// Writes it.
pub(super) async fn write(context: Context, path: &Path) -> Outcome {
    let client = context.client().await?;
    let mut found = Found { mask: Mask::default(), files: Vec::new(), failures: String::new() };
    found.files.push(("README.txt".to_owned(), README.to_owned()));
    found.ask(&client).await;
    found.look(client.address().path());
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("create {}", path.display()))?;
    let archive = found.pack().context("make the archive")?;
    file.write_all(&archive)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("write {}", path.display()))?;
    printer::line(&path.display().to_string())?;
    Ok(0)
}

/// What goes into the file.
#[derive(Debug)]
struct Found {
    mask: Mask,
    files: Vec<(String, String)>,
    failures: String,
}

impl Found {
    /// What the daemon says. An answer that does not come is noted: all the more the others are wanted.
    async fn ask(&mut self, client: &Client) {
        let version = client.version().await.map_err(anyhow::Error::from);
        let version =
            self.kept("the version", version.and_then(|version| Ok(serde_json::to_value(version)?)));
        let own =
            json!({"Version": env!("CARGO_PKG_VERSION"), "ApiVersion": client.version_spoken().to_string()});
        self.document("versions.json", &json!({"Client": own, "Server": version}));
        let info = client.info().await.map_err(anyhow::Error::from);
        let info = self.kept("the state of the host", info.and_then(|info| Ok(serde_json::to_value(info)?)));
        self.document("info.json", &pick(&info, INFO));
        self.containers(client).await;
        self.things(client).await;
        let events = events(client).await;
        self.lines("events.jsonl", "events", events);
        let check = check(client).await;
        self.lines("check.jsonl", "a check", check);
    }

    async fn containers(&mut self, client: &Client) {
        let options = ListOptions { all: true, ..ListOptions::default() };
        let list = client.list_containers(&options).await.map_err(anyhow::Error::from);
        let mut containers = Vec::new();
        for summary in self.kept("containers", list) {
            let document = async {
                let text = client.inspect_container_json(&summary.id, false).await?;
                Ok::<_, anyhow::Error>(serde_json::from_str::<Value>(&text)?)
            };
            let document = document.await;
            let document = self.kept("a container", document);
            self.mask.learn(&document);
            let mut picked = pick(&document, CONTAINER);
            let count = |path: &str| {
                document.pointer(path).map_or(0, |value| {
                    value.as_array().map(Vec::len).or_else(|| value.as_object().map(Map::len)).unwrap_or(0)
                })
            };
            picked["Counts"] = json!({
                "Env": count("/Config/Env"),
                "Labels": count("/Config/Labels"),
                "Args": count("/Args"),
                "Mounts": count("/Mounts"),
                "Execs": count("/ExecIDs"),
            });
            containers.push(picked);
        }
        self.document("containers.json", &Value::Array(containers));
    }

    async fn things(&mut self, client: &Client) {
        let images = client.list_images(true, &Filters::default()).await.map_err(anyhow::Error::from);
        let images = self.kept("images", images.and_then(|images| Ok(serde_json::to_value(images)?)));
        for image in images.as_array().into_iter().flatten() {
            let Some(id) = image["Id"].as_str() else { continue };
            let text = client.inspect_image_json(id).await.map_err(anyhow::Error::from);
            let document = text.and_then(|text| Ok(serde_json::from_str::<Value>(&text)?));
            let document = self.kept("an image", document);
            self.mask.learn(&document);
        }
        self.document("images.json", &each(&images, IMAGE));
        let networks = client.list_networks(&Filters::default()).await.map_err(anyhow::Error::from);
        let networks =
            self.kept("networks", networks.and_then(|networks| Ok(serde_json::to_value(networks)?)));
        self.document("networks.json", &each(&networks, NETWORK));
        let volumes = client.list_volumes(&Filters::default()).await.map_err(anyhow::Error::from);
        let volumes =
            self.kept("volumes", volumes.and_then(|volumes| Ok(serde_json::to_value(volumes.volumes)?)));
        self.document("volumes.json", &each(&volumes, VOLUME));
        let usage = client.disk_usage().await.map_err(anyhow::Error::from);
        let usage = self.kept("disk usage", usage.and_then(|usage| Ok(serde_json::to_value(usage)?)));
        self.document("usage.json", &pick(&usage, &["LayersSize", "Storage"]));
    }

    /// What is on this host, where the daemon is most of the time.
    fn look(&mut self, socket: &Path) {
        let mut host = String::new();
        for path in [
            "/proc/version",
            "/proc/meminfo",
            "/proc/loadavg",
            "/proc/pressure/memory",
            "/proc/pressure/io",
            "/proc/cgroups",
            "/proc/sys/fs/file-nr",
            "/proc/sys/fs/inotify/max_user_instances",
            "/proc/sys/kernel/pid_max",
            "/proc/sys/user/max_user_namespaces",
            "/proc/sys/net/ipv4/ip_forward",
            "/etc/os-release",
        ] {
            host.push_str(&section(path, &read(Path::new(path))));
        }
        // Options of other mounts may be credentials.
        let mounts = read(Path::new("/proc/self/mounts"));
        let groups: String =
            mounts.lines().filter(|line| line.contains("cgroup")).map(|line| format!("{line}\n")).collect();
        host.push_str(&section("control groups", &groups));
        self.files.push(("host.txt".to_owned(), host));
        match daemon(socket) {
            Ok(text) => self.files.push(("daemon.txt".to_owned(), text)),
            Err(error) => self.failures.push_str(&format!("the daemon's process: {error:#}\n")),
        }
    }

    fn kept<T: Default>(&mut self, what: &str, answer: anyhow::Result<T>) -> T {
        answer.unwrap_or_else(|error| {
            self.failures.push_str(&format!("{what}: {}\n", failure::describe(&error)));
            T::default()
        })
    }

    fn document(&mut self, name: &str, value: &Value) {
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        self.files.push((name.to_owned(), text + "\n"));
    }

    fn lines(&mut self, name: &str, what: &str, lines: (Vec<Value>, anyhow::Result<()>)) {
        let (values, end) = lines;
        self.kept(what, end);
        let text: String = values.iter().map(|value| format!("{value}\n")).collect();
        self.files.push((name.to_owned(), text));
    }

    /// Everything masked, in a folder of its own.
    fn pack(mut self) -> std::io::Result<Vec<u8>> {
        let failures = if self.failures.is_empty() {
            "nothing\n".to_owned()
        } else {
            std::mem::take(&mut self.failures)
        };
        self.files.push(("failures.txt".to_owned(), failures));
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        let now = jiff::Timestamp::now().as_second().unsigned_abs();
        for (name, text) in &self.files {
            let text = self.mask.apply(text);
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(now);
            archive.append_data(&mut header, format!("insula-diagnosis/{name}"), text.as_bytes())?;
        }
        archive.into_inner()?.finish()
    }
}

fn each(list: &Value, paths: &[&str]) -> Value {
    list.as_array().into_iter().flatten().map(|value| pick(value, paths)).collect()
}

/// The last events: what follows a colon in an action is a command line.
async fn events(client: &Client) -> (Vec<Value>, anyhow::Result<()>) {
    let mut found = Vec::new();
    let now = jiff::Timestamp::now();
    let until = format!("{}.{:09}", now.as_second(), now.subsec_nanosecond());
    let options = EventsOptions { since: "1".to_owned(), until, filters: Filters::default() };
    let all = async {
        let mut events = client.events(&options).await?;
        while let Some(event) = events.next().await? {
            let action = event.action.split(':').next().unwrap_or_default();
            let attributes: Map<String, Value> = event
                .actor
                .attributes
                .iter()
                .filter(|(name, _)| ATTRIBUTES.contains(&name.as_str()))
                .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
                .collect();
            found.push(json!({
                "TimeNano": event.time_nano,
                "Type": event.r#type,
                "Action": action,
                "ID": event.actor.id,
                "Attributes": attributes,
            }));
        }
        Ok(())
    };
    let end = all.await;
    (found, end)
}

async fn check(client: &Client) -> (Vec<Value>, anyhow::Result<()>) {
    let mut found = Vec::new();
    let all = async {
        let mut lines = client.check(false).await?;
        while let Some(line) = lines.next().await? {
            found.push(serde_json::to_value(line)?);
        }
        Ok(())
    };
    let end = all.await;
    (found, end)
}

/// The process that serves the socket.
fn daemon(socket: &Path) -> anyhow::Result<String> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).context("ask who serves the socket")?;
    let folder = Path::new("/proc").join(peer.pid.as_raw_nonzero().to_string());
    let arguments = read(&folder.join("cmdline")).replace('\0', "\n");
    let configuration = arguments
        .lines()
        .skip_while(|argument| *argument != "--config")
        .nth(1)
        .unwrap_or("/etc/insula/insulad.toml")
        .to_owned();
    let mut text = section("arguments", &without_credentials(&arguments));
    text.push_str(&section(&configuration, &without_credentials(&read(Path::new(&configuration)))));
    text.push_str(&section("status", &read(&folder.join("status"))));
    text.push_str(&section("limits", &read(&folder.join("limits"))));
    text.push_str(&section("cgroup", &read(&folder.join("cgroup"))));
    let open = std::fs::read_dir(folder.join("fd")).map_or(0, Iterator::count);
    text.push_str(&section("descriptors", &format!("{open}\n")));
    Ok(text)
}

/// A file of the host, as far as it is there.
fn read(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned()
}

fn section(title: &str, text: &str) -> String {
    format!("== {title}\n{}\n", if text.is_empty() { "(not there)\n" } else { text })
}
