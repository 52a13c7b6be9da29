//! The connections of an edge: pings, waits, buffers, answers, and how it stops.

use std::time::Duration;

/// How often a WebSocket client is pinged: more often than proxies usually close idle connections,
/// 60 s.
pub const PING_EVERY: Duration = Duration::from_secs(25);
/// How long a client may take to answer a ping.
pub const PONG_WAIT: Duration = Duration::from_secs(20);
/// How long a client may accept no data before it is disconnected.
pub const WRITE_WAIT: Duration = Duration::from_secs(60);
/// How long a connection may take to send the head of its next request: longer than the 60 s for
/// which proxies keep an idle connection.
pub const HEAD_WAIT: Duration = Duration::from_secs(75);
/// How many bytes of an HTTP response are buffered for a client, and how long the head of a request
/// may be.
pub const HTTP_BUFFER: usize = 64 * 1024;
/// How many headers a request may have: as many as the HTTP library accepts over HTTP/1. Each takes at
/// least 100 bytes besides its text.
pub const HTTP_FIELDS_MAX: usize = 100;
/// An event of more bytes than this reserves room in the memory budget while it is written over a
/// WebSocket: a frame that has begun must be completed, even if its client accepts no data. Over
/// Socket.IO, one of more than [`FLIGHT_BYTES`](super::FLIGHT_BYTES) does.
pub const LARGE_EVENT: usize = 32 * 1024;
/// How long a transport buffers events that its client does not accept. Later it reads them again
/// from the log. A client that receives 2 MB per second does not pause for longer: its socket
/// accepts a sixth of a megabyte at a time.
pub const STREAM_STALL: Duration = Duration::from_millis(100);
/// How often an event stream over HTTP sends a comment: proxies and clients commonly disconnect
/// after 30 to 60 s of silence.
pub const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// The shortest time that a client of such a stream waits before it reconnects. Each connection
/// gets a random time up to twice as long, so that the clients of an edge that died do not all
/// return at once.
pub const COME_BACK: Duration = Duration::from_millis(500);
/// How many events a page of a job's history holds by default.
pub const PAGE_EVENTS: usize = 100;
/// How many events a page may hold.
pub const PAGE_EVENTS_MAX: usize = 1000;
/// A page with this many bytes gets no further event: it is one message, collected in memory.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// How much memory a page that is not small needs while it is collected: its events, their JSON,
/// and the joined JSON.
pub const PAGE_RESERVED: usize = 4 * PAGE_BYTES_MAX;
/// How many job states an edge thread computes at a time; others wait. Each holds a page of the log
/// and the state.
pub const FOLDS: usize = 16;
/// How long a client may accept no data of a large response before it is disconnected. There is
/// room for only a few.
pub const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// How long a request may wait for new events, in seconds: proxies and clients wait at least 60 s
/// for a response.
pub const WAIT_MAX_S: u64 = 60;
/// How long a browser may cache the response to a preflight request: the longest time that any
/// browser honours, because the response never changes.
pub const PREFLIGHT_AGE: Duration = Duration::from_secs(24 * 3600);
/// How many steps of its sessions a connection writes before it reads from its client again.
pub const STEPS_PER_WRITE: usize = 32;
/// After this many bytes written to one client, a thread serves its other clients first. One write
/// takes no more, either. With half as many, an edge needed 14 % more CPU time for a thousand clients
/// that came back for 200 events each; twice as many saved no more.
pub const TURN_BYTES: usize = 32 * 1024;
/// About how many bytes of an answer, or of events that are translated for a client, are made at a
/// time.
pub const PIECE_BYTES: usize = 16 * 1024;
/// How many clients that have more to write get their next turn each time that a thread has looked at
/// its sockets. That takes about 0.2 ms, and looking a hundredth of it.
pub const TURNS_AT_ONCE: usize = 8;
/// How many bytes the operating system buffers for a client (Linux doubles it). Its default is
/// about 4 MiB, and a ping would wait until a slow client has received all of it.
pub const SEND_BUFFER: usize = 256 * 1024;
/// The listener's backlog. When an edge dies, this many clients return at once.
pub const BACKLOG: i32 = 4096;
/// The read buffer of a Socket.IO client's WebSocket, in bytes. Clients send little, and tungstenite
/// zeroes it on every read.
pub const READ_BUFFER: usize = 512;
/// How many bytes are read at once from a client of another transport. They are on the stack.
pub const READ_CHUNK: usize = 4096;
/// How many messages of one client are handled before their answers are written: a read may hold
/// hundreds of empty ones, and each is answered.
pub const MESSAGES_PER_READ: usize = 32;

/// How often a thread looks whether one of its clients is to be woken: for a ping, a deadline, or
/// because it accepts no data. All of these take seconds.
pub const TICK: Duration = Duration::from_millis(100);
/// How often it does while the edge stops, so that clients reconnect one after another.
pub const DRAIN_TICK: Duration = Duration::from_millis(20);
/// How long a connection that is being closed waits for its client to answer the close frame, and
/// for the client's requests to complete.
pub const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// The time over which an edge that stops closes its connections. A flag overrides it. 10,000
/// clients then reconnect at 5000 per second, and the whole stop takes less than the 10 s that
/// container runtimes allow by default, and less than the 5 s that a person waits.
pub const DRAIN_WINDOW: Duration = Duration::from_secs(2);
/// The number of seconds over which the rate of events is averaged.
pub const RATE_SECONDS: u64 = 5;
/// How long the metrics of an edge remember what the queue reported: less than Prometheus waits
/// between two scrapes.
pub const QUEUE_METRICS_AGE: Duration = Duration::from_secs(5);
/// How long a scrape waits for the queue. Prometheus waits 10 s for the whole scrape.
pub const QUEUE_METRICS_WAIT: Duration = Duration::from_secs(3);
/// How many clients the metrics server of a worker has at a time.
pub const METRICS_CONNECTIONS: usize = 64;
/// How much memory it may hold for them.
pub const METRICS_MEMORY: usize = 8 * 1024 * 1024;
/// The turns of a chat are numbered anew after this time. A chat whose answer takes longer cannot
/// be resumed by its id; the log keeps events for a day by default, three times as long, so that the
/// first turns of the current period and the one before have not expired.
pub const CHAT_PERIOD: Duration = Duration::from_secs(8 * 3600);
/// How many turns a chat may have in a period: one every three seconds.
pub const CHAT_TURNS_MAX: u32 = 9999;
/// How long a request for a whole completion or response waits for it: the default timeout of OpenAI's
/// clients.
pub const COMPLETION_WAIT: Duration = Duration::from_secs(600);
/// How long the answer to a cancelled response waits for the job's end. A worker that is there ends it
/// at once.
pub const CANCEL_ANSWER_WAIT: Duration = Duration::from_secs(5);
