// The dead letters of the live page, in Chromium, served by the real program.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, describe, test } from "node:test";

import { Server, until } from "../../clients/js/test/server.js";
import { Tab, launch } from "./browser.js";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const DAY_MS = 86_400_000;
const HOSTILE = '<img src=x onerror="window.taken=1">\u202e';
const COUNT = 25; // one page and a bit

describe("the dead letters of the live page", { concurrency: false }, () => {
  let browser, server, admin;

  const letters = async (query = "") => {
    const answer = await fetch(`${server.url}/v1/dead-letters?${query}`, { headers: { "x-api-key": admin } });
    assert.equal(answer.status, 200);
    return (await answer.json()).data;
  };

  before(async () => {
    browser = await launch();
    // So far ahead a gateway takes them and the store does not.
    server = await Server.start({ flags: [], settings: { PULSESTREAM__INGEST__CLOCK_DRIFT: "12000h" } });
    admin = (await server.run("keys", "create", "--client", "tests", "--scope", "admin")).trim();
    const timestamp = Date.now() + 400 * DAY_MS;
    await server.post(COUNT - 1, { timestamp });
    await until("the first to die", async () => (await letters()).length === COUNT - 1);
    await server.post(1, { timestamp, eventType: HOSTILE });
    await until("the last to die", async () => (await letters()).length === COUNT);
  });
  after(async () => {
    await browser.close();
    await server.remove();
  });

  async function open(key, options) {
    const tab = await Tab.open(browser, server.url, options);
    await tab.page.fill("#key", key);
    await tab.page.click("#connect button.main");
    await tab.live();
    return tab;
  }

  const rows = (tab) => tab.page.locator("#letter-rows tr").count();

  test("are listed in pages, by reason, and as they are now", async () => {
    const tab = await open(admin);
    const { page } = tab;
    await tab.says("letters-note", /^1 to 20, newest first/);
    await tab.says("letter-rows", new RegExp(`out_of_range.*${server.deviceId.slice(0, 8)}.*timestamp.*1.*dead`));
    await page.focus("#letters-older");
    await page.keyboard.press("Enter");
    await tab.says("letters-note", /^21 to 25/);
    assert.deepEqual([await rows(tab), await page.isDisabled("#letters-older")], [5, true]);
    await page.click("#letters-newer");
    await tab.says("letters-note", /^1 to 20/);
    assert.equal(await page.isDisabled("#letters-newer"), true);
    await page.selectOption("#letters-reason", "malformed");
    await tab.says("letters-note", /^none/);
    await page.selectOption("#letters-reason", "out_of_range");
    await tab.says("letters-note", /^1 to 20/);
    const oldest = (await letters()).at(-1).letter;
    await server.run("dlq", "purge", oldest, "--yes");
    await page.click("#letters-older");
    await tab.says("letters-note", /^21 to 24/);
    await server.post(1, { timestamp: Date.now() + 400 * DAY_MS });
    await until("it to die", async () => (await letters()).length === COUNT);
    await page.click("#letters-newer");
    await page.click("#letters-refresh");
    await page.click("#letters-older");
    await tab.says("letters-note", /^21 to 25/);
    await tab.close();
  });

  test("show their bytes as text and the command that sends them again, by keyboard alone", async () => {
    const tab = await open(admin);
    const { page } = tab;
    await tab.says("letters-note", /^1 to 20/);
    const names = (await letters("limit=2")).map(({ letter }) => letter);
    let shown = "";
    for (const name of names) {
      await page.getByRole("button", { name: `Payload of ${name}` }).focus();
      await page.keyboard.press("Enter");
      await tab.says("letter-name", new RegExp(name));
      assert.equal(await tab.text("letter-command"), `pulsestream dlq replay ${name}`);
      shown += await tab.text("letter-payload");
      assert.equal(await page.evaluate(() => document.activeElement.id), "letter");
      await page.keyboard.press("Tab");
      await page.keyboard.press("Enter");
      assert.equal(await page.isVisible("#letter"), false);
      assert.equal(await page.evaluate(() => document.activeElement.ariaLabel), `Payload of ${name}`);
    }
    assert.match(shown, /<img src=x onerror=\\"window.taken=1\\">\\u\{202e\}/);
    assert.match(shown, new RegExp(server.deviceId));
    const elements = await page.locator("img, script:not([src])").count();
    assert.deepEqual([elements, await page.evaluate(() => window.taken)], [0, undefined]);
    await tab.close();
  });

  test("are not there for a key that is no admin's, and go with the key", async () => {
    const tab = await Tab.open(browser, server.url);
    const asked = tab.page.waitForResponse((answer) => answer.url().includes("/v1/dead-letters"));
    await tab.page.fill("#key", server.key);
    await tab.page.click("#connect button.main");
    assert.equal((await asked).status(), 403);
    await tab.live();
    assert.equal(await tab.page.isVisible("#letters"), false);
    await tab.page.fill("#key", admin);
    await tab.page.click("#connect button.main");
    await tab.says("letters-note", /newest first/);
    await tab.page.click("#forget");
    assert.equal(await tab.page.isVisible("#letters"), false);
    assert.equal(await rows(tab), 0);
    await tab.close();
  });

  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1280, 390]) {
      test(`have no fault axe can find, ${colorScheme}, ${width} px wide`, async () => {
        const tab = await open(admin, { colorScheme, viewport: { width, height: 844 } });
        await tab.says("letters-note", /newest first/);
        await tab.page.locator("#letter-rows button").first().click();
        await tab.says("letter-payload", /deviceId/);
        await tab.page.evaluate(AXE);
        const { violations } = await tab.page.evaluate(() => window.axe.run());
        const faults = violations.map(({ id, nodes }) => [id, nodes.map(({ html, failureSummary }) => [html, failureSummary])]);
        assert.deepEqual(faults, []);
        assert.equal(await tab.page.evaluate(() => document.documentElement.scrollWidth), width);
        if (process.env.PICTURES) {
          await tab.page.locator("#letters").screenshot({ path: `${process.env.PICTURES}/${colorScheme}-${width}.png` });
        }
        await tab.close();
      });
    }
  }
});
