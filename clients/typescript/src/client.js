// `connect`: one connection to an edge for all watches of a page. It reconnects, and resumes each watch after its last
// event. Submits and cancels go over HTTP, so they work the same wherever the events come from.

/** @import { Client, Connect } from "./types.ts" */
/** @import { Feed, Host } from "./feed.js" */
/** @import { Link } from "./link.js" */
/** @import { Tabs } from "./tabs.js" */
import { TailwaterError, closed, createApi, jobPath } from "./api.js";
import { createFeed } from "./feed.js";
import { openSocket, openStreams } from "./link.js";
import { createQueue, randomId } from "./queue.js";
import { createTabs } from "./tabs.js";
import { call, createWatch } from "./watch.js";

export { EMPTY, apply } from "./fold.js";
export { TailwaterError };

/** Close codes after which the edge wants its clients back, and 1000, after which they may come back. */
const RECONNECT = [1000, 1001, 1006, 1011, 1012, 1013];
/** The token is missing, invalid or expired. */
const UNAUTHORIZED = 4401;
/** Pauses between tries. */
const PAUSE_MIN = 50;
const PAUSE_MAX = 10_000;
const PAUSE_OVERLOADED = 1000;
/** A connection that was in use for this long does not count as a failure. */
const STABLE = 5000;
/** After this silence the client asks for a sign of life. */
const QUIET = 20_000;
/** And after this time without any it abandons the connection. */
const ANSWER = 25_000;
/** When the page or the network was away, a dead connection is likely. */
const ANSWER_AWAKE = 5000;
const CHECK_EVERY = 1000;
/** How long a connection and its watches stay for a page that only rearranges them. */
const LINGER = 250;
/** How long WebSockets are not tried again after they were found to be blocked. */
const SSE_FOR = 3_600_000;
/** How many jobs `persist: "session"` keeps. */
const SAVED_JOBS = 20;
const PAGE = 1000;

// The folder of this file, by default. Bundlers would take `new URL(".", import.meta.url)` for a file to include, and fail.
/** @type {Connect} */
export const connect = (given = import.meta.url.replace(/[^/]*$/, ""), options = {}) => {
  const url = `${given}`.replace(/^ws/, "http").replace(/\/+$/, "");
  const name = `tailwater:${url}`;
  const Socket = options.WebSocket ?? globalThis.WebSocket;
  const api = createApi(url, options.token);
  const page = globalThis.document;
  const listening = new AbortController();
  /** @type {Map<string, Feed>} */
  const feeds = new Map();
  /** Ends of the pauses in progress. @type {Set<() => void>} */
  const sleepers = new Set();
  /** @type {Client["status"]} */
  let status = "idle";
  /** @type {Link | undefined} */
  let link;
  /** @type {Tabs | undefined} */
  let tabs;
  let isOpen = false;
  let isRunning = false;
  let isClosed = false;
  /** Whether the page is in the back/forward cache, or on its way there: it neither connects nor asks until it returns. */
  let isAway = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let tidying;
  /** When the connection was begun, when the last frame arrived, and until when another one must, or 0. */
  let heard = 0;
  let begun = 0;
  let deadline = 0;
  /** How many WebSockets in a row were refused; not more than two before the edge was seen to be ready. */
  let refused = 0;
  let overStreams = !Socket || Date.now() - load("localStorage", name) < SSE_FOR;

  /** @type {Host} */
  const host = {
    send(frame) {
      if (!isOpen) return;
      link?.send(frame);
      // The connected tab relays only what comes from now on.
      if (frame.op === "watch" && transport() === "tab") feeds.get(frame.job)?.catchUp();
    },
    pause: (tries, least = 0) =>
      new Promise((resolve) => {
        const wake = () => {
          if (isAway) return;
          clearTimeout(timer);
          sleepers.delete(wake);
          resolve();
        };
        const time = Math.max(least, Math.min(PAUSE_MAX, PAUSE_MIN * 2 ** tries));
        // At random, so that clients do not all return together.
        const timer = setTimeout(wake, time * (0.5 + Math.random() / 2));
        sleepers.add(wake);
      }),
    read: (job, cursor, after, signal) => client.events(job, { ...(cursor ? { cursor } : { after }), limit: PAGE, signal }),
    idle: () => (tidying ??= setTimeout(tidy, LINGER)),
    relay: (frame) => tabs?.relay(frame),
  };
  const queue = createQueue(api, host.pause, options.queue === "indexeddb", options.onQueue);

  /** @returns {Client["transport"]} */
  const transport = () => (tabs && !tabs.leads ? "tab" : overStreams ? "sse" : "websocket");
  const isNeeded = () => !isClosed && [...feeds.values()].some((feed) => !feed.isOver());

  /** @param {Client["status"]} next */
  function set(next) {
    if (status === next) return;
    status = next;
    call(options.onStatus, client);
  }

  /** Connects again and again, for as long as there is something to watch. */
  async function run() {
    if (isRunning || !isNeeded()) return;
    isRunning = true;
    if (options.share && globalThis.navigator?.locks) tabs ??= createTabs(`${name}:tabs`, client);
    await tabs?.ready;
    let tries = 0;
    let renewals = 0;
    while (isNeeded()) {
      set("connecting");
      const code = await session();
      if (heard - begun > STABLE) tries = renewals = 0;
      if (code === UNAUTHORIZED && typeof options.token === "function" && !renewals++) {
        await api.token(true).catch(() => {});
      } else if (!RECONNECT.includes(code)) {
        feeds.forEach((feed) => feed.refused(`close_${code}`, "The edge refused the connection."));
      }
      if (!isNeeded()) break;
      set("waiting");
      // A proxy may refuse WebSockets while it passes other requests. An edge that starts refuses them until it is ready,
      // so only what is refused after that counts.
      if (refused > 2) {
        overStreams = true;
        save("localStorage", name, Date.now());
      } else if (refused > 1) {
        await api.request("/readyz").catch(() => (refused = 1));
      }
      await host.pause(tries++, code === 1013 ? PAUSE_OVERLOADED : 0);
    }
    isRunning = false;
    set(isClosed ? "closed" : "idle");
  }

  /**
   * One connection, from its opening to its end.
   * @returns {Promise<number>} The code of its close.
   */
  async function session() {
    const over = transport();
    const token = await api.token().catch(() => null);
    /** @type {ReturnType<typeof setInterval> | undefined} */
    let timer;
    begun = heard = Date.now();
    deadline = begun + ANSWER;
    // Without its token it would be refused, and the page may go away meanwhile.
    const cannotOpen = () => token === null || isAway;
    const code = await new Promise((resolve) => {
      /** @param {number} code */
      const closed = (code) => {
        refused = over !== "websocket" || isOpen || cannotOpen() ? 0 : refused + 1;
        isOpen = false;
        link = undefined;
        resolve(code);
      };
      const listener = { received, closed };
      if (cannotOpen()) closed(1006);
      else if (over === "sse") link = openStreams(api, listener);
      else if (over === "tab") link = tabs?.follow(listener);
      else link = openSocket(Socket, url, token, listener);
      // Streams notice their own silence.
      if (over !== "sse") timer = setInterval(check, CHECK_EVERY);
    });
    clearInterval(timer);
    return code;
  }

  /** @param {any} frame One of link.js's `Received`. */
  function received(frame) {
    heard = Date.now();
    deadline = 0;
    if (frame.job) {
      feeds.get(frame.job)?.receive(frame);
    } else if (frame.op === "hello") {
      isOpen = true;
      set("open");
      feeds.forEach((feed) => feed.start());
    } else if (frame.op === "token_expiring") {
      // Not at once: an edge reports a token of a few seconds as soon as it has it.
      host.pause(0, frame.expires_in_ms / 2).then(renew);
    }
  }

  /** Replaces the token of the open connection. */
  async function renew() {
    const token = isOpen && (await api.token(true).catch(() => {}));
    if (token) host.send({ op: "auth", token });
  }

  /** Notices a connection that is dead, which a browser reports after minutes. */
  function check() {
    if (deadline && Date.now() > deadline) {
      if (transport() === "tab") tabs?.steal();
      link?.close(1006);
    } else if (Date.now() - heard > QUIET) {
      ask(ANSWER);
    }
  }

  /** Asks for a sign of life. @param {number} within */
  function ask(within) {
    if (!isOpen || deadline) return;
    deadline = Date.now() + within;
    link?.send({ op: "ping" });
  }

  /** The network or the page is back. */
  function wake() {
    sleepers.forEach((end) => end());
    ask(ANSWER_AWAKE);
  }

  /** Forgets the jobs that nothing watches, and closes a connection without watches. */
  function tidy() {
    tidying = undefined;
    keep();
    for (const [job, feed] of feeds) {
      if (feed.listeners.size) continue;
      feeds.delete(job);
      if (!feed.isOver()) host.send({ op: "unwatch", job });
    }
    if (!isNeeded()) link?.close(1000);
  }

  /** @returns {Record<string, Pick<Feed, "view" | "cursor">>} */
  const kept = () => load("sessionStorage", name) ?? {};

  function keep() {
    const mine = [...feeds.values()].filter((feed) => feed.isPersistent && !feed.failure);
    if (!mine.length) return;
    const views = Object.fromEntries(mine.map(({ job, view, cursor }) => [job, { view, cursor }]));
    const all = Object.entries({ ...views, ...kept(), ...views });
    save("sessionStorage", name, Object.fromEntries(all.slice(0, SAVED_JOBS)));
  }

  /** @type {Client} */
  const client = {
    get status() {
      return status;
    },
    get transport() {
      return transport();
    },
    watch(job, options = {}) {
      let feed = feeds.get(job);
      if (!feed || feed.failure) {
        feed = createFeed(host, job, options.persist && kept()[job]);
        feeds.set(job, feed);
        feed.start();
      }
      feed.isPersistent ||= options.persist === "session";
      const watch = createWatch(host, feed, options);
      run();
      return watch;
    },
    saved: () => Object.keys(kept()),
    submit({ key, id, ...rest }, options = {}) {
      // With a key the edge derives the id.
      const job = id ?? (key ? undefined : `${rest.kind}:${randomId()}`);
      return queue.add({ op: "submit", job, key, body: { ...rest, id: job } }, options);
    },
    cancel: (job, options = {}) => queue.add({ op: "cancel", job }, options),
    queued: queue.all,
    state: (job, options = {}) => api.read(jobPath(job), options),
    jobs: (options = {}) => api.read("/api/jobs", options),
    events: (job, options = {}) => api.read(`${jobPath(job)}/events`, options),
    reconnect() {
      link?.close(1006);
      wake();
    },
    close() {
      keep();
      isClosed = true;
      isAway = false;
      listening.abort();
      feeds.forEach((feed) => feed.fail(closed()));
      tabs?.close();
      queue.close();
      link?.close(1000);
      wake();
      set("closed");
    },
  };

  /** @param {any} target @param {string} type @param {(event: any) => void} listener */
  const on = (target, type, listener) => target?.addEventListener?.(type, listener, listening);
  // The page cannot know whether its connection survives.
  on(globalThis, "offline", wake);
  on(globalThis, "online", wake);
  on(globalThis, "pageshow", () => {
    isAway = false;
    wake();
  });
  on(globalThis, "pagehide", ({ persisted }) => {
    keep();
    tabs?.leave();
    isAway = persisted;
    // An open connection would keep the page out of the back/forward cache.
    if (persisted) link?.close(1006);
  });
  on(page, "visibilitychange", () => (page.hidden ? keep() : wake()));
  return client;
};

/** What a page has stored; a browser may refuse access. @param {"localStorage" | "sessionStorage"} where @param {string} name */
function load(where, name) {
  try {
    // What is not stored is `null`, as text and as a value.
    return JSON.parse(/** @type {string} */ (globalThis[where].getItem(name)));
  } catch {
    return null;
  }
}

/** @param {"localStorage" | "sessionStorage"} where @param {string} name @param {unknown} value */
function save(where, name, value) {
  try {
    globalThis[where].setItem(name, JSON.stringify(value));
  } catch {
    // Full or forbidden: then a reload begins anew.
  }
}
