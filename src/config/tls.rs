//! TLS and HTTP/2 at an edge.

use std::time::Duration;

/// How long a client may take for the TLS handshake: a few round trips over a slow mobile line.
pub const TLS_WAIT: Duration = Duration::from_secs(10);
/// How often an edge checks whether its certificate was replaced, at most. Two calls to the
/// operating system for each check.
pub const TLS_RELOAD_EVERY: Duration = Duration::from_secs(1);
/// How many bytes the TLS library buffers for a client that accepts no data: one record.
pub const TLS_BUFFER: usize = 16 * 1024;

/// How many requests of one HTTP/2 connection may be in progress. Browsers open one connection per
/// host, and RFC 9113 recommends at least 100; an event stream is one of them.
pub const HTTP2_STREAMS_MAX: u32 = 128;
/// How long the headers of a request may be, decoded: twice the longest token. Each field counts 32
/// bytes more than it has (RFC 9113, section 6.5.2), and takes about six times as much in memory.
pub const HTTP2_HEADERS_MAX: u32 = 32 * 1024;
/// How many requests of one connection may be reset before they were handled, and how many an edge
/// resets itself. More mean that the client only makes work (CVE-2023-44487).
pub const HTTP2_RESETS_MAX: usize = 20;
/// How many bytes of a request body a client may send before they are read.
pub const HTTP2_STREAM_WINDOW: u32 = 64 * 1024;
/// The same for all requests of a connection: a body of the largest size at full speed.
pub const HTTP2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How many bytes of each response are buffered for a client.
pub const HTTP2_SEND_BUFFER: usize = 16 * 1024;
/// How many bytes of an event stream are buffered for a client.
pub const HTTP2_EVENTS_BUFFER: usize = 4 * 1024;
/// How often a connection is checked for responses that its client does not accept. Each check
/// costs a lock for each request in progress.
pub const HTTP2_CHECK_EVERY: Duration = Duration::from_secs(2);
