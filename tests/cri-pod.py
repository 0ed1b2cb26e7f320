#!/usr/bin/env python3
"""A pod whose containers share one VM, as kubelet runs it: the annotation dev.msb.pod=vm.

    tests/cri-pod.py SOCKET HANDLER IMAGE DIR
"""

import json
import os
import signal
import sys
import time

from cri import Runtime, decode, refused

STATE = "/run/containerd/runc/k8s.io"


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def main() -> None:
    socket, handler, image, directory = sys.argv[1:]
    cri = Runtime(socket)
    logs = os.path.join(directory, "logs")
    os.makedirs(logs)
    os.makedirs(f"{directory}/empty")
    pod = {
        1: {1: "two", 2: "uid-2", 3: "default", 4: 0},
        2: "pod-host",
        3: logs,
        6: {"app": "test"},
        7: {"dev.msb.pod": "vm"},
        # The sums over the containers, which set the size of the VM.
        8: {1: "/msb-cri-pod", 2: {1: {1: 0, 2: 1, 3: 0}}, 5: {1: 100000, 2: 100000, 3: 512, 4: 256 << 20}},
    }

    def create(name: str, script: str, attempt: int = 0) -> str:
        config = {
            1: {1: name, 2: attempt},
            2: {1: image},
            3: ["sh", "-c", script],
            7: [{1: "/empty", 2: f"{directory}/empty"}],
            11: f"{name}.{attempt}.log",
            15: {1: {1: 100000, 2: 50000, 3: 256, 4: 128 << 20}, 2: {}},
        }
        container = cri.CreateContainer({1: sandbox, 2: config, 3: pod})[1].decode()
        cri.StartContainer({1: container})
        return container

    def log(name: str) -> str:
        with open(f"{logs}/{name}.log") as file:
            return file.read()

    sandbox = cri.RunPodSandbox({1: pod, 2: handler})[1].decode()
    serve = (
        "mkdir /www; echo served >/www/file; httpd -p 127.0.0.1:8080 -h /www; echo shared >/empty/file; "
        'trap "exit 4" TERM; echo started; echo failed >&2; while :; do sleep 0.1; done'
    )
    server = create("server", serve)
    client = create("client", 'echo up; trap "exit 6" TERM; while :; do sleep 0.1; done')

    # One kernel and one network, whose loopback interface reaches the other container.
    boot = "/proc/sys/kernel/random/boot_id"
    assert cri.run(server, "cat", boot) == cri.run(client, "cat", boot)
    fetch = lambda: cri.run(client, "wget", "-q", "-O", "-", "http://127.0.0.1:8080/file")  # noqa: E731
    wait_until(lambda: fetch() == ("served\n", "", 0), "nothing is served")
    # Roots, processes and streams of their own. The memory is that of the pod.
    assert cri.run(client, "ls", "/www")[2] != 0
    assert "httpd" not in cri.run(client, "ps")[0] and "httpd" in cri.run(server, "ps")[0]
    assert cri.run(client, "cat", "/empty/file")[0] == "shared\n"
    assert cri.run(client, "sh", "-c", "echo out; echo err >&2; exit 3") == ("out\n", "err\n", 3)
    assert cri.run(client, "hostname")[0] == "pod-host\n"
    memory = int(cri.run(client, "sh", "-c", "grep MemTotal /proc/meminfo")[0].split()[1]) >> 10
    assert 190 < memory < 256, memory
    # The limit of the container, which has less than the pod. Its command goes on.
    assert cri.run(client, "dd", "if=/dev/zero", "of=/dev/null", "bs=150M", "count=1")[2] == 137
    assert "deadline" in refused(cri.ExecSync, {1: client, 2: ["sleep", "10000"], 3: 1})
    wait_until(lambda: "sleep 10000" not in cri.run(client, "ps")[0], "the probe goes on")
    # It is resized in place, as far as the pod's VM reaches.
    cri.UpdateContainerResources({1: client, 2: {1: 100000, 2: 50000, 3: 256, 4: 200 << 20}})
    assert cri.run(client, "dd", "if=/dev/zero", "of=/dev/null", "bs=150M", "count=1")[2] == 0
    assert "cannot get more" in refused(cri.UpdateContainerResources, {1: client, 2: {4: 300 << 20}})
    for text in (" stdout F started\n", " stderr F failed\n"):
        assert text in log("server.0")
    assert " stdout F up\n" in log("client.0")

    # One ends, the other goes on, and the first one is started again.
    cri.StopContainer({1: server, 2: 60})
    assert cri.ended(server).get(7) == 4
    cri.RemoveContainer({1: server})
    assert cri.run(client, "echo", "on")[0] == "on\n" and fetch()[2] != 0
    server = create("server", serve, 1)
    wait_until(lambda: fetch() == ("served\n", "", 0), "nothing is served again")
    # A container that ignores TERM is killed.
    stubborn = create("stubborn", 'trap "" TERM; echo up; while :; do sleep 0.1; done')
    cri.StopContainer({1: stubborn, 2: 1})
    assert cri.ended(stubborn).get(7) == 137
    # The stand-in is killed: the command ends with the container.
    with open(f"{STATE}/{server}/state.json") as file:
        state = json.load(file)
    os.kill(state["stand_in"]["pid"], signal.SIGKILL)
    assert cri.ended(server).get(7, 0) != 0
    cri.RemoveContainer({1: server})
    wait_until(lambda: fetch()[2] != 0, "the command goes on")
    assert len([name for name in os.listdir(STATE) if name in (server, stubborn)]) == 0

    # The VM is killed: the containers and the sandbox have ended.
    with open(f"{STATE}/{sandbox}/vm.json") as file:
        os.kill(json.load(file)["vm"]["pid"], signal.SIGKILL)
    assert cri.ended(client).get(7, 0) != 0
    wait_until(lambda: decode(cri.PodSandboxStatus({1: sandbox})[1]).get(3, 0) == 1, "the sandbox is ready without a VM")
    cri.StopPodSandbox({1: sandbox})
    cri.RemovePodSandbox({1: sandbox})
    assert not {sandbox, client} & set(os.listdir(STATE))

    # A pod is stopped with what runs in it.
    pod[1] = {1: "three", 2: "uid-3", 3: "default", 4: 0}
    sandbox = cri.RunPodSandbox({1: pod, 2: handler})[1].decode()
    container = create("last", "while :; do sleep 0.1; done")
    cri.StopPodSandbox({1: sandbox})
    assert cri.ended(container).get(7) == 137
    cri.RemovePodSandbox({1: sandbox})
    assert not {sandbox, container} & set(os.listdir(STATE))


if __name__ == "__main__":
    main()
