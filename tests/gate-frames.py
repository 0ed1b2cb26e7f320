#!/usr/bin/env python3
"""Frames of a hostile guest.

gate-frames.py MSB-BOOT    sends them to a real gate process, without a VM, passt or a network. Prints nothing if every frame has had the
                           effect that it must have.
gate-frames.py --print     prints those that must not reach anything, in hexadecimal, for tests/guest/raw-frames.c.
"""
import ipaddress
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile

GUEST, GUEST6, GATEWAY, RESOLVER = "10.0.2.15", "fd00:6d73::15", "10.0.2.2", "10.0.2.3"
FAR, FAR6 = "203.0.113.9", "2001:db8:9::9"
MARK = "192.0.2.1"
MAC, GATE_MAC = bytes.fromhex("525500000002"), bytes.fromhex("9a559a559a55")
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
SYN, ACK, FIN, RST, URG = 2, 16, 1, 4, 32
# The most that the gate may hold, in KiB. Two buffers of 1 MiB and its tables are a few MiB.
MAX_RSS = 24 << 10


def ip(source, destination, protocol, body):
    source, destination = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if source.version == 4:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0x4000, 64, protocol, 0)
        kind = b"\x08\x00"
    else:
        header = struct.pack(">IHBB", 6 << 28, len(body), protocol, 255)
        kind = b"\x86\xdd"
    return GATE_MAC + MAC + kind + header + source.packed + destination.packed + body


def tcp(source, destination, port, flags=SYN, payload=b"", source_port=40000):
    return ip(source, destination, TCP, struct.pack(">HHIIBBHHH", source_port, port, 5, 0, 0x50, flags, 65535, 0, 0) + payload)


def udp(source, destination, port, payload=b"x", source_port=40000):
    return ip(source, destination, UDP, struct.pack(">HHHH", source_port, port, 8 + len(payload), 0) + payload)


def with_byte(frame, at, byte):
    return frame[:at] + bytes([byte]) + frame[at + 1 :]


class Gate:
    """A gate with the mode public. All ends are ours: we are the guest, passt, and the resolver."""

    def __init__(self, program, directory):
        policy = {"mode": "public", "rules": [], "gateways": [GATEWAY, "fd00:6d73::2"], "own": [], "links": []}
        config = {"ipv4": GUEST, "ipv6": GUEST6, "resolvers": [RESOLVER], "udp_ports": [], "policy": policy, "lease": None}
        jail = {"profile": "gate", "binds": [], "dirs": [], "user": 65534, "mount_point": directory}
        self.log = os.path.join(directory, "net.log")
        description = {"jail": jail, "config": config, "mac": list(MAC), "log": self.log, "traffic": os.path.join(directory, "traffic")}
        self.guest, guest = socket.socketpair()
        self.passt, passt = socket.socketpair()
        self.resolver, resolver = packets()
        self.control, control = packets()
        self.addresses(["198.51.100.2", "2001:db8:1::2"], guest=guest, passt=passt, resolver=resolver)
        self.process = subprocess.Popen(
            [program, "--as-gate", json.dumps(description)], stdin=control, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for mine in (guest, passt, resolver, control):
            mine.close()
        for mine in (self.guest, self.passt, self.resolver):
            mine.settimeout(60)
        # The gate announces the guest to passt.
        assert receive(self.passt)[12:14] == b"\x08\x06"

    def addresses(self, addresses, **sockets):
        """Tells the gate the host's addresses, as the supervisor does."""
        message = json.dumps({"addresses": addresses, "networks": [f"{addresses[0]}/24"], "sockets": list(sockets)}).encode()
        socket.send_fds(self.control, [message], [one.fileno() for one in sockets.values()])

    def effect(self, frame):
        """What one frame of the guest's leads to: a frame that always passes is sent behind it and shows when it was handled."""
        send(self.guest, frame)
        send(self.guest, udp(GUEST, MARK, 9, b"mark"))
        passed = receive(self.passt)
        if passed != frame:
            assert passed.endswith(b"mark"), f"something else went on: {passed.hex()}"
        else:
            assert receive(self.passt).endswith(b"mark")
            return "pass"
        # The reply, if there is one, was written before the mark.
        self.guest.setblocking(False)
        try:
            reply = receive(self.guest)
        except BlockingIOError:
            return "drop"
        finally:
            self.guest.settimeout(60)
        if reply[12:14] == b"\x08\x00" and reply[23] == TCP:
            assert reply[26:30] == socket.inet_aton(RESOLVER), reply.hex()
            return "answered"
        body = reply[34:] if reply[12:14] == b"\x08\x00" else reply[54:]
        assert (body[0], body[1]) in ((3, 13), (1, 1)), reply.hex()
        return "prohibited"

    def rss(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

    def end(self):
        self.guest.close()
        assert self.process.wait(60) == 0, self.process.stderr.read()


def packets():
    """Two connected sockets that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end, frame):
    end.sendall(struct.pack(">I", len(frame)) + frame)


def receive(end):
    return exactly(end, struct.unpack(">I", exactly(end, 4))[0])


def exactly(end, count):
    got = b""
    while len(got) < count:
        more = end.recv(count - len(got))
        assert more, "the gate has ended"
        got += more
    return got


ECHO = b"\x08\0\0\0\0\1\0\1"
ECHO6 = b"\x80\0\0\0\0\1\0\1"
ROWS = [
    ("the internet", tcp(GUEST, FAR, 80), "pass"),
    ("the internet over IPv6", tcp(GUEST6, FAR6, 80), "pass"),
    ("host loopback", tcp(GUEST, "127.0.0.1", 9001), "prohibited"),
    ("all of host loopback", tcp(GUEST, "127.9.9.9", 9001), "prohibited"),
    ("host loopback over IPv6", tcp(GUEST6, "::1", 9001), "prohibited"),
    ("this host", tcp(GUEST, "0.0.0.0", 9001), "prohibited"),
    ("mapped loopback, which ends passt of 2025", tcp(GUEST6, "::ffff:127.0.0.1", 9001), "prohibited"),
    ("compatible loopback", tcp(GUEST6, "::7f00:1", 9001), "prohibited"),
    ("another source", tcp("1.2.3.4", FAR, 80), "drop"),
    ("loopback as the source", tcp("127.0.0.1", FAR, 80), "drop"),
    ("a host's address as the source", tcp("198.51.100.2", FAR, 80), "drop"),
    ("the host's address", tcp(GUEST, "198.51.100.2", 22), "prohibited"),
    ("the host's address over IPv6", tcp(GUEST6, "2001:db8:1::2", 22), "prohibited"),
    ("the host's network", tcp(GUEST, "198.51.100.77", 22), "prohibited"),
    ("private networks", tcp(GUEST, "10.9.9.9", 80), "prohibited"),
    ("private networks 2", tcp(GUEST, "172.16.9.9", 80), "prohibited"),
    ("private networks 3", tcp(GUEST, "192.168.9.9", 80), "prohibited"),
    ("private networks over IPv6", tcp(GUEST6, "fd99::9", 80), "prohibited"),
    ("carrier NAT", tcp(GUEST, "100.64.0.1", 80), "prohibited"),
    ("metadata", tcp(GUEST, "169.254.169.254", 80), "prohibited"),
    ("metadata through NAT64", tcp(GUEST6, "64:ff9b::a9fe:a9fe", 80), "prohibited"),
    ("metadata through 6to4", tcp(GUEST6, "2002:a9fe:a9fe::1", 80), "prohibited"),
    ("link-local", tcp(GUEST6, "fe80::1", 80), "prohibited"),
    ("the gateway, which is host loopback to passt", tcp(GUEST, GATEWAY, 22), "prohibited"),
    ("the gateway over IPv6", tcp(GUEST6, "fd00:6d73::2", 22), "prohibited"),
    ("the resolver's other ports", tcp(GUEST, RESOLVER, 80), "prohibited"),
    ("DNS over TCP, which the gate serves itself", tcp(GUEST, RESOLVER, 53), "answered"),
    *((f"SYN with {flags:#x}", tcp(GUEST, FAR, 80, SYN | flags), "drop") for flags in (FIN, RST, FIN | RST | URG)),
    ("SYN with URG", tcp(GUEST, "10.9.9.9", 80, SYN | URG), "prohibited"),
    ("SYN with data", tcp(GUEST, FAR, 80, SYN, b"GET"), "drop"),
    ("UDP to host loopback", udp(GUEST, "127.0.0.1", 9001), "prohibited"),
    ("UDP to a private network", udp(GUEST, "10.9.9.9", 53), "prohibited"),
    ("UDP to all", udp(GUEST, "255.255.255.255", 9), "prohibited"),
    ("UDP to a group", udp(GUEST, "224.0.0.251", 5353), "prohibited"),
    ("UDP to a group over IPv6", udp(GUEST6, "ff02::fb", 5353), "prohibited"),
    ("no question", udp(GUEST, RESOLVER, 53), "drop"),
    ("echo", ip(GUEST, FAR, ICMP, ECHO), "pass"),
    ("echo to a private network", ip(GUEST, "10.9.9.9", ICMP, ECHO), "prohibited"),
    ("echo over IPv6 to host loopback", ip(GUEST6, "::1", ICMP6, ECHO6), "prohibited"),
    ("a redirect", ip(GUEST, FAR, ICMP, b"\5" + bytes(7)), "drop"),
    ("a router advertisement", ip(GUEST6, "ff02::1", ICMP6, b"\x86" + bytes(15)), "drop"),
    ("a fragment", with_byte(tcp(GUEST, FAR, 80), 20, 0x20), "drop"),
    ("a later fragment", with_byte(tcp(GUEST, FAR, 80), 21, 1), "drop"),
    ("IP options", with_byte(tcp(GUEST, FAR, 80), 14, 0x46), "drop"),
    ("a length past the frame", with_byte(tcp(GUEST, FAR, 80), 16, 0xff), "drop"),
    ("a short TCP header", with_byte(tcp(GUEST, FAR, 80), 46, 0x40), "drop"),
    ("extension headers", ip(GUEST6, FAR6, 0, bytes([TCP, 0, 0, 0, 0, 0, 0, 0]) + tcp(GUEST6, FAR6, 80)[54:]), "drop"),
    ("IPv4 in IPv4", ip(GUEST, FAR, 4, tcp(GUEST, "127.0.0.1", 80)[14:]), "drop"),
    ("GRE", ip(GUEST, FAR, 47, bytes(8)), "drop"),
    ("a VLAN tag", with_byte(tcp(GUEST, FAR, 80), 12, 0x81), "drop"),
    ("ARP with the gateway's address", GATE_MAC + MAC + bytes.fromhex("08060001080006040002525500000002")
     + socket.inet_aton(GATEWAY) + bytes(10), "drop"),
    ("an empty frame", b"", "drop"),
    ("one byte", b"x", "drop"),
    ("more than a frame can have", bytes(70000), "drop"),
]


def floods(gate):
    """Nothing that a guest sends makes the gate larger, or keeps it from what comes after it."""
    questions = (b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + bytes([60]) + b"%060d" % number + b"\4test\0\0\1\0\1" for number in range(20000))
    kinds = [
        (tcp(GUEST, f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", n & 0xffff) for n in range(60000)),
        (tcp(GUEST, FAR, 80, SYN, source_port=n & 0xffff) for n in range(60000)),
        (tcp(GUEST, RESOLVER, 53, SYN, source_port=n & 0xffff) for n in range(60000)),
        # The resolver does not read.
        (udp(GUEST, RESOLVER, 53, question, n & 0xffff) for n, question in enumerate(questions)),
        (bytes(65000) for _ in range(300)),
    ]
    for frames in kinds:
        burst = b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)
        passed = bytearray()
        # We do not read what the gate sends back; what goes on is read.
        sender = os.fork()
        if sender == 0:
            gate.guest.sendall(burst)
            send(gate.guest, udp(GUEST, MARK, 9, b"mark"))
            os._exit(0)
        while not passed.endswith(b"mark"):
            passed += gate.passt.recv(1 << 20)
        assert os.waitpid(sender, 0)[1] == 0
        assert gate.rss() < MAX_RSS, f"{gate.rss()} KiB"


def names(gate):
    """Questions go to the resolver, and its answers come back as if they were the name server's."""
    question = b"\1\0\0\1\0\0\0\0\0\0\1a\4test\0\0\1\0\1"

    def answered(*addresses, flags=b"\x81\x80"):
        records = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(address) for address in addresses)
        return b"\x12\x34" + flags + b"\0\1" + struct.pack(">H", len(addresses)) + bytes(4) + question[10:] + records

    def told():
        frame = receive(gate.guest)
        addresses = socket.inet_aton(RESOLVER) + socket.inet_aton(GUEST)
        assert frame[26:34] == addresses and frame[34:38] == b"\0\x35\x9c\x40", frame.hex()
        return frame[42:]

    def ask():
        send(gate.guest, udp(GUEST, RESOLVER, 53, b"\x12\x34" + question))
        packet = gate.resolver.recv(4096)
        assert packet[4:] == b"\x12\x34" + question, packet.hex()
        return packet[:4]

    for answer, code in ((answered(FAR), b"\x81\x80"), (answered("10.9.9.9"), b"\x81\x83"), (b"x", b"\x81\x82"),
                         (answered(*[FAR] * 60), b"\x83\x80")):
        gate.resolver.send(ask() + answer)
        assert told()[:4] == b"\x12\x34" + code, answer
    # One that nobody has asked for, and one that comes twice.
    token = ask()
    gate.resolver.send(b"\xff\xff\xff\xff" + answered(FAR))
    gate.resolver.send(token + answered(FAR))
    gate.resolver.send(token + answered("10.9.9.9"))
    assert told() == answered(FAR)
    assert gate.effect(udp(GUEST, FAR, 9)) == "pass"
    # Without a resolver the guest is told, and another one takes its place.
    gate.resolver.close()
    send(gate.guest, udp(GUEST, RESOLVER, 53, b"\x12\x34" + question))
    assert told()[:4] == b"\x12\x34\x81\x82"
    gate.resolver, resolver = packets()
    gate.addresses(["198.51.100.2"], resolver=resolver)
    gate.resolver.send(ask() + answered(FAR))
    assert told() == answered(FAR)
    # It does not read: a question for which it has no room fails at once.
    for _ in range(20000):
        send(gate.guest, udp(GUEST, RESOLVER, 53, b"\x12\x34" + question))
    assert told()[:4] == b"\x12\x34\x81\x82"


def main():
    if sys.argv[1] == "--print":
        for _, frame, expected in ROWS:
            if expected != "pass" and 14 <= len(frame) <= 1514:
                print(frame.hex())
        return
    with tempfile.TemporaryDirectory() as directory:
        gate = Gate(sys.argv[1], directory)
        for what, frame, expected in ROWS:
            effect = gate.effect(frame)
            assert effect == expected, f"{what}: {effect}, and it should be {expected}"
        # An address that the host gets while the guest runs.
        assert gate.effect(tcp(GUEST, FAR, 80)) == "pass"
        gate.addresses([FAR])
        assert gate.effect(tcp(GUEST, FAR, 80)) == "prohibited"
        gate.addresses(["198.51.100.2"])
        names(gate)
        floods(gate)
        assert os.path.getsize(gate.log) < 4 << 20
        # Without passt it goes on.
        gate.passt.close()
        send(gate.guest, tcp(GUEST, FAR, 80))
        assert gate.process.poll() is None
        gate.end()


main()
