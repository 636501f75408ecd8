"""What a JSON schema cannot say of a valid request, made true before it is sent.

Only requests that are meant to be valid are touched. The rules themselves are tested in e2e/.
"""

import json
import time
import uuid

import schemathesis

HOUR_MS = 3_600_000
LAST_MS = 253_402_128_000_000


@schemathesis.hook
def before_call(ctx, case, kwargs):
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive:
        return
    if case.method == "POST":
        if case.operation.path.startswith("/v1/events"):
            _send(case)
    elif isinstance(case.query, dict):
        _ask(case.query)


def _send(case):
    # A key goes with one body, for ever. Repeats are tested in e2e/.
    keyed = "Idempotency-Key" in (case.headers or {})
    if keyed:
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
    body = case.body
    events = body.get("events", [body]) if isinstance(body, dict) else body
    if isinstance(events, list):
        for event in events:
            if isinstance(event, dict):
                # Near the server's time.
                event["timestamp"] = int(time.time() * 1000)
                # So does an event's own id, needed where there is no key.
                if event.get("id") or not keyed:
                    event["id"] = str(uuid.uuid4())


def _ask(query):
    # A cursor is what an answer gave.
    query.pop("cursor", None)
    if "from" in query:
        # Before `to`, and at most so many steps or days before it.
        begin = min(int(query["from"]), LAST_MS - 24 * HOUR_MS)
        step = int(query.get("step", HOUR_MS))
        query["from"] = begin
        query["to"] = begin + min(step * 10, 24 * HOUR_MS)


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    if isinstance(value, bytes):
        return value
    items = value if isinstance(value, list) else [value]
    return "".join(json.dumps(item) + "\n" for item in items).encode()
