// The public types of the client. wire.ts has those of the protocol.

import type { Event, Failure, GapReason, JobState, OtherEvent, ServerFrame, Status, Submission } from "./wire.ts";

export type * from "./wire.ts";

/** An event of a job's log. Ignore the types that you do not know. */
export type JobEvent = Event | OtherEvent;
/** Events that the log no longer has. */
export type Missing = Extract<ServerFrame, { op: "missing" }>;
/** The log was lost or replaced: what came before is void, and the first event follows. */
export type Anew = { op: "anew"; job: string };
export type WatchItem = JobEvent | Missing | Anew;

/** What a job has produced so far. */
export interface JobView {
  /** The output of the last attempt and of those that it continues. */
  readonly text: string;
  /** The same for the channel `reasoning`. */
  readonly reasoning: string;
  /** What the job is doing; null before its first event. */
  readonly status: Status | null;
  /** The current or last attempt; 0 before the first. */
  readonly attempt: number;
  /** The sequence number of its last event. */
  readonly seq: number;
  /** How many events were gone from the log before they could be sent. */
  readonly missing: number;
  /** Whether such events may have belonged to the text. */
  readonly truncated: boolean;
  /** Why the job failed. */
  readonly error: Failure | null;
  /** What it cost, as the backend reports it. */
  readonly usage: unknown;
}

/** Why a request failed. */
export interface TailwaterError extends Error {
  /** A code of PROTOCOL.md, `unreachable`, or one of this client. */
  readonly code: string;
  /** Whether the same request may succeed later. */
  readonly retry: boolean;
}

export interface Options {
  /**
   * Authorizes the page. A function is asked again when its token was refused or is about to expire.
   */
  token?: string | (() => string | undefined | Promise<string | undefined>);
  /** Where submits and cancels wait while offline; `indexeddb` survives a reload. By default `memory`. */
  queue?: "memory" | "indexeddb";
  /** Lets the tabs of a browser share one connection. */
  share?: boolean;
  /** Another implementation of WebSockets. */
  WebSocket?: typeof WebSocket;
  /** After `status` or `transport` has changed. */
  onStatus?: (client: Client) => void;
  /** After a submit or cancel was queued, sent or refused, also one of a page before a reload. */
  onQueue?: (item: QueueItem) => void;
}

export interface Requested {
  signal?: AbortSignal;
}

export interface WatchOptions extends Requested {
  /** Keeps the text and the position in `sessionStorage`, so that a reload resumes. */
  persist?: "session";
  /** Each event, as it arrives. */
  onEvent?: (event: JobEvent, watch: Watch) => void;
  /** After anything has changed. */
  onChange?: (watch: Watch) => void;
  /** Events are permanently gone. */
  onMissing?: (missing: Missing, watch: Watch) => void;
  /** The log was lost or replaced: the watch has started again from the first event. */
  onAnew?: (watch: Watch) => void;
  /** The job has ended, and all of its events have arrived. */
  onEnd?: (watch: Watch) => void;
  /** The watch has failed. */
  onError?: (error: TailwaterError, watch: Watch) => void;
}

/**
 * A watched job. It iterates over every event from the first one, whenever the iteration begins, and ends with the job.
 * A loop that is left early closes the watch.
 */
export interface Watch extends JobView, AsyncIterable<WatchItem> {
  readonly job: string;
  /** What the job has produced so far: a new object after each change. */
  readonly view: JobView;
  /** Whether the job has ended and all of its events have arrived. */
  readonly ended: boolean;
  /** Why the watch has failed. */
  readonly failure: TailwaterError | undefined;
  /** Resolves when the job has ended, also if it failed; rejects when the watch fails or is closed before. */
  readonly done: Promise<Watch>;
  /** Calls `listener` after each change. Returns a function that stops it. */
  subscribe(listener: () => void): () => void;
  /** Ends the watch, not the job. */
  close(): void;
}

/** A submit or cancel that waits for the network, or was sent. */
export interface QueueItem {
  readonly op: "submit" | "cancel";
  /** The job, if its id is known. */
  readonly job?: string;
  readonly status: "queued" | "sent" | "failed";
  /** Why it failed. */
  readonly code?: string;
  /** What is to be submitted. */
  readonly body?: Submission;
}

/** A promise of the edge's answer. Until then it waits in `item`. */
export type Queued<T> = Promise<T> & { readonly item: QueueItem };

export type Submit = Omit<Submission, "id"> & {
  /** The job's id; by default its kind, a colon and a random name. */
  id?: string;
  /** An idempotency key instead of an id: the same key is the same job, and the edge chooses its id. */
  key?: string;
};
export type Submitted = { id: string; job: string; kind: string; status: Status };
export type Cancelling = { id: string; job: string; seq: number };
export type ListedJob = {
  id: string;
  job: string;
  kind: string | null;
  status: Status;
  attempt: number;
  seq: number;
  created_at: number | null;
};
export type JobPage = { jobs: ListedJob[]; next: string | null };
export type EventPage = {
  events: JobEvent[];
  missing?: { from: number; to: number; reason: GapReason };
  live: boolean;
  next: string | null;
};

export interface Client {
  /** `waiting` is the pause before the next try. */
  readonly status: "idle" | "connecting" | "open" | "waiting" | "closed";
  /** How events arrive: over a WebSocket, event streams, or the connection of another tab. */
  readonly transport: "websocket" | "sse" | "tab";
  /** Watches a job; it need not exist yet. All watches of a page share one connection. */
  watch(job: string, options?: WatchOptions): Watch;
  /** The jobs that `persist: "session"` keeps in this tab, newest first. */
  saved(): string[];
  /** Submits a job. While the edge is out of reach it waits, and is sent later, once. Its id can be watched at once. */
  submit(submission: Submit, options?: Requested): Queued<Submitted>;
  /** Cancels a job, after what was submitted before. */
  cancel(job: string, options?: Requested): Queued<Cancelling>;
  /** The submits and cancels that wait, in order. */
  queued(): Promise<QueueItem[]>;
  /** The state of a job, or with `wait` (seconds) its result. */
  state(job: string, options?: Requested & { wait?: number }): Promise<JobState>;
  /** A page of the jobs in the log, newest first. */
  jobs(options?: Requested & { kind?: string; status?: Status; limit?: number; page?: string }): Promise<JobPage>;
  /** A page of a job's events. */
  events(
    job: string,
    options?: Requested & { after?: number; cursor?: string; limit?: number; wait?: number },
  ): Promise<EventPage>;
  /** Cuts the connection. It is opened again at once, and each watch resumes after its last event. */
  reconnect(): void;
  /** Closes the connection and all watches. What waits in IndexedDB is sent by the next page. */
  close(): void;
}

/** Connects to an edge, when there is something to watch. By default to the edge that served the client. */
export type Connect = (url?: string | URL, options?: Options) => Client;
