// The console in Chromium, as the edge serves it.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { audit, copied, hasRows, isShown, open, pasted, says, settle, submit, tailwater, text } from "./console_page.mjs";
import { run } from "./world.mjs";

/** A kind of this scenario's own, whose jobs fail once. */
async function startRetrying(world, page) {
  const kind = `retry-${Math.random().toString(36).slice(2)}`;
  const program = fileURLToPath(new URL("retry.sh", import.meta.url));
  world.worker(kind, ["bash", program], ["--format", "ndjson"]);
  await page.waitForSelector(`#kind option[value=${kind}]`, { state: "attached" });
  return kind;
}

/** The texts of one column of the log, from 1. */
const column = (page, n) => page.locator(`#log td:nth-child(${n})`).allTextContents();

/** Waits until a chart says this, for those who cannot see it. */
const chartSays = (page, chart, part) =>
  page.waitForFunction(
    ([chart, part]) => document.querySelector(`[data-chart=${chart}] svg`).getAttribute("aria-label").includes(part),
    [chart, part],
  );

/** Waits until the row of a kind has these numbers: waiting, running, idle workers. */
const kindIs = (page, kind, test) =>
  page.waitForFunction(
    ([kind, test]) => {
      const row = [...document.querySelectorAll("#kinds tr")].find((row) => row.cells[0].textContent === kind);
      const [waiting, running, idle] = row ? [...row.cells].slice(1).map((cell) => Number(cell.textContent)) : [];
      return row && (test === "waits" ? waiting === 55 && running === 0 : waiting === 0 && idle > 0);
    },
    [kind, test],
  );

/** What the console asks for again and again. */
const POLLED = ["/api/jobs", "/api/kinds", "/api/stats"];

/** A page that nobody looks at, or that somebody looks at again. */
const setHidden = (page, isHidden) =>
  page.evaluate((isHidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => isHidden });
    document.dispatchEvent(new Event("visibilitychange"));
  }, isHidden);

await run({
  async submit(world) {
    const { page, faults } = await open(world);
    assert.deepEqual(JSON.parse(await page.inputValue("#input")), { words: 120, rate: 15 });
    const job = await submit(page, "demo", { words: 40, rate: 40, seed: 3 });
    await isShown(page, "done");
    const { output, seq } = await world.result(job);
    assert.equal(await text(page, "text"), output);
    assert.equal(await page.locator("#log tr").count(), seq);
    // The list shows it, and kinds with their workers.
    await page.waitForSelector(`#jobs tr[aria-current] a[href="#job=${job}"]`);
    assert.ok((await text(page, "kinds")).includes("demo"));
    // A filter that does not match hides it.
    await page.selectOption("#filter-status", "queued");
    await page.waitForSelector(`#jobs a[href="#job=${job}"]`, { state: "detached" });
    // Another page of the same address shows the same job.
    const other = await page.context().newPage();
    await other.goto(page.url());
    await isShown(other, "done");
    assert.equal(await text(other, "text"), output);
    await page.fill("#input", "{");
    await page.click("#submit button.primary");
    assert.match(await text(page, "submit-error"), /not JSON/);
    assert.deepEqual(faults, []);
  },

  async cut(world) {
    const { page, faults } = await open(world);
    const input = world.input();
    const job = await submit(page, "exec", input);
    await page.waitForFunction(() => document.querySelectorAll("#log tr").length > 5);
    // The page does not end the cut by itself.
    await page.evaluate(() => {
      const { setTimeout } = window;
      window.setTimeout = (work, time, ...given) => (time >= 15_000 ? 0 : setTimeout(work, time, ...given));
    });
    await page.click("#cut");
    await says(page, "resume", "Connection cut after event");
    const last = Number(/after event (\d+)\./.exec(await text(page, "resume"))[1]);
    await world.hasEvents(job, last + 5);
    await world.finish(input);
    const { output } = await world.result(job);
    // What had arrived before is drawn, and nothing after it.
    const arrived = (await world.events(job)).filter(({ type, seq }) => type === "model:chunk:v1" && seq <= last);
    const before = arrived.map(({ text }) => text).join("");
    assert.ok(before && output.startsWith(before) && output !== before, before);
    await page.waitForFunction((before) => document.getElementById("text").textContent === before, before);
    await page.click("#cut");
    await isShown(page, "done");
    assert.match(await text(page, "resume"), /^Resumed at event \d+: missing 0, doubled 0\.$/);
    assert.equal(await text(page, "text"), output);
    assert.equal(await page.locator("#log tr.cut").count(), 1);
    assert.deepEqual(faults, []);
  },

  async stop(world) {
    const { page, faults } = await open(world);
    const job = await submit(page, "exec", world.input());
    await page.waitForFunction(() => document.querySelectorAll("#log tr").length > 5);
    await page.click("#stop");
    await isShown(page, "cancelled");
    assert.equal(await text(page, "text"), (await world.result(job)).output);
    assert.match(await text(page, "log"), /cancellation requested/);
    assert.deepEqual(faults, []);
  },

  async keyboard(world) {
    const { page, faults } = await open(world);
    const focused = () => page.evaluate(() => document.activeElement?.id);
    /** Presses a key until the element has the focus. */
    const reach = async (id) => {
      for (let presses = 0; (await focused()) !== id; presses++) {
        assert.ok(presses < 40, `${id} cannot be reached`);
        await page.keyboard.press("Tab");
      }
    };
    await reach("input");
    await page.keyboard.press("Control+A");
    await page.keyboard.type('{"words": 5, "rate": 50}');
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await isShown(page, "done");
    await reach("theme");
    await page.keyboard.press("Enter");
    assert.equal(await page.getAttribute("#theme", "aria-label"), "Theme: light");
    assert.deepEqual(faults, []);
  },

  async timeline(world) {
    const { page, faults } = await open(world);
    const kind = await startRetrying(world, page);
    const input = { ...world.input(), question: "why <u>this</u>?" };
    const job = await submit(page, kind, input);
    await says(page, "log", '"markup"');
    // A silence longer than the console takes for normal, which is 2 s.
    await sleep(2100);
    await world.finish(input);
    await isShown(page, "done");
    await page.waitForFunction(() => document.getElementById("log").lastElementChild?.textContent.includes("done"));
    const { output } = await world.result(job);
    assert.equal(output, "<img src=x>text-2");
    // What the first attempt wrote is in the log only.
    assert.equal(await text(page, "text"), output);
    assert.equal(await page.getByRole("region", { name: "Reasoning" }).textContent(), "<i>thought-2</i>");
    const events = await world.events(job);
    assert.deepEqual(await column(page, 1), events.map(({ seq }) => `${seq}`));
    assert.equal((await column(page, 2))[0], "0.00 s");
    const attempts = events.map(({ attempt }) => (attempt ? `${attempt}` : "–"));
    assert.deepEqual(await column(page, 4), attempts);
    assert.ok(attempts.includes("1") && attempts.includes("2"));
    // The silence is marked in the row of what ended it.
    assert.match(await page.locator("#log tr", { hasText: "late" }).locator("td.slow").textContent(), /^\+\d+\.\d+ s$/);
    // The retry, with its reason.
    assert.match(await page.locator("#log tr.loud").textContent(), /attempt 1 is over.*<u>again<\/u>/s);
    assert.equal(await page.locator("#strip .mark").count(), 1);
    assert.match(await page.getAttribute("#strip", "aria-label"), /^\d+ events in .* 2 attempts$/);
    // Each attempt has its colour, in the log and in the strip.
    const colours = await page.evaluate(() => {
      const look = (selector) => getComputedStyle(document.querySelector(selector));
      return [1, 2].map((n) => [look(`#log .attempt-${n} .dot`).color, look(`#strip .bar-of.attempt-${n}`).fill]);
    });
    assert.notEqual(colours[0][0], colours[1][0]);
    for (const [inLog, inStrip] of colours) assert.equal(inLog, inStrip);
    // Nothing that a job says is markup.
    for (const part of ["<img src=x>text-1", "<script>alert(1)</script>", "why <u>this</u>?"]) await says(page, "log", part);
    await audit(page, "with reasoning and a retry");
    await page.check("#raw");
    const plain = ({ type, seq, attempt, ts }) => ({ type, seq, attempt, ts });
    assert.deepEqual((await column(page, 5)).map((json) => plain(JSON.parse(json))), events.map(plain));
    assert.equal(await page.locator("img, i, u, main script").count(), 0);
    const lines = (await copied(page, "#copy-events")).split("\n");
    assert.deepEqual(lines.map((line) => plain(JSON.parse(line))), events.map(plain));
    // The copied commands do the same as the page.
    const stream = await pasted(await copied(page, "#job-curl"));
    assert.equal(stream.split("\n").filter((line) => /^data: .*"seq":/.test(line)).length, events.length);
    await page.selectOption("#kind", kind);
    await page.fill("#input", JSON.stringify({ text: "it's" }));
    const accepted = JSON.parse(await pasted(await copied(page, "#submit-curl")));
    const [queued] = await world.events(accepted.job);
    assert.deepEqual([queued.kind, queued.input], [kind, { text: "it's" }]);
    // The same job once more.
    await page.click("#again");
    await page.waitForFunction((job) => document.getElementById("job-title").textContent !== job, job);
    await says(page, "log", JSON.stringify(input));
    assert.deepEqual(faults, []);
  },

  /** No file of the page can make markup of a text. */
  async sources(world) {
    for (const name of ["/", "/console.js", "/client.js"]) {
      const source = await (await fetch(`http://${world.addr}${name}`)).text();
      const found = source.match(/innerHTML|outerHTML|insertAdjacentHTML|setHTML|parseHTML|createContextualFragment|srcdoc|DOMParser|document\.write|\beval\b/g);
      assert.deepEqual([name, found], [name, null]);
    }
  },

  async cancelled_elsewhere(world) {
    const { page, faults } = await open(world);
    const job = await submit(page, "exec", world.input());
    await hasRows(page, 6);
    await tailwater(world, "cancel", job, "--by", "anna", "--nats", world.nats);
    await isShown(page, "cancelled");
    await says(page, "log", "cancellation requested by anna");
    assert.equal(await page.isDisabled("#stop"), true);
    assert.deepEqual(faults, []);
  },

  async list(world) {
    const { page, faults } = await open(world);
    const input = world.input();
    // Another client's job appears by itself.
    const job = await world.submit(input);
    const link = `#jobs a[href="#job=${job}"]`;
    await page.waitForSelector(link);
    const cells = () => page.locator("#jobs tr", { has: page.locator(`a[href="#job=${job}"]`) }).locator("td").allTextContents();
    const rowHas = (index, pattern) =>
      page.waitForFunction(
        ([link, index, pattern]) => {
          const row = document.querySelector(link)?.closest("tr");
          return row && new RegExp(pattern).test(row.cells[index].textContent);
        },
        [link, index, pattern],
      );
    await rowHas(1, "^running$");
    await rowHas(3, "^[1-9][0-9.]*/s$");
    const [name, , attempt, , age] = await cells();
    assert.equal(name, `${job}exec`);
    assert.equal(attempt, "1");
    assert.match(age, /^\d+ s$/);
    await page.selectOption("#filter-kind", "demo");
    await page.waitForSelector(link, { state: "detached" });
    await page.selectOption("#filter-kind", "exec");
    await page.waitForSelector(link);
    await world.finish(input);
    await rowHas(1, "^done$");
    await rowHas(3, "^$");
    assert.deepEqual(faults, []);
  },

  async kinds(world) {
    const kind = `idle-${Math.random().toString(36).slice(2)}`;
    await tailwater(world, "setup", "--nats", world.nats, "--kind", kind);
    for (let n = 1; n <= 55; n++) {
      const options = { method: "POST", headers: { "content-type": "application/json" } };
      const response = await fetch(`http://${world.addr}/api/jobs`, { ...options, body: JSON.stringify({ kind, input: { n } }) });
      assert.equal(response.status, 202);
    }
    const other = await world.submit(world.input());
    const { page, faults } = await open(world);
    await kindIs(page, kind, "waits");
    // The example is what was submitted last.
    await page.selectOption("#kind", kind);
    await page.waitForFunction(() => document.getElementById("input").value.includes('"n"'));
    // An input that a person has written stays.
    await page.fill("#input", '{"mine": 1}');
    await page.selectOption("#kind", "demo");
    assert.equal(await page.inputValue("#input"), '{"mine": 1}');
    const link = `#jobs a[href="#job=${other}"]`;
    await page.waitForSelector(link);
    // Until the list of the chosen kind is there, it cannot be asked for more.
    let answer;
    const isLate = new Promise((resolve) => (answer = resolve));
    const isFiltered = ({ pathname, searchParams }) => pathname === "/api/jobs" && searchParams.get("kind") === kind;
    await page.route(isFiltered, async (route) => {
      await isLate;
      await route.continue();
    });
    await page.selectOption("#filter-kind", kind);
    assert.equal(await page.isDisabled("#more"), true);
    answer();
    await page.waitForSelector(link, { state: "detached" });
    await page.waitForFunction(() => document.querySelectorAll("#jobs tr").length === 50);
    await page.click("#more");
    await page.waitForFunction(() => document.querySelectorAll("#jobs tr").length === 55);
    await page.unrouteAll({ behavior: "wait" });
    world.worker(kind, ["true"]);
    await kindIs(page, kind, "served");
    assert.deepEqual(faults, []);
  },

  async numbers(world) {
    // An edge without other clients.
    const { addr } = await world.edge();
    const { page, faults } = await open(world, { addr });
    const job = await submit(page, "exec", world.input());
    await chartSays(page, "connections", "WebSocket: now 1");
    await page.waitForFunction(() => Number(document.querySelector("[data-chart=events] output").textContent) > 0);
    await page.evaluate((job) => {
      window.source = new EventSource(`/api/jobs/${job}/events`);
      window.engine = new WebSocket(`${location.origin.replace("http", "ws")}/socket.io/?EIO=4&transport=websocket`);
      window.engine.onopen = () => window.engine.send("40");
    }, job);
    await chartSays(page, "connections", "event stream: now 1");
    await chartSays(page, "connections", "Socket.IO: now 1");
    await page.evaluate(() => {
      window.source.close();
      window.engine.close();
    });
    await chartSays(page, "connections", "event stream: now 0");
    await chartSays(page, "connections", "Socket.IO: now 0");
    const lines = page.locator("[data-chart=connections] .line");
    assert.equal(await lines.count(), 3);
    for (const line of await lines.all()) assert.ok((await line.getAttribute("d")).split("L").length > 2);
    // What an edge has only under load.
    const stats = await (await fetch(`http://${addr}/api/stats`)).json();
    await page.route("**/api/stats", (route) => route.fulfill({ json: { ...stats, lag: 7, replays: 3 } }));
    await chartSays(page, "lag", "now 7");
    await chartSays(page, "replays", "now 3");
    assert.equal(await page.textContent("[data-chart=lag] output"), "7");
    await page.unrouteAll({ behavior: "wait" });
    assert.deepEqual(faults, []);
  },

  /** A page that nobody looks at asks for nothing, and one that somebody looks at for little. */
  async hidden(world) {
    const { addr } = await world.edge();
    const [looked, hidden] = [await open(world, { addr }), await open(world, { addr })];
    const begun = [];
    looked.page.on("requestfinished", (request) => {
      const path = new URL(request.url()).pathname;
      if (path.startsWith("/api/")) begun.push([path, request.timing().startTime]);
    });
    const times = (polled) => begun.filter(([path]) => path === polled).map(([, at]) => at);
    const seen = (condition) =>
      new Promise((resolve) => {
        const asked = () => {
          if (!condition()) return;
          looked.page.off("requestfinished", asked);
          resolve();
        };
        looked.page.on("requestfinished", asked);
      });
    await setHidden(hidden.page, true);
    // Until then, what was begun before is over.
    await seen(() => times("/api/stats").length >= 1);
    const before = hidden.requests.length;
    await seen(() => times("/api/stats").length >= 4 && POLLED.every((polled) => times(polled).length > 1));
    assert.deepEqual(hidden.requests.slice(before), []);
    const asks = hidden.page.waitForRequest((request) => request.url().endsWith("/api/stats"));
    await setHidden(hidden.page, false);
    await asks;
    assert.deepEqual([...new Set(begun.map(([path]) => path))].sort(), POLLED);
    for (const polled of POLLED) {
      const pauses = times(polled).map((at, index, all) => at - all[index - 1]).slice(1);
      assert.ok(pauses.length > 0 && Math.min(...pauses) > 1900, `${polled}: ${pauses}`);
    }
    assert.deepEqual([looked.faults, hidden.faults], [[], []]);
  },

  /** A page that was left open asks for less, until somebody returns. */
  async away(world) {
    const { addr } = await world.edge();
    const { page, faults, requests } = await open(world, { addr, clock: true });
    const polled = async () => (await page.waitForResponse((response) => response.url().endsWith("/api/stats"))).finished();
    const asked = () => requests.filter((url) => POLLED.includes(new URL(url).pathname)).length;
    await Promise.all([polled(), page.clock.fastForward(11 * 60_000)]);
    await settle(page);
    const before = asked();
    await page.clock.fastForward(12_000);
    await settle(page);
    assert.equal(asked(), before);
    await Promise.all([polled(), page.clock.fastForward(30_000)]);
    await settle(page);
    await Promise.all([polled(), page.keyboard.press("Shift")]);
    await settle(page);
    await Promise.all([polled(), page.clock.fastForward(2500)]);
    assert.deepEqual(faults, []);
  },

  async keyboard_job(world) {
    const { page, faults } = await open(world);
    const finished = await submit(page, "demo", { words: 5, rate: 50 });
    await isShown(page, "done");
    const job = await submit(page, "exec", world.input());
    await hasRows(page, 6);
    const focused = () => page.evaluate(() => document.activeElement?.id);
    // The first link of the page leads to the job, which stays.
    await page.focus("#skip");
    await page.keyboard.press("Enter");
    assert.deepEqual([await focused(), new URL(page.url()).hash], ["detail", `#job=${job}`]);
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "stop");
    await page.keyboard.press("Enter");
    await isShown(page, "cancelled");
    await page.focus(`#jobs a[href="#job=${finished}"]`);
    await page.keyboard.press("Enter");
    await isShown(page, "done");
    assert.equal(await text(page, "job-title"), finished);
    // A poll of the list leaves the focus where it is.
    await page.waitForResponse((response) => new URL(response.url()).pathname === "/api/jobs");
    assert.equal(await page.evaluate(() => document.activeElement.getAttribute("href")), `#job=${finished}`);
    assert.deepEqual(faults, []);
  },

  async phone(world) {
    const { page, faults } = await open(world, { viewport: { width: 390, height: 844 }, hasTouch: true });
    const isInSight = () =>
      page.waitForFunction(() => {
        const { top, bottom } = document.getElementById("job-title").getBoundingClientRect();
        return top >= document.querySelector(".bar").getBoundingClientRect().bottom && bottom < innerHeight;
      });
    const first = await submit(page, "demo", { words: 5, rate: 50 });
    await isShown(page, "done");
    await isInSight();
    const second = await submit(page, "demo", { words: 5, rate: 50 });
    await isShown(page, "done");
    for (const job of [first, second]) {
      await page.tap(`#jobs a[href="#job=${job}"]`);
      await page.waitForFunction((job) => document.getElementById("job-title").textContent === job, job);
      await isInSight();
    }
    assert.deepEqual(faults, []);
  },

  async accessible(world) {
    const [window, phone] = [{ width: 1440, height: 900 }, { width: 390, height: 844 }];
    for (const options of [
      { colorScheme: "light", viewport: window },
      { colorScheme: "dark", viewport: window },
      { colorScheme: "dark", viewport: phone },
    ]) {
      const { page, faults } = await open(world, options);
      const check = (what) => audit(page, `${what}, ${JSON.stringify(options)}`);
      if (options.colorScheme === "light") await check("without a job");
      await submit(page, "demo", { words: 10, rate: 50 });
      await isShown(page, "done");
      await check("with a job");
      await page.check("#raw");
      await submit(page, "demo", { bad: true });
      await isShown(page, "failed");
      await page.click("#cut");
      await check("with a failed job");
      // Nothing is wider than the window.
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${overflow} pixels too wide`);
      assert.deepEqual(faults, []);
    }
  },
});
