//! Makes reads whose answer is final: a leader answers them that is proven to have a quorum. The
//! caller decides what to read.
//!
//! A leader that loses its followers keeps answering reads for 10 to 20 s, while they elect another
//! leader and the log continues without it. Everything that it returns is in the log, but it may
//! lack later messages. `STREAM.INFO` shows whether a leader still leads: it reports how long ago
//! the leader heard from each follower. A follower does not start an election within
//! [`ELECTION_MIN`] after it heard from its leader. Until then, no other leader can win a majority.
//! This is a lease: a read that ends within it is final, if it was made over the same connection
//! and therefore answered by the same server.
//!
//! The lease does not cover a follower that restarts and starts an election within a second, while
//! it loses its connection to the leader within the same four seconds. Therefore a second rule
//! applies: an answer in which the stream ends before a message that this process has seen is
//! rejected at first. If it is still the answer after [`SHORTER_WAIT`], which is longer than a
//! leader that lost its quorum can appear to have one, the stream was restored from an older state,
//! or its store has lost acknowledged messages.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::connect::Nats;
use super::info::{self, Follower, StreamInfo};
use crate::config::{ELECTION_MIN, QUORUM_AGE, QUORUM_MARGIN, QUORUM_TRIES, SHORTER_WAIT};
use crate::source::Unavailable;
use crate::wire::StreamSeq;

/// Which stream to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamId {
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
    /// Locked while the leader is asked, so that one reader asks at a time. The others share the
    /// result.
    state: Mutex<LeaderState>,
    /// The highest stream sequence that this process has seen in the stream.
    seen: AtomicU64,
}

#[derive(Debug, Default)]
struct LeaderState {
    proof: Option<Proof>,
    /// When the last request for a proof failed, and why.
    failure: Option<(Instant, Unavailable)>,
    /// Since when the stream is reported to end before `seen`.
    shorter_since: Option<Instant>,
}

/// The latest proof of a leader's quorum.
#[derive(Clone, Copy, Debug)]
struct Proof {
    asked_at: Instant,
    /// Until when no other leader can have been elected; `None` when the stream has one replica.
    until: Option<Instant>,
    /// The number of the connection it was received over.
    connection: u64,
}

impl Leaders {
    pub(super) fn new(shards: u32) -> Self {
        Self {
            shards: (0..shards).map(|_| Leader::default()).collect(),
            queue: Leader::default(),
        }
    }

    fn of(&self, stream: StreamId) -> &Leader {
        match stream {
            StreamId::Shard(shard) => &self.shards[shard as usize],
            StreamId::Queue => &self.queue,
        }
    }

    /// Makes a read over the work connection that a leader with a quorum answers.
    ///
    /// # Errors
    /// [`Unavailable`], also when the leader cannot prove its quorum, or lacks messages that this
    /// process has seen.
    pub(super) async fn proven<T, W>(
        &self,
        nats: &Nats,
        stream: StreamId,
        read: impl Fn() -> W,
    ) -> Result<T, Unavailable>
    where
        W: Future<Output = Result<T, Unavailable>>,
    {
        for _ in 0..QUORUM_TRIES {
            let proof = self.prove(nats, stream).await?;
            let answer = read().await?;
            if proof.until.is_none_or(|until| Instant::now() < until)
                && proof.connection == nats.work_connections()
            {
                return Ok(answer);
            }
        }
        Err(Unavailable(
            "the leader answers too slowly to be sure of its quorum".into(),
        ))
    }

    /// Records the stream sequence of a message.
    pub(super) fn record_seen(&self, stream: StreamId, stream_seq: StreamSeq) {
        self.of(stream)
            .seen
            .fetch_max(stream_seq, Ordering::Relaxed);
    }

    async fn prove(&self, nats: &Nats, stream: StreamId) -> Result<Proof, Unavailable> {
        let came = Instant::now();
        let mut state = self.of(stream).state.lock().await;
        let connection = nats.work_connections();
        if let Some(known) = state.known(came, connection) {
            return known;
        }
        state.proof = None;
        let result = self.ask(nats, stream, connection, &mut state).await;
        state.record(&result);
        result
    }

    async fn ask(
        &self,
        nats: &Nats,
        stream: StreamId,
        connection: u64,
        state: &mut LeaderState,
    ) -> Result<Proof, Unavailable> {
        let leader = self.of(stream);
        let stream = match stream {
            StreamId::Shard(shard) => nats.names.chunks_stream(shard),
            StreamId::Queue => nats.names.jobs_stream(),
        };
        // Both before the request: messages that are seen while it is in flight may not be in its
        // answer.
        let asked_at = Instant::now();
        let seen = leader.seen.load(Ordering::Relaxed);
        let info = info::stream(&nats.work, &stream).await?;
        let until = match quorum(&info.cluster.replicas) {
            Quorum::Alone => None,
            Quorum::Heard(ago) => {
                Some(asked_at + (ELECTION_MIN - QUORUM_MARGIN).saturating_sub(ago))
            }
            Quorum::Unproven => Some(asked_at),
        };
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(Unavailable(format!(
                "the leader of {stream} cannot prove its quorum"
            )));
        }
        leader.compare(state, &stream, &info, seen, until.is_none(), asked_at)?;
        Ok(Proof {
            asked_at,
            until,
            connection,
        })
    }
}

impl LeaderState {
    /// What a reader that came at this time need not ask for: a recent proof over this connection, or
    /// the failure of a request that it has waited for. Otherwise all that wait for a leader that does
    /// not answer would ask it, one after the other.
    fn known(&self, came: Instant, connection: u64) -> Option<Result<Proof, Unavailable>> {
        let is_valid =
            |proof: &Proof| proof.asked_at.elapsed() < QUORUM_AGE && proof.connection == connection;
        if let Some(proof) = self.proof.filter(is_valid) {
            return Some(Ok(proof));
        }
        let (failed_at, error) = self.failure.as_ref()?;
        (*failed_at > came).then(|| Err(error.clone()))
    }

    fn record(&mut self, result: &Result<Proof, Unavailable>) {
        match result {
            Ok(proof) => {
                self.proof = Some(*proof);
                self.failure = None;
            }
            Err(error) => self.failure = Some((Instant::now(), error.clone())),
        }
    }
}

impl Leader {
    /// Compares the end of the stream with the stream sequence that this process had `seen` before
    /// its request at `asked_at`.
    fn compare(
        &self,
        state: &mut LeaderState,
        stream: &str,
        info: &StreamInfo,
        seen: StreamSeq,
        is_alone: bool,
        asked_at: Instant,
    ) -> Result<(), Unavailable> {
        let last = info.state.last_seq;
        if last >= seen {
            self.seen.fetch_max(last, Ordering::Relaxed);
        } else {
            let since = *state.shorter_since.get_or_insert(asked_at);
            // The only replica is authoritative, whatever it has.
            if !is_alone && since.elapsed() < SHORTER_WAIT {
                info!(%stream, last, seen, "a leader lacks messages that this process has seen");
                return Err(Unavailable(format!(
                    "the leader of {stream} lacks messages that this process has seen"
                )));
            }
            warn!(%stream, last, seen, "the stream has lost messages: it was restored, or its store lost them");
            self.seen.store(last, Ordering::Relaxed);
        }
        state.shorter_since = None;
        Ok(())
    }
}

/// What a leader knows of its followers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quorum {
    /// It has no followers, and needs none.
    Alone,
    /// The leader and the followers heard from this long ago, or later, are a majority.
    Heard(Duration),
    /// It has never heard from enough followers.
    Unproven,
}

fn quorum(followers: &[Follower]) -> Quorum {
    // Together with the leader this is a majority.
    let needed = followers.len().div_ceil(2);
    // 0 means never.
    let heard = followers.iter().map(|follower| follower.active);
    let mut heard: Vec<u64> = heard.filter(|&ago| ago > 0).collect();
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
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn readers_share_a_recent_proof_and_a_failure_that_they_have_waited_for() {
        let proof = || Proof {
            asked_at: Instant::now(),
            until: None,
            connection: 1,
        };
        let mut state = LeaderState::default();
        let came = Instant::now();
        assert!(state.known(came, 1).is_none());
        advance(QUORUM_AGE).await;
        state.record(&Err(Unavailable("no answer".into())));
        assert!(matches!(state.known(came, 1), Some(Err(_))));
        assert!(state.known(Instant::now(), 1).is_none());
        state.record(&Ok(proof()));
        assert!(matches!(state.known(came, 1), Some(Ok(_))));
        assert!(state.known(came, 2).is_none());
        advance(QUORUM_AGE).await;
        assert!(state.known(came, 1).is_none());
    }

    fn of(active: &[u64]) -> Quorum {
        let followers = active.iter().map(|&active| Follower { active });
        quorum(&followers.collect::<Vec<_>>())
    }

    #[test]
    fn a_majority_counts_the_leader_and_the_most_recently_heard_followers() {
        let heard = |ago| Quorum::Heard(Duration::from_nanos(ago));
        assert_eq!(of(&[]), Quorum::Alone);
        assert_eq!(of(&[7, 9]), heard(7));
        assert_eq!(of(&[9, 0]), heard(9));
        assert_eq!(of(&[0, 0]), Quorum::Unproven);
        assert_eq!(of(&[4, 9, 2, 8]), heard(4));
        assert_eq!(of(&[4, 0, 0, 0]), Quorum::Unproven);
        // Both of two servers are needed.
        assert_eq!(of(&[5]), heard(5));
        assert_eq!(of(&[0]), Quorum::Unproven);
    }
}
