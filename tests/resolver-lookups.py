#!/usr/bin/env python3
"""resolver-lookups.py MSB-BOOT: a real resolver process and name servers on loopback. Prints nothing if every question has had
the answer that it must have. We are the supervisor, the gate and the servers.
"""
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading

QUESTION = b"\1\0\0\1\0\0\0\0\0\0\1a\4test\0\0\1\0\1"
QUERY = b"\x12\x34" + QUESTION
# The most that the resolver may hold, in KiB.
MAX_RSS = 24 << 10


def answer(query, code=0, flags=0x81, address="203.0.113.9", count=1):
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(address)
    return query[:2] + bytes([flags, 0x80 | code]) + b"\0\1" + struct.pack(">H", count) + bytes(4) + query[12:] + record * count


class Server:
    """A name server on a port of loopback, UDP and TCP, that answers what a function makes of a question."""

    def __init__(self, respond, respond_over_tcp=None):
        self.asked = []
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        port = 0
        if respond_over_tcp:
            self.streams = socket.create_server(("127.0.0.1", 0))
            port = self.streams.getsockname()[1]
            threading.Thread(target=self.serve_streams, args=(respond_over_tcp,), daemon=True).start()
        self.datagrams.bind(("127.0.0.1", port))
        self.address = "127.0.0.1:%d" % self.datagrams.getsockname()[1]
        threading.Thread(target=self.serve, args=(respond,), daemon=True).start()

    def serve(self, respond):
        while True:
            query, client = self.datagrams.recvfrom(4096)
            self.asked.append((query, client))
            for message in respond(query):
                self.datagrams.sendto(message, client)

    def serve_streams(self, respond):
        while True:
            connection, _ = self.streams.accept()
            with connection, connection.makefile("rb") as source:
                query = source.read(struct.unpack(">H", source.read(2))[0])
                for message in respond(query):
                    connection.sendall(struct.pack(">H", len(message)) + message)


class Resolver:
    def __init__(self, program, directory, servers):
        jail = {"profile": "resolver", "binds": [], "dirs": [], "user": 65534, "mount_point": directory}
        self.gate, gate = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.gate.settimeout(120)
        self.use(servers, [gate])
        command = [program, "--as-resolver", json.dumps({"jail": jail})]
        self.process = subprocess.Popen(command, stdin=control, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        gate.close()
        control.close()

    def use(self, servers, sockets=()):
        addresses = [server if isinstance(server, str) else server.address for server in servers]
        socket.send_fds(self.control, [json.dumps({"servers": addresses}).encode()], [one.fileno() for one in sockets])

    def ask(self, query=QUERY, token=b"\0\0\0\1"):
        self.gate.send(token + query)
        packet = self.gate.recv(1 << 17)
        assert packet[:4] == token, packet
        return packet[4:]

    def status(self, name):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(line.split()[1] for line in status if line.startswith(name + ":"))


def main():
    silent = Server(lambda query: [])
    good = Server(lambda query: [answer(query)], lambda query: [answer(query, count=4000)])
    other = Server(lambda query: [answer(query, address="203.0.113.10")])
    failing = [Server(lambda query, code=code: [answer(query, code)]) for code in (2, 4, 5)]
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.bind(("127.0.0.1", 0))
    refusing = "127.0.0.1:%d" % closed.getsockname()[1]
    # It takes datagrams from that address alone, and no other socket gets its port.
    closed.connect(("127.0.0.1", 9))

    def forged(query):
        """Answers to other questions, which a blind attacker would send, and then the right one."""
        wrong_id = bytes([query[0] ^ 1]) + query[1:]
        wrong_name = query[:13] + b"b" + query[14:]
        wrong_type = query[:-3] + b"\x1c" + query[-2:]
        wrong = [answer(other, address="192.0.2.66") for other in (wrong_id, wrong_name, wrong_type)]
        return [b"", b"x", query, *wrong, answer(query)]

    with tempfile.TemporaryDirectory() as directory:
        resolver = Resolver(sys.argv[1], directory, [refusing, *failing, good])
        # Servers that refuse or fail, and then one that answers, which is asked first from then on.
        assert resolver.ask() == answer(QUERY)
        assert [len(server.asked) for server in failing] == [1, 1, 1]
        assert resolver.ask() == answer(QUERY)
        assert [len(server.asked) for server in failing] == [1, 1, 1]
        # The identifier and the port of each question are others, and not the guest's.
        for _ in range(8):
            resolver.ask()
        assert len({query[:2] for query, _ in good.asked} | {QUERY[:2]}) > 8 and len({port for _, (_, port) in good.asked}) > 4
        # The list changes; one that is silent does not keep the next from being asked.
        resolver.use([other])
        assert resolver.ask() == answer(QUERY, address="203.0.113.10")
        resolver.use([silent, good])
        assert resolver.ask() == answer(QUERY)
        resolver.use([Server(forged)])
        assert resolver.ask() == answer(QUERY)
        # Truncated answers are asked for again over TCP.
        resolver.use([Server(lambda query: [answer(query, flags=0x83, count=0)], lambda query: [answer(query, count=4000)])])
        assert resolver.ask() == answer(QUERY, count=4000)
        resolver.use([Server(lambda query: [answer(query, flags=0x83)], lambda query: [b"x"]), other])
        assert resolver.ask() == answer(QUERY, address="203.0.113.10")
        # All fail: the answer is the last failure, or one that the resolver makes.
        resolver.use([*failing, refusing])
        assert resolver.ask() == answer(QUERY, 5)
        resolver.use([refusing])
        assert resolver.ask()[:4] == b"\x12\x34\x81\x82"
        assert resolver.status("CapEff") == "0" * 16 and resolver.status("Uid") == "65534" and resolver.status("Seccomp") == "2"
        # A flood of questions to servers that do not answer has a bound, and what follows it is answered.
        resolver.use([silent])
        resolver.gate.setblocking(False)
        for number in range(20000):
            try:
                resolver.gate.send(struct.pack(">I", number) + QUERY + bytes(1500))
            except BlockingIOError:
                pass
        assert int(resolver.status("VmHWM")) < MAX_RSS, resolver.status("VmHWM")
        assert len(os.listdir(f"/proc/{resolver.process.pid}/fd")) < 140
        resolver.gate.settimeout(300)
        resolver.use([good])
        while resolver.gate.recv(1 << 17)[4:] != answer(QUERY + bytes(1500)):
            pass
        # It ends with the gate.
        resolver.gate.close()
        assert resolver.process.wait(120) == 0, resolver.process.stderr.read()


main()
