// The console in Chromium, as the edge serves it.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { require, run } from "./world.mjs";

/** Opens the console, and requires that it loads nothing from elsewhere and breaks no policy. */
async function open(world, options = {}) {
  const context = await world.browser.newContext(options);
  world.after(() => context.close());
  context.setDefaultTimeout(30_000);
  const page = await context.newPage();
  const origin = `http://${world.network.addr}`;
  const faults = [];
  page.on("pageerror", (error) => faults.push(error.stack));
  page.on("console", (message) => {
    // A request that failed while the network was cut is reported here, too.
    if (message.type() === "error" && !message.text().includes("net::ERR")) faults.push(message.text());
  });
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(origin) && !url.startsWith("data:")) faults.push(url);
  });
  await page.goto(origin);
  await page.waitForFunction(() => document.getElementById("kind").options.length > 1);
  return { page, faults };
}

async function submit(page, kind, input) {
  await page.selectOption("#kind", kind);
  await page.fill("#input", JSON.stringify(input));
  await page.click("#submit button.primary");
  await page.waitForFunction(() => location.hash.startsWith("#job="));
  return new URL(page.url()).hash.slice("#job=".length);
}

const isShown = (page, status) =>
  page.waitForFunction((status) => document.getElementById("job-status").textContent === status, status);
const text = (page, id) => page.textContent(`#${id}`);

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
    await page.click("#cut");
    await page.waitForFunction(() => /Connection cut after event/.test(document.getElementById("resume").textContent));
    const before = (await text(page, "text")).length;
    await world.finish(input);
    const { output } = await world.result(job);
    assert.equal((await text(page, "text")).length, before);
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

  async accessible(world) {
    const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");
    const [window, phone] = [{ width: 1440, height: 900 }, { width: 390, height: 844 }];
    for (const options of [
      { colorScheme: "light", viewport: window },
      { colorScheme: "dark", viewport: window },
      { colorScheme: "dark", viewport: phone },
    ]) {
      const { page, faults } = await open(world, options);
      const check = async (what) => {
        const { violations } = await page.evaluate(() => axe.run());
        const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
        assert.deepEqual(found, [], `${what}, ${JSON.stringify(options)}`);
      };
      // Past the page's policy, as a debugger does it.
      await page.evaluate(axe);
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
