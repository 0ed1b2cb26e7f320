#!/usr/bin/env python3
"""The host's side of tests/bench-exec.sh: what it times without a process started for each call.

    bench-exec.py steps RECORD BARE PORT COUNT    turn by turn: an exec of /bin/true by the wire, step by step; and by guest/echo-agent.c
                                                  at the other record's port, a byte there and back, and one after its fork and exec
    bench-exec.py from|to|from-pipe|to-pipe BARE PORT MIB    so much by the latter, in MB/s; "to-pipe" also comes from a pipe
"""
import json, socket, struct, subprocess, sys, time


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
    agent.sendall(frame(1, b'{"version":2}'))
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


def turns(record, bare_record, port, count):
    bare_endpoint = endpoint_of(bare_record)
    rows = [steps(endpoint_of(record)) + [bare(bare_endpoint, port, b"ex"), bare(bare_endpoint, port, b"f")] for _ in range(count)]
    names = ["connect and hello", "spawn", "exit", "exec by the wire, all"]
    names += ["bare vsock: a byte there and back", "bare vsock, and fork, exec and wait between"]
    columns = list(zip(*rows))
    for name, values in zip(names, columns):
        line(name, values)
    median = lambda values: sorted(values)[len(values) // 2]
    print(f"exec by the wire against that\t{median(columns[3]) / median(columns[5]):.2f}")


def copy(how, record, port, mib):
    left = mib << 20
    agent, block, start = connect(endpoint_of(record), port), bytearray(65536), time.monotonic()
    letter, there = {"from": "s", "from-pipe": "S", "to": "t", "to-pipe": "T"}[how].encode(), how.startswith("to")
    source = ["head", "-c", str(left), "/dev/zero"] if how == "to-pipe" else None
    source = source and subprocess.Popen(source, stdout=subprocess.PIPE, bufsize=0).stdout
    agent.sendall(struct.pack("<cQ", letter, left) if there else letter)
    while left > 0:
        if there:
            got = source.read(len(block)) if source else block[:left]
            agent.sendall(got)
            left -= len(got)
            continue
        exactly(agent, 31 << 10)
        agent.sendall(b".")
        left -= 31 << 10
    if there:
        exactly(agent, 1)
    print(f"{(mib << 20) / (time.monotonic() - start) / 1e6:.0f}")


def endpoint_of(record):
    return json.load(open(record))["vm"]["endpoint"]


how, *operands = sys.argv[1:]
if how == "steps":
    turns(*operands[:2], *map(int, operands[2:]))
else:
    copy(how, operands[0], *map(int, operands[1:]))
