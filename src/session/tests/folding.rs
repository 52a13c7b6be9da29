//! A job's state is all events of its log, folded.

use super::*;
use crate::source::{LogFold, Unavailable, fold, fold_until};
use crate::wire::JobState;

/// Records what is applied to it.
#[derive(Debug, Default)]
struct Recorded(Vec<String>);

impl LogFold for Recorded {
    fn apply(&mut self, event: &Stored) {
        self.0.push(event.seq.to_string());
    }

    fn missing(&mut self, from: Seq, to: Seq) {
        self.0.push(format!("{from}-{to} missing"));
    }

    fn size(&self) -> usize {
        self.0.len()
    }
}

/// A log with two attempts and, for the second, `count` chunks.
fn two_attempts(count: u64) -> MemoryLog {
    let memory = MemoryLog::default();
    let started = Body::Started {
        kind: "demo".parse().unwrap(),
        worker: "w".into(),
        continues: false,
    };
    memory.append(
        &job(),
        Body::queued("demo".parse().unwrap(), serde_json::Value::Null),
    );
    memory.append(&job(), started.clone());
    append(&memory, 3);
    memory.append(&job(), started);
    append(&memory, count);
    memory
}

/// The events of the log, folded one by one.
fn expected(memory: &MemoryLog) -> serde_json::Value {
    let mut state = JobState::new(job());
    memory
        .events(&job())
        .iter()
        .for_each(|event| state.apply(event));
    serde_json::to_value(state).unwrap()
}

async fn folded(memory: &MemoryLog) -> serde_json::Value {
    let state = timeout(FOREVER, fold(memory, &job()))
        .await
        .expect("folding ends")
        .unwrap();
    serde_json::to_value(state.unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_state_is_the_whole_log_folded() {
    let memory = two_attempts(200);
    assert_eq!(folded(&memory).await, expected(&memory));
    memory.append(&job(), done());
    assert_eq!(folded(&memory).await, expected(&memory));
    assert_eq!(memory.calls().replay, 2);
}

#[tokio::test(start_paused = true)]
async fn a_job_without_events_has_no_state() {
    assert!(fold(&MemoryLog::default(), &job()).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stale_replica_does_not_shorten_a_state() {
    for stale in [1, 3, 20, 1000] {
        let memory = two_attempts(20);
        memory.stale(stale);
        memory.page(3);
        memory.cut(2);
        assert_eq!(folded(&memory).await, expected(&memory), "lag {stale}");
    }
}

#[tokio::test(start_paused = true)]
async fn expired_events_are_not_part_of_a_state() {
    for expired in [1, 2, 5, 6, 20] {
        let memory = two_attempts(20);
        memory.expire(&job(), Seq(expired));
        memory.stale(2);
        assert_eq!(folded(&memory).await, expected(&memory), "up to {expired}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_expires_while_it_is_folded_gives_a_truncated_state() {
    for more in [0, 2] {
        let memory = two_attempts(20);
        memory.latency(MOMENT * 10);
        let last = Seq(memory.events(&job()).len() as u64);
        let expire = async {
            sleep(MOMENT * 15).await;
            memory.expire(&job(), last);
            append(&memory, more);
        };
        let (state, ()) = tokio::join!(folded(&memory), expire);
        assert_eq!(state["seq"], 0, "every event had expired");
        assert_eq!(state["truncated"], true);
        assert!(memory.calls().replay < 10);
    }
}

#[tokio::test(start_paused = true)]
async fn folding_fails_when_the_leader_does_not_answer() {
    let memory = two_attempts(1);
    memory.reachable(false);
    assert!(fold(&memory, &job()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_fold_gets_each_event_and_the_gap_before_the_first_one() {
    let memory = two_attempts(2);
    memory.expire(&job(), Seq(4));
    memory.page(2);
    let mut recorded = Recorded::default();
    let resize = |_| Ok::<_, Unavailable>(());
    let job = job();
    let folding = fold_until(&memory, &job, Seq(8), &mut recorded, resize);
    let folded = timeout(FOREVER, folding).await.expect("folding ends");
    folded.unwrap();
    assert_eq!(recorded.0, ["1-4 missing", "5", "6", "7", "8"]);
}

#[tokio::test(start_paused = true)]
async fn folding_stops_once_the_size_is_refused() {
    let memory = two_attempts(20);
    let mut recorded = Recorded::default();
    let resize = |size: usize| match size {
        ..3 => Ok(()),
        _ => Err(Unavailable("full".into())),
    };
    let job = job();
    let folding = fold_until(&memory, &job, Seq(26), &mut recorded, resize);
    let refused = timeout(FOREVER, folding).await.expect("folding ends");
    assert_eq!(refused.unwrap_err().0, "full");
    assert_eq!(recorded.0.len(), 3);
}
