//! The shared scan: one ordered consumer over a whole shard serves all readers that wait for it, at
//! 4 µs per message of a broker that is near, regardless of their number. It uses no filter: a
//! wildcard filter made it 5 times slower, a list of subjects 50 times.

mod pass;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::panicking;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, Message};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::{Notify, Semaphore};
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};
use tracing::{debug, warn};

use super::error::unavailable;
use super::info;
use super::log::Log;
use super::message::confirmed;
use crate::budget::Budget;
use crate::config::{
    DECODE_BYTES, SCAN_BLOCKED, SCAN_FLUSH, SCAN_FROM, SCAN_GATHER, SCAN_GATHER_MAX, SCAN_LOOKS,
    SCAN_PULL, SCAN_PULL_BYTES, SCAN_STALL, SCAN_YIELDS,
};
use crate::runtime::{Mailbox, Tasks, mailbox};
use crate::source::Unavailable;
use crate::wire::StreamSeq;
pub(super) use pass::{ScanBatch, ScanRequest};
use pass::{ScanPass, ScanReader};

/// The scans of one shard, one pass at a time.
#[derive(Clone, Debug)]
pub(super) struct SharedScan {
    log: Log,
    stream: String,
    tasks: Tasks,
    queue: Arc<ScanQueue>,
    /// Limits the bytes that were read for all readers, and that they have not taken.
    budget: Budget,
    /// Limits how many shards are scanned at a time.
    passes: Arc<Semaphore>,
}

/// The readers that wait for the next pass.
#[derive(Debug, Default)]
struct ScanQueue {
    state: Mutex<QueueState>,
    /// A reader has joined, or one that was expected may have no need to.
    changed: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    readers: Vec<ScanReader>,
    /// How many replays read their last segments.
    expected: usize,
    /// Whether a task runs passes.
    is_running: bool,
}

/// A replay that reads its last segments: most need a scan for the events after them. A pass waits
/// for it.
#[derive(Debug)]
pub(super) struct ExpectedReader(Arc<ScanQueue>);

impl ExpectedReader {
    fn new(queue: &Arc<ScanQueue>) -> Self {
        queue.lock().expected += 1;
        Self(Arc::clone(queue))
    }
}

impl Drop for ExpectedReader {
    fn drop(&mut self) {
        self.0.lock().expected -= 1;
        self.0.changed.notify_one();
    }
}

/// What the task that runs passes holds. If the task panics, the mailboxes of the waiting readers
/// close: they would wait until another reader starts a task.
#[derive(Debug)]
struct RunningPasses(Arc<ScanQueue>);

impl Drop for RunningPasses {
    fn drop(&mut self) {
        if panicking() {
            let mut state = self.0.lock();
            state.is_running = false;
            state.readers.clear();
        }
    }
}

impl ScanQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a reader. If no task runs passes, the caller starts one, which holds the result.
    fn add(self: &Arc<Self>, reader: ScanReader) -> Option<RunningPasses> {
        let mut state = self.lock();
        state.readers.push(reader);
        self.changed.notify_one();
        let was_running = std::mem::replace(&mut state.is_running, true);
        (!was_running).then(|| RunningPasses(Arc::clone(self)))
    }

    /// Removes and returns the waiting readers. Without any, the task that runs passes ends.
    fn next_readers(&self) -> Vec<ScanReader> {
        let mut state = self.lock();
        state.is_running = !state.readers.is_empty();
        std::mem::take(&mut state.readers)
    }

    /// Whether a scan is cheaper than direct gets, beside this many other replays of the log. A
    /// replay that has read segments soon meets those that are expected. For any other one, a scan
    /// that waits for them would only be slower than a page.
    fn is_worthwhile(&self, replays: usize, after_segments: bool) -> bool {
        let expected = if after_segments {
            self.lock().expected
        } else {
            0
        };
        replays + expected >= SCAN_FROM
    }

    /// Waits until no reader is expected and none has arrived for a moment: a reader whose first
    /// message the pass has already read costs a second pass.
    async fn gather(&self) {
        let deadline = Instant::now() + SCAN_GATHER_MAX;
        loop {
            let is_expecting = self.lock().expected > 0;
            let pause_until = if is_expecting {
                deadline
            } else {
                deadline.min(Instant::now() + SCAN_GATHER)
            };
            let changed = timeout_at(pause_until, self.changed.notified()).await;
            if changed.is_err() {
                return;
            }
        }
    }

    /// Adds the readers that a pass can still serve to it.
    fn join_late(&self, pass: &mut ScanPass) {
        let mut state = self.lock();
        let (now, later) = state
            .readers
            .drain(..)
            .partition(|reader| pass.can_serve(reader));
        state.readers = later;
        for reader in Vec::into_iter(now) {
            pass.add(reader);
        }
    }
}

impl SharedScan {
    /// Scans the stream of a shard. All shards of a reader share `budget` and `passes`.
    pub(super) fn new(
        log: Log,
        stream: String,
        tasks: Tasks,
        budget: Budget,
        passes: Arc<Semaphore>,
    ) -> Self {
        Self {
            log,
            stream,
            tasks,
            queue: Arc::default(),
            budget,
            passes,
        }
    }

    /// Whether a replay, which may have read segments, joins a scan instead of making direct gets,
    /// beside this many others of the shard's log.
    pub(super) fn is_worthwhile(&self, replays: usize, after_segments: bool) -> bool {
        self.queue.is_worthwhile(replays, after_segments)
    }

    /// Expects a reader until the result is dropped.
    pub(super) fn expect_reader(&self) -> ExpectedReader {
        ExpectedReader::new(&self.queue)
    }

    /// Joins the next pass. The mailbox closes after the last message that the shard had when the
    /// pass started. It closes earlier if the reader takes nothing, or if all readers together
    /// reach the budget. The mail of a reader that has got nothing until then expires.
    pub(super) fn join(&self, request: ScanRequest) -> Mailbox<ScanBatch> {
        let (sender, receiver) = mailbox();
        let reader = ScanReader::new(request, sender);
        if let Some(running) = self.queue.add(reader) {
            let scan = self.clone();
            self.tasks.spawn_until_stop(async move {
                scan.run().await;
                drop(running);
            });
        }
        receiver
    }

    /// Runs passes while readers wait.
    async fn run(self) {
        loop {
            self.queue.gather().await;
            // The semaphore is never closed. Readers that join meanwhile are served by the same pass.
            let _pass = self.passes.acquire().await;
            let readers = self.queue.next_readers();
            if readers.is_empty() {
                return;
            }
            let started = Instant::now();
            let count = readers.len();
            if let Err(error) = self.pass(readers).await {
                // The readers were dropped with the pass. They continue from where they are.
                warn!(stream = %self.stream, %error, "a scan was interrupted");
            }
            debug!(stream = %self.stream, readers = count, took = ?started.elapsed(), "scanned");
        }
    }

    async fn pass(&self, readers: Vec<ScanReader>) -> Result<(), Unavailable> {
        let state = info::stream(&self.log.nats.replay, &self.stream)
            .await?
            .state;
        let mut pass = ScanPass::new(readers, state.last_seq, self.budget.clone());
        let Some(start_sequence) = pass.start(state.first_seq) else {
            return Ok(());
        };
        let outcome = self.read(&mut pass, start_sequence).await;
        pass.flush();
        pass.end();
        self.expire(&mut pass);
        outcome
    }

    /// Reads the messages of a pass.
    async fn read(
        &self,
        pass: &mut ScanPass,
        start_sequence: StreamSeq,
    ) -> Result<(), Unavailable> {
        let mut messages = self.messages(start_sequence).await?;
        let mut expected = 0;
        let mut read = 0;
        let mut flush = interval(SCAN_FLUSH);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stalled = Instant::now() + SCAN_STALL;
        while !pass.is_over() {
            tokio::select! {
                message = messages.next() => {
                    stalled = Instant::now() + SCAN_STALL;
                    expected += 1;
                    let message = message
                        .ok_or_else(|| unavailable("the consumer ended"))?
                        .map_err(unavailable)?;
                    if !self.deliver(pass, &message, expected)? {
                        break;
                    }
                    self.until_unblocked(pass).await;
                    read += message.payload.len();
                    if read >= DECODE_BYTES {
                        read = 0;
                        yield_now().await;
                    }
                }
                _ = flush.tick() => {
                    pass.tick();
                    self.expire(pass);
                    self.queue.join_late(pass);
                }
                () = sleep_until(stalled) => return Err(unavailable("no message arrived")),
            }
        }
        Ok(())
    }

    /// Lets the readers run that must take what they have before the pass continues. Those that do
    /// not take it leave the pass.
    async fn until_unblocked(&self, pass: &mut ScanPass) {
        let mut until = None;
        for _ in 0..SCAN_LOOKS {
            if !pass.is_blocked() {
                return;
            }
            let now = Instant::now();
            if now >= *until.get_or_insert(now + SCAN_BLOCKED) {
                break;
            }
            for _ in 0..SCAN_YIELDS {
                yield_now().await;
            }
        }
        if pass.is_blocked() {
            pass.leave_blocked();
        }
    }

    /// Drops what readers that have left the pass do not take.
    fn expire(&self, pass: &mut ScanPass) {
        for sender in pass.take_left() {
            self.tasks.spawn_until_stop(sender.until_taken());
        }
    }

    /// Delivers one message, which must be the consumer's `expected`th. Returns whether more are
    /// pending.
    fn deliver(
        &self,
        pass: &mut ScanPass,
        message: &Message,
        expected: u64,
    ) -> Result<bool, Unavailable> {
        let info = message.info().map_err(unavailable)?;
        if info.consumer_sequence != expected {
            return Err(unavailable("messages were lost"));
        }
        let stream_seq = info.stream_sequence;
        let job = self.log.nats.names.job_of_chunks(&message.subject);
        pass.deliver(job, stream_seq, |job| {
            let prev = confirmed(message.headers.as_ref());
            self.log
                .decode_slice(job, stream_seq, &message.payload, prev)
        });
        Ok(info.pending > 0)
    }

    /// All messages from a stream sequence on. Requests a limited number of bytes at a time, and
    /// more when half of them were received: the broker disconnects a client that reads too slowly.
    async fn messages(
        &self,
        start_sequence: StreamSeq,
    ) -> Result<impl Stream<Item = Result<Message, pull::MessagesError>> + use<>, Unavailable> {
        let context = jetstream::new(self.log.nats.replay.clone());
        let stream = context
            .get_stream_no_info(&self.stream)
            .await
            .map_err(unavailable)?;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            ack_policy: AckPolicy::None,
            inactive_threshold: SCAN_STALL * 6,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let consumer: PullConsumer = stream.create_consumer(config).await.map_err(unavailable)?;
        let pulls = consumer
            .stream()
            .max_messages_per_batch(SCAN_PULL)
            .max_bytes_per_batch(SCAN_PULL_BYTES);
        pulls.messages().await.map_err(unavailable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::NoMail;
    use futures_util::FutureExt as _;
    use std::future::poll_fn;
    use std::panic::{AssertUnwindSafe, resume_unwind};
    use std::task::Poll;
    use std::time::Duration;
    use tokio::time::sleep;

    /// How long a scan gathers readers while a replay reads segments for `reading`.
    async fn gathering_during(reading: Duration) -> Duration {
        let queue = Arc::new(ScanQueue::default());
        let expected = ExpectedReader::new(&queue);
        let started = Instant::now();
        let gathering = async {
            queue.gather().await;
            started.elapsed()
        };
        let segments = async {
            sleep(reading).await;
            drop(expected);
        };
        let (took, ()) = tokio::join!(gathering, segments);
        took
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_starts_a_moment_after_the_last_replay_has_read_its_segments() {
        for reading in [Duration::ZERO, SCAN_GATHER * 10] {
            let took = gathering_during(reading).await;
            let expected = reading + SCAN_GATHER..reading + SCAN_GATHER * 2;
            assert!(expected.contains(&took), "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_does_not_wait_longer_than_its_limit_for_segments() {
        let took = gathering_during(SCAN_GATHER_MAX * 2).await;
        let expected = SCAN_GATHER_MAX..SCAN_GATHER_MAX + SCAN_GATHER;
        assert!(expected.contains(&took), "{took:?}");
    }

    #[test]
    fn after_a_panic_in_a_pass_no_reader_waits_and_the_next_one_starts_another_task() {
        let queue = Arc::new(ScanQueue::default());
        let add = || {
            let (sender, received) = mailbox();
            let request = ScanRequest {
                job: "j".parse().unwrap(),
                stream_seq: 1,
                until: None,
            };
            let reader = ScanReader::new(request, sender);
            (queue.add(reader), received)
        };
        let (first, _received) = add();
        let (none, mut waits) = add();
        assert!(first.is_some() && none.is_none());
        assert!(waits.take().now_or_never().is_none());
        let task = async move {
            poll_fn(|_| -> Poll<()> { resume_unwind(Box::new("a bug")) }).await;
            drop(first);
        };
        let ended = AssertUnwindSafe(task).catch_unwind().now_or_never();
        assert!(ended.unwrap().is_err());
        let taken = waits.take().now_or_never();
        assert!(matches!(taken, Some(Err(NoMail::Closed))));
        let (second, _received) = add();
        assert!(second.is_some() && add().0.is_none());
        assert_eq!(queue.next_readers().len(), 2);
        assert!(add().0.is_none(), "the task runs another pass");
        assert_eq!(queue.next_readers().len(), 1);
        // It ends once it finds none.
        assert!(queue.next_readers().is_empty());
        assert!(add().0.is_some());
    }

    #[test]
    fn replays_that_read_segments_count_towards_a_scan_for_those_that_have_read_theirs() {
        let queue = Arc::new(ScanQueue::default());
        for after_segments in [false, true] {
            assert!(queue.is_worthwhile(SCAN_FROM, after_segments));
            assert!(!queue.is_worthwhile(SCAN_FROM - 1, after_segments));
        }
        let reading: Vec<_> = (0..SCAN_FROM)
            .map(|_| ExpectedReader::new(&queue))
            .collect();
        assert!(queue.is_worthwhile(0, true));
        assert!(!queue.is_worthwhile(SCAN_FROM - 1, false));
        drop(reading);
        assert!(!queue.is_worthwhile(SCAN_FROM - 1, true));
    }
}
