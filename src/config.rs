//! Every limit and default of the system, each with its reason. Settings that differ between deployments are flags of
//! the command line; their defaults stand here too.

use std::time::Duration;

// ---- what may come in

/// The largest input of a job, in bytes of JSON. It is stored twice, in the queue and in the log, and a NATS message
/// may have 1 MiB.
pub const INPUT_MAX: usize = 512 * 1024;
/// The largest event, in bytes as it is stored: a NATS message has at most 1 MiB ([`STREAM_MESSAGE_MAX`]), and its headers
/// take some of it. A server that takes smaller messages lowers the limit. The message in the queue has the same limit.
pub const EVENT_MAX: usize = STREAM_MESSAGE_MAX - MESSAGE_HEADERS_MAX;
/// The largest message that the streams take, headers included: `max_msg_size` in `nats/`.
pub const STREAM_MESSAGE_MAX: usize = 1024 * 1024;
/// Room for a message's headers, in bytes: the fence and a message id take about 110.
pub const MESSAGE_HEADERS_MAX: usize = 1024;
/// The largest input that an edge takes, in bytes as it lies in memory once it is read: a list of 75,000 objects with one
/// field each has 512 KiB as text, and a hundred times that in memory. Objects of 20 bytes and more are within it.
pub const INPUT_MEMORY_MAX: usize = 16 * 1024 * 1024;
/// The longest idempotency key, in bytes.
pub const KEY_MAX: usize = 255;
/// The longest callback address, in bytes: what browsers and servers commonly take.
pub const CALLBACK_MAX: usize = 2048;
/// The largest HTTP body and WebSocket message: an input, escaped once more, and what surrounds it.
pub const BODY_MAX: usize = 1024 * 1024;
/// The longest `ref` of a client's frame, in characters, and how much of a text that a client wrote is sent back to it:
/// room for any id.
pub const REF_MAX: usize = 80;
/// The longest token of a client, in bytes of JSON: twice what HTTP servers take as a header.
pub const TOKEN_MAX: usize = 16 * 1024;
/// The longest sentence that says what is wrong with a request, in bytes. Parsers quote what they did not expect.
pub const MESSAGE_MAX: usize = 300;
/// Up to how many bytes a body or message that comes counts for nothing: its connection costs as much anyway, and who asks
/// for little must be heard however full the memory is.
pub const TINY_BYTES: usize = 4096;
/// How long what came over a WebSocket without becoming a message is remembered while it is tiny: the pongs of Socket.IO,
/// some bytes every [`PING_EVERY`], look like the beginning of one.
pub const QUIET_WAIT: Duration = Duration::from_secs(60);
/// How many submits and cancels of one connection are under way at a time. With the largest inputs they hold 16 MiB; with
/// answers of the broker within 10 ms they are 3000 a second.
pub const REQUESTS_MAX: usize = 32;
/// How many submits, cancels, states and pages of all clients an edge has under way. A broker answers them within
/// milliseconds; what waits beyond this waits for a broker that does not.
pub const REQUESTS_ALL_MAX: usize = 4096;
/// How many files a process keeps for itself of those that it may open: its connections to the broker, logs, and what is
/// opened for a moment.
pub const FILES_RESERVED: usize = 256;
/// The longest time limit of a job, in milliseconds: up to here every language's JSON reads whole numbers exactly. Longer
/// than anybody waits.
pub const TIMEOUT_MAX_MS: u64 = (1 << 53) - 1;
/// How long an HTTP body may take to arrive: a megabyte over a slow mobile line.
pub const BODY_WAIT: Duration = Duration::from_secs(30);
/// How long a body may pause. A mobile network that changes its cell is quiet for a few seconds.
pub const BODY_STALL: Duration = Duration::from_secs(10);
/// How many jobs one connection may watch. Each costs a session of about 1 KiB here and a place in the scan.
pub const WATCHES_MAX: usize = 1024;

// ---- the memory of an edge

/// What part of the machine's memory, or of its container's limit, an edge holds for its clients unless `--memory` says
/// otherwise: a quarter. The broker and workers often run on the same machine.
pub const MEMORY_PART: usize = 4;
/// The budget when the machine does not say how much memory it has.
pub const MEMORY_UNKNOWN: usize = 1024 * 1024 * 1024;
/// The smallest budget: the largest inputs and states of a few clients at a time.
pub const MEMORY_MIN: usize = 64 * 1024 * 1024;
/// Up to how many bytes a body, a submission or an answer is small. Small ones have room of their own beside large ones.
pub const SMALL_BYTES: usize = 64 * 1024;
/// How many bytes of large bodies an edge holds that arrive: 16 of the largest. A flood of them costs this much, up to three
/// times with what the allocator has not given back of the pieces that they grew from, and is over after [`BODY_WAIT`].
pub const BODIES_BYTES: usize = 16 * 1024 * 1024;
/// How many bytes of small bodies an edge holds that arrive: thousands of common ones.
pub const SMALL_BODIES_BYTES: usize = 8 * 1024 * 1024;
/// How many bytes of large submissions an edge holds that wait or are under way, as they lie in memory: a parsed input
/// has up to a hundred times the bytes of its text.
pub const SUBMITS_BYTES: usize = 24 * 1024 * 1024;
/// How many bytes of small submissions an edge holds that wait or are under way.
pub const SMALL_SUBMITS_BYTES: usize = 16 * 1024 * 1024;
/// How many bytes of large answers an edge holds that are gathered or not yet taken: 4 of the largest states.
pub const ANSWERS_BYTES: usize = 32 * 1024 * 1024;
/// How many bytes of small answers an edge holds that are gathered or not yet taken.
pub const SMALL_ANSWERS_BYTES: usize = 16 * 1024 * 1024;

// ---- the log of a process

/// How many lines of the log wait to be written to stderr; past it lines are lost. With the longest lines they hold 8 MiB.
pub const LOG_LINES: usize = 1024;
/// The longest line of the log, in bytes.
pub const LOG_LINE_MAX: usize = 8 * 1024;
/// How long a process that ends waits for its log to be written: a reader that is only slow takes it within this.
pub const LOG_FLUSH_WAIT: Duration = Duration::from_millis(500);

// ---- the queue

/// How many jobs of one kind wait or run at a time; more are refused until some have ended. A fiftieth of what the
/// queue holds, so that one kind cannot take it from all others.
pub const KIND_JOBS_MAX: u64 = 20_000;
/// An input that is small, in bytes. Larger ones are refused when half of the queue's bytes are taken: what is left is
/// room for some 20,000 small ones.
pub const SMALL_INPUT: usize = 4096;
/// How long an edge or a worker relies on what it knows of how full the queue is. Between two questions it counts its
/// own.
pub const USAGE_AGE: Duration = Duration::from_secs(1);

// ---- feeds: what an edge keeps of a watched job

/// How many bytes of recent events a feed keeps, so that a short drop never reaches the log. About two minutes of a
/// fast model.
pub const HISTORY_BYTES: usize = 256 * 1024;
/// How many live events a feed holds while a gap before them is read from the log.
pub const AHEAD_MAX: usize = 512;
/// How many live messages the client library holds for one feed; past it they are dropped, and read from the log.
pub const LIVE_CAPACITY: usize = 1024;
/// How long a feed outlives its last watcher: the time in which a dropped client is usually back.
pub const FEED_LINGER: Duration = Duration::from_secs(15);
/// What a feed costs without its history, in bytes: its task and its subscription.
pub const FEED_BYTES: usize = 12 * 1024;
/// How many feeds one edge thread holds, watched or lingering: each costs [`FEED_BYTES`] and what its history holds.
pub const FEEDS_MAX: usize = 50_000;
/// How many of them are of jobs that have no event yet: about 50 MiB. They were submitted a moment ago, or are resumed by
/// clients that say they have seen events; what is watched of jobs that exist keeps the rest.
pub const FEEDS_UNBORN_MAX: usize = 4096;
/// How many watched jobs may be ones that neither the log nor the queue knows: about 200 bytes each, beside the session.
pub const WAITING_MAX: usize = 200_000;
/// How often some of them are looked up, for signals are at most once.
pub const LOOK_TICK: Duration = Duration::from_millis(100);
/// How many are looked up in one tick, and are under way: a few requests each, so that made-up ids take a few percent of a
/// broker's core, and little of its queue of requests.
pub const LOOKS_PER_TICK: usize = 100;
/// When one is looked up that could not be; the first look is after [`PROBE_FIRST`].
pub const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long after a look the next one comes. Up to half as long again, so that they spread.
pub const LOOK_EVERY: Duration = Duration::from_secs(40);
/// When the log is asked for the first time whether live missed something: interest in a subject spreads over a
/// cluster after the subscription was confirmed.
pub const PROBE_FIRST: Duration = Duration::from_millis(500);
/// When a silent job is asked about next; doubled up to [`PROBE_MAX`].
pub const PROBE_SILENT: Duration = Duration::from_secs(5);
/// The longest time between two questions about a silent job.
pub const PROBE_MAX: Duration = Duration::from_secs(60);
/// Over what time the feeds of a shard spread their questions after a broker's leader changed.
pub const PROBE_SPREAD: Duration = Duration::from_secs(1);

// ---- sessions: one client's place in one job

/// How many bytes of events a session hands over at once: what a slow client costs in memory.
pub const STEP_BYTES: usize = 64 * 1024;
/// How long a watch waits for the broker before it is refused as unavailable. Longer than an election takes.
pub const OPEN_WAIT: Duration = Duration::from_secs(12);
/// The first pause before the log is read again when reading it brought nothing; doubled up to [`REREAD_MAX`].
pub const REREAD_FIRST: Duration = Duration::from_millis(20);
/// The longest pause before the log is read again.
pub const REREAD_MAX: Duration = Duration::from_secs(2);

// ---- reading the log

/// How many events one direct get returns: a page bounds how long writers of the shard wait.
pub const PAGE: usize = 64;
/// How many bytes one direct get returns, about. A reader that is behind holds two pages: what its client has not taken
/// yet, and the next.
pub const PAGE_BYTES: usize = 128 * 1024;
/// How many messages the client library holds for one reading of the log: more than a scan has asked for at a time, which
/// is twice [`SCAN_PULL`]. A full inbox drops messages, and the scan begins again.
pub const REPLAY_CAPACITY: usize = 2048;
/// How many direct gets an edge thread has under way on one shard.
pub const READS_PER_SHARD: usize = 2;
/// From how many waiting readers of one shard on they share one scan of it.
pub const SCAN_FROM: usize = 20;
/// How many messages a scan asks for at a time; for as many again when half of them have come.
pub const SCAN_PULL: usize = 500;
/// How many bytes they have together at most: more than the largest message, 1 MiB, and far less than what makes the
/// broker cut off a connection that does not take it, 64 MiB.
pub const SCAN_PULL_BYTES: usize = 2 * 1024 * 1024;
/// How many bytes the scans of an edge thread keep for all readers that have not taken them; past it a reader leaves the
/// scan, and starts again from where it is.
pub const SCAN_ROOM: usize = 8 * 1024 * 1024;
/// How long a scan waits for more readers after the last one came.
pub const SCAN_GATHER: Duration = Duration::from_millis(15);
/// How long a scan waits for readers at most.
pub const SCAN_GATHER_MAX: Duration = Duration::from_millis(600);
/// How many events a scan hands to a reader at once; fewer when they have [`STEP_BYTES`] together.
pub const SCAN_BATCH: usize = 32;
/// After what time a scan hands over a smaller batch.
pub const SCAN_FLUSH: Duration = Duration::from_millis(60);
/// How many batches a scan keeps for a reader that does not take them; past it the reader starts again from where it
/// is.
pub const SCAN_QUEUE: usize = 16;
/// How long a scan waits for the next message before it ends and its readers start again.
pub const SCAN_STALL: Duration = Duration::from_secs(5);
/// How long one request to the broker may take.
pub const REQUEST_WAIT: Duration = Duration::from_secs(3);
/// After what silence a connection to the broker is asked for a sign of life. The client library closes the connection
/// when two such questions have no answer as the third is due: a server that hangs is noticed after 7.5 s.
pub const BROKER_PING: Duration = Duration::from_millis(2500);
/// How long a connection to the broker may take to come about before the next server is tried. With [`BROKER_PING`] a
/// server that went silent costs less than 15 s, even if it is the first that is tried again.
pub const BROKER_CONNECT_WAIT: Duration = Duration::from_secs(3);
/// The longest time for that on a network that is slower: each connection that came too late is given twice as long.
pub const BROKER_CONNECT_WAIT_MAX: Duration = Duration::from_secs(30);
/// The pause before a request of the start is made again.
pub const START_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection to the broker may take to answer before the edge is not ready: an answer takes milliseconds,
/// and probes give up after a few seconds.
pub const READY_WAIT: Duration = Duration::from_secs(2);
/// How long such an answer is relied on, so that frequent probes cost nothing.
pub const READY_AGE: Duration = Duration::from_secs(1);

/// How long a follower of nats-server waits at least, after it heard its leader, before it calls an election
/// (`minElectionTimeoutDefault` in its `raft.go`; leaders are heard every second). It is no setting of the server.
pub const ELECTION_MIN: Duration = Duration::from_secs(4);
/// How much earlier the word of a leader is not relied on any more: a follower's answer takes time to reach it.
pub const QUORUM_MARGIN: Duration = Duration::from_millis(500);
/// How long the proof of a leader's quorum serves other reads: requests that are refused cost one such question for each
/// stream and this time, however many they are.
pub const QUORUM_AGE: Duration = Duration::from_millis(400);
/// How often a read is made again that took longer than its leader's quorum was proven for.
pub const QUORUM_TRIES: u32 = 3;
/// How long a leader with a quorum must go on saying that its stream is shorter than this process has seen, before it is
/// believed: longer than a leader without a quorum passes for one with it.
pub const SHORTER_WAIT: Duration = Duration::from_secs(5);

/// How many undecodable messages in a row are skipped to find the next, or the last, event of a job. A worker that writes
/// in a wrong format leaves one per chunk until another one claims the job.
pub const UNDECODABLE_MAX: usize = 1024;
/// How many single reads look for an event by its number: 64 halve any stretch of a stream down to one message.
pub const LOCATE_READS: usize = 64;
/// How near before it such a search ends, in events: the leader is asked for what lies between one by one.
pub const LOCATE_NEAR: u64 = 8;
/// How many jobs with undecodable messages are remembered, so that each is reported once: about 100 KiB.
pub const UNDECODABLE_JOBS: usize = 1024;
/// How far back the last event of a job is sought at first when something else stands behind it, in messages of the
/// shard; eight times as far each time.
pub const LOOK_BACK: u64 = 64;

// ---- listing jobs

/// How many jobs a page of a listing holds when nobody says: what a person looks over.
pub const LIST_ROWS: usize = 20;
/// How many jobs a page may hold: each costs a look at its first event.
pub const LIST_ROWS_MAX: usize = 100;
/// How many events a listing reads at once, at the most: writers of the shard wait for about 0.5 ms of it, and an inbox
/// holds twice as many.
pub const LIST_WINDOW: u64 = 256;
/// How many bytes such a read returns, about: less than what a client library's inbox may hold.
pub const LIST_BYTES: usize = 1024 * 1024;
/// How many such reads of one shard a page may take, so that no page costs more than 4096 events a shard, however far
/// the next job lies. More than it takes to halve a window down to one event.
pub const LIST_WINDOWS: u32 = 16;
/// How many jobs a page may look up: as many as it holds at most, and those that it must pass over on the way.
pub const LIST_LOOKUPS: usize = 256;
/// How many undecodable messages a listing skips to find out whether a job has a later event. Past it the job is listed:
/// rather twice than never.
pub const LIST_UNDECODABLE: usize = 8;
/// How many requests a listing has under way: enough to hide their latency, too few to be felt by others.
pub const LIST_REQUESTS: usize = 8;
/// How many listings an edge thread makes at a time. Each remembers the ids of the jobs that it has read of, at most 0.4
/// MiB a shard.
pub const LISTINGS: usize = 4;
/// How many times as long as listings take there is none after them: a flood of them has a fourth of the time.
pub const LIST_REST: u32 = 3;
/// How many listings wait at most; more are refused at once. With a fourth of a second for each they are served in time.
pub const LIST_QUEUE: usize = 16;

// ---- writing the log

/// How long a writer goes on trying to append one event: an election takes 4 to 9 s.
pub const APPEND_WAIT: Duration = Duration::from_secs(60);
/// How often an append that the broker refuses for a reason unknown here is tried again. With the pauses below that takes
/// about 5 s: longer than a change of a stream's settings, shorter than anyone waits for a job that cannot go on.
pub const REJECTIONS_MAX: u32 = 16;
/// The pause before an append is tried again, at first; doubled up to [`RETRY_MAX`].
pub const RETRY_FIRST: Duration = Duration::from_millis(5);
/// The longest pause before an append is tried again.
pub const RETRY_MAX: Duration = Duration::from_millis(500);

/// How long a cancel request goes on trying to get between two events of a worker that writes all the time.
pub const CANCEL_WAIT: Duration = Duration::from_secs(10);

// ---- running jobs

/// How many bytes a backend may be ahead of the log: what it produces during an election, with room to spare.
pub const OUTPUT_BUFFER_MAX: usize = 1024 * 1024;
/// How many pieces of output are queued before the worker takes them.
pub const OUTPUT_PIECES_MAX: usize = 256;
/// The largest text of one chunk, in bytes: with its head it stays far below a NATS message.
pub const CHUNK_MAX: usize = 256 * 1024;
/// After what silence of a worker its jobs go to another one, unless the kind's first worker said otherwise. A worker is
/// heard three times as often: at 10,000 running jobs that is 3750 messages a second.
pub const ACK_WAIT: Duration = Duration::from_secs(8);
/// The longest message of a failure, in bytes: it is repeated with each attempt and sent to each client.
pub const FAILURE_MESSAGE_MAX: usize = 16 * 1024;
/// The longest code of a failure and the longest name of a worker or of who cancels a job, in bytes.
pub const LABEL_MAX: usize = 256;
/// How many deliveries of a job may come to nothing before the next one counts as an attempt. An outage of some twenty
/// minutes costs that many, see [`CLAIM_DOUBLINGS`].
pub const DELIVERIES_MAX: u32 = 64;
/// How often the pause before a job is claimed again, a third of the ack wait, is doubled while its log is out of reach: up
/// to 21 s.
pub const CLAIM_DOUBLINGS: u32 = 3;
/// The wait before the attempt that follows the first failed one; doubled with each further one up to
/// [`ATTEMPT_PAUSE_MAX`].
pub const ATTEMPT_PAUSE: Duration = Duration::from_secs(1);
/// The longest such wait.
pub const ATTEMPT_PAUSE_MAX: Duration = Duration::from_secs(60);
/// The longest wait that a backend's failure can ask for before the next attempt.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// How long a worker that is stopped tries to write that it hands a job back. What matters is the queue, which is told in
/// any case.
pub const HAND_BACK_WAIT: Duration = Duration::from_secs(2);
/// How long a backend may take to return after it was told to stop, before it is dropped.
pub const STOP_WAIT: Duration = Duration::from_secs(5);
/// How many threads run the backends of a worker at least, however few cores there are: one that blocks its thread must
/// not stop all others.
pub const BACKEND_THREADS_MIN: usize = 2;
/// How often the threads of the backends are woken while jobs run. When the thread that waits for timers and sockets runs a
/// backend that blocks, another one waits for them only after it was woken.
pub const BACKEND_WAKE_EVERY: Duration = Duration::from_millis(50);
/// For how long all threads of the backends may be blocked before a warning says so: longer than a busy machine needs.
pub const BACKEND_BLOCKED: Duration = Duration::from_secs(5);
/// How long a worker that was handed a job waits for the answer of its owner before it takes the job over. The owner looks
/// at the log first, which takes milliseconds on a broker that is well.
pub const OWNER_ANSWER_WAIT: Duration = Duration::from_secs(1);
/// How many workers that ask for one job are answered at a time; the queue hands it to one.
pub const OWNER_ANSWERS_MAX: usize = 8;
/// For how long after its own connection came back a worker takes into account that the connection of an owner may still
/// come back: after an outage each of them tries again every [`REREAD_MAX`].
pub const OWNER_BACK_WAIT: Duration = Duration::from_secs(10);
/// How long it asks again then, at most.
pub const OWNER_ASK_WAIT: Duration = Duration::from_secs(5);
/// The pause between two questions.
pub const OWNER_ASK_EVERY: Duration = Duration::from_millis(250);
/// How many jobs a worker asks for at once.
pub const CLAIM_MAX: usize = 64;
/// How long one request for jobs waits at the broker.
pub const CLAIM_WAIT: Duration = Duration::from_secs(5);
/// How much longer a worker waits for the answer to it, before it takes the request for lost and asks again: a server that
/// dies takes with it the requests for the consumers that it led.
pub const CLAIM_LATE: Duration = Duration::from_millis(500);

// ---- model servers and callbacks over HTTP

/// How long a connection may take to come about, TLS included.
pub const HTTP_CONNECT_WAIT: Duration = Duration::from_secs(10);
/// How long a model server may send nothing at all, unless a flag says otherwise. A long prompt on a slow machine takes
/// minutes before the first word.
pub const MODEL_SILENCE: Duration = Duration::from_secs(300);
/// How long a job waits in all for a model server that is busy, unless a flag says otherwise. Limits per minute are over
/// then, and a model that is being loaded is there.
pub const MODEL_BUSY: Duration = Duration::from_secs(600);
/// The first wait for a busy model server that does not say how long; doubled with each further one.
pub const MODEL_BUSY_FIRST: Duration = Duration::from_secs(1);
/// The longest such wait: a server that is free again is noticed within this time.
pub const MODEL_BUSY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// The largest server-sent event, in bytes. A token has a few hundred; a server that sends a whole answer as one event
/// stays below this, too.
pub const SSE_EVENT_MAX: usize = 1024 * 1024;
/// How many bytes a model's tool calls may have together: they are one event, and a NATS message may have 1 MiB.
pub const TOOL_CALLS_MAX: usize = 512 * 1024;
/// The largest usage that is passed on, in bytes: it stands in the job's end, which must fit into a message.
pub const USAGE_MAX: usize = 16 * 1024;
/// How much of what a model server says of an error is read, in bytes.
pub const REFUSAL_MAX: usize = 64 * 1024;
/// How long that may take.
pub const REFUSAL_WAIT: Duration = Duration::from_secs(5);
/// How much of it is passed on, in bytes: it is repeated with each attempt and to each client.
pub const MODEL_MESSAGE_MAX: usize = 1000;
/// How long a callback may take, from the connection to the head of the answer. Standard Webhooks asks for 15 to 30 s.
pub const CALLBACK_WAIT: Duration = Duration::from_secs(15);
/// How much of the answer to a callback is read, in bytes, so that the receiver does not see its caller gone too early.
pub const CALLBACK_ANSWER_MAX: usize = 4096;
/// How long that may take.
pub const CALLBACK_ANSWER_WAIT: Duration = Duration::from_secs(1);
/// How many attempts a callback has. With the pauses below, and up to [`ATTEMPT_PAUSE_MAX`] between two, they last about
/// half an hour: a receiver that is being restarted or mended still gets it.
pub const CALLBACK_ATTEMPTS: u32 = 32;
/// The wait before the second attempt of a callback; doubled with each further one.
pub const CALLBACK_PAUSE: Duration = Duration::from_secs(5);
/// How many callbacks a worker has in flight: they only wait, and one slow receiver must not hold up the others.
pub const CALLBACK_CONCURRENCY: usize = 256;

// ---- the edge's connections

/// How often a WebSocket client is pinged: below the usual idle limit of proxies, 60 s.
pub const PING_EVERY: Duration = Duration::from_secs(25);
/// How long a client may take to answer a ping.
pub const PONG_WAIT: Duration = Duration::from_secs(20);
/// How long a client may take nothing of what is written to it; then it is gone.
pub const WRITE_WAIT: Duration = Duration::from_secs(60);
/// How many bytes a client is heard beyond what it takes, in bytes, while it takes nothing: what it is owed for them by
/// itself, such as pongs, is no larger.
pub const READ_AHEAD: usize = 64 * 1024;
/// How many bytes of a client are read as fast as they come: two of the largest messages.
pub const READ_BURST: i64 = 2 * BODY_MAX as i64;
/// How many bytes of a client are read in a second beyond that. The most expensive megabyte takes a thread some 50 ms, so
/// that one connection costs a fifth of it; a client that submits jobs of 1 KiB submits 4000 a second.
pub const READ_RATE: i64 = 4 * 1024 * 1024;
/// How long a connection may take to send the head of its next request. Longer than proxies keep an idle connection to
/// use it again, which is 60 s.
pub const HEAD_WAIT: Duration = Duration::from_secs(75);
/// How much of an HTTP answer waits in memory for a client to take it, and how long the head of a request may be, in
/// bytes.
pub const HTTP_BUFFER: usize = 64 * 1024;
/// How often a stream of events over HTTP says that it is there: proxies and clients commonly give up after 30 to 60 s.
pub const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// How long a client of such a stream waits before it comes back, at least. Each connection is told a random time up to
/// twice as long, so that not all clients of an edge that died come in one moment.
pub const COME_BACK: Duration = Duration::from_millis(500);
/// How many events a page of a job's history holds when the client does not say.
pub const PAGE_EVENTS: usize = 100;
/// How many events it holds at most.
pub const PAGE_EVENTS_MAX: usize = 1000;
/// From how many bytes on a page takes no further event: it is one message, gathered in memory.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// How many states an edge thread folds at a time; others wait for their turn. Each holds a page of the log beside what it has
/// folded.
pub const FOLDS: usize = 16;
/// What a page that is not small takes in memory while it is gathered: the events, their JSON, and that in one piece.
pub const PAGE_ROOM: usize = 4 * PAGE_BYTES_MAX;
/// How long a client may take nothing of a large answer; then it is gone. There is room for few of them.
pub const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// How long a request may ask to wait for news, in seconds: proxies and clients give up on an answer after 60 s or more.
pub const WAIT_MAX_S: u64 = 60;
/// How long a browser remembers that a page of another origin may ask, before it asks for leave again: the longest that
/// one of them honours, for the answer never changes.
pub const PREFLIGHT_AGE: Duration = Duration::from_secs(24 * 3600);
/// How many steps of its sessions a connection writes before it looks at its client again.
pub const STEPS_PER_WRITE: usize = 32;
/// After how many bytes written to one client a thread serves its others first. Two thousand clients that all have much to
/// catch up with take a thread some 30 ms for one turn each; with whole steps it would be 0.1 s, and seconds with as much
/// as a socket takes.
pub const TURN_BYTES: usize = 16 * 1024;
/// How many bytes the operating system holds for a client that has not taken them (Linux doubles it). By itself it
/// would hold some 4 MiB, behind which a ping waits for as long as a slow client takes for them.
pub const SEND_BUFFER: usize = 256 * 1024;
/// The listener's backlog: as many clients come back at once when an edge dies.
pub const BACKLOG: i32 = 4096;
/// A WebSocket's read buffer, in bytes: clients send little, and tungstenite zeroes it on every read.
pub const READ_BUFFER: usize = 512;
/// How many bytes of frames are gathered into one write.
pub const WRITE_BUFFER: usize = 4096;
/// Over what time an edge that stops tells its clients to come back, unless it is told otherwise: so that 10,000 come
/// back as 5000 a second, and that the whole stop stays within the 10 s that container runtimes give by default, and the
/// 5 s that a person does.
pub const DRAIN_WINDOW: Duration = Duration::from_secs(2);
/// How long a connection that is closed waits for its client to take the close frame and answer it, and for what the
/// client has asked for to be done.
pub const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// How many packets the Socket.IO library queues for one client. A ping that finds the queue full ends the connection.
pub const SOCKET_QUEUE: usize = 128;
/// How many of them are ours at a time: half, so that a ping always finds room.
pub const FLIGHT_PACKETS: usize = SOCKET_QUEUE / 2;
/// How many of ours are queued at a time for a client that polls. An answer carries all that is queued, and
/// python-engineio takes 16 packets in one, of which the library may add a ping and a greeting.
pub const FLIGHT_PACKETS_POLLING: usize = 14;
/// How many bytes of ours are queued at a time, about: what a client that reads nothing costs, beside what the library
/// gathers for one write, 128 KiB.
pub const FLIGHT_BYTES: usize = 64 * 1024;
/// How long to wait before a queue that was full all the same is tried again.
pub const FULL_PAUSE: Duration = Duration::from_millis(50);
/// How many requests of one Socket.IO client wait to be taken; past it the client is cut off, for nothing can be told it to
/// wait.
pub const ASKED_MAX: usize = 16 * WATCHES_MAX;
/// How many bytes of them wait: a few of the largest.
pub const ASKED_BYTES_MAX: usize = 4 * BODY_MAX;
/// How many attachments of one emit are taken in before it is refused. Requests have none; a client that sends binary data
/// by mistake sends a few, or an array of them.
pub const ATTACHMENTS_MAX: usize = 1024;
/// How many replies wait to be sent to a client before no further request of it is taken.
pub const REPLIES_MAX: usize = 64;
/// How long a Socket.IO client may take to join after it has connected. Clients do so at once: it is one more request, over
/// a slow line.
pub const JOIN_WAIT: Duration = Duration::from_secs(20);
/// How many Socket.IO clients may have connected and not joined: each costs some 6 KiB, mostly the library's.
pub const HANDSHAKES_MAX: usize = 4096;
/// How many of them may come from one address: not all, though a proxy may stand before many clients.
pub const HANDSHAKES_PER_ADDRESS: usize = 2048;
/// How much of the library's answer to a first request is read: it has some 150 bytes.
pub const HANDSHAKE_ANSWER_MAX: usize = 4096;
/// Over how many seconds the rate of events is taken.
pub const RATE_SECONDS: u64 = 5;
/// How long an edge whose clients were told, or a worker, takes to stop, at most.
pub const DRAIN_WAIT: Duration = Duration::from_secs(4);
