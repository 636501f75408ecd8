"""What the measuring scripts share: servers and processes of a run's own, and the table at its end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILT = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
BINARIES = Path(os.environ.get("PULSESTREAM_BINARIES", BUILT))
TICKS = os.sysconf("SC_CLK_TCK")
# Production brokers are compiled code; the tests' quick compiler is three times as slow.
JAVA_OPTIONS = "-Xmx1g -XX:+UseSerialGC"


def run(*command, env=None, check=True):
    """Standard output of a command that succeeds."""
    done = subprocess.run(list(map(str, command)), env=env, check=False, text=True, capture_output=True)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return done.stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mb(pid, line="VmRSS:"):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(line)[2].split()[0]) / 1000


class Servers:
    """Kafka, PostgreSQL and Redis of this run alone."""

    def __init__(self, folder):
        self.folder = folder
        self.env = {**os.environ, "PULSESTREAM_SERVICES_DIR": str(folder), "PULSESTREAM_KAFKA_JAVA": JAVA_OPTIONS}
        self.addresses = {}

    def up(self, *services):
        exports = run(ROOT / "scripts/services", "up", *services, env=self.env)
        lines = (line.removeprefix("export ") for line in exports.splitlines())
        self.addresses.update(line.split("=", 1) for line in lines if not line.startswith("TEST_"))

    def down(self):
        run(ROOT / "scripts/services", "down", env=self.env)

    def pid(self, service):
        moved = self.folder / f"{service}.at"
        folder = Path(moved.read_text().strip()) if moved.exists() else self.folder / service
        return int((folder / "pid").read_text())

    def redis(self, *command):
        return run("redis-cli", "-u", self.addresses["REDIS_URL"], *command)

    def fresh(self, **settings):
        """The environment of a pipeline that begins with nothing."""
        self.redis("flushall")
        name = "bench_" + uuid.uuid4().hex[:8]
        server = self.addresses["DATABASE_URL"].rsplit("/", 1)[0]
        run("psql", "-q", f"{server}/postgres", "-c", f"create database {name}")
        env = {**os.environ, **self.addresses, "DATABASE_URL": f"{server}/{name}"}
        env["PULSESTREAM__LOG__NAMESPACE"] = name.replace("_", "-") + "."
        env.update(settings)
        run(BINARIES / "pulsestream", "migrate", env=env)
        return env


@contextlib.contextmanager
def process(*command, env=None):
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(list(map(str, command)), env=env, stdout=log, stderr=log)
        try:
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait()


@contextlib.contextmanager
def product(env, *role):
    """A process of ours that is ready, its address, and a file with a key for it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "key"
        key.write_text(run(BINARIES / "pulsestream", "keys", "create", "--client", "bench", env=env))
        at = {"PORT": str(port), "CONSUMER_PORT": str(port), "BROADCASTER_PORT": str(port)}
        with process(BINARIES / "pulsestream", *role, env={**env, **at}) as child:
            await_ready(child, f"http://127.0.0.1:{port}/readyz")
            yield child.pid, f"http://127.0.0.1:{port}", key


def producing(env, client, *settings):
    """A command that appends the lines it is given, as a gateway would: the key, a tab, the value."""
    return [
        "kcat", "-P", "-b", env["KAFKA_BROKERS"], "-t", env["PULSESTREAM__LOG__NAMESPACE"] + "metrics.raw", "-K", "\t",
        "-X", "partitioner=murmur2_random", "-H", f"client={client}", "-H", f"received-at={int(time.time() * 1e6)}",
        *(word for setting in settings for word in ("-X", setting)),
    ]  # fmt: skip


def embedded(folder):
    ours = ("KAFKA_BROKERS", "DATABASE_URL", "REDIS_URL")
    return {**{k: v for k, v in os.environ.items() if k not in ours}, "DATA_DIR": f"{folder}/data"}


def await_ready(child, url, within_s=60, status=200):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError):
            if status_of(url) == status:
                return
        time.sleep(0.05)
    sys.exit(f"{url} is not ready")


def until(condition, within_s=60, every_s=0.02):
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("it does not come to its end")
        time.sleep(every_s)


def await_port(port):
    """Until something listens there. Not by connecting: that would be counted as a client."""
    listening = f"0100007F:{port:04X} 00000000:0000 0A"
    until(lambda: listening in Path("/proc/net/tcp").read_text())


def status_of(url):
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def loadgen(*arguments):
    return json.loads(run(BINARIES / "loadgen", "--json", *arguments))


ROWS = []


def tell(what, figure, detail):
    ROWS.append((what, figure, detail))
    print(f"{what}: {figure} ({detail})", flush=True)


def measure(doc, rows, names, only_when_named=()):
    """Runs the rows, on servers of this run, and prints their table."""
    unknown = [name for name in names if name not in rows]
    if unknown:
        sys.exit(f"no such row: {' '.join(unknown)}\n{doc}")
    if BINARIES == BUILT:
        build = ["cargo", "build", "--release", "-p", "pulsestream", "-p", "pulsestream-loadgen"]
        subprocess.run(build, cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        servers = Servers(Path(folder) / "services")
        try:
            servers.up()
            for name in names or [name for name in rows if name not in only_when_named]:
                rows[name](servers)
        finally:
            servers.down()
    print("\n| what | figure | detail |\n|---|---|---|")
    for row in ROWS:
        print("| " + " | ".join(row) + " |")
