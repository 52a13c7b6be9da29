//! Model servers, endpoints and callbacks over HTTP.

use std::time::Duration;

/// How long connecting may take, TLS included.
pub const HTTP_CONNECT_WAIT: Duration = Duration::from_secs(10);
/// How long a model server may send nothing. A flag overrides it. On a slow machine, a long prompt
/// takes minutes before the first word.
pub const MODEL_SILENCE: Duration = Duration::from_secs(300);
/// How long a job waits in total for a busy model server. A flag overrides it. By then, limits per
/// minute have expired, and a model that was being loaded is ready.
pub const MODEL_BUSY: Duration = Duration::from_secs(600);
/// The first wait for a busy model server that does not say how long; doubled each time.
pub const MODEL_BUSY_FIRST: Duration = Duration::from_secs(1);
/// The longest such wait: a server that is free again is noticed within this time.
pub const MODEL_BUSY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// The largest server-sent event, in bytes. A token has a few hundred; a whole answer in one event
/// stays below this too.
pub const SSE_EVENT_MAX: usize = 1024 * 1024;
/// How many bytes a model's tool calls may have together. They are one event, and a NATS message
/// holds at most 1 MiB.
pub const TOOL_CALLS_MAX: usize = 512 * 1024;
/// The largest usage that is passed on, in bytes. It is part of the job's final event, which must
/// fit into a message.
pub const USAGE_MAX: usize = 16 * 1024;
/// How many bytes of the error response of a model server or an endpoint are read.
pub const REFUSAL_MAX: usize = 64 * 1024;
/// How long that may take.
pub const REFUSAL_WAIT: Duration = Duration::from_secs(5);
/// How many bytes of it are passed on. They are repeated with each attempt and sent to each client.
pub const MODEL_MESSAGE_MAX: usize = 1000;
/// How long an endpoint may send nothing. A flag overrides it. It may run a model, so it gets the
/// same time as one.
pub const ENDPOINT_SILENCE: Duration = MODEL_SILENCE;
/// How long a job waits in total for a busy endpoint. A flag overrides it.
pub const ENDPOINT_BUSY: Duration = MODEL_BUSY;
/// The longest failure code of an endpoint that is passed on, in bytes. Our own have at most 20.
pub const ENDPOINT_CODE_MAX: usize = 64;
/// How long a callback may take, from the connection to the head of the response. Standard Webhooks
/// asks for 15 to 30 s.
pub const CALLBACK_WAIT: Duration = Duration::from_secs(15);
/// How many bytes of the response to a callback are read, so that the receiver can finish sending
/// it.
pub const CALLBACK_ANSWER_MAX: usize = 4096;
/// How long that may take.
pub const CALLBACK_ANSWER_WAIT: Duration = Duration::from_secs(1);
/// How many attempts a callback has. With the pauses below, up to
/// [`ATTEMPT_PAUSE_MAX`](super::ATTEMPT_PAUSE_MAX) each, they last about half an hour: a receiver
/// that is restarted or repaired still gets it.
pub const CALLBACK_ATTEMPTS: u32 = 32;
/// The pause before the second attempt of a callback; doubled each time.
pub const CALLBACK_PAUSE: Duration = Duration::from_secs(5);
/// How many callbacks a worker has in progress. They only wait, and one slow receiver must not hold
/// up the others.
pub const CALLBACK_CONCURRENCY: usize = 256;
/// The shortest secret that is removed from other servers' texts: `none` or `x` is not a secret,
/// but is part of many words.
pub const SECRET_HIDE_MIN: usize = 8;
/// What each piece of a tool call counts in addition to its bytes, so that many empty calls are
/// limited too.
pub const TOOL_PIECE_COST: usize = 64;
/// The longest `finish_reason` that is passed on, in bytes. The known ones have at most 28.
pub const FINISH_REASON_MAX: usize = 64;
/// How much of an unexpected media type a failure quotes, in characters.
pub const MEDIA_TYPE_MAX: usize = 100;
