// The console: runs and shows jobs, with the client that every page may use. It stores nothing but the theme.
import { connect } from "./client.js";

const POLL_JOBS = 2000;
const POLL_STATS = 2000;
const POLL_KINDS = 3000;
/** The longest pause before an edge that does not answer is asked again. */
const POLL_FAILED = 10_000;
/** After this time without any input the page asks less often: it was left open. */
const AWAY_AFTER = 600_000;
const POLL_AWAY = 30_000;
/** The time that the charts show. */
const CHARTED = 180_000;
/** How long the connection stays cut, unless it is restored before. */
const CUT_FOR = 15_000;
const ROWS = 300;
/** How many events the page keeps; a job may run for days. */
const EVENTS_MAX = 20_000;
const SLOW_GAP = 2000;

/** What to offer for a kind without a job in the log. */
const EXAMPLES = {
  demo: { words: 120, rate: 15 },
  exec: { text: "hello" },
  openai: { messages: [{ role: "user", content: "Why is the sky blue?" }] },
};

const $ = (id) => document.getElementById(id);
const base = new URL(".", location.href).href.replace(/\/$/, "");

/** An element; strings become text, so nothing that a job says is ever markup. */
function make(tag, attributes = {}, ...children) {
  const isSvg = ["rect", "path", "line"].includes(tag);
  const element = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children.filter((child) => child != null));
  return element;
}

/** Sets a text only if it has changed: a screen reader reads each change of a status. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// ---- The connection, and the switch that cuts it.

let isCut = false;
const refused = new Set();
const raw = { last: 0, doubled: 0 };

/** A WebSocket that never opens while the connection is cut. It also counts what arrives before the client looks at it. */
function CountedSocket(address, protocol) {
  if (isCut) {
    const dead = { send() {}, close: () => refused.delete(dead) };
    refused.add(dead);
    return dead;
  }
  const socket = new WebSocket(address, protocol);
  socket.addEventListener("message", ({ data }) => {
    const frame = JSON.parse(data);
    if (frame.op || frame.job !== shown?.job) return;
    if (frame.seq <= raw.last) raw.doubled += 1;
    else raw.last = frame.seq;
    if (shown.cutAt !== undefined) shown.resumed(frame.seq);
  });
  return socket;
}

/** The token, in memory only: browsers write what a page stores to the disk, also for a single session. */
let token;
let tw = start();
let shown;
let cutTimer;

function start() {
  return connect(base, { token, WebSocket: CountedSocket, onStatus: showConnection });
}

function showConnection() {
  const pill = $("connection");
  pill.dataset.state = isCut ? "waiting" : tw.status;
  pill.textContent = isCut ? "cut" : tw.status === "open" ? `open · ${tw.transport}` : tw.status;
}

$("cut").onclick = () => (isCut ? restore() : cut());

function cut() {
  isCut = true;
  $("cut").setAttribute("aria-pressed", "true");
  $("cut").textContent = "Connect again";
  cutTimer = setTimeout(restore, CUT_FOR);
  shown?.cut();
  tw.reconnect();
  showConnection();
}

function restore() {
  clearTimeout(cutTimer);
  isCut = false;
  $("cut").setAttribute("aria-pressed", "false");
  $("cut").textContent = "Cut my connection";
  for (const dead of [...refused]) dead.onclose?.({ code: 1006 });
  showConnection();
}

// ---- Requests.

async function read(path) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(base + path, { headers });
  if (response.ok) return response.json();
  const { code = `http_${response.status}`, detail = code } = await response.json().catch(() => ({}));
  throw Object.assign(new Error(detail), { code });
}

/** Codes of an edge, of a proxy before it, and of the client, that mean: this needs a valid token. */
const UNAUTHORIZED = ["unauthorized", "token_expired", "token_revoked", "http_401", "close_4401"];
/** Until a person gives the token, nothing more is asked for. */
let isTokenWanted = false;

function askForToken() {
  if (isTokenWanted) return;
  isTokenWanted = true;
  setText($("token-error"), token ? "The edge does not accept this token. It may have expired." : "");
  $("token-form").hidden = false;
}

$("token-form").onsubmit = (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  $("token-form").hidden = true;
  isTokenWanted = false;
  shown?.close();
  shown = undefined;
  tw.close();
  tw = start();
  showConnection();
  showVersion();
  show();
  pollAll();
};

/** Why a request failed, for people. Asks for a token if that is what was missing, and there is no other one by now. */
function reason(error, given = token) {
  if (given === token && UNAUTHORIZED.includes(error.code)) askForToken();
  return described(error);
}

const described = ({ code, message }) => (code ? `${message} (${code})` : message);

/** When a person last used the page. */
let usedAt = Date.now();
const isAway = () => Date.now() - usedAt > AWAY_AFTER;
const polls = [];
const pollAll = () => polls.forEach((poll) => poll());

function used() {
  const wasAway = isAway();
  usedAt = Date.now();
  if (wasAway) pollAll();
}
for (const type of ["pointermove", "pointerdown", "keydown", "focus"]) addEventListener(type, used, { passive: true });
document.addEventListener("visibilitychange", pollAll);

/**
 * Calls `work` now, and then after each pause while the page is visible. One call at a time. An element that the token
 * does not allow is hidden, until there is another token.
 */
function every(pause, work, element) {
  let timer;
  let isRunning = false;
  let isWanted = false;
  let failures = 0;
  const note = element && $(`${element.id}-refused`);
  const allow = (is) => note && ((element.hidden = !is), (note.hidden = is));

  const poll = async () => {
    clearTimeout(timer);
    if (document.hidden || isTokenWanted) return;
    isWanted = isRunning;
    if (isRunning) return;
    isRunning = true;
    const given = token;
    let isRefused = false;
    try {
      await work();
      failures = 0;
      allow(true);
      reachable(true);
    } catch ({ code }) {
      isRefused = code === "forbidden" || UNAUTHORIZED.includes(code);
      failures += 1;
      // An answer about an earlier token means nothing.
      if (given !== token) isWanted = true;
      else if (code === "forbidden") allow(false);
      else if (isRefused) askForToken();
      else reachable(false);
    }
    isRunning = false;
    if (isWanted) return poll();
    if (isRefused) return;
    const slowed = Math.max(pause, isAway() ? POLL_AWAY : 0);
    timer = setTimeout(poll, failures ? Math.max(slowed, Math.min(POLL_FAILED, pause * 2 ** failures)) : slowed);
  };
  polls.push(poll);
  poll();
  return poll;
}

let isReachable = true;
function reachable(is) {
  if (is === isReachable) return;
  isReachable = is;
  notice(is ? "" : "This edge does not answer. The numbers and the list are from before.", "bad");
}

let noticeTimer;
function notice(text, kind) {
  clearTimeout(noticeTimer);
  Object.assign($("notice"), { hidden: !text, textContent: text });
  $("notice").dataset.kind = kind ?? "";
  if (text && kind !== "bad") noticeTimer = setTimeout(() => notice(""), 4000);
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS a page has no clipboard of its own.
    const area = document.body.appendChild(make("textarea", { class: "hidden", "aria-hidden": "true" }, text));
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  notice(`${what} copied.`);
}

const quoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;
const bearer = () => (token ? ' -H "Authorization: Bearer $TOKEN"' : "");

// ---- The theme.

const THEMES = { auto: ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };
let theme = "auto";
try {
  theme = localStorage.getItem("tailwater:theme") ?? "auto";
} catch {
  // A browser may refuse storage.
}
function showTheme() {
  const [sign, text] = THEMES[theme] ?? THEMES.auto;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").textContent = sign;
  $("theme").setAttribute("aria-label", `Theme: ${text}`);
}
$("theme").onclick = () => {
  const names = Object.keys(THEMES);
  theme = names[(names.indexOf(theme) + 1) % names.length];
  try {
    localStorage.setItem("tailwater:theme", theme);
  } catch {
    // Then it lasts as long as the page.
  }
  showTheme();
};
showTheme();

// ---- Numbers.

const SERIES = {
  events: [["events per second", (stats) => stats.events_per_second]],
  connections: [
    ["WebSocket", (stats) => stats.connections.websocket],
    ["event stream", (stats) => stats.connections.sse],
    ["Socket.IO", (stats) => stats.connections.socketio],
  ],
  lag: [["lag", (stats) => stats.lag]],
  replays: [["replays", (stats) => stats.replays]],
};
/** The numbers of the last minutes, and when each was read. */
const samples = [];

function showStats() {
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const series = SERIES[figure.dataset.chart];
    const values = series.map(([, value]) => samples.map(({ stats }) => value(stats)));
    const highest = Math.max(1, ...values.flat());
    const svg = figure.querySelector("svg");
    svg.setAttribute("viewBox", "0 0 100 100");
    const x = ({ at }) => (100 - (100 * (samples.at(-1).at - at)) / CHARTED).toFixed(2);
    const point = (value, index) => `${x(samples[index])},${(96 - (88 * value) / highest).toFixed(1)}`;
    svg.replaceChildren(
      ...values.flatMap((values, index) => {
        const line = values.map(point).join("L");
        const area = make("path", { class: `area series-${index}`, d: `M${x(samples[0])},100L${line}L100,100Z` });
        return [...(index ? [] : [area]), make("path", { class: `line series-${index}`, d: `M${line}` })];
      }),
    );
    const now = values.map((values) => values.at(-1));
    const total = now.reduce((sum, value) => sum + value, 0);
    figure.querySelector("output").textContent = total >= 100 || Number.isInteger(total) ? Math.round(total) : total.toFixed(1);
    svg.setAttribute("aria-label", series.map(([name], index) => `${name}: now ${now[index]}`).join(", "));
    const legend = figure.querySelector(".legend");
    if (legend && !legend.childElementCount) {
      legend.append(...series.map(([name], index) => make("span", { class: `series-${index}` }, name)));
    }
  }
}

every(POLL_STATS, async () => {
  const stats = await read("/api/stats");
  const at = Date.now();
  samples.push({ at, stats });
  while (samples[0].at < at - CHARTED) samples.shift();
  showStats();
}, $("charts"));

// ---- Kinds, and submitting.

/** The text that was offered for the kind, to see whether somebody has changed it. */
let offered = "";
let kinds = [];

every(POLL_KINDS, async () => {
  ({ kinds } = await read("/api/kinds"));
  $("kinds").replaceChildren(
    ...kinds.map(({ kind, waiting, running, idle_workers }) =>
      make("tr", {}, make("td", {}, make("code", {}, kind)), ...[waiting, running, idle_workers].map((n) => make("td", {}, `${n}`))),
    ),
  );
  offer($("kind"), kinds.map(({ kind }) => kind));
  offer($("filter-kind"), ["", ...kinds.map(({ kind }) => kind)]);
  if (!offered && kinds.length) showExample().catch(() => {});
});

/** Changes the options of a list only if they have changed: an open list would close. */
function offer(select, values) {
  const has = [...select.options].map(({ value }) => value);
  if (`${has}` === `${values}`) return;
  const chosen = select.value;
  select.replaceChildren(...values.map((value) => make("option", { value }, value || "all kinds")));
  if (values.includes(chosen)) select.value = chosen;
  else if (values.includes("demo")) select.value = "demo";
}

/** An example input: that of the kind's last job, if the log still has it. */
async function showExample() {
  const kind = $("kind").value;
  const shape = (input) => JSON.stringify(input, null, 2);
  const isUntouched = $("input").value === offered;
  if (!isUntouched) return;
  offered = $("input").value = shape(EXAMPLES[kind] ?? {});
  if (EXAMPLES[kind]) return;
  const { jobs } = await tw.jobs({ kind, limit: 1 });
  if (!jobs.length) return;
  const { events } = await tw.events(jobs[0].job, { limit: 1 });
  // The log has no input of a job with a callback.
  if (events[0]?.callback_digest) return;
  if (events[0]?.type === "job:queued:v1" && $("kind").value === kind && $("input").value === offered) {
    offered = $("input").value = shape(events[0].input ?? null);
  }
}
$("kind").onchange = () => showExample().catch(() => {});

/** What the form says, unless it is not valid. */
function submission() {
  const text = $("input").value.trim();
  setText($("submit-error"), "");
  try {
    return { kind: $("kind").value, input: text ? JSON.parse(text) : null };
  } catch (error) {
    setText($("submit-error"), `The input is not JSON: ${error.message}`);
    return undefined;
  }
}

$("submit").onsubmit = (event) => {
  event.preventDefault();
  const given = submission();
  if (given) submit(given);
};

async function submit(given) {
  const error = $("submit-error");
  setText(error, "");
  const before = location.hash;
  const submittedWith = token;
  const queued = tw.submit(given);
  const { job } = queued.item;
  open(job);
  try {
    await queued;
    refreshJobs();
  } catch (refusal) {
    // There is no such job to show.
    if (location.hash === `#job=${job}`) location.hash = before;
    setText(error, reason(refusal, submittedWith));
    error.scrollIntoView({ block: "nearest" });
  }
}

$("submit-curl").onclick = () => {
  const given = submission();
  if (!given) return;
  const body = quoted(JSON.stringify(given));
  copy(`curl -s ${base}/api/jobs${bearer()} -H 'content-type: application/json' -d ${body}`, "Command");
};

// ---- The list of jobs.

const rows = new Map();
let older = [];
let next = null;
/** What the list shows, while `choice` is what it is to show. */
let filter = "";
const choice = () => `${$("filter-kind").value} ${$("filter-status").value}`;

function listed(asked, page) {
  const [kind, status] = asked.split(" ");
  return tw.jobs({ kind: kind || undefined, status: status || undefined, limit: 50, page });
}

const refreshJobs = every(POLL_JOBS, async () => {
  const asked = choice();
  const page = await listed(asked);
  if (filter !== asked) older = [];
  if (!older.length) ({ next } = page);
  filter = asked;
  showJobs(page.jobs);
}, $("jobs-table"));

function showJobs(newest) {
  const seen = new Set(newest.map(({ job }) => job));
  const jobs = [...newest, ...older.filter(({ job }) => !seen.has(job))];
  const now = Date.now();
  for (const [job] of rows) if (!jobs.some((other) => other.job === job)) rows.delete(job);
  const elements = jobs.map((state) => {
    const { job, kind, status, attempt, seq, created_at } = state;
    let row = rows.get(job);
    if (!row) {
      const link = make("a", { href: `#job=${job}`, title: job }, job);
      const cells = [make("td", {}, link, make("small", {}, kind ?? "")), ...[1, 2, 3, 4].map(() => make("td"))];
      row = { element: make("tr", {}, ...cells), pill: make("span", { class: "pill" }), seq, at: now };
      cells[1].append(row.pill);
      rows.set(job, row);
    }
    const cells = row.element.cells;
    row.pill.dataset.state = row.pill.textContent = status;
    cells[2].textContent = attempt || "";
    // Events per second since the last look.
    if (now - row.at > 500) {
      const rate = ((seq - row.seq) * 1000) / (now - row.at);
      cells[3].textContent = status === "running" ? `${rate.toFixed(rate < 10 ? 1 : 0)}/s` : "";
      Object.assign(row, { seq, at: now });
    }
    cells[4].textContent = created_at ? age(now - created_at) : "";
    if (job === shown?.job) row.element.setAttribute("aria-current", "true");
    else row.element.removeAttribute("aria-current");
    return row.element;
  });
  const body = $("jobs");
  // Moving a row that is in its place would take the focus from its link.
  elements.forEach((element, index) => body.rows[index] === element || body.insertBefore(element, body.rows[index] ?? null));
  while (body.rows.length > elements.length) body.lastElementChild.remove();
  $("jobs-empty").hidden = jobs.length > 0;
  $("more").hidden = !next;
  allowMore();
}

/** Until the list shows what was chosen, there is nothing to have more of. */
function allowMore() {
  $("more").disabled = filter !== choice();
}

$("filter-kind").onchange = $("filter-status").onchange = () => {
  allowMore();
  refreshJobs();
};
$("more").onclick = async () => {
  const [asked, askedWith] = [filter, token];
  try {
    const page = await listed(asked, next);
    // Another choice was made meanwhile.
    if (asked !== filter) return;
    older.push(...page.jobs);
    ({ next } = page);
    refreshJobs();
  } catch (error) {
    notice(reason(error, askedWith), "bad");
  }
};

function age(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

// ---- One job.

/** A job on the page: its watch, and what was drawn of it. */
class Shown {
  events = [];
  /** The index of the first event in the table, and after the last one. */
  first = 0;
  drawn = 0;
  isScheduled = false;
  isStopping = false;
  /** Why the watch ended early, or why stopping the job was refused. */
  problem = "";
  stripAt = 0;
  textShown = { text: "", reasoning: "" };

  constructor(job) {
    this.job = job;
    Object.assign(raw, { last: 0, doubled: 0 });
    this.watch = tw.watch(job, { onChange: () => this.schedule() });
    this.read().catch((error) => this.fail(error));
  }

  /** Every event from the first one. */
  async read() {
    for await (const item of this.watch) {
      if (item.op === "anew") this.anew();
      else this.add(item);
      this.schedule();
    }
  }

  add(item) {
    this.events.push(item);
    if (item.ts) {
      this.begun ??= item.ts;
      this.latest = item.ts;
    }
    if (item.type === "job:queued:v1") this.queued = item;
    if (item.type === "job:started:v1") this.started = item;
    if (this.events.length > EVENTS_MAX) this.forget(EVENTS_MAX / 10);
  }

  /** Forgets the oldest events, and removes their rows. */
  forget(count) {
    this.events.splice(0, count);
    for (let row = this.first; row < Math.min(count, this.drawn); row++) $("log").firstElementChild.remove();
    this.first = Math.max(0, this.first - count);
    this.drawn = Math.max(0, this.drawn - count);
  }

  anew() {
    this.events = [];
    this.first = this.drawn = 0;
    this.begun = this.latest = this.queued = this.started = undefined;
    Object.assign(raw, { last: 0, doubled: 0 });
    $("log").replaceChildren();
    this.say("The log was lost or replaced. The job starts again from its first event.");
  }

  fail(error) {
    if (shown !== this) return;
    this.problem = reason(error);
    this.schedule();
  }

  say(text, state) {
    setText($("resume"), text);
    $("resume").dataset.state = state ?? "";
  }

  cut() {
    if (this.watch.ended) return;
    this.cutAt = this.watch.seq;
    this.say(`Connection cut after event ${this.cutAt}. The job goes on.`, "cut");
  }

  /** The first event after a cut. */
  resumed(seq) {
    this.cutAt = undefined;
    this.add({ op: "resumed", seq });
    // After the client has looked at it.
    queueMicrotask(() => {
      this.resumedAt = seq;
      this.sayWhole();
    });
  }

  sayWhole() {
    if (this.resumedAt === undefined || isCut) return;
    this.say(`Resumed at event ${this.resumedAt}: missing ${this.watch.missing}, doubled ${raw.doubled}.`);
  }

  close() {
    this.watch.close();
  }

  /** Draws once for all that arrives before the next frame. */
  schedule() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame(() => {
      this.isScheduled = false;
      if (shown === this) this.draw();
    });
  }

  draw() {
    const { view, ended } = this.watch;
    const { queued, started, problem } = this;
    const status = view.status ?? "waiting";
    setText($("job-status"), view.status ?? "not submitted yet");
    $("job-status").dataset.state = status;
    $("stop").disabled = ended || this.isStopping;
    // The log has no input of a job with a callback.
    $("again").disabled = !queued || Boolean(queued.callback_digest);
    const facts = {
      kind: queued?.kind ?? started?.kind,
      attempt: view.attempt || undefined,
      worker: started?.worker,
      events: view.seq || undefined,
      missing: view.missing,
      took: queued ? seconds(this.latest - queued.ts) : undefined,
      usage: view.usage ? JSON.stringify(view.usage) : undefined,
    };
    const known = Object.entries(facts).filter(([, value]) => value != null);
    $("facts").replaceChildren(...known.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, `${value}`))));
    setText($("job-error"), view.error ? described(view.error) : problem);
    this.drawText("text", view.text);
    this.drawText("reasoning", view.reasoning);
    $("reasoning-box").hidden = !view.reasoning;
    this.drawLog();
    this.sayWhole();
    const now = performance.now();
    if (ended || now - this.stripAt > 400) {
      this.stripAt = now;
      this.drawStrip();
    }
  }

  /** Appends what is new; most often that is little. */
  drawText(id, text) {
    const element = $(id);
    const before = this.textShown[id];
    if (text === before) return;
    const isAtEnd = element.scrollHeight - element.scrollTop - element.clientHeight < 30;
    if (before && text.startsWith(before)) element.firstChild.appendData(text.slice(before.length));
    else element.textContent = text;
    this.textShown[id] = text;
    if (isAtEnd) element.scrollTop = element.scrollHeight;
  }

  drawLog() {
    const body = $("log");
    const box = body.closest(".scroll");
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    this.isFollowing ||= isAtEnd;
    if (this.events.length - Math.max(this.drawn, this.first) > ROWS) {
      this.first = this.events.length - ROWS;
      this.drawn = this.first;
      body.replaceChildren();
    }
    const rows = [];
    for (; this.drawn < this.events.length; this.drawn++) rows.push(this.row(this.drawn));
    body.append(...rows);
    while (this.isFollowing && body.rows.length > 2 * ROWS) {
      body.firstElementChild.remove();
      this.first += 1;
    }
    $("earlier").hidden = this.first === 0;
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }

  isFollowing = true;

  earlier() {
    this.isFollowing = false;
    const from = Math.max(0, this.first - ROWS);
    const rows = [];
    for (let index = from; index < this.first; index++) rows.push(this.row(index));
    $("log").prepend(...rows);
    $("log").closest(".scroll").scrollTop = 0;
    this.first = from;
    $("earlier").hidden = from === 0;
  }

  redrawLog() {
    $("log").replaceChildren();
    this.drawn = this.first;
    this.drawLog();
  }

  row(index) {
    const event = this.events[index];
    if (event.op === "resumed") {
      return make("tr", { class: "cut" }, make("td", { colspan: 5 }, `the connection was cut here, and resumed at event ${event.seq}`));
    }
    if (event.op === "missing") {
      const text = `events ${event.from} to ${event.to} are gone from the log`;
      return make("tr", { class: "loud" }, make("td", {}, `${event.from}`), make("td"), make("td"), make("td"), make("td", {}, text));
    }
    const before = this.events.slice(Math.max(0, index - 2), index).findLast(({ ts }) => ts);
    const gap = before ? event.ts - before.ts : 0;
    const isLoud = event.type === "job:retrying:v1" || event.type === "job:failed:v1" || event.type === "job:cancel-requested:v1";
    return make(
      "tr",
      { class: `attempt-${shade(event.attempt)}${isLoud ? " loud" : ""}` },
      make("td", {}, `${event.seq}`),
      make("td", { title: new Date(event.ts).toISOString() }, seconds(event.ts - this.begun)),
      make("td", { class: gap >= SLOW_GAP ? "slow" : null }, before ? `+${seconds(gap)}` : ""),
      make("td", {}, make("span", { class: "dot" }, event.attempt ? `${event.attempt}` : "–")),
      make("td", {}, ...($("raw").checked ? [make("span", { class: "json" }, JSON.stringify(event))] : describe(event))),
    );
  }

  /** How many events each moment had, in the colours of the attempts. */
  drawStrip() {
    const events = this.events.filter(({ ts }) => ts);
    if (events.length < 2) return $("strip").replaceChildren();
    const [from, to] = [events[0].ts, Math.max(events.at(-1).ts, events[0].ts + 1)];
    const BINS = 150;
    const at = (ts) => Math.min(BINS - 1, Math.max(0, Math.floor(((ts - from) / (to - from)) * BINS)));
    const bins = Array.from({ length: BINS }, () => ({ count: 0, attempt: 0 }));
    const spans = new Map();
    const marks = [];
    for (const { ts, attempt, type } of events) {
      const bin = bins[at(ts)];
      bin.count += 1;
      bin.attempt = attempt;
      if (attempt) spans.set(attempt, [spans.get(attempt)?.[0] ?? ts, ts]);
      if (type === "job:retrying:v1" || type === "job:cancel-requested:v1" || type === "job:failed:v1") marks.push(at(ts));
    }
    const highest = Math.max(...bins.map(({ count }) => count));
    const svg = $("strip");
    svg.setAttribute("viewBox", `0 0 ${BINS} 100`);
    svg.setAttribute("aria-label", `${events.length} events in ${seconds(to - from)}, ${spans.size} attempts`);
    const bands = [...spans].map(([attempt, [start, end]]) =>
      make("rect", { class: `band attempt-${shade(attempt)}`, x: at(start), width: Math.max(1, at(end) - at(start) + 1), y: 0, height: 100 }),
    );
    const bars = bins.flatMap(({ count, attempt }, x) => {
      if (!count) return [];
      const height = 8 + (82 * count) / highest;
      return [make("rect", { class: `bar-of attempt-${shade(attempt)}`, x: x + 0.15, width: 0.7, y: 100 - height, height })];
    });
    const lines = marks.map((x) => make("line", { class: "mark", x1: x + 0.5, x2: x + 0.5, y1: 0, y2: 100 }));
    svg.replaceChildren(...bands, ...bars, ...lines);
  }
}

/** The colour of an attempt; there are five. */
const shade = (attempt) => (attempt ? ((attempt - 1) % 5) + 1 : 0);

function seconds(milliseconds) {
  const value = milliseconds / 1000;
  return value < 100 ? `${value.toFixed(value < 10 ? 2 : 1)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** An event in words. */
function describe(event) {
  const { type } = event;
  const said = (name, ...rest) => [make("b", {}, name), ...rest.filter(Boolean).map((text) => ` ${text}`)];
  if (type === "model:chunk:v1") {
    const text = make("span", { class: "chunk" }, event.text);
    return event.channel === "reasoning" ? [make("b", {}, "thinks "), text] : [text];
  }
  if (type === "job:queued:v1") return said("submitted", `as ${event.kind}`, JSON.stringify(event.input ?? null));
  if (type === "job:started:v1") return said(`attempt ${event.attempt} started`, `on ${event.worker}`, event.continues && "and continues the text");
  if (type === "job:data:v1") return [make("b", {}, "data "), make("span", { class: "json" }, JSON.stringify(event.data))];
  if (type === "job:retrying:v1") return said(`attempt ${event.attempt} is over`, `${event.code}: ${event.message}`, event.delay_ms && `(next after ${seconds(event.delay_ms)})`);
  if (type === "job:cancel-requested:v1") return said("cancellation requested", event.by && `by ${event.by}`);
  if (type === "job:done:v1") return said("done", event.finish_reason, event.usage && JSON.stringify(event.usage));
  if (type === "job:failed:v1") return said("failed", `${event.code}: ${event.message}`);
  if (type === "job:cancelled:v1") return said("cancelled");
  return [make("b", {}, `${type} `), make("span", { class: "json" }, JSON.stringify(event))];
}

function open(job) {
  if (location.hash === `#job=${job}`) show();
  else location.hash = `job=${job}`;
}

function show() {
  const job = /^#job=((?:[\w-]{1,64}:)?[\w-]{1,64})$/.exec(location.hash)?.[1];
  if (shown?.job === job && job) return;
  shown?.close();
  shown = undefined;
  $("welcome").hidden = Boolean(job);
  $("job").hidden = !job;
  $("detail").setAttribute("aria-labelledby", job ? "job-title" : "detail-title");
  for (const id of ["log", "text", "reasoning", "facts", "strip"]) $(id).replaceChildren();
  for (const id of ["job-error", "resume"]) $(id).textContent = "";
  document.title = job ? `${job} · Tailwater console` : "Tailwater console";
  if (!job) return;
  $("job-title").textContent = job;
  shown = new Shown(job);
  shown.draw();
  // In one column the list is below the job.
  if (matchMedia("(max-width: 960px)").matches) $("detail").scrollIntoView();
  for (const [other, { element }] of rows) {
    if (other === job) element.setAttribute("aria-current", "true");
    else element.removeAttribute("aria-current");
  }
}

$("skip").onclick = (event) => {
  // Following the link would change the hash, which names the job.
  event.preventDefault();
  $("detail").focus();
};
$("stop").onclick = async () => {
  const stopped = shown;
  stopped.isStopping = true;
  stopped.draw();
  try {
    await tw.cancel(stopped.job);
  } catch (error) {
    stopped.isStopping = false;
    stopped.fail(error);
  }
};
$("again").onclick = () => {
  const { kind, input } = shown.queued;
  submit({ kind, input: input ?? null });
};
$("job-curl").onclick = () => copy(`curl -sN ${base}/api/jobs/${shown.job}/events${bearer()}`, "Command");
$("copy-events").onclick = () => {
  const events = shown.events.filter(({ type }) => type);
  copy(events.map((event) => JSON.stringify(event)).join("\n"), `${events.length} events`);
};
$("earlier").onclick = () => shown.earlier();
$("raw").onchange = () => shown?.redrawLog();
addEventListener("hashchange", show);
addEventListener("pagehide", () => shown?.watch.close());
addEventListener("pageshow", ({ persisted }) => persisted && ((shown = undefined), show()));

function showVersion() {
  read("/openapi.json").then(({ info }) => setText($("version"), info.version), () => {});
}
showVersion();
show();
showConnection();
