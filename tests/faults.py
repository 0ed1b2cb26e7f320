"""A proxy in front of a registry that answers the first request for each path with a fault: a manifest with 429 and then 503, a blob
with half of its bytes and a reset. Usage: faults.py HOST:PORT; the first line of stdout is the proxy's own port."""

import http.client
import http.server
import socket
import struct
import sys

asked = {}


class Faulty(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        asked[self.path] = count = asked.get(self.path, 0) + 1
        if "/manifests/" in self.path and count < 3:
            return self.refuse(429 if count == 1 else 503)
        upstream = http.client.HTTPConnection(sys.argv[1])
        headers = {name: ", ".join(self.headers.get_all(name)) for name in ("Accept", "Range") if name in self.headers}
        upstream.request(self.command, self.path, headers=headers)
        answer = upstream.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("date", "connection"):
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if "/blobs/" in self.path:
            print(self.headers.get("Range", "whole"), len(body), file=sys.stderr, flush=True)
            if count == 1 and len(body) > 100:
                self.wfile.write(body[: len(body) // 2])
                return self.reset()
        self.wfile.write(body)

    do_HEAD = do_GET

    def refuse(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Retry-After", "0")
        self.end_headers()

    def reset(self):
        self.wfile.flush()
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
print(server.server_port, flush=True)
server.serve_forever()
