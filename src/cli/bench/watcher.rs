//! A client of an edge: connects over one transport, watches one job, and counts every event. It
//! uses little memory, so that thousands fit beside the measured edge.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::frames::{self, Framing, PONG, Received, TEXT};
use super::tally::{Schedule, Tally};
use super::transport::{ClientTransport, is_error, response};
use crate::config::BENCH_CONNECT_WAIT;
use crate::wire::JobId;
/// How many bytes one read takes.
const READ_BYTES: usize = 32 * 1024;

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
    /// Nothing: the connection is read until it ends, or until the caller drops the future.
    Hold,
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
    /// The id of a Socket.IO session that the server can recover.
    session: Option<String>,
    ended: bool,
}

impl WatchedJob {
    pub(super) fn new(job: JobId, index: usize) -> Self {
        Self {
            job,
            index,
            last: 0,
            frame: Vec::new(),
            session: None,
            ended: false,
        }
    }

    fn has(&self, goal: Goal) -> bool {
        match goal {
            Goal::Event(seq) => self.last >= seq,
            Goal::JobEnd => self.ended,
            Goal::Hold => false,
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
            let request = transport.request(edge, &watched.job, cursor.as_deref());
            stream.write_all(request.as_bytes()).await?;
            let early = response(&mut stream, transport.status()).await?;
            if let Some(watch) = transport.watch(watched.request())? {
                stream.write_all(&watch).await?;
            }
            Ok(Self {
                watched,
                stream,
                framing: transport.framing(),
                transport,
                early,
            })
        };
        timeout(BENCH_CONNECT_WAIT, connecting)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
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
            if self.watched.ended && !self.watched.has(goal) {
                return Err(io::Error::other("the job has ended"));
            }
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
            Received::Data(data) if transport == ClientTransport::DurableStreams => {
                watched.record_batch(data, now, &mut tally, account.timing);
            }
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
    fn socketio(&mut self, packet: &[u8]) -> Option<String> {
        match *packet {
            [b'0', ..] => Some(match (&self.session, frames::offset(&self.frame)) {
                (Some(session), Some(offset)) => {
                    format!("40{}", json!({"pid": session, "offset": offset}))
                }
                _ => "40".to_owned(),
            }),
            [b'2'] => Some("3".to_owned()),
            [b'4', b'0', ref answer @ ..] => {
                let session = frames::session(answer);
                // A recovered session still watches.
                let is_recovered = session.is_some() && session == self.session;
                self.session = session;
                (!is_recovered).then(|| format!("42{}", json!(["watch", self.request()])))
            }
            _ => None,
        }
    }

    /// A server-sent event of Durable Streams: a list of events, or the offset after them.
    fn record_batch(&mut self, message: &[u8], now: Instant, tally: &mut Tally, timing: Timing) {
        if message.starts_with(b"event: control") {
            self.frame.clear();
            self.frame.extend_from_slice(message);
            return;
        }
        for seq in frames::sequences(message) {
            self.last = tally.arrived(self.last, seq);
            if let Timing::Scheduled(schedule) = timing
                && let Some(due) = schedule.due(self.index, seq)
            {
                tally.delayed(now, now.saturating_duration_since(due));
            }
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
