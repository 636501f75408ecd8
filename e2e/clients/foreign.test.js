// Clients of Node's world that we did not write, against the real server: what they are handed is compared with
// what was posted.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { after, before, describe, test } from "node:test";

import { EventSource } from "eventsource";
import WebSocketOfWs from "ws";

import { Server, until } from "../../clients/js/test/server.js";

const WSCAT = createRequire(import.meta.url).resolve("wscat/bin/wscat");
const from = (first, count) => Array.from({ length: count }, (_, index) => first + index);
const values = (events) => events.map(({ value }) => value);

/** A socket of the standard's interface, and the frames it was handed. */
async function open(Socket, url) {
  const heard = [];
  const socket = new Socket(url);
  socket.onmessage = ({ data }) => heard.push(JSON.parse(data));
  const closed = new Promise((tell) => (socket.onclose = tell));
  await new Promise((go, fail) => ([socket.onopen, socket.onerror] = [go, ({ message }) => fail(new Error(message))]));
  return { heard, socket, closed, events: () => heard.flatMap((frame) => frame.events ?? []) };
}

describe("foreign clients", { concurrency: false }, () => {
  let server;
  let url;
  before(async () => {
    server = await Server.start();
    url = `ws://127.0.0.1:${server.port}/v1/stream`;
  });
  after(() => server.remove());

  for (const [name, Socket] of [["ws", WebSocketOfWs], ["Node's own WebSocket", globalThis.WebSocket]]) {
    test(`${name} is sent each event, plain`, async () => {
      const { heard, socket, closed } = await open(Socket, url);
      const posted = await server.post(3);
      await until("the events", () => heard.length >= 3);
      assert.deepEqual(heard, posted);
      socket.close(1000);
      assert.deepEqual([(await closed).code, (await closed).wasClean], [1000, true]);
    });

    test(`${name} goes on with its cursor after the server was killed`, async () => {
      const first = server.posted;
      const one = await open(Socket, `${url}?mode=window`);
      await server.post(5);
      await until("five events", () => one.events().length >= 5);
      const { cursor } = one.heard.at(-1);
      await server.down("SIGKILL");
      assert.equal((await one.closed).code, 1006);
      await server.up();
      await server.post(5);
      const two = await open(Socket, `${url}?mode=live&cursor=${cursor}`);
      await until("five events more", () => two.events().length >= 5);
      assert.equal(two.heard[0].recovered, true);
      assert.deepEqual(values([...one.events(), ...two.events()]), from(first, 10));
      two.socket.close();
    });

    test(`${name} is told by goaway and a clean 1012 that the server ends`, async () => {
      const { heard, closed } = await open(Socket, `${url}?mode=live`);
      await until("hello", () => heard.length > 0);
      await server.down("SIGTERM");
      const { code, wasClean } = await closed;
      assert.deepEqual([code, wasClean, heard.at(-1).type], [1012, true, "goaway"]);
      await server.up();
    });
  }

  test("ws gets its ping answered, and its subprotocol confirmed", async () => {
    const socket = new WebSocketOfWs(url, ["pulsestream.v1"], { headers: { "x-api-key": server.key } });
    await new Promise((go, fail) => socket.once("open", go).once("error", fail));
    assert.equal(socket.protocol, "pulsestream.v1");
    const pong = new Promise((tell) => socket.once("pong", tell));
    socket.ping("who is there");
    assert.equal(String(await pong), "who is there");
    socket.terminate();
  });

  test("wscat prints each event on a line", async () => {
    const child = spawn(process.execPath, [WSCAT, "-H", `x-api-key: ${server.key}`, "-c", url]);
    let said = "";
    child.stdout.on("data", (piece) => (said += piece));
    const seen = () => [...said.matchAll(/"value":(\d+)/g)].map(([, value]) => Number(value));
    await until("wscat to be there", async () => {
      await server.post(1);
      return seen().length > 0;
    });
    await server.post(3);
    await until("the last event", () => seen().at(-1) === server.posted - 1);
    assert.deepEqual(seen(), from(seen()[0], server.posted - seen()[0]));
    child.kill();
  });

  test("eventsource comes back by itself after kill -9 and a restart: nothing is missing, nothing comes twice", async () => {
    const source = new EventSource(`${server.url}/v1/stream/sse`);
    const [events, hellos, gaps] = [[], [], []];
    source.onmessage = ({ data }) => events.push(JSON.parse(data));
    source.addEventListener("hello", ({ data }) => hellos.push(JSON.parse(data).recovered));
    source.addEventListener("gap", ({ data }) => gaps.push(data));
    await until("hello", () => hellos.length === 1);
    const first = server.posted;
    await server.post(5);
    for (const signal of ["SIGKILL", "SIGKILL", "SIGTERM"]) {
      const before = hellos.length;
      await until("all so far", () => events.length >= server.posted - first);
      await server.down(signal);
      await server.up();
      await server.post(5); // while it is away
      await until("it to be back", () => hellos.length > before);
      await server.post(5);
    }
    await until("the last event", () => values(events).at(-1) === server.posted - 1);
    assert.deepEqual(values(events), from(first, server.posted - first));
    assert.deepEqual([hellos, gaps], [[null, true, true, true], []]);
    source.close();
  });

  test("eventsource stops when its key is not known", async () => {
    const fetchWith = (key) => (to, options) =>
      fetch(to, { ...options, headers: { ...options.headers, "x-api-key": key } });
    const source = new EventSource(`${server.url}/v1/stream/sse`, { fetch: fetchWith("ps_live_wrong") });
    const { code } = await new Promise((tell) => (source.onerror = tell));
    assert.deepEqual([code, source.readyState], [401, EventSource.CLOSED]);
  });
});
