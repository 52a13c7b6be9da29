// Submits and cancels that wait for the network: in order, bounded, each sent until the edge has answered. Each is safe to
// repeat, so one whose answer was lost runs once. In IndexedDB they survive a reload, and one tab sends them.

/** @import { Cancelling, Queued, Requested, Submission, Submitted, TailwaterError as Failure } from "./types.ts" */
/** @import { Api } from "./api.js" */
/** @import { Host } from "./feed.js" */
import { TailwaterError, jobPath } from "./api.js";
import { call } from "./watch.js";

/**
 * An item as it is stored; `n` is its place in the database.
 * @typedef {{ id: string, n?: number, op: "submit" | "cancel", job?: string, key?: string, body?: Submission, status: "queued" | "sent" | "failed", code?: string }} Item
 */
/** @typedef {{ all: () => Promise<Item[]>, add: (item: Item) => Promise<unknown>, remove: (item: Item) => Promise<unknown> }} Store */

/** How many may wait. */
const LIMIT = 100;

/** A random id; `crypto.randomUUID` is missing on pages without TLS. */
export const randomId = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join("");

/** @returns {Store} */
function inMemory() {
  /** @type {Item[]} */
  let items = [];
  return {
    all: async () => items,
    add: async (item) => items.push(item),
    remove: async ({ id }) => (items = items.filter((item) => item.id !== id)),
  };
}

/** @param {string} name @returns {Store} */
function inDatabase(name) {
  const opening = indexedDB.open(name);
  /** @type {Promise<IDBDatabase>} */
  const database = new Promise((resolve, reject) => {
    opening.onupgradeneeded = () => opening.result.createObjectStore(name, { keyPath: "n", autoIncrement: true });
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  /**
   * @template T
   * @param {(store: IDBObjectStore) => IDBRequest<T>} work
   * @returns {Promise<T>}
   */
  const run = async (work) => {
    const transaction = (await database).transaction(name, "readwrite");
    const { result } = await new Promise((resolve, reject) => {
      const request = work(transaction.objectStore(name));
      transaction.oncomplete = () => resolve(request);
      transaction.onabort = () => reject(transaction.error);
    });
    return result;
  };
  return {
    all: () => run((store) => store.getAll()),
    add: async (item) => (item.n = /** @type {number} */ (await run((store) => store.add(item)))),
    remove: ({ n = 0 }) => run((store) => store.delete(n)),
  };
}

/**
 * @param {Api} api
 * @param {Host["pause"]} pause
 * @param {boolean} isStored
 * @param {((item: Item) => void) | undefined} report
 */
export function createQueue({ url, post }, pause, isStored, report) {
  const name = `tailwater:${url}:queue`;
  const { locks } = globalThis.navigator ?? {};
  /** What this tab has asked for. @type {Map<string, { item: Item, settle: (answer: any, error: any) => void, signal?: AbortSignal }>} */
  const own = new Map();
  const shared = isStored && globalThis.indexedDB ? new BroadcastChannel(name) : undefined;
  const store = shared ? inDatabase(name) : inMemory();
  let isSending = false;

  /**
   * @param {Item} item
   * @param {Submitted | Cancelling | undefined} answer
   * @param {Failure} [error]
   */
  function settle(item, answer, error) {
    const mine = own.get(item.id);
    own.delete(item.id);
    item = Object.assign(mine?.item ?? item, error ? { status: "failed", code: error.code } : { status: "sent", job: answer?.job });
    call(report, item);
    mine?.settle(answer, error);
  }

  /** @type {typeof settle} */
  function settleEverywhere(item, answer, error) {
    shared?.postMessage({ item, answer, error: error && [error.code, error.message] });
    settle(item, answer, error);
  }

  /** Sends what waits, in one tab. */
  async function send() {
    if (isSending) return;
    isSending = true;
    try {
      await (shared && locks ? locks.request(name, sendAll) : sendAll());
    } finally {
      isSending = false;
    }
  }

  async function sendAll() {
    for (let tries = 0, item; ([item] = await store.all()), item; ) {
      const { id, body, job = "", key } = item;
      const signal = own.get(id)?.signal;
      try {
        const answer = await (body ? post("/api/jobs", body, signal, key) : post(`${jobPath(job)}/cancel`, undefined, signal));
        await store.remove(item);
        settleEverywhere(item, answer);
      } catch (thrown) {
        if (signal?.aborted) continue;
        const error = /** @type {TailwaterError} */ (thrown);
        if (error.retry) {
          await pause(tries++, error.wait);
          continue;
        }
        await store.remove(item);
        settleEverywhere(item, undefined, error);
      }
      tries = 0;
    }
  }

  if (shared) {
    shared.onmessage = ({ data: { item, answer, error } }) =>
      settle(item, answer, error && new TailwaterError(error[0], error[1]));
    send().catch(() => {});
  }

  return {
    all: store.all,
    close: () => shared?.close(),

    /**
     * @param {Omit<Item, "id" | "status">} given
     * @param {Requested} options
     * @returns {Queued<any>}
     */
    add(given, { signal }) {
      /** @type {Item} */
      const item = { ...given, id: randomId(), status: "queued" };
      const answer = new Promise((resolve, reject) => {
        own.set(item.id, { item, settle: (answer, error) => (error ? reject(error) : resolve(answer)), signal });
      });
      const abort = async () => {
        settle(item, undefined, signal?.reason);
        await store.remove(item);
      };
      const keep = async () => {
        signal?.throwIfAborted();
        if ((await store.all()).length >= LIMIT) throw new TailwaterError("outbox_full", "The queue is full.");
        await store.add(item);
        signal?.addEventListener("abort", abort);
        call(report, item);
        await send();
      };
      keep().catch((error) => settle(item, undefined, error));
      return Object.assign(answer, { item });
    },
  };
}
