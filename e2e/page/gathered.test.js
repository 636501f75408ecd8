// What the page keeps, alone.

import assert from "node:assert/strict";
import { test } from "node:test";

import { LINES, Lately, Lines, Newest, Rate } from "../../broadcaster/page/gathered.js";

test("the newest are found newest first, and no more are kept than said", () => {
  const newest = new Newest(3);
  for (let item = 1; item <= 2; item += 1) newest.add(item);
  assert.deepEqual(newest.find(9, () => true), [2, 1]);
  for (let item = 3; item <= 8; item += 1) newest.add(item);
  assert.deepEqual(newest.find(9, () => true), [8, 7, 6]);
  assert.deepEqual(newest.find(1, (item) => item < 8), [7]);
  assert.equal(newest.size, 3);
});

test("what was not touched for longest is forgotten first", () => {
  const lately = new Lately(2);
  lately.set("a", 1);
  lately.set("b", 2);
  lately.set("a", 3);
  lately.set("c", 4);
  assert.deepEqual(lately.keys(), ["a", "c"]);
  assert.deepEqual(lately.values(), [3, 4]);
});

test("the rate is that of the last whole seconds", () => {
  const rate = new Rate();
  for (let ms = 0; ms < 60_000; ms += 100) rate.add(2, ms);
  assert.equal(rate.at(60_000), 20);
  assert.equal(rate.at(62_000), 12);
  assert.equal(rate.at(70_000), 0);
});

test("a line has the last value of each half second and holes where there was none", () => {
  const lines = new Lines();
  const add = (timestamp, value, deviceId = "a") => lines.add({ deviceId, value, timestamp });
  add(1_000_000, 1);
  add(1_000_400, 2);
  add(1_001_000, 3);
  const [seconds, values] = lines.upTo(1_001_000);
  assert.deepEqual(seconds.slice(-3), [1_000, 1_000.5, 1_001]);
  assert.deepEqual(values.slice(-4), [null, 2, null, 3]);
  assert.equal(values.length, 600);
});

test("what is older than the chart is not in it, nor does an old event write over a new one", () => {
  const lines = new Lines();
  const add = (timestamp, value) => lines.add({ deviceId: "a", value, timestamp });
  add(1_000_000, 1);
  add(700_000, 2); // the same place of the ring, five minutes before
  assert.deepEqual(lines.upTo(1_000_000)[1].at(-1), 1);
  assert.ok(lines.upTo(1_300_500)[1].every((value) => value === null));
});

test("there are no more lines than colours, and the others are counted", () => {
  const lines = new Lines();
  const add = (deviceId, timestamp) => lines.add({ deviceId, value: 1, timestamp });
  for (let device = 0; device < LINES + 4; device += 1) add(`d${device}`, 1_000_000);
  assert.deepEqual([lines.devices.length, lines.others.size], [LINES, 4]);
  add("late", 2_000_000); // everyone else has been silent for longer than the chart shows
  assert.ok(lines.devices.includes("late"));
  assert.equal(lines.devices.length, LINES);
});
