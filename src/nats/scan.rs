//! The shared scan: one ordered consumer over a whole shard serves all readers that wait on it, at 4 µs per message
//! whatever their number. It has no filter: a wildcard filter made it 5 times dearer, a list of subjects 50 times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, Message};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};
use tracing::{debug, warn};

use super::log::{Log, confirmed};
use super::names;
use crate::budget::{Budget, Reservation};
use crate::config::{
    SCAN_BATCH, SCAN_FLUSH, SCAN_GATHER, SCAN_GATHER_MAX, SCAN_PULL, SCAN_PULL_BYTES, SCAN_QUEUE,
    SCAN_STALL, STEP_BYTES,
};
use crate::runtime::Tasks;
use crate::source::Unavailable;
use crate::wire::{JobId, Seq, Stored, StreamSeq};

/// What a reader wants of a scan.
#[derive(Debug)]
pub(super) struct Want {
    pub(super) job: JobId,
    /// The first place that may hold what is wanted.
    pub(super) stream_seq: StreamSeq,
    /// The event after which no more is wanted.
    pub(super) until: Option<Seq>,
}

/// The scans of one shard, one lap at a time.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    log: Log,
    stream: String,
    tasks: Tasks,
    lobby: Arc<Lobby>,
    /// What all readers of all shards may be given before they take it.
    room: Budget,
}

/// Events that a scan gives to a reader. They count as held until they are taken.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) events: Vec<Arc<Stored>>,
    _held: Reservation,
}

/// Where readers wait for the next lap.
#[derive(Debug, Default)]
struct Lobby {
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    readers: Vec<Reader>,
    /// Whether a task runs laps.
    running: bool,
}

#[derive(Debug)]
struct Reader {
    want: Want,
    items: mpsc::Sender<Given>,
    batch: Vec<Arc<Stored>>,
    /// The payloads of the batch together.
    bytes: usize,
    room: Budget,
    /// What the batch holds.
    held: Reservation,
}

impl Scan {
    pub(super) fn new(log: Log, stream: String, tasks: Tasks, room: Budget) -> Self {
        Self {
            log,
            stream,
            tasks,
            lobby: Arc::default(),
            room,
        }
    }

    /// Joins the next lap. The receiver ends when everything was given that the shard held when the lap began, or when
    /// its reader was too slow for the lap, or all readers together hold as much as they may.
    pub(super) fn join(&self, want: Want) -> mpsc::Receiver<Given> {
        let (items, given) = mpsc::channel(SCAN_QUEUE);
        let mut waiting = self
            .lobby
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        waiting
            .readers
            .push(Reader::new(want, items, self.room.clone()));
        self.lobby.came.notify_one();
        if !std::mem::replace(&mut waiting.running, true) {
            self.tasks.spawn_until_stop(self.clone().run());
        }
        given
    }

    /// Runs laps until nobody waits.
    async fn run(self) {
        loop {
            self.gather().await;
            let readers = {
                let mut waiting = self
                    .lobby
                    .waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                waiting.running = !waiting.readers.is_empty();
                std::mem::take(&mut waiting.readers)
            };
            if readers.is_empty() {
                return;
            }
            let (begun, count) = (Instant::now(), readers.len());
            if let Err(error) = self.lap(readers).await {
                // The readers are dropped with the lap, and begin again where they are.
                warn!(stream = %self.stream, %error, "a scan broke off");
            }
            debug!(stream = %self.stream, readers = count, took = ?begun.elapsed(), "scanned");
        }
    }

    /// Waits until arrivals pause: whoever comes after a lap has passed its place costs a whole second lap.
    async fn gather(&self) {
        let deadline = Instant::now() + SCAN_GATHER_MAX;
        let mut pause_until = Instant::now() + SCAN_GATHER;
        while timeout_at(pause_until.min(deadline), self.lobby.came.notified())
            .await
            .is_ok()
        {
            pause_until = Instant::now() + SCAN_GATHER;
        }
    }

    async fn lap(&self, readers: Vec<Reader>) -> Result<(), Unavailable> {
        let (first, last) = self
            .log
            .bounds_of(&self.log.nats.replay, &self.stream)
            .await?;
        let mut lap = Lap::new(readers, last);
        let Some(start_sequence) = lap.begin(first) else {
            return Ok(());
        };
        let mut messages = self.messages(start_sequence).await?;
        let mut expected = 0;
        let mut flush = interval(SCAN_FLUSH);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stalled = Instant::now() + SCAN_STALL;
        while !lap.is_over() {
            tokio::select! {
                message = messages.next() => {
                    stalled = Instant::now() + SCAN_STALL;
                    let message = message.ok_or_else(|| broken("the consumer ended"))?.map_err(broken)?;
                    let info = message.info().map_err(broken)?;
                    expected += 1;
                    if info.consumer_sequence != expected {
                        return Err(broken("messages were lost on the way"));
                    }
                    let (stream_seq, pending) = (info.stream_sequence, info.pending);
                    lap.take(names::job_of(&message.subject), stream_seq, |job| {
                        let prev = confirmed(message.headers.as_ref());
                        self.log.decode(job, stream_seq, &message.payload, prev)
                    });
                    if pending == 0 {
                        break;
                    }
                }
                _ = flush.tick() => {
                    lap.flush();
                    self.admit(&mut lap);
                }
                () = sleep_until(stalled) => return Err(broken("nothing came")),
            }
        }
        lap.flush();
        Ok(())
    }

    /// Everything from a place on. The broker is asked for so many bytes at a time, and for more when the pass has taken half
    /// of them: it cuts off a client that does not take what it was sent.
    async fn messages(
        &self,
        start_sequence: StreamSeq,
    ) -> Result<impl Stream<Item = Result<Message, pull::MessagesError>> + use<>, Unavailable> {
        let context = jetstream::new(self.log.nats.replay.clone());
        let stream = context
            .get_stream_no_info(&self.stream)
            .await
            .map_err(broken)?;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            ack_policy: AckPolicy::None,
            inactive_threshold: SCAN_STALL * 6,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let consumer: PullConsumer = stream.create_consumer(config).await.map_err(broken)?;
        let pulls = consumer
            .stream()
            .max_messages_per_batch(SCAN_PULL)
            .max_bytes_per_batch(SCAN_PULL_BYTES);
        pulls.messages().await.map_err(broken)
    }

    /// Lets late readers in whose places the lap has not passed.
    fn admit(&self, lap: &mut Lap) {
        let mut waiting = self
            .lobby
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (now, later) = waiting
            .readers
            .drain(..)
            .partition(|reader| lap.is_before(reader.want.stream_seq));
        waiting.readers = later;
        for reader in Vec::into_iter(now) {
            lap.add(reader);
        }
    }
}

fn broken(error: impl std::fmt::Display) -> Unavailable {
    Unavailable(error.to_string())
}

/// One pass over the shard.
struct Lap {
    readers: HashMap<JobId, Vec<Reader>>,
    /// The last message that was passed: seen, or left out because nobody wanted it when the lap began.
    stream_seq: StreamSeq,
    /// The last message that counts: fixed when the lap begins.
    last: StreamSeq,
}

impl Lap {
    fn new(readers: Vec<Reader>, last: StreamSeq) -> Self {
        let mut lap = Self {
            readers: HashMap::new(),
            stream_seq: 0,
            last,
        };
        for reader in readers {
            lap.add(reader);
        }
        lap
    }

    fn add(&mut self, reader: Reader) {
        // Who wants only what is not stored yet is dropped, and with it the promise of more.
        if reader.want.stream_seq <= self.last {
            self.readers
                .entry(reader.want.job.clone())
                .or_default()
                .push(reader);
        }
    }

    /// Begins at the first place that anybody wants, of a shard that begins at `first`.
    fn begin(&mut self, first: StreamSeq) -> Option<StreamSeq> {
        let wanted = self
            .readers
            .values()
            .flatten()
            .map(|reader| reader.want.stream_seq)
            .min()?;
        let begin = wanted.max(first).max(1);
        self.stream_seq = begin - 1;
        Some(begin)
    }

    /// Whether a place is still to come.
    fn is_before(&self, stream_seq: StreamSeq) -> bool {
        stream_seq > self.stream_seq
    }

    fn is_over(&self) -> bool {
        self.readers.is_empty() || self.stream_seq >= self.last
    }

    fn take(
        &mut self,
        job: &str,
        stream_seq: StreamSeq,
        decode: impl FnOnce(&JobId) -> Option<Stored>,
    ) {
        self.stream_seq = stream_seq;
        let Ok(job) = job.parse::<JobId>() else {
            return;
        };
        let Some(readers) = self.readers.get_mut(&job) else {
            return;
        };
        if let Some(event) = decode(&job).map(Arc::new) {
            readers.retain_mut(|reader| reader.take(&event));
        }
        if readers.is_empty() {
            self.readers.remove(&job);
        }
    }

    fn flush(&mut self) {
        self.readers.retain(|_, readers| {
            readers.retain_mut(Reader::flush);
            !readers.is_empty()
        });
    }
}

impl Reader {
    fn new(want: Want, items: mpsc::Sender<Given>, room: Budget) -> Self {
        let held = room.empty();
        Self {
            want,
            items,
            batch: Vec::new(),
            bytes: 0,
            room,
            held,
        }
    }

    /// Takes an event. Says whether the reader stays in the lap.
    fn take(&mut self, event: &Arc<Stored>) -> bool {
        if event.stream_seq < self.want.stream_seq {
            return true;
        }
        if self.held.grow(event.size()).is_err() {
            // All readers together hold too much. This one has what came before, and comes back for the rest.
            self.flush();
            return false;
        }
        self.batch.push(Arc::clone(event));
        self.bytes += event.payload().len();
        let last = self.want.until.is_some_and(|until| event.seq >= until);
        let more = self.batch.len() < SCAN_BATCH && self.bytes < STEP_BYTES && !last;
        let fits = more || self.flush();
        fits && !last
    }

    /// Hands over what was gathered. A reader that has not taken the batches before leaves the lap: it goes on from
    /// where it is when it can.
    fn flush(&mut self) -> bool {
        self.bytes = 0;
        if self.batch.is_empty() {
            return !self.items.is_closed();
        }
        let events = std::mem::take(&mut self.batch);
        let held = std::mem::replace(&mut self.held, self.room.empty());
        self.items
            .try_send(Given {
                events,
                _held: held,
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(stream_seq: StreamSeq) -> (Reader, mpsc::Receiver<Given>) {
        reader_in(stream_seq, &Budget::unlimited())
    }

    fn reader_in(stream_seq: StreamSeq, room: &Budget) -> (Reader, mpsc::Receiver<Given>) {
        let (items, given) = mpsc::channel(SCAN_QUEUE);
        let want = Want {
            job: "j".parse().unwrap(),
            stream_seq,
            until: None,
        };
        (Reader::new(want, items, room.clone()), given)
    }

    fn event(bytes: usize) -> Arc<Stored> {
        let pad = "x".repeat(bytes);
        let payload =
            format!(r#"{{"type":"x","job":"j","seq":1,"attempt":1,"ts":1,"pad":{pad:?}}}"#);
        Arc::new(Stored::decode(&"j".parse().unwrap(), 7, payload.into()).unwrap())
    }

    #[test]
    fn readers_that_take_nothing_hold_no_more_together_than_they_may() {
        let room = Budget::new(1 << 20);
        let (mut lap, mut given) = (Lap::new(Vec::new(), 2000), Vec::new());
        for _ in 0..100 {
            let (reader, batches) = reader_in(1, &room);
            lap.add(reader);
            given.push(batches);
        }
        for _ in 0..100 {
            let event = event(10_000);
            lap.take("j", event.stream_seq, |_| {
                Some(Arc::into_inner(event).unwrap())
            });
        }
        lap.flush();
        assert!(lap.readers.is_empty(), "each has left the pass");
        assert!(
            room.used() > room.limit() / 2 && room.used() <= room.limit(),
            "{}",
            room.used()
        );
        // Whoever takes what it was given makes room.
        for batches in &mut given {
            while batches.try_recv().is_ok() {}
            assert!(batches.is_closed());
        }
        assert_eq!(room.used(), 0);
    }

    #[test]
    fn a_late_reader_is_let_in_only_where_the_lap_has_not_passed_or_left_out_its_place() {
        let (first, _given) = reader(1000);
        let mut lap = Lap::new(vec![first], 2000);
        assert_eq!(lap.begin(1), Some(1000));
        // Nothing was seen yet, and what lies before the beginning never will be.
        assert!(!lap.is_before(5) && !lap.is_before(999) && lap.is_before(1000));
        lap.take("other", 1500, |_| None);
        assert!(!lap.is_before(1500) && lap.is_before(1501));
    }

    #[test]
    fn a_reader_is_handed_a_batch_of_so_many_events_or_so_many_bytes() {
        for (bytes, size) in [(1, SCAN_BATCH), (STEP_BYTES / 4, 4), (2 * STEP_BYTES, 1)] {
            let (mut reader, mut given) = reader(1);
            for _ in 1..size {
                assert!(
                    reader.take(&event(bytes)) && given.try_recv().is_err(),
                    "{bytes}"
                );
            }
            assert!(reader.take(&event(bytes)), "{bytes}");
            assert_eq!(given.try_recv().unwrap().events.len(), size, "{bytes}");
        }
    }

    #[test]
    fn a_lap_does_not_begin_before_what_the_shard_still_has() {
        let (first, _given) = reader(3);
        let mut lap = Lap::new(vec![first], 2000);
        assert_eq!(lap.begin(40), Some(40));
        // What has expired is no reason to wait for another lap.
        assert!(lap.is_before(40));
    }
}
