//! Random faults over two edges and one log: each client gets every event once and in order, or as
//! part of a gap if it has expired.

use std::cell::Cell;

use futures_util::future::join_all;
use tokio::runtime::Builder;

use super::*;
use crate::budget::Budget;
use crate::config::{FEED_BYTES, FEED_LINGER, FEED_STEP};
use crate::hub::Siblings;

const SEEDS: u64 = 400;
const CLIENTS: u64 = 4;

/// One run: a log and two edges.
struct Run {
    seed: u64,
    memory: MemoryLog,
    edges: [Arc<Hub<MemoryLog>>; 2],
    /// The number of the end event.
    end: u64,
    /// The last event that has expired.
    expired: Cell<u64>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let memory = MemoryLog::default();
        // Two edges, or two threads of one.
        let siblings = [Siblings::default(), Siblings::default()];
        // In a third of the runs, there is no room for a large event, not even for the newest one.
        let limit = if seed.is_multiple_of(3) {
            2 * (FEED_BYTES + FEED_STEP)
        } else {
            usize::MAX
        };
        let edges = [0, (seed % 2) as usize].map(|of| {
            let budget = Budget::new(limit);
            Hub::within(memory.clone(), Tasks::default(), budget, &siblings[of])
        });
        Self {
            seed,
            memory,
            edges,
            end: 1 + Rng::new(seed).below(120),
            expired: Cell::new(0),
        }
    }

    /// Stores the job's events, and those of another job between them.
    async fn write(&self, mut rng: Rng) {
        let pace = 1 + rng.below(300);
        let forges = rng.percent(50);
        // Large events are soon evicted from the history.
        let size = if rng.percent(30) { 20_000 } else { 10 };
        for seq in 1..=self.end {
            if rng.percent(40) {
                self.memory.append(&other_job(), chunk("else"));
            }
            if rng.percent(70) {
                sleep(rng.millis(pace)).await;
            }
            if forges && rng.percent(20) {
                let wrong = [
                    seq.saturating_sub(1),
                    seq + 1,
                    seq + 2,
                    1,
                    rng.below(2 * self.end),
                ];
                forge(&self.memory, wrong[rng.below(5) as usize], seq);
            }
            self.memory.append(
                &job(),
                if seq == self.end {
                    done()
                } else {
                    chunk("x".repeat(size))
                },
            );
        }
    }

    /// Causes faults for a while.
    async fn disturb(&self, mut rng: Rng) {
        self.memory.page(1 + rng.below(20) as usize);
        self.memory.latency(rng.millis(15));
        for _ in 0..rng.below(60) {
            let few = rng.below(4) as usize;
            match rng.below(11) {
                0 | 1 => self.memory.lose(few),
                2 => self.memory.double(few),
                3 => self.memory.hold(few),
                4 => self.memory.release(),
                5 => self.memory.cut(few),
                6 => self.memory.stale(rng.below(30)),
                7 => self.memory.reachable(rng.percent(60)),
                8 => self.memory.disturb(),
                9 => self.memory.close(),
                _ => self.expire(&mut rng),
            }
            sleep(rng.millis(400)).await;
        }
        self.memory.stale(0);
        self.memory.reachable(true);
        self.memory.release();
    }

    /// Lets some events expire, but never the last one, which may be the end.
    fn expire(&self, rng: &mut Rng) {
        let events = self.memory.events(&job());
        if let Some(last) = events.last().filter(|_| rng.percent(40)) {
            let up_to = rng.below(last.seq.0);
            self.memory.expire(&job(), Seq(up_to));
            self.expired.set(self.expired.get().max(up_to));
        }
    }

    /// A client that reconnects to either edge until it has the end.
    async fn read(&self, mut rng: Rng) {
        let mut start = FROM_START;
        let mut reported = 0;
        loop {
            sleep(rng.millis(1000)).await;
            let hub = &self.edges[rng.below(2) as usize];
            let mut client = match Client::open(hub, start).await {
                Ok(client) => client,
                Err(SessionError::Unavailable(_)) => continue,
                Err(error) => panic!("seed {}: {start:?} is refused: {error}", self.seed),
            };
            if rng.percent(30) {
                let room = usize::try_from(rng.below(4_000)).unwrap();
                client.session.compact_stored(&Budget::new(room));
            }
            let steps = if rng.percent(60) {
                rng.below(12)
            } else {
                u64::MAX
            };
            self.watch(&mut client, steps, &mut rng).await;
            reported += client.received
                + client
                    .gaps
                    .iter()
                    .map(|(from, to)| to - from + 1)
                    .sum::<u64>();
            if client.ended {
                assert_eq!(
                    (client.next, reported),
                    (Seq(self.end + 1), self.end),
                    "seed {}",
                    self.seed
                );
                return;
            }
            let seq = client.next.before();
            // There is no cursor after a gap.
            let cursor = client
                .cursor
                .filter(|cursor| cursor.seq == seq && rng.percent(70));
            start = cursor.map_or(Start::After(seq), Start::Cursor);
        }
    }

    /// Takes some steps, with short waits that are dropped and long ones.
    async fn watch(&self, client: &mut Client, steps: u64, rng: &mut Rng) {
        let mut waits = 0;
        for _ in 0..steps {
            if client.ended {
                return;
            }
            let wait = if rng.percent(50) {
                rng.millis(40)
            } else {
                Duration::from_secs(5)
            };
            if let Ok(step) = timeout(wait, client.session.next()).await {
                if let Step::Gap { to, .. } = &step {
                    assert!(
                        to.0 <= self.expired.get(),
                        "seed {}: {step:?} was stored",
                        self.seed
                    );
                }
                client.apply(step);
                waits = 0;
            }
            waits += 1;
            assert!(
                waits < 2000,
                "seed {}: nothing comes after {}",
                self.seed,
                client.next.before()
            );
            if rng.percent(10) {
                sleep(rng.millis(2000)).await;
            }
        }
    }

    async fn run(self) {
        let rng = |n: u64| Rng::new(self.seed * 1000 + n);
        let clients = join_all((0..CLIENTS).map(|n| self.read(rng(10 + n))));
        tokio::join!(self.write(rng(1)), self.disturb(rng(2)), clients);
        sleep(FEED_LINGER * 2).await;
        let remaining: Vec<_> = self.edges.iter().map(|hub| hub.feeds()).collect();
        assert_eq!(
            (remaining, self.memory.followers()),
            (vec![0, 0], 0),
            "seed {}",
            self.seed
        );
        let read = self.memory.calls().replay;
        assert!(
            read < 3000,
            "seed {}: the log was read {read} times",
            self.seed
        );
    }
}

#[test]
fn each_client_gets_every_event_once_or_a_gap_if_it_expired() {
    for seed in 0..SEEDS {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(Run::new(seed).run());
    }
}
