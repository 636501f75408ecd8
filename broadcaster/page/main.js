/*
 * The live page: what comes by the stream is gathered as it comes, and shown four times a second. Nothing
 * that came from a device or a server is ever markup here; the page's policy refuses that as well.
 */

import { Chart } from "/page/chart.js";
import { Lately, Lines, Newest, Rate } from "/page/gathered.js";
import { connect } from "/page/pulsestream.js";
import { Letters } from "/page/letters.js";
import { Rows } from "/page/rows.js";
import { Sender } from "/page/send.js";
import { age, clock, figure, fineClock, shortId, wordsOf, wordsOfGap, wordsOfWait } from "/page/words.js";

const SHOW_EVERY_MS = 250;
const KEPT_EVENTS = 1_000;
const SHOWN_EVENTS = 100;
const KEPT_VALUES = 500;
const SHOWN_VALUES = 50;
const KEPT_DEVICES = 10_000;
const KEPT_TYPES = 20;
const SHOWN_GAPS = 10;

const element = (id) => document.getElementById(id);
const gateway = document.querySelector("meta[name=pulsestream-gateway]").content;

// --- what is gathered ---

let stream = null;
let state = { name: "paused" };
let retryAt = 0;
let count = 0;
let gapCount = 0;
let frozen = null; // the events shown while the table is paused
let frozenAt = 0;
let changed = true;
const rate = new Rate();
const events = new Newest(KEPT_EVENTS);
const latest = new Lately(KEPT_VALUES);
const devices = new Lately(KEPT_DEVICES);
const types = new Lately(KEPT_TYPES);

function gather(batch) {
  count += batch.length;
  rate.add(batch.length, performance.now());
  for (const event of batch) {
    const { deviceId, eventType } = event;
    events.add(event);
    latest.set(`${deviceId} ${eventType}`, event);
    devices.set(deviceId, true);
    const lines = types.get(eventType) ?? new Lines();
    lines.add(event);
    types.set(eventType, lines);
    sender.seen(event);
  }
  changed = true;
}

function tellGap(gap) {
  gapCount += 1;
  const item = document.createElement("li");
  item.textContent = `${clock(Date.now())} ${wordsOfGap(gap)}`;
  const list = element("gaps");
  list.hidden = false;
  list.prepend(item);
  if (list.children.length > SHOWN_GAPS) list.lastChild.remove();
}

// --- the connection ---

const key = () => sessionStorage.getItem("pulsestream.key") ?? "";

function begin() {
  stream?.close();
  const transport = element("transport").value;
  const options = {
    onEvents: gather,
    onGap: tellGap,
    onState(now) {
      if (now.name === "closed" && now.reason.code === "closed" && stream !== current) return;
      state = now;
      if (now.name === "open") letters.opened();
      retryAt = performance.now() + (now.retryInMs ?? 0);
      show();
    },
  };
  if (key()) options.apiKey = key();
  if (element("device").value.trim()) options.deviceId = element("device").value.trim();
  if (element("type").value) options.eventType = element("type").value;
  if (transport) options.transports = [transport];
  const current = (stream = connect(options));
}

element("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = element("key");
  if (field.value) sessionStorage.setItem("pulsestream.key", field.value.trim());
  field.value = "";
  letters.forget();
  begin();
});
element("disconnect").addEventListener("click", () => stream?.close());
element("forget").addEventListener("click", () => {
  sessionStorage.removeItem("pulsestream.key");
  stream?.close();
  letters.forget();
  show();
  element("key").focus();
});

/** A key of this tab, or none needed: begin at once. Else ask for one. */
async function start() {
  if (key()) return begin();
  const answer = await fetch("/v1/stream/poll", { cache: "no-store" }).catch(() => null);
  if (stream) return; // somebody was quicker
  if (answer?.status !== 401) return begin();
  state = { name: "closed", reason: { code: "credentials" } };
  show();
  element("key").focus();
}

// --- what is shown ---

const eventRows = new Rows(element("event-rows"), ["", "code", "", "number", "code"]);
const latestRows = new Rows(element("latest"), ["code", "", "number", "number"]);
const chart = new Chart(element("chart"));

/** Only what changed: some of it is read aloud. */
function say(to, text) {
  if (to.textContent !== text) to.textContent = text;
}

function showState() {
  say(element("state-words"), wordsOf(state));
  say(element("state-next"), wordsOfWait(state, retryAt - performance.now()));
  element("dot").className = `dot ${state.name}`;
  element("disconnect").disabled = state.name === "closed" || stream === null;
  element("forget").disabled = !key();
  element("key").placeholder = key() ? "kept in this tab" : "";
}

function showFigures() {
  const perSecond = rate.at(performance.now());
  element("rate").textContent = perSecond >= 10 ? Math.round(perSecond).toLocaleString() : perSecond.toFixed(1);
  element("count").textContent = count.toLocaleString();
  const many = devices.size >= KEPT_DEVICES ? "+" : "";
  element("devices").textContent = `${devices.size.toLocaleString()}${many}`;
  element("gap-count").textContent = gapCount.toLocaleString();
}

function matching() {
  const wanted = element("filter").value.trim().toLowerCase();
  if (wanted === "") return () => true;
  return ({ deviceId, eventType, value, metadata }) =>
    `${deviceId} ${eventType} ${value} ${metadata ? JSON.stringify(metadata) : ""}`.toLowerCase().includes(wanted);
}

function showEvents() {
  const found = (frozen ?? events).find(SHOWN_EVENTS, matching());
  eventRows.show(
    found.map(({ deviceId, eventType, value, timestamp, metadata }) => {
      const more = metadata ? JSON.stringify(metadata) : "";
      return [
        { text: fineClock(timestamp), title: new Date(timestamp).toISOString() },
        { text: shortId(deviceId), title: deviceId },
        { text: eventType, title: eventType },
        { text: figure(value), title: String(value) },
        { text: more, title: more },
      ];
    }),
  );
  const of = (frozen ?? events).size;
  const news = frozen ? `, ${(count - frozenAt).toLocaleString()} new since` : "";
  element("events-note").textContent = of === 0 ? "none yet" : `${found.length} of the last ${of}${news}`;
}

function showLatest() {
  const values = latest.values();
  const order = (one, other) =>
    one.deviceId === other.deviceId
      ? one.eventType.localeCompare(other.eventType)
      : one.deviceId.localeCompare(other.deviceId);
  const shown = values.sort(order).slice(0, SHOWN_VALUES);
  const now = Date.now();
  latestRows.show(
    shown.map(({ deviceId, eventType, value, timestamp }) => [
      { text: shortId(deviceId), title: deviceId },
      { text: eventType, title: eventType },
      { text: figure(value), title: String(value) },
      { text: age(now - timestamp), title: new Date(timestamp).toISOString() },
    ]),
  );
  const note = values.length > shown.length ? `${shown.length} of ${values.length}` : "";
  element("latest-note").textContent = values.length === 0 ? "none yet" : note;
}

function showTypes() {
  const select = element("chart-type");
  const names = types.keys().sort();
  const shown = [...select.options].map(({ value }) => value);
  if (names.length === 0 || names.join("\n") === shown.join("\n")) return;
  const chosen = select.disabled ? types.keys().at(-1) : select.value;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  select.value = names.includes(chosen) ? chosen : names[0];
  select.disabled = false;
}

function showChart() {
  const select = element("chart-type");
  const lines = select.disabled ? undefined : types.get(select.value);
  if (!lines) return;
  const now = Date.now();
  const shown = lines.devices;
  const data = lines.upTo(now);
  chart.show(shown, data);
  const others = lines.others.size > 0 ? ` and ${lines.others.size} more` : "";
  const label = `${select.value} of ${shown.length} ${shown.length === 1 ? "device" : "devices"}${others}`;
  if (element("chart").ariaLabel !== label) element("chart").ariaLabel = label;
  const items = shown.map((id, index) => [id, shortId(id), `series-${index}`]);
  if (others) items.push(["", `${lines.others.size} more without a line`, "quiet"]);
  const legend = element("legend");
  const told = items.map(([, text]) => text).join();
  if (legend.dataset.told === told) return;
  legend.dataset.told = told;
  legend.replaceChildren(
    ...items.map(([title, text, name]) => {
      const item = document.createElement("li");
      [item.title, item.textContent, item.className] = [title, text, name];
      return item;
    }),
  );
}

function show() {
  showState();
  showFigures();
  if (document.hidden) return;
  showLatest();
  showTypes();
  showChart();
  if (changed) showEvents();
  changed = false;
}

element("pause").addEventListener("click", () => {
  const pressed = frozen === null;
  frozen = null;
  if (pressed) {
    frozen = new Newest(KEPT_EVENTS);
    for (const event of events.find(KEPT_EVENTS, () => true).reverse()) frozen.add(event);
    frozenAt = count;
  }
  element("pause").ariaPressed = String(pressed);
  element("pause").textContent = pressed ? "Go on" : "Pause";
  changed = true;
  show();
});
element("filter").addEventListener("input", () => {
  changed = true;
  show();
});
element("chart-type").addEventListener("change", show);
document.addEventListener("visibilitychange", show);

const sender = new Sender({
  gateway,
  key,
  fields: {
    form: element("send"),
    device: element("send-device"),
    type: element("send-type"),
    value: element("send-value"),
    metadata: element("send-metadata"),
    again: element("again"),
    ask: element("ask"),
    walk: element("walk"),
    answer: element("answer"),
    answerLine: element("answer-line"),
    answerBody: element("answer-body"),
  },
});
const letters = new Letters({
  gateway,
  key,
  fields: {
    section: element("letters"),
    reason: element("letters-reason"),
    refresh: element("letters-refresh"),
    newer: element("letters-newer"),
    older: element("letters-older"),
    note: element("letters-note"),
    rows: element("letter-rows"),
    detail: element("letter"),
    name: element("letter-name"),
    close: element("letter-close"),
    command: element("letter-command"),
    facts: element("letter-facts"),
    payload: element("letter-payload"),
  },
});
element("docs").href = `${gateway}/docs`;
setInterval(show, SHOW_EVERY_MS);
start();
