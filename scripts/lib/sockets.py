#!/usr/bin/env python3
"""Many WebSockets in one process, for the measuring scripts.

  sockets.py URL KEY_FILE COUNT [DEVICES_FILE]   opens COUNT WebSockets and counts the frames that come

Each line on standard input is answered with a line of JSON: frames, events and bytes in them, and why sockets ended.
`off` breaks all connections off; `on` opens each where its cursor was, and is answered when all are open.
`tcp://` as URL: bare connections on which only frames come. DEVICES_FILE: a device a line, one for each socket.
"""

import json
import os
import selectors
import socket
import sys
from collections import deque
from pathlib import Path
from urllib.parse import quote, urlsplit

TEXT, CLOSE, PING = 0x81, 0x88, 0x89
READ_BYTES = 256 * 1024
OPENING = 256  # at once
CURSOR = b'"cursor":"'


def answer(**members):
    print(json.dumps(members), flush=True)


class Connection:
    """A connection to be, or one that is."""

    def __init__(self, query):
        self.query = query
        self.last = b""  # the frame that came last
        self.begin()

    def begin(self):
        self.rest, self.is_open = b"", False

    def query_now(self):
        at = self.last.find(CURSOR)
        if at < 0:
            return self.query
        cursor = self.last[at + len(CURSOR) :].split(b'"', 1)[0].decode()
        return f"{self.query}&cursor={quote(cursor)}"


class Reader:
    """Connections whose frames are counted. Server frames are never masked nor split here."""

    def __init__(self, url, key, count, devices):
        self.url, self.key = urlsplit(url), key
        self.frames = self.events = self.bytes = 0
        self.ended = {}
        self.selector = selectors.EpollSelector()
        queries = [f"{self.url.query}&deviceId={device}" for device in devices] or [self.url.query] * count
        self.connections = [Connection(query) for query in queries[:count]]
        self.open_all()

    def open_all(self):
        waiting, self.opening = deque(self.connections), 0
        while waiting or self.opening:
            while waiting and self.opening < OPENING:
                self.open(waiting.popleft())
            if self.opening:
                self.turn()

    def open(self, connection):
        connection.begin()
        connection.socket = socket.create_connection((self.url.hostname, self.url.port))
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.url.scheme == "tcp":
            connection.is_open = True
        else:
            self.opening += 1
            request = (
                f"GET {self.url.path}?{connection.query_now()} HTTP/1.1\r\nHost: {self.url.netloc}\r\n"
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nx-api-key: {self.key}\r\n\r\n"
            )
            connection.socket.sendall(request.encode())
        connection.socket.setblocking(False)
        self.selector.register(connection.socket, selectors.EVENT_READ, connection)

    def read(self, connection):
        try:
            chunk = connection.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            return self.end(connection, str(error))
        if not chunk:
            return self.end(connection, "end of stream")
        data, at = connection.rest + chunk, 0
        if not connection.is_open:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                connection.rest = data
                return
            if not data.startswith(b"HTTP/1.1 101"):
                sys.exit(f"no WebSocket: {data[:500]!r}")
            connection.is_open = True
            self.opening -= 1
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
                self.events += data.count(b'"deviceId":', begin, at)
                connection.last = data[begin:at]
            elif head == PING:
                connection.socket.send(bytes([0x8A, 0x80 | size, 0, 0, 0, 0]) + data[begin:at])
            elif head == CLOSE:
                code = int.from_bytes(data[begin : begin + 2], "big")
                return self.end(connection, f"close {code} {data[begin + 2 : at].decode(errors='replace')}")
        connection.rest = data[at:]

    def end(self, connection, why):
        if not connection.is_open:
            sys.exit(f"no WebSocket: {why}")
        self.ended[why] = self.ended.get(why, 0) + 1
        self.close(connection)

    def close(self, connection):
        self.selector.unregister(connection.socket)
        connection.socket.close()
        connection.is_open = False

    def turn(self):
        """Reads what has come; true when a command did."""
        commanded = False
        for key, _ in self.selector.select():
            if key.data is None:
                commanded = True
            else:
                self.read(key.data)
        return commanded

    def run(self):
        answer(ready=True)
        commands = sys.stdin.fileno()
        self.selector.register(commands, selectors.EVENT_READ, None)
        while True:
            if self.turn():
                command = os.read(commands, 64)
                if not command:
                    return
                if command == b"off\n":
                    for connection in filter(lambda each: each.is_open, self.connections):
                        self.close(connection)
                elif command == b"on\n":
                    self.open_all()
                answer(frames=self.frames, events=self.events, bytes=self.bytes, ended=self.ended)


if __name__ == "__main__":
    url, key_file, count, *devices = sys.argv[1:]
    devices = Path(devices[0]).read_text().split() if devices else []
    Reader(url, Path(key_file).read_text().strip(), int(count), devices).run()
