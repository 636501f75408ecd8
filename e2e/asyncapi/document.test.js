// docs/asyncapi.json as the parser of AsyncAPI reads it. That the server does what it says, is tried by
// e2e/tests/gateway/frames.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { DiagnosticSeverity, Parser } from "@asyncapi/parser";

const text = readFileSync(new URL("../../docs/asyncapi.json", import.meta.url), "utf8");

/** What is wrong with a document: its errors and warnings. */
async function faults(document) {
  const found = await new Parser().validate(document);
  const wrong = found.filter(({ severity }) => severity <= DiagnosticSeverity.Warning);
  return wrong.map(({ code, message, path }) => `${path.join("/")}: ${message} (${code})`);
}

test("the document has no fault its parser can find", async () => {
  assert.deepEqual(await faults(text), []);
});

test("a fault would be found", async () => {
  const broken = (change) => {
    const document = JSON.parse(text);
    change(document);
    return faults(JSON.stringify(document));
  };
  const nothing = { $ref: "#/components/messages/nothing" };
  const unresolved = await broken(({ channels }) => (channels.sse.messages.gap = nothing));
  assert.match(unresolved.join(), /messages\/nothing. does not exist/);
  const unknown = await broken(({ operations }) => (operations.ping.action = "shout"));
  assert.match(unknown.join(), /operations\/ping\/action/);
});
