// Chromium with a tab on the live page. Whatever the page asks for, says on its console or would have liked to
// do against its policy is written down.

import assert from "node:assert/strict";

import { chromium } from "playwright-core";

import { PATIENCE_MS } from "../../clients/js/test/server.js";

const EXECUTABLE = process.env.CHROMIUM ?? "/usr/bin/chromium";

export async function launch() {
  const args = ["--no-sandbox", "--js-flags=--expose-gc"];
  return chromium.launch({ executablePath: EXECUTABLE, args, timeout: PATIENCE_MS });
}

/** A tab in a context of its own. */
export class Tab {
  requests = [];
  complaints = [];

  static async open(browser, url, options = {}) {
    const tab = new Tab();
    tab.context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
    tab.context.setDefaultTimeout(PATIENCE_MS);
    tab.page = await tab.context.newPage();
    const { page, requests, complaints } = tab;
    page.on("request", (request) => requests.push(request.url()));
    page.on("websocket", (socket) => requests.push(socket.url()));
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => {
      // That a request got no answer is the network's doing, and some tests' purpose.
      const network = /Failed to load resource|WebSocket connection to/.test(message.text());
      if (["error", "warning"].includes(message.type()) && !network) complaints.push(message.text());
    });
    await page.goto(url);
    return tab;
  }

  /** The text of an element, by its id. */
  text(id) {
    return this.page.locator(`#${id}`).innerText();
  }

  /** Waits until an element's text matches. */
  async says(id, pattern) {
    const matches = ([id, source]) => new RegExp(source, "s").test(document.getElementById(id)?.innerText);
    await this.page.waitForFunction(matches, [id, pattern.source], { polling: 50 }).catch(async () => {
      assert.match(await this.text(id), pattern);
    });
  }

  async live(how = /^Live by/) {
    await this.says("state-words", how);
  }

  /** The cells of the event table, newest first. */
  rows() {
    return this.page.$$eval("#event-rows tr:not([hidden])", (rows) =>
      rows.map((row) => [...row.cells].map((cell) => cell.textContent)),
    );
  }

  /** Values of the event table, oldest first. */
  async values() {
    return (await this.rows()).map((row) => Number(row[3])).reverse();
  }

  async close() {
    await this.context.close();
    assert.deepEqual(this.complaints, []);
  }
}
