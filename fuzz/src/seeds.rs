//! Valid inputs, from which the runner strays.

use insula_proto::{Call, Request, Signal};
use sha2::Digest as _;

fn texts(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|text| text.as_bytes().to_vec()).collect()
}

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub(crate) fn references() -> Vec<Vec<u8>> {
    texts(&[
        "busybox",
        "library/busybox:1.36",
        "registry.example:5000/a/b_c/d--e:v1.0-rc",
        &format!("localhost/web@{DIGEST}"),
        "[::1]:5000/x",
    ])
}

pub(crate) fn bundles() -> Vec<Vec<u8>> {
    let template = serde_json::to_vec(&insula_spec::bundle::template()).unwrap_or_default();
    let mut seeds = vec![template];
    seeds.extend(texts(&[
        r#"{"ociVersion":"1.2.0","process":{"args":["x"],"cwd":"/"},"root":{"path":"r"},"hooks":{"poststop":
        [{"path":"/x","args":["y"],"timeout":3}]},"linux":{"namespaces":[{"type":"mount"},{"type":"user"}],
        "uidMappings":[{"containerID":0,"hostID":5,"size":9}],"gidMappings":[{"containerID":0,"hostID":5,"size":9}],
        "devices":[{"type":"c","path":"/dev/x","major":1,"minor":3}],"resources":{"devices":[{"allow":true,
        "type":"b","major":8,"access":"rw"},{"allow":false}]},"rootfsPropagation":"rslave"}}"#,
        r#"{"memory":{"limit":-1,"swap":5},"cpu":{"quota":-1},"blockIO":{"weight":10},"pids":{"limit":3}}"#,
    ]));
    seeds
}

pub(crate) fn manifests() -> Vec<Vec<u8>> {
    texts(&[
        &format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{DIGEST}","size":2}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{DIGEST}","size":3}}]}}"#
        ),
        &format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "digest":"{DIGEST}","size":7,"platform":{{"architecture":"amd64","os":"linux"}}}}]}}"#
        ),
        &format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2026-01-02T03:04:05Z","config":{{"Env":["A=b"],
            "Cmd":["sh"],"ExposedPorts":{{"80/tcp":{{}}}},"Healthcheck":{{"Test":["CMD","x"],"Interval":1000000}}}},
            "rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]}},"history":[{{"created_by":"x","empty_layer":true}}]}}"#
        ),
        r#"[{"Config":"c.json","RepoTags":["busybox:latest"],"Layers":["a/layer.tar"]}]"#,
    ])
}

pub(crate) fn registries() -> Vec<Vec<u8>> {
    let mut seeds = manifests();
    seeds.extend(texts(&[
        r#"Bearer realm="https://auth.example/token",service="a, \"b\"",scope="repository:a/b:pull",Basic realm=x"#,
        "eyJ1c2VybmFtZSI6ImFubiIsInBhc3N3b3JkIjoieCJ9",
        r#"{"username":"ann","password":"x","auth":"YW5uOng=","identitytoken":"","registrytoken":null}"#,
        "linux/arm/v7",
    ]));
    seeds
}

pub(crate) fn api_bodies() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"Image":"busybox","Cmd":["sh","-c","echo"],"Entrypoint":null,"Env":["A=b"],"Labels":{"a":"b"},
        "ExposedPorts":{"80/tcp":{}},"Volumes":{"/v":{}},"StopTimeout":3,"Healthcheck":{"Test":["NONE"]},
        "HostConfig":{"Binds":["/a:/b:ro"],"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]},
        "RestartPolicy":{"Name":"on-failure","MaximumRetryCount":3},"Memory":1048576,"NanoCpus":500000000,
        "Ulimits":[{"Name":"nofile","Soft":1,"Hard":2}],"Mounts":[{"Type":"tmpfs","Target":"/t"}],
        "Devices":[{"PathOnHost":"/dev/null","PathInContainer":"/dev/n","CgroupPermissions":"rwm"}]},
        "NetworkingConfig":{"EndpointsConfig":{"bridge":{"Aliases":["a"]}}}}"#,
        r#"{"Image":"x","Cmd":"one word"}"#,
        "{}",
    ])
}

pub(crate) fn takeovers() -> Vec<Vec<u8>> {
    texts(&[
        "POST /v1.41/containers/web/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: x\r\n\r\ninput",
        "POST /exec/ab/start HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    ])
}

pub(crate) fn seccomp_profiles() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"archMap":[{"architecture":"SCMP_ARCH_X86_64",
        "subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]}],"syscalls":[{"names":["read","write","personality"],
        "action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}],
        "includes":{"caps":["CAP_SYS_ADMIN"],"minKernel":"4.8"},"excludes":{"arches":["s390"]}}]}"#,
    ])
}

pub(crate) fn sites() -> Vec<Vec<u8>> {
    let texts = [
        "www.example.org:8080/http",
        "*.example.org/tls",
        "a.org, b.org:81,c",
        "example.org.:443",
        "192.0.2.1:80",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

pub(crate) fn log_entries() -> Vec<Vec<u8>> {
    let part = insula_proto::PartialLogEntry { last: true, id: "ab".into(), ordinal: 2 };
    let entry = insula_proto::LogEntry {
        source: "stdout".into(),
        time_nano: 1,
        line: b"hi".to_vec(),
        partial: true,
        partial_log_metadata: Some(part),
    };
    let mut one = Vec::new();
    entry.append_to(&mut one);
    vec![[one.clone(), one.clone()].concat(), one]
}

pub(crate) fn task_frames() -> Vec<Vec<u8>> {
    let signal = Request::new(7, Call::Signal(Signal { signal: 9, ..Signal::default() }));
    let one = insula_proto::encode(&signal);
    vec![[one.clone(), one.clone()].concat(), one]
}

/// Adds a file; the archive is in memory, so that it cannot fail.
fn put(archive: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, link: &str, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    // Names longer than a header's field would fail; those here are short.
    let _ = header.set_link_name(link);
    let _ = archive.append_data(&mut header, name, content);
}

fn tree() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    put(&mut archive, tar::EntryType::Directory, "bin/", "", b"");
    put(&mut archive, tar::EntryType::Regular, "bin/true", "", b"#!");
    put(&mut archive, tar::EntryType::Symlink, "sbin", "bin", b"");
    put(&mut archive, tar::EntryType::Link, "bin/false", "bin/true", b"");
    put(&mut archive, tar::EntryType::Symlink, "out", "../../../outside", b"");
    put(&mut archive, tar::EntryType::Regular, "out/file", "", b"x");
    put(&mut archive, tar::EntryType::Regular, "bin/.wh.gone", "", b"");
    put(&mut archive, tar::EntryType::Regular, "bin/.wh..wh..opq", "", b"");
    archive.into_inner().unwrap_or_default()
}

pub(crate) fn layers() -> Vec<Vec<u8>> {
    vec![tree()]
}

pub(crate) fn recipes() -> Vec<Vec<u8>> {
    vec![b"\x01\x03abc\x02\x03a/b\x03\x00\x80\x02\x04\x00\x01a\x00".to_vec()]
}

pub(crate) fn workloads() -> Vec<Vec<u8>> {
    let document = br#"{"Version":1,"Containers":[{"Name":"web","Mounts":[{"Target":"/a","Volume":"v"}]}]}"#;
    let mut archive = tar::Builder::new(Vec::new());
    let hex = "0".repeat(64);
    put(&mut archive, tar::EntryType::Regular, "insula.json", "", document);
    put(&mut archive, tar::EntryType::Regular, &format!("insula/state/{hex}.tar"), "", b"x");
    put(&mut archive, tar::EntryType::Regular, "insula/sha256", "", format!("{hex}\n").as_bytes());
    vec![archive.into_inner().unwrap_or_default(), document.to_vec()]
}

pub(crate) fn images() -> Vec<Vec<u8>> {
    let layer = tree();
    let mut archive = tar::Builder::new(Vec::new());
    // Digests are verified before anything is unpacked, so this one image is a true one.
    let diff = insula_base::Digest::from_sha256(&sha2::Sha256::digest(&layer).into());
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{diff}"]}}}}"#
    );
    let manifest = r#"[{"Config":"c.json","RepoTags":["fuzz:latest"],"Layers":["l.tar"]}]"#;
    put(&mut archive, tar::EntryType::Regular, "manifest.json", "", manifest.as_bytes());
    put(&mut archive, tar::EntryType::Regular, "c.json", "", config.as_bytes());
    put(&mut archive, tar::EntryType::Regular, "l.tar", "", &layer);
    vec![archive.into_inner().unwrap_or_default()]
}

/// A call without a body, and the end of a job.
pub(crate) fn bus_messages() -> Vec<Vec<u8>> {
    let message = |kind: u8, fields: &[u8], body: &[u8]| {
        let mut bytes = vec![b'l', kind, 0, 1];
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(7_u32.to_le_bytes());
        bytes.extend((fields.len() as u32).to_le_bytes());
        bytes.extend(fields);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(body);
        bytes
    };
    let reply = b"\x05\x01u\0\x03\0\0\0\x08\x01g\0\x01o\0";
    let removed = b"\x03\x01s\0\x0a\0\0\0JobRemoved\0\0\0\0\0\0\x08\x01g\0\x04uoss\0";
    let body = b"\x07\0\0\0\x06\0\0\0/job/7\0\0\x07\0\0\0x.scope\0\x04\0\0\0done\0";
    vec![message(1, b"", b""), message(2, reply, b"\x02\0\0\0/j\0"), message(4, removed, body)]
}

pub(crate) fn dns_queries() -> Vec<Vec<u8>> {
    let header = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let question = |name: &[u8], kind: u8| [&header[..], name, &[0, 0, kind, 0, 1]].concat();
    let reverse = question(b"\x012\x010\x019\x0210\x07in-addr\x04arpa", 12);
    // With an OPT record that takes 4096 bytes.
    let mut wide = question(b"\x03web\x04blue", 1);
    wide[11] = 1;
    wide.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    vec![question(b"\x03web", 1), question(b"\x07example\x03org", 28), reverse, wide]
}

/// A greeting, an answer, output and its end.
pub(crate) fn relay_messages() -> Vec<Vec<u8>> {
    let question = |length: u32, opcode: u32| {
        let mut bytes = [length.to_le_bytes(), opcode.to_le_bytes()].concat();
        bytes.resize(length as usize, 0);
        bytes
    };
    // FUSE_INIT, FUSE_READ, FUSE_WRITE, FUSE_FORGET.
    let [init, read, write, forget] = [(104, 26), (80, 15), (4176, 16), (48, 2)].map(|(l, o)| question(l, o));
    vec![[init, read.clone()].concat(), [write, forget].concat(), read[..50].to_vec()]
}

pub(crate) fn channel_frames() -> Vec<Vec<u8>> {
    use insula_proto::channel::{Kind, put_frame};
    let reply = insula_proto::Reply { id: 3, outcome: Some(insula_proto::Outcome::Done(Default::default())) };
    let mut frames = Vec::new();
    put_frame(&mut frames, Kind::Hello, 0, b"\x01\0\0\x006.1.0-1-amd64");
    put_frame(&mut frames, Kind::Reply, 0, &insula_proto::encode(&reply)[4..]);
    put_frame(&mut frames, Kind::Data, 7, b"\x01\0\0\0\0\0\0\x02hi");
    put_frame(&mut frames, Kind::Credit, 7, &64u32.to_le_bytes());
    put_frame(&mut frames, Kind::End, 7, b"");
    vec![frames]
}

pub(crate) fn tenant_streams() -> Vec<Vec<u8>> {
    use insula_proto::channel::{Kind, put_frame};
    let mut frames = channel_frames().remove(0);
    put_frame(&mut frames, Kind::Data, 7, &[b'x'; 9000]);
    put_frame(&mut frames, Kind::Open, 9, b"");
    put_frame(&mut frames, Kind::Data, 8, b"to nobody");
    put_frame(&mut frames, Kind::End, 7, b"");
    vec![frames]
}

pub(crate) fn packages() -> Vec<Vec<u8>> {
    let files: [&[u8]; 5] = [
        b"Package: a\nStatus: install ok installed\nVersion: 1:2-3\nArchitecture: all\nMaintainer: A B <a@b.c>\n x\n\nPackage: c\n",
        b"P:musl\nV:1.2-r0\nA:x86_64\nL:MIT AND (BSD-2-Clause OR GPL-2.0-only)\nm:A <a@b.c>\n\nP:b\nV:1\n",
        b"Metadata-Version: 2.1\nName: A_b\nVersion: 1\nLicense: MIT\n\ntext\n",
        br#"{"name": "@a/b", "version": "1.0.0", "license": "ISC"}"#,
        b"ID=debian\nVERSION_ID=\"12\"\n",
    ];
    files.map(<[u8]>::to_vec).into()
}

pub(crate) fn dockerfiles() -> Vec<Vec<u8>> {
    let files: [&[u8]; 3] = [
        b"# escape=`\nARG A=1\nFROM a:$A AS b\nRUN --mount=type=cache,target=/x <<EOF\necho\nEOF\nCOPY --from=b --chown=1 a* /\n",
        b"FROM a\nENV A=${B:-x} C=\"d ${E%%.*}\"\nHEALTHCHECK --interval=1s CMD x\nONBUILD ADD a b\nCMD [\"a\"]\n",
        b"**/*.o\n!a/[b-d]?.o\n# x\n",
    ];
    files.map(<[u8]>::to_vec).into()
}
