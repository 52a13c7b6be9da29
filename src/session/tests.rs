//! Tests of sessions over a hub and a source in memory, with paused time. What they share is here: an edge, a job's
//! events, and a client that checks all that it is told.

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
use crate::hub::Hub;
use crate::runtime::Tasks;
use crate::source::memory::MemoryLog;
use crate::wire::{Body, Channel, Cursor, Event, JobId, Seq, Start, Stored};

/// Longer than anything takes; who waits for so long waits for ever.
const FOREVER: Duration = Duration::from_secs(600);
/// Long enough for every task to do what it can do at once.
const MOMENT: Duration = Duration::from_millis(1);
const FROM_START: Start = Start::After(Seq(0));

fn job() -> JobId {
    "j".parse().unwrap()
}

fn other_job() -> JobId {
    "other".parse().unwrap()
}

fn edge(memory: &MemoryLog) -> Arc<Hub<MemoryLog>> {
    Hub::new(memory.clone(), Tasks::default())
}

fn chunk(text: impl Into<String>) -> Body {
    Body::Chunk {
        text: text.into(),
        channel: Channel::Output,
    }
}

fn done() -> Body {
    Body::Done {
        usage: None,
        finish_reason: None,
    }
}

/// Appends `count` chunks to the job, each behind one of another job.
fn append(memory: &MemoryLog, count: u64) {
    for i in 0..count {
        memory.append(&other_job(), chunk("else"));
        memory.append(&job(), chunk(format!("{i} ")));
    }
}

/// Stores what has the form of an event of the job and the number `seq`, unless that is the true next one. Says whether it
/// was stored.
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

/// A client: it remembers where it is, and fails when it is told anything else than what comes next.
#[derive(Debug)]
struct Client {
    session: Session<MemoryLog>,
    /// The number of the event, or of the missing one, that it must be told next.
    next: Seq,
    cursor: Option<Cursor>,
    /// How many events it was given.
    given: u64,
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
        let (cursor, gaps) = (None, Vec::new());
        Ok(Self {
            session,
            next,
            cursor,
            given: 0,
            gaps,
            live: false,
            ended: false,
        })
    }

    /// A client of a job that can be watched from the first event.
    async fn from_start(hub: &Arc<Hub<MemoryLog>>) -> Self {
        Self::open(hub, FROM_START).await.unwrap()
    }

    fn take(&mut self, step: Step) {
        assert!(!self.ended, "{step:?} after the end");
        match step {
            Step::Events(events) => {
                assert!(!events.is_empty(), "a step tells something");
                events.iter().for_each(|event| self.take_event(event));
            }
            Step::Gap { from, to } => {
                assert!(
                    from == self.next && to >= from,
                    "{from} to {to} missing, {} awaited",
                    self.next
                );
                self.next = to.successor();
                self.gaps.push((from.0, to.0));
            }
            Step::Live => {
                assert!(!self.live, "live is told once");
                self.live = true;
            }
            Step::End => self.ended = true,
            Step::Rebuilt => panic!("the log is the same"),
        }
    }

    fn take_event(&mut self, event: &Stored) {
        assert_eq!(event.seq, self.next, "each event once, in order");
        self.next = event.seq.successor();
        self.cursor = Some(event.cursor());
        self.given += 1;
    }

    /// Waits for one step.
    async fn step(&mut self) {
        let step = timeout(FOREVER, self.session.next()).await;
        self.take(step.unwrap_or_else(|_| panic!("nothing comes after {}", self.next.before())));
    }

    /// Waits until everything up to this event was told.
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

    /// Makes sure that nothing is told for a while.
    async fn rests(&mut self, how_long: Duration) {
        if let Ok(step) = timeout(how_long, self.session.next()).await {
            panic!("{step:?} though nothing happened");
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

    /// A number from 0 up to, but without, `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0.u64(..end)
    }

    /// Whether something happens that happens so often in a hundred times.
    fn percent(&mut self, often: u64) -> bool {
        self.below(100) < often
    }

    /// A time shorter than `end` milliseconds.
    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}

/// Lets every task do what it can do at once.
async fn settle() {
    sleep(MOMENT).await;
}
