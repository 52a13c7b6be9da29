//! One pass over a shard: hands each message to the readers of its job. It reads nothing itself.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::budget::{Budget, Reservation};
use crate::config::{SCAN_BATCH, STEP_BYTES};
use crate::wire::{JobId, Seq, Stored, StreamSeq};

/// What a reader requests from a scan.
#[derive(Debug)]
pub(in crate::nats) struct ScanRequest {
    pub(in crate::nats) job: JobId,
    /// The first message to deliver.
    pub(in crate::nats) stream_seq: StreamSeq,
    /// The last event to deliver.
    pub(in crate::nats) until: Option<Seq>,
}

/// Events that a scan sends to a reader. They count towards the budget until they are received.
#[derive(Debug)]
pub(in crate::nats) struct ScanBatch {
    pub(in crate::nats) events: Vec<Arc<Stored>>,
    _held: Reservation,
}

#[derive(Debug)]
pub(super) struct ScanReader {
    request: ScanRequest,
    sender: mpsc::Sender<ScanBatch>,
    batch: Vec<Arc<Stored>>,
    /// The payloads of the batch together.
    bytes: usize,
    room: Budget,
    /// The bytes of the batch, as reserved in the budget.
    held: Reservation,
}

/// One pass over the shard.
#[derive(Debug)]
pub(super) struct ScanPass {
    readers: HashMap<JobId, Vec<ScanReader>>,
    /// The last message that the pass has read, or skipped at its start because no reader needed
    /// it.
    passed: StreamSeq,
    /// The last message of the pass, fixed when it starts.
    last: StreamSeq,
}

impl ScanPass {
    pub(super) fn new(readers: Vec<ScanReader>, last: StreamSeq) -> Self {
        let mut pass = Self {
            readers: HashMap::new(),
            passed: 0,
            last,
        };
        for reader in readers {
            pass.add(reader);
        }
        pass
    }

    pub(super) fn add(&mut self, reader: ScanReader) {
        // A reader that starts after the pass is dropped, which ends its channel.
        if reader.request.stream_seq <= self.last {
            self.readers
                .entry(reader.request.job.clone())
                .or_default()
                .push(reader);
        }
    }

    /// Starts the pass at the first message that any reader needs. `first` is the first message of
    /// the shard.
    pub(super) fn start(&mut self, first: StreamSeq) -> Option<StreamSeq> {
        let needed = self
            .readers
            .values()
            .flatten()
            .map(|reader| reader.request.stream_seq)
            .min()?;
        let start = needed.max(first).max(1);
        self.passed = start - 1;
        Some(start)
    }

    /// Whether the pass has not yet passed the first message of a late reader.
    pub(super) fn can_serve(&self, reader: &ScanReader) -> bool {
        reader.request.stream_seq > self.passed
    }

    pub(super) fn is_over(&self) -> bool {
        self.readers.is_empty() || self.passed >= self.last
    }

    /// Delivers the next message to the readers of its job. It is decoded only if there are any.
    pub(super) fn deliver(
        &mut self,
        job: &str,
        stream_seq: StreamSeq,
        decode: impl FnOnce(&JobId) -> Option<Stored>,
    ) {
        self.passed = stream_seq;
        let Ok(job) = job.parse::<JobId>() else {
            return;
        };
        let Some(readers) = self.readers.get_mut(&job) else {
            return;
        };
        if let Some(event) = decode(&job).map(Arc::new) {
            readers.retain_mut(|reader| reader.push(&event));
        }
        if readers.is_empty() {
            self.readers.remove(&job);
        }
    }

    pub(super) fn flush(&mut self) {
        self.readers.retain(|_, readers| {
            readers.retain_mut(ScanReader::flush);
            !readers.is_empty()
        });
    }
}

impl ScanReader {
    pub(super) fn new(request: ScanRequest, sender: mpsc::Sender<ScanBatch>, room: Budget) -> Self {
        let held = room.empty();
        Self {
            request,
            sender,
            batch: Vec::new(),
            bytes: 0,
            room,
            held,
        }
    }

    /// Adds an event to the batch. Returns whether the reader stays in the pass.
    fn push(&mut self, event: &Arc<Stored>) -> bool {
        if event.stream_seq < self.request.stream_seq {
            return true;
        }
        if self.held.grow(event.size()).is_err() {
            // The budget is used up. This reader gets its batch, and must join again for the rest.
            self.flush();
            return false;
        }
        self.batch.push(Arc::clone(event));
        self.bytes += event.payload().len();
        let last = self.request.until.is_some_and(|until| event.seq >= until);
        let more = self.batch.len() < SCAN_BATCH && self.bytes < STEP_BYTES && !last;
        let fits = more || self.flush();
        fits && !last
    }

    /// Sends the batch. Returns whether the reader stays in the pass. One whose channel is full
    /// leaves the pass, and continues later from where it is.
    fn flush(&mut self) -> bool {
        self.bytes = 0;
        if self.batch.is_empty() {
            return !self.sender.is_closed();
        }
        let events = std::mem::take(&mut self.batch);
        let held = std::mem::replace(&mut self.held, self.room.empty());
        let batch = ScanBatch {
            events,
            _held: held,
        };
        self.sender.try_send(batch).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SCAN_QUEUE;

    fn reader(stream_seq: StreamSeq) -> (ScanReader, mpsc::Receiver<ScanBatch>) {
        reader_in(stream_seq, &Budget::unlimited())
    }

    fn reader_in(stream_seq: StreamSeq, room: &Budget) -> (ScanReader, mpsc::Receiver<ScanBatch>) {
        let (sender, receiver) = mpsc::channel(SCAN_QUEUE);
        let request = ScanRequest {
            job: "j".parse().unwrap(),
            stream_seq,
            until: None,
        };
        (ScanReader::new(request, sender, room.clone()), receiver)
    }

    fn event(bytes: usize) -> Arc<Stored> {
        let pad = "x".repeat(bytes);
        let payload =
            format!(r#"{{"type":"x","job":"j","seq":1,"attempt":1,"ts":1,"pad":{pad:?}}}"#);
        Arc::new(Stored::decode(&"j".parse().unwrap(), 7, payload.into()).unwrap())
    }

    #[test]
    fn readers_that_do_not_receive_hold_at_most_the_budget() {
        let room = Budget::new(1 << 20);
        let mut pass = ScanPass::new(Vec::new(), 2000);
        let mut receivers = Vec::new();
        for _ in 0..100 {
            let (reader, receiver) = reader_in(1, &room);
            pass.add(reader);
            receivers.push(receiver);
        }
        for _ in 0..100 {
            let event = event(10_000);
            pass.deliver("j", event.stream_seq, |_| {
                Some(Arc::into_inner(event).unwrap())
            });
        }
        pass.flush();
        assert!(pass.readers.is_empty(), "all have left the pass");
        assert!(
            room.used() > room.limit() / 2 && room.used() <= room.limit(),
            "{}",
            room.used()
        );
        for receiver in &mut receivers {
            while receiver.try_recv().is_ok() {}
            assert!(receiver.is_closed());
        }
        assert_eq!(room.used(), 0, "received batches free the budget");
    }

    #[test]
    fn a_late_reader_joins_only_a_pass_that_has_not_read_its_first_message() {
        let (first, _batches) = reader(1000);
        let mut pass = ScanPass::new(vec![first], 2000);
        assert_eq!(pass.start(1), Some(1000));
        let can_serve = |pass: &ScanPass, stream_seq| pass.can_serve(&reader(stream_seq).0);
        // No message was read yet, but those before the start will not be.
        assert!(!can_serve(&pass, 5) && !can_serve(&pass, 999) && can_serve(&pass, 1000));
        pass.deliver("other", 1500, |_| None);
        assert!(!can_serve(&pass, 1500) && can_serve(&pass, 1501));
    }

    #[test]
    fn a_batch_is_limited_in_events_and_in_bytes() {
        for (bytes, size) in [(1, SCAN_BATCH), (STEP_BYTES / 4, 4), (2 * STEP_BYTES, 1)] {
            let (mut reader, mut batches) = reader(1);
            for _ in 1..size {
                assert!(
                    reader.push(&event(bytes)) && batches.try_recv().is_err(),
                    "{bytes}"
                );
            }
            assert!(reader.push(&event(bytes)), "{bytes}");
            assert_eq!(batches.try_recv().unwrap().events.len(), size, "{bytes}");
        }
    }

    #[test]
    fn a_pass_does_not_start_before_the_first_message_of_the_shard() {
        let (first, _batches) = reader(3);
        let mut pass = ScanPass::new(vec![first], 2000);
        assert_eq!(pass.start(40), Some(40));
        // A reader whose first messages have expired need not wait for another pass.
        assert!(pass.can_serve(&reader(40).0));
    }
}
