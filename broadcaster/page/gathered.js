/*
 * What the page keeps of a stream, all of it bounded: a tab that is open for a week holds no more than one
 * that is open for a minute. No DOM here, so that a test can fill it by the million.
 */

/** The newest of what came. */
export class Newest {
  #items = [];
  #next = 0;
  #most;

  constructor(most) {
    this.#most = most;
  }

  get size() {
    return this.#items.length;
  }

  add(item) {
    this.#items[this.#next] = item;
    this.#next = (this.#next + 1) % this.#most;
  }

  /** The newest first; at most so many of those that match. */
  find(most, matches) {
    const found = [];
    const { length } = this.#items;
    for (let back = 1; back <= length && found.length < most; back += 1) {
      const item = this.#items[(this.#next - back + length) % length];
      if (matches(item)) found.push(item);
    }
    return found;
  }

  clear() {
    this.#items = [];
    this.#next = 0;
  }
}

/** A map that forgets what was not touched for longest. */
export class Lately {
  #map = new Map();
  #most;

  constructor(most) {
    this.#most = most;
  }

  get size() {
    return this.#map.size;
  }

  set(key, value) {
    this.#map.delete(key);
    this.#map.set(key, value);
    if (this.#map.size > this.#most) this.#map.delete(this.#map.keys().next().value);
  }

  get(key) {
    return this.#map.get(key);
  }

  values() {
    return [...this.#map.values()];
  }

  keys() {
    return [...this.#map.keys()];
  }

  clear() {
    this.#map.clear();
  }
}

/** Events a second, over the last few whole seconds. */
export class Rate {
  #seconds = new Map();

  add(count, nowMs) {
    const second = Math.floor(nowMs / 1_000);
    this.#seconds.set(second, (this.#seconds.get(second) ?? 0) + count);
    for (const old of this.#seconds.keys()) {
      if (old >= second - RATE_SECONDS) break;
      this.#seconds.delete(old);
    }
  }

  at(nowMs) {
    const second = Math.floor(nowMs / 1_000);
    let count = 0;
    for (let back = 1; back <= RATE_SECONDS; back += 1) count += this.#seconds.get(second - back) ?? 0;
    return count / RATE_SECONDS;
  }
}

/**
 * The values of one type for a chart: of each device the last one of every half second, on a grid of time
 * that all devices share. So a device that sends a thousand a second costs as much as one that sends one.
 */
export class Lines {
  #lines = new Map();
  others = new Set();

  add({ deviceId, value, timestamp }) {
    const step = Math.floor(timestamp / STEP_MS);
    const line = this.#lines.get(deviceId) ?? this.#begin(deviceId, step);
    if (!line) return;
    const slot = step % STEPS;
    // An old one does not write over a newer one.
    if (line.steps[slot] > step) return;
    line.steps[slot] = step;
    line.values[slot] = value;
    line.last = Math.max(line.last, step);
  }

  /** A device of its own line, if there is room, or one that has been silent for the whole chart makes some. */
  #begin(deviceId, step) {
    if (this.#lines.size >= LINES) {
      const silent = [...this.#lines].find(([, { last }]) => last <= step - STEPS);
      if (!silent) {
        if (this.others.size < OTHERS) this.others.add(deviceId);
        return null;
      }
      this.#lines.delete(silent[0]);
    }
    this.others.delete(deviceId);
    const line = { steps: new Float64Array(STEPS).fill(-1), values: new Float64Array(STEPS), last: step };
    this.#lines.set(deviceId, line);
    return line;
  }

  get devices() {
    return [...this.#lines.keys()];
  }

  /** Seconds, then the values of each device; `null` where there is none. */
  upTo(nowMs) {
    const first = Math.floor(nowMs / STEP_MS) - STEPS + 1;
    const seconds = Array.from({ length: STEPS }, (_, index) => ((first + index) * STEP_MS) / 1_000);
    const values = [...this.#lines.values()].map((line) =>
      Array.from({ length: STEPS }, (_, index) => {
        const slot = (first + index) % STEPS;
        return line.steps[slot] === first + index ? line.values[slot] : null;
      }),
    );
    return [seconds, ...values];
  }
}

const RATE_SECONDS = 5;
const STEP_MS = 500;
const STEPS = 600; // five minutes
/** Lines a person can tell apart, and colours there are. */
export const LINES = 6;
/** Devices without a line that are counted. */
const OTHERS = 1_000;
