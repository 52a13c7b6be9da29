//! A job's events as pages of JSON, for clients that poll instead of following a stream. A page has
//! stored events or, if there are none, the first new ones while the client waits. The session
//! provides the events.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use futures_util::FutureExt as _;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::error::Problem;
use super::memory::{SplitBudget, SplitReservation};
use super::request::Wait;
use crate::config::{OPEN_WAIT, PAGE_BYTES_MAX, PAGE_RESERVED};
use crate::session::{Session, SessionError, Step};
use crate::source::EventSource;
use crate::wire::{Code, GapReason, Seq, Start, Stored};

/// A part of a job's log, and where the next part begins.
#[derive(Debug)]
struct EventPage {
    events: Vec<Arc<Stored>>,
    bytes: usize,
    limit: usize,
    missing: Option<Gap>,
    live: bool,
    next: Option<String>,
    reservation: SplitReservation,
    /// Whether there was no room for another event.
    is_out_of_room: bool,
}

/// Events that the log no longer has, before the events of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct Gap {
    /// The first of them.
    from: Seq,
    /// The last of them.
    to: Seq,
    /// Why they are gone.
    reason: GapReason,
}

/// The page of a session that begins at `start`. There is no session when the edge stops.
pub(super) async fn answer<S: EventSource>(
    session: Option<Session<S>>,
    start: Start,
    limit: usize,
    wait: Wait,
    stop: &CancellationToken,
    answers: &SplitBudget,
) -> Result<Response, Problem> {
    let mut session = session.ok_or(Code::Restarting)?;
    let mut page = EventPage::new(start, limit, answers.empty(PAGE_RESERVED));
    page.read(&mut session, wait.0, stop).await?;
    let json = page.to_json();
    Ok(page.reservation.respond(json))
}

impl EventPage {
    fn new(start: Start, limit: usize, reservation: SplitReservation) -> Self {
        let next = match start {
            Start::After(seq) => seq.to_string(),
            Start::Cursor(cursor) => cursor.to_string(),
        };
        Self {
            events: Vec::new(),
            bytes: 0,
            limit,
            missing: None,
            live: false,
            next: Some(next),
            reservation,
            is_out_of_room: false,
        }
    }

    /// Adds stored events. If there are none, waits for new ones.
    async fn read<S: EventSource>(
        &mut self,
        session: &mut Session<S>,
        wait: Duration,
        stop: &CancellationToken,
    ) -> Result<(), Problem> {
        let until = Instant::now() + if wait.is_zero() { OPEN_WAIT } else { wait };
        while self.wants_more(wait) {
            let step = if self.live && !self.is_empty() {
                session.next().now_or_never()
            } else {
                tokio::select! {
                    step = session.next() => Some(step),
                    () = sleep_until(until) => None,
                    () = stop.cancelled() => None,
                }
            };
            let Some(step) = step else { break };
            if matches!(step, Step::Rebuilt) {
                return Err(SessionError::CursorNotInLog.into());
            }
            if !self.add(step) {
                break;
            }
        }
        // There may be stored events that did not fit.
        self.live &= !self.is_full();
        if self.is_out_of_room && self.is_empty() {
            return Err(Code::Overloaded.into());
        }
        // A client that does not wait gets an error instead of an empty page if the log did not
        // answer in time.
        let is_known = self.live || self.next.is_none() || !self.is_empty();
        if is_known || !wait.is_zero() {
            Ok(())
        } else {
            Err(Code::Unavailable.into())
        }
    }

    fn wants_more(&self, wait: Duration) -> bool {
        let is_complete = self.next.is_none() || self.live && self.is_empty() && wait.is_zero();
        !is_complete && !self.is_full()
    }

    const fn is_full(&self) -> bool {
        self.is_out_of_room || self.events.len() >= self.limit || self.bytes >= PAGE_BYTES_MAX
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.missing.is_none()
    }

    /// Adds a step. Returns whether the page can take another one.
    fn add(&mut self, step: Step) -> bool {
        match step {
            Step::Events(events) => return events.into_iter().all(|event| self.push(event)),
            Step::Gap { .. } if !self.events.is_empty() => return false,
            Step::Gap { from, to } => {
                let from = self.missing.map_or(from, |missing| missing.from);
                self.missing = Some(Gap {
                    from,
                    to,
                    reason: GapReason::Expired,
                });
                self.next = Some(to.to_string());
            }
            Step::Live => self.live = true,
            Step::End | Step::Rebuilt => {
                self.live = false;
                self.next = None;
            }
        }
        true
    }

    /// Adds an event if the page is not full. One event always fits.
    fn push(&mut self, event: Arc<Stored>) -> bool {
        if self.is_full() {
            return false;
        }
        let bytes = self.bytes + event.json().len();
        if self.reservation.resize(bytes).is_err() {
            self.is_out_of_room = true;
            return false;
        }
        self.bytes = bytes;
        self.next = (!event.event_type.is_end()).then(|| event.cursor().to_string());
        if event.event_type.is_end() {
            self.live = false;
        }
        self.events.push(event);
        true
    }

    fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct PageRest<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            missing: Option<Gap>,
            live: bool,
            next: Option<&'a str>,
        }
        let mut out = Vec::with_capacity(self.bytes + self.events.len() + 256);
        out.extend_from_slice(br#"{"events":["#);
        for (n, event) in self.events.iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            out.extend_from_slice(event.json());
        }
        out.extend_from_slice(b"],");
        let rest = PageRest {
            missing: self.missing,
            live: self.live,
            next: self.next.as_deref(),
        };
        let rest =
            serde_json::to_vec(&rest).unwrap_or_else(|_| unreachable!("text and numbers are JSON"));
        out.extend_from_slice(&rest[1..]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::edge::memory::Memory;
    use crate::hub::Hub;
    use crate::runtime::Tasks;
    use crate::source::memory::{MemoryLog, chunk, job};
    use crate::wire::Body;
    use serde_json::{Value, json};
    use tokio::time::sleep;

    /// A log of this many chunks.
    fn log_of(count: usize) -> MemoryLog {
        let memory = MemoryLog::default();
        for _ in 0..count {
            memory.append(&job(), chunk("x"));
        }
        memory
    }

    /// Requests the page after `next`, as a client does.
    async fn ask(memory: &MemoryLog, next: &str, limit: usize, wait_s: u64) -> Value {
        let hub = Hub::new(memory.clone(), Tasks::default());
        let start = super::super::request::requested_start(None, None, Some(next)).unwrap();
        let mut session = Session::open(&hub, &job(), start).await.unwrap();
        let reservation = Memory::new(Budget::unlimited())
            .answers
            .empty(PAGE_RESERVED);
        let mut page = EventPage::new(start, limit, reservation);
        let stop = CancellationToken::new();
        page.read(&mut session, Duration::from_secs(wait_s), &stop)
            .await
            .unwrap();
        serde_json::from_slice(&page.to_json()).unwrap()
    }

    fn seqs(page: &Value) -> Vec<u64> {
        page["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["seq"].as_u64().unwrap())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn pages_follow_each_other_to_the_end() {
        let memory = log_of(6);
        memory.append(&job(), Body::Cancelled {});
        let mut next = "0".to_owned();
        let mut all = Vec::new();
        for _ in 0..3 {
            let page = ask(&memory, &next, 3, 0).await;
            assert_eq!(page["live"], false, "{page}");
            all.push(seqs(&page));
            next = page["next"].as_str().unwrap_or("none").to_owned();
        }
        assert_eq!(
            (all, next.as_str()),
            (vec![vec![1, 2, 3], vec![4, 5, 6], vec![7]], "none")
        );
        let end = memory.events(&job())[6].cursor().to_string();
        assert_eq!(
            ask(&memory, &end, 3, 30).await,
            json!({"events": [], "live": false, "next": null})
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_with_the_last_event_of_a_running_job_is_live_and_has_a_next() {
        let memory = log_of(2);
        let page = ask(&memory, "0", 100, 0).await;
        assert_eq!((seqs(&page), &page["live"]), (vec![1, 2], &json!(true)));
        let next = page["next"].as_str().unwrap();
        assert_eq!(next, memory.events(&job())[1].cursor().to_string());
        assert_eq!(
            ask(&memory, next, 100, 0).await,
            json!({"events": [], "live": true, "next": next})
        );
        // A job without events has no cursor.
        let nothing = json!({"events": [], "live": true, "next": "0"});
        assert_eq!(ask(&MemoryLog::default(), "0", 100, 0).await, nothing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_client_is_answered_as_soon_as_there_is_an_event_or_at_the_timeout() {
        let memory = log_of(1);
        let begun = Instant::now();
        assert_eq!(
            ask(&memory, "1", 100, 30).await,
            json!({"events": [], "live": true, "next": "1"})
        );
        assert_eq!(begun.elapsed(), Duration::from_secs(30));
        let writes = async {
            sleep(Duration::from_secs(7)).await;
            memory.append(&job(), chunk("y"));
            memory.append(&job(), chunk("z"));
        };
        let (page, ()) = tokio::join!(ask(&memory, "1", 100, 30), writes);
        assert_eq!((seqs(&page), &page["live"]), (vec![2, 3], &json!(true)));
        assert_eq!(begun.elapsed(), Duration::from_secs(37));
    }

    #[tokio::test(start_paused = true)]
    async fn stored_events_are_returned_without_waiting() {
        let memory = log_of(5);
        let begun = Instant::now();
        let page = ask(&memory, "2", 100, 30).await;
        assert_eq!((seqs(&page), &page["live"]), (vec![3, 4, 5], &json!(true)));
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn expired_events_are_reported_before_the_remaining_ones() {
        let memory = log_of(9);
        memory.expire(&job(), Seq(4));
        let page = ask(&memory, "2", 2, 0).await;
        assert_eq!(
            page["missing"],
            json!({"from": 3, "to": 4, "reason": "expired"})
        );
        assert_eq!((seqs(&page), &page["live"]), (vec![5, 6], &json!(false)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_is_bounded_in_bytes_and_has_at_least_one_event() {
        let memory = MemoryLog::default();
        for _ in 0..5 {
            memory.append(&job(), chunk("x".repeat(400_000)));
        }
        assert_eq!(seqs(&ask(&memory, "0", 100, 0).await), [1, 2, 3]);
        memory.append(&job(), chunk("x".repeat(2 * PAGE_BYTES_MAX)));
        memory.append(&job(), chunk("x"));
        assert_eq!(seqs(&ask(&memory, "5", 100, 0).await), [6]);
    }

    #[tokio::test(start_paused = true)]
    async fn unread_pages_hold_limited_memory_and_later_ones_are_refused() {
        let log = MemoryLog::default();
        for _ in 0..10 {
            log.append(&job(), chunk("x".repeat(100_000)));
        }
        let memory = Memory::new(Budget::unlimited());
        let hub = Hub::new(log, Tasks::default());
        let ask = || async {
            let session = Session::open(&hub, &job(), Start::After(Seq(0)))
                .await
                .unwrap();
            let stop = CancellationToken::new();
            let wait = Wait::default();
            answer(
                Some(session),
                Start::After(Seq(0)),
                100,
                wait,
                &stop,
                &memory.answers,
            )
            .await
        };
        let mut pages = Vec::new();
        let refused = loop {
            match ask().await {
                Ok(page) => pages.push(page),
                Err(problem) => break problem.code(),
            }
            assert!(pages.len() < 100);
        };
        assert_eq!(refused, Code::Overloaded);
        assert!(memory.whole.used() <= crate::config::ANSWERS_BYTES);
        drop(pages);
        assert_eq!(memory.whole.used(), 0);
        assert!(ask().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_does_not_answer_is_an_error() {
        let memory = log_of(3);
        let hub = Hub::new(memory.clone(), Tasks::default());
        let mut session = Session::open(&hub, &job(), Start::After(Seq(0)))
            .await
            .unwrap();
        memory.reachable(false);
        let reservation = Memory::new(Budget::unlimited())
            .answers
            .empty(PAGE_RESERVED);
        let mut page = EventPage::new(Start::After(Seq(0)), 100, reservation);
        let read = page
            .read(&mut session, Duration::ZERO, &CancellationToken::new())
            .await;
        assert_eq!(read.unwrap_err().code(), Code::Unavailable);
    }
}
