// The client in Chromium: each scenario breaks something, and the text is the backend's in the end.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { run } from "./world.mjs";

/** Follows a job in a page. */
const follow = (page, job, options = {}) => page.evaluate(([job, options]) => void follow(job, options), [job, options]);
const isAfter = (page, seq) => page.waitForFunction((seq) => seen.watch.seq >= seq, seq);
const ended = (page) => page.waitForFunction(() => seen.watch.ended || seen.watch.failure);
const look = (page) =>
  page.evaluate(() => {
    const { seqs, anew, atOnce, watch } = seen;
    const { text, status, missing, seq } = watch;
    return { seqs, anew, atOnce, text, status, missing, seq, shown: document.getElementById("text").textContent };
  });
const reload = async (page) => {
  await page.reload();
  await page.waitForFunction(() => "tw" in window);
};
/** How many events the log of a job has at least before the job may end. */
const EVENTS_MIN = 11;
const numbers = (first, last) => Array.from({ length: last - first + 1 }, (_, index) => first + index);

/** Lets a job end, once there was something to lose. */
async function finish(world, input, job) {
  await world.hasEvents(job, EVENTS_MIN);
  await world.finish(input);
}

/** Requires that the page shows what the backend wrote, and got each event from `first` on once and in order. */
async function assertWhole(world, page, job, first = 1) {
  await ended(page);
  const [{ output, status, seq }, seen] = [await world.result(job), await look(page)];
  assert.deepEqual([seen.text, seen.shown, seen.status, seen.missing, seen.anew], [output, output, status, 0, 0]);
  assert.deepEqual(seen.seqs, numbers(first, seq));
  assert.ok(output.length > 100 && seq >= EVENTS_MIN, output);
}

await run({
  async offline(world) {
    const page = await world.page();
    const input = world.input();
    const job = await world.submit(input);
    await follow(page, job);
    await isAfter(page, 5);
    await world.context.setOffline(true);
    world.network.cut();
    await page.waitForFunction(() => tw.status === "waiting");
    // The job goes on, and ends, meanwhile.
    await finish(world, input, job);
    const { seq } = await world.result(job);
    assert.ok((await look(page)).seq < seq);
    world.network.restore();
    await world.context.setOffline(false);
    await assertWhole(world, page, job);
  },

  async reload(world) {
    const page = await world.page();
    const input = world.input();
    const job = await world.submit(input);
    await follow(page, job, { persist: "session" });
    await isAfter(page, 5);
    await reload(page);
    assert.deepEqual(await page.evaluate(() => tw.saved()), [job]);
    await follow(page, job, { persist: "session" });
    assert.ok((await look(page)).atOnce.length > 10, "the text is there before anything has arrived");
    await page.waitForFunction(() => seen.seqs.length > 0);
    const { seqs } = await look(page);
    assert.ok(seqs[0] > 5, "events before the reload are not sent again");
    await finish(world, input, job);
    await assertWhole(world, page, job, seqs[0]);
    // After the end, another reload needs no connection.
    world.network.cut();
    await reload(page);
    await follow(page, job, { persist: "session" });
    await ended(page);
    assert.equal((await look(page)).text, (await world.result(job)).output);
  },

  async iterators(world) {
    const page = await world.page();
    const input = world.input();
    const job = await world.submit(input);
    await follow(page, job, { persist: "session" });
    await isAfter(page, 5);
    await reload(page);
    const reading = page.evaluate(async (job) => {
      const seqs = [];
      for await (const { seq } of tw.watch(job, { persist: "session" })) seqs.push(seq);
      return seqs;
    }, job);
    await finish(world, input, job);
    // From the first event, also those that only the page before the reload had.
    assert.deepEqual(await reading, numbers(1, (await world.result(job)).seq));
  },

  async tabs(world) {
    const first = await world.page({ share: true });
    const input = world.input();
    const job = await world.submit(input);
    await follow(first, job);
    await isAfter(first, 5);
    // The second tab comes late, and over the first one's connection.
    const second = await world.page({ share: true });
    await follow(second, job);
    await isAfter(second, 8);
    assert.equal(await first.evaluate(() => tw.transport), "websocket");
    assert.equal(await second.evaluate(() => tw.transport), "tab");
    assert.equal(world.network.upgrades, 1);
    // The connected tab closes: the other one takes its place.
    await first.close();
    await second.waitForFunction(() => tw.transport === "websocket" && tw.status === "open");
    const third = await world.page({ share: true });
    await follow(third, job);
    await isAfter(third, 10);
    await finish(world, input, job);
    for (const page of [second, third]) await assertWhole(world, page, job);
    assert.equal(world.network.upgrades, 2);
  },

  async separate_tabs(world) {
    const input = world.input();
    const job = await world.submit(input);
    const pages = [await world.page(), await world.page()];
    for (const page of pages) await follow(page, job);
    await finish(world, input, job);
    for (const page of pages) await assertWhole(world, page, job);
    assert.equal(world.network.upgrades, 2);
  },

  async killed_edge(world) {
    const allowed = ["--allow-origin", "*"];
    const edge = await world.edge("127.0.0.1:0", allowed);
    world.network.target = edge.addr;
    const page = await world.page();
    const input = world.input();
    const job = await world.submit(input);
    await follow(page, job);
    await isAfter(page, 5);
    await edge.kill();
    await page.waitForFunction(() => tw.status !== "open");
    await world.edge(edge.addr, allowed);
    await finish(world, input, job);
    await assertWhole(world, page, job);
  },

  async submit_offline(world) {
    const options = { queue: "indexeddb" };
    const page = await world.page(options);
    const input = world.input();
    world.network.cut();
    const job = await page.evaluate((input) => tw.submit({ kind: "exec", input }).item.job, input);
    await page.waitForFunction(async () => (await tw.queued()).length === 1);
    // Another tab sees what waits, and must not send it a second time.
    const other = await world.page(options);
    const senders = new Set();
    for (const tab of [page, other]) tab.on("request", (request) => request.method() === "POST" && senders.add(tab));
    // Before the reload the page sends, and holds the lock.
    page.on("framenavigated", () => senders.delete(page));
    await reload(page);
    const waiting = await page.evaluate(() => tw.queued());
    assert.deepEqual(waiting.map(({ job, status }) => [job, status]), [[job, "queued"]]);
    await follow(page, job);
    world.network.restore();
    await isAfter(page, EVENTS_MIN);
    await world.finish(input);
    await assertWhole(world, page, job);
    for (const tab of [page, other]) {
      await tab.waitForFunction((job) => items.some((item) => item.job === job && item.status === "sent"), job);
      assert.deepEqual(await tab.evaluate(() => tw.queued()), []);
    }
    // The other tab has had the lock since then.
    assert.deepEqual([senders.has(page), senders.has(other)], [false, true]);
    const types = (await world.events(job)).map(({ type }) => type);
    assert.deepEqual([types.filter((type) => type === "job:queued:v1").length, types.filter((type) => type === "job:started:v1").length], [1, 1]);
  },

  async event_streams(world) {
    world.network.blocksWebSockets = true;
    const page = await world.page();
    const input = world.input();
    const job = await world.submit(input);
    await follow(page, job);
    await isAfter(page, 5);
    assert.equal(await page.evaluate(() => tw.transport), "sse");
    // One that is refused after the edge was ready is the last.
    const asked = world.network.upgradesUntilReady + 1;
    assert.equal(world.network.upgrades, asked);
    world.network.cut();
    world.network.restore();
    await finish(world, input, job);
    await assertWhole(world, page, job);
    // It is remembered.
    await reload(page);
    await follow(page, job);
    await assertWhole(world, page, job);
    assert.equal(world.network.upgrades, asked);
  },

  async dead_network(world) {
    const page = await world.page();
    const input = world.input();
    const job = await world.submit(input);
    await follow(page, job);
    await isAfter(page, 5);
    // Existing connections carry nothing any more, and nothing reports it.
    world.network.abandon();
    await page.evaluate(() => dispatchEvent(new Event("online")));
    await finish(world, input, job);
    await assertWhole(world, page, job);
    assert.equal(world.network.upgrades, 2);
  },

  /** Its next try is far away, so only becoming visible can connect it. */
  async hidden(world) {
    await world.useTabs();
    const page = await world.page();
    const input = world.input();
    const job = await world.submit(input);
    await follow(page, job);
    await isAfter(page, 5);
    // From now on no pause ends by itself.
    await page.evaluate(() => void (window.setTimeout = () => 0));
    const other = await world.context.newPage();
    await other.bringToFront();
    // A hidden page draws no frames, at which Playwright would look.
    const holds = (what) => page.waitForFunction(what, undefined, { polling: 50 });
    await holds(() => document.hidden);
    world.network.cut();
    await holds(() => tw.status === "waiting");
    world.network.restore();
    await finish(world, input, job);
    const { seq } = await world.result(job);
    assert.ok((await look(page)).seq < seq);
    assert.deepEqual([await page.evaluate(() => tw.status), world.network.upgrades], ["waiting", 1]);
    await page.bringToFront();
    await assertWhole(world, page, job);
    assert.equal(world.network.upgrades, 2);
  },

  /** Its tokens are good for 16 s at most. Each is replaced in time, so that the connection goes on. */
  async token_renewed(world) {
    const edge = await world.edgeWithTokens(["--allow-origin", "*"]);
    world.network.target = edge.addr;
    const input = world.input();
    const job = await world.submit(input);
    await world.context.exposeFunction("issueToken", () => world.token({ watch: [job] }, 15));
    const page = await world.page();
    await follow(page, job);
    await isAfter(page, 5);
    // The first two tokens have expired.
    await page.waitForFunction(() => tokens.length > 2 && Date.now() > tokens[1] + 16_000);
    await isAfter(page, (await look(page)).seq + 5);
    await finish(world, input, job);
    await assertWhole(world, page, job);
    assert.equal(world.network.upgrades, 1);
    const asked = await page.evaluate(() => tokens.length);
    assert.ok(asked < 30, `${asked} tokens`);
  },

  /** What issues tokens is out of reach when the first one expires, and for some more tries. */
  async token_expired(world) {
    const edge = await world.edgeWithTokens(["--allow-origin", "*"]);
    world.network.target = edge.addr;
    const input = world.input();
    const job = await world.submit(input);
    await world.context.exposeFunction("issueToken", (number) => {
      if (number > 1 && number < 6) throw new Error("out of reach");
      return world.token({ watch: [job] }, number === 1 ? 3 : 600);
    });
    const page = await world.page();
    await follow(page, job);
    await isAfter(page, 5);
    await page.waitForFunction(() => tokens.length === 6);
    await isAfter(page, (await look(page)).seq + 5);
    await finish(world, input, job);
    await assertWhole(world, page, job);
    const seen = await page.evaluate(() => [tokens.length, tw.transport]);
    assert.deepEqual([...seen, world.network.upgrades], [6, "websocket", 2]);
  },

  async back_and_forward(world) {
    const page = await world.page();
    const input = world.input();
    const job = await world.submit(input);
    await follow(page, job);
    await isAfter(page, 5);
    await page.evaluate(() => addEventListener("pageshow", ({ persisted }) => (window.returned = persisted)));
    await page.goto(`http://${world.pages.addr}/client.js`);
    await page.goBack({ waitUntil: "commit" });
    // The same page, not a new one.
    await page.waitForFunction(() => window.returned);
    await finish(world, input, job);
    await assertWhole(world, page, job);
    assert.equal(world.network.upgrades, 2);
  },

  /** The page that docs/clients.md shows, with the client that the edge serves. */
  async example(world) {
    const document = await readFile(new URL("../../../docs/clients.md", import.meta.url), "utf8");
    const [, html] = /```html\n(.*?)```/s.exec(document);
    world.pages.files["/example"] = ["text/html", html.replace("127.0.0.1:4000", world.network.addr)];
    const page = await world.context.newPage();
    await page.goto(`http://${world.pages.addr}/example`);
    const submitted = page.waitForResponse((response) => response.request().method() === "POST");
    await page.click("button");
    const { job } = await (await submitted).json();
    const { output } = await world.result(job);
    await page.waitForFunction((output) => document.querySelector("pre").textContent === output, output);
  },

  async cancel(world) {
    const page = await world.page();
    const job = await world.submit(world.input());
    await follow(page, job);
    await isAfter(page, 5);
    const { seq } = await page.evaluate((job) => tw.cancel(job), job);
    await ended(page);
    const seen = await look(page);
    assert.deepEqual([seen.status, seen.seqs.includes(seq)], ["cancelled", true]);
    assert.equal(seen.text, (await world.result(job)).output);
  },
});
