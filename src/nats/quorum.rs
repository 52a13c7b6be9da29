//! Whose word is final: reads that are made while the leader that answers them is proven to have a quorum. What is read,
//! and what follows from it, is the caller's.
//!
//! A leader that is cut off from its followers goes on answering reads for 10 to 20 s, while they elect another one and
//! the log goes on without it. What it has is in the log; what it lacks proves nothing. The proof that a leader still is
//! one is its own view of its followers: `STREAM.INFO` says how long ago each was heard. A follower calls no election
//! before [`ELECTION_MIN`] after it heard its leader, so that until then there is no other leader if so many have heard
//! this one that the others are no majority. That is a lease, and a read that ends within it is final, if it went over
//! the same connection: then the same server answered it.
//!
//! What it does not cover: a follower that is restarted, and calls an election within a second of its start, while the
//! network between it and the leader is cut within the same four seconds. For this there is a second rule: a stream that
//! ends before what this process has seen of it is not believed at once. If it still is that short when such a leader
//! would have lost its quorum, then the stream has gone back: its store was restored, or lost what it had acknowledged.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::log::{Log, unavailable};
use super::queue::connections;
use super::setup;
use crate::config::{ELECTION_MIN, QUORUM_AGE, QUORUM_MARGIN, QUORUM_TRIES, SHORTER_WAIT};
use crate::source::Unavailable;
use crate::wire::{JobId, StreamSeq};

/// The stream that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// The log of this shard.
    Shard(u32),
    /// The work queue.
    Queue,
}

/// What is known of the leaders of all streams.
#[derive(Debug)]
pub(super) struct Leaders {
    shards: Box<[Leader]>,
    queue: Leader,
}

/// What is known of one stream's leader.
#[derive(Debug, Default)]
struct Leader {
    /// Locked while the leader is asked, so that one question is under way at a time.
    known: Mutex<Known>,
    /// The highest place that this process has seen in the stream.
    seen: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    proof: Option<Proof>,
    /// Since when the stream is said to end before what was seen of it.
    shorter_since: Option<Instant>,
}

/// A leader's quorum, as it was proven last.
#[derive(Clone, Copy, Debug)]
struct Proof {
    asked: Instant,
    /// Until when no other leader can have been elected; `None` when the stream has one replica.
    until: Option<Instant>,
    /// Over which connection, counted from the first.
    connection: u64,
}

impl Leaders {
    pub(super) fn new(shards: u32) -> Self {
        Self {
            shards: (0..shards).map(|_| Leader::default()).collect(),
            queue: Leader::default(),
        }
    }

    fn of(&self, stream: Of) -> &Leader {
        match stream {
            Of::Shard(shard) => &self.shards[shard as usize],
            Of::Queue => &self.queue,
        }
    }
}

impl Log {
    /// Makes a read, over the work connection, that is answered by a leader with a quorum.
    ///
    /// # Errors
    /// [`Unavailable`], also when the leader cannot prove its quorum, or lacks what this process has seen of the stream.
    pub(super) async fn proven<T, W>(&self, of: Of, read: impl Fn() -> W) -> Result<T, Unavailable>
    where
        W: Future<Output = Result<T, Unavailable>>,
    {
        for _ in 0..QUORUM_TRIES {
            let proof = self.prove(of).await?;
            let answer = read().await?;
            if proof.until.is_none_or(|until| Instant::now() < until)
                && proof.connection == connections(&self.nats.work)
            {
                return Ok(answer);
            }
        }
        Err(Unavailable(
            "the leader answers too slowly to be sure of its quorum".into(),
        ))
    }

    /// Takes note of a place where an event stands.
    pub(super) fn saw(&self, stream_seq: StreamSeq, job: &JobId) {
        self.leaders
            .of(Of::Shard(job.shard(self.shards)))
            .seen
            .fetch_max(stream_seq, Ordering::Relaxed);
    }

    async fn prove(&self, of: Of) -> Result<Proof, Unavailable> {
        let leader = self.leaders.of(of);
        let mut known = leader.known.lock().await;
        let connection = connections(&self.nats.work);
        if let Some(proof) = known.proof
            && proof.asked.elapsed() < QUORUM_AGE
            && proof.connection == connection
        {
            return Ok(proof);
        }
        known.proof = None;
        let stream = match of {
            Of::Shard(shard) => self.nats.names.chunks_stream(shard),
            Of::Queue => self.nats.names.jobs_stream(),
        };
        // Both before the question: what is seen while it is under way proves nothing against its answer.
        let (asked, seen) = (Instant::now(), leader.seen.load(Ordering::Relaxed));
        let info = setup::stream_info(&self.nats.work, &stream)
            .await
            .map_err(unavailable)?;
        let info = info.ok_or_else(|| Unavailable(format!("stream {stream} is gone")))?;
        let until = match quorum(&info["cluster"]) {
            Quorum::Alone => None,
            Quorum::Heard(ago) => Some(asked + (ELECTION_MIN - QUORUM_MARGIN).saturating_sub(ago)),
            Quorum::Unproven => Some(asked),
        };
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(Unavailable(format!(
                "the leader of {stream} cannot prove its quorum"
            )));
        }
        let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
        if last < seen {
            let since = *known.shorter_since.get_or_insert(asked);
            // The only replica is the stream, whatever it has.
            if until.is_some() && since.elapsed() < SHORTER_WAIT {
                info!(%stream, last, seen, "a leader lacks what was seen of its stream");
                return Err(Unavailable(format!(
                    "the leader of {stream} lacks what was seen of it"
                )));
            }
            warn!(%stream, last, seen, "the stream has gone back: restored, or its end was lost");
            leader.seen.store(last, Ordering::Relaxed);
        } else {
            leader.seen.fetch_max(last, Ordering::Relaxed);
        }
        known.shorter_since = None;
        let proof = Proof {
            asked,
            until,
            connection,
        };
        known.proof = Some(proof);
        Ok(proof)
    }
}

/// What a leader says of its followers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quorum {
    /// It has none and needs none.
    Alone,
    /// So long ago, or later, so many were heard that they are a majority with it.
    Heard(Duration),
    /// Too few were ever heard.
    Unproven,
}

fn quorum(cluster: &Value) -> Quorum {
    let followers = cluster["replicas"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    // With the leader itself one more than half.
    let needed = followers.len().div_ceil(2);
    // 0 stands for a follower that was never heard.
    let heard = followers
        .iter()
        .filter_map(|follower| follower["active"].as_u64().filter(|&ago| ago > 0));
    let mut heard: Vec<u64> = heard.collect();
    heard.sort_unstable();
    match needed.checked_sub(1) {
        None => Quorum::Alone,
        Some(last) => heard.get(last).map_or(Quorum::Unproven, |&ago| {
            Quorum::Heard(Duration::from_nanos(ago))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(active: &[u64]) -> Quorum {
        let replicas: Vec<_> = active
            .iter()
            .map(|active| json!({"active": active}))
            .collect();
        quorum(&json!({"leader": "n1", "replicas": replicas}))
    }

    #[test]
    fn a_majority_counts_the_leader_and_the_followers_that_were_heard_last() {
        let heard = |ago| Quorum::Heard(Duration::from_nanos(ago));
        assert_eq!(quorum(&Value::Null), Quorum::Alone);
        assert_eq!(of(&[]), Quorum::Alone);
        assert_eq!(of(&[7, 9]), heard(7));
        assert_eq!(of(&[9, 0]), heard(9));
        assert_eq!(of(&[0, 0]), Quorum::Unproven);
        assert_eq!(of(&[4, 9, 2, 8]), heard(4));
        assert_eq!(of(&[4, 0, 0, 0]), Quorum::Unproven);
        // Of two servers both are needed.
        assert_eq!(of(&[5]), heard(5));
        assert_eq!(of(&[0]), Quorum::Unproven);
    }
}
