"""A WebSocket client that does as it is told, right or wrong: it sends whatever bytes a test wants on the wire."""

import base64
import json
import os
import socket
import struct

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0


def frame(opcode, payload=b"", *, fin=True, rsv=0, masked=True, claimed=None):
    """One frame. `claimed` is a length that its head tells instead of the true one."""
    size = len(payload) if claimed is None else claimed
    mask = os.urandom(4) if masked else b""
    bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if size < 126:
        head += bytes([bit | size])
    elif size < 1 << 16:
        head += struct.pack(">BH", bit | 126, size)
    else:
        head += struct.pack(">BQ", bit | 127, size)
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if masked else payload
    return head + mask + body


def closing(code, reason=b""):
    return frame(CLOSE, struct.pack(">H", code) + reason)


def ping_command(name, padding=0):
    """The one command that is answered at once and changes nothing."""
    return json.dumps({"type": "ping", "id": name, "padding": "x" * padding}, ensure_ascii=False).encode()


class Wire:
    """An open connection."""

    def __init__(self, port, query=""):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /v1/stream{query} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        assert b" 101 " in self.file.readline()
        while self.file.readline() != b"\r\n":
            pass

    def send(self, *pieces):
        for piece in pieces:
            self.socket.sendall(piece)

    def receive(self):
        """The next frame's opcode and payload; `None` when the server has ended the connection."""
        try:
            head = self.file.read(2)
            if len(head) < 2:
                return None
            assert head[0] & 0x70 == 0, "the server sets a reserved bit"
            assert head[0] & 0x80, "the server splits a message"
            assert head[1] & 0x80 == 0, "the server masks"
            size = head[1]
            if size == 126:
                size = int.from_bytes(self.file.read(2), "big")
            elif size == 127:
                size = int.from_bytes(self.file.read(8), "big")
            return head[0] & 0x0F, self.file.read(size)
        except ConnectionResetError:
            return None

    def skip_pings(self):
        """The next frame that is none of the server's own heartbeat or position."""
        while True:
            received = self.receive()
            if received is None or received[0] == PING:
                if received is None:
                    return None
                continue
            if received[0] == TEXT and json.loads(received[1])["type"] in ("hello", "events"):
                continue
            return received

    def close_code(self):
        """The code of the close frame, which nothing but text may precede."""
        while received := self.receive():
            if received[0] == CLOSE:
                return int.from_bytes(received[1][:2], "big") if received[1] else None
            assert received[0] != PONG, "answered after a fault"
        return "cut"

    def end(self):
        self.file.close()
        self.socket.close()
