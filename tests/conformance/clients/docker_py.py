"""docker-py against DOCKER_HOST: what programs written with it do every day."""

import io
import tarfile
import threading

import docker
from docker.errors import APIError, BuildError, ContainerError, ImageNotFound, NotFound

client = docker.from_env()
older = docker.DockerClient(base_url=client.api.base_url and docker.utils.utils.kwargs_from_env()["base_url"],
                            version="1.35")


def system():
    assert client.ping() and older.ping()
    assert client.version()["Platform"]["Name"] == "insula"
    assert client.info()["OSType"] == "linux"
    assert "Images" in client.df()


def run():
    assert client.containers.run("busybox", ["echo", "hello"], remove=True) == b"hello\n"
    assert older.containers.run("busybox", "echo hello", remove=True) == b"hello\n"
    try:
        client.containers.run("busybox", ["sh", "-c", "echo no >&2; exit 3"], remove=True)
        raise AssertionError("exit 3 is an error")
    except ContainerError as error:
        assert error.exit_status == 3 and error.stderr == b"no\n", error
    try:
        client.containers.get("nobody")
        raise AssertionError("nobody is there")
    except NotFound as error:
        assert "No such container: nobody" in str(error)
    try:
        client.containers.create("busybox", "true", mem_limit="1k")
        raise AssertionError("a kilobyte is enough")
    except APIError as error:
        assert error.status_code == 400, error


def life():
    volume = client.volumes.create("data", labels={"a": "b"})
    network = client.networks.create("net", driver="bridge", labels={"a": "b"})
    box = client.containers.run(
        "busybox", ["sh", "-c", "echo begun; exec sleep 1000"], detach=True, name="box", init=True,
        labels={"role": "db"}, environment={"A": "b"}, ports={"80/tcp": None}, network="net",
        volumes={"data": {"bind": "/v", "mode": "rw"}}, mem_limit="64m", hostname="inside")
    box.reload()
    assert box.status == "running" and box.labels == {"role": "db"}
    assert box.image.tags == ["busybox:latest"]
    assert box.ports["80/tcp"][0]["HostPort"].isdigit(), box.ports
    assert box.attrs["NetworkSettings"]["Networks"]["net"]["IPAddress"]
    assert box.attrs["Mounts"][0]["Name"] == "data"
    assert [c.name for c in client.containers.list(filters={"label": "role=db"})] == ["box"]
    assert network.id in [n.id for n in client.networks.list(names=["net"])]
    network.reload()
    assert [c.name for c in network.containers] == ["box"]
    assert next(box.logs(stream=True, follow=True)) == b"begun\n"
    code, (out, err) = box.exec_run(["sh", "-c", "echo $A; hostname >&2; exit 4"], demux=True)
    assert (code, out, err) == (4, b"b\n", b"inside\n"), (code, out, err)
    assert [p[-1] for p in box.top()["Processes"]], box.top()
    stats = box.stats(stream=False)
    assert stats["memory_stats"]["limit"] == 64 << 20 and stats["precpu_stats"]["cpu_usage"]["total_usage"]
    assert next(box.stats(decode=True))["name"] == "/box"
    files(box)
    exec_socket(box)
    box.pause()
    box.reload()
    assert box.status == "paused"
    box.unpause()
    box.update(mem_limit="32m", memswap_limit="32m")
    box.rename("other")
    box.restart(timeout=1)
    other = client.networks.create("second")
    other.connect(box, aliases=["alias"])
    box.reload()
    assert "alias" in box.attrs["NetworkSettings"]["Networks"]["second"]["Aliases"]
    other.disconnect(box)
    box.kill()
    assert box.wait()["StatusCode"] == 137
    box.remove(v=True)
    for thing in (volume, network, other):
        thing.remove()


def files(box):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        entry = tarfile.TarInfo("in.txt")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"bytes"))
    assert box.put_archive("/v", content.getvalue())
    chunks, stat = box.get_archive("/v/in.txt")
    assert stat["size"] == 5, stat
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        assert tar.extractfile("in.txt").read() == b"bytes"
    box.exec_run(["touch", "/added"])
    assert {"Path": "/added", "Kind": 1} in box.diff()


def exec_socket(box):
    _, sock = box.exec_run(["sh", "-c", "read a; echo got $a"], stdin=True, socket=True)
    sock._sock.sendall(b"word\n")
    received = b""
    while not received.endswith(b"got word\n"):
        piece = sock._sock.recv(4096)
        assert piece, received
        received += piece


def attach():
    box = client.containers.create("busybox", ["cat"], stdin_open=True, network_mode="none")
    sock = box.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    box.start()
    sock._sock.sendall(b"through\n")
    # The input ends, the output goes on.
    sock._sock.shutdown(1)
    received = b""
    while piece := sock._sock.recv(4096):
        received += piece
    assert received == b"\x01\0\0\0\0\0\0\x08through\n", received
    assert box.wait()["StatusCode"] == 0
    assert box.logs() == b"through\n"
    box.remove()


def events():
    seen = []
    stream = client.events(decode=True, filters={"type": "container", "label": "watched"})
    reader = threading.Thread(target=lambda: seen.extend(e["Action"] for e in stream))
    reader.start()
    while "destroy" not in seen:
        client.containers.run("busybox", "true", labels=["watched"], remove=True)
    stream.close()
    reader.join(10)
    for action in ("create", "start", "die", "destroy"):
        assert action in seen, seen


def images():
    image = client.images.get("busybox")
    assert image.tag("copy", tag="1") and "copy:1" in client.images.get("copy:1").tags
    assert image.history()
    client.images.remove("copy:1")
    try:
        client.images.get("copy:1")
        raise AssertionError("copy:1 is still there")
    except ImageNotFound:
        pass
    for prune in (client.containers.prune, client.volumes.prune, client.networks.prune, client.images.prune):
        prune()


def context(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    content.seek(0)
    return content


def builds():
    text = "FROM busybox AS one\nARG WORD=no\nRUN echo $WORD > /word\nFROM one\nRUN false\n"
    files = {"Own": text + "COPY given /\n", "given": "g", "left": "l", ".dockerignore": "left\n"}
    for api in (client, older):
        image, log = api.images.build(
            fileobj=context(files), custom_context=True, encoding="gzip", dockerfile="Own", target="one", tag="py:1",
            buildargs={"WORD": "yes"}, labels={"made": "here"}, rm=True, forcerm=True, network_mode="none",
            container_limits={"memory": 64 << 20}, shmsize=1 << 20, extra_hosts={"a": "10.0.0.1"}, nocache=True)
        assert "py:1" in image.tags and image.labels == {"made": "here"}, image.attrs
        log = list(log)
        assert any("Step 1/" in line.get("stream", "") for line in log), log
        assert {"ID": image.id} in [line.get("aux") for line in log], log
        assert api.containers.run("py:1", ["cat", "/word"], remove=True, network_mode="none") == b"yes\n"
        assert any("echo $WORD" in step["CreatedBy"] for step in image.history()), image.history()
    image, _ = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nCMD echo alone\n"))
    assert client.containers.run(image.id, remove=True, network_mode="none") == b"alone\n"
    try:
        client.images.build(fileobj=context(files), custom_context=True, encoding="gzip", dockerfile="Own",
                            network_mode="none")
        raise AssertionError("false is no error")
    except BuildError as error:
        assert "returned a non-zero code: 1" in error.msg, error
        assert any("Step 2/" in line.get("stream", "") for line in error.build_log)
    try:
        client.images.build(fileobj=io.BytesIO(b"FORM busybox\n"))
        raise AssertionError("FORM is no instruction")
    except (APIError, BuildError) as error:
        assert "did you mean FROM" in str(error), error
    assert client.api.prune_builds()["SpaceReclaimed"] >= 0


for part in (system, run, life, attach, events, images, builds):
    part()
    print(part.__name__)
