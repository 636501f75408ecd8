"""The real server for tests: the all-in-one process on a folder of its own, killed and started again on the same port."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

BINARY = os.environ.get("PULSESTREAM_BINARY", "pulsestream")
# Of what takes milliseconds on an idle machine.
PATIENCE_S = 60


def until(what, condition, within_s=PATIENCE_S):
    """Looks at a condition until it holds; what it found."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {within_s} s for {what}"
        time.sleep(0.02)
    return found


def free_port():
    """Below those the kernel gives outgoing connections: while the server is down it stays free."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Server:
    """A pipeline, and one device that counts: its values are 0, 1, 2, …"""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="pulsestream-clients-"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.device = str(uuid.uuid4())
        self.posted = 0
        self.process = None
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "DATA_DIR": str(self.folder / "data"),
            "PULSESTREAM__SERVER__DRAIN_GRACE": "0s",
            "PULSESTREAM__LIMITS__DEVICE_RATE": "0",
            "PULSESTREAM__LIVE__MAX_LAG": "10m",  # a busy machine is no reason for a gap
        }
        make = [BINARY, "keys", "create", "--client", "tests"]
        self.key = subprocess.run(
            make, env=self.environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    def up(self):
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [BINARY, "up", "--port", str(self.port), "--dev"],
                env=self.environment, stdout=log, stderr=log,
            )
        until("the server to be ready", self.ready)
        return self

    def ready(self):
        assert self.process.poll() is None, (self.folder / "log").read_text()[-5_000:]
        return answers(self.url + "/readyz")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def remove(self):
        self.kill()
        shutil.rmtree(self.folder)

    def post(self, count=1):
        """Posts the next values of the counting device, for as long as it takes; the first of them."""
        first = self.posted
        self.posted += count
        events = [
            {"id": str(uuid.uuid4()), "deviceId": self.device, "eventType": "temperature",
             "value": value, "timestamp": time.time_ns() // 1_000_000}
            for value in range(first, self.posted)
        ]
        headers = {"x-api-key": self.key, "content-type": "application/json", "idempotency-key": str(uuid.uuid4())}
        request = urllib.request.Request(self.url + "/v1/events/batch", json.dumps(events).encode(), headers)
        until("the events to be accepted", lambda: answers(request, 202))
        return first


def answers(request, status=200):
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status == status
    except OSError as error:
        refused = isinstance(error, urllib.error.HTTPError) and error.code != 503
        assert not refused, f"{error} {error.read() if refused else ''}"
        return False


def start(command, folder, name, environment=None):
    """Starts a process whose output goes to a file; the process and the file. Its input stays open."""
    path = Path(folder) / name
    with open(path, "wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )
    return process, path


def stop(process):
    """Ends a process and what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    process.stdin.close()
