// The live page in Chromium, served by the real program.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, describe, test } from "node:test";

import { Proxy, Server, until } from "../../clients/js/test/server.js";
import { Tab, launch } from "./browser.js";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const OUTAGE_MS = 10_000;

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser.close());

/** Numbers from `first` on. */
const from = (first, count) => Array.from({ length: count }, (_, index) => first + index);

describe("the live page", { concurrency: false }, () => {
  let server;
  before(async () => {
    server = await Server.start();
  });
  after(() => server.remove());

  test("shows an event within a second of its being sent", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.live();
    const newest = (value) => document.querySelector("#event-rows td:nth-child(4)")?.textContent === String(value);
    // Any of several: the machine may be busy with something else, the page itself has no reason to wait.
    await until("an event to be shown within a second", async () => {
      const sentAt = performance.now();
      const [{ value }] = await server.post(1);
      await tab.page.waitForFunction(newest, value, { polling: 20 });
      return performance.now() - sentAt < 1_000;
    });
    const shortName = new RegExp(server.deviceId.slice(0, 8));
    await tab.says("latest", new RegExp(`${shortName.source}.*count`));
    await tab.says("legend", shortName);
    assert.equal(await tab.page.locator("#chart canvas").count(), 1);
    await tab.close();
  });

  for (const [transport, words] of [["websocket", /WebSocket/], ["sse", /server-sent/], ["poll", /polling/]]) {
    test(`goes on by ${transport} after ten seconds offline, and misses nothing`, async () => {
      const proxy = await Proxy.before(server.port);
      const tab = await Tab.open(browser, proxy.url);
      await tab.page.selectOption("#transport", transport);
      await tab.page.click("#connect button.main");
      await tab.live(words);
      const first = server.posted;
      await server.post(5);
      await tab.says("count", /^5$/);
      await tab.context.setOffline(true);
      proxy.swallow();
      await server.post(20);
      await tab.page.waitForTimeout(OUTAGE_MS);
      assert.equal(await tab.text("count"), "5");
      proxy.release();
      await tab.context.setOffline(false);
      await server.post(5);
      await tab.says("count", /^30$/);
      await tab.live(/Nothing was missed|polling/);
      assert.deepEqual(await tab.values(), from(first, 30));
      assert.equal(await tab.text("gap-count"), "0");
      await tab.close();
      proxy.close();
    });
  }

  test("goes on after the server was killed, and after it was stopped in an orderly way", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.live();
    const first = server.posted;
    for (const [round, signal] of ["SIGKILL", "SIGTERM"].entries()) {
      await server.post(10);
      await tab.says("count", new RegExp(`^${10 * (2 * round + 1)}$`));
      await server.down(signal);
      await tab.says("state-words", /^No connection/);
      await server.up();
      await server.post(10);
      await tab.says("count", new RegExp(`^${10 * (2 * round + 2)}$`));
    }
    assert.deepEqual(await tab.values(), from(first, 40));
    assert.equal(await tab.text("gap-count"), "0");
    await tab.close();
  });

  test("the browser's own EventSource comes back after kill -9: nothing is missing, nothing comes twice", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.page.evaluate(() => {
      const heard = (window.heard = { values: [], recovered: [] });
      const source = new EventSource("/v1/stream/sse");
      source.onmessage = ({ data }) => heard.values.push(JSON.parse(data).value);
      source.addEventListener("hello", ({ data }) => heard.recovered.push(JSON.parse(data).recovered));
    });
    const heard = () => tab.page.evaluate(() => window.heard);
    await until("hello", async () => (await heard()).recovered.length === 1);
    const first = server.posted;
    await server.post(5);
    await until("five events", async () => (await heard()).values.length >= 5);
    await server.down("SIGKILL");
    await server.up();
    await server.post(5);
    await until("it to be back", async () => (await heard()).values.length >= 10);
    assert.deepEqual(await heard(), { values: from(first, 10), recovered: [null, true] });
    await tab.close();
  });

  test("tells a gap in words", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.live();
    await server.post(1);
    await tab.says("count", /^1$/);
    await server.remove();
    const port = server.port;
    server = await Server.start(); // another log: the cursor of the old one is of no use there
    await server.down();
    server.port = port;
    server.url = `http://127.0.0.1:${port}`;
    await server.up();
    await tab.live(/after|missing/);
    await tab.says("gaps", /Events missing: the log was replaced/);
    await tab.says("gap-count", /^1$/);
    await server.post(1);
    await tab.says("count", /^2$/);
    await tab.close();
  });

  test("shows what a hostile device says as text", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.live();
    const hostile = '<img src=x onerror="window.taken=1">';
    await server.post(1, { eventType: hostile, metadata: { '<b id="bold">': "</td><script>window.taken=2</script>" } });
    await tab.says("events", /<img src=x onerror="window.taken=1">.*<b id=.*<script>window.taken=2/);
    await tab.says("latest", /<img src=x/);
    const types = await tab.page.$$eval("#chart-type option", (options) => options.map(({ text }) => text));
    assert.deepEqual(types, [hostile]);
    await tab.page.fill("#filter", hostile);
    assert.equal((await tab.rows()).length, 1);
    const elements = await tab.page.locator("img, #bold, script:not([src])").count();
    assert.deepEqual([elements, await tab.page.evaluate(() => window.taken)], [0, undefined]);
    await tab.close();
  });

  test("refuses inline code and markup made of text", async () => {
    const tab = await Tab.open(browser, server.url);
    const [inline, markup] = await tab.page.evaluate(() => {
      const script = document.createElement("script");
      const attempt = (change) => {
        try {
          change();
          return "done";
        } catch (error) {
          return error.name;
        }
      };
      const inline = attempt(() => {
        script.textContent = "window.taken = 3";
        document.body.append(script);
      });
      return [window.taken ?? inline, attempt(() => (document.body.innerHTML = "<p>taken</p>"))];
    });
    assert.notEqual(inline, 3);
    assert.equal(markup, "TypeError");
    assert.ok(tab.complaints.length > 0, "the policy was not asked");
    tab.complaints.length = 0;
    await tab.close();
  });

  test("asks for nothing but its own origin", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.live();
    await tab.page.fill("#key", server.key);
    await tab.page.click("#connect button.main");
    await tab.live();
    await tab.page.click("#send button.main");
    await tab.says("answer-line", /^202 .*seen live/);
    const origins = new Set(tab.requests.map((url) => new URL(url).host));
    assert.deepEqual([...origins], [new URL(server.url).host]);
    assert.ok(tab.requests.some((url) => url.startsWith("ws:")), "no WebSocket was opened");
    assert.ok(tab.requests.length > 10, `only ${tab.requests}`);
    await tab.close();
  });

  test("sends an event, repeats it harmlessly and asks what became of it", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.live();
    const { page } = tab;
    await page.fill("#key", server.key);
    await page.click("#connect button.main");
    await tab.live();
    await page.fill("#send-metadata", '{"unit":"C"}');
    await page.press("#send-value", "Enter");
    await tab.says("answer-line", /^202 after \d+ ms, seen live after \d+ ms/);
    await tab.says("answer-body", /Event accepted for processing/);
    await tab.says("events", /21\.5.*\{"unit":"C"\}/);
    const before = await tab.text("count");
    await page.click("#again");
    await tab.says("answer-body", /idempotency-replayed: true/);
    await until("it to be stored", async () => {
      await page.click("#ask");
      await tab.says("answer-body", /"status": "(pending|stored)"/);
      return /"stored"/.test(await tab.text("answer-body"));
    });
    assert.equal(await tab.text("count"), before);
    await page.fill("#send-device", "no-uuid");
    await page.press("#send-value", "Enter");
    await tab.says("answer-line", /^400/);
    await tab.says("answer-body", /deviceId/);
    await page.fill("#send-metadata", "{");
    await page.press("#send-value", "Enter");
    await tab.says("answer-line", /no JSON/);
    await tab.close();
  });

  test("holds its events still while they are read, and finds some of them", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.live();
    const first = server.posted;
    await server.post(3);
    await server.post(2, { eventType: "pressure", metadata: { room: "Cellar" } });
    await tab.says("count", /^5$/);
    await tab.page.focus("#pause");
    await tab.page.keyboard.press("Enter");
    await server.post(4);
    await tab.says("events-note", /4 new since/);
    assert.deepEqual(await tab.values(), from(first, 5));
    await tab.page.fill("#filter", "cellar");
    assert.deepEqual(await tab.values(), from(first + 3, 2));
    await tab.page.fill("#filter", "");
    await tab.page.focus("#pause");
    await tab.page.keyboard.press("Space");
    await tab.says("events-note", /9 of the last 9/);
    assert.deepEqual(await tab.values(), from(first, 9));
    await tab.close();
  });

  test("shows what it is asked to show, and the server's words when that is wrong", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.live();
    await tab.page.fill("#type", "wanted");
    await tab.page.press("#type", "Enter");
    await tab.live();
    await server.post(3);
    await server.post(2, { eventType: "wanted" });
    await tab.says("count", /^2$/);
    await tab.page.fill("#device", "nobody");
    await tab.page.press("#device", "Enter");
    await tab.says("state-words", /refused the query.*deviceId/);
    await tab.close();
  });

  test("everything is reached by keyboard, in the order it is read", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.live();
    await server.post(1);
    await tab.says("count", /^1$/);
    const reached = [];
    for (let presses = 0; presses < 40; presses += 1) {
      await tab.page.keyboard.press("Tab");
      const id = await tab.page.evaluate(() => document.activeElement.id || document.activeElement.className);
      if (id === "skip" && reached.length > 0) break;
      reached.push(id);
    }
    const wanted = ["skip", "docs", "key", "device", "transport", "chart-type", "send-device", "walk", "filter", "pause"];
    assert.deepEqual(reached.filter((id) => wanted.includes(id)), wanted);
    await tab.close();
  });

  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1280, 390]) {
      test(`has no fault axe can find, ${colorScheme}, ${width} px wide, and does not scroll sideways`, async () => {
        const tab = await Tab.open(browser, server.url, { colorScheme, viewport: { width, height: 844 } });
        await tab.live();
        await server.post(3, { metadata: { firmware: "4.11.2-rc1+build.77", note: "a rather long text about nothing" } });
        await server.post(2, { eventType: "a-type-of-fifty-characters-that-has-no-gap-in-it-x" });
        await tab.says("count", /^5$/);
        await tab.page.click("#send button.main");
        await tab.says("answer-line", /after/);
        await tab.page.evaluate(AXE);
        const { violations, passes } = await tab.page.evaluate(() => window.axe.run());
        const faults = violations.map(({ id, nodes }) => [id, nodes.map(({ html, failureSummary }) => [html, failureSummary])]);
        assert.deepEqual(faults, []);
        assert.ok(passes.length > 20, `only ${passes.length} rules looked at something`);
        assert.equal(await tab.page.evaluate(() => document.documentElement.scrollWidth), width);
        await tab.close();
      });
    }
  }

  test("holds no more after a hundred thousand events than after ten thousand", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.live();
    const session = await tab.context.newCDPSession(tab.page);
    await session.send("Performance.enable");
    let total = 0;
    const held = async (events) => {
      while (total < events) {
        await server.post(1_000, { deviceId: crypto.randomUUID(), eventType: `type ${total % 40_000}` });
        total += 1_000;
        // Never far ahead of the page, however slow the machine: it is not its speed that is measured.
        if (total % 5_000 === 0) await tab.says("count", new RegExp(`^${total.toLocaleString("en-US")}$`));
      }
      await session.send("HeapProfiler.collectGarbage");
      const { metrics } = await session.send("Performance.getMetrics");
      const of = (name) => metrics.find((metric) => metric.name === name).value;
      return { heap: of("JSHeapUsedSize"), nodes: of("Nodes") };
    };
    await held(40_000); // every type it keeps is there
    const early = await held(50_000);
    const late = await held(100_000);
    assert.ok(late.heap < early.heap + 2e6, `${early.heap} then ${late.heap} bytes`);
    assert.ok(late.nodes < early.nodes + 200, `${early.nodes} then ${late.nodes} nodes`);
    await tab.close();
  });
});

describe("the live page where a key is needed", { concurrency: false }, () => {
  let server;
  before(async () => {
    server = await Server.start({ flags: [] });
  });
  after(() => server.remove());

  test("asks for one, keeps it for this tab alone and forgets it when told", async () => {
    const tab = await Tab.open(browser, server.url);
    await tab.says("state-words", /needs an API key/);
    await tab.page.fill("#key", "ps_live_wrong");
    await tab.page.keyboard.press("Enter");
    await tab.says("state-words", /needs an API key/);
    await tab.page.fill("#key", server.key);
    await tab.page.keyboard.press("Enter");
    await tab.live();
    await server.post(2);
    await tab.says("count", /^2$/);
    assert.equal(await tab.page.inputValue("#key"), "");
    await tab.page.reload();
    await tab.live();
    const told = await tab.page.evaluate((key) => [location.href, document.cookie, JSON.stringify(localStorage)].join().includes(key), server.key);
    assert.equal(told, false);
    assert.ok(tab.requests.every((url) => !url.includes(server.key)), "the key is in an address");
    const other = await tab.context.newPage();
    await other.goto(server.url);
    await other.waitForFunction(() => /needs an API key/.test(document.getElementById("state-words").innerText));
    await other.close();
    await tab.page.click("#forget");
    await tab.says("state-words", /Not connected/);
    await tab.page.reload();
    await tab.says("state-words", /needs an API key/);
    await tab.close();
  });

  test("says that its key was revoked", async () => {
    const key = (await server.run("keys", "create", "--client", "tests")).trim();
    const tab = await Tab.open(browser, server.url);
    await tab.page.fill("#key", key);
    await tab.page.keyboard.press("Enter");
    await tab.live();
    const keys = JSON.parse(await server.run("keys", "list", "--json"));
    const { prefix } = keys.find(({ prefix }) => key.startsWith(prefix));
    await server.run("keys", "revoke", prefix);
    await tab.says("state-words", /revoked or has expired|needs an API key/);
    await tab.close();
  });
});
