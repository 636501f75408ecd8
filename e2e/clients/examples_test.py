"""The examples of docs/live.md, run as they stand there."""

import itertools
import os
import re
from pathlib import Path

import pytest

from server import start, stop, until

HERE = Path(__file__).parent
DOCUMENT = HERE / "../../docs/live.md"
SECTIONS = {"Plain WebSocket": "plain", "Framed WebSocket": "framed", "Server-sent events": "sse", "Poll": "poll"}
LANGUAGES = ("sh", "js", "python")
# What a reader brings along: a key, and what a page does with an event.
PRELUDES = {
    "sh": "",
    "js": """
      import { EventSource } from "eventsource";
      globalThis.EventSource ??= EventSource;
      const KEY = process.env.KEY;
      const show = (event) => console.log(JSON.stringify(event));
      const loadAgain = () => console.log("GAP");
    """,
    "python": "import os; KEY = os.environ['KEY']\n",
}
PLAIN = ("plain",)
# A command that ends with its connection is given the cursor by hand.
BY_HAND = ("framed-sh", "sse-sh")


def examples():
    """Every block of these languages, by transport, language and number."""
    found = {}
    for section in DOCUMENT.read_text().split("\n## ")[1:]:
        transport = SECTIONS.get(section.split("\n", 1)[0])
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```", section, re.M | re.S):
            if transport and language in LANGUAGES:
                name = f"{transport}-{language}"
                while name in found:
                    name += "-again"
                found[name] = (language, code)
    return found


EXAMPLES = examples()


class Run:
    """One example at work."""

    def __init__(self, name, server, folder, cursor=""):
        language, code = EXAMPLES[name]
        self.name = name
        source = PRELUDES[language] + code.replace("127.0.0.1:3000", f"127.0.0.1:{server.port}")
        source = source.replace('"127.0.0.1", 3000', f'"127.0.0.1", {server.port}')
        # Beside node_modules, where a module looks for what it imports.
        where = HERE / "node_modules" if language == "js" else folder
        suffix = {"sh": "sh", "js": "mjs", "python": "py"}[language]
        self.file = Path(where) / f"example-{os.getpid()}-{name}{'-2' if cursor else ''}.{suffix}"
        self.file.write_text(source)
        path = f"{HERE / 'node_modules/.bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "KEY": server.key, "CURSOR": cursor, "PYTHONUNBUFFERED": "1"}
        command = {
            "sh": ["bash", self.file],
            "js": ["node", *os.environ.get("NODE_FLAGS", "").split(), self.file],
            "python": ["python3", self.file],
        }[language]
        self.process, self.output = start(command, folder, self.file.name + ".out", environment)

    @property
    def said(self):
        return self.output.read_text(errors="replace")

    @property
    def values(self):
        """Values of the events it printed, in whatever form."""
        return [int(value) for value in re.findall(r"""["']value["']: ?(\d+)""", self.said)]

    def stop(self):
        stop(self.process)
        self.file.unlink()


def is_whole(run, last):
    """Has every value from its first to the last one."""
    return run.values and run.values[-1] >= last


@pytest.fixture(scope="module")
def runs(server, tmp_path_factory):
    """All of them at once: each sees an event, the server is killed, and each is given time to come back."""
    folder = tmp_path_factory.mktemp("examples")
    runs = {name: Run(name, server, folder) for name in EXAMPLES}
    by_hand = {}
    try:
        see_an_event(server, runs)
        server.kill()
        for name in BY_HAND:
            cursor = re.findall(r'"cursor":"([^"]+)"|^id: (\S+)', runs[name].said, re.M)[-1]
            by_hand[name] = "".join(cursor)
        server.up()
        server.post(5)
        again = {name: Run(name, server, folder, cursor) for name, cursor in by_hand.items()}
        runs |= {f"{name} with its cursor": run for name, run in again.items()}
        coming = [run for name, run in runs.items() if not name.startswith(PLAIN) and name not in BY_HAND]
        wait_for_all(coming, server.posted - 1)
        yield runs
    finally:
        for run in runs.values():
            run.stop()


def see_an_event(server, runs):
    """Posts until everyone is there, and then one that everyone sees."""
    for _ in itertools.count():
        server.post()
        missing = [name for name, run in runs.items() if not run.values]
        dead = [name for name in missing if runs[name].process.poll() is not None]
        if dead or not missing or server.posted > 600:
            break
        until_seen(runs)
    last = server.post()
    wait_for_all([run for run in runs.values() if run.values], last)


def until_seen(runs):
    """A moment for those that are starting; how many is told by what they print, not by the clock."""
    try:
        until("everyone", lambda: all(run.values for run in runs.values()), within_s=0.1)
    except AssertionError:
        pass


def wait_for_all(runs, last):
    """The tests tell who is missing."""
    try:
        until("all", lambda: all(is_whole(run, last) for run in runs), within_s=40)
    except AssertionError:
        pass


def test_every_transport_has_an_example_in_every_language():
    wanted = {f"{transport}-{language}" for transport in SECTIONS.values() for language in LANGUAGES}
    assert wanted <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_event_that_was_posted_is_printed(runs, name):
    assert runs[name].values, runs[name].said


@pytest.mark.parametrize("name", [name for name in EXAMPLES if not name.startswith(PLAIN) and name not in BY_HAND])
def test_after_a_kill_it_comes_back_with_its_cursor_and_misses_nothing(runs, server, name):
    values = runs[name].values
    assert values == list(range(values[0], server.posted)), runs[name].said
    assert "GAP" not in runs[name].said


@pytest.mark.parametrize("name", BY_HAND)
def test_given_its_cursor_it_prints_what_came_since(runs, server, name):
    seen = runs[name].values + runs[f"{name} with its cursor"].values
    assert seen == list(range(seen[0], server.posted)), runs[f"{name} with its cursor"].said
