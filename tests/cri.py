#!/usr/bin/env python3
"""A client of the Container Runtime Interface, which kubelet speaks to containerd: the life of a pod, with what kubelet asks for.

    tests/cri.py SOCKET HANDLER IMAGE DIR

gRPC is python3-grpcio's. Messages are dicts of field numbers (k8s.io/cri-api, runtime/v1/api.proto) and values, written and read here:
no Debian package has the interface's description.
"""

import json
import os
import sys
import time
import urllib.request

import grpc


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


def encode(message: dict) -> bytes:
    """Writes a message. A list is a repeated field, and a dict with names as keys is a map."""
    out = b""
    for field, values in message.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, dict) and any(isinstance(key, str) for key in value):
                pairs = [{1: key, 2: text} for key, text in value.items()]
                out += encode({field: pairs})
                continue
            if isinstance(value, (bool, int)):
                out += varint(field << 3) + varint(int(value))
                continue
            data = encode(value) if isinstance(value, dict) else value if isinstance(value, bytes) else value.encode()
            out += varint(field << 3 | 2) + varint(len(data)) + data
    return out


def decode(data: bytes) -> dict:
    """Reads a message: numbers and bytes by field. Of a repeated field the last value stays."""
    fields, at = {}, 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            fields[key >> 3] = number()
        elif key & 7 == 2:
            length = number()
            fields[key >> 3] = data[at : at + length]
            at += length
        else:
            at += {1: 8, 5: 4}[key & 7]
    return fields


class Runtime:
    def __init__(self, socket: str):
        self.channel = grpc.insecure_channel(f"unix://{socket}")

    def __getattr__(self, method: str):
        call = self.channel.unary_unary(f"/runtime.v1.RuntimeService/{method}", encode, decode)
        return lambda message: call(message, timeout=300)

    def status(self, container: str) -> dict:
        return decode(self.ContainerStatus({1: container})[1])

    def ended(self, container: str) -> dict:
        """Waits until the container has exited (state 2)."""
        deadline = time.monotonic() + 300
        while self.status(container).get(3, 0) != 2:
            assert time.monotonic() < deadline, "the container does not end"
            time.sleep(0.1)
        return self.status(container)

    def run(self, container: str, *command: str, timeout: int = 120) -> tuple[str, str, int]:
        answer = self.ExecSync({1: container, 2: list(command), 3: timeout})
        return answer.get(1, b"").decode(), answer.get(2, b"").decode(), answer.get(3, 0)


def fetch(url: str) -> None:
    """Fetches a URL until the server answers."""
    deadline = time.monotonic() + 120
    while True:
        try:
            assert urllib.request.urlopen(url, timeout=60).read() == b"one"
            return
        except OSError:
            assert time.monotonic() < deadline, url
            time.sleep(0.1)


def refused(call, message: dict) -> str:
    try:
        call(message)
    except grpc.RpcError as error:
        return error.details()
    raise AssertionError("it was not refused")


def main() -> None:
    socket, handler, image, directory = sys.argv[1:]
    cri = Runtime(socket)
    logs = os.path.join(directory, "logs")
    os.makedirs(logs, exist_ok=True)
    os.makedirs(f"{directory}/config/..1")
    os.symlink("..1", f"{directory}/config/..data")
    os.symlink("..data/key", f"{directory}/config/key")
    with open(f"{directory}/config/..1/key", "w") as file:
        file.write("one")
    open(f"{directory}/termination-log", "w").close()
    pod = {
        1: {1: "pod", 2: "uid-1", 3: "default", 4: 0},
        2: "pod-host",
        3: logs,
        5: [{1: 0, 2: 80, 3: 8090}],
        6: {"app": "test"},
        8: {1: "/msb-cri-test", 2: {1: {1: 0, 2: 1, 3: 0}}, 3: {"net.ipv4.ip_local_port_range": "20000\t30000"}},
    }

    def config(name: str, *command: str, mounts: list | None = None) -> dict:
        return {
            1: {1: name, 2: 0},
            2: {1: image},
            3: list(command),
            7: mounts or [],
            11: f"{name}.log",
            15: {1: {1: 100000, 2: 100000, 3: 512, 4: 256 << 20}, 2: {}},
        }

    sandbox = cri.RunPodSandbox({1: pod, 2: handler})[1].decode()
    address = decode(decode(cri.PodSandboxStatus({1: sandbox})[1]).get(5, b"")).get(1, b"").decode()
    make = lambda *args, **more: {1: sandbox, 2: config(*args, **more), 3: pod}  # noqa: E731
    message = refused(lambda request: cri.StartContainer({1: cri.CreateContainer(request)[1].decode()}), make("missing", "nonexistent"))
    assert "nonexistent" in message, message
    script = 'httpd -p 80 -h /etc/config; trap "exit 4" TERM; echo started; echo failed >&2; echo why >/dev/termination-log; while :; do sleep 0.1; done'
    mounts = [
        {1: "/etc/config", 2: f"{directory}/config", 3: True},
        {1: "/dev/termination-log", 2: f"{directory}/termination-log"},
    ]
    container = cri.CreateContainer(make("main", "sh", "-c", script, mounts=mounts))[1].decode()
    cri.StartContainer({1: container})
    assert cri.status(container)[3] == 1

    # Probes: streams and statuses of ExecSync, and one that takes too long.
    assert cri.run(container, "sh", "-c", "echo out; echo err >&2; exit 3") == ("out\n", "err\n", 3)
    assert cri.run(container, "hostname")[0] == "pod-host\n"
    assert cri.run(container, "cat", "/etc/config/key")[0] == "one"
    assert "deadline" in refused(cri.ExecSync, {1: container, 2: ["sleep", "10000"], 3: 1})
    deadline = time.monotonic() + 120
    while "sleep" in cri.run(container, "sh", "-c", "ps | grep 'sleep [1]0000'")[0]:
        assert time.monotonic() < deadline, "the probe goes on"
    if address:
        assert f"{address}/" in cri.run(container, "ip", "address")[0]
        fetch(f"http://{address}/key")
        # A CNI plugin maps the port of the host.
        fetch("http://10.91.0.1:8090/key")
    # A configMap changes by a rename of "..data".
    os.makedirs(f"{directory}/config/..2")
    with open(f"{directory}/config/..2/key", "w") as file:
        file.write("two")
    os.symlink("..2", f"{directory}/config/..new")
    os.rename(f"{directory}/config/..new", f"{directory}/config/..data")
    deadline = time.monotonic() + 120
    while cri.run(container, "cat", "/etc/config/key")[0] != "two":
        assert time.monotonic() < deadline, "the change does not arrive"
    stats = decode(cri.ContainerStats({1: container})[1])
    assert decode(decode(stats[3])[2])[1] > 1 << 20, stats
    cri.UpdateContainerResources({1: container, 2: {1: 100000, 2: 50000}})
    assert "VM was booted with" in refused(cri.UpdateContainerResources, {1: container, 2: {4: 1 << 30}})

    # A second container with a network of the same pod.
    second = cri.CreateContainer(make("second", "true"))[1].decode()
    if address:
        assert "another container has it" in refused(cri.StartContainer, {1: second})

    cri.StopContainer({1: container, 2: 60})
    ended = cri.ended(container)
    assert ended.get(7) == 4, ended
    with open(f"{directory}/termination-log") as file:
        assert file.read() == "why\n"
    with open(f"{logs}/main.log") as file:
        text = file.read()
    assert " stdout F started\n" in text and " stderr F failed\n" in text, text
    cri.RemoveContainer({1: container})

    # A container that ends by itself: an init container, whose volume is writable although its root is not.
    os.makedirs(f"{directory}/empty")
    script = "echo written >/empty/file && [ \"$(cat /proc/sys/net/ipv4/ip_local_port_range)\" = '20000\t30000' ] && ! echo x >/x && exit 5"
    request = make("short", "sh", "-c", script, mounts=[{1: "/empty", 2: f"{directory}/empty"}])
    request[2][15][2] = {7: True}
    short = cri.CreateContainer(request)[1].decode()
    cri.StartContainer({1: short})
    assert cri.ended(short).get(7) == 5
    # Its VM is gone, although the container is there.
    deadline = time.monotonic() + 120
    while any(name.startswith(f"oci-{short[:12]}") for name in os.listdir("/run/msb")):
        assert time.monotonic() < deadline, "the VM goes on"
    with open(f"{directory}/empty/file") as file:
        assert file.read() == "written\n"
    cri.StopPodSandbox({1: sandbox})
    cri.RemovePodSandbox({1: sandbox})
    print(json.dumps({"address": address}))


if __name__ == "__main__":
    main()
