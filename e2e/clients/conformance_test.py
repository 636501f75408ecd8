"""The WebSocket protocol (RFC 6455), by the cases of Autobahn's test suite that need no echo.

Numbers in the names are Autobahn's. What it asks of an echo is asked here of the command `ping`, which is answered
with its `id`. Faults are tried on both kinds of socket.
"""

import contextlib
import json

import pytest

from websocket import (
    BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Wire, closing, frame, ping_command,
)

MOST = 16 * 1_024  # of a message; docs/live.md
PROTOCOL, NOT_TEXT, TOO_LONG, BAD_COMMAND = 1002, 1007, 1009, 4400
SOCKETS = {"plain": "", "framed": "?mode=live"}


@contextlib.contextmanager
def opened(server, query):
    wire = Wire(server.port, query)
    try:
        yield wire
    finally:
        wire.end()


@pytest.fixture
def framed(server):
    with opened(server, SOCKETS["framed"]) as wire:
        yield wire


@pytest.fixture(params=SOCKETS)
def wire(server, request):
    with opened(server, SOCKETS[request.param]) as wire:
        yield wire


def octets(data):
    """Each as a write of its own."""
    return [bytes([octet]) for octet in data]


def answers(wire, name):
    """The next that comes is the answer to this command."""
    opcode, payload = wire.skip_pings()
    assert (opcode, json.loads(payload)) == (TEXT, {"type": "pong", "id": name})


def pieces(data, size, *between):
    """A text message in frames of this size, with something in between."""
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    sent = [frame(TEXT, parts[0], fin=len(parts) == 1)]
    for at, part in enumerate(parts[1:], 2):
        sent += [*between, frame(CONTINUATION, part, fin=at == len(parts))]
    return sent


# === 1 framing ===

@pytest.mark.parametrize("size", [60, 125, 126, 127, 128, 4_096, MOST])
def test_1_1_a_command_of_any_allowed_size_is_read(framed, size):
    command = ping_command("n", size - len(ping_command("n")))
    assert len(command) == size
    framed.send(frame(TEXT, command))
    answers(framed, "n")


def test_1_1_8_a_command_sent_octet_by_octet_is_read(framed):
    framed.send(*octets(frame(TEXT, ping_command("n", 200))))
    answers(framed, "n")


@pytest.mark.parametrize("size", [MOST + 1, 65_535, 65_536])
def test_1_1_a_longer_message_is_refused(wire, size):
    wire.send(frame(TEXT, b"x" * size))
    assert wire.close_code() == TOO_LONG


@pytest.mark.parametrize("size", [MOST + 1, 1 << 20, 15 << 20, 1 << 40, (1 << 63) - 1])
def test_1_1_a_longer_frame_is_refused_by_its_head_alone(wire, size):
    wire.send(frame(TEXT, b"", claimed=size))
    assert wire.close_code() == TOO_LONG


def test_1_1_a_message_that_grows_too_long_by_its_fragments_is_refused(wire):
    wire.send(frame(TEXT, b"x" * MOST, fin=False), frame(CONTINUATION, b"x"))
    assert wire.close_code() == TOO_LONG


@pytest.mark.parametrize("size", [0, 125, 126, 4_096, MOST])
def test_1_2_a_binary_message_is_no_command(framed, size):
    framed.send(frame(BINARY, b"\xfe" * size))
    assert framed.close_code() == BAD_COMMAND


@pytest.mark.parametrize("text", ["", "hello", "[]", "{}", '{"type":1}'])
def test_1_1_a_text_that_is_no_command_is_refused(framed, text):
    framed.send(frame(TEXT, text.encode()))
    assert framed.close_code() == BAD_COMMAND


def test_1_what_a_plain_socket_is_sent_is_read_and_ignored(server):
    with opened(server, "") as wire:
        wire.send(frame(TEXT, b"hello"), frame(BINARY, b"\xfe" * 400), frame(TEXT), frame(PING, b"still there"))
        assert wire.receive() == (PONG, b"still there")


# === 2 pings and pongs ===

@pytest.mark.parametrize("payload", [b"", b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125])
def test_2_1_to_2_4_a_ping_is_answered_with_what_it_holds(wire, payload):
    wire.send(frame(PING, payload))
    assert wire.skip_pings() == (PONG, payload)


def test_2_5_a_ping_of_126_octets_is_refused(wire):
    wire.send(frame(PING, b"\xfe" * 126))
    assert wire.close_code() == PROTOCOL


def test_2_6_a_ping_sent_octet_by_octet_is_answered(wire):
    wire.send(*octets(frame(PING, b"\xfe" * 125)))
    assert wire.skip_pings() == (PONG, b"\xfe" * 125)


@pytest.mark.parametrize("payload", [b"", b"unsolicited"])
def test_2_7_to_2_9_a_pong_nobody_asked_for_is_ignored(wire, payload):
    wire.send(frame(PONG, payload), frame(PING, b"asked"))
    assert wire.skip_pings() == (PONG, b"asked")


def test_2_10_ten_pings_one_after_the_other_are_answered_in_order(wire):
    for number in range(10):
        wire.send(frame(PING, b"payload-%d" % number))
        assert wire.skip_pings() == (PONG, b"payload-%d" % number)


def test_2_11_ten_pings_at_once_the_last_is_answered(wire):
    # RFC 6455, 5.5.3: who has not answered yet may answer the newest alone.
    wire.send(b"".join(frame(PING, b"payload-%d" % number) for number in range(10)))
    answered = []
    while not answered or answered[-1] != b"payload-9":
        opcode, payload = wire.skip_pings()
        assert opcode == PONG
        answered.append(payload)
    assert answered == sorted(answered)


# === 3 reserved bits, 4 opcodes ===

@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
def test_3_a_reserved_bit_is_refused(wire, rsv, opcode):
    wire.send(frame(opcode, b"", rsv=rsv))
    assert wire.close_code() == PROTOCOL


def test_3_2_what_came_before_a_reserved_bit_is_answered(framed):
    framed.send(frame(TEXT, ping_command("n")))
    answers(framed, "n")
    framed.send(frame(TEXT, ping_command("m"), rsv=2))
    assert framed.close_code() == PROTOCOL


@pytest.mark.parametrize("payload", [b"", b"reserved"])
@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_4_an_opcode_that_means_nothing_is_refused(wire, opcode, payload):
    wire.send(frame(opcode, payload))
    assert wire.close_code() == PROTOCOL


def test_5_1_of_the_rfc_a_frame_that_is_not_masked_is_refused(wire):
    wire.send(frame(TEXT, ping_command("n"), masked=False))
    assert wire.close_code() == PROTOCOL


# === 5 fragments ===

@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_5_1_5_2_a_control_frame_in_fragments_is_refused(wire, opcode):
    wire.send(frame(opcode, b"fragment1", fin=False), frame(CONTINUATION, b"fragment2"))
    assert wire.close_code() == PROTOCOL


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_5_3_to_5_5_a_command_in_fragments_is_read(framed, size):
    framed.send(*pieces(ping_command("n"), size))
    answers(framed, "n")


@pytest.mark.parametrize("size", [1, 7, 30])
def test_5_6_to_5_8_pings_between_fragments_are_answered_first(framed, size):
    framed.send(*pieces(ping_command("n"), size, frame(PING, b"between")))
    while (received := framed.skip_pings())[0] == PONG:
        assert received[1] == b"between"
        first = received
    assert first and json.loads(received[1]) == {"type": "pong", "id": "n"}


def test_5_19_5_20_fragments_may_be_empty(framed):
    command = ping_command("n")
    framed.send(
        frame(TEXT, b"", fin=False), frame(CONTINUATION, command, fin=False), frame(CONTINUATION, b"", fin=False),
        frame(PING, b"between"), frame(CONTINUATION, b""),
    )
    assert framed.skip_pings() == (PONG, b"between")
    answers(framed, "n")


@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_5_9_to_5_17_a_continuation_of_nothing_is_refused(wire, fin, together):
    frames = [frame(CONTINUATION, b"nothing", fin=fin), frame(TEXT, ping_command("n"))]
    wire.send(*([b"".join(frames)] if together else frames))
    assert wire.close_code() == PROTOCOL


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_5_18_a_message_within_a_message_is_refused(wire, opcode):
    wire.send(frame(TEXT, b"fragment1", fin=False), frame(opcode, b"fragment2"))
    assert wire.close_code() == PROTOCOL


# === 6 UTF-8 ===

VALID = ["Hello-µ@ßöäüàá-UTF-8!!", "κόσμε", "\U00010000", "\U0010ffff", "\u0080", "\u07ff", "\u0800", "\uffff", "\ud7ff\ue000"]
INVALID = {
    "6_3_surrogate_in_a_text": b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
    "6_6_cut_of_two": b"\xce",
    "6_6_cut_of_three": b"\xe1\xbd",
    "6_8_five_octets": b"\xf8\x88\x80\x80\x80",
    "6_8_six_octets": b"\xfc\x84\x80\x80\x80\x80",
    "6_10_beyond_the_last": b"\xf4\x90\x80\x80",
    "6_10_far_beyond": b"\xf7\xbf\xbf\xbf",
    "6_12_continuation_first": b"\x80",
    "6_12_last_continuation_first": b"\xbf\x80\xbf",
    "6_13_lonely_start_of_two": b"\xc0 \xc1 ",
    "6_13_lonely_start_of_three": b"\xe0 ",
    "6_14_last_octet_missing": b"\xf0\x80\x80",
    "6_16_impossible_fe": b"\xfe",
    "6_16_impossible_ff": b"\xff",
    "6_17_overlong_slash_of_two": b"\xc0\xaf",
    "6_17_overlong_slash_of_three": b"\xe0\x80\xaf",
    "6_17_overlong_slash_of_four": b"\xf0\x80\x80\xaf",
    "6_18_highest_overlong": b"\xc1\xbf",
    "6_19_overlong_nul": b"\xc0\x80",
    "6_20_single_surrogate": b"\xed\xbf\xbf",
    "6_21_paired_surrogates": b"\xed\xa0\x80\xed\xb0\x80",
}


@pytest.mark.parametrize("text", VALID, ids=ascii)
@pytest.mark.parametrize("size", [None, 1])
def test_6_2_6_5_6_7_6_9_text_is_read_however_it_is_cut(framed, text, size):
    command = ping_command(text)
    framed.send(*pieces(command, size or len(command)))
    answers(framed, text)


@pytest.mark.parametrize("octets", INVALID.values(), ids=INVALID.keys())
@pytest.mark.parametrize("size", [None, 1])
def test_6_text_that_is_not_utf_8_is_refused(wire, octets, size):
    wire.send(*pieces(octets, size or len(octets)))
    assert wire.close_code() == NOT_TEXT


def test_6_4_a_fragment_that_cannot_become_text_is_refused_at_once(wire):
    wire.send(frame(TEXT, b"\xce\xba\xf4\x90\x80\x80", fin=False))
    assert wire.close_code() == NOT_TEXT


# === 7 the end ===

def test_7_1_1_a_close_is_answered_after_what_came_before(framed):
    framed.send(frame(TEXT, ping_command("n")), closing(1000))
    answers(framed, "n")
    assert framed.close_code() == 1000


def test_7_1_2_to_7_1_5_after_a_close_nothing_is_read(wire):
    after = [closing(1000), frame(PING), frame(TEXT, ping_command("n")), frame(TEXT, b"", fin=False)]
    wire.send(b"".join([closing(1000), *after]))
    assert wire.close_code() == 1000
    assert wire.receive() is None


def test_7_after_a_fault_the_server_ends_the_connection_by_itself(wire):
    wire.send(frame(TEXT, b"", rsv=1))
    assert wire.close_code() == PROTOCOL
    assert wire.receive() is None


def test_7_3_1_a_close_without_a_code_is_answered(wire):
    wire.send(frame(CLOSE))
    assert wire.close_code() is None


def test_7_3_2_a_close_of_one_octet_is_refused(wire):
    wire.send(frame(CLOSE, b"a"))
    assert wire.close_code() == PROTOCOL


@pytest.mark.parametrize("reason", [b"", b"Hello, world!", b"*" * 123])
def test_7_3_3_to_7_3_5_a_close_may_have_a_reason(wire, reason):
    wire.send(closing(1000, reason))
    assert wire.close_code() == 1000


def test_7_3_6_a_close_of_126_octets_is_refused(wire):
    wire.send(closing(1000, b"*" * 124))
    assert wire.close_code() == PROTOCOL


def test_7_5_1_a_reason_that_is_not_utf_8_is_refused(wire):
    wire.send(closing(1000, INVALID["6_3_surrogate_in_a_text"]))
    assert wire.close_code() in (PROTOCOL, NOT_TEXT)


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999])
def test_7_7_a_code_that_may_be_sent_is_sent_back(wire, code):
    wire.send(closing(code))
    assert wire.close_code() == code


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999])
def test_7_9_a_code_that_may_not_be_sent_is_refused(wire, code):
    wire.send(closing(code))
    assert wire.close_code() == PROTOCOL
