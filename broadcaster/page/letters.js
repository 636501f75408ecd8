/*
 * The dead letters of the key's client. They are shown when the gateway shows them to this key. It is asked when
 * the stream opens: a 200 opens the section, a 401 or 403 closes it until another key is entered, and after
 * anything else it is asked again when the stream opens again.
 */

import { dateClock, plain, shortId } from "/page/words.js";

const PAGE = 20;

export class Letters {
  #gateway;
  #key;
  #fields;
  #before = []; // cursors of the pages before this one; the first page has none
  #cursor = "";
  #next = null;
  #asked = 0; // the newest question: what an older one is answered comes too late
  #refused = false;
  #opener = null;

  /** `key`: tells the API key of the moment. */
  constructor({ gateway, key, fields }) {
    this.#gateway = gateway;
    this.#key = key;
    this.#fields = fields;
    fields.reason.addEventListener("change", () => this.begin());
    fields.refresh.addEventListener("click", () => this.#load());
    fields.newer.addEventListener("click", () => this.#turn(this.#before.pop() ?? ""));
    fields.older.addEventListener("click", () => {
      this.#before.push(this.#cursor);
      this.#turn(this.#next);
    });
    fields.close.addEventListener("click", () => this.#close());
  }

  /** The first page, for the key of the moment. */
  begin() {
    this.#before = [];
    this.#turn("");
  }

  /** The stream is open: time to ask, unless that was answered before. */
  opened() {
    if (this.#fields.section.hidden && !this.#refused) this.begin();
  }

  /** Nothing of them stays. */
  forget() {
    this.#asked += 1;
    this.#refused = false;
    this.#fields.section.hidden = true;
    this.#fields.rows.replaceChildren();
    this.#close();
  }

  #turn(cursor) {
    this.#cursor = cursor;
    return this.#load();
  }

  async #load() {
    if (!this.#key()) return this.forget();
    const asked = (this.#asked += 1);
    const query = new URLSearchParams({ limit: PAGE });
    if (this.#fields.reason.value) query.set("reason", this.#fields.reason.value);
    if (this.#cursor) query.set("cursor", this.#cursor);
    const { status, body } = await this.#get(`/v1/dead-letters?${query}`);
    if (asked !== this.#asked) return;
    if (status === 401 || status === 403) {
      this.forget();
      this.#refused = true;
      return;
    }
    if (status !== 200) return this.#say(`Not read: ${body.detail ?? "no answer"}.`);
    this.#next = body.nextCursor;
    this.#show(body.data);
  }

  #show(letters) {
    const { section, rows, newer, older } = this.#fields;
    section.hidden = false;
    rows.replaceChildren(...letters.map((letter) => this.#row(letter)));
    newer.disabled = this.#cursor === "";
    older.disabled = this.#next === null;
    const first = this.#before.length * PAGE;
    const which = letters.length === 0 ? "none" : `${first + 1} to ${first + letters.length}, newest first`;
    this.#say(`${which}, read at ${dateClock(Date.now())}`);
  }

  #row(letter) {
    const row = document.createElement("tr");
    const cell = (text, title = text, name = "") => {
      const made = row.insertCell();
      [made.textContent, made.title, made.className] = [text, title, name];
      return made;
    };
    const { diedAt, reason, deviceId, error, deaths, state } = letter;
    cell(dateClock(diedAt), new Date(diedAt).toISOString());
    cell(reason);
    cell(deviceId ? shortId(deviceId) : "unknown", deviceId ?? "the record has no device as its key", "code");
    cell(plain(error));
    cell(String(deaths), "", "number");
    cell(state, state === "replayed" ? "it waits for the store" : "it waits for a person");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Payload";
    button.ariaLabel = `Payload of ${letter.letter}`;
    button.addEventListener("click", () => this.#open(letter.letter, button));
    cell("").append(button);
    return row;
  }

  async #open(name, opener) {
    const { status, body } = await this.#get(`/v1/dead-letters/${encodeURIComponent(name)}`);
    if (!opener.isConnected) return;
    const { detail, name: title, command, facts, payload } = this.#fields;
    const letter = status === 200 ? body.data : null;
    const bytes = letter?.payload;
    title.textContent = `Dead letter ${name}`;
    command.textContent = `pulsestream dlq replay ${name}`;
    facts.textContent = letter ? factsOf(letter) : `Not read: ${body.detail ?? "no answer"}.`;
    payload.textContent = bytes ? plain(bytes.text ?? bytes.base64) : "";
    payload.hidden = !bytes;
    detail.hidden = false;
    detail.focus();
    this.#opener = opener;
  }

  #close() {
    const { detail, payload } = this.#fields;
    const had = detail.contains(document.activeElement);
    detail.hidden = true;
    payload.textContent = "";
    if (had && this.#opener?.isConnected) this.#opener.focus();
    this.#opener = null;
  }

  #say(text) {
    this.#fields.note.textContent = text;
  }

  /** Status and body; `{ status: 0 }` without an answer. */
  async #get(path) {
    const options = { headers: { "x-api-key": this.#key() }, cache: "no-store" };
    try {
      const response = await fetch(`${this.#gateway}${path}`, options);
      return { status: response.status, body: await response.json() };
    } catch {
      return { status: 0, body: {} };
    }
  }
}

function factsOf({ reason, error, sqlstate, id, deviceId, payload, missing }) {
  const lines = [`${reason}: ${plain(error)}`];
  if (sqlstate) lines.push(`SQLSTATE ${sqlstate}`);
  if (id) lines.push(`event ${id}`);
  if (deviceId) lines.push(`device ${deviceId}`);
  if (!payload) return [...lines, `no payload: ${missing}`].join("\n");
  const how = payload.text === null ? ", not UTF-8, in base64" : "";
  const part = payload.truncated ? ", its beginning" : "";
  return [...lines, `${payload.size.toLocaleString()} bytes${how}${part}:`].join("\n");
}
