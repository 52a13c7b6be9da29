// The connections to an edge: a WebSocket, or one event stream for each job where WebSockets are blocked. A link only
// passes frames; it neither reconnects nor resumes.

/** @import { Anew, ClientFrame, JobEvent, ServerFrame, TailwaterError } from "./types.ts" */
/** @import { Api } from "./api.js" */
import { jobPath } from "./api.js";

/** @typedef {ServerFrame | JobEvent | Anew} Received */
/**
 * `close` ends the link at once, as if the edge had closed it with `code`.
 * @typedef {{ send: (frame: ClientFrame) => void, close: (code: number) => void }} Link
 */
/**
 * What a link reports. `closed` is called once.
 * @typedef {{ received: (frame: Received) => void, closed: (code: number) => void }} Listener
 */

/** A stream that sent nothing at all for this long is dead. An edge sends something every 15 s. */
const SILENCE = 45_000;

/** The `readyState` of a WebSocket that takes frames. */
const OPEN = 1;

/**
 * @param {typeof WebSocket} Socket
 * @param {string} url
 * @param {string | null | undefined} token
 * @param {Listener} listener
 * @returns {Link}
 */
export function openSocket(Socket, url, token, { received, closed }) {
  const socket = new Socket(`${url.replace("http", "ws")}/ws`, "tailwater.v1.json");
  // A browser reports what is sent while the socket closes as an error of the page.
  /** @param {ClientFrame} frame */
  const send = (frame) => socket.readyState === OPEN && socket.send(JSON.stringify(frame));
  /** @param {number} code */
  const close = (code) => {
    // A dead connection takes minutes to close.
    socket.onmessage = socket.onclose = null;
    socket.close();
    closed(code);
  };
  socket.onopen = () => token && send({ op: "auth", token });
  socket.onmessage = ({ data }) => received(JSON.parse(data));
  socket.onclose = ({ code }) => close(code);
  return { send, close };
}

/**
 * @param {Api} api
 * @param {Listener} listener
 * @returns {Link}
 */
export function openStreams({ request }, { received, closed }) {
  /** @type {Map<string, AbortController>} */
  const streams = new Map();

  /** @param {string} job @param {string | null | undefined} cursor */
  async function follow(job, cursor) {
    const control = new AbortController();
    stop(job);
    streams.set(job, control);
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => control.abort(), SILENCE);
    };
    let code = "unavailable";
    let message = "";
    try {
      heard();
      const headers = { accept: "text/event-stream", ...(cursor && { "last-event-id": cursor }) };
      const { body } = await request(`${jobPath(job)}/events`, { headers, signal: control.signal });
      // 204: the job ended with the cursor's event.
      if (!body) received({ op: "end", job });
      const reader = body?.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; reader; ) {
        heard();
        const { value, done } = await reader.read();
        if (done) break;
        const blocks = (rest + value).split("\n\n");
        rest = /** @type {string} */ (blocks.pop());
        for (const block of blocks) {
          const data = /^data: ?(.*)$/m.exec(block);
          if (data) received(JSON.parse(data[1]));
        }
      }
    } catch (error) {
      const failure = /** @type {TailwaterError} */ (error);
      // Other errors do not say it.
      if (failure.retry === false) ({ code, message } = failure);
    }
    clearTimeout(timer);
    // Unless it was stopped. After the job's final event this has no effect.
    if (streams.get(job) === control) received({ op: "error", code, message, job });
  }

  /** @param {string} job */
  function stop(job) {
    const control = streams.get(job);
    streams.delete(job);
    control?.abort();
  }

  queueMicrotask(() => received(/** @type {any} */ ({ op: "hello" })));
  return {
    send(frame) {
      if (frame.op === "watch") follow(frame.job, frame.cursor);
      if (frame.op === "unwatch") stop(frame.job);
    },
    close(code) {
      [...streams.keys()].forEach(stop);
      closed(code);
    },
  };
}
