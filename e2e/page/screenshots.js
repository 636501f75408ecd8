// The pictures of the live page in docs/images, taken of the real program with events of a few devices.
//
//   PULSESTREAM_BINARY=target/debug/pulsestream node e2e/page/screenshots.js

import { randomUUID } from "node:crypto";
import { fileURLToPath } from "node:url";

import { Server } from "../../clients/js/test/server.js";
import { Tab, launch } from "./browser.js";

const FOLDER = fileURLToPath(new URL("../../docs/images/", import.meta.url));
const PAST_S = 295; // what the chart shows; older than 300 the server takes nothing
const ROOMS = ["boiler", "cellar", "attic", "greenhouse"];
const DEVICES = ROOMS.map((room, index) => ({ id: randomUUID(), room, mean: 14 + 9 * index, phase: 2 * index }));

/** What a device measured at that time: a slow wave and a little noise. */
function measured({ id, room, mean, phase }, timestamp) {
  const value = mean + 3 * Math.sin(timestamp / 40_000 + phase) + 0.6 * Math.random();
  const temperature = { eventType: "temperature", value: Number(value.toFixed(2)), metadata: { unit: "C", room } };
  const humidity = { eventType: "humidity", value: Math.round(70 - value), metadata: { unit: "%" } };
  const battery = { eventType: "battery", value: Number((3.7 - phase / 20).toFixed(2)) };
  return [temperature, humidity, battery].map((event) => ({ id: randomUUID(), deviceId: id, timestamp, ...event }));
}

async function send(server, events) {
  const headers = { "x-api-key": server.key, "content-type": "application/json", "idempotency-key": randomUUID() };
  const request = { method: "POST", headers, body: JSON.stringify(events) };
  const answer = await fetch(`${server.url}/v1/events/batch`, request);
  if (answer.status !== 202) throw new Error(`${answer.status} ${await answer.text()}`);
}

/** The last five minutes at once, then some seconds as they come, so that there is a rate. */
async function live(server) {
  const now = Date.now();
  for (let ago = PAST_S; ago > 0; ago -= 5) {
    const seconds = Array.from({ length: 5 }, (_, index) => now - 1_000 * (ago - index));
    await send(server, seconds.flatMap((at) => DEVICES.flatMap((device) => measured(device, at))));
  }
  for (let second = 0; second < 12; second += 1) {
    for (const device of DEVICES) {
      await send(server, measured(device, Date.now()));
      await new Promise((go) => setTimeout(go, 1_000 / DEVICES.length));
    }
  }
}

async function open(browser, server, options) {
  const tab = await Tab.open(browser, server.url, options);
  await tab.page.fill("#key", server.key);
  await tab.page.click("#connect button.main");
  await tab.live();
  return tab;
}

async function sendOne({ page }) {
  await page.fill("#send-metadata", '{"unit":"C"}');
  await page.click("#send button.main");
  await page.waitForFunction(() => /seen live/.test(document.getElementById("answer-line").innerText));
}

const browser = await launch();
const server = await Server.start();
try {
  const tabs = {
    dark: await open(browser, server, { colorScheme: "dark", viewport: { width: 1280, height: 1_240 } }),
    narrow: await open(browser, server, { colorScheme: "light", viewport: { width: 390, height: 1_100 } }),
  };
  await live(server);
  for (const [name, tab] of Object.entries(tabs)) {
    await tab.page.bringToFront();
    await sendOne(tab);
    await tab.page.selectOption("#chart-type", "temperature");
    await tab.page.evaluate(() => scrollTo(0, 0));
    await tab.page.screenshot({ path: `${FOLDER}live-${name}.png` });
    await tab.close();
  }
} finally {
  await browser.close();
  await server.remove();
}
