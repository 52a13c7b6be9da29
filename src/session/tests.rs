//! Tests of sessions over a hub and a log in memory, with paused time. This file has what they
//! share: an edge, a job's events, and a client that checks every step.

mod compacting;
mod expiry;
mod folding;
mod forged;
mod opening;
mod random;
mod reading;
mod rebuilt;
mod repair;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Session, SessionError, Step};
use crate::budget::Budget;
use crate::hub::Hub;
use crate::runtime::Tasks;
use crate::source::memory::{MemoryLog, chunk, job};
use crate::wire::{Body, Cursor, Event, JobId, Seq, Start, Stored};

/// Longer than anything takes: a wait this long never ends.
const FOREVER: Duration = Duration::from_secs(600);
/// Long enough for every task to do everything that it can do without waiting.
const MOMENT: Duration = Duration::from_millis(1);
const FROM_START: Start = Start::After(Seq(0));

fn other_job() -> JobId {
    "other".parse().unwrap()
}

fn edge(memory: &MemoryLog) -> Arc<Hub<MemoryLog>> {
    Hub::new(memory.clone(), Tasks::default())
}

fn done() -> Body {
    Body::Done {
        usage: None,
        finish_reason: None,
    }
}

/// Appends `count` chunks to the job, each after one of another job.
fn append(memory: &MemoryLog, count: u64) {
    for i in 0..count {
        memory.append(&other_job(), chunk("else"));
        memory.append(&job(), chunk(format!("{i} ")));
    }
}

/// Stores a message that decodes as event `seq` of the job, unless that is the next event. Returns
/// whether it was stored.
fn forge(memory: &MemoryLog, seq: u64, next: u64) -> bool {
    let event = Event {
        body: chunk("forged"),
        job: job(),
        seq: Seq(seq),
        attempt: 1,
        ts: 1,
    };
    seq != next && memory.append_raw(&job(), event.encode().unwrap()).is_ok()
}

/// A log of the job with `count` chunks.
fn log_of(count: u64) -> MemoryLog {
    let memory = MemoryLog::default();
    append(&memory, count);
    memory
}

/// A client that fails on any step except the next one.
#[derive(Debug)]
struct Client {
    session: Session<MemoryLog>,
    /// The event to deliver or report in a gap next.
    next: Seq,
    cursor: Option<Cursor>,
    /// How many events it received.
    received: u64,
    gaps: Vec<(u64, u64)>,
    live: bool,
    ended: bool,
}

impl Client {
    async fn open(hub: &Arc<Hub<MemoryLog>>, start: Start) -> Result<Self, SessionError> {
        let next = match start {
            Start::After(seq) => seq.successor(),
            Start::Cursor(cursor) => cursor.seq.successor(),
        };
        let session = Session::open(hub, &job(), start).await?;
        Ok(Self {
            session,
            next,
            cursor: None,
            received: 0,
            gaps: Vec::new(),
            live: false,
            ended: false,
        })
    }

    /// A client that starts at the first event.
    async fn from_start(hub: &Arc<Hub<MemoryLog>>) -> Self {
        Self::open(hub, FROM_START).await.unwrap()
    }

    fn apply(&mut self, step: Step) {
        assert!(!self.ended, "{step:?} after the end");
        match step {
            Step::Events(events) => {
                assert!(!events.is_empty(), "a step is not empty");
                events.iter().for_each(|event| self.apply_event(event));
            }
            Step::Gap { from, to } => {
                assert!(
                    from == self.next && to >= from,
                    "a gap from {from} to {to}, expected {}",
                    self.next
                );
                self.next = to.successor();
                self.gaps.push((from.0, to.0));
            }
            Step::Live => {
                assert!(!self.live, "live is sent once");
                self.live = true;
            }
            Step::End => self.ended = true,
            Step::Rebuilt => panic!("the log was not rebuilt"),
        }
    }

    fn apply_event(&mut self, event: &Stored) {
        let first = event.first_seq();
        assert_eq!(first, self.next, "each event once, in order");
        self.next = event.seq.successor();
        self.cursor = Some(event.cursor());
        self.received += event.seq.0 - first.0 + 1;
    }

    /// Waits for one step.
    async fn step(&mut self) {
        let step = timeout(FOREVER, self.session.next()).await;
        self.apply(step.unwrap_or_else(|_| panic!("nothing comes after {}", self.next.before())));
    }

    /// Waits for everything up to this event.
    async fn reach(&mut self, seq: u64) {
        while self.next <= Seq(seq) {
            self.step().await;
        }
        assert_eq!(self.next, Seq(seq + 1));
    }

    async fn until_live(&mut self) {
        while !self.live {
            self.step().await;
        }
    }

    async fn until_end(&mut self) {
        while !self.ended {
            self.step().await;
        }
    }

    /// Checks that there is no step for this long.
    async fn expect_silence(&mut self, duration: Duration) {
        if let Ok(step) = timeout(duration, self.session.next()).await {
            panic!("unexpected {step:?}");
        }
    }
}

/// Random numbers, the same for the same seed.
#[derive(Debug)]
struct Rng(fastrand::Rng);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0.u64(..end)
    }

    /// True with this probability.
    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A duration below `end` milliseconds.
    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}

/// Lets every task do everything that it can do without waiting.
async fn settle() {
    sleep(MOMENT).await;
}
