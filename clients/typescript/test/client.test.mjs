// The client against an edge in memory, with the clock of node:test: what breaks is decided here.
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { TailwaterError, connect } from "../dist/client.js";
import { FakeEdge, problem, until } from "./support.mjs";

/** @type {FakeEdge} */
let edge;
let clients = [];

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_800_000_000_000 });
  edge = new FakeEdge();
});
afterEach(() => {
  clients.forEach((client) => client.close());
  clients = [];
  mock.timers.reset();
});

function open(options = {}) {
  const client = connect("http://edge.test/", { WebSocket: edge.WebSocket, ...options });
  clients.push(client);
  return client;
}

/** Lets this much time pass, in steps, so that what it starts can go on. */
async function pass(milliseconds) {
  for (let left = milliseconds; left > 0; left -= 250) {
    mock.timers.tick(Math.min(250, left));
    for (let turns = 0; turns < 6; turns++) await new Promise(setImmediate);
  }
}

test("a watch shows text, reasoning, status and attempt as they grow, and ends with the job", async () => {
  const seen = [];
  let ended = 0;
  const watch = open().watch("j", { onEvent: ({ seq }) => seen.push(seq), onEnd: () => ended++ });
  await until(() => edge.open.length);
  assert.equal(watch.status, null);
  edge.start("j", "one ");
  edge.chunk("j", "hm", "reasoning");
  edge.chunk("j", "two");
  assert.deepEqual([watch.text, watch.reasoning, watch.status, watch.attempt, watch.seq], ["one two", "hm", "running", 1, 5]);
  edge.append("j", { type: "job:started:v1", attempt: 2, kind: "demo", worker: "x" });
  edge.chunk("j", "new");
  assert.deepEqual([watch.text, watch.reasoning, watch.attempt], ["new", "", 2]);
  edge.end("j");
  assert.equal(await watch.done, watch);
  assert.deepEqual([watch.status, watch.ended, watch.missing, ended], ["done", true, 0, 1]);
  assert.deepEqual(seen, [1, 2, 3, 4, 5, 6, 7, 8]);
});

test("all watches share one connection, which closes when the last one is over", async () => {
  const client = open();
  const watches = ["a", "b", "c"].map((job) => client.watch(job));
  await until(() => edge.open.length);
  for (const job of ["a", "b", "c"]) {
    edge.start(job, job);
    edge.end(job);
  }
  await Promise.all(watches.map(({ done }) => done));
  assert.deepEqual(watches.map(({ text }) => text), ["a", "b", "c"]);
  await pass(1000);
  assert.equal(edge.sockets.length, 1);
  assert.equal(edge.open.length, 0);
  assert.equal(client.status, "idle");
});

test("after a drop each watch resumes after its last event, and nothing is lost or doubled", async () => {
  const client = open();
  const seen = [];
  const watch = client.watch("j", { onEvent: ({ seq }) => seen.push(seq) });
  edge.start("j", "one ");
  await until(() => watch.seq === 3);
  edge.open[0].drop(1006);
  edge.chunk("j", "two ");
  assert.equal(client.status, "open");
  await pass(500);
  assert.deepEqual(edge.sent.at(-1), { op: "watch", job: "j", cursor: "j-3" });
  edge.chunk("j", "three");
  assert.equal(watch.text, "one two three");
  assert.deepEqual(seen, [1, 2, 3, 4, 5]);
});

test("it waits longer after each failure, at random, but not longer than 10 s", async () => {
  const times = [];
  const client = open({ WebSocket: class extends edge.WebSocket { constructor(...given) { super(...given); times.push(Date.now()); } } });
  edge.up = false;
  client.watch("j");
  await pass(120_000);
  const pauses = times.slice(1).map((time, index) => time - times[index]);
  assert.ok(pauses.length > 12, `${pauses}`);
  // Timers of the fake clock are checked every 250 ms.
  assert.ok(Math.max(...pauses) <= 10_250 && Math.min(...pauses.slice(-4)) >= 4_750, `${pauses}`);
  assert.ok(new Set(pauses.slice(-8)).size > 1, "the pauses are random");
  edge.up = true;
  edge.start("j", "x");
  await pass(10_000);
  assert.equal(clients[0].status, "open");
});

for (const code of [1000, 1001, 1006, 1011, 1012, 1013]) {
  test(`it connects again after a close with ${code}`, async () => {
    const client = open();
    client.watch("j");
    await until(() => edge.open.length);
    edge.open[0].drop(code);
    await until(() => client.status === "waiting");
    await pass(code === 1013 ? 250 : 0);
    assert.equal(edge.open.length, 0);
    await pass(1250);
    assert.equal(edge.open.length, 1);
  });
}

for (const code of [1002, 1003, 1005, 1007, 1008, 1009, 4403, 4999]) {
  test(`it does not connect again after a close with ${code}`, async () => {
    const failures = [];
    const watch = open().watch("j", { onError: ({ code }) => failures.push(code) });
    await until(() => edge.open.length);
    edge.open[0].drop(code);
    await assert.rejects(watch.done, { code: `close_${code}` });
    assert.deepEqual(failures, [`close_${code}`]);
    await pass(30_000);
    assert.equal(edge.sockets.length, 1);
  });
}

/** Stands for the window of a page; returns how to dispatch an event there. */
function page(t) {
  const target = new EventTarget();
  globalThis.addEventListener = target.addEventListener.bind(target);
  t.after(() => delete globalThis.addEventListener);
  return (type, fields = {}) => target.dispatchEvent(Object.assign(new Event(type), fields));
}

test("a page in the back/forward cache has no connection until it returns, and then one", async (t) => {
  const dispatch = page(t);
  const client = open();
  const watch = client.watch("j");
  edge.start("j", "one ");
  await until(() => watch.seq === 3);
  dispatch("pagehide", { persisted: true });
  // What still runs before the page is frozen must not connect.
  await pass(30_000);
  dispatch("online");
  client.watch("k");
  await pass(30_000);
  assert.deepEqual([edge.sockets.length, edge.open.length, client.status], [1, 0, "waiting"]);
  edge.chunk("j", "two");
  dispatch("pageshow", { persisted: true });
  await until(() => watch.text === "one two");
  await pass(30_000);
  assert.deepEqual([edge.sockets.length, edge.open.length], [2, 1]);
});

test("a page that leaves while it connects or waits to connect does neither until it returns", async (t) => {
  const dispatch = page(t);
  let issue;
  const client = open({ token: () => new Promise((resolve) => (issue = resolve)) });
  client.watch("j");
  await until(() => issue);
  dispatch("pagehide", { persisted: true });
  issue("t");
  await pass(30_000);
  assert.equal(edge.sockets.length, 0);
  dispatch("pageshow", { persisted: true });
  await until(() => edge.open.length === 1);
  edge.open[0].drop(1006);
  await until(() => client.status === "waiting");
  dispatch("pagehide", { persisted: true });
  await pass(30_000);
  assert.equal(edge.sockets.length, 1);
  dispatch("pageshow", { persisted: true });
  await until(() => edge.open.length === 1);
});

test("handshakes that a page broke off by leaving are no sign that WebSockets are blocked", async (t) => {
  const dispatch = page(t);
  edge.mute = true;
  const client = open();
  client.watch("j");
  for (let visits = 1; visits <= 4; visits++) {
    await until(() => edge.sockets.length === visits);
    dispatch("pagehide", { persisted: true });
    await until(() => client.status === "waiting");
    dispatch("pageshow", { persisted: true });
  }
  await until(() => edge.sockets.length === 5);
  assert.deepEqual([client.transport, edge.requests], ["websocket", []]);
});

test("a page that is left without the cache keeps its connection, and one that closes away stays closed", async (t) => {
  const dispatch = page(t);
  const client = open();
  client.watch("j");
  await until(() => edge.open.length === 1);
  dispatch("pagehide", { persisted: false });
  await pass(1000);
  assert.equal(edge.open.length, 1);
  dispatch("pagehide", { persisted: true });
  const queued = client.submit({ kind: "demo" });
  client.close();
  dispatch("pageshow", { persisted: true });
  await pass(30_000);
  assert.deepEqual([edge.sockets.length, client.status], [1, "closed"]);
  await queued;
});

test("it connects at once when the network is back", async (t) => {
  const dispatch = page(t);
  edge.up = false;
  const client = open();
  const watch = client.watch("j");
  await pass(60_000);
  edge.up = true;
  edge.start("j", "x");
  await until(() => client.status === "waiting");
  // From here on no time passes, so that only the event can end the pause.
  const tried = edge.sockets.length;
  dispatch("online");
  await until(() => watch.text === "x");
  assert.equal(edge.sockets.length, tried + 1);
});

test("a silent connection is asked for a sign of life, and abandoned when there is none", async () => {
  const client = open();
  client.watch("j");
  await until(() => edge.open.length);
  await pass(60_000);
  assert.ok(edge.sent.filter(({ op }) => op === "ping").length >= 2);
  assert.equal(edge.sockets.length, 1);
  edge.answers = false;
  await pass(60_000);
  assert.equal(edge.sockets.length, 2);
});

test("a handshake without an answer is abandoned, too", async () => {
  edge.mute = true;
  const client = open();
  client.watch("j");
  await pass(24_000);
  assert.deepEqual([edge.sockets.length, client.status], [1, "connecting"]);
  edge.mute = false;
  await pass(3000);
  assert.deepEqual([edge.sockets.length, client.status], [2, "open"]);
});

test("events that arrive out of order are delivered in order, once", async () => {
  const seen = [];
  const watch = open().watch("j", { onEvent: ({ seq }) => seen.push(seq) });
  await until(() => edge.open.length);
  const [socket] = edge.open;
  edge.start("j", "one ");
  socket.watches.delete("j");
  edge.chunk("j", "two ");
  const late = edge.chunk("j", "three ");
  // A link that lost an event, and then repeats one.
  socket.emit(late);
  socket.emit(edge.log("j")[0]);
  assert.equal(watch.text, "one ");
  await until(() => watch.seq === 5);
  socket.emit(late);
  assert.equal(watch.text, "one two three ");
  assert.deepEqual(seen, [1, 2, 3, 4, 5]);
});

test("events that are gone are counted and reported in their place", async () => {
  const order = [];
  const watch = open().watch("j", {
    onEvent: ({ seq }) => order.push(seq),
    onMissing: ({ from, to }) => order.push(`${from}-${to}`),
  });
  await until(() => edge.open.length);
  edge.start("j", "one ");
  const [socket] = edge.open;
  socket.emit({ op: "missing", job: "j", from: 4, to: 6, reason: "expired" });
  socket.emit({ type: "model:chunk:v1", job: "j", seq: 7, attempt: 1, ts: 1, cursor: "j-7", text: "rest" });
  assert.deepEqual(order, [1, 2, 3, "4-6", 7]);
  assert.deepEqual([watch.missing, watch.text, watch.view.truncated], [3, "rest", true]);
});

test("when the log was replaced, the watch says so and starts from the first event", async () => {
  const order = [];
  const watch = open().watch("j", { onEvent: ({ seq }) => order.push(seq), onAnew: () => order.push("anew") });
  edge.start("j", "old ");
  await until(() => watch.seq === 3);
  edge.logs.clear();
  edge.append("j", { type: "job:queued:v1", kind: "demo" });
  edge.log("j")[0].cursor = "other";
  edge.open[0].drop(1006);
  await pass(500);
  assert.deepEqual(order, [1, 2, 3, "anew", 1]);
  assert.deepEqual([watch.text, watch.status], ["", "queued"]);
});

test("a refused watch is tried again if that may help, and fails otherwise", async () => {
  const client = open();
  const [again, never] = [client.watch("again"), client.watch("never")];
  await until(() => edge.open.length);
  const [socket] = edge.open;
  socket.watches.clear();
  socket.emit({ op: "error", code: "unavailable", message: "", job: "again" });
  socket.emit({ op: "error", code: "too_many_watches", message: "Too many.", job: "never" });
  await assert.rejects(never.done, { code: "too_many_watches", message: "Too many." });
  await pass(1000);
  edge.start("again", "x");
  assert.equal(again.text, "x");
  assert.equal(never.failure?.code, "too_many_watches");
});

test("an iterator yields every event from the first, whenever it begins", async () => {
  const client = open();
  const watch = client.watch("j");
  edge.start("j", "one ", "two ");
  await until(() => watch.seq === 4);
  const seqs = [];
  const reading = (async () => {
    for await (const item of client.watch("j")) seqs.push(item.seq);
  })();
  await until(() => seqs.length === 4);
  edge.chunk("j", "three");
  edge.end("j");
  await reading;
  assert.deepEqual(seqs, [1, 2, 3, 4, 5, 6]);
  assert.equal(watch.text, "one two three");
});

test("an iterator that is far behind reads the log, and nothing is kept for it", async () => {
  const client = open();
  const watch = client.watch("j");
  edge.start("j");
  await until(() => watch.seq === 2);
  const iterator = watch[Symbol.asyncIterator]();
  for (let n = 0; n < 20_000; n++) edge.chunk("j", ".");
  const seqs = [];
  for (let n = 0; n < 20_002; n++) seqs.push((await iterator.next()).value.seq);
  assert.deepEqual(seqs, Array.from({ length: 20_002 }, (_, index) => index + 1));
  assert.ok(edge.requests.filter((request) => request === "GET /api/jobs/j/events").length >= 8);
});

test("a loop that is left early, or a signal, ends the watch", async () => {
  const client = open();
  edge.start("a", "x");
  for await (const item of client.watch("a")) if (item.seq === 2) break;
  const control = new AbortController();
  const watch = client.watch("b", { signal: control.signal });
  await until(() => edge.open.length);
  control.abort(new Error("enough"));
  await assert.rejects(watch.done, /enough/);
  await pass(500);
  assert.deepEqual(edge.sent.filter(({ op }) => op === "unwatch").map(({ job }) => job), ["a", "b"]);
  assert.equal(edge.open.length, 0);
});

test("a page that rearranges its watches at once keeps the connection and the text", async () => {
  const client = open();
  const first = client.watch("j");
  edge.start("j", "x");
  await until(() => first.seq === 3);
  first.close();
  const second = client.watch("j");
  assert.equal(second.text, "x");
  await pass(1000);
  edge.chunk("j", "y");
  assert.equal(second.text, "xy");
  assert.deepEqual(edge.sent, [{ op: "watch", job: "j" }]);
});

test("a callback that throws disturbs nothing else", async () => {
  const watch = open().watch("j", {
    onEvent: () => {
      throw new Error("mine");
    },
  });
  await until(() => edge.open.length);
  const given = globalThis.queueMicrotask;
  const thrown = [];
  globalThis.queueMicrotask = (work) => {
    try {
      work();
    } catch ({ message }) {
      thrown.push(message);
    }
  };
  edge.start("j", "x");
  globalThis.queueMicrotask = given;
  assert.deepEqual([watch.text, thrown], ["x", ["mine", "mine", "mine"]]);
});

test("where WebSockets are blocked it follows event streams, each resumed by its cursor", async () => {
  edge.blocked = true;
  const client = open();
  const seen = [];
  const watch = client.watch("j", { onEvent: ({ seq }) => seen.push(seq) });
  edge.start("j", "one ");
  await pass(2000);
  assert.deepEqual([client.transport, watch.text], ["sse", "one "]);
  // Two handshakes, and one more after the edge was ready; the last of these is the stream.
  assert.equal(edge.sockets.length, 4);
  edge.open[0].break();
  edge.chunk("j", "two");
  await pass(2000);
  assert.equal(watch.text, "one two");
  edge.end("j");
  await watch.done;
  assert.deepEqual(seen, [1, 2, 3, 4, 5]);
});

test("an edge that is ready only after it refused WebSockets is no reason for event streams", async () => {
  edge.blocked = true;
  edge.intercept = (method, path) => {
    // It starts between the last handshake and this.
    if (path === "/readyz") edge.blocked = false;
  };
  const client = open();
  const watch = client.watch("j");
  edge.start("j", "x");
  await pass(2000);
  assert.deepEqual([client.transport, watch.text, edge.sockets.length, edge.requests], ["websocket", "x", 3, ["GET /readyz"]]);
});

test("an edge that is down is no reason for event streams", async () => {
  edge.up = false;
  const client = open();
  const watch = client.watch("j");
  await pass(20_000);
  edge.up = true;
  edge.start("j", "x");
  await pass(10_000);
  assert.deepEqual([client.transport, watch.text], ["websocket", "x"]);
});

test("without WebSockets, as in Node.js 20, it follows event streams at once", async () => {
  const given = globalThis.WebSocket;
  globalThis.WebSocket = undefined;
  const client = open({ WebSocket: undefined });
  const watch = client.watch("j");
  edge.start("j", "x");
  await until(() => watch.text === "x");
  assert.equal(client.transport, "sse");
  globalThis.WebSocket = given;
});

test("an event stream that is taken and never answered is asked for again", async () => {
  edge.blocked = true;
  let asked = 0;
  edge.intercept = (method, path, { signal }) => {
    if (path !== "/api/jobs/j/events" || asked++) return undefined;
    return new Promise((resolve, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  };
  const watch = open().watch("j");
  edge.start("j", "x");
  await pass(44_000);
  assert.deepEqual([asked, watch.text], [1, ""]);
  await pass(4000);
  assert.deepEqual([asked, watch.text], [2, "x"]);
});

test("a submit is known by its id at once, and its watch may begin before it is sent", async () => {
  const client = open();
  const queued = client.submit({ kind: "demo", input: { words: 3 } });
  const watch = client.watch(queued.item.job);
  assert.equal(queued.item.status, "queued");
  assert.match(queued.item.job, /^demo:[0-9a-z]{16,28}$/);
  const { job, status } = await queued;
  assert.deepEqual([job, status, queued.item.status], [queued.item.job, "queued", "sent"]);
  edge.start(job, "x");
  await until(() => watch.text === "x");
});

test("submits and cancels wait while the edge is out of reach, and are sent in order, once", async () => {
  const items = [];
  const client = open({ onQueue: ({ op, job, status }) => items.push(`${op} ${job} ${status}`) });
  edge.up = false;
  const first = client.submit({ kind: "demo", id: "a" });
  const second = client.submit({ kind: "demo", id: "b" });
  const third = client.cancel("a");
  await pass(30_000);
  assert.deepEqual((await client.queued()).map(({ op, job }) => `${op} ${job}`), ["submit a", "submit b", "cancel a"]);
  edge.up = true;
  edge.requests = [];
  await pass(10_000);
  assert.deepEqual((await Promise.all([first, second, third])).map(({ job }) => job), ["a", "b", "a"]);
  assert.deepEqual(edge.requests, ["POST /api/jobs", "POST /api/jobs", "POST /api/jobs/a/cancel"]);
  assert.deepEqual(items.slice(3), ["submit a sent", "submit b sent", "cancel a sent"]);
  assert.deepEqual(await client.queued(), []);
});

test("a submit whose answer was lost is sent again with the same id", async () => {
  const client = open();
  let answers = 0;
  const ids = [];
  edge.intercept = (method, path, init) => {
    if (method !== "POST") return undefined;
    ids.push(JSON.parse(init.body).id);
    if (answers++ === 0) throw new TypeError("network error");
    return undefined;
  };
  const submitted = client.submit({ kind: "demo" });
  await pass(1000);
  await submitted;
  assert.deepEqual([ids.length, new Set(ids).size], [2, 1]);
});

test("a refused submit fails and does not hold up the next one", async () => {
  const client = open();
  edge.intercept = (method, path, init) =>
    method === "POST" && JSON.parse(init.body).kind === "none" ? problem(422, "unknown_kind") : undefined;
  const refused = client.submit({ kind: "none" });
  const accepted = client.submit({ kind: "demo" });
  await assert.rejects(refused, (error) => error instanceof TailwaterError && error.code === "unknown_kind" && !error.retry);
  assert.equal(refused.item.status, "failed");
  await accepted;
});

test("a full edge is asked again after the pause that it names", async () => {
  const client = open();
  let asked = 0;
  edge.intercept = () => (asked++ ? undefined : problem(503, "queue_full", { "retry-after": "4" }));
  const submitted = client.submit({ kind: "demo" });
  await pass(1750);
  assert.equal(asked, 1);
  await pass(3000);
  await submitted;
  assert.equal(asked, 2);
});

test("what waits is bounded, and a signal removes it", async () => {
  const client = open();
  edge.up = false;
  const control = new AbortController();
  const withdrawn = client.submit({ kind: "demo" }, { signal: control.signal });
  const others = Array.from({ length: 99 }, () => client.submit({ kind: "demo" }));
  await pass(250);
  await assert.rejects(client.submit({ kind: "demo" }), { code: "outbox_full" });
  control.abort(new Error("changed my mind"));
  await assert.rejects(withdrawn, /changed my mind/);
  await until(() => true);
  assert.equal((await client.queued()).length, 99);
  edge.up = true;
  await pass(10_000);
  await Promise.all(others);
  assert.equal(edge.submitted.size, 99);
});

test("a submit that is withdrawn while it is sent is reported once", async () => {
  const items = [];
  const client = open({ onQueue: ({ status }) => items.push(status) });
  const control = new AbortController();
  edge.intercept = (method, path, { signal }) => new Promise((resolve, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  const queued = client.submit({ kind: "demo" }, { signal: control.signal });
  await until(() => edge.requests.length === 1);
  control.abort(new Error("enough"));
  await assert.rejects(queued, /enough/);
  await pass(1000);
  assert.deepEqual([items, edge.requests.length, await client.queued()], [["queued", "failed"], 1, []]);
});

test("a token function is asked once, and again when its token was refused", async () => {
  let asked = 0;
  const bearers = [];
  edge.intercept = (method, path, { headers }) => {
    bearers.push(new Headers(headers).get("authorization"));
    return bearers.at(-1) === "Bearer t1" ? problem(401, "unauthorized") : undefined;
  };
  const client = open({ token: async () => `t${++asked}` });
  await client.submit({ kind: "demo" });
  await client.submit({ kind: "demo" });
  assert.deepEqual([asked, bearers], [2, ["Bearer t1", "Bearer t2", "Bearer t2"]]);
});

test("a token that expires is renewed on the open connection, before half of the rest has passed", async () => {
  let asked = 0;
  open({ token: () => `t${++asked}` }).watch("j");
  await until(() => edge.sent.length === 2);
  edge.open[0].emit({ op: "token_expiring", expires_in_ms: 30_000 });
  await pass(15_250);
  assert.deepEqual(edge.sent, [
    { op: "auth", token: "t1" },
    { op: "watch", job: "j" },
    { op: "auth", token: "t2" },
  ]);
});

test("tokens that are always about to expire are renewed in time, and not in a loop", async () => {
  const times = [];
  const client = open({ token: () => `t${times.push(Date.now())}` });
  client.watch("j");
  await until(() => edge.open.length);
  const [socket] = edge.open;
  const send = socket.send;
  // An edge reports a token of 4 s as soon as it has it.
  socket.send = (text) => {
    send.call(socket, text);
    // Bounded, so that a client in a loop fails the test instead of hanging it.
    if (JSON.parse(text).op === "auth" && times.length < 100) socket.emit({ op: "token_expiring", expires_in_ms: 4000 });
  };
  socket.emit({ op: "token_expiring", expires_in_ms: 4000 });
  await pass(60_000);
  const gaps = times.slice(1).map((time, index) => time - times[index]);
  assert.ok(times.length > 20, `${gaps}`);
  assert.ok(gaps.every((gap) => gap >= 1000 && gap < 4000), `${gaps}`);
  assert.equal(edge.sockets.length, 1);
});

test("a connection that is gone is not sent the token that it should have had", async () => {
  let asked = 0;
  const client = open({ token: () => `t${++asked}` });
  client.watch("j");
  await until(() => edge.open.length);
  edge.open[0].emit({ op: "token_expiring", expires_in_ms: 30_000 });
  client.close();
  await pass(30_000);
  assert.deepEqual([asked, edge.sent.filter(({ op }) => op === "auth").length], [1, 1]);
});

test("a connection that is closing is sent nothing more", async () => {
  const client = open();
  client.watch("j");
  await until(() => client.status === "open");
  const { length } = edge.sent;
  // The edge has begun to close it, which the browser has not told the page yet.
  const [socket] = edge.open;
  socket.readyState = 2;
  client.watch("other");
  assert.equal(edge.sent.length, length);
  socket.onclose({ code: 1006 });
  await until(() => client.status === "waiting");
});

test("while its token function fails it opens no connection, and tries again", async () => {
  let asked = 0;
  const token = () => {
    if (++asked < 5) throw new Error("signed out");
    return "t";
  };
  const watch = open({ token }).watch("j");
  await until(() => asked === 1);
  await pass(10_000);
  assert.deepEqual([asked, edge.sockets.length, watch.failure], [5, 1, undefined]);
  assert.deepEqual(edge.sent[0], { op: "auth", token: "t" });
});

test("after a close with 4401 it asks for a new token once, and then fails", async () => {
  let asked = 0;
  const watch = open({ token: () => `t${++asked}` }).watch("j");
  await until(() => edge.open.length);
  edge.open[0].drop(4401);
  await pass(500);
  assert.deepEqual([asked, edge.open.length, watch.failure], [2, 1, undefined]);
  edge.open[0].drop(4401);
  await assert.rejects(watch.done, { code: "close_4401" });
  await pass(30_000);
  assert.deepEqual([asked, edge.sockets.length], [2, 2]);
});

test("a fixed token that is refused is not sent again", async () => {
  const watch = open({ token: "fixed" }).watch("j");
  await until(() => edge.open.length);
  edge.open[0].drop(4401);
  await assert.rejects(watch.done, { code: "close_4401" });
});

test("state, jobs and events are requests with the token, and end with their signal", async () => {
  const asked = [];
  globalThis.fetch = async (address, { headers, signal }) => {
    const { pathname, search } = new URL(address);
    asked.push([pathname + search, new Headers(headers).get("authorization"), new Headers(headers).get("accept")]);
    if (!signal) return Response.json({ of: pathname });
    return new Promise((resolve, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  };
  const client = open({ token: "t" });
  assert.deepEqual(await client.state("j", { wait: 5 }), { of: "/api/jobs/j" });
  assert.deepEqual(await client.jobs({ kind: "demo", status: undefined, limit: 2 }), { of: "/api/jobs" });
  assert.deepEqual(await client.events("j", { after: 3 }), { of: "/api/jobs/j/events" });
  const paths = ["/api/jobs/j?wait=5", "/api/jobs?kind=demo&limit=2", "/api/jobs/j/events?after=3"];
  assert.deepEqual(asked, paths.map((path) => [path, "Bearer t", "application/json"]));
  for (const ask of [(options) => client.state("j", options), client.jobs, (options) => client.events("j", options)]) {
    const control = new AbortController();
    const asking = ask({ signal: control.signal });
    await until(() => asked.length > paths.length);
    control.abort(new Error("enough"));
    await assert.rejects(asking, /enough/);
    asked.length = paths.length;
  }
});
