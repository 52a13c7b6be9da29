//! Reads live copies of events over a connection of its own. The client library would parse each
//! header of each copy into a map and hold a channel for each subscription, which costs more than
//! everything else that an edge does with an event.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::{Client, ServerAddr};
use slab::Slab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, warn};

use super::credentials::{Credentials, Secrets};
use super::live_link::LiveLink;
use super::live_protocol::{RawMessage, ServerOp};
use super::live_queue::{LiveQueue, ReceivedCopy};
use crate::backoff::Backoff;
use crate::config::{
    BROKER_CONNECT_WAIT, BROKER_PING, BROKER_PINGS_UNANSWERED, LIVE_BUFFER, LIVE_PINGS_MAX,
    REQUEST_WAIT, REREAD_FIRST, REREAD_MAX, SERVER_POOL_WAIT,
};
use crate::source::Unavailable;

/// How connections for live copies are made, and which there are. Clones share it.
#[derive(Clone)]
pub(super) struct LiveReaders(Arc<LiveSettings>);

struct LiveSettings {
    /// The name of a connection in the broker's monitoring.
    name: String,
    credentials: Credentials,
    secrets: Secrets,
    servers: Vec<ServerAddr>,
    /// Incremented when a connection was down.
    reconnected: watch::Sender<u64>,
    used: Mutex<Vec<Weak<LiveReaderShared>>>,
}

/// A connection for live copies, made when it is first used. Clones share it.
#[derive(Clone)]
pub(super) struct LiveReader(Arc<LiveReaderShared>);

struct LiveReaderShared {
    settings: Arc<LiveSettings>,
    state: Mutex<LiveReaderState>,
    /// Notified when there is something to send.
    wants_to_send: Notify,
    /// The last number of [`LiveReaderState::requested`] that the server has answered.
    answered: watch::Sender<u64>,
    is_started: AtomicBool,
    /// How often the connection was made.
    connects: AtomicU64,
}

#[derive(Default)]
struct LiveReaderState {
    is_up: bool,
    /// By their number on the connection.
    subscriptions: Slab<Arc<LiveQueue>>,
    /// What is to be sent; nothing while the connection is down.
    outgoing: Vec<u8>,
    /// How often an answer of the server was requested: it comes after what was sent before.
    requested: u64,
    /// Whether to send a ping, which requests an answer.
    wants_ping: bool,
}

/// A subscription, until it is dropped.
pub(super) struct LiveSubscription {
    reader: LiveReader,
    number: usize,
    queue: Arc<LiveQueue>,
}

impl LiveReaders {
    pub(super) fn new(
        name: String,
        credentials: Credentials,
        (secrets, servers): (Secrets, Vec<ServerAddr>),
        reconnected: watch::Sender<u64>,
    ) -> Self {
        Self(Arc::new(LiveSettings {
            name,
            credentials,
            secrets,
            servers,
            reconnected,
            used: Mutex::default(),
        }))
    }

    /// A connection that is not made yet.
    pub(super) fn create(&self) -> LiveReader {
        let reader = LiveReader(Arc::new(LiveReaderShared {
            settings: Arc::clone(&self.0),
            state: Mutex::default(),
            wants_to_send: Notify::new(),
            answered: watch::Sender::new(0),
            is_started: AtomicBool::new(false),
            connects: AtomicU64::new(0),
        }));
        let mut used = self.lock();
        used.retain(|other| other.strong_count() > 0);
        used.push(Arc::downgrade(&reader.0));
        reader
    }

    /// Those that are used.
    pub(super) fn used(&self) -> Vec<LiveReader> {
        let all = self.lock();
        let existing = all.iter().filter_map(Weak::upgrade);
        existing
            .filter(|reader| reader.is_started.load(Ordering::Relaxed))
            .map(LiveReader)
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<LiveReaderShared>>> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LiveReaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveReaders")
    }
}

impl LiveReader {
    /// Keeps the connection up, once there is something to read. The client library knows more
    /// servers than those that were configured, and has reported errors that are permanent.
    pub(super) async fn run(self, client: Client) {
        self.0.wants_to_send.notified().await;
        self.0.is_started.store(true, Ordering::Relaxed);
        let mut pauses = Backoff::new(REREAD_FIRST, REREAD_MAX);
        let mut is_failing = false;
        loop {
            match self.open(&client).await {
                Ok(link) => {
                    debug!("NATS connection for live events established");
                    is_failing = false;
                    let since = Instant::now();
                    let Err(error) = self.serve(link).await;
                    self.lock().is_up = false;
                    warn!(%error, "NATS connection for live events lost");
                    // A server may accept each connection and close it at once.
                    if since.elapsed() >= REREAD_MAX {
                        pauses.reset();
                    }
                }
                Err(error) if is_failing => {
                    debug!(%error, "cannot reach NATS for live events yet");
                }
                Err(error) => {
                    is_failing = true;
                    warn!(%error, "cannot reach NATS for live events");
                }
            }
            sleep(spread(pauses.next_pause())).await;
        }
    }

    async fn open(&self, client: &Client) -> io::Result<LiveLink> {
        let settings = &*self.0.settings;
        let known = timeout(SERVER_POOL_WAIT, client.server_pool()).await;
        let mut servers = match known {
            Ok(Ok(pool)) => pool.into_iter().map(|server| server.addr).collect(),
            Ok(Err(_)) | Err(_) => settings.servers.clone(),
        };
        if !servers.is_empty() {
            let first = random() as usize % servers.len();
            servers.rotate_left(first);
        }
        let mut result = Err(io::ErrorKind::NotFound.into());
        for server in &servers {
            let LiveSettings {
                name,
                credentials,
                secrets,
                ..
            } = settings;
            let link = LiveLink::open(server, name, credentials, secrets);
            result = match timeout(BROKER_CONNECT_WAIT, Box::pin(link)).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
        }
        result
    }

    /// Subscribes again, and reads until the connection breaks.
    async fn serve(&self, link: LiveLink) -> io::Result<Infallible> {
        let LiveLink {
            mut stream,
            mut received,
        } = link;
        let mut is_again = self.begin();
        let mut unanswered = VecDeque::new();
        let mut silent_pings = 0;
        let mut ping = interval(BROKER_PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // It stays registered while copies are read.
        let mut wants_to_send = pin!(self.0.wants_to_send.notified());
        loop {
            let mut read = 0;
            while let Some((op, length)) = ServerOp::parse(&received[read..])? {
                match op {
                    ServerOp::Message(message) => self.deliver(&message),
                    ServerOp::Ping => self.lock().outgoing.extend_from_slice(b"PONG\r\n"),
                    ServerOp::Pong => {
                        // The first ping was sent after all subscriptions.
                        if std::mem::take(&mut is_again) {
                            self.note_reconnect();
                        }
                        if let Some(number) = unanswered.pop_front() {
                            self.0.answered.send_replace(number);
                        }
                    }
                    ServerOp::Error(error) => {
                        let error = String::from_utf8_lossy(error);
                        warn!(%error, "NATS reports an error");
                    }
                    ServerOp::Info(_) | ServerOp::Ok => {}
                }
                read += length;
            }
            received.drain(..read);
            if received.len() < LIVE_BUFFER {
                received.shrink_to(LIVE_BUFFER * 2);
            }
            let outgoing = self.take_outgoing(&mut unanswered);
            if !outgoing.is_empty() {
                let sent = async {
                    stream.write_all(&outgoing).await?;
                    stream.flush().await
                };
                timeout(REQUEST_WAIT, sent).await??;
            }
            received.reserve(LIVE_BUFFER);
            tokio::select! {
                read = stream.read_buf(&mut received) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    silent_pings = 0;
                }
                () = wants_to_send.as_mut() => wants_to_send.set(self.0.wants_to_send.notified()),
                _ = ping.tick() => {
                    if silent_pings > BROKER_PINGS_UNANSWERED {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    silent_pings += 1;
                    self.lock().wants_ping = true;
                }
            }
        }
    }

    /// Subscribes on a new connection to everything that was subscribed to. Returns whether there
    /// was a connection before.
    fn begin(&self) -> bool {
        let mut state = self.lock();
        state.outgoing.clear();
        let LiveReaderState {
            subscriptions,
            outgoing,
            ..
        } = &mut *state;
        for (number, queue) in subscriptions {
            subscribe(outgoing, number, queue);
        }
        state.wants_ping = true;
        state.is_up = true;
        drop(state);
        let is_again = self.0.connects.fetch_add(1, Ordering::Relaxed) > 0;
        if is_again {
            self.note_reconnect();
        }
        is_again
    }

    /// Makes watchers check their logs. After a reconnect this happens twice: before the first copy
    /// of the new connection, since the log may have been rebuilt; and once the server has seen all
    /// subscriptions, since an event that was stored after the first check and before that is
    /// copied to no one.
    fn note_reconnect(&self) {
        self.0.settings.reconnected.send_modify(|count| *count += 1);
    }

    /// What is to be sent. If that requests an answer, its number is added to those that are
    /// `unanswered`; with [`LIVE_PINGS_MAX`] of them, the request waits for an answer.
    fn take_outgoing(&self, unanswered: &mut VecDeque<u64>) -> Vec<u8> {
        let mut state = self.lock();
        if unanswered.len() < LIVE_PINGS_MAX && std::mem::take(&mut state.wants_ping) {
            state.outgoing.extend_from_slice(b"PING\r\n");
            unanswered.push_back(state.requested);
        }
        std::mem::take(&mut state.outgoing)
    }

    fn deliver(&self, message: &RawMessage<'_>) {
        let queue = self.lock().subscriptions.get(message.subscription).cloned();
        if let Some(queue) = queue {
            queue.deliver(message);
        }
    }

    /// Subscribes to the copies of one job, and waits until the server has seen that.
    pub(super) async fn subscribe(
        &self,
        queue: LiveQueue,
    ) -> Result<LiveSubscription, Unavailable> {
        let queue = Arc::new(queue);
        let number = {
            let mut state = self.lock();
            let number = state.subscriptions.insert(Arc::clone(&queue));
            if state.is_up {
                subscribe(&mut state.outgoing, number, &queue);
            }
            number
        };
        let subscription = LiveSubscription {
            reader: self.clone(),
            number,
            queue,
        };
        if self.answers(REQUEST_WAIT).await {
            Ok(subscription)
        } else {
            Err(Unavailable("no answer in time".into()))
        }
    }

    /// Whether the server answers within this time.
    pub(super) async fn answers(&self, wait: Duration) -> bool {
        let number = {
            let mut state = self.lock();
            state.requested += 1;
            state.wants_ping = true;
            state.requested
        };
        self.0.wants_to_send.notify_one();
        let mut answered = self.0.answered.subscribe();
        let until_answered = answered.wait_for(|answered| *answered >= number);
        matches!(timeout(wait, until_answered).await, Ok(Ok(_)))
    }

    /// Whether the connection is up.
    pub(super) fn is_up(&self) -> bool {
        self.lock().is_up
    }

    /// How often it was made again.
    pub(super) fn reconnects(&self) -> u64 {
        self.0.connects.load(Ordering::Relaxed).saturating_sub(1)
    }

    fn lock(&self) -> MutexGuard<'_, LiveReaderState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LiveReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveReader")
    }
}

/// Between three and five quarters of a pause: the readers of all edges lose their connections at
/// the same time.
fn spread(pause: Duration) -> Duration {
    pause * (192 + (random() % 128) as u32) / 256
}

/// The keys of a hash map are the only source of randomness in the standard library.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

fn subscribe(outgoing: &mut Vec<u8>, number: usize, queue: &LiveQueue) {
    // Writing to memory does not fail.
    let _ = write!(outgoing, "SUB {} {number}\r\n", queue.subject());
}

impl LiveSubscription {
    /// The next copy that has arrived.
    pub(super) fn poll_next(&self, cx: &Context<'_>) -> Poll<ReceivedCopy> {
        self.queue.poll_next(cx)
    }
}

impl Drop for LiveSubscription {
    fn drop(&mut self) {
        let mut state = self.reader.lock();
        state.subscriptions.remove(self.number);
        if state.is_up {
            let _ = write!(state.outgoing, "UNSUB {}\r\n", self.number);
        }
        if state.subscriptions.is_empty() {
            state.subscriptions.shrink_to_fit();
        }
        drop(state);
        self.reader.0.wants_to_send.notify_one();
    }
}

impl fmt::Debug for LiveSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSubscription")
            .field("subject", &self.queue.subject())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{DuplexStream, duplex};

    /// A connection, and its server's end.
    fn connection() -> (LiveLink, DuplexStream) {
        let (server, client) = duplex(4096);
        let link = LiveLink {
            stream: Box::new(client),
            received: Vec::new(),
        };
        (link, server)
    }

    /// Serves one connection: answers its pings once it has sent `wanted`, sends a copy, and ends.
    /// Returns what it has sent.
    async fn serve_once(reader: &LiveReader, wanted: &str, stream_seq: u64) -> String {
        let (link, mut server) = connection();
        let play = async {
            let mut sent = Vec::new();
            let has = |sent: &[u8], text: &str| String::from_utf8_lossy(sent).contains(text);
            while !has(&sent, wanted) || !has(&sent, "PING\r\n") {
                server.read_buf(&mut sent).await.unwrap();
            }
            let sent = String::from_utf8(sent).unwrap();
            let headers = format!(
                "NATS/1.0\r\nNats-Subject: tw.chunks.0.j\r\nNats-Sequence: {stream_seq}\r\n\r\n"
            );
            let head = headers.len();
            let all = head + 1;
            let copy = format!("HMSG tw.live.0.j 0 {head} {all}\r\n{headers}x\r\n");
            let pongs = "PONG\r\n".repeat(sent.matches("PING").count());
            server.write_all((pongs + &copy).as_bytes()).await.unwrap();
            drop(server);
            sent
        };
        let (served, sent) = tokio::join!(reader.serve(link), play);
        assert_eq!(served.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        sent
    }

    fn reader() -> (LiveReader, watch::Receiver<u64>) {
        let (reconnected, count) = watch::channel(0);
        let secrets = (Secrets::default(), Vec::new());
        let readers = LiveReaders::new("test".into(), Credentials::default(), secrets, reconnected);
        (readers.create(), count)
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscription_outlives_connections() {
        let (reader, count) = reader();
        let queue = LiveQueue::new("tw.live.0.j", "tw.chunks.0.j");
        let subscribed = "SUB tw.live.0.j 0\r\n";
        let (subscription, _) =
            tokio::join!(reader.subscribe(queue), serve_once(&reader, subscribed, 7));
        let subscription = subscription.unwrap();
        let next = async || poll_fn(|cx| subscription.poll_next(cx)).await.stream_seq;
        assert_eq!((next().await, *count.borrow()), (7, 0));
        serve_once(&reader, subscribed, 8).await;
        assert_eq!((next().await, *count.borrow()), (8, 2));
        drop(subscription);
        let sent = serve_once(&reader, "", 9).await;
        assert!(!sent.contains("SUB"), "{sent}");
    }

    #[tokio::test(start_paused = true)]
    async fn watchers_check_their_logs_again_once_a_new_connection_has_their_subscriptions() {
        let (reader, count) = reader();
        serve_once(&reader, "", 1).await;
        assert_eq!(*count.borrow(), 0);
        let (link, mut server) = connection();
        let play = async {
            let mut sent = Vec::new();
            while !sent.ends_with(b"PING\r\n") {
                server.read_buf(&mut sent).await.unwrap();
            }
            // The log may have been rebuilt.
            assert_eq!(*count.borrow(), 1);
            server.write_all(b"PONG\r\nPONG\r\n").await.unwrap();
            drop(server);
        };
        let _ = tokio::join!(reader.serve(link), play);
        assert_eq!(*count.borrow(), 2);
    }

    #[test]
    fn no_more_answers_are_requested_than_a_server_may_leave_open() {
        let (reader, _count) = reader();
        reader.begin();
        let mut unanswered = VecDeque::new();
        for _ in 0..LIVE_PINGS_MAX * 2 {
            reader.lock().wants_ping = true;
            reader.take_outgoing(&mut unanswered);
        }
        assert_eq!(unanswered.len(), LIVE_PINGS_MAX);
        unanswered.pop_front();
        // The request that waited.
        assert_eq!(reader.take_outgoing(&mut unanswered), b"PING\r\n");
    }

    #[test]
    fn the_pauses_of_readers_differ() {
        let pause = Duration::from_secs(1);
        let pauses: Vec<_> = (0..8).map(|_| spread(pause)).collect();
        assert!(pauses.iter().any(|other| *other != pauses[0]), "{pauses:?}");
        let range = pause * 3 / 4..pause * 5 / 4;
        assert!(
            pauses.iter().all(|pause| range.contains(pause)),
            "{pauses:?}"
        );
    }
}
