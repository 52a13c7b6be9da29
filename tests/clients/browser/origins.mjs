// What pages of other origins, of a rebound name and of the edge itself can do, in Chromium.
import assert from "node:assert/strict";
import { launch, run } from "./world.mjs";

/** What a page tries at an edge. Each attempt returns what the page learned, or `undefined`. */
async function attack(page, edge, job) {
  return page.evaluate(
    async ([edge, job]) => {
      const submission = JSON.stringify({ kind: "exec", input: { gate: "/nowhere" } });
      const json = { "content-type": "application/json" };
      // Only what the page can read counts: an answer of another type is `opaque`, or a refusal.
      const read = async (path, options) => {
        const response = await fetch(edge + path, options);
        return response.ok ? ((await response.text()) || "answered") : undefined;
      };
      const post = (path, options) => read(path, { method: "POST", ...options });
      const first = (target, good, bad) =>
        new Promise((resolve) => {
          good.forEach((name) => target.addEventListener(name, () => resolve(name)));
          bad.forEach((name) => target.addEventListener(name, () => resolve(undefined)));
        });
      const element = (name, attributes) => {
        const made = Object.assign(document.createElement(name), attributes);
        document.body.append(made);
        return made;
      };
      const attempts = {
        list: () => read("/api/jobs"),
        state: () => read(`/api/jobs/${job}`),
        page: () => read(`/api/jobs/${job}/events`, { headers: { accept: "application/json" } }),
        opaque: () => read("/api/jobs", { mode: "no-cors" }),
        stats: () => read("/api/stats"),
        submit: () => post("/api/jobs", { headers: json, body: submission }),
        plain: () => post("/api/jobs", { mode: "no-cors", body: submission }),
        typeless: () => post("/api/jobs", { mode: "no-cors", body: new Blob([submission]) }),
        cancel: () => post(`/api/jobs/${job}/cancel`),
        blind: () => post(`/api/jobs/${job}/cancel`, { mode: "no-cors" }),
        polling: () => read("/socket.io/?EIO=4&transport=polling"),
        events: () => {
          const source = new EventSource(`${edge}/api/jobs/${job}/events`, { withCredentials: true });
          return first(source, ["open", "message"], ["error"]).finally(() => source.close());
        },
        socket: () => first(new WebSocket(`${edge.replace("http", "ws")}/ws`), ["open"], ["error", "close"]),
        engine: () => {
          const address = `${edge.replace("http", "ws")}/socket.io/?EIO=4&transport=websocket`;
          return first(new WebSocket(address), ["open"], ["error", "close"]);
        },
        script: () => first(element("script", { src: `${edge}/api/jobs` }), ["load"], ["error"]),
        // A form needs no permission to be sent.
        form: async () => {
          const frame = element("iframe", { name: `answer${Math.random()}` });
          const form = element("form", { method: "POST", enctype: "text/plain", target: frame.name, action: `${edge}/api/jobs` });
          const [name, value] = [submission.slice(0, -1), "}"];
          form.append(Object.assign(document.createElement("input"), { name, value }));
          const loaded = first(frame, ["load"], []);
          form.submit();
          await loaded;
        },
        beacon: async () => void navigator.sendBeacon(`${edge}/api/jobs`, submission),
      };
      const learned = {};
      for (const [name, attempt] of Object.entries(attempts)) learned[name] = await attempt().catch(() => undefined);
      return learned;
    },
    [edge, job],
  );
}

/** Requires that an attack has neither learned nor changed anything. */
async function assertHarmless(world, job, learned) {
  const names = Object.entries(learned).filter(([, what]) => what !== undefined && what !== null);
  assert.deepEqual(names, []);
  assert.ok(Object.keys(learned).length > 15);
  const { jobs } = await (await fetch(`http://${world.addr}/api/jobs?kind=exec&limit=100`)).json();
  const ids = jobs.map(({ id }) => id);
  assert.ok(ids.includes(job), ids.join());
  assert.deepEqual(ids.filter((id) => !world.jobs.has(id)), []);
  const events = await world.events(job);
  assert.ok(!events.some(({ type }) => type === "job:cancel-requested:v1"));
}

/** The jobs of all scenarios, which run beside each other. */
const jobs = new Set();

async function victim(world) {
  const job = await world.submit(world.input());
  jobs.add(job);
  world.jobs = jobs;
  return job;
}

/** A token for everything. */
const token = (world, seconds) => world.token({ admin: true }, seconds);

const session = (page, method, token) =>
  page.evaluate(
    async ([method, token]) => (await fetch("/api/session", { method, headers: token ? { authorization: `Bearer ${token}` } : {} })).status,
    [method, token],
  );

/** Whether a page can open a stream of the job. */
const opens = (page, url) =>
  page.evaluate(
    (url) =>
      new Promise((resolve) => {
        const source = new EventSource(url, { withCredentials: true });
        const end = (opened) => {
          source.close();
          resolve(opened);
        };
        source.onopen = () => end(true);
        source.onerror = () => end(false);
      }),
    url,
  );

await run({
  /** A page of another port, and one of another site. */
  async foreign(world) {
    const job = await victim(world);
    for (const host of ["127.0.0.1", "localhost", "pages.localhost"]) {
      const page = await world.context.newPage();
      await page.goto(`http://${host}:${world.pages.addr.split(":")[1]}/client.js`);
      await assertHarmless(world, job, await attack(page, `http://${world.addr}`, job));
    }
  },

  /** A page whose name now has the edge's address. */
  async rebound(world) {
    const job = await victim(world);
    const browser = await launch({ flags: ["--host-resolver-rules=MAP evil.test 127.0.0.1"] });
    world.after(() => browser.close());
    const page = await browser.newPage();
    const origin = `http://evil.test:${world.network.addr.split(":")[1]}`;
    world.network.target = world.pages.addr;
    await page.goto(`${origin}/client.js`);
    world.network.target = world.addr;
    // What is open still leads to the old address.
    world.network.cut();
    world.network.restore();
    await assertHarmless(world, job, await attack(page, origin, job));
    const refused = await page.evaluate(async () => {
      const response = await fetch("/api/jobs");
      return [response.status, (await response.json()).code];
    });
    assert.deepEqual(refused, [421, "host_not_allowed"]);
  },

  /** The same attempts of the edge's own page succeed, so they can. */
  async own(world) {
    const job = await victim(world);
    const page = await world.context.newPage();
    await page.goto(`http://${world.addr}/`);
    const learned = await attack(page, `http://${world.addr}`, job);
    for (const name of ["list", "state", "page", "stats", "submit", "cancel", "polling", "events", "socket", "engine"]) {
      assert.ok(learned[name], `${name}: ${learned[name]}`);
    }
  },

  /** The edge checks tokens: a cookie replaces the header that an EventSource cannot send. */
  async cookie(world) {
    const input = world.input();
    const job = await world.submit(input, { authorization: `Bearer ${token(world, 600)}` });
    const path = `/api/jobs/${job}/events`;
    const page = await world.context.newPage();
    await page.goto(`http://${world.addr}/`);
    assert.equal(await opens(page, path), false);
    assert.equal(await session(page, "POST", "nonsense"), 401);
    assert.equal(await session(page, "POST", token(world, 12)), 204);
    const [cookie] = await world.context.cookies(`http://${world.addr}/api/jobs`);
    assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.path], [true, "Strict", "/api/jobs"]);
    assert.equal(await page.evaluate(() => document.cookie), "");
    await page.evaluate((path) => {
      const seen = (window.seen = { seqs: [], opened: 0, ended: false });
      const source = new EventSource(path);
      source.onopen = () => seen.opened++;
      source.onmessage = ({ data }) => {
        const { seq, type } = JSON.parse(data);
        seen.seqs.push(seq);
        if (type === "job:done:v1") seen.ended = true;
      };
      source.addEventListener("token_expiring", ({ data }) => (seen.expiring ??= JSON.parse(data)));
    }, path);
    await page.waitForFunction(() => seen.expiring && seen.seqs.length > 3);
    const { expiring } = await page.evaluate(() => seen);
    assert.equal(expiring.op, "token_expiring");
    assert.ok(expiring.expires_in_ms <= 13_000, expiring.expires_in_ms);
    // A new cookie: the stream of the old token ends, and the browser continues where it was.
    assert.equal(await session(page, "POST", token(world, 600)), 204);
    await page.waitForFunction(() => seen.opened === 2);
    await world.finish(input);
    await page.waitForFunction(() => seen.ended);
    const { seqs } = await page.evaluate(() => seen);
    assert.deepEqual(seqs, seqs.map((_, index) => index + 1));
    // The cookie opens streams only, and only for pages of the edge.
    const elsewhere = await page.evaluate(async (job) => {
      const statuses = {};
      for (const [method, path] of [["GET", `/api/jobs/${job}`], ["GET", "/api/jobs"], ["POST", "/api/jobs"], ["POST", `/api/jobs/${job}/cancel`]])
        statuses[`${method} ${path.replace(job, "JOB")}`] = (await fetch(path, { method })).status;
      return statuses;
    }, job);
    const none = ["GET /api/jobs/JOB", "GET /api/jobs", "POST /api/jobs", "POST /api/jobs/JOB/cancel"];
    assert.deepEqual(elsewhere, Object.fromEntries(none.map((name) => [name, 401])));
    const late = `http://${world.addr}/api/jobs/later/events`;
    const foreign = await world.context.newPage();
    // Another port of the same host is the same site, so the browser sends the cookie.
    await foreign.goto(`http://${world.pages.addr}/client.js`);
    assert.equal(await opens(foreign, late), false);
    assert.equal(await opens(page, late), true);
    assert.equal(await session(page, "DELETE"), 204);
    assert.equal(await opens(page, late), false);
  },
});
