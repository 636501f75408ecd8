/* The form that sends an event and shows what it is answered. */

const FACTS = ["idempotency-replayed", "idempotency-status", "retry-after", "ratelimit"];
/** Of the line above the answer, by the first digit of the status. */
const LOOKS = { 2: "good", 4: "wrong", 5: "later" };

export class Sender {
  #gateway;
  #key;
  #fields;
  #last = null; // { id, body }
  #sentAt = new Map(); // events of which it is not known yet when they were seen
  #seenAfterMs = null;
  #line = "";
  #walk;

  /** `key`: tells the API key of the moment. */
  constructor({ gateway, key, fields }) {
    this.#gateway = gateway;
    this.#key = key;
    this.#fields = fields;
    fields.device.value = sessionStorage.getItem("pulsestream.device") ?? uuid();
    fields.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    fields.again.addEventListener("click", () => this.#post(this.#last));
    fields.ask.addEventListener("click", () => this.#ask());
    fields.walk.addEventListener("change", () => this.#walkOrStop());
  }

  /** An event came by the stream: perhaps the one that was just sent. */
  seen({ id }) {
    const sentAt = this.#sentAt.get(id);
    if (sentAt === undefined) return;
    this.#sentAt.delete(id);
    this.#seenAfterMs = performance.now() - sentAt;
    if (this.#last?.id === id) this.#showLine();
  }

  #send() {
    const { device, type, value, metadata } = this.#fields;
    const event = {
      deviceId: device.value.trim(),
      eventType: type.value,
      value: Number(value.value),
      timestamp: Date.now(),
    };
    if (metadata.value.trim() !== "") {
      try {
        event.metadata = JSON.parse(metadata.value);
      } catch (error) {
        return this.#show("wrong", "The metadata is no JSON", error.message);
      }
    }
    sessionStorage.setItem("pulsestream.device", event.deviceId);
    return this.#post({ id: uuid(), body: JSON.stringify(event) });
  }

  async #post(request) {
    this.#last = request;
    this.#seenAfterMs = null;
    this.#sentAt.clear();
    const sentAt = performance.now();
    this.#sentAt.set(request.id, sentAt);
    const headers = { "content-type": "application/json", "idempotency-key": request.id, ...this.#credentials() };
    const options = { method: "POST", headers, body: request.body };
    await this.#answered(this.#call("/v1/events", options), `sent with Idempotency-Key ${request.id}`);
    this.#fields.again.disabled = this.#fields.ask.disabled = false;
  }

  async #ask() {
    await this.#answered(this.#call(`/v1/events/${this.#last.id}`, { headers: this.#credentials() }));
  }

  #credentials() {
    const key = this.#key();
    return key ? { "x-api-key": key } : {};
  }

  async #call(path, options) {
    return fetch(`${this.#gateway}${path}`, { ...options, cache: "no-store" });
  }

  async #answered(asked, about = "") {
    const askedAt = performance.now();
    try {
      const response = await asked;
      const text = await response.text();
      const ms = Math.round(performance.now() - askedAt);
      const facts = FACTS.filter((name) => response.headers.has(name));
      const lines = facts.map((name) => `${name}: ${response.headers.get(name)}`);
      const look = LOOKS[String(response.status)[0]] ?? "later";
      this.#show(look, `${response.status} after ${ms} ms`, [about, ...lines, pretty(text)].filter(Boolean).join("\n"));
    } catch (error) {
      const where = this.#gateway || location.origin;
      this.#show("later", `No answer from ${where}`, `${error.message}\n${CORS_HINT}`);
    }
  }

  #show(look, line, body) {
    const { answer, answerLine, answerBody } = this.#fields;
    answer.hidden = false;
    answerLine.className = look;
    answerBody.textContent = body;
    this.#line = line;
    this.#showLine();
  }

  #showLine() {
    const seen = this.#seenAfterMs === null ? "" : `, seen live after ${Math.round(this.#seenAfterMs)} ms`;
    this.#fields.answerLine.textContent = `${this.#line}${seen}`;
  }

  #walkOrStop() {
    clearInterval(this.#walk);
    const { walk, value } = this.#fields;
    if (!walk.checked) return;
    const step = () => {
      value.value = (Number(value.value) + Math.random() - 0.5).toFixed(2);
      this.#send();
    };
    step();
    this.#walk = setInterval(step, 1_000);
  }
}

const CORS_HINT =
  "When it takes events at another address than this page's, its setting server.cors_origins must list this page's origin.";

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** `crypto.randomUUID` is not there on a page without TLS. */
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
