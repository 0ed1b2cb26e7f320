#!/usr/bin/env python3
"""The host's side of tests/bench-exec.sh: what it times without a process started for each call.

    bench-exec.py steps RECORD COUNT         an exec of /bin/true by the wire, step by step
    bench-exec.py bare RECORD PORT COUNT     a byte there and back, and one after the guest's fork and exec, by guest/echo-agent.c
    bench-exec.py from|to|from-pipe|to-pipe RECORD PORT MIB    so much by the same, in MB/s
"""
import json, socket, struct, sys, time


def connect(endpoint, port=None):
    agent = socket.socket(socket.AF_UNIX)
    agent.connect(endpoint["unix"])
    if endpoint["handshake"]:
        agent.sendall(b"CONNECT %d\n" % (port or endpoint["port"]))
        while agent.recv(1) != b"\n":
            pass
    return agent


def exactly(agent, count):
    data = b""
    while len(data) < count:
        data += agent.recv(count - len(data)) or sys.exit("the VM is gone")
    return data


def frame(kind, payload):
    return struct.pack("<IB", len(payload), kind) + payload


def steps(endpoint):
    marks = [time.monotonic()]
    agent = connect(endpoint)
    agent.sendall(frame(1, b'{"version":1}'))
    exactly(agent, struct.unpack("<IB", exactly(agent, 5))[0])
    marks.append(time.monotonic())
    agent.sendall(frame(2, b'{"argv":["/bin/true"],"no_stdin":true}') + frame(8, b"\1\0\0\1\0") + frame(8, b"\2\0\0\1\0"))
    while True:
        length, kind = struct.unpack("<IB", exactly(agent, 5))
        exactly(agent, length)
        if kind in (3, 11):
            marks.append(time.monotonic())
        if kind == 11:
            return [(b - a) * 1000 for a, b in zip(marks, marks[1:])] + [(marks[-1] - marks[0]) * 1000]


def bare(endpoint, port, what):
    start = time.monotonic()
    agent = connect(endpoint, port)
    agent.sendall(what)
    agent.recv(1)
    return (time.monotonic() - start) * 1000


def line(name, values):
    values = sorted(values)
    print(f"{name}\t{values[len(values) // 2]:.2f}\t{values[int(len(values) * 0.99)]:.2f}")


def main(how, record, *numbers):
    endpoint, numbers = json.load(open(record))["vm"]["endpoint"], [int(number) for number in numbers]
    if how == "steps":
        columns = zip(*(steps(endpoint) for _ in range(numbers[0])))
        for name, values in zip(["connect and hello", "spawn", "exit", "exec by the wire, all"], columns):
            line(name, values)
    elif how == "bare":
        line("bare vsock: a byte there and back", [bare(endpoint, numbers[0], b"ex") for _ in range(numbers[1])])
        line("bare vsock, fork, exec and wait", [bare(endpoint, numbers[0], b"f") for _ in range(numbers[1])])
    else:
        port, left = numbers[0], numbers[1] << 20
        agent, block, start = connect(endpoint, port), bytearray(65536), time.monotonic()
        letter, there = {"from": "s", "from-pipe": "S", "to": "t", "to-pipe": "T"}[how].encode(), how.startswith("to")
        agent.sendall(struct.pack("<cQ", letter, left) if there else letter)
        while left > 0:
            if there:
                left -= agent.send(block[:left])
                continue
            exactly(agent, 31 << 10)
            agent.sendall(b".")
            left -= 31 << 10
        if there:
            exactly(agent, 1)
        print(f"{(numbers[1] << 20) / (time.monotonic() - start) / 1e6:.0f}")


main(*sys.argv[1:])
