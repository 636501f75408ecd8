// Server-sent events, cut anywhere.

import assert from "node:assert/strict";
import { test } from "node:test";

import { EventMessages } from "../pulsestream.js";

const TEXT =
  'retry: 1713\nevent: hello\nid: c0\ndata: {"cursor":"c0"}\n\n' +
  ':\n\n' +
  'id: c1\ndata: {"value":1}\n\n' +
  "id: c2\n\n" +
  'id:c3\r\ndata:{"value":\r\ndata: 3}\r\n\r\n' +
  'event: goaway\ndata: {"code":1012}\n\n';

const MESSAGES = [
  { event: "hello", id: "c0", data: '{"cursor":"c0"}' },
  { event: "", id: "c1", data: '{"value":1}' },
  { event: "", id: "c2", data: null },
  { event: "", id: "c3", data: '{"value":\n3}' },
  { event: "goaway", id: null, data: '{"code":1012}' },
];

test("messages are the same however the text is cut", () => {
  for (let first = 0; first <= TEXT.length; first += 1) {
    for (let second = first; second <= Math.min(TEXT.length, first + 3); second += 1) {
      const messages = new EventMessages();
      const parts = [TEXT.slice(0, first), TEXT.slice(first, second), TEXT.slice(second)];
      assert.deepEqual(parts.flatMap((part) => messages.push(part)), MESSAGES, `cut at ${first} and ${second}`);
    }
  }
});

test("a message that was cut off is none", () => {
  for (let end = 0; end < TEXT.length; end += 1) {
    const read = new EventMessages().push(TEXT.slice(0, end));
    assert.deepEqual(read, MESSAGES.slice(0, read.length));
  }
});

test("a line without an end is not gathered for ever", () => {
  const messages = new EventMessages();
  const piece = "x".repeat(1 << 20);
  assert.throws(() => {
    for (let times = 0; times < 6; times += 1) messages.push(piece);
  }, /without an end/);
});
