"""Clients of Python's world, and curl, against the real server."""

import asyncio
import json
import re
import subprocess

import httpx
import httpx_sse
import pytest
import websockets
import websockets.sync.client as websocket

from server import PATIENCE_S, start, stop, until


def test_websockets_comes_back_with_its_cursor_after_kills_and_misses_nothing(server):
    """By the library's own loop of reconnections."""
    base = f"ws://127.0.0.1:{server.port}/v1/stream?mode=live"
    values, verdicts = [], []
    first = server.posted

    async def listen():
        cursor = ""
        for kills_left in (2, 1, 0):
            async with websockets.connect(base + cursor, open_timeout=PATIENCE_S) as socket:
                verdicts.append(json.loads(await socket.recv())["recovered"])
                server.post(5)
                try:
                    async for text in socket:
                        frame = json.loads(text)
                        values.extend(event["value"] for event in frame["events"])
                        cursor = f"&cursor={frame['cursor']}"
                        if len(values) >= server.posted - first:
                            if kills_left == 0:
                                return
                            server.kill()
                except websockets.ConnectionClosedError as error:
                    assert error.rcvd is None
            server.up()
            server.post(5)  # while it is away

    asyncio.run(asyncio.wait_for(listen(), PATIENCE_S))
    assert values == list(range(first, server.posted))
    assert verdicts == [None, True, True]


def test_websockets_offers_compression_and_is_served_without(server):
    with websocket.connect(f"ws://127.0.0.1:{server.port}/v1/stream", compression="deflate") as socket:
        assert socket.response.headers.get("sec-websocket-extensions") is None
        value = server.post()
        assert json.loads(socket.recv(PATIENCE_S))["value"] == value


@pytest.mark.parametrize("query, sent, code, reason", [
    ("?mode=live", "no command", 4400, "bad command"),
    ("?mode=live", b"\x00", 4400, "bad command"),
    ("?mode=live", "x" * 20_000, 1009, "16 KiB"),
    ("", "x" * 20_000, 1009, "16 KiB"),
    ("", "x" * 3_000_000, 1009, "16 KiB"),
])
def test_websockets_is_told_why_it_is_closed(server, query, sent, code, reason):
    with websocket.connect(f"ws://127.0.0.1:{server.port}/v1/stream{query}") as socket:
        with pytest.raises(websockets.ConnectionClosed) as closed:
            socket.send(sent)
            while True:
                socket.recv(PATIENCE_S)
        assert closed.value.rcvd.code == code
        assert reason in closed.value.rcvd.reason


def test_httpx_sse_goes_on_with_last_event_id(server):
    url = server.url + "/v1/stream/sse"
    first = server.posted
    values, place = [], {}
    with httpx.Client(timeout=PATIENCE_S) as client:
        for restarted in (False, True):
            with httpx_sse.connect_sse(client, "GET", url, headers=place) as source:
                assert source.response.headers["stream-recovered"] == ("true" if restarted else "null")
                server.post(5)
                for message in source.iter_sse():
                    if message.event == "message" and message.data:
                        values.append(json.loads(message.data)["value"])
                    place = {"Last-Event-ID": message.id}
                    if len(values) == server.posted - first:
                        break
            if not restarted:
                server.kill()
                server.up()
                server.post(5)
    assert values == list(range(first, server.posted))


def test_curl_prints_server_sent_events_as_they_come_and_goes_on_with_last_event_id(server, tmp_path):
    first = server.posted
    seen, place = [], []
    for name in ("one", "two"):
        command = ["curl", "-sSN", "-H", f"x-api-key: {server.key}", *place, server.url + "/v1/stream/sse"]
        process, output = start(command, tmp_path, name)
        until("hello", lambda: "event: hello" in output.read_text())
        for _ in range(3):
            value = server.post()
            until("the event", lambda: re.search(rf'"value":{value}\b', output.read_text()))
        stop(process)
        lines = output.read_text().splitlines()
        data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        seen += [event["value"] for event in data if "value" in event]
        last = [line for line in lines if line.startswith("id: ")][-1]
        place = ["-H", "Last-Event-ID: " + last.removeprefix("id: ")]
        server.post(2)
    assert seen == list(range(first, server.posted - 2))


def test_curl_polls_and_goes_on_with_its_cursor_after_a_kill(server):
    def poll(*query):
        asked = "&".join(query)
        command = ["curl", "-sSf", "-H", f"x-api-key: {server.key}", f"{server.url}/v1/stream/poll?{asked}"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S).stdout)

    cursor = poll()["cursor"]
    first = server.posted
    values = []
    server.post(5)
    server.kill()
    server.up()
    while len(values) < 5:
        page = poll("wait=30", "limit=2", "cursor=" + cursor)
        assert page["recovered"] is True and len(page["events"]) <= 2
        cursor = page["cursor"]
        values += [event["value"] for event in page["events"]]
    assert values == list(range(first, server.posted))
