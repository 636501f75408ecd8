/*
 * PulseStream: live events in a browser or in Node >= 20. One module, no dependency.
 *
 *   const stream = connect({ url, getToken, onEvent: show, onGap: loadAgain });
 *
 * Three parts. `Session` decides: a state machine without clock, timer or network, so that a test can lead
 * it through any order of events. A transport (framed WebSocket, server-sent events over `fetch`, long poll)
 * turns what it hears into the same frames. `Client` stands between them and has the timers.
 *
 * The promise rests on one rule: the cursor moves with the events it covers, in one step, and a frame of an
 * attempt that was given up is not looked at. So wherever a connection breaks, the next one begins behind
 * the last event that was handed out.
 */

/** Pauses between attempts: random, up to this and twice as much each time, up to the cap. */
const BACKOFF_MS = 1_000;
const BACKOFF_CAP_MS = 30_000;
/** By close code: not sooner than this, up to twice as late. Too many are open; too many come at once. */
const AT_LEAST_MS = { 4009: 5_000, 1013: 1_000 };
/** An attempt that has heard nothing for so long has failed. */
const CONNECT_MS = 15_000;
/** Until the server has told its own. */
const HEARTBEAT_MS = 25_000;
/** How long after a heartbeat was due, or a question was asked, silence is taken for an end. */
const GRACE_MS = 10_000;
/** The same, when the system has just said that the network changed. */
const HURRIED_GRACE_MS = 3_000;
/** A connection that lived so long was a good one: pauses begin anew. */
const STABLE_MS = 5_000;
/** Failures of a transport, with a server that does answer, after which the next one is tried. */
const STUMBLES = 2;
/** When the better transport is tried again; twice as long each time it fails. */
const CLIMB_MS = 60_000;
const CLIMB_CAP_MS = 3_600_000;
/** A token is fetched again when this share of its life is over, but not more often than every ten seconds. */
const RENEW_AT = 0.8;
const RENEW_MIN_MS = 10_000;
/** The length of a long poll, its most events, and the least time between two of them. */
const POLL_WAIT_S = 25;
const POLL_LIMIT = 1_000;
const POLL_SPACING_MS = 100;
/** Characters of one server-sent line; the server's own bound of an event is far below. */
const MAX_LINE = 4 << 20;
/** Events that wait for a slow `batches()` loop; beyond, the connection is given up and its place kept. */
const QUEUE_EVENTS = 10_000;
/** A timer takes no more. */
const MAX_TIMER_MS = 2 ** 31 - 1;

const TRANSPORTS = ["websocket", "sse", "poll"];

/** What ends a stream for good, by close code; other codes are answered with another attempt. */
const FINAL_CLOSE = {
  4003: ["forbidden", "this token may not read that"],
  4010: ["revoked", "the API key was revoked or has expired"],
  4400: ["refused", "the server did not understand this client"],
};

/** Opens a stream of live events. The options are described in `pulsestream.d.ts`. */
export function connect(options = {}) {
  return new Client(options);
}

/** Why a stream ended for good; what a `batches()` loop throws. */
export class StreamClosed extends Error {
  constructor(reason) {
    super(reason.detail);
    this.name = "StreamClosed";
    this.code = reason.code;
  }
}

// --- the client: timers, handlers, one transport at a time ---

class Client {
  #options;
  #session;
  #place; // for the transports: where, and with what
  #cursor;
  #state = { name: "connecting" };
  #connection = null;
  #timer;
  #actions = [];
  #running = false;
  #queue = null; // of a stream without handlers
  #pausedByCaller = false;
  #unlisten = () => {};

  constructor(options) {
    const place = placeOf(options);
    const renewable = options.getToken !== undefined || options.apiKey !== undefined;
    this.#options = options;
    if (!options.onEvent && !options.onEvents) {
      this.#queue = { items: [], events: 0, held: false, taken: false, wake: () => {} };
    }
    this.#place = place;
    this.#cursor = options.cursor ?? null;
    this.#session = new Session({
      cursor: this.#cursor,
      transports: transportsOf(options, place),
      token: options.token ?? null,
      renewable,
      random: options.random,
    });
    this.#listen();
    // Not at once: handlers may want the client that `connect` is about to return.
    queueMicrotask(() => this.#do(this.#session.start(now())));
  }

  /** The place after everything that was handed out: give it to `connect` to go on there. */
  get cursor() {
    return this.#cursor;
  }

  get state() {
    return this.#state;
  }

  /** Ends the stream. No handler is called any more, but for `onState`. */
  close() {
    this.#do(this.#session.close());
  }

  /** Gives the connection up and keeps the place. */
  pause() {
    this.#pausedByCaller = true;
    this.#do(this.#session.pause());
  }

  /** Goes on where `pause` left off. */
  resume() {
    this.#pausedByCaller = false;
    this.#do(this.#session.resume(now()));
  }

  /**
   * What comes, as `{ events, cursor }` or `{ gap, cursor }`, for a loop that is done with one before it
   * takes the next. A loop that does not keep up makes the stream pause, and loses nothing.
   */
  async *batches() {
    const queue = this.#queue;
    if (!queue) throw new Error("a stream with onEvent or onEvents has no batches");
    if (queue.taken) throw new Error("there is a loop over these batches already");
    queue.taken = true;
    try {
      for (;;) {
        const item = queue.items.shift();
        if (item) {
          queue.events -= item.events?.length ?? 0;
          yield item;
        } else if (this.#state.name === "closed") {
          if (this.#state.reason.code === "closed") return;
          throw new StreamClosed(this.#state.reason);
        } else {
          this.#release(queue);
          await new Promise((wake) => (queue.wake = wake));
        }
      }
    } finally {
      queue.taken = false;
    }
  }

  /** The loop has caught up. */
  #release(queue) {
    if (!queue.held) return;
    queue.held = false;
    if (!this.#pausedByCaller) this.#do(this.#session.resume(now()));
  }

  /** One action after the other, also when a handler asks for more of them. */
  #do(actions) {
    this.#actions.push(...actions);
    if (this.#running) return;
    this.#running = true;
    while (this.#actions.length > 0) this.#act(this.#actions.shift());
    this.#running = false;
    clearTimeout(this.#timer);
    const at = this.#session.nextAt;
    if (at === Infinity) return;
    const pause = Math.min(Math.max(0, at - now()), MAX_TIMER_MS);
    this.#timer = setTimeout(() => this.#do(this.#session.tick(now())), pause);
  }

  #act(action) {
    switch (action.type) {
      case "open":
        this.#connection = TRANSPORT[action.transport](
          { ...this.#place, token: action.token, cursor: action.cursor },
          this.#ears(action.attempt),
        );
        return;
      case "drop":
        this.#connection?.close();
        this.#connection = null;
        return;
      case "send":
        this.#connection?.send?.(action.frame);
        return;
      case "probe":
        probe({ ...this.#place, token: action.token }).then((answer) =>
          this.#do(this.#session.answered(now(), action.attempt, answer)),
        );
        return;
      case "token":
        this.#fetchToken();
        return;
      case "events":
        this.#handOut(action);
        return;
      case "gap":
        if (this.#session.over) return;
        this.#cursor = action.gap.cursor;
        this.#enqueue({ gap: action.gap, cursor: action.gap.cursor });
        this.#call(this.#options.onGap, action.gap);
        return;
      case "state":
        this.#state = action.state;
        if (action.state.name === "closed") this.#unlisten();
        this.#call(this.#options.onState, action.state);
        this.#queue?.wake();
    }
  }

  /** A handler may end the stream: then nothing more is handed out, and the place stays where it was. */
  #handOut({ events, cursor }) {
    const { onEvent, onEvents } = this.#options;
    const session = this.#session;
    if (events.length > 0) {
      if (!session.over) this.#call(onEvents, events, cursor);
      for (const event of events) if (!session.over) this.#call(onEvent, event);
      if (!session.over) this.#enqueue({ events, cursor });
    }
    if (!session.over) this.#cursor = cursor;
  }

  #enqueue(item) {
    const queue = this.#queue;
    if (!queue) return;
    queue.items.push(item);
    queue.events += item.events?.length ?? 0;
    if (queue.events > QUEUE_EVENTS && !queue.held) {
      queue.held = true;
      this.#do(this.#session.pause());
    }
    queue.wake();
  }

  /** A handler that throws is heard of where nobody catches, and the stream goes on. */
  #call(handler, ...values) {
    try {
      handler?.(...values);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  async #fetchToken() {
    const { getToken, apiKey } = this.#options;
    try {
      const given = getToken ? await getToken() : await tokenFor(apiKey, this.#place);
      const { token, expiresAt } = typeof given === "string" ? { token: given } : given;
      const lifeMs = expiresAt === undefined ? Infinity : expiresAt - Date.now();
      this.#do(this.#session.gotToken(now(), token, lifeMs));
    } catch (error) {
      this.#do(this.#session.noToken(now(), error));
    }
  }

  /** What a transport tells, of this attempt. */
  #ears(attempt) {
    const session = this.#session;
    return {
      frame: (frame) => this.#do(session.receive(now(), attempt, frame)),
      closed: (code) => this.#do(session.closed(now(), attempt, code)),
      unopened: () => this.#do(session.unopened(now(), attempt)),
      answered: (answer) => this.#do(session.answered(now(), attempt, answer)),
      cursor: () => session.cursor,
      token: () => session.useToken(),
    };
  }

  /** The system knows of a lost network long before a heartbeat is missed. */
  #listen() {
    if (typeof globalThis.addEventListener !== "function") return;
    const changed = ({ type }) => this.#do(this.#session.networkChanged(now(), type === "online"));
    globalThis.addEventListener("online", changed);
    globalThis.addEventListener("offline", changed);
    this.#unlisten = () => {
      globalThis.removeEventListener("online", changed);
      globalThis.removeEventListener("offline", changed);
    };
  }
}

// --- the session: what to do next ---

/**
 * The life of one stream. Each input takes the time in milliseconds of any steady clock, and returns what is
 * to be done, in order:
 *
 * - `{ type: "open", attempt, transport, cursor, token }`, `{ type: "drop", attempt }`: a connection
 * - `{ type: "send", attempt, frame }`: a command on it
 * - `{ type: "probe", attempt, token }`: ask over plain HTTP why a WebSocket did not open
 * - `{ type: "token" }`: fetch one
 * - `{ type: "events", events, cursor }`, `{ type: "gap", gap }`, `{ type: "state", state }`: tell
 *
 * `tick` is to be called at `nextAt`. For tests; pages use `connect`.
 */
export class Session {
  /** The place behind everything that was told. */
  cursor;
  #transports;
  #renewable;
  #random;
  #token;
  #used = null; // the token the server knows of
  #fetching = false;
  #phase = "idle"; // connecting, open, waiting, paused, closed
  #attempt = 0;
  #asked = false; // an `open` of this attempt was told
  #at = Infinity; // when the phase has taken too long, or the pause is over
  #rung = 0; // which of the transports
  #stumbles = 0;
  #climbAt = Infinity;
  #climbMs = CLIMB_MS;
  #failures = 0;
  #refusals = 0; // tokens refused in a row
  #openedAt = 0;
  #heardAt = 0;
  #answerBy = Infinity; // a question was asked
  #heartbeatMs = HEARTBEAT_MS;
  #actions = [];

  constructor({ cursor = null, transports, token = null, renewable = false, random = Math.random }) {
    this.cursor = cursor;
    this.#transports = transports;
    this.#renewable = renewable;
    this.#random = random;
    this.#token = token === null || renewable ? null : { value: token, renewAt: Infinity };
  }

  /** Whether it has ended for good. */
  get over() {
    return this.#phase === "closed";
  }

  /** When `tick` is to be called. */
  get nextAt() {
    if (this.#phase === "connecting" || this.#phase === "waiting") return this.#at;
    if (this.#phase !== "open") return Infinity;
    const renewAt = this.#fetching ? Infinity : (this.#token?.renewAt ?? Infinity);
    const climbAt = this.#transport === "poll" && this.#rung > 0 ? this.#climbAt : Infinity;
    return Math.min(this.#silentAt, renewAt, climbAt);
  }

  start(now) {
    this.#begin(now);
    return this.#done();
  }

  tick(now) {
    if (now >= this.nextAt) {
      if (this.#phase === "waiting") this.#begin(now);
      else if (this.#phase === "connecting") this.#tooLate(now);
      else this.#look(now);
    }
    return this.#done();
  }

  /** A token, good for so long. */
  gotToken(now, value, lifeMs) {
    this.#fetching = false;
    if (this.over) return [];
    this.#token = { value, renewAt: now + Math.max(RENEW_MIN_MS, lifeMs * RENEW_AT) };
    if (this.#phase === "connecting" && !this.#asked) this.#open();
    else if (this.#phase === "open" && this.#transport === "websocket") {
      const frame = { type: "auth", token: this.useToken() };
      this.#tell({ type: "send", attempt: this.#attempt, frame });
    }
    return this.#done();
  }

  /** The token of this moment, for a request. */
  useToken() {
    this.#used = this.#token?.value ?? null;
    return this.#used;
  }

  /** There is no token now; an error with `status` 401 or 403 says that there will be none. */
  noToken(now, error) {
    this.#fetching = false;
    if (this.over) return [];
    const detail = error?.message ?? String(error);
    if (error?.status === 401) this.#end({ code: "credentials", detail });
    else if (error?.status === 403) this.#end({ code: "forbidden", detail });
    else if (this.#phase === "connecting" && !this.#asked) this.#retry(now, { code: "token", detail });
    else if (this.#token) this.#token.renewAt = now + RENEW_MIN_MS;
    return this.#done();
  }

  /** A frame; also `{ type: "heard" }` for a sign of life that says nothing. */
  receive(now, attempt, frame) {
    if (attempt !== this.#attempt || !this.#connected) return [];
    this.#heardAt = now;
    this.#answerBy = Infinity;
    if (frame.type === "hello") this.#hello(now, frame);
    else if (this.#phase === "open") this.#take(now, frame);
    return this.#done();
  }

  /** A connection that was open has ended. */
  closed(now, attempt, code) {
    if (attempt !== this.#attempt || !this.#connected) return [];
    this.#ended(now, code);
    return this.#done();
  }

  /** A WebSocket did not open. A browser does not say why: it is asked for in plain HTTP. */
  unopened(now, attempt) {
    if (attempt !== this.#attempt || this.#phase !== "connecting") return [];
    this.#probe();
    return this.#done();
  }

  /** An HTTP answer instead of a stream; status 0: none at all. */
  answered(now, attempt, { status, code, detail, retryAfterMs = 0 }) {
    if (attempt !== this.#attempt || !this.#connected) return [];
    const word = { 0: "network", 200: "upgrade" }[status] ?? `http_${status}`;
    const reason = { code: code ?? word, detail };
    if (status === 400) this.#end({ code: "refused", detail: detail ?? "the server refused the query" });
    else if (status === 401) this.#refused(now, detail);
    else if (status === 403) this.#end({ code: "forbidden", detail: detail ?? FINAL_CLOSE[4003][1] });
    else {
      // It answers, and this way in is closed: a proxy may be why.
      if (status !== 0 && status !== 429 && status !== 503) this.#stumble(now);
      this.#retry(now, reason, retryAfterMs);
    }
    return this.#done();
  }

  /** The system says that the network came or went. */
  networkChanged(now, online) {
    if (this.#phase === "waiting" && online) this.#begin(now);
    else if (this.#phase === "open") {
      if (this.#transport === "websocket") this.#ask(now, HURRIED_GRACE_MS);
      else if (online) {
        this.#drop();
        this.#begin(now);
      }
    }
    return this.#done();
  }

  pause() {
    if (this.over || this.#phase === "paused") return [];
    this.#drop();
    this.#become("paused", { name: "paused" });
    return this.#done();
  }

  resume(now) {
    if (this.#phase === "paused") this.#begin(now);
    return this.#done();
  }

  close() {
    if (!this.over) this.#end({ code: "closed", detail: "closed by this client" });
    return this.#done();
  }

  get #transport() {
    return this.#transports[this.#rung];
  }

  get #connected() {
    return this.#asked && (this.#phase === "connecting" || this.#phase === "open");
  }

  /** When silence means that the connection is dead, or worth a question. */
  get #silentAt() {
    if (this.#answerBy < Infinity) return this.#answerBy;
    const quiet = this.#heardAt + this.#heartbeatMs;
    return this.#transport === "websocket" ? quiet : quiet + GRACE_MS;
  }

  #begin(now) {
    if (this.#rung > 0 && now >= this.#climbAt) {
      this.#rung = 0;
      this.#stumbles = STUMBLES - 1;
    }
    this.#attempt += 1;
    this.#asked = false;
    this.#at = now + CONNECT_MS;
    this.#become("connecting", { name: "connecting", transport: this.#transport });
    if (this.#renewable && (this.#token === null || now >= this.#token.renewAt)) this.#fetch();
    else this.#open();
  }

  #open() {
    this.#asked = true;
    this.#tell({
      type: "open",
      attempt: this.#attempt,
      transport: this.#transport,
      cursor: this.cursor,
      token: this.useToken(),
    });
  }

  #probe() {
    this.#tell({ type: "probe", attempt: this.#attempt, token: this.useToken() });
  }

  #fetch() {
    if (!this.#fetching) this.#tell({ type: "token" });
    this.#fetching = true;
  }

  #hello(now, { cursor, recovered, reason, heartbeatMs }) {
    if (this.#phase !== "connecting") return;
    this.#openedAt = now;
    this.#heartbeatMs = heartbeatMs ?? HEARTBEAT_MS;
    this.#stumbles = 0;
    this.#refusals = 0;
    if (this.#rung === 0) this.#climbMs = CLIMB_MS;
    this.#become("open", { name: "open", transport: this.#transport, recovered });
    if (recovered === false) this.#gap({ reason, missed: null, cursor });
    else this.#move([], cursor);
  }

  #take(now, frame) {
    const mine = frame.sub === undefined || frame.sub === "main";
    if (frame.type === "events" && mine) this.#move(frame.events, frame.cursor);
    else if (frame.type === "gap" && mine) this.#gap(frame);
    else if (frame.type === "goaway") {
      if (frame.cursor) this.#move([], frame.cursor);
      if (FINAL_CLOSE[frame.code] || frame.code === 4001) this.#ended(now, frame.code);
      else this.#leave(now, frame.reconnectAfterMs);
    }
  }

  /** Newest values that come in parts have a place together: it comes with the last part. */
  #move(events, cursor) {
    this.cursor = cursor ?? this.cursor;
    this.#tell({ type: "events", events, cursor: this.cursor });
  }

  #gap({ reason, missed, cursor }) {
    this.cursor = cursor;
    this.#tell({ type: "gap", gap: { reason, missed: missed ?? null, cursor } });
  }

  #ended(now, code) {
    // Right after the handshake it is the query: plain HTTP says what is wrong with it.
    if (code === 4400 && this.#phase === "connecting") this.#probe();
    else if (FINAL_CLOSE[code]) {
      const [word, detail] = FINAL_CLOSE[code];
      this.#end({ code: word, detail });
    } else if (code === 4001) this.#refused(now, "the token has expired");
    else {
      if (this.#phase === "connecting" && code === 1006) this.#stumble(now);
      const atLeastMs = (AT_LEAST_MS[code] ?? 0) * (1 + this.#random());
      this.#retry(now, { code: `close_${code}` }, atLeastMs);
    }
  }

  /** The token is not accepted. A new one may be; if that is not either, it is not the token's age. */
  #refused(now, detail = "the server does not accept this token") {
    const renewed = this.#token !== null && this.#token.value !== this.#used;
    if (!renewed) {
      if (!this.#renewable || this.#refusals > 0) return this.#end({ code: "credentials", detail });
      this.#refusals += 1;
      this.#token = null;
    }
    this.#drop();
    this.#begin(now);
  }

  #look(now) {
    if (now >= this.#silentAt) {
      if (this.#transport === "websocket" && this.#answerBy === Infinity) this.#ask(now, GRACE_MS);
      else return this.#retry(now, { code: "silent" });
    }
    if (this.#renewable && now >= (this.#token?.renewAt ?? Infinity)) this.#fetch();
    if (this.#transport === "poll" && this.#rung > 0 && now >= this.#climbAt) {
      this.#drop();
      this.#begin(now);
    }
  }

  #ask(now, graceMs) {
    this.#answerBy = Math.min(this.#answerBy, now + graceMs);
    this.#tell({ type: "send", attempt: this.#attempt, frame: { type: "ping" } });
  }

  #tooLate(now) {
    // Somebody took the request and says nothing: a proxy that gathers answers does.
    if (this.#asked) this.#stumble(now);
    this.#fetching = false;
    this.#retry(now, { code: "timeout" });
  }

  #stumble(now) {
    this.#stumbles += 1;
    if (this.#stumbles < STUMBLES || this.#rung + 1 >= this.#transports.length) return;
    this.#rung += 1;
    this.#stumbles = 0;
    this.#climbAt = now + this.#climbMs;
    this.#climbMs = Math.min(CLIMB_CAP_MS, 2 * this.#climbMs);
  }

  #retry(now, reason, atLeastMs = 0) {
    if (this.#phase === "open" && now - this.#openedAt >= STABLE_MS) this.#failures = 0;
    const most = Math.min(BACKOFF_CAP_MS, BACKOFF_MS * 2 ** this.#failures);
    this.#failures = Math.min(this.#failures + 1, 10);
    this.#wait(now, Math.max(atLeastMs, this.#random() * most), reason);
  }

  /** The server has said when to come back. */
  #leave(now, afterMs) {
    this.#failures = 0;
    this.#wait(now, afterMs ?? 0, { code: "goaway" });
  }

  #wait(now, ms, reason) {
    this.#drop();
    this.#at = now + ms;
    this.#become("waiting", { name: "waiting", retryInMs: ms, reason });
  }

  #end(reason) {
    this.#drop();
    this.#become("closed", { name: "closed", reason });
  }

  #drop() {
    if (this.#connected) this.#tell({ type: "drop", attempt: this.#attempt });
    this.#asked = false;
    this.#answerBy = Infinity;
  }

  #become(phase, state) {
    this.#phase = phase;
    this.#tell({ type: "state", state });
  }

  #tell(action) {
    this.#actions.push(action);
  }

  #done() {
    return this.#actions.splice(0);
  }
}

// --- the transports: from the wire to frames ---

const TRANSPORT = { websocket: openWebSocket, sse: openEvents, poll: openPoll };

function openWebSocket(place, on) {
  const url = streamUrl(place, "");
  url.protocol = url.protocol.replace("http", "ws");
  const protocols = place.token === null ? [PROTOCOL] : [PROTOCOL, `bearer.${place.token}`];
  let socket;
  try {
    socket = new place.WebSocket(url, protocols);
  } catch {
    queueMicrotask(on.unopened); // a policy of the page forbids it
    return { close() {} };
  }
  let opened = false;
  socket.onopen = () => (opened = true);
  socket.onclose = ({ code }) => opened && on.closed(code);
  // Not with `close`, which Node 20 leaves out when there was no handshake.
  socket.onerror = () => opened || on.unopened();
  socket.onmessage = ({ data }) => {
    const frame = parsed(data);
    if (frame) on.frame(frame);
    else socket.close(); // not one of ours on the other side
  };
  return {
    send(frame) {
      if (socket.readyState === 1) socket.send(JSON.stringify(frame));
    },
    close() {
      socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
      socket.close();
    },
  };
}

function openEvents(place, on) {
  const abort = new AbortController();
  const url = streamUrl(place, "/sse");
  readEvents(ask(place, url, abort, "text/event-stream"), on);
  return { close: () => abort.abort() };
}

async function readEvents(asked, on) {
  const { response, answer } = await asked;
  if (answer) return on.answered(answer);
  const messages = new EventMessages();
  const decoder = new TextDecoder();
  try {
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      on.frame({ type: "heard" });
      for (const frame of framesOf(messages.push(decoder.decode(value, { stream: true })))) on.frame(frame);
    }
  } catch {
    // Cut, or given up by us; then nobody listens.
  }
  on.closed(1006);
}

/** Messages as frames; events that came together go on together. */
function framesOf(messages) {
  const frames = [];
  for (const { event, id, data } of messages) {
    const content = data === null ? null : parsed(data);
    if (["hello", "gap", "goaway"].includes(event) && content) {
      frames.push({ ...content, type: event });
    } else if (id !== null || (event === "" && content)) {
      const last = frames.at(-1);
      const events = event === "" && content ? [content] : [];
      if (last?.type === "events") {
        last.events.push(...events);
        last.cursor = id ?? last.cursor;
      } else frames.push({ type: "events", events, cursor: id });
    }
  }
  return frames;
}

/** Server-sent events from text in any pieces, as the HTML standard has them. For tests; pages use `connect`. */
export class EventMessages {
  #rest = "";
  #event = "";
  #id = null;
  #data = null;

  /** The messages that end in this piece: `{ event, id, data }`; `null` where there was no such field. */
  push(text) {
    const messages = [];
    this.#rest += text;
    let from = 0;
    for (;;) {
      const line = this.#rest.slice(from).match(/^([^\r\n]*)(\r\n|\n|\r(?!$))/);
      if (!line) break;
      from += line[0].length;
      this.#line(line[1], messages);
    }
    this.#rest = this.#rest.slice(from);
    if (this.#rest.length > MAX_LINE) throw new Error("a line without an end");
    return messages;
  }

  #line(line, messages) {
    if (line === "") {
      if (this.#id !== null || this.#data !== null) {
        messages.push({ event: this.#event, id: this.#id, data: this.#data });
      }
      this.#event = "";
      this.#id = null;
      this.#data = null;
      return;
    }
    const [, field, value] = line.match(/^([^:]*)(?:: ?(.*))?$/s);
    if (field === "event") this.#event = value ?? "";
    else if (field === "id") this.#id = value ?? "";
    else if (field === "data") {
      this.#data = this.#data === null ? (value ?? "") : `${this.#data}\n${value ?? ""}`;
    }
  }
}

function openPoll(place, on) {
  const abort = new AbortController();
  poll(place, abort, on);
  return { close: () => abort.abort() };
}

async function poll(place, abort, on) {
  // The first answer comes at once, so that it is known how things stand.
  for (let waitS = 0; !abort.signal.aborted; waitS = POLL_WAIT_S) {
    const askedAt = now();
    const before = on.cursor();
    const url = streamUrl({ ...place, cursor: before }, "/poll");
    url.searchParams.set("wait", waitS);
    url.searchParams.set("limit", POLL_LIMIT);
    const request = { ...place, token: on.token() };
    const { response, answer } = await ask(request, url, abort, "application/json");
    if (answer) return on.answered(answer);
    const page = parsed(await response.text().catch(() => ""));
    if (!page) return on.closed(1006);
    const { recovered, reason, cursor, events } = page;
    if (waitS === 0) {
      const from = events.length > 0 ? before : cursor;
      on.frame({ type: "hello", recovered, reason, cursor: from, heartbeatMs: 1_000 * POLL_WAIT_S });
    } else if (recovered === false) on.frame({ type: "gap", reason, cursor });
    on.frame({ type: "events", events, cursor });
    if (events.length < POLL_LIMIT && waitS > 0) {
      await new Promise((go) => setTimeout(go, askedAt + POLL_SPACING_MS - now()));
    }
  }
}

// --- HTTP ---

const PROTOCOL = "pulsestream.v1";

/** Why a WebSocket does not open: a poll without a cursor is the shortest question with the same answer. */
async function probe(place) {
  const url = streamUrl({ ...place, cursor: null }, "/poll");
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), GRACE_MS);
  const { response, answer } = await ask(place, url, abort, "application/json");
  clearTimeout(timer);
  await response?.body?.cancel();
  return answer ?? { status: response.status };
}

/** The answer when it is of that kind, else what it says. */
async function ask({ fetch, token }, url, abort, accept) {
  const headers = { accept };
  if (token !== null) headers.authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(url, { headers, cache: "no-store", signal: abort.signal });
  } catch (error) {
    return { answer: { status: 0, detail: error.message } };
  }
  const kind = response.headers.get("content-type") ?? "";
  if (response.ok && kind.startsWith(accept)) return { response };
  return { answer: await answerOf(response) };
}

async function answerOf(response) {
  const problem = parsed(await response.text().catch(() => "")) ?? {};
  const retryAfterMs = 1_000 * (Number(response.headers.get("retry-after")) || 0);
  const faults = (problem.errors ?? []).map(({ field, message }) => `${field}: ${message}`);
  const detail = [problem.detail ?? problem.title, ...faults].filter(Boolean).join("; ") || undefined;
  return { status: response.ok ? 406 : response.status, code: problem.code, detail, retryAfterMs };
}

/** A stream token for an API key. */
async function tokenFor(apiKey, { base, fetch }) {
  const url = new URL(`${base}/v1/stream/tokens`);
  const response = await fetch(url, { method: "POST", headers: { "x-api-key": apiKey }, cache: "no-store" });
  if (response.ok) return response.json();
  const answer = await answerOf(response);
  throw Object.assign(new Error(answer.detail ?? `tokens: ${answer.status}`), { status: answer.status });
}

// --- options ---

function placeOf(options) {
  const { deviceId, eventType, mode = "window", windowMs } = options;
  const base = String(options.url ?? globalThis.location?.origin ?? "").replace(/\/+$/, "");
  if (!/^https?:\/\//.test(base)) throw new TypeError("url: expected http://… or https://…");
  const query = [];
  for (const value of [deviceId ?? []].flat()) query.push(["deviceId", value]);
  for (const value of [eventType ?? []].flat()) query.push(["eventType", value]);
  query.push(["mode", mode]);
  if (windowMs !== undefined) query.push(["windowMs", windowMs]);
  return {
    base,
    query,
    fetch: options.fetch ?? ((...request) => globalThis.fetch(...request)),
    WebSocket: options.WebSocket ?? globalThis.WebSocket,
  };
}

function transportsOf({ transports = TRANSPORTS }, { WebSocket }) {
  const unknown = transports.find((name) => !TRANSPORTS.includes(name));
  if (unknown !== undefined) throw new TypeError(`transports: no such transport: ${unknown}`);
  const able = transports.filter((name) => name !== "websocket" || WebSocket !== undefined);
  if (able.length === 0) throw new TypeError("transports: none of them is there");
  return able;
}

function streamUrl({ base, query, cursor }, path) {
  const url = new URL(`${base}/v1/stream${path}`);
  for (const [name, value] of query) url.searchParams.append(name, value);
  if (cursor) url.searchParams.set("cursor", cursor);
  return url;
}

/** JSON of an object, or `null`. */
function parsed(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

/** A clock that never goes back. */
function now() {
  return performance.now();
}
