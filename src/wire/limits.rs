//! The limits that are part of the contract with clients and workers. Limits that only protect a
//! process are in [`config`](crate::config).

/// The longest kind or plain job id, in characters. Both are tokens of NATS subjects, which are
/// stored with every event.
pub const NAME_MAX: usize = 64;
/// The longest job id, in characters: a qualified one is a kind, a colon and a name.
pub const ID_MAX: usize = 2 * NAME_MAX + 1;
/// The largest input of a job, in bytes of JSON. It is stored twice, in the queue and in the log,
/// and a NATS message holds at most 1 MiB.
pub const INPUT_MAX: usize = 512 * 1024;
/// The largest input in memory, in bytes. A list of 75,000 objects with one field each has 512 KiB
/// of JSON and takes a hundred times that once parsed. Inputs whose objects have 20 bytes of JSON
/// or more, and whose lists have 4 or more, stay below this limit.
pub const INPUT_MEMORY_MAX: usize = 16 * 1024 * 1024;
/// The largest stored event, in bytes, and the largest message in the queue. A NATS server that
/// accepts only smaller messages lowers this limit.
pub const EVENT_MAX: usize = STREAM_MESSAGE_MAX - MESSAGE_HEADERS_MAX;
/// The largest message that the streams accept, headers included: `max_msg_size` in `nats/`.
pub const STREAM_MESSAGE_MAX: usize = 1024 * 1024;
/// Room for a message's headers, in bytes. The fence and the digest of a segment take at most 140, a
/// message id at most 160.
pub const MESSAGE_HEADERS_MAX: usize = 1024;
/// The largest HTTP body and WebSocket message, in bytes: an input, escaped once more, and the
/// fields around it.
pub const BODY_MAX: usize = 1024 * 1024;
/// The longest idempotency key, in bytes.
pub const KEY_MAX: usize = 255;
/// The longest callback address, in bytes: what browsers and servers commonly accept.
pub const CALLBACK_MAX: usize = 2048;
/// The longest `ref` of a client frame, in characters. Answers quote at most this much of a `ref`,
/// and [`ID_MAX`] characters of a job id.
pub const REF_MAX: usize = 80;
/// The longest `op` that an answer quotes, in characters. The known ones have at most 7.
pub const OP_MAX: usize = 40;
/// The longest token of a client, in bytes: twice what HTTP servers accept as a header.
pub const TOKEN_MAX: usize = 16 * 1024;
/// How long a WebSocket or Socket.IO client without a token may take to send one, in milliseconds.
/// A browser page may have to fetch it first.
pub const AUTH_WAIT_MS: u64 = 10_000;
/// After how many seconds a client that was refused for now should try again: a limit is free again
/// whenever a connection, a request or a job ends, rates are per second, and an election takes seconds.
pub const RETRY_AFTER_S: u64 = 1;
/// After how many seconds at most the id of a removed job can be used again: the queue remembers for
/// this long which ids were submitted (`duplicate_window` in `nats/streams/jobs.json`).
pub const RESUBMIT_AFTER_S: u64 = 120;
/// How long before its token expires a connection is told, in milliseconds: enough for a client to
/// fetch a new token, even if its first attempt fails.
pub const EXPIRY_NOTICE_MS: u64 = 30_000;
/// How long a ticket may be redeemed, in milliseconds: a page opens its `EventSource` at once, but a
/// phone may need some time to connect.
pub const TICKET_TTL_MS: u64 = 60_000;
/// How long the `watch_token` of a submitted job is valid unless the submission says otherwise, in
/// milliseconds.
pub const WATCH_TOKEN_TTL_MS: u64 = 3_600_000;
/// The longest time for which a submission may ask, in milliseconds: the default retention of the
/// log.
pub const WATCH_TOKEN_TTL_MAX_MS: u64 = 86_400_000;
/// The longest error message about a request, in bytes. Parsers quote what they did not expect, at
/// any length.
pub const MESSAGE_MAX: usize = 300;
/// The longest time limit of a job, in milliseconds. Every language's JSON reads whole numbers
/// exactly up to here.
pub const TIMEOUT_MAX_MS: u64 = (1 << 53) - 1;
/// The longest message of a failure, in bytes. It is repeated for each attempt and sent to each
/// client.
pub const FAILURE_MESSAGE_MAX: usize = 16 * 1024;
/// The longest code of a failure, name of a worker, name of the person who cancels a job, and `sub`
/// and `jti` of a token, in bytes.
pub const LABEL_MAX: usize = 256;
/// The longest output in a job's state, in bytes: a state is one message. The job's events have all
/// of it.
pub const OUTPUT_MAX: usize = 8 * 1024 * 1024;
/// How deep maps and arrays of a stored event or a frame may nest, in levels: the limit of
/// `serde_json`, so that everything stored can be sent as JSON.
pub const DEPTH_MAX: usize = 128;
/// How deep an input or a piece of output may nest, in levels. The event and the client's own
/// wrapping take the rest.
pub const VALUE_DEPTH_MAX: usize = 100;
/// How many events one segment holds: a late reader then needs one message where the log has 64.
pub const SEGMENT_EVENTS: u64 = 64;
/// The largest segment, in bytes: a reader holds several at a time. Events that are so large that
/// 64 of them do not fit are read from the log.
pub const SEGMENT_BYTES_MAX: usize = 128 * 1024;
