// The real server for tests: the all-in-one process on a folder of its own, killed and started again on the
// same port, with a proxy in front of it that cuts.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomInt, randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const BINARY = process.env.PULSESTREAM_BINARY;
/** Of what takes milliseconds. Longer than the client's longest pause between two attempts, which is 30 s. */
export const PATIENCE_MS = 90_000;

/** Looks at a condition until it holds. */
export async function until(what, condition, withinMs = PATIENCE_MS) {
  const deadline = performance.now() + withinMs;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (performance.now() > deadline) throw new Error(`waited ${withinMs} ms for ${what}`);
    await new Promise((go) => setTimeout(go, 10));
  }
}

/** A port nobody uses, below those the kernel gives outgoing connections: while the server is down it stays free. */
async function freePort() {
  for (;;) {
    const port = randomInt(20_000, 32_000);
    const listener = net.createServer();
    const free = new Promise((tell) => listener.once("error", () => tell(false)).once("listening", () => tell(true)));
    listener.listen(port, "127.0.0.1");
    if (!(await free)) continue;
    listener.close();
    await once(listener, "close");
    return port;
  }
}

/** A pipeline, and one device that counts: its values are 0, 1, 2, … */
export class Server {
  #folder = mkdtempSync(join(tmpdir(), "pulsestream-js-"));
  #settings;
  #flags;
  #child = null;
  #log = "";
  posted = 0;
  deviceId = randomUUID();

  /** `flags`: of the command line; `settings`: environment variables. */
  constructor({ flags = ["--dev"], settings = {} } = {}) {
    assert.ok(BINARY, "PULSESTREAM_BINARY names the program; test/run sets it");
    this.#flags = flags;
    this.#settings = settings;
  }

  static async start(options) {
    const server = new Server(options);
    server.port = await freePort();
    server.url = `http://127.0.0.1:${server.port}`;
    server.key = (await server.run("keys", "create", "--client", "tests")).trim();
    await server.up();
    return server;
  }

  get #environment() {
    return {
      DATA_DIR: join(this.#folder, "data"),
      PULSESTREAM__SERVER__DRAIN_GRACE: "0s",
      PULSESTREAM__LIMITS__DEVICE_RATE: "0",
      PULSESTREAM__LIVE__MAX_LAG: "10m", // a busy machine is no reason for a gap
      ...this.#settings,
    };
  }

  /** One command of the operator's. */
  async run(...args) {
    const child = spawn(BINARY, args, { env: this.#environment, stdio: ["ignore", "pipe", "pipe"] });
    let [out, complaint] = ["", ""];
    child.stdout.on("data", (piece) => (out += piece));
    child.stderr.on("data", (piece) => (complaint += piece));
    const [code] = await once(child, "close");
    assert.equal(code, 0, complaint);
    return out;
  }

  /** Starts the process and waits until it is ready. */
  async up() {
    const args = ["up", "--port", String(this.port), ...this.#flags];
    this.#child = spawn(BINARY, args, { env: this.#environment, stdio: ["ignore", "ignore", "pipe"] });
    this.#child.stderr.on("data", (piece) => (this.#log = (this.#log + piece).slice(-20_000)));
    const ready = async () => {
      assert.equal(this.#child.exitCode, null, this.#log);
      return (await fetch(`${this.url}/readyz`).catch(() => null))?.ok;
    };
    await until("the server to be ready", ready);
  }

  /** Ends the process: `SIGKILL` at once, `SIGTERM` in an orderly way. */
  async down(signal = "SIGKILL") {
    const child = this.#child;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    child.kill(signal);
    await once(child, "exit");
  }

  async remove() {
    await this.down();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** Posts the next values of the counting device, for as long as it takes. Their order is that of the log. */
  async post(count, more = {}) {
    const { deviceId = this.deviceId, eventType = "count", timestamp = Date.now(), metadata } = more;
    const events = Array.from({ length: count }, () => ({
      id: randomUUID(),
      deviceId,
      eventType,
      value: this.posted++,
      timestamp,
      ...(metadata && { metadata }),
    }));
    const body = JSON.stringify(events);
    const headers = { "x-api-key": this.key, "content-type": "application/json", "idempotency-key": randomUUID() };
    await until("the events to be accepted", async () => {
      const request = { method: "POST", headers, body };
      const answer = await fetch(`${this.url}/v1/events/batch`, request).catch(() => null);
      if (answer?.status === 202) return true;
      assert.ok(answer === null || answer.status === 503, `${answer?.status} ${await answer?.text()}`);
      return false;
    });
    return events;
  }
}

/** A TCP proxy: cuts what goes through, or swallows it as a lost network does. */
export class Proxy {
  #pairs = new Set();
  #listener;
  #target;
  #held = false;
  #ended = [];

  static async before(port) {
    const proxy = new Proxy();
    proxy.#target = port;
    proxy.#listener = net.createServer((client) => proxy.#accept(client)).listen(0, "127.0.0.1");
    await once(proxy.#listener, "listening");
    proxy.url = `http://127.0.0.1:${proxy.#listener.address().port}`;
    return proxy;
  }

  #accept(client) {
    const server = net.connect(this.#target, "127.0.0.1");
    const pair = [client, server];
    this.#pairs.add(pair);
    const end = () => {
      if (this.#held) return this.#ended.push(end);
      this.#pairs.delete(pair);
      pair.forEach((socket) => socket.destroy());
    };
    for (const [from, to] of [pair, [server, client]]) {
      from.on("error", end).on("close", end);
      from.on("data", (piece) => {
        if (!this.#held) to.write(piece);
      });
    }
  }

  /** From now on nothing gets through, and neither side hears that the other has gone. */
  swallow() {
    this.#held = true;
  }

  /** What was swallowed is lost; what comes from now on gets through. */
  release() {
    this.#held = false;
    this.#ended.splice(0).forEach((end) => end());
    this.cut();
  }

  /** Every connection, in the middle of whatever is under way. */
  cut() {
    const pairs = [...this.#pairs];
    pairs.flat().forEach((socket) => socket.resetAndDestroy());
    return pairs.length;
  }

  close() {
    this.cut();
    this.#listener.close();
  }
}
