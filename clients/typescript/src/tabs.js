// Lets the tabs of a browser share one connection: the tab that holds a Web Lock is connected, and relays what it receives
// over a BroadcastChannel. When it closes, or does not answer, another tab takes its place.

/** @import { Client, Watch } from "./types.ts" */
/** @import { Link, Listener } from "./link.js" */
import { randomId } from "./queue.js";

/** @typedef {ReturnType<typeof createTabs>} Tabs */

/**
 * @param {string} name
 * @param {Pick<Client, "watch" | "reconnect">} client
 */
export function createTabs(name, { watch, reconnect }) {
  const id = randomId();
  const channel = new BroadcastChannel(name);
  let leads = false;
  let isClosed = false;
  /** @type {(value?: unknown) => void} */
  let release = () => {};
  /** @type {Listener | undefined} */
  let listener;
  /** What this tab watches for others: by tab, then by job. @type {Map<string, Map<string, Watch>>} */
  const others = new Map();

  /** @param {LockOptions} options @param {() => void} [decided] */
  function lead(options, decided) {
    const held = navigator.locks.request(name, options, (lock) => {
      leads = !!lock && !isClosed;
      decided?.();
      if (!lock) return lead({});
      if (isClosed) return;
      channel.postMessage({ frame: { op: "hello" } });
      reconnect();
      return new Promise((resolve) => (release = resolve));
    });
    // Another tab found this one silent.
    held.catch(() => {
      leads = false;
      if (isClosed) return;
      lead({});
      reconnect();
    });
  }

  /** @param {string} from @param {any} frame */
  function serve(from, { op, job }) {
    const watches = others.get(from) ?? new Map();
    others.set(from, watches);
    if (op === "watch") {
      watches.get(job)?.close();
      watches.set(job, watch(job));
    } else if (op === "unwatch") {
      watches.get(job)?.close();
    } else if (op === "bye") {
      watches.forEach((/** @type {Watch} */ watch) => watch.close());
      others.delete(from);
    } else {
      channel.postMessage({ to: from, frame: { op } });
    }
  }

  channel.onmessage = ({ data: { from, to, frame } }) => {
    if (from && leads) serve(from, frame);
    if (!from && (to ?? id) === id && !leads) listener?.received(frame);
  };

  /** @param {object} frame */
  const send = (frame) => isClosed || channel.postMessage({ from: id, frame });

  return {
    /** Whether this tab is the connected one. */
    get leads() {
      return leads;
    },
    /** Resolves once that is known. @type {Promise<void>} */
    ready: new Promise((resolve) => lead({ ifAvailable: true }, resolve)),
    /** Takes the place of a tab that does not answer. */
    steal: () => lead({ steal: true }),
    /** Sends to the other tabs what they need. @param {object} frame */
    relay: (frame) => leads && !isClosed && channel.postMessage({ frame }),
    /** The page is left, perhaps forever. */
    leave: () => send({ op: "bye" }),

    /** The link of a tab that does not lead. @param {Listener} given @returns {Link} */
    follow(given) {
      listener = given;
      send({ op: "hello" });
      return {
        send,
        close(code) {
          listener = undefined;
          given.closed(code);
        },
      };
    },

    close() {
      send({ op: "bye" });
      isClosed = true;
      channel.close();
      release();
    },
  };
}
