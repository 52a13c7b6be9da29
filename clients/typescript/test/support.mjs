// An edge in memory: a log for each job, behind fake WebSockets and a fake `fetch`. Tests decide what breaks.

/** A log, and the connections to it. */
export class FakeEdge {
  /** @type {Map<string, object[]>} */
  logs = new Map();
  /** @type {FakeSocket[]} */
  sockets = [];
  /** Frames that clients have sent. */
  sent = [];
  /** Requests over HTTP, as `METHOD path`. */
  requests = [];
  /** Whether it can be reached. */
  up = true;
  /** Whether WebSockets are blocked. */
  blocked = false;
  /** Whether it takes connections and says nothing. */
  mute = false;
  /** Whether it answers `ping`. */
  answers = true;
  /** Answers a request before the edge does: `(method, path, init) => Response | undefined`. */
  intercept = () => undefined;
  /** How many times each job was submitted for the first time, and again. */
  submitted = new Map();

  constructor() {
    const edge = this;
    this.WebSocket = class extends FakeSocket {
      constructor(url, protocol) {
        super(edge, url, protocol);
      }
    };
    this.fetch = (url, init = {}) => this.#answer(new URL(url), init);
    globalThis.fetch = this.fetch;
  }

  get open() {
    return this.sockets.filter((socket) => socket.readyState === 1);
  }

  /** Stores the next event of a job, and sends it to those that watch the job. */
  append(job, event) {
    const log = this.log(job);
    const seq = log.length + 1;
    const attempt = event.attempt ?? log.at(-1)?.attempt ?? 0;
    const stored = { job, ts: seq, attempt, ...event, seq, cursor: `${job}-${seq}` };
    log.push(stored);
    for (const socket of this.open) socket.copy(job);
    return stored;
  }

  /** A job with these chunks; it goes on. */
  start(job, ...texts) {
    this.append(job, { type: "job:queued:v1", kind: "demo", attempt: 0 });
    this.append(job, { type: "job:started:v1", kind: "demo", worker: "w", attempt: 1 });
    for (const text of texts) this.chunk(job, text);
  }

  chunk(job, text, channel) {
    return this.append(job, { type: "model:chunk:v1", text, ...(channel && { channel }) });
  }

  end(job) {
    return this.append(job, { type: "job:done:v1", usage: { words: 1 }, finish_reason: "stop" });
  }

  log(job) {
    if (!this.logs.has(job)) this.logs.set(job, []);
    return this.logs.get(job);
  }

  /** Where a cursor is in a log, or -1. */
  position(job, cursor) {
    return cursor ? this.log(job).findIndex((event) => event.cursor === cursor) + 1 || -1 : 0;
  }

  async #answer({ pathname, searchParams }, init) {
    const method = init.method ?? "GET";
    this.requests.push(`${method} ${pathname}`);
    await undefined;
    init.signal?.throwIfAborted();
    if (!this.up) throw new TypeError("fetch failed");
    const answer = await this.intercept(method, pathname, init);
    if (answer) return answer;
    const [, , , job, part] = pathname.split("/").map(decodeURIComponent);
    if (pathname === "/readyz") return Response.json({ status: "ready" });
    if (method === "POST" && !job) {
      const { id, kind } = JSON.parse(init.body);
      const key = new Headers(init.headers).get("idempotency-key");
      const name = id ?? `key-${key}`;
      this.submitted.set(name, (this.submitted.get(name) ?? 0) + 1);
      return Response.json({ id: name, job: name, kind, status: "queued" }, { status: 202 });
    }
    if (method === "POST") return Response.json({ id: job, job, seq: 9 }, { status: 202 });
    if (part === "events" && new Headers(init.headers).get("accept") === "text/event-stream") return this.#stream(job, init);
    if (part === "events") {
      const cursor = searchParams.get("cursor");
      const from = cursor ? this.position(job, cursor) : Number(searchParams.get("after") ?? 0);
      if (from < 0) return problem(410, "cursor_not_in_log");
      const events = this.log(job).slice(from, from + Number(searchParams.get("limit") ?? 100));
      const last = events.at(-1) ?? this.log(job)[from - 1];
      const ended = last && /done|failed|cancelled/.test(last.type);
      const live = !ended && from + events.length === this.log(job).length;
      return Response.json({ events, live, next: ended ? null : (last?.cursor ?? `${from}`) });
    }
    return problem(404, "job_not_found");
  }

  #stream(job, { headers, signal }) {
    const cursor = new Headers(headers).get("last-event-id");
    let from = this.position(job, cursor);
    if (from < 0) return problem(410, "cursor_not_in_log");
    const edge = this;
    const body = new ReadableStream({
      start(control) {
        const socket = { readyState: 1, copy };
        function copy(other) {
          if (other !== job || socket.readyState !== 1) return;
          while (from < edge.log(job).length) {
            const event = edge.log(job)[from++];
            // In two parts, as a network may deliver it.
            const text = `id: ${event.cursor}\ndata: ${JSON.stringify(event)}\n\n`;
            for (const part of [text.slice(0, 9), text.slice(9)]) control.enqueue(new TextEncoder().encode(part));
            if (/done|failed|cancelled/.test(event.type)) {
              socket.readyState = 3;
              control.close();
              return;
            }
          }
        }
        socket.break = () => {
          socket.readyState = 3;
          control.error(new TypeError("network error"));
        };
        signal?.addEventListener("abort", () => (socket.readyState = 3));
        control.enqueue(new TextEncoder().encode("retry: 700\n:\n\n"));
        edge.sockets.push(socket);
        copy(job);
      },
    });
    return new Response(body, { headers: { "content-type": "text/event-stream" } });
  }
}

export function problem(status, code, headers) {
  return Response.json({ status, code, title: `About ${code}.` }, { status, headers });
}

class FakeSocket {
  readyState = 0;
  onopen = null;
  onmessage = null;
  onclose = null;
  /** The next position of each watch. */
  watches = new Map();

  constructor(edge, url, protocol) {
    this.edge = edge;
    this.url = url;
    this.protocol = protocol;
    edge.sockets.push(this);
    queueMicrotask(() => {
      if (this.readyState || edge.mute) return;
      if (!edge.up || edge.blocked) return this.drop(1006);
      this.readyState = 1;
      this.onopen?.();
      this.emit({ op: "hello", protocol, version: "0" });
    });
  }

  emit(frame) {
    this.onmessage?.({ data: JSON.stringify(frame) });
  }

  /** Ends as if the edge or the network had ended it. */
  drop(code) {
    if (this.readyState > 1) return;
    this.readyState = 3;
    this.onclose?.({ code });
  }

  close() {
    this.readyState = 3;
  }

  send(text) {
    if (this.readyState !== 1) throw new Error("not open");
    const frame = JSON.parse(text);
    this.edge.sent.push(frame);
    // A dead network takes everything and returns nothing.
    if (!this.edge.up) return;
    const { op, job, cursor } = frame;
    if (op === "ping" && this.edge.answers) this.emit({ op: "pong" });
    if (op === "unwatch") this.watches.delete(job);
    if (op !== "watch") return;
    if (this.watches.has(job)) return this.emit({ op: "error", code: "already_watching", message: "", job });
    const from = this.edge.position(job, cursor);
    if (from < 0) return this.emit({ op: "error", code: "cursor_not_in_log", message: "", job });
    this.watches.set(job, from);
    this.emit({ op: "watching", job });
    this.copy(job);
    if (this.watches.has(job)) this.emit({ op: "live", job });
  }

  copy(job) {
    while (this.edge.up && this.watches.get(job) < this.edge.log(job).length) {
      const event = this.edge.log(job)[this.watches.get(job)];
      this.watches.set(job, this.watches.get(job) + 1);
      this.emit(event);
      if (/done|failed|cancelled/.test(event.type)) {
        this.watches.delete(job);
        this.emit({ op: "end", job });
      }
    }
  }
}

/** Waits until `condition` holds, without a clock: lets promises settle. */
export async function until(condition, what = String(condition)) {
  for (let turns = 0; turns < 2000; turns++) {
    if (condition()) return;
    await new Promise(setImmediate);
  }
  throw new Error(`It did not happen: ${what}`);
}
