//! Docker's commands but `run` and `create`, and an example of each of their flags.

/// A command and what it is run with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verb {
    pub(super) words: &'static str,
    /// What follows the flags.
    pub(super) rest: &'static str,
    /// Command lines of insula that come first, and last.
    pub(super) before: &'static [&'static str],
    pub(super) after: &'static [&'static str],
    pub(super) kind: Kind,
    pub(super) rows: &'static [Row],
}

/// Flags (the first is what the row is about), how they differ with Docker's client, and with insula's.
pub(super) type Row = (&'static str, &'static str, &'static str);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It shows what there is: both clients print the same.
    Shows,
    /// It changes something, or prints what changes by itself.
    Acts,
    /// It ends when the container does, which is made to when it is attached.
    Stays,
}

use Kind::{Acts, Shows, Stays};

const fn verb(
    words: &'static str,
    rest: &'static str,
    kind: Kind,
    around: (&'static [&'static str], &'static [&'static str]),
    rows: &'static [Row],
) -> Verb {
    Verb { words, rest, before: around.0, after: around.1, kind, rows }
}

const ALONE: (&[&str], &[&str]) = (&[], &[]);
/// A container that was made, one that runs, and one that waits for a file.
const MADE: (&[&str], &[&str]) =
    (&["create --name made --network none busybox echo made"], &["rm -f made other"]);
const RUNS: (&[&str], &[&str]) =
    (&["run -d --init --name made --network none busybox sleep 1000"], &["rm -f made"]);
const WAITS: (&[&str], &[&str]) = (
    &["run -d --name made --network none busybox sh -c 'until test -e /go; do sleep 0.05; done'"],
    &["rm -f made"],
);
const NO_IMAGE: (&[&str], &[&str]) = (&[], &["rmi -f made:1"]);
const IMAGE: (&[&str], &[&str]) = (&["tag busybox made:1"], &["rmi -f made:1"]);
const NO_NETWORK: (&[&str], &[&str]) = (&[], &["network rm made"]);
const APART: (&[&str], &[&str]) = (&["create --name made busybox true"], &["rm -f made"]);
const TOGETHER: (&[&str], &[&str]) = (&["create --name made --network fixed busybox true"], &["rm -f made"]);
const NO_VOLUME: (&[&str], &[&str]) = (&[], &["volume rm made"]);
const VOLUME: (&[&str], &[&str]) = (&["volume create made"], &["volume rm -f made"]);

const NO_TRUST: &str = "there is no content trust";
const NO_OCI: &str = "the older client does not know OCI manifests";
const HUB: &str = "Docker Hub can be";
const NEWEST: &str = "the fields of the newest API";
const NO_STEPS: &str = "no containers of steps are kept anyway";

/// What removes all that is not used comes last.
pub(super) const VERBS: &[Verb] = &[
    verb(
        "attach",
        "made",
        Stays,
        WAITS,
        &[
            ("", "", ""),
            ("--detach-keys ctrl-a", "", ""),
            ("--no-stdin", "", ""),
            ("--sig-proxy=false", "", ""),
        ],
    ),
    verb(
        "build",
        "FOLDER/context",
        Acts,
        NO_IMAGE,
        &[
            ("--add-host a:10.0.0.1", "", ""),
            ("--build-arg A=b", "", ""),
            ("--cache-from busybox", "", ""),
            ("--cgroup-parent /some", "", ""),
            ("--compress", "", ""),
            ("--cpu-period 50000", "", ""),
            ("--cpu-quota 25000", "", ""),
            ("--cpu-shares 512", "", ""),
            ("--cpuset-cpus 0", "", ""),
            ("--cpuset-mems 0", "", ""),
            ("--disable-content-trust", NO_TRUST, NO_TRUST),
            ("--file FOLDER/context/Dockerfile", "", ""),
            ("--force-rm", NO_STEPS, NO_STEPS),
            ("--iidfile FOLDER/iid", "", ""),
            (
                "--isolation default",
                "`process` and `vm` choose the wall",
                "`process` and `vm` choose the wall",
            ),
            ("--label a=b", "", ""),
            ("--memory 64m", "", ""),
            ("--memory-swap 128m --memory 64m", "", ""),
            ("--network none", "", ""),
            ("--no-cache", "", ""),
            ("--pull", "", ""),
            ("--quiet", "", ""),
            ("--rm", NO_STEPS, NO_STEPS),
            ("--security-opt seccomp=unconfined", "", ""),
            ("--shm-size 32m", "", ""),
            ("--squash", "", ""),
            ("--tag made:1", "", ""),
            ("--target made", "", ""),
            ("--ulimit nofile=100:200", "", ""),
        ],
    ),
    verb(
        "commit",
        "BOX made:1",
        Acts,
        NO_IMAGE,
        &[
            ("", "", ""),
            ("--author me", "", ""),
            ("--change 'ENV A=b'", "", ""),
            ("--message why", "", ""),
            ("--pause=false", "", ""),
        ],
    ),
    verb(
        "cp",
        "FOLDER/env BOX:/tmp/in",
        Acts,
        ALONE,
        &[("", "", ""), ("--archive", "", ""), ("--follow-link", "", "")],
    ),
    verb("diff", "BOX", Shows, ALONE, &[("", "", "")]),
    verb(
        "events",
        "",
        Shows,
        ALONE,
        &[
            ("--since 1h --until=-1s", "the last 1,024 are kept", "the last 1,024 are kept"),
            ("--until=-1s", "", ""),
            ("--filter type=container --since 1h --until=-1s", "", ""),
            ("--format {{.Type}} --since 1h --until=-1s", "", ""),
        ],
    ),
    verb(
        "exec",
        "BOX true",
        Acts,
        ALONE,
        &[
            ("", "", ""),
            ("--detach", "", ""),
            ("--detach-keys ctrl-a", "", ""),
            ("--env A=b", "", ""),
            ("--env-file FOLDER/env", "", ""),
            ("--interactive", "", ""),
            ("--privileged", "", ""),
            ("--tty", "", ""),
            ("--user 1000", "", ""),
            ("--workdir /tmp", "", ""),
        ],
    ),
    verb("export", "BOX", Acts, ALONE, &[("--output FOLDER/out.tar", "", "")]),
    verb(
        "history",
        "kept:1",
        Shows,
        ALONE,
        &[
            ("", "", ""),
            ("--format {{.ID}}", "", ""),
            ("--human=false", "", ""),
            ("--no-trunc", "", ""),
            ("--quiet", "", ""),
        ],
    ),
    verb(
        "images",
        "busybox",
        Shows,
        ALONE,
        &[
            ("", "", ""),
            ("--all", "", ""),
            ("--digests", "", ""),
            ("--filter dangling=true", "", ""),
            ("--format {{.ID}}", "", ""),
            ("--format raw", "", ""),
            ("--format raw --quiet", "", ""),
            ("--no-trunc", "", ""),
            ("--quiet", "", ""),
        ],
    ),
    verb(
        "import",
        "FOLDER/import.tar made:1",
        Acts,
        NO_IMAGE,
        &[
            ("", "", ""),
            ("--change 'ENV A=b'", "", ""),
            ("--message why", "", ""),
            ("--platform linux/amd64", "", ""),
        ],
    ),
    verb("info", "", Acts, ALONE, &[("", "", ""), ("--format {{.ServerVersion}}", "", "")]),
    verb(
        "inspect",
        "BOX",
        Shows,
        ALONE,
        &[
            ("", "", NEWEST),
            ("--format {{.Id}}", "", ""),
            ("--format {{.State.Health}},{{.Config.Labels.no}},{{.HostConfig.PidsLimit}}", "", ""),
            (
                "--format '{{with .Config.Labels}}{{.no}}{{end}}{{if .State.Health}}{{.State.Health.Status}}{{end}}'",
                "",
                "",
            ),
            ("--size", "", NEWEST),
            ("--type container", "", NEWEST),
        ],
    ),
    verb("kill", "made", Acts, RUNS, &[("", "", ""), ("--signal TERM", "", "")]),
    verb(
        "load",
        "",
        Shows,
        ALONE,
        &[("--input FOLDER/load.tar", "", ""), ("--quiet --input FOLDER/load.tar", "", "")],
    ),
    verb(
        "login",
        "REGISTRY",
        Acts,
        (&[], &["logout REGISTRY"]),
        &[
            ("--username ann --password secret", "", ""),
            ("--password secret --username ann", "", ""),
            ("--password-stdin --username ann", "", ""),
        ],
    ),
    verb(
        "logout",
        "REGISTRY",
        Shows,
        (&["login -u ann -p secret REGISTRY"], &["login -u ann -p secret REGISTRY"]),
        &[("", "", "")],
    ),
    verb(
        "logs",
        "done",
        Shows,
        ALONE,
        &[
            ("", "", ""),
            ("--details", "", ""),
            ("--follow", "", ""),
            ("--since 1h", "", ""),
            ("--tail 1", "", ""),
            ("--timestamps", "", ""),
            ("--until 1h", "", ""),
        ],
    ),
    verb(
        "network connect",
        "fixed made",
        Acts,
        APART,
        &[
            ("", "", ""),
            ("--alias a", "", ""),
            ("--driver-opt a=b", "", ""),
            ("--ip SUBNET.7", "", ""),
            ("--ip6 fd00::9", "", ""),
            ("--link box:db", "", ""),
            ("--link-local-ip 169.254.1.9", "", ""),
        ],
    ),
    verb(
        "network create",
        "made",
        Acts,
        NO_NETWORK,
        &[
            ("", "", ""),
            ("--attachable", "containers may always join", "containers may always join"),
            ("--aux-address a=NETWORK.9 --subnet NETWORK.0/24", "", ""),
            ("--config-from fixed", "", ""),
            ("--config-only", "", ""),
            ("--driver bridge", "", ""),
            ("--gateway NETWORK.2 --subnet NETWORK.0/24", "", ""),
            ("--ingress", "", ""),
            ("--internal", "", ""),
            ("--ip-range NETWORK.128/25 --subnet NETWORK.0/24", "", ""),
            ("--ipam-driver default", "", ""),
            ("--ipam-opt a=b", "", ""),
            ("--ipv6 --subnet fd00:7::/64", "", ""),
            ("--label a=b", "", ""),
            ("--opt com.docker.network.driver.mtu=1400", "", ""),
            ("--scope swarm", "", ""),
            ("--subnet NETWORK.0/24", "", ""),
        ],
    ),
    verb("network disconnect", "fixed made", Acts, TOGETHER, &[("", "", ""), ("--force", "", "")]),
    verb(
        "network inspect",
        "fixed",
        Shows,
        ALONE,
        &[("", "", NEWEST), ("--format {{.Name}}", "", ""), ("--verbose", "", NEWEST)],
    ),
    verb(
        "network ls",
        "",
        Shows,
        ALONE,
        &[
            ("", "", ""),
            ("--filter driver=bridge", "", ""),
            ("--format {{.Name}}", "", ""),
            ("--format raw", "", ""),
            ("--no-trunc", "", ""),
            ("--quiet", "", ""),
        ],
    ),
    verb("network rm", "made", Shows, (&["network create made"], &[]), &[("", "", "")]),
    verb("pause", "made", Shows, RUNS, &[("", "", "")]),
    verb("port", "BOX", Shows, ALONE, &[("", "", "")]),
    verb(
        "ps",
        "",
        Shows,
        ALONE,
        &[
            ("", "", ""),
            ("--all", "", ""),
            ("--filter name=box", "", ""),
            ("--format {{.ID}}", "", ""),
            ("--format raw", "", ""),
            ("--format 'table {{.Names}}\\t{{.Label \"no\"}}'", "", ""),
            ("--last 1", "", ""),
            ("--latest", "", ""),
            ("--no-trunc", "", ""),
            ("--quiet", "", ""),
            ("--size", "", ""),
        ],
    ),
    verb(
        "push",
        "REGISTRY/base",
        Shows,
        ALONE,
        &[
            ("", "", ""),
            ("--all-tags", "", ""),
            ("--disable-content-trust", NO_TRUST, NO_TRUST),
            ("--quiet", "", ""),
        ],
    ),
    verb(
        "pull",
        "REGISTRY/base",
        Shows,
        ALONE,
        &[
            ("", "", ""),
            ("--all-tags", "", ""),
            ("--disable-content-trust", NO_TRUST, NO_TRUST),
            ("--platform linux/amd64", "", ""),
            ("--quiet", "", ""),
        ],
    ),
    verb(
        "manifest inspect",
        "REGISTRY/base",
        Acts,
        ALONE,
        &[("--insecure", NO_OCI, ""), ("--verbose --insecure", NO_OCI, "")],
    ),
    verb("rename", "made other", Shows, MADE, &[("", "", "")]),
    verb("restart", "made", Shows, RUNS, &[("", "", ""), ("--time 1", "", "")]),
    verb(
        "rm",
        "made",
        Shows,
        MADE,
        &[("", "", ""), ("--force", "", ""), ("--link", "", ""), ("--volumes", "", "")],
    ),
    verb("rmi", "made:1", Shows, IMAGE, &[("", "", ""), ("--force", "", ""), ("--no-prune", "", "")]),
    verb("save", "busybox", Acts, ALONE, &[("--output FOLDER/save.tar", "", "")]),
    verb(
        "search",
        "REGISTRY/base",
        Shows,
        ALONE,
        &[
            ("", HUB, HUB),
            ("--filter stars=0", HUB, HUB),
            ("--format {{.Name}}", HUB, HUB),
            ("--limit 1", HUB, HUB),
            ("--no-trunc", HUB, HUB),
        ],
    ),
    verb(
        "start",
        "made",
        Shows,
        MADE,
        &[
            ("", "", ""),
            ("--attach", "", ""),
            ("--detach-keys ctrl-a --attach", "", ""),
            ("--interactive", "", ""),
        ],
    ),
    verb(
        "stats",
        "",
        Acts,
        ALONE,
        &[
            ("--all --no-stream", "", ""),
            ("--format {{.Name}} --no-stream", "", ""),
            ("--no-stream", "", ""),
            ("--no-trunc --no-stream", "", ""),
        ],
    ),
    verb("stop", "made", Shows, RUNS, &[("", "", ""), ("--time 1", "", "")]),
    verb(
        "system df",
        "",
        Acts,
        ALONE,
        &[
            ("", "", "what the engine itself takes is shown as well"),
            ("--format {{.Type}}", "", ""),
            ("--verbose", "", ""),
        ],
    ),
    verb("tag", "busybox made:1", Shows, NO_IMAGE, &[("", "", "")]),
    verb("top", "BOX", Shows, ALONE, &[("", "", "")]),
    verb(
        "unpause",
        "made",
        Shows,
        (&["run -d --init --name made busybox sleep 1000", "pause made"], &["rm -f made"]),
        &[("", "", "")],
    ),
    verb(
        "update",
        "made",
        Shows,
        MADE,
        &[
            ("--blkio-weight 500", "", ""),
            ("--cpu-period 50000", "", ""),
            ("--cpu-quota 25000", "", ""),
            ("--cpu-rt-period 1000000", "", ""),
            ("--cpu-rt-runtime 1000", "", ""),
            ("--cpu-shares 512", "", ""),
            ("--cpus 0.5", "", ""),
            ("--cpuset-cpus 0", "", ""),
            ("--cpuset-mems 0", "", ""),
            ("--kernel-memory 8m", "", ""),
            ("--memory 64m --memory-swap 64m", "", ""),
            ("--memory-reservation 32m", "", ""),
            ("--memory-swap 128m --memory 64m", "", ""),
            ("--pids-limit 100", "", ""),
            ("--restart on-failure:1", "", ""),
        ],
    ),
    verb(
        "version",
        "",
        Acts,
        ALONE,
        &[
            ("", "", ""),
            ("--format {{.Server.Version}}", "", ""),
            ("--kubeconfig FOLDER/none", "nothing reads it", ""),
        ],
    ),
    verb(
        "volume create",
        "made",
        Shows,
        NO_VOLUME,
        &[
            ("", "", ""),
            ("--driver local", "", ""),
            ("--label a=b", "", ""),
            ("--opt type=none --opt o=bind --opt device=FOLDER", "", ""),
        ],
    ),
    verb("volume inspect", "data", Shows, ALONE, &[("", "", ""), ("--format {{.Name}}", "", "")]),
    verb(
        "volume ls",
        "",
        Shows,
        ALONE,
        &[
            ("", "", ""),
            ("--filter name=data", "", ""),
            ("--format {{.Name}}", "", ""),
            ("--format raw", "", ""),
            ("--quiet", "", ""),
        ],
    ),
    verb("volume rm", "made", Shows, VOLUME, &[("", "", ""), ("--force", "", "")]),
    verb("wait", "done", Shows, ALONE, &[("", "", "")]),
    verb("container prune", "", Acts, MADE, &[("--force", "", ""), ("--filter label!=keep --force", "", "")]),
    verb(
        "network prune",
        "",
        Acts,
        (&["network create made"], &[]),
        &[("--force", "", ""), ("--filter label!=keep --force", "", "")],
    ),
    verb(
        "volume prune",
        "",
        Acts,
        (&["volume create made"], &[]),
        &[("--force", "", ""), ("--filter label!=keep --force", "", "")],
    ),
    verb(
        "builder prune",
        "",
        Acts,
        ALONE,
        &[
            ("--force", "", ""),
            ("--all --force", "", ""),
            ("--filter until=24h --force", "", ""),
            ("--keep-storage 1g --force", "", ""),
        ],
    ),
    verb(
        "image prune",
        "",
        Acts,
        ALONE,
        &[("--force", "", ""), ("--all --force", "", ""), ("--filter until=24h --force", "", "")],
    ),
    verb(
        "system prune",
        "",
        Acts,
        ALONE,
        &[
            ("--force", "", ""),
            ("--all --force", "", ""),
            ("--filter until=24h --force", "", ""),
            ("--volumes --force", "", ""),
        ],
    ),
];

/// Commands and groups of them that insula has nothing for, or in another form: what their names begin with, and an
/// example.
pub(super) const GROUPS: &[(&str, &str, &str)] = &[
    ("checkpoint", "checkpoint ls BOX", ""),
    ("completion", "completion bash", ""),
    ("config", "config ls", ""),
    ("context", "context ls", "`--host` and `INSULA_HOST` say which daemon"),
    ("manifest create", "manifest create --insecure REGISTRY/list:1 REGISTRY/base", ""),
    ("manifest annotate", "manifest annotate --arch amd64 REGISTRY/list:1 REGISTRY/base", ""),
    ("manifest push", "manifest push --insecure REGISTRY/list:1", ""),
    ("manifest rm", "manifest rm REGISTRY/list:1", ""),
    ("node", "node ls", ""),
    ("plugin", "plugin ls", "always empty: drivers are built in"),
    ("secret", "secret ls", ""),
    ("service", "service ls", ""),
    ("stack", "stack ls", ""),
    ("swarm", "swarm init", ""),
    ("trust", "trust inspect busybox", ""),
];
