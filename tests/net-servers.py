#!/usr/bin/env python3
"""Servers for t8-net.bats: net-servers.py far|host.

far: HTTP on port 80 of all addresses, and a name server on 203.0.113.9. host: HTTP on ports 8000 and 8001 of loopback. The body of every
answer is the argument. "host" prints a line for each connection, whatever is sent on it, also those to port 9001 of all addresses.
"""
import http.server
import socket
import struct
import sys
import threading

ADDRESSES = {"www.good.test": "203.0.113.9", "other.test": "203.0.113.9", "rebind.test": "10.9.9.9", "long.good.test": "203.0.113.9"}
# The answer has the address so often, and is given over TCP only.
COPIES = {"long.good.test": 100}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (sys.argv[1] + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except OSError:
            pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def verify_request(self, _, client):
        if sys.argv[1] == "host":
            print(self.server_address[1], client[0], flush=True)
        return True


def serve_http(address, port):
    threading.Thread(target=Server((address, port), Handler).serve_forever).start()


def serve_names():
    """Answers for A records of ADDRESSES, and with "no such name" for others."""
    streams = socket.create_server(("203.0.113.9", 53))
    threading.Thread(target=serve_names_over_tcp, args=(streams,)).start()
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("203.0.113.9", 53))
    while True:
        query, client = server.recvfrom(4096)
        server.sendto(answer(query, False), client)


def serve_names_over_tcp(streams):
    while True:
        connection, _ = streams.accept()
        with connection, connection.makefile("rb") as source:
            message = answer(source.read(struct.unpack(">H", source.read(2))[0]), True)
            connection.sendall(struct.pack(">H", len(message)) + message)


def answer(query, is_over_tcp):
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
        at += 1 + query[at]
    question, name = query[12 : at + 5], ".".join(labels)
    address, count = ADDRESSES.get(name), 0
    flags = 0x8180 if address else 0x8183
    if address and struct.unpack(">H", query[at + 1 : at + 3])[0] == 1:
        count = COPIES.get(name, 1)
    if count > 1 and not is_over_tcp:
        flags, count = flags | 0x200, 0
    records = (b"\xc0\x0c\0\1\0\1\0\0\1\x2c\0\4" + socket.inet_aton(address or "0.0.0.0")) * count
    return query[:2] + struct.pack(">HHHHH", flags, 1, count, 0, 0) + question + records


if sys.argv[1] == "far":
    serve_http("::", 80)
    serve_names()
else:
    serve_http("::ffff:127.0.0.1", 8000)
    serve_http("::ffff:127.0.0.1", 8001)
    serve_http("::", 9001)
