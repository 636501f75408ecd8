"""Each transport through nginx and haproxy, with the configuration of deploy/proxy."""

import json
import re
import time
import uuid
from pathlib import Path

import httpx
import httpx_sse
import pytest
import websockets.sync.client as websocket

from server import PATIENCE_S, answers, free_port, start, stop, until

SETTINGS = Path(__file__).parent / "../../deploy/proxy"
COMMANDS = {
    "nginx.conf": lambda file: ["nginx", "-p", file.parent, "-e", "stderr", "-g", f"daemon off; pid {file}.pid;", "-c", file],
    "haproxy.cfg": lambda file: ["haproxy", "-db", "-f", file],
}


@pytest.fixture(scope="module", params=COMMANDS)
def proxy(server, request, tmp_path_factory):
    """Its address."""
    folder = tmp_path_factory.mktemp("proxy")
    port = free_port()
    text = (SETTINGS / request.param).read_text()
    text = re.sub(r"127\.0\.0\.1:300[03]\b", f"127.0.0.1:{server.port}", text)
    text = re.sub(r"(listen |bind :)8080", rf"\g<1>{port}", text)
    file = folder / request.param
    file.write_text(text)
    process, output = start(COMMANDS[request.param](file), folder, "output")

    def ready():
        assert process.poll() is None, output.read_text()
        return answers(f"http://127.0.0.1:{port}/readyz") and answers(f"http://127.0.0.1:{port}/v1/stream/poll")

    until("the proxy", ready)
    yield f"127.0.0.1:{port}"
    stop(process)


def arrives_before_the_next_is_sent(server, events, rounds=5):
    """Each event is posted when the one before has come: a proxy that gathers would wait for ever."""
    for _ in range(rounds):
        value = server.post()
        assert next(events)["value"] == value


def test_a_plain_websocket_hands_out_each_event_at_once(server, proxy):
    with websocket.connect(f"ws://{proxy}/v1/stream", open_timeout=PATIENCE_S) as socket:
        arrives_before_the_next_is_sent(server, (json.loads(text) for text in each(socket)))


def test_a_framed_websocket_is_upgraded_with_its_subprotocol_and_goes_on_with_its_cursor(server, proxy):
    url = f"ws://{proxy}/v1/stream"
    with websocket.connect(url, subprotocols=["pulsestream.v1"], open_timeout=PATIENCE_S) as socket:
        assert socket.subprotocol == "pulsestream.v1"
        cursor = json.loads(socket.recv(PATIENCE_S))["cursor"]
        arrives_before_the_next_is_sent(server, events_of(socket))
    missed = server.posted - 5
    with websocket.connect(f"{url}?cursor={cursor}", open_timeout=PATIENCE_S) as socket:
        assert json.loads(socket.recv(PATIENCE_S))["recovered"] is True
        events = events_of(socket)
        assert [next(events)["value"] for _ in range(5)] == list(range(missed, server.posted))


def test_server_sent_events_are_not_gathered(server, proxy):
    with httpx.Client(timeout=PATIENCE_S) as client:
        with httpx_sse.connect_sse(client, "GET", f"http://{proxy}/v1/stream/sse") as source:
            messages = source.iter_sse()
            assert next(messages).event == "hello"
            events = (json.loads(message.data) for message in messages if message.data)
            arrives_before_the_next_is_sent(server, events)


def test_a_poll_waits_and_goes_on(server, proxy):
    url = f"http://{proxy}/v1/stream/poll"
    cursor = httpx.get(url).json()["cursor"]
    for _ in range(3):
        value = server.post()
        page = httpx.get(url, params={"cursor": cursor, "wait": 30}, timeout=PATIENCE_S).json()
        assert (page["recovered"], [event["value"] for event in page["events"]]) == (True, [value])
        cursor = page["cursor"]


def test_the_live_page_of_the_same_origin_may_open_a_stream(server, proxy):
    # Its origin is that of the proxy, which must have left `Host` as it was.
    with websocket.connect(f"ws://{proxy}/v1/stream", origin=f"http://{proxy}", open_timeout=PATIENCE_S) as socket:
        arrives_before_the_next_is_sent(server, (json.loads(text) for text in each(socket)), rounds=1)


def test_an_event_is_accepted_through_it(server, proxy):
    event = {"deviceId": server.device, "eventType": "other", "value": 1, "timestamp": time.time_ns() // 1_000_000}
    headers = {"x-api-key": server.key, "idempotency-key": str(uuid.uuid4())}
    for replayed in (None, "true"):
        answer = httpx.post(f"http://{proxy}/v1/events", json=event, headers=headers)
        assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (202, replayed)


def each(socket):
    while True:
        yield socket.recv(PATIENCE_S)


def events_of(socket):
    for text in each(socket):
        yield from json.loads(text).get("events", [])
