// One use of a job on a page: its callbacks, its promise and its iterators, over the feed of the job.

/** @import { JobView, Watch, WatchItem, WatchOptions, TailwaterError } from "./types.ts" */
/** @import { Feed, Host } from "./feed.js" */
import { closed } from "./api.js";
import { lastSeq } from "./feed.js";
import { EMPTY } from "./fold.js";

/**
 * Calls what the page gave. Its exceptions are the page's, not ours.
 * @template {unknown[]} T
 * @param {((...given: T) => void) | undefined} callback
 * @param {T} given
 */
export function call(callback, ...given) {
  try {
    callback?.(...given);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

/**
 * @param {Host} host
 * @param {Feed} feed
 * @param {WatchOptions} options
 * @returns {Watch}
 */
export function createWatch({ idle, pause }, feed, options) {
  const { signal } = options;
  /** @type {Set<() => void>} */
  const listeners = new Set();
  let isOpen = true;
  let isSettled = false;
  /** @type {(watch: Watch) => void} */
  let resolve;
  /** @type {(reason: unknown) => void} */
  let reject;
  /** @type {Promise<Watch>} */
  const done = new Promise((...settle) => ([resolve, reject] = settle));
  // It may remain unused.
  done.catch(() => {});

  /** @param {WatchItem} [item] */
  function changed(item) {
    const { ended, failure } = feed;
    if (item) {
      if (!("op" in item)) call(options.onEvent, item, watch);
      else if (item.op === "missing") call(options.onMissing, item, watch);
      else call(options.onAnew, watch);
    } else if (!isSettled) {
      isSettled = true;
      if (ended) {
        resolve(watch);
        call(options.onEnd, watch);
      } else if (failure) {
        reject(failure);
        call(options.onError, failure, watch);
      }
    }
    call(options.onChange, watch);
    listeners.forEach((listener) => call(listener));
  }

  function close() {
    if (!isOpen) return;
    isOpen = false;
    feed.listeners.delete(changed);
    signal?.removeEventListener("abort", close);
    reject(signal?.reason ?? closed());
    listeners.forEach((listener) => call(listener));
    idle();
  }

  async function* iterate() {
    let { generation } = feed;
    let seq = 0;
    /** @type {string | undefined} */
    let cursor;
    let tries = 0;
    try {
      while (isOpen) {
        if (generation !== feed.generation) {
          ({ generation } = feed);
          seq = 0;
          cursor = undefined;
          yield /** @type {WatchItem} */ ({ op: "anew", job: feed.job });
        }
        const { view } = feed;
        /** @type {Awaited<ReturnType<Feed["after"]>>} */
        let items = [];
        try {
          items = await feed.after(seq, cursor, signal);
        } catch (error) {
          if (!(/** @type {TailwaterError} */ (error).retry)) throw error;
          await pause(tries++);
          continue;
        }
        for (const item of items) {
          if (generation !== feed.generation || !isOpen) break;
          seq = lastSeq(item);
          if (!("op" in item)) ({ cursor } = item);
          tries = 0;
          yield item;
        }
        if (items.length || view !== feed.view || !isOpen) continue;
        if (feed.failure) throw feed.failure;
        if (feed.ended) return;
        await new Promise((/** @type {(value: void) => void} */ wake) => {
          const stop = watch.subscribe(() => {
            stop();
            wake();
          });
        });
      }
      signal?.throwIfAborted();
    } finally {
      // A loop that was left early does not watch on.
      close();
    }
  }

  const watch = /** @type {Watch} */ (/** @type {unknown} */ ({
    job: feed.job,
    done,
    close,
    get view() {
      return feed.view;
    },
    get ended() {
      return feed.ended;
    },
    get failure() {
      return feed.failure;
    },
    /** @param {() => void} listener */
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    [Symbol.asyncIterator]: iterate,
  }));
  for (const name of /** @type {(keyof JobView)[]} */ (Object.keys(EMPTY))) {
    Object.defineProperty(watch, name, { get: () => feed.view[name], enumerable: true });
  }
  feed.listeners.add(changed);
  signal?.addEventListener("abort", close);
  if (signal?.aborted) close();
  // It may have ended before, for example before a reload.
  if (feed.isOver()) queueMicrotask(changed);
  return watch;
}
