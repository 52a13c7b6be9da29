// What this page has of one job. A feed checks sequence numbers, so it delivers each event once and in order, whatever
// its link does. What it lacks, it reads from the log.

/** @import { ClientFrame, EventPage, JobEvent, JobView, Missing, TailwaterError as Failure, WatchItem } from "./types.ts" */
/** @import { Received } from "./link.js" */
import { TailwaterError } from "./api.js";
import { EMPTY, apply, hasEnded } from "./fold.js";

/** @typedef {ReturnType<typeof createFeed>} Feed */
/**
 * What a feed needs of its client.
 * @typedef {object} Host
 * @property {(frame: ClientFrame) => void} send
 * @property {(tries: number, least?: number) => Promise<void>} pause Longer after each failure.
 * @property {(job: string, cursor: string | undefined, after: number, signal?: AbortSignal) => Promise<EventPage>} read
 * @property {() => void} idle Called when a watch is over.
 * @property {(frame: Received) => void} relay Called with what other tabs need.
 */
/**
 * The listeners: each gets an item that has arrived, or nothing after the end or a failure.
 * @typedef {(item?: WatchItem) => void} Listener
 */

/** How many items a feed keeps for iterators that are behind. Older ones they read from the log. */
const KEPT = 4096;

/** Codes of `error` frames. Any other ends the watch. */
const START_ANEW = ["cursor_not_in_log", "after_the_end"];
const TRY_AGAIN = ["unavailable", "overloaded", "internal"];
/** Late answers about a watch that was replaced meanwhile. */
const IGNORED = ["already_watching", "not_watching"];

/** The last sequence number that an item stands for. @param {JobEvent | Missing} item */
export const lastSeq = (item) => ("op" in item ? item.to : item.seq);

/**
 * @param {Host} host
 * @param {string} job
 * @param {{ view: JobView, cursor?: string }} [saved] What an earlier page had.
 */
export function createFeed({ send, pause, read, idle, relay }, job, saved) {
  let view = { ...EMPTY, ...saved?.view };
  let cursor = saved?.cursor;
  /** @type {(JobEvent | Missing)[]} */
  let items = [];
  /** What is not in `items` ends here. */
  let base = view.seq;
  /** How often the log was replaced. */
  let generation = 0;
  let ended = hasEnded(view);
  /** @type {Failure | undefined} */
  let failure;
  /** @type {Set<Listener>} */
  const listeners = new Set();
  let tries = 0;
  let isReading = false;
  let isWaiting = false;
  /** The last sequence number that arrived before those between. */
  let behind = 0;

  const isOver = () => ended || !!failure;
  /** @param {WatchItem} [item] */
  const deliver = (item) => [...listeners].forEach((listener) => listener(item));

  /** Asks for the events that it lacks. */
  function start() {
    if (!isOver()) send({ op: "watch", job, ...(cursor && { cursor }) });
  }

  /** @param {Received} frame */
  function receive(frame) {
    if (isOver()) return;
    if (!("op" in frame)) take(frame, frame.seq);
    else if (frame.op === "missing") take(frame, frame.from);
    else if (frame.op === "anew") anew();
    else if (frame.op === "end") end();
    else if (frame.op === "error") refused(frame.code, frame.message);
  }

  /** @param {JobEvent | Missing} item @param {number} first */
  function take(item, first) {
    const last = lastSeq(item);
    if (last <= view.seq) return;
    if (first > view.seq + 1) {
      behind = Math.max(behind, last);
      catchUp();
      return;
    }
    if ("op" in item) item = { ...item, from: view.seq + 1 };
    else cursor = item.cursor;
    tries = 0;
    view = apply(view, item);
    items.push(item);
    if (items.length > 2 * KEPT) base = lastSeq(items.splice(0, KEPT)[KEPT - 1]);
    relay(item);
    deliver(item);
    if (hasEnded(view)) end();
  }

  function anew() {
    view = EMPTY;
    cursor = undefined;
    items = [];
    base = behind = 0;
    generation++;
    /** @type {WatchItem} */
    const item = { op: "anew", job };
    relay(item);
    deliver(item);
  }

  function end() {
    ended = true;
    deliver();
    idle();
  }

  /** @param {Failure} error */
  function fail(error) {
    if (isOver()) return;
    failure = error;
    relay({ op: "error", code: error.code, message: error.message, job });
    deliver();
    idle();
  }

  /** @param {string} code @param {string} message */
  async function refused(code, message) {
    if (IGNORED.includes(code) || isOver()) return;
    if (START_ANEW.includes(code)) {
      anew();
      start();
    } else if (!TRY_AGAIN.includes(code)) {
      fail(new TailwaterError(code, message));
    } else if (!isWaiting) {
      isWaiting = true;
      await pause(tries++);
      isWaiting = false;
      if (!listeners.size) return;
      start();
      if (view.seq < behind) catchUp();
    }
  }

  /** Reads the events that it lacks from the log, in pages. */
  async function catchUp() {
    if (isReading) return;
    isReading = true;
    try {
      for (let more = true; more && listeners.size && !isOver(); ) {
        const before = generation;
        const { events, missing, live, next } = await read(job, cursor, view.seq);
        if (before !== generation) continue;
        if (missing) receive({ op: "missing", job, ...missing });
        events.forEach(receive);
        if (next === null && !isOver()) end();
        more = !live || view.seq < behind;
        if (more && !events.length) await pause(tries++);
      }
    } catch (error) {
      const { code, message, retry } = /** @type {Failure} */ (error);
      refused(retry ? "unavailable" : code, message);
    } finally {
      isReading = false;
    }
  }

  return {
    job,
    listeners,
    start,
    receive,
    refused,
    fail,
    catchUp,
    isOver,
    isPersistent: false,
    get view() {
      return view;
    },
    get cursor() {
      return cursor;
    },
    get ended() {
      return ended;
    },
    get failure() {
      return failure;
    },
    get generation() {
      return generation;
    },

    /**
     * The items after `seq`, or undefined if there are none yet. `at` is the cursor of the event with this number.
     * @param {number} seq
     * @param {string | undefined} at
     * @param {AbortSignal} [signal]
     * @returns {Promise<(JobEvent | Missing)[]>}
     */
    async after(seq, at, signal) {
      if (seq >= base) {
        // Each item stands for at least one sequence number.
        const from = Math.max(0, items.length - (view.seq - seq));
        return items.slice(from).filter((item) => lastSeq(item) > seq);
      }
      const { missing, events } = await read(job, at, seq, signal);
      return missing ? [{ op: "missing", job, ...missing }, ...events] : events;
    },
  };
}
