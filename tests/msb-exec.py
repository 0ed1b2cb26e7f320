#!/usr/bin/env python3
"""A client written from man/msb-wire.5 alone: runs a command in a VM, with the streams of this process.

    tests/msb-exec.py RECORD COMMAND [ARG...]
"""
import json, os, socket, struct, sys, threading

HELLO, EXEC, STDIN, STDOUT, STDERR, EOF, CREDIT, EXIT, FAILURE = 1, 2, 4, 5, 6, 7, 8, 11, 12
WINDOW = 65536


class Agent:
    def __init__(self, endpoint):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(endpoint["unix"])
        self.sending = threading.Lock()
        if endpoint.get("handshake"):
            self.socket.sendall(b"CONNECT %d\n" % endpoint["port"])
            while self.exactly(1) != b"\n":
                pass

    def exactly(self, count):
        data = b""
        while len(data) < count:
            data += self.socket.recv(count - len(data)) or sys.exit("the VM is gone")
        return data

    def send(self, kind, body):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with self.sending:
                self.socket.sendall(struct.pack("<IB", len(body), kind) + body)
        except BrokenPipeError:
            pass  # its last frame can still be read

    def receive(self):
        length, kind = struct.unpack("<IB", self.exactly(5))
        return kind, self.exactly(length)


def send_stdin(agent, credit, changed):
    while True:
        with changed:
            changed.wait_for(lambda: credit[0] > 0)
        data = os.read(0, min(credit[0], WINDOW))
        with changed:
            credit[0] -= len(data)
        agent.send(*(STDIN, data) if data else (EOF, b"\0"))
        if not data:
            return


def run(record, argv):
    agent, credit, changed = Agent(json.load(open(record))["vm"]["endpoint"]), [0], threading.Condition()
    agent.send(HELLO, {"version": 2})
    agent.send(EXEC, {"argv": argv})
    for output in (1, 2):
        agent.send(CREDIT, struct.pack("<BI", output, WINDOW))
    threading.Thread(target=send_stdin, args=(agent, credit, changed), daemon=True).start()
    while True:
        kind, payload = agent.receive()
        if kind in (STDOUT, STDERR):
            os.write(kind - STDIN, payload)
            agent.send(CREDIT, struct.pack("<BI", kind - STDIN, len(payload)))
        elif kind == CREDIT:
            with changed:
                credit[0] += struct.unpack("<BI", payload)[1]
                changed.notify()
        elif kind == EXIT:
            return json.loads(payload).get("code", 128 + json.loads(payload).get("signal", 0))
        elif kind == FAILURE:
            sys.stderr.write(json.loads(payload)["message"] + "\n")
            return json.loads(payload)["code"]


os._exit(run(sys.argv[1], sys.argv[2:]))
