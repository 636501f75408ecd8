// The session alone: time is a number, the network a few lines below. Most of the client's promises are
// tried here, in thousands of orders no real network would bring about in a test's time.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Session } from "../pulsestream.js";

const hello = (cursor, recovered = null, more = {}) => ({ type: "hello", cursor, recovered, heartbeatMs: 25_000, ...more });
const found = (actions, type) => actions.filter((action) => action.type === type);
const only = (actions, type) => {
  const all = found(actions, type);
  assert.equal(all.length, 1, `${type} in ${JSON.stringify(actions)}`);
  return all[0];
};
const state = (actions) => found(actions, "state").at(-1)?.state;

function session(options = {}) {
  return new Session({ transports: ["websocket", "sse", "poll"], random: () => 1, ...options });
}

/** A session with an open connection; its attempt. */
function opened(options = {}) {
  const one = session(options);
  const { attempt } = only(one.start(0), "open");
  one.receive(0, attempt, hello("c0"));
  return { one, attempt };
}

test("pauses grow from attempt to attempt, up to a cap, and are random below it", () => {
  const pauses = (random) => {
    const one = session({ random });
    let attempt = only(one.start(0), "open").attempt;
    return Array.from({ length: 8 }, () => {
      const { retryInMs } = state(one.answered(0, attempt, { status: 0 }));
      attempt = only(one.tick(one.nextAt), "open").attempt;
      return retryInMs;
    });
  };
  assert.deepEqual(pauses(() => 1), [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
  assert.deepEqual(pauses(() => 0.25), [250, 500, 1_000, 2_000, 4_000, 7_500, 7_500, 7_500]);
});

test("a connection that lived makes pauses short again, one that did not does not", () => {
  const { one, attempt } = opened();
  assert.equal(state(one.closed(100, attempt, 1006)).retryInMs, 1_000);
  const second = only(one.tick(one.nextAt), "open").attempt;
  one.receive(2_000, second, hello("c1", true));
  assert.equal(state(one.closed(2_100, second, 1006)).retryInMs, 2_000);
  const third = only(one.tick(one.nextAt), "open").attempt;
  one.receive(5_000, third, hello("c1", true));
  assert.equal(state(one.closed(10_000, third, 1006)).retryInMs, 1_000);
});

test("the server's own time to come back is kept to the millisecond, with its place", () => {
  const { one, attempt } = opened();
  const actions = one.receive(50, attempt, { type: "goaway", reconnectAfterMs: 3_217, cursor: "c9" });
  assert.equal(only(actions, "drop").attempt, attempt);
  assert.equal(state(actions).retryInMs, 3_217);
  assert.deepEqual(one.tick(3_266), []);
  assert.equal(only(one.tick(3_267), "open").cursor, "c9");
});

test("a silent socket is asked, and given up when it does not answer", () => {
  const { one, attempt } = opened();
  assert.equal(one.nextAt, 25_000);
  assert.deepEqual(only(one.tick(25_000), "send").frame, { type: "ping" });
  one.receive(25_100, attempt, { type: "pong" });
  assert.deepEqual(only(one.tick(50_100), "send").frame, { type: "ping" });
  assert.deepEqual(one.tick(60_099), []);
  assert.equal(state(one.tick(60_100)).reason.code, "silent");
});

test("any frame is a sign of life", () => {
  const { one, attempt } = opened();
  one.tick(25_000);
  one.receive(30_000, attempt, { type: "events", sub: "main", cursor: "c1", events: [] });
  assert.equal(one.nextAt, 55_000);
});

test("server-sent events are given up when a heartbeat and some more have passed", () => {
  const { one, attempt } = opened({ transports: ["sse"] });
  one.receive(20_000, attempt, { type: "heard" });
  assert.deepEqual(one.tick(54_999), []);
  assert.equal(state(one.tick(55_000)).reason.code, "silent");
});

test("a change of the network is not slept through", () => {
  const { one, attempt } = opened();
  assert.deepEqual(only(one.networkChanged(1_000, false), "send").frame, { type: "ping" });
  const lost = one.tick(4_000);
  assert.equal(state(lost).name, "waiting");
  assert.equal(only(one.networkChanged(4_100, true), "open").cursor, "c0");
  assert.deepEqual(one.receive(4_200, attempt, { type: "pong" }), []);
});

test("what a close code asks for is done", () => {
  const after = (code) => {
    const { one, attempt } = opened();
    return state(one.closed(9_000, attempt, code));
  };
  for (const code of [1000, 1001, 1006, 1012, 4008, 4777]) assert.equal(after(code).name, "waiting", code);
  assert.equal(after(4009).retryInMs, 10_000);
  assert.deepEqual([after(4010).name, after(4010).reason.code], ["closed", "revoked"]);
  assert.deepEqual([after(4003).name, after(4003).reason.code], ["closed", "forbidden"]);
  assert.deepEqual([after(4400).name, after(4400).reason.code], ["closed", "refused"]);
  assert.deepEqual([after(4001).name, after(4001).reason.code], ["closed", "credentials"]);
});

test("server-sent events name the code in goaway", () => {
  const { one, attempt } = opened({ transports: ["sse"] });
  assert.equal(state(one.receive(10, attempt, { type: "goaway", code: 4010, reason: "…" })).reason.code, "revoked");
});

test("a socket that does not open is asked about in plain HTTP, and only one with a server falls back", () => {
  const one = session();
  let attempt = only(one.start(0), "open").attempt;
  const fail = (answer) => {
    assert.equal(only(one.unopened(one.nextAt, attempt), "probe").attempt, attempt);
    const { retryInMs } = state(one.answered(0, attempt, answer));
    const next = only(one.tick(one.nextAt), "open");
    attempt = next.attempt;
    return [next.transport, retryInMs];
  };
  for (let times = 0; times < 5; times += 1) assert.equal(fail({ status: 0 })[0], "websocket");
  assert.deepEqual(fail({ status: 503, retryAfterMs: 60_000 }), ["websocket", 60_000]);
  assert.equal(fail({ status: 200 })[0], "websocket");
  assert.equal(fail({ status: 200 })[0], "sse");
});

test("a fallback is left again at the next reconnect a minute later, and falls back at once if it must", () => {
  const one = session({ random: () => 0 });
  let attempt = only(one.start(0), "open").attempt;
  const next = (now) => {
    const open = only(one.tick(now), "open");
    attempt = open.attempt;
    return open.transport;
  };
  one.answered(0, attempt, { status: 200 });
  next(1);
  one.answered(2, attempt, { status: 200 });
  assert.equal(next(3), "sse");
  one.receive(4, attempt, hello("c0"));
  one.closed(30_000, attempt, 1006);
  assert.equal(next(30_001), "sse");
  one.receive(30_002, attempt, hello("c0", true));
  one.closed(70_000, attempt, 1006);
  assert.equal(next(70_001), "websocket");
  one.answered(70_002, attempt, { status: 200 });
  assert.equal(next(70_003), "sse");
  one.receive(70_004, attempt, hello("c0", true));
  one.closed(190_000, attempt, 1006);
  assert.equal(next(190_001), "sse", "twice as long the second time");
});

test("a stream somebody gathers instead of passing it on is left for the next transport", () => {
  const one = session({ transports: ["sse", "poll"] });
  one.start(0);
  assert.equal(state(one.tick(15_000)).reason.code, "timeout");
  one.tick(one.nextAt);
  one.tick(one.nextAt);
  assert.equal(only(one.tick(one.nextAt), "open").transport, "poll");
});

test("a poll that stands in for something better lets it have another try", () => {
  const one = session({ transports: ["sse", "poll"], random: () => 0 });
  let attempt = only(one.start(0), "open").attempt;
  one.answered(0, attempt, { status: 502 });
  attempt = only(one.tick(1), "open").attempt;
  one.answered(2, attempt, { status: 502 });
  attempt = only(one.tick(3), "open").attempt;
  one.receive(4, attempt, hello("c5"));
  for (let now = 20_000; now < 60_000; now += 20_000) one.receive(now, attempt, { type: "heard" });
  const actions = one.tick(60_002);
  assert.equal(only(actions, "drop").attempt, attempt);
  const { transport, cursor } = only(actions, "open");
  assert.deepEqual([transport, cursor], ["sse", "c5"]);
});

test("a query the server refuses ends the stream, with the server's words", () => {
  const one = session();
  const { attempt } = only(one.start(0), "open");
  const actions = one.answered(1, attempt, { status: 400, code: "bad_request", detail: "deviceId: must be a UUID" });
  assert.deepEqual(state(actions), { name: "closed", reason: { code: "refused", detail: "deviceId: must be a UUID" } });
  assert.equal(one.nextAt, Infinity);
});

test("a token is fetched before the first connection and again before it expires", () => {
  const one = session({ renewable: true });
  const actions = one.start(0);
  assert.equal(found(actions, "open").length, 0);
  only(actions, "token");
  const { attempt, token } = only(one.gotToken(10, "t1", 300_000), "open");
  assert.equal(token, "t1");
  one.receive(20, attempt, hello("c0"));
  for (let now = 25_020; now < 240_010; now += 25_000) {
    one.tick(now);
    one.receive(now, attempt, { type: "pong" });
  }
  only(one.tick(240_010), "token");
  assert.deepEqual(one.tick(240_011), [], "once");
  assert.deepEqual(only(one.gotToken(240_100, "t2", 300_000), "send").frame, { type: "auth", token: "t2" });
});

test("a refused token is fetched anew once, and not for ever", () => {
  const one = session({ renewable: true });
  one.start(0);
  let { attempt } = only(one.gotToken(0, "t1", 300_000), "open");
  const actions = one.answered(10, attempt, { status: 401 });
  only(actions, "token");
  ({ attempt } = only(one.gotToken(20, "t2", 300_000), "open"));
  assert.equal(state(one.answered(30, attempt, { status: 401 })).reason.code, "credentials");
});

test("a connection that ends with an old token goes on with the one that was fetched meanwhile", () => {
  const one = session({ renewable: true, transports: ["sse"] });
  one.start(0);
  const { attempt } = only(one.gotToken(0, "t1", 20_000), "open");
  one.receive(0, attempt, hello("c0"));
  only(one.tick(16_000), "token");
  one.gotToken(16_100, "t2", 20_000);
  const actions = one.receive(20_000, attempt, { type: "goaway", code: 4001, reason: "…" });
  assert.equal(only(actions, "open").token, "t2");
  assert.equal(found(actions, "token").length, 0);
});

test("without a token for now it tries again, without one for ever it ends", () => {
  const one = session({ renewable: true });
  one.start(0);
  assert.equal(state(one.noToken(1, new Error("no network"))).reason.code, "token");
  only(one.tick(one.nextAt), "token");
  const refused = Object.assign(new Error("unknown key"), { status: 401 });
  assert.deepEqual(state(one.noToken(2, refused)).reason, { code: "credentials", detail: "unknown key" });
});

test("a token that never comes is not waited for", () => {
  const one = session({ renewable: true });
  one.start(0);
  assert.equal(state(one.tick(15_000)).reason.code, "timeout");
  only(one.tick(one.nextAt), "token");
  assert.equal(only(one.gotToken(17_000, "t1", 300_000), "open").transport, "websocket");
});

test("a cursor that cannot be gone on from is a gap", () => {
  const one = session({ cursor: "old" });
  const { attempt, cursor } = only(one.start(0), "open");
  assert.equal(cursor, "old");
  const actions = one.receive(1, attempt, hello("c0", false, { reason: "expired" }));
  assert.deepEqual(only(actions, "gap").gap, { reason: "expired", missed: null, cursor: "c0" });
});

test("a paused stream has no connection and goes on at its place", () => {
  const { one, attempt } = opened();
  one.receive(1, attempt, { type: "events", cursor: "c3", events: [{}] });
  only(one.pause(), "drop");
  assert.deepEqual([one.nextAt, one.pause(), one.tick(1e9)], [Infinity, [], []]);
  assert.deepEqual(one.receive(2, attempt, { type: "events", cursor: "c4", events: [{}] }), []);
  assert.equal(only(one.resume(3), "open").cursor, "c3");
});

test("after its end nothing comes of anything", () => {
  const { one, attempt } = opened({ renewable: false });
  assert.equal(state(one.close()).reason.code, "closed");
  const late = [
    one.receive(1, attempt, { type: "events", cursor: "c1", events: [{}] }),
    one.closed(1, attempt, 1006),
    one.unopened(1, attempt),
    one.answered(1, attempt, { status: 0 }),
    one.gotToken(1, "t", 1),
    one.noToken(1, new Error()),
    one.networkChanged(1, true),
    one.resume(1),
    one.pause(),
    one.close(),
    one.tick(1e9),
  ];
  assert.deepEqual(late.flat(), []);
});

// --- any order of anything ---

/** Pseudo-random numbers of a seed (mulberry32). */
function numbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * A server as docs/live.md has it: event `n` of the log is the number `n`, a cursor is the next one. Each
 * connection has a pipe of frames that are under way; a cut loses its tail, and what is left may still
 * arrive when the client has long begun another attempt.
 */
class World {
  constructor(seed) {
    this.random = numbers(seed);
    this.one = new Session({
      transports: ["websocket", "sse", "poll"],
      renewable: this.chance(0.5),
      cursor: this.chance(0.3) ? "earliest" : null,
      random: this.random,
    });
    [this.now, this.log, this.from, this.next] = [0, 0, null, null];
    [this.pipes, this.record, this.gaps] = [[], [], []];
    this.do(this.one.start(0));
  }

  chance(share) {
    return this.random() < share;
  }

  below(count) {
    return Math.floor(this.random() * count);
  }

  do(actions) {
    for (const action of actions) {
      if (action.type === "open") {
        const pipe = { attempt: action.attempt, at: null, frames: [], live: !this.chance(0.2) };
        this.pipes.push(pipe);
        if (pipe.live) this.answer(pipe, action.cursor);
        else pipe.refusal = this.chance(0.5) ? { status: 0 } : { status: 200 };
      } else if (action.type === "events") {
        for (const event of action.events) this.hears(event);
        this.stands(action.cursor);
      } else if (action.type === "gap") this.gaps.push([this.next, Number(action.gap.cursor)]);
      if (action.type === "gap") this.next = Number(action.gap.cursor);
      if (action.type === "token") this.tokenWanted = true;
    }
  }

  /** The record's only rule: the next number, whatever happened. */
  hears(event) {
    assert.equal(event, this.next, `after ${this.record.slice(-3)}`);
    this.record.push(event);
    this.next = event + 1;
  }

  stands(cursor) {
    if (this.next === null) this.from = this.next = Number(cursor);
    assert.equal(Number(cursor), this.next, "the cursor is that of what was handed out");
  }

  answer(pipe, cursor) {
    const lost = cursor !== null && cursor !== "earliest" && this.chance(0.05);
    pipe.at = cursor === null || lost ? this.log : cursor === "earliest" ? 0 : Number(cursor);
    const recovered = cursor === null ? null : !lost;
    pipe.frames.push({ type: "hello", cursor: String(pipe.at), recovered, reason: lost ? "expired" : undefined });
  }

  serve(pipe) {
    if (pipe.at === null || !pipe.live) return;
    if (this.chance(0.03)) {
      pipe.at = this.log;
      pipe.frames.push({ type: "gap", sub: "main", reason: "slow", missed: null, cursor: String(pipe.at) });
    } else if (this.chance(0.05)) {
      pipe.frames.push({ type: "goaway", reconnectAfterMs: this.below(5_000), cursor: String(pipe.at) });
      pipe.live = false;
    } else {
      const count = Math.min(this.log - pipe.at, this.below(4));
      const events = Array.from({ length: count }, (_, index) => pipe.at + index);
      pipe.at += count;
      pipe.frames.push({ type: "events", sub: "main", cursor: String(pipe.at), events });
    }
  }

  step() {
    this.now += this.below(1_000);
    this.log += this.below(4);
    // Mostly the newest, now and then one that the client has given up.
    const back = this.chance(0.2) ? this.below(Math.min(3, this.pipes.length)) : 0;
    const pipe = this.pipes[this.pipes.length - 1 - back];
    const what = this.random();
    if (pipe && what < 0.4) this.serve(pipe);
    else if (pipe && what < 0.85) {
      const frame = pipe.frames.shift();
      if (frame) this.do(this.one.receive(this.now, pipe.attempt, frame));
      else if (pipe.refusal) this.do(this.one.answered(this.now, pipe.attempt, pipe.refusal));
      else if (!pipe.live) this.do(this.one.closed(this.now, pipe.attempt, 1006));
    } else if (pipe && what < 0.87) {
      pipe.live = false;
      pipe.frames.splice(this.below(pipe.frames.length + 1));
    } else if (what < 0.88) this.do(this.one.networkChanged(this.now, this.chance(0.5)));
    else if (what < 0.89) this.do(this.one.pause());
    else if (what < 0.94) this.do(this.one.resume(this.now));
    else if (what < 0.98 && this.tokenWanted) {
      this.tokenWanted = false;
      const given = this.chance(0.8);
      this.do(given ? this.one.gotToken(this.now, `t${this.now}`, 20_000) : this.one.noToken(this.now, new Error("no")));
    } else if (what < 0.99) this.now = Math.min(Math.max(this.now, this.one.nextAt), this.now + 60_000);
    this.do(this.one.tick(this.now));
  }
}

test("in any order of frames, cuts and late arrivals each event comes once and in order, or a gap is told", () => {
  const worlds = 2_000;
  let [events, gaps, attempts] = [0, 0, 0];
  for (let seed = 1; seed <= worlds; seed += 1) {
    const world = new World(seed);
    try {
      for (let step = 0; step < 500; step += 1) world.step();
    } catch (error) {
      error.message = `seed ${seed}: ${error.message}`;
      throw error;
    }
    events += world.record.length;
    gaps += world.gaps.length;
    attempts += world.pipes.length;
  }
  // Worlds in which nothing happens would prove nothing.
  assert.ok(events > 20 * worlds && gaps > worlds / 2 && attempts > 3 * worlds, `${events} ${gaps} ${attempts}`);
});

test("newest values that come in parts have no place before the last part", () => {
  const one = session();
  const { attempt } = only(one.start(0), "open");
  one.receive(0, attempt, hello(null, null, { snapshot: true }));
  const part = (value, cursor) => only(one.receive(1, attempt, { type: "events", events: [{ value }], cursor }), "events");
  assert.deepEqual(part(1, null), { type: "events", events: [{ value: 1 }], cursor: null });
  one.closed(2, attempt, 1006);
  const again = only(one.tick(one.nextAt), "open");
  assert.equal(again.cursor, null, "it begins anew");
  one.receive(3, again.attempt, hello(null, null, { snapshot: true }));
  const last = one.receive(4, again.attempt, { type: "events", events: [{ value: 2 }], cursor: "c7" });
  assert.equal(only(last, "events").cursor, "c7");
  const later = one.receive(5, again.attempt, { type: "events", events: [{ value: 3 }], cursor: null });
  assert.equal(only(later, "events").cursor, "c7");
  assert.equal(one.cursor, "c7");
});
