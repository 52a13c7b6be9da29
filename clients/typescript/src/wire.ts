// Written by scripts/types.mjs out of src/wire/schema/tailwater.schema.json.

/**
 * What goes over the wire. The test that stands in src/wire/schema.rs writes this file.
 */
export type Tailwater = Event | OtherEvent | ClientFrame | ServerFrame | JobState | Submission;
/**
 * One entry of a job's log, as a client gets it.
 */
export type Event =
  | {
      /**
       * The attempt that wrote it, from 1; 0 before the first attempt.
       */
      attempt: number;
      /**
       * The SHA-256 of the callback address, in base64url, by which the same submission is known again. The address
       * itself is nobody else's business.
       */
      callback_digest?: string | null;
      /**
       * Names this event.
       */
      cursor: Cursor;
      /**
       * What the submitter gave; of a job that delivers a callback only a digest.
       */
      input?: unknown;
      /**
       * The job.
       */
      job: JobId;
      /**
       * Which workers may take it.
       */
      kind: Kind;
      /**
       * The event's number in the job's log, from 1, without holes.
       */
      seq: Seq;
      /**
       * How long an attempt may put out nothing, in milliseconds.
       */
      silence_timeout_ms?: number | null;
      /**
       * How long the job may take, from here to its end, in milliseconds.
       */
      timeout_ms?: number | null;
      /**
       * When it was written: milliseconds since the Unix epoch, by the writer's clock.
       */
      ts: number;
      type: "job:queued:v1";
    }
  | {
      /**
       * The attempt that wrote it, from 1; 0 before the first attempt.
       */
      attempt: number;
      /**
       * Whether this attempt goes on where the one before stopped.
       */
      continues?: boolean;
      /**
       * Names this event.
       */
      cursor: Cursor;
      /**
       * The job.
       */
      job: JobId;
      /**
       * The job's kind.
       */
      kind: Kind;
      /**
       * The event's number in the job's log, from 1, without holes.
       */
      seq: Seq;
      /**
       * When it was written: milliseconds since the Unix epoch, by the writer's clock.
       */
      ts: number;
      type: "job:started:v1";
      /**
       * The worker that runs it, for people to read.
       */
      worker: string;
    }
  | {
      /**
       * The attempt that wrote it, from 1; 0 before the first attempt.
       */
      attempt: number;
      /**
       * What the text belongs to.
       */
      channel?: Channel;
      /**
       * Names this event.
       */
      cursor: Cursor;
      /**
       * The job.
       */
      job: JobId;
      /**
       * The event's number in the job's log, from 1, without holes.
       */
      seq: Seq;
      /**
       * The text.
       */
      text: string;
      /**
       * When it was written: milliseconds since the Unix epoch, by the writer's clock.
       */
      ts: number;
      type: "model:chunk:v1";
    }
  | {
      /**
       * The attempt that wrote it, from 1; 0 before the first attempt.
       */
      attempt: number;
      /**
       * Names this event.
       */
      cursor: Cursor;
      /**
       * Any JSON.
       */
      data: unknown;
      /**
       * The job.
       */
      job: JobId;
      /**
       * The event's number in the job's log, from 1, without holes.
       */
      seq: Seq;
      /**
       * When it was written: milliseconds since the Unix epoch, by the writer's clock.
       */
      ts: number;
      type: "job:data:v1";
    }
  | {
      /**
       * The attempt that wrote it, from 1; 0 before the first attempt.
       */
      attempt: number;
      /**
       * Stable, for programs: a failure code of PROTOCOL.md, or a code of the backend's own.
       */
      code: string;
      /**
       * Names this event.
       */
      cursor: Cursor;
      /**
       * How long the next attempt waits at least, in milliseconds.
       */
      delay_ms?: number;
      /**
       * The job.
       */
      job: JobId;
      /**
       * For people.
       */
      message: string;
      /**
       * The event's number in the job's log, from 1, without holes.
       */
      seq: Seq;
      /**
       * When it was written: milliseconds since the Unix epoch, by the writer's clock.
       */
      ts: number;
      type: "job:retrying:v1";
    }
  | {
      /**
       * The attempt that wrote it, from 1; 0 before the first attempt.
       */
      attempt: number;
      /**
       * Who asked, for people to read.
       */
      by?: string | null;
      /**
       * Names this event.
       */
      cursor: Cursor;
      /**
       * The job.
       */
      job: JobId;
      /**
       * The event's number in the job's log, from 1, without holes.
       */
      seq: Seq;
      /**
       * When it was written: milliseconds since the Unix epoch, by the writer's clock.
       */
      ts: number;
      type: "job:cancel-requested:v1";
    }
  | {
      /**
       * The attempt that wrote it, from 1; 0 before the first attempt.
       */
      attempt: number;
      /**
       * Names this event.
       */
      cursor: Cursor;
      /**
       * Why the backend stopped, for example `stop` or `length`.
       */
      finish_reason?: string | null;
      /**
       * The job.
       */
      job: JobId;
      /**
       * The event's number in the job's log, from 1, without holes.
       */
      seq: Seq;
      /**
       * When it was written: milliseconds since the Unix epoch, by the writer's clock.
       */
      ts: number;
      type: "job:done:v1";
      /**
       * What it cost, in the backend's own words.
       */
      usage?: unknown;
    }
  | (Failure & {
      /**
       * The attempt that wrote it, from 1; 0 before the first attempt.
       */
      attempt: number;
      /**
       * Names this event.
       */
      cursor: Cursor;
      /**
       * The job.
       */
      job: JobId;
      /**
       * The event's number in the job's log, from 1, without holes.
       */
      seq: Seq;
      /**
       * When it was written: milliseconds since the Unix epoch, by the writer's clock.
       */
      ts: number;
      type: "job:failed:v1";
    })
  | {
      /**
       * The attempt that wrote it, from 1; 0 before the first attempt.
       */
      attempt: number;
      /**
       * Names this event.
       */
      cursor: Cursor;
      /**
       * The job.
       */
      job: JobId;
      /**
       * The event's number in the job's log, from 1, without holes.
       */
      seq: Seq;
      /**
       * When it was written: milliseconds since the Unix epoch, by the writer's clock.
       */
      ts: number;
      type: "job:cancelled:v1";
    };
/**
 * Opaque text that names one event.
 */
export type Cursor = string;
/**
 * A job's id.
 */
export type JobId = string;
/**
 * Which workers may take a job.
 */
export type Kind = string;
/**
 * An event's number in its job's log. The first event has 1, each next one +1, without holes.
 */
export type Seq = number;
/**
 * What a chunk's text belongs to.
 */
export type Channel = "output" | "reasoning";
/**
 * A frame that a client sends.
 */
export type ClientFrame =
  | {
      op: "auth";
      /**
       * Any value.
       */
      token: unknown;
    }
  | {
      /**
       * Begin with the event behind the one with this number; 0 is the first event.
       */
      after?: number | null;
      cursor?: Cursor | null;
      /**
       * The job; it need not exist yet.
       */
      job: JobId;
      op: "watch";
    }
  | {
      /**
       * The job.
       */
      job: JobId;
      op: "unwatch";
    }
  | {
      /**
       * The address that is called when the job has ended.
       */
      callback?: string | null;
      /**
       * The job's id; the edge makes one up when it is absent.
       */
      id?: JobId | null;
      /**
       * The input for the worker.
       */
      input?: unknown;
      /**
       * The idempotency key: the same submission with the same key is the same job.
       */
      key?: string | null;
      /**
       * Which workers may run it.
       */
      kind: Kind;
      op: "submit";
      /**
       * The client's own name for this frame; the answer carries it.
       */
      ref: string;
      /**
       * How long an attempt may produce no output, in milliseconds.
       */
      silence_timeout_ms?: number | null;
      /**
       * How long the job may take from its submission to its end, all attempts and waits included, in milliseconds.
       */
      timeout_ms?: number | null;
    }
  | {
      /**
       * The job.
       */
      job: JobId;
      op: "cancel";
      /**
       * The client's own name for this frame; the answer carries it.
       */
      ref?: string | null;
    };
/**
 * A frame that an edge sends besides events. Event frames have no `op`.
 */
export type ServerFrame =
  | {
      op: "hello";
      /**
       * The subprotocol in use.
       */
      protocol: string;
      /**
       * The version of the edge.
       */
      version: string;
    }
  | {
      /**
       * The job.
       */
      job: JobId;
      op: "watching";
      /**
       * The job's status when the watch started; absent while it has no event.
       */
      status?: Status | null;
    }
  | {
      /**
       * The job.
       */
      job: JobId;
      op: "live";
    }
  | {
      /**
       * The first of them.
       */
      from: Seq;
      /**
       * The job.
       */
      job: JobId;
      op: "missing";
      /**
       * Why they are gone.
       */
      reason: GapReason;
      /**
       * The last of them.
       */
      to: Seq;
    }
  | {
      /**
       * The job.
       */
      job: JobId;
      op: "end";
    }
  | {
      /**
       * The job.
       */
      job: JobId;
      op: "unwatched";
    }
  | {
      /**
       * The job.
       */
      job: JobId;
      op: "submitted";
      /**
       * The `ref` of the submit.
       */
      ref: string;
      /**
       * Its status: `queued`, unless it was submitted before.
       */
      status: Status;
    }
  | {
      /**
       * The job.
       */
      job: JobId;
      op: "cancelling";
      /**
       * The `ref` of the cancel.
       */
      ref?: string | null;
      /**
       * The sequence number of the event that requests it.
       */
      seq: Seq;
    }
  | {
      /**
       * The stable code.
       */
      code: string;
      /**
       * The job, as the client named it.
       */
      job?: string | null;
      /**
       * For people.
       */
      message: string;
      op: "error";
      /**
       * The `ref` of the client's frame.
       */
      ref?: string | null;
    };
/**
 * What a job is doing.
 */
export type Status = "queued" | "running" | "done" | "failed" | "cancelled";
/**
 * Why events are gone.
 */
export type GapReason = "expired";

/**
 * Why a job failed.
 */
export interface Failure {
  /**
   * Stable, for programs: a failure code of PROTOCOL.md, or a code of the backend's own.
   */
  code: string;
  /**
   * For people.
   */
  message: string;
  /**
   * Whether the same job may do better another time.
   */
  retryable?: boolean;
}
/**
 * An event of a type that is not described here: of a later version, or of a worker's own. Clients pass over what they do
 * not know.
 */
export interface OtherEvent {
  /**
   * The attempt that wrote it, from 1; 0 before the first attempt.
   */
  attempt: number;
  /**
   * Names this event.
   */
  cursor: Cursor;
  /**
   * The job.
   */
  job: JobId;
  /**
   * The event's number in the job's log, from 1, without holes.
   */
  seq: Seq;
  /**
   * When it was written: milliseconds since the Unix epoch, by the writer's clock.
   */
  ts: number;
  /**
   * The type.
   */
  type: string;
}
/**
 * A job's state, as `GET /api/jobs/{id}/state` answers it. Times are milliseconds since the Unix epoch.
 */
export interface JobState {
  /**
   * The current or last attempt; 0 before the first.
   */
  attempt: number;
  /**
   * When it was submitted.
   */
  created_at: number | null;
  /**
   * The cursor of its last event: a watch from here gets what comes after this state.
   */
  cursor: Cursor | null;
  /**
   * When it ended.
   */
  ended_at: number | null;
  /**
   * Why it failed.
   */
  error: Failure | null;
  /**
   * The job.
   */
  id: JobId;
  /**
   * The job, under the name that it has in events and frames.
   */
  job: JobId;
  /**
   * Its kind; absent when the events that name it have expired.
   */
  kind: Kind | null;
  /**
   * The output text that counts: of the last attempt, and of those that it continues. At most `OUTPUT_MAX` bytes.
   */
  output: string;
  /**
   * The number of its last event; 0 while it has none.
   */
  seq: Seq;
  /**
   * When its current attempt began.
   */
  started_at: number | null;
  /**
   * What it is doing.
   */
  status: Status;
  /**
   * Whether `output` is not whole: only its beginning, because it is too long, or without its beginning, which has
   * expired.
   */
  truncated?: boolean;
  /**
   * What it cost, in the backend's words.
   */
  usage: unknown;
}
/**
 * What is to be done, and within what limits.
 */
export interface Submission {
  /**
   * The address that is called when the job has ended.
   */
  callback?: string | null;
  /**
   * The job's id; the edge makes one up when it is absent.
   */
  id?: JobId | null;
  /**
   * The input for the worker.
   */
  input?: unknown;
  /**
   * Which workers may run it.
   */
  kind: Kind;
  /**
   * How long an attempt may produce no output, in milliseconds.
   */
  silence_timeout_ms?: number | null;
  /**
   * How long the job may take from its submission to its end, all attempts and waits included, in milliseconds.
   */
  timeout_ms?: number | null;
}
