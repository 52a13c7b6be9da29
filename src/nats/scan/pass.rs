//! One pass over a shard: hands each message to the readers of its job. It reads nothing itself.

use std::collections::HashMap;
use std::sync::Arc;

use crate::budget::{Budget, LimitReached, Reservation};
use crate::config::{SCAN_BATCH, SCAN_TICKS, STEP_BYTES};
use crate::runtime::MailSender;
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

/// Events that a scan has for a reader. Each counts towards the budget until all readers of its job
/// have taken it.
#[derive(Debug)]
pub(in crate::nats) struct ScanBatch {
    pub(in crate::nats) events: Vec<Arc<Stored>>,
    held: Vec<Arc<Reservation>>,
}

impl ScanBatch {
    /// Adds the next events, unless the batch then exceeds a step of a session.
    fn join(&mut self, next: Self) -> Result<(), Self> {
        let bytes: usize = [&self.held, &next.held]
            .into_iter()
            .flatten()
            .map(|held| held.bytes())
            .sum();
        if bytes > STEP_BYTES {
            return Err(next);
        }
        self.events.extend(next.events);
        self.held.extend(next.held);
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct ScanReader {
    request: ScanRequest,
    sender: MailSender<ScanBatch>,
    batch: Vec<Arc<Stored>>,
    /// The payloads of the batch together.
    bytes: usize,
    /// The room of these events in the budget.
    held: Vec<Arc<Reservation>>,
    /// Whether the batch is complete, and its reader has not taken the one before.
    is_blocked: bool,
    /// For how many ticks its reader has taken nothing.
    ticks: u32,
}

/// What a reader of a pass does after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScanReaderState {
    Stays,
    /// It must take its last batch first.
    Blocked,
    Leaves,
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
    /// The jobs whose readers may be blocked.
    blocked: Vec<JobId>,
    /// The readers that have left with events that they have not taken.
    left: Vec<MailSender<ScanBatch>>,
    /// Limits the bytes of events that readers have not taken.
    budget: Budget,
}

impl ScanPass {
    pub(super) fn new(readers: Vec<ScanReader>, last: StreamSeq, budget: Budget) -> Self {
        let mut pass = Self {
            readers: HashMap::new(),
            passed: 0,
            last,
            blocked: Vec::new(),
            left: Vec::new(),
            budget,
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

    /// Whether the first message of a late reader is still to come in this pass. A message that was
    /// stored after the pass started is not: only the next pass reads it.
    pub(super) fn can_serve(&self, reader: &ScanReader) -> bool {
        (self.passed + 1..=self.last).contains(&reader.request.stream_seq)
    }

    pub(super) fn is_over(&self) -> bool {
        self.readers.is_empty() || self.passed >= self.last
    }

    /// Delivers the next message to the readers of its job, if it is of one. It is decoded only if
    /// there are any.
    pub(super) fn deliver(
        &mut self,
        job: Option<JobId>,
        stream_seq: StreamSeq,
        decode: impl FnOnce(&JobId) -> Option<Stored>,
    ) {
        self.passed = stream_seq;
        let Some(job) = job else {
            return;
        };
        let Some(readers) = self.readers.get_mut(&job) else {
            return;
        };
        if let Some(event) = decode(&job).map(Arc::new) {
            // The readers share the event, so it counts once.
            let blocked = match self.budget.reserve(event.size()) {
                Ok(held) => {
                    let held = Arc::new(held);
                    update(readers, &mut self.left, |reader| reader.push(&event, &held))
                }
                Err(LimitReached) => update(readers, &mut self.left, |reader| {
                    reader.leave_before(&event)
                }),
            };
            if blocked {
                self.blocked.push(job.clone());
            }
        }
        if readers.is_empty() {
            self.readers.remove(&job);
        }
    }

    /// Hands over all batches, complete or not.
    pub(super) fn flush(&mut self) {
        let Self { readers, left, .. } = self;
        readers.retain(|_, readers| {
            update(readers, left, ScanReader::flush);
            !readers.is_empty()
        });
    }

    /// [`Self::flush`], from time to time. Readers that have taken nothing for long leave.
    pub(super) fn tick(&mut self) {
        let Self { readers, left, .. } = self;
        readers.retain(|_, readers| {
            update(readers, left, ScanReader::tick);
            !readers.is_empty()
        });
    }

    /// Whether a reader must take its last batch before the pass continues.
    pub(super) fn is_blocked(&mut self) -> bool {
        let Self {
            readers,
            left,
            blocked,
            ..
        } = self;
        blocked.retain(|job| {
            readers
                .get_mut(job)
                .is_some_and(|readers| update(readers, left, ScanReader::unblock))
        });
        !self.blocked.is_empty()
    }

    /// Lets the readers leave that must take their last batch.
    pub(super) fn leave_blocked(&mut self) {
        for job in std::mem::take(&mut self.blocked) {
            if let Some(readers) = self.readers.get_mut(&job) {
                update(readers, &mut self.left, |reader| {
                    if reader.is_blocked {
                        ScanReaderState::Leaves
                    } else {
                        ScanReaderState::Stays
                    }
                });
                if readers.is_empty() {
                    self.readers.remove(&job);
                }
            }
        }
    }

    /// Ends the pass for all readers.
    pub(super) fn end(&mut self) {
        let readers = std::mem::take(&mut self.readers);
        let senders = readers.into_values().flatten().map(|reader| reader.sender);
        self.left.extend(senders);
    }

    /// The mailboxes of the readers that have left with events that they have not taken.
    pub(super) fn take_left(&mut self) -> Vec<MailSender<ScanBatch>> {
        let mut left = std::mem::take(&mut self.left);
        left.retain(MailSender::is_waiting);
        left
    }
}

/// Changes each reader and removes those that leave. Returns whether one is blocked.
fn update(
    readers: &mut Vec<ScanReader>,
    left: &mut Vec<MailSender<ScanBatch>>,
    change: impl Fn(&mut ScanReader) -> ScanReaderState,
) -> bool {
    let mut is_blocked = false;
    let mut index = 0;
    while let Some(reader) = readers.get_mut(index) {
        let state = change(reader);
        if state == ScanReaderState::Leaves {
            left.push(readers.swap_remove(index).sender);
        } else {
            is_blocked |= state == ScanReaderState::Blocked;
            index += 1;
        }
    }
    is_blocked
}

impl ScanReaderState {
    /// A reader that got its last event leaves once it has taken it.
    fn then_leave_if(self, is_last: bool) -> Self {
        if is_last && self == Self::Stays {
            Self::Leaves
        } else {
            self
        }
    }
}

impl ScanReader {
    pub(super) fn new(request: ScanRequest, sender: MailSender<ScanBatch>) -> Self {
        Self {
            request,
            sender,
            batch: Vec::new(),
            bytes: 0,
            held: Vec::new(),
            is_blocked: false,
            ticks: 0,
        }
    }

    /// Adds an event, for which there is this room, to the batch.
    fn push(&mut self, event: &Arc<Stored>, held: &Arc<Reservation>) -> ScanReaderState {
        if event.stream_seq < self.request.stream_seq {
            return ScanReaderState::Stays;
        }
        self.batch.push(Arc::clone(event));
        self.held.push(Arc::clone(held));
        self.bytes += event.payload().len();
        let last = self.request.until.is_some_and(|until| event.seq >= until);
        if self.batch.len() < SCAN_BATCH && self.bytes < STEP_BYTES && !last {
            return ScanReaderState::Stays;
        }
        self.flush().then_leave_if(last)
    }

    /// There is no room for an event. A reader that needs it gets its batch, and must read the rest
    /// in another way.
    fn leave_before(&mut self, event: &Stored) -> ScanReaderState {
        if event.stream_seq < self.request.stream_seq {
            return ScanReaderState::Stays;
        }
        self.flush();
        self.sender.expire();
        ScanReaderState::Leaves
    }

    /// Hands the batch over. A reader that has not taken the one before, and does not take it
    /// before the pass continues, leaves the pass, and continues later from where it is.
    fn flush(&mut self) -> ScanReaderState {
        self.is_blocked = false;
        if self.batch.is_empty() {
            return if self.sender.is_unread() {
                ScanReaderState::Leaves
            } else {
                ScanReaderState::Stays
            };
        }
        let batch = ScanBatch {
            events: std::mem::take(&mut self.batch),
            held: std::mem::take(&mut self.held),
        };
        self.bytes = 0;
        let Err(refused) = self.sender.deliver(batch, ScanBatch::join) else {
            return ScanReaderState::Stays;
        };
        if self.sender.is_unread() {
            return ScanReaderState::Leaves;
        }
        self.bytes = refused
            .events
            .iter()
            .map(|event| event.payload().len())
            .sum();
        self.batch = refused.events;
        self.held = refused.held;
        self.is_blocked = true;
        ScanReaderState::Blocked
    }

    fn tick(&mut self) -> ScanReaderState {
        if !self.sender.is_waiting() {
            self.ticks = 0;
        } else if self.ticks < SCAN_TICKS {
            self.ticks += 1;
        } else {
            return ScanReaderState::Leaves;
        }
        self.flush()
    }

    /// Hands the batch over if that had to wait.
    fn unblock(&mut self) -> ScanReaderState {
        if !self.is_blocked {
            return ScanReaderState::Stays;
        }
        let is_last =
            |event: &Arc<Stored>| self.request.until.is_some_and(|until| event.seq >= until);
        let last = self.batch.last().is_some_and(is_last);
        self.flush().then_leave_if(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Mailbox, NoMail, mailbox};
    use futures_util::FutureExt as _;

    fn reader(stream_seq: StreamSeq) -> (ScanReader, Mailbox<ScanBatch>) {
        reader_of("j", stream_seq)
    }

    fn reader_of(job: &str, stream_seq: StreamSeq) -> (ScanReader, Mailbox<ScanBatch>) {
        let (sender, receiver) = mailbox();
        let request = ScanRequest {
            job: job.parse().unwrap(),
            stream_seq,
            until: None,
        };
        (ScanReader::new(request, sender), receiver)
    }

    fn pass_of(readers: Vec<ScanReader>) -> ScanPass {
        ScanPass::new(readers, 2000, Budget::unlimited())
    }

    fn event(bytes: usize) -> Arc<Stored> {
        Arc::new(event_of(&"j".parse().unwrap(), bytes))
    }

    fn event_of(job: &JobId, bytes: usize) -> Stored {
        let pad = "x".repeat(bytes);
        let payload =
            format!(r#"{{"type":"x","job":"{job}","seq":1,"attempt":1,"ts":1,"pad":{pad:?}}}"#);
        Stored::decode(job, 7, payload.into()).unwrap()
    }

    #[test]
    fn readers_that_do_not_receive_hold_at_most_the_budget() {
        let budget = Budget::new(1 << 20);
        let mut pass = ScanPass::new(Vec::new(), 2000, budget.clone());
        let mut receivers = Vec::new();
        let jobs: Vec<String> = (0..100).map(|n| format!("j{n}")).collect();
        for job in &jobs {
            let (reader, receiver) = reader_of(job, 1);
            pass.add(reader);
            receivers.push(receiver);
        }
        for _ in 0..100 {
            for job in &jobs {
                pass.deliver(job.parse().ok(), 7, |job| Some(event_of(job, 10_000)));
            }
            if pass.is_blocked() {
                pass.leave_blocked();
            }
        }
        pass.flush();
        assert!(pass.readers.is_empty(), "all have left the pass");
        drop(pass);
        assert!(
            budget.used() > budget.limit() / 2 && budget.used() <= budget.limit(),
            "{}",
            budget.used()
        );
        for receiver in &mut receivers {
            let mut taken = 0;
            while let Some(Ok(batch)) = receiver.take().now_or_never() {
                taken += batch.events.len();
            }
            let ended = receiver.take().now_or_never().unwrap().unwrap_err();
            // A reader that got nothing learns that there was no room, and reads in another way.
            let expected = if taken > 0 {
                NoMail::Closed
            } else {
                NoMail::Expired
            };
            assert_eq!(ended, expected, "{taken}");
        }
        assert_eq!(budget.used(), 0, "taken batches free the budget");
    }

    #[test]
    fn an_event_counts_once_for_all_readers_of_its_job() {
        let size = event(10_000).size();
        let budget = Budget::new(size);
        let mut pass = ScanPass::new(Vec::new(), 2000, budget.clone());
        let mut receivers = Vec::new();
        for _ in 0..100 {
            let (reader, receiver) = reader(1);
            pass.add(reader);
            receivers.push(receiver);
        }
        pass.deliver("j".parse().ok(), 7, |job| Some(event_of(job, 10_000)));
        pass.flush();
        for receiver in &mut receivers {
            assert_eq!(budget.used(), size);
            let batch = receiver.take().now_or_never().unwrap().unwrap();
            assert_eq!(batch.events.len(), 1);
        }
        assert_eq!(budget.used(), 0, "the last reader has taken it");
    }

    #[test]
    fn a_reader_that_does_not_need_an_event_stays_although_there_is_no_room_for_it() {
        let (needs, mut no_room) = reader(1);
        let (later, _batches) = reader(1000);
        let mut pass = ScanPass::new(vec![needs, later], 2000, Budget::new(1));
        pass.deliver("j".parse().ok(), 7, |job| Some(event_of(job, 10)));
        let ended = no_room.take().now_or_never().unwrap();
        assert_eq!(ended.unwrap_err(), NoMail::Expired);
        assert!(!pass.is_over());
    }

    #[test]
    fn a_reader_that_takes_what_it_has_stays_in_the_pass() {
        let (first, mut takes) = reader(1);
        let (second, _idle) = reader(1);
        let mut pass = pass_of(vec![first, second]);
        let mut taken = 0;
        for _ in 0..500 {
            let event = event(1000);
            pass.deliver("j".parse().ok(), event.stream_seq, |_| {
                Some(Arc::into_inner(event).unwrap())
            });
            while pass.is_blocked() {
                if let Some(Ok(batch)) = takes.take().now_or_never() {
                    taken += batch.events.len();
                } else {
                    pass.leave_blocked();
                }
            }
        }
        for _ in 0..2 {
            while let Some(Ok(batch)) = takes.take().now_or_never() {
                taken += batch.events.len();
            }
            pass.flush();
        }
        if let Some(Ok(batch)) = takes.take().now_or_never() {
            taken += batch.events.len();
        }
        assert_eq!(taken, 500);
        assert_eq!(pass.take_left().len(), 1, "the idle one has left");
    }

    #[test]
    fn a_reader_that_takes_nothing_leaves_after_some_ticks() {
        let (idle, _mailbox) = reader(1);
        let mut pass = pass_of(vec![idle]);
        pass.deliver("j".parse().ok(), 7, |_| Arc::into_inner(event(10)));
        for _ in 0..SCAN_TICKS + 2 {
            assert!(!pass.is_over());
            pass.tick();
        }
        assert!(pass.is_over() && pass.take_left().len() == 1);
    }

    #[test]
    fn a_late_reader_joins_only_a_pass_that_has_not_read_its_first_message() {
        let (first, _batches) = reader(1000);
        let mut pass = pass_of(vec![first]);
        assert_eq!(pass.start(1), Some(1000));
        let can_serve = |pass: &ScanPass, stream_seq| pass.can_serve(&reader(stream_seq).0);
        // No message was read yet, but those before the start will not be.
        assert!(!can_serve(&pass, 5) && !can_serve(&pass, 999) && can_serve(&pass, 1000));
        // It is stored after the pass has started.
        assert!(can_serve(&pass, 2000) && !can_serve(&pass, 2001));
        pass.deliver("other".parse().ok(), 1500, |_| None);
        assert!(!can_serve(&pass, 1500) && can_serve(&pass, 1501));
    }

    #[test]
    fn a_batch_is_limited_in_events_and_in_bytes() {
        for (bytes, size) in [(1, SCAN_BATCH), (STEP_BYTES / 4, 4), (2 * STEP_BYTES, 1)] {
            let (mut reader, mut batches) = reader(1);
            let held = Arc::new(Budget::unlimited().empty());
            for _ in 1..size {
                assert_eq!(
                    reader.push(&event(bytes), &held),
                    ScanReaderState::Stays,
                    "{bytes}"
                );
                assert!(batches.take().now_or_never().is_none(), "{bytes}");
            }
            assert_eq!(
                reader.push(&event(bytes), &held),
                ScanReaderState::Stays,
                "{bytes}"
            );
            let batch = batches.take().now_or_never().unwrap().unwrap();
            assert_eq!(batch.events.len(), size, "{bytes}");
        }
    }

    #[test]
    fn a_pass_does_not_start_before_the_first_message_of_the_shard() {
        let (first, _batches) = reader(3);
        let mut pass = pass_of(vec![first]);
        assert_eq!(pass.start(40), Some(40));
        // A reader whose first messages have expired need not wait for another pass.
        assert!(pass.can_serve(&reader(40).0));
    }
}
