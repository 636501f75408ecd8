#!/usr/bin/env python3
"""Many WebSockets in one process, for the measuring scripts.

  sockets.py URL KEY_FILE COUNT   opens COUNT WebSockets and counts the frames that come

Any line on standard input is answered with a line of JSON: frames, bytes of their payloads, and why sockets ended.
`tcp://` as URL: bare connections on which only frames come.
"""

import json
import os
import selectors
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

TEXT, CLOSE, PING = 0x81, 0x88, 0x89
READ_BYTES = 256 * 1024


def answer(**members):
    print(json.dumps(members), flush=True)


class Reader:
    """Connections whose frames are counted. Server frames are never masked nor split here."""

    def __init__(self, url, key, count):
        self.frames = self.bytes = 0
        self.ended = {}
        self.rest = {}
        self.selector = selectors.EpollSelector()
        for _ in range(count):
            self.add(self.connect(urlsplit(url), key))
            self.turn(0)  # the first are pinged while the last are opened

    def add(self, connection):
        connection.setblocking(False)
        self.rest[connection] = b""
        self.selector.register(connection, selectors.EVENT_READ, self.read)

    def connect(self, url, key):
        connection = socket.create_connection((url.hostname, url.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if url.scheme == "tcp":
            return connection
        request = (
            f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nx-api-key: {key}\r\n\r\n"
        )
        connection.sendall(request.encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):  # byte by byte: what follows is a frame
            byte = connection.recv(1)
            if not byte:
                break
            head += byte
        if not head.startswith(b"HTTP/1.1 101"):
            sys.exit(f"no WebSocket: {head[:200]!r}")
        return connection

    def read(self, connection):
        try:
            chunk = connection.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            return self.end(connection, str(error))
        if not chunk:
            return self.end(connection, "end of stream")
        data, at = self.rest[connection] + chunk, 0
        while len(data) - at >= 2:
            size, begin = data[at + 1], at + 2
            if size == 126:
                size, begin = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, begin = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if len(data) < begin or len(data) < begin + size:
                break
            at, head = begin + size, data[at]
            if head == TEXT:
                self.frames += 1
                self.bytes += size
            elif head == PING:
                connection.send(bytes([0x8A, 0x80 | size, 0, 0, 0, 0]) + data[begin:at])
            elif head == CLOSE:
                code = int.from_bytes(data[begin : begin + 2], "big")
                return self.end(connection, f"close {code} {data[begin + 2 : at].decode(errors='replace')}")
        self.rest[connection] = data[at:]

    def end(self, connection, why):
        self.ended[why] = self.ended.get(why, 0) + 1
        self.selector.unregister(connection)
        connection.close()

    def turn(self, timeout_s=None):
        """Reads what has come; true when a command did."""
        commanded = False
        for key, _ in self.selector.select(timeout_s):
            if key.data is None:
                commanded = True
            else:
                key.data(key.fileobj)
        return commanded

    def run(self):
        commands = sys.stdin.fileno()
        self.selector.register(commands, selectors.EVENT_READ, None)
        answer(ready=True)
        while True:
            if self.turn():
                if not os.read(commands, 64):
                    return
                answer(frames=self.frames, bytes=self.bytes, ended=self.ended)


if __name__ == "__main__":
    url, key_file, count = sys.argv[1:]
    Reader(url, Path(key_file).read_text().strip(), int(count)).run()
