//! A client of an edge: connects over one transport, watches one job, and counts every event. It
//! uses little memory, so that thousands fit beside the measured edge.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::frames::{self, Chunked, Framing, Received};
use super::tally::{Schedule, Tally};
use crate::config::BENCH_CONNECT_WAIT;
use crate::wire::{JSON_PROTOCOL, JobId, MSGPACK_PROTOCOL};
/// How many bytes one read takes.
const READ_BYTES: usize = 32 * 1024;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const PONG: u8 = 10;

/// How a client reaches the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ClientTransport {
    /// WebSocket, JSON frames.
    Ws,
    /// WebSocket, MessagePack frames.
    WsMsgpack,
    /// Server-Sent Events.
    Sse,
    /// Socket.IO over its WebSocket transport.
    Socketio,
}

/// What all watchers of a run share.
#[derive(Clone, Debug)]
pub(super) struct Account {
    tally: Arc<Mutex<Tally>>,
    timing: Timing,
}

/// How the delay of an event is measured.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timing {
    /// Not measured.
    Untimed,
    /// From the moment the event was due.
    Scheduled(Schedule),
    /// From the time stamp that the worker gave the event, in whole milliseconds.
    Stamped,
}

impl Account {
    pub(super) fn new() -> anyhow::Result<Self> {
        let tally = Arc::new(Mutex::new(Tally::new()?));
        Ok(Self {
            tally,
            timing: Timing::Untimed,
        })
    }

    /// The same account, with delays measured this way from now on.
    #[must_use]
    pub(super) fn timed(&self, timing: Timing) -> Self {
        Self {
            tally: Arc::clone(&self.tally),
            timing,
        }
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a watcher waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    /// The event with this sequence number.
    Event(u64),
    /// The job's final event.
    JobEnd,
}

/// One job as a watcher has seen it, across all its connections.
#[derive(Clone, Debug)]
pub(super) struct WatchedJob {
    pub(super) job: JobId,
    /// The job's place in the schedule.
    pub(super) index: usize,
    /// The sequence number of the last event.
    last: u64,
    /// The last event frame; a new connection resumes at its cursor.
    frame: Vec<u8>,
    ended: bool,
}

impl WatchedJob {
    pub(super) fn new(job: JobId, index: usize) -> Self {
        Self {
            job,
            index,
            last: 0,
            frame: Vec::new(),
            ended: false,
        }
    }

    fn has(&self, goal: Goal) -> bool {
        match goal {
            Goal::Event(seq) => self.last >= seq,
            Goal::JobEnd => self.ended,
        }
    }
}

/// A connection that watches a job.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) watched: WatchedJob,
    stream: TcpStream,
    framing: Framing,
    transport: ClientTransport,
    /// Bytes received together with the head of the response.
    early: Vec<u8>,
}

impl Watcher {
    /// Connects and watches the job, from the last event in `watched`.
    pub(super) async fn connect(
        edge: SocketAddr,
        transport: ClientTransport,
        watched: WatchedJob,
    ) -> io::Result<Self> {
        let connecting = async {
            let mut stream = TcpStream::connect(edge).await?;
            stream.set_nodelay(true)?;
            let cursor = frames::cursor(&watched.frame);
            let request = request(edge, transport, &watched.job, cursor.as_deref());
            stream.write_all(request.as_bytes()).await?;
            let early = response(&mut stream, transport).await?;
            let framing = match transport {
                ClientTransport::Sse => Framing::EventStream(Chunked::default()),
                ClientTransport::Ws | ClientTransport::WsMsgpack | ClientTransport::Socketio => {
                    Framing::WebSocket(Vec::new())
                }
            };
            let mut watcher = Self {
                watched,
                stream,
                framing,
                transport,
                early,
            };
            watcher.ask().await?;
            Ok(watcher)
        };
        timeout(BENCH_CONNECT_WAIT, connecting)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Sends the `watch`. SSE has no such frame, and Socket.IO must join its namespace first.
    async fn ask(&mut self) -> io::Result<()> {
        let mut watch = self.watched.request();
        watch["op"] = json!("watch");
        let frame = match self.transport {
            ClientTransport::Sse | ClientTransport::Socketio => return Ok(()),
            ClientTransport::Ws => frames::client_frame(TEXT, watch.to_string().as_bytes()),
            ClientTransport::WsMsgpack => {
                let watch = rmp_serde::to_vec_named(&watch).map_err(io::Error::other)?;
                frames::client_frame(BINARY, &watch)
            }
        };
        self.stream.write_all(&frame).await
    }

    /// Counts events until `goal` is reached.
    pub(super) async fn follow(&mut self, goal: Goal, account: &Account) -> io::Result<()> {
        let early = std::mem::take(&mut self.early);
        let mut replies = self.account_for(&early, account)?;
        loop {
            if !replies.is_empty() {
                self.stream.write_all(&replies).await?;
            }
            if self.watched.has(goal) {
                return Ok(());
            }
            self.stream.readable().await?;
            replies = self.drain(account)?;
        }
    }

    /// Reads everything that has arrived, and returns the replies to send.
    fn drain(&mut self, account: &Account) -> io::Result<Vec<u8>> {
        let mut buffer = [0; READ_BYTES];
        let mut replies = Vec::new();
        loop {
            let read = match self.stream.try_read(&mut buffer) {
                Ok(0) if self.watched.ended => return Ok(replies),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(replies),
                Err(error) => return Err(error),
            };
            replies.extend(self.account_for(&buffer[..read], account)?);
            if read < buffer.len() {
                return Ok(replies);
            }
        }
    }

    fn account_for(&mut self, bytes: &[u8], account: &Account) -> io::Result<Vec<u8>> {
        let watched = &mut self.watched;
        let transport = self.transport;
        let now = Instant::now();
        let mut tally = account.tally();
        let mut replies = Vec::new();
        let mut refused = None;
        self.framing.feed(bytes, |message| match message {
            Received::Data(data) => match frames::sequence(data) {
                Some(seq) => watched.record(data, seq, now, &mut tally, account.timing),
                None if transport == ClientTransport::Socketio => {
                    if let Some(reply) = watched.socketio(data) {
                        replies.extend(frames::client_frame(TEXT, reply.as_bytes()));
                    } else if is_error(data) {
                        refused = Some(String::from_utf8_lossy(data).into_owned());
                    }
                }
                None if is_error(data) => {
                    refused = Some(String::from_utf8_lossy(data).into_owned());
                }
                None => {}
            },
            Received::Ping(payload) => replies.extend(frames::client_frame(PONG, payload)),
            Received::Close(_) if watched.ended => {}
            Received::Close(reason) => {
                refused = Some(format!("closed: {}", String::from_utf8_lossy(reason)));
            }
        })?;
        refused.map_or(Ok(replies), |reason| Err(io::Error::other(reason)))
    }
}

impl WatchedJob {
    /// The fields of a `watch` of this job.
    fn request(&self) -> Value {
        let job = self.job.as_str();
        frames::cursor(&self.frame).map_or_else(
            || json!({"job": job}),
            |cursor| json!({"job": job, "cursor": cursor}),
        )
    }

    /// The reply to a packet of Engine.IO or Socket.IO, if it needs one.
    fn socketio(&self, packet: &[u8]) -> Option<String> {
        match *packet {
            [b'0', ..] => Some("40".to_owned()),
            [b'2'] => Some("3".to_owned()),
            [b'4', b'0', ..] => Some(format!("42{}", json!(["watch", self.request()]))),
            _ => None,
        }
    }

    fn record(&mut self, frame: &[u8], seq: u64, now: Instant, tally: &mut Tally, timing: Timing) {
        self.last = tally.arrived(self.last, seq);
        match timing {
            Timing::Scheduled(schedule) => {
                if let Some(due) = schedule.due(self.index, seq) {
                    tally.delayed(now, now.saturating_duration_since(due));
                }
                return;
            }
            Timing::Stamped => {
                let wall = SystemTime::now().duration_since(UNIX_EPOCH);
                let stamp = frames::timestamp(frame).map(Duration::from_millis);
                if let (Ok(wall), Some(stamp)) = (wall, stamp) {
                    tally.delayed(now, wall.saturating_sub(stamp));
                }
            }
            Timing::Untimed => {}
        }
        self.ended |= frames::is_final(frame);
        self.frame.clear();
        self.frame.extend_from_slice(frame);
    }
}

/// Whether a message is an error from the edge.
fn is_error(message: &[u8]) -> bool {
    memchr::memmem::find(message, b"\"op\":\"error\"").is_some()
        || memchr::memmem::find(message, b"tailwater:error").is_some()
        || memchr::memmem::find(message, b"\xa2op\xa5error").is_some()
        || message.starts_with(b"44")
}

fn request(
    edge: SocketAddr,
    transport: ClientTransport,
    job: &JobId,
    cursor: Option<&str>,
) -> String {
    let upgrade = |path: &str, protocol: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {edge}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
        )
    };
    let protocol = |name: &str| format!("Sec-WebSocket-Protocol: {name}\r\n");
    match transport {
        ClientTransport::Ws => upgrade("/ws", &protocol(JSON_PROTOCOL)),
        ClientTransport::WsMsgpack => upgrade("/ws", &protocol(MSGPACK_PROTOCOL)),
        ClientTransport::Socketio => upgrade("/socket.io/?EIO=4&transport=websocket", ""),
        ClientTransport::Sse => {
            let resume = cursor.map_or(String::new(), |cursor| {
                format!("Last-Event-ID: {cursor}\r\n")
            });
            let job = job.as_str();
            format!(
                "GET /api/jobs/{job}/events HTTP/1.1\r\nHost: {edge}\r\nAccept: text/event-stream\r\n{resume}\r\n"
            )
        }
    }
}

/// Reads the head of the response, and returns the bytes after it.
async fn response(stream: &mut TcpStream, transport: ClientTransport) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => head.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let Some(end) = memchr::memmem::find(&head, b"\r\n\r\n") else {
            continue;
        };
        let expected = if transport == ClientTransport::Sse {
            "200"
        } else {
            "101"
        };
        let text = String::from_utf8_lossy(&head);
        let status = text.split(' ').nth(1).unwrap_or_default();
        if status != expected {
            return Err(io::Error::other(text.into_owned()));
        }
        return Ok(head.split_off(end + 4));
    }
}
