/* What a person is told: the client's states, gaps and reasons in words. */

const TRANSPORTS = { websocket: "WebSocket", sse: "server-sent events", poll: "polling" };

/** By `recovered`. */
const RECOVERED = { null: "", true: " Nothing was missed.", false: " Events before it are missing." };

const BROKEN = {
  network: "the server does not answer",
  close_1006: "the connection broke",
  close_1012: "the server is restarting",
  close_1013: "the server is busy",
  goaway: "the server asked to come back",
  silent: "the server has fallen silent",
  timeout: "the server takes too long",
  starting: "the server is starting",
  token: "no stream token to be had",
  upgrade: "WebSockets do not get through",
};

const CLOSED = {
  closed: "Not connected.",
  credentials: "This needs an API key that works.",
  revoked: "The API key was revoked or has expired. Enter another one.",
  forbidden: "This API key may not read events.",
  refused: "The server refused the query.",
};

const MISSING = {
  slow: "this page could not keep up",
  other_epoch: "the log was replaced",
  beyond_retention: "the log no longer holds them",
  expired: "there were too many to catch up with",
  busy: "too many others are catching up",
  log_unavailable: "the log could not be read",
  ahead: "the place lay beyond the end of the log",
};

/** One sentence or two, read aloud when they change. */
export function wordsOf(state) {
  switch (state.name) {
    case "connecting":
      return `Connecting by ${TRANSPORTS[state.transport] ?? "what works"}.`;
    case "open":
      return `Live by ${TRANSPORTS[state.transport]}.${RECOVERED[state.recovered]}`;
    case "waiting": {
      const broken = BROKEN[state.reason.code] ?? state.reason.detail ?? state.reason.code;
      return `No connection: ${broken}.`;
    }
    case "paused":
      return "Paused.";
    case "closed": {
      const { code, detail } = state.reason;
      const own = CLOSED[code] ?? "The stream has ended.";
      return detail && code !== "closed" ? `${own} (${detail})` : own;
    }
  }
  return "";
}

/** The countdown beside them, which is not read aloud each second. */
export function wordsOfWait(state, leftMs) {
  return state.name === "waiting" ? `Next attempt in ${Math.max(0, Math.ceil(leftMs / 1_000))} s.` : "";
}

export function wordsOfGap({ reason, missed }) {
  const count = missed === null ? "Events" : missed === 1 ? "1 event" : `${missed} events`;
  return `${count} missing: ${MISSING[reason] ?? reason}.`;
}

export function clock(ms) {
  const time = new Date(ms);
  const two = (number) => String(number).padStart(2, "0");
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}

/** With the day, for what may be old. */
export function dateClock(ms) {
  const time = new Date(ms);
  const two = (number) => String(number).padStart(2, "0");
  return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${clock(ms)}`;
}

/** With milliseconds: events of one second are told apart. */
export function fineClock(ms) {
  return `${clock(ms)}.${String(Math.floor(ms) % 1_000).padStart(3, "0")}`;
}

export function age(ms) {
  const seconds = Math.max(0, Math.round(ms / 1_000));
  if (seconds < 60) return `${seconds} s`;
  return seconds < 3_600 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3_600)} h`;
}

/** What cannot be seen, or turns the order of what can, is written out: `\u{202e}`. Lines and tabs stay. */
export function plain(text) {
  return text.replace(/[^\P{C}\n\t]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

/** The beginning tells devices apart on a narrow screen; the whole stands in the tooltip. */
export function shortId(id) {
  return `${id.slice(0, 8)}…`;
}

/** A value in the space there is: all its digits when they are few. */
export function figure(value) {
  const text = String(value);
  return text.length <= 10 ? text : String(Number(value.toPrecision(7)));
}
