// Folds the events of a job into what a page shows. It knows no connection and no clock.
// tests/conformance has the cases that this fold and the one of the edge must agree on.

/** @import { Event, JobEvent, JobView, Missing, Status } from "./types.ts" */

/** @type {JobView} */
export const EMPTY = {
  text: "",
  reasoning: "",
  status: null,
  attempt: 0,
  seq: 0,
  missing: 0,
  truncated: false,
  error: null,
  usage: null,
};

/** @type {Record<string, Status>} */
const STATUS = {
  "job:queued:v1": "queued",
  "job:retrying:v1": "queued",
  "job:done:v1": "done",
  "job:failed:v1": "failed",
  "job:cancelled:v1": "cancelled",
};

/** Whether no event follows. @param {JobView} view */
export const hasEnded = ({ status }) => status !== null && status !== "queued" && status !== "running";

/**
 * The view after one more event. `item` must be the next one.
 * @param {JobView} view
 * @param {JobEvent | Missing} item
 * @returns {JobView}
 */
export function apply(view, item) {
  if ("op" in item) {
    // They may have been text, or an attempt that replaced the text.
    const missing = view.missing + item.to - item.from + 1;
    return { ...view, seq: item.to, missing, text: "", reasoning: "", truncated: true };
  }
  const event = /** @type {Event} */ (item);
  const { type, seq, attempt } = event;
  /** @type {{ -readonly [K in keyof JobView]: JobView[K] }} */
  const next = { ...view, seq, attempt, status: STATUS[type] ?? "running" };
  if (type === "job:started:v1") {
    if (!event.continues) return { ...next, text: "", reasoning: "", truncated: false };
  } else if (type === "model:chunk:v1") {
    next[event.channel === "reasoning" ? "reasoning" : "text"] += event.text;
  } else if (type === "job:cancel-requested:v1") {
    // A job that is cancelled before its first attempt still waits.
    if (!attempt) next.status = "queued";
  } else if (type === "job:done:v1") {
    next.usage = event.usage ?? null;
  } else if (type === "job:failed:v1") {
    const { code, message, retryable = false } = event;
    next.error = { code, message, retryable };
  }
  return next;
}
