// The client against the real server, on each of its transports: what it was handed out is compared with
// what was posted.

import assert from "node:assert/strict";
import http from "node:http";
import { after, before, describe, test } from "node:test";

import { StreamClosed, connect } from "../pulsestream.js";
import { Proxy, Server, until } from "./server.js";

const TRANSPORTS = ["websocket", "sse", "poll"];

/** A client and what it was told. */
function listen(url, options = {}) {
  const heard = { values: [], gaps: [], states: [] };
  const stream = connect({
    url,
    onEvent: ({ value }) => heard.values.push(value),
    onGap: (gap) => heard.gaps.push(gap),
    onState: (state) => heard.states.push(state),
    ...options,
  });
  const opened = () => until("an open stream", () => heard.states.some(({ name }) => name === "open"));
  return { ...heard, stream, opened };
}

/** Exactly the numbers from `first` to the last one posted, in order. */
async function hasAll({ values, gaps }, server, first) {
  await until(`${server.posted - first} events`, () => values.length >= server.posted - first).catch(() => {});
  const expected = Array.from({ length: server.posted - first }, (_, index) => first + index);
  const wrong = expected.findIndex((value, index) => values[index] !== value);
  assert.equal(wrong, -1, `after ${values.slice(Math.max(0, wrong - 3), wrong)}: ${values.slice(wrong, wrong + 3)}`);
  assert.equal(values.length, expected.length);
  assert.deepEqual(gaps, []);
}

/** Posts for as long as `trouble` takes, so that something is always under way. */
async function underLoad(server, trouble) {
  let over = false;
  const load = (async () => {
    while (!over) await server.post(20);
  })();
  await trouble().finally(() => (over = true));
  await load;
  await server.post(5);
}

for (const transport of TRANSPORTS) {
  describe(transport, { concurrency: false }, () => {
    let server;
    before(async () => {
      server = await Server.start();
    });
    after(() => server.remove());
    const transports = [transport];

    test("events come as they are accepted, whole", async () => {
      const events = [];
      const filter = { deviceId: server.deviceId, eventType: ["count", "other"] };
      const { stream, opened } = listen(server.url, { transports, ...filter, onEvent: (event) => events.push(event) });
      await opened();
      const [posted] = await server.post(1);
      await server.post(1, { deviceId: "00000000-0000-4000-8000-000000000001" });
      await server.post(1, { eventType: "unwanted" });
      const [last] = await server.post(1, { eventType: "other" });
      await until("two events", () => events.length >= 2);
      assert.deepEqual(events, [posted, last]);
      stream.close();
    });

    test("newest values come first, and then of what is new the newest", async () => {
      await server.post(5);
      const wish = { mode: "latest", windowMs: 10, deviceId: server.deviceId, eventType: "count" };
      const { values, gaps, stream, opened } = listen(server.url, { transports, apiKey: server.key, ...wish });
      await opened();
      const newest = () => until("the newest value", () => values.at(-1) === server.posted - 1);
      await newest();
      await server.post(30);
      await newest();
      assert.deepEqual(gaps, []);
      assert.notEqual(stream.cursor, null);
      stream.close();
    });

    test("a new client goes on with the cursor of an old one", async () => {
      const first = listen(server.url, { transports });
      await first.opened();
      const from = server.posted;
      await server.post(30);
      await hasAll(first, server, from);
      first.stream.close();
      const middle = server.posted;
      await server.post(30);
      const second = listen(server.url, { transports, cursor: first.stream.cursor });
      await hasAll(second, server, middle);
      assert.equal(second.states.find(({ name }) => name === "open").recovered, true);
      second.stream.close();
    });

    test("cut again and again it misses nothing, repeats nothing and keeps the order", async () => {
      const proxy = await Proxy.before(server.port);
      const listener = listen(proxy.url, { transports, random: () => 0.05 });
      await listener.opened();
      const from = server.posted;
      let cuts = 0;
      await underLoad(server, async () => {
        while (cuts < 12) {
          const seen = listener.values.length;
          await until("events to flow", () => listener.values.length > seen);
          cuts += proxy.cut();
        }
      });
      await hasAll(listener, server, from);
      listener.stream.close();
      proxy.close();
    });

    test("the server may be killed and may be stopped under load", async () => {
      const listener = listen(server.url, { transports, random: () => 0.3 });
      await listener.opened();
      const from = server.posted;
      await underLoad(server, async () => {
        for (const signal of ["SIGKILL", "SIGTERM"]) {
          const seen = listener.values.length;
          await until("events to flow", () => listener.values.length > seen);
          await server.down(signal);
          await server.up();
        }
        const seen = listener.values.length;
        await until("events to flow again", () => listener.values.length > seen);
      });
      await hasAll(listener, server, from);
      listener.stream.close();
    });

    test("a cursor of nowhere is told as a gap, and what follows is live", async () => {
      const listener = listen(server.url, { transports, cursor: "nonsense" });
      await listener.opened();
      assert.deepEqual([listener.gaps.length, listener.gaps[0].reason], [1, "malformed"]);
      await server.post(1);
      await until("an event", () => listener.values.length > 0);
      assert.deepEqual(listener.values, [server.posted - 1]);
      listener.stream.close();
    });

    test("paused it has no connection, and goes on behind what it had", async () => {
      const proxy = await Proxy.before(server.port);
      const listener = listen(proxy.url, { transports });
      await listener.opened();
      const from = server.posted;
      await server.post(10);
      await hasAll(listener, server, from);
      listener.stream.pause();
      assert.equal(listener.stream.state.name, "paused");
      await until("the connection to end", () => proxy.cut() === 0);
      await server.post(10);
      assert.equal(listener.values.length, 10);
      listener.stream.resume();
      await hasAll(listener, server, from);
      listener.stream.close();
      proxy.close();
    });

    test("a loop that is slow makes it wait and loses nothing", async () => {
      for (let posts = 0; posts < 15; posts += 1) await server.post(1_000);
      const [names, values] = [[], []];
      const onState = ({ name }) => names.push(name);
      const stream = connect({ url: server.url, transports, cursor: "earliest", onState });
      let last;
      for await (const { events, gap, cursor } of stream.batches()) {
        assert.equal(gap, undefined);
        if (values.length === 0) await until("it to wait", () => names.includes("paused"));
        values.push(...events.map(({ value }) => value));
        last = cursor;
        if (values.length >= server.posted) stream.close();
      }
      assert.equal(new Set(values).size, server.posted);
      assert.equal(values.length, server.posted);
      assert.ok(typeof last === "string" && last.length > 10);
    });

    test("a query the server refuses ends it with the server's words", async () => {
      const listener = listen(server.url, { transports, deviceId: "not-a-uuid" });
      await until("its end", () => listener.stream.state.name === "closed");
      const { reason } = listener.stream.state;
      assert.equal(reason.code, "refused");
      assert.match(reason.detail, /deviceId/);
    });

    test("a handler that throws does not end it", async () => {
      const thrown = [];
      process.setUncaughtExceptionCaptureCallback((error) => thrown.push(error.message));
      const values = [];
      const onEvent = ({ value }) => {
        values.push(value);
        if (values.length === 2) throw new Error("of the page");
      };
      const listener = listen(server.url, { transports, onEvent });
      await listener.opened();
      await server.post(4);
      await until("all of them", () => values.length >= 4);
      process.setUncaughtExceptionCaptureCallback(null);
      assert.deepEqual(thrown, ["of the page"]);
      listener.stream.close();
    });

    test("a handler may close it in the middle of what came together, and its place stays before that", async () => {
      const values = [];
      const onEvent = ({ value }) => {
        values.push(value);
        if (values.length === 2) listener.stream.close();
      };
      const listener = listen(server.url, { transports, windowMs: 1_000, onEvent });
      await listener.opened();
      const before = listener.stream.cursor;
      const from = server.posted;
      await server.post(6);
      await until("its end", () => listener.stream.state.name === "closed");
      assert.deepEqual(values, [from, from + 1]);
      const again = listen(server.url, { transports, cursor: before });
      await hasAll(again, server, from);
      again.stream.close();
    });
  });
}

describe("between transports", { concurrency: false }, () => {
  let server;
  before(async () => {
    server = await Server.start({ settings: { PULSESTREAM__LIVE__PING_INTERVAL: "1s", PULSESTREAM__LIVE__PONG_TIMEOUT: "900ms" } });
  });
  after(() => server.remove());

  test("one behind a proxy that knows no WebSocket streams over HTTP", async () => {
    const agent = new http.Agent({ keepAlive: true });
    const proxy = http.createServer((request, response) => {
      const { method, headers, url: path } = request;
      const onward = http.request({ port: server.port, method, headers, path, agent }, (answer) => {
        response.writeHead(answer.statusCode, answer.headers);
        answer.pipe(response);
      });
      response.on("close", () => onward.destroy());
      onward.on("error", () => response.destroy());
      request.pipe(onward);
    });
    proxy.on("upgrade", (_, socket) => socket.end("HTTP/1.1 501 Not Implemented\r\ncontent-length: 0\r\n\r\n"));
    await new Promise((go) => proxy.listen(0, "127.0.0.1", go));
    const listener = listen(`http://127.0.0.1:${proxy.address().port}`, { random: () => 0.1 });
    await listener.opened();
    assert.equal(listener.states.find(({ name }) => name === "open").transport, "sse");
    const from = server.posted;
    await server.post(10);
    await hasAll(listener, server, from);
    listener.stream.close();
    proxy.close();
    proxy.closeAllConnections();
    agent.destroy();
  });

  test("a network that swallows everything is noticed by its silence, and nothing is missed", async () => {
    for (const transport of ["websocket", "sse"]) {
      const proxy = await Proxy.before(server.port);
      const listener = listen(proxy.url, { transports: [transport], random: () => 0.1 });
      await listener.opened();
      const from = server.posted;
      await server.post(5);
      await hasAll(listener, server, from);
      proxy.swallow();
      await server.post(5);
      await until("it to notice", () => listener.states.some(({ reason }) => reason?.code === "silent"));
      proxy.release();
      await server.post(5);
      await hasAll(listener, server, from);
      listener.stream.close();
      proxy.close();
    }
  });
});

describe("without anonymous reading", { concurrency: false }, () => {
  let server;
  before(async () => {
    server = await Server.start({ flags: [] });
  });
  after(() => server.remove());

  for (const transport of TRANSPORTS) {
    test(`${transport}: without credentials it ends and says why`, async () => {
      const stream = connect({ url: server.url, transports: [transport] });
      const loop = async () => {
        for await (const batch of stream.batches()) assert.fail(JSON.stringify(batch));
      };
      await assert.rejects(loop(), (error) => error instanceof StreamClosed && error.code === "credentials");
    });
  }
});
