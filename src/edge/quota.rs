//! The limits of one subject, over all threads of an edge: connections, submissions per second, and
//! jobs in flight. The refusal of a subject that reaches one of them says when to try again; other
//! subjects are not affected.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use tokio::time::Instant;

use crate::budget::LimitReached;
use crate::config::{
    QUOTA_PROBE_JOBS, QUOTA_WINDOW, SUBJECT_CONNECTIONS, SUBJECT_JOBS, SUBJECT_JOBS_KEPT,
    SUBJECT_KEPT, SUBJECT_SUBMITS_PER_S, TICKETS_PER_SUBJECT,
};
use crate::fair_slots::FairCount;
use crate::wire::JobId;
use crate::wire::limits::{RETRY_AFTER_S, TICKET_TTL_MS};

/// What one subject may do at an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubjectLimits {
    /// How many streams it may have open: WebSockets, Socket.IO clients and event streams.
    pub connections: usize,
    /// How many jobs it may submit per second.
    pub submits_per_s: u32,
    /// How many of the jobs that it submitted may be queued or running.
    pub jobs: usize,
}

impl Default for SubjectLimits {
    fn default() -> Self {
        Self {
            connections: SUBJECT_CONNECTIONS,
            submits_per_s: SUBJECT_SUBMITS_PER_S,
            jobs: SUBJECT_JOBS,
        }
    }
}

/// A limit with a policy of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quota {
    /// Connections of one address.
    Address,
    /// Streams of one subject.
    Connections,
    /// Submissions of one subject.
    Submits,
    /// Jobs of one subject that have not ended.
    Jobs,
}

/// How often each limit was reached. That is rare, so all threads share the counters.
static REACHED: [AtomicU64; Quota::ALL.len()] = [const { AtomicU64::new(0) }; Quota::ALL.len()];

impl Quota {
    pub(super) const ALL: [Self; 4] = [Self::Address, Self::Connections, Self::Submits, Self::Jobs];

    /// Its name in responses and metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Connections => "connections",
            Self::Submits => "submits",
            Self::Jobs => "jobs",
        }
    }

    /// How often it was reached since the process started.
    pub(super) fn reached(self) -> u64 {
        REACHED[self as usize].load(Ordering::Relaxed)
    }
}

/// A client has reached a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QuotaReached {
    pub(super) quota: Quota,
    pub(super) limit: usize,
    /// The seconds to which the limit applies, if it is a rate.
    pub(super) window_s: Option<u64>,
    /// In how many seconds the client should try again.
    pub(super) retry_s: u64,
}

impl QuotaReached {
    /// Counts that a limit was reached.
    pub(super) fn of(quota: Quota, limit: usize) -> Self {
        REACHED[quota as usize].fetch_add(1, Ordering::Relaxed);
        Self {
            quota,
            limit,
            window_s: None,
            retry_s: RETRY_AFTER_S,
        }
    }

    /// What is wrong, for people.
    pub(super) fn message(&self) -> String {
        let Self { limit, retry_s, .. } = self;
        let what = match self.quota {
            Quota::Address => format!("{limit} connections of one address"),
            Quota::Connections => format!("{limit} open streams of one subject"),
            Quota::Submits => format!("{limit} submissions per second of one subject"),
            Quota::Jobs => format!("{limit} jobs of one subject that have not ended"),
        };
        format!("The limit is {what}. Try again in {retry_s} s.")
    }

    /// The header fields of a response: those of draft-ietf-httpapi-ratelimit-headers.
    pub(super) fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let [policy, limit] = self.fields();
        let fields = [
            (HeaderName::from_static("ratelimit-policy"), policy),
            (HeaderName::from_static("ratelimit"), limit),
            (header::RETRY_AFTER, self.retry_s.to_string()),
        ];
        let texts = fields.into_iter();
        texts
            .filter_map(|(name, text)| Some((name, HeaderValue::try_from(text).ok()?)))
            .collect()
    }

    /// The values of `RateLimit-Policy` and `RateLimit`.
    fn fields(&self) -> [String; 2] {
        let name = self.quota.as_str();
        let window = self.window_s.map(|window| format!(";w={window}"));
        let policy = format!("\"{name}\";q={}{}", self.limit, window.unwrap_or_default());
        [policy, format!("\"{name}\";r=0;t={}", self.retry_s)]
    }
}

/// What the subjects of an edge use. It remembers nothing about a subject that uses nothing.
#[derive(Debug)]
pub(super) struct SubjectUsages {
    limits: SubjectLimits,
    by_name: Mutex<HashMap<String, Arc<SubjectUsage>>>,
}

/// What one subject uses. All of its clients share it.
#[derive(Debug)]
pub(super) struct SubjectUsage {
    limits: SubjectLimits,
    used: Mutex<Used>,
}

#[derive(Debug)]
struct Used {
    /// Streams. A job holds those whose tokens are for this job only.
    connections: FairCount<String>,
    /// Submissions that may follow at once, and since when there are that many.
    submits: f64,
    submits_at: Instant,
    /// Jobs that are being submitted.
    submitting: usize,
    /// The jobs that were in flight when they were last looked at.
    jobs: VecDeque<JobId>,
    tickets: TicketWindow,
}

/// How many tickets were issued since a time.
#[derive(Debug, Default)]
pub(super) struct TicketWindow {
    since: Option<Instant>,
    issued: usize,
}

/// An open stream of a subject, until it is dropped. Boxed, so that a client without a token takes
/// little memory for it.
#[derive(Debug)]
pub(super) struct SubjectConnection(Box<CountedStream>);

#[derive(Debug)]
struct CountedStream {
    usage: Arc<SubjectUsage>,
    only_job: Option<String>,
}

/// A job of a subject that is being submitted, until it is dropped.
#[derive(Debug)]
pub(super) struct JobInFlight(Arc<SubjectUsage>);

impl SubjectUsages {
    pub(super) fn new(limits: SubjectLimits) -> Self {
        Self {
            limits,
            by_name: Mutex::default(),
        }
    }

    /// What a subject uses.
    pub(super) fn of(&self, name: &str) -> Arc<SubjectUsage> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = by_name.get(name) {
            return Arc::clone(usage);
        }
        if by_name.len() == by_name.capacity() {
            by_name.retain(|_, usage| Arc::strong_count(usage) > 1 || !usage.is_unused());
            // Room for as many again: if few are unused, each new subject would look at all others.
            let room = by_name.len();
            by_name.reserve(room);
        }
        let usage = Arc::new(SubjectUsage::new(self.limits));
        by_name.insert(name.to_owned(), Arc::clone(&usage));
        usage
    }
}

impl SubjectUsage {
    fn new(limits: SubjectLimits) -> Self {
        Self {
            limits,
            used: Mutex::new(Used {
                connections: FairCount::new(),
                submits: f64::from(limits.submits_per_s),
                submits_at: Instant::now(),
                submitting: 0,
                jobs: VecDeque::new(),
                tickets: TicketWindow::default(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether forgetting it changes nothing, or nothing but that jobs which it submitted long ago
    /// no longer count: they would be remembered for as long as the edge runs.
    fn is_unused(&self) -> bool {
        let used = self.lock();
        let rest = if used.jobs.is_empty() {
            QUOTA_WINDOW
        } else {
            SUBJECT_KEPT
        };
        let is_rested = used.submits_at.elapsed() >= rest && used.tickets.is_over();
        used.connections.taken() == 0 && used.submitting == 0 && is_rested
    }

    /// Counts a ticket.
    pub(super) fn count_ticket(&self) -> Result<(), LimitReached> {
        self.lock().tickets.count(TICKETS_PER_SUBJECT)
    }

    /// Counts a stream. An application gives tokens for one job to its users, and these tokens have
    /// its subject. Such a job gets no more than its share (see [`FairCount`]), so that a client with
    /// one such token cannot use up the streams of all others.
    pub(super) fn connect(
        self: &Arc<Self>,
        only_job: Option<&str>,
    ) -> Result<SubjectConnection, QuotaReached> {
        let only_job = only_job.map(str::to_owned);
        let limit = self.limits.connections;
        let counted = self.lock().connections.acquire(limit, only_job.as_ref());
        counted.map_err(|LimitReached| QuotaReached::of(Quota::Connections, limit))?;
        Ok(SubjectConnection(Box::new(CountedStream {
            usage: Arc::clone(self),
            only_job,
        })))
    }

    /// Counts a submission, whatever becomes of it. After a pause, as many as in one second may
    /// follow at once.
    pub(super) fn count_submit(&self) -> Result<(), QuotaReached> {
        let per_s = f64::from(self.limits.submits_per_s);
        let mut used = self.lock();
        let elapsed = used.submits_at.elapsed().div_duration_f64(QUOTA_WINDOW);
        used.submits_at = Instant::now();
        used.submits = (used.submits + elapsed * per_s).min(per_s);
        if used.submits < 1.0 {
            return Err(QuotaReached {
                window_s: Some(QUOTA_WINDOW.as_secs()),
                ..QuotaReached::of(Quota::Submits, self.limits.submits_per_s as usize)
            });
        }
        used.submits -= 1.0;
        Ok(())
    }

    /// Counts a job that is being submitted.
    pub(super) fn begin_job(self: &Arc<Self>) -> Result<JobInFlight, QuotaReached> {
        let mut used = self.lock();
        if used.submitting + used.jobs.len() >= self.limits.jobs {
            return Err(QuotaReached::of(Quota::Jobs, self.limits.jobs));
        }
        used.submitting += 1;
        Ok(JobInFlight(Arc::clone(self)))
    }

    /// Whether [`Self::begin_job`] would be refused, and jobs that may have ended since they were
    /// last looked at. Call [`Self::forget`] with those that have.
    pub(super) fn jobs_to_look_at(&self) -> Vec<JobId> {
        let mut used = self.lock();
        if used.submitting + used.jobs.len() < self.limits.jobs {
            return Vec::new();
        }
        let count = used.jobs.len().min(QUOTA_PROBE_JOBS);
        used.jobs.rotate_left(count);
        used.jobs.iter().rev().take(count).cloned().collect()
    }

    /// Forgets jobs that have ended.
    pub(super) fn forget(&self, ended: &[JobId]) {
        let mut used = self.lock();
        used.jobs.retain(|job| !ended.contains(job));
    }
}

impl TicketWindow {
    /// Counts a ticket, unless `limit` may be valid.
    pub(super) fn count(&mut self, limit: usize) -> Result<(), LimitReached> {
        if self.is_over() {
            *self = Self {
                since: Some(Instant::now()),
                issued: 0,
            };
        }
        if self.issued >= limit {
            return Err(LimitReached);
        }
        self.issued += 1;
        Ok(())
    }

    /// Whether no ticket of it is valid any more.
    fn is_over(&self) -> bool {
        let window = Duration::from_millis(TICKET_TTL_MS);
        self.since.is_none_or(|since| since.elapsed() >= window)
    }
}

impl JobInFlight {
    /// The job is queued under this id.
    pub(super) fn queued(self, id: &JobId) {
        let mut used = self.0.lock();
        if used.jobs.len() >= SUBJECT_JOBS_KEPT {
            used.jobs.pop_front();
        }
        used.jobs.push_back(id.clone());
    }
}

impl Drop for JobInFlight {
    fn drop(&mut self) {
        self.0.lock().submitting -= 1;
    }
}

impl Drop for SubjectConnection {
    fn drop(&mut self) {
        let CountedStream { usage, only_job } = &*self.0;
        usage.lock().connections.release(only_job.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const LIMITS: SubjectLimits = SubjectLimits {
        connections: 2,
        submits_per_s: 10,
        jobs: 3,
    };

    #[tokio::test(start_paused = true)]
    async fn a_subject_submits_at_most_its_rate_and_others_are_not_affected() {
        let usages = SubjectUsages::new(LIMITS);
        let a = usages.of("a");
        let b = usages.of("b");
        for _ in 0..10 {
            assert_eq!(a.count_submit(), Ok(()));
        }
        let reached = a.count_submit().unwrap_err();
        assert_eq!(
            reached.fields(),
            [r#""submits";q=10;w=1"#, r#""submits";r=0;t=1"#]
        );
        assert_eq!(b.count_submit(), Ok(()));
        advance(Duration::from_millis(201)).await;
        assert_eq!(usages.of("a").count_submit(), Ok(()));
        assert_eq!(a.count_submit(), Ok(()));
        assert!(a.count_submit().is_err());
        advance(Duration::from_secs(3600)).await;
        let burst = (0..100).filter(|_| a.count_submit().is_ok()).count();
        assert_eq!(burst, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_counts_until_it_is_dropped() {
        let usages = SubjectUsages::new(LIMITS);
        let held = [usages.of("a").connect(None), usages.of("a").connect(None)];
        assert!(held.iter().all(Result::is_ok));
        let before = Quota::Connections.reached();
        let reached = usages.of("a").connect(None).unwrap_err();
        assert_eq!((reached.quota, reached.limit), (Quota::Connections, 2));
        assert!(Quota::Connections.reached() > before);
        assert!(usages.of("b").connect(None).is_ok());
        drop(held);
        assert!(usages.of("a").connect(None).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_tokens_for_one_job_use_up_at_most_three_quarters_of_the_streams() {
        let limits = SubjectLimits {
            connections: 100,
            ..LIMITS
        };
        let usage = SubjectUsages::new(limits).of("a");
        let flood = |job: Option<&str>| -> Vec<_> {
            let connect = || usage.connect(job).ok();
            std::iter::from_fn(connect).collect()
        };
        let greedy = flood(Some("j1"));
        assert_eq!(greedy.len(), 75);
        // A token for another job, and one for more than a job, still get streams.
        let other = flood(Some("j2"));
        assert!((15..25).contains(&other.len()), "{}", other.len());
        let own = flood(None);
        assert_eq!(greedy.len() + other.len() + own.len(), 100);
        assert!(!own.is_empty());
        drop((greedy, other, own));
        assert_eq!(usage.lock().connections.holders(), 0);
        assert_eq!(flood(Some("j2")).len(), 75);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_counts_until_it_is_known_to_have_ended() {
        let usage = SubjectUsages::new(LIMITS).of("a");
        let ids: Vec<JobId> = ["j1", "j2", "j3"].map(|id| id.parse().unwrap()).to_vec();
        // A submission that fails does not count.
        drop(usage.begin_job().unwrap());
        for id in &ids {
            usage.begin_job().unwrap().queued(id);
        }
        assert_eq!(usage.begin_job().unwrap_err().limit, 3);
        let mut looked_at = usage.jobs_to_look_at();
        looked_at.sort_by_key(ToString::to_string);
        assert_eq!(looked_at, ids);
        usage.forget(&ids[1..2]);
        assert!(usage.jobs_to_look_at().is_empty());
        let submitting = usage.begin_job().unwrap();
        assert!(usage.begin_job().is_err());
        drop(submitting);
    }

    #[tokio::test(start_paused = true)]
    async fn subjects_that_use_nothing_are_forgotten() {
        let usages = SubjectUsages::new(LIMITS);
        let connected = usages.of("connected").connect(None).unwrap();
        for n in 0..10_000 {
            usages.of(&n.to_string()).count_submit().unwrap();
            advance(Duration::from_millis(10)).await;
        }
        let known = usages.by_name.lock().unwrap().len();
        assert!(known < 1000, "{known}");
        assert!(usages.of("connected").lock().connections.taken() == 1);
        drop(connected);
    }

    #[tokio::test(start_paused = true)]
    async fn many_subjects_are_added_between_two_searches_for_unused_ones() {
        let usages = SubjectUsages::new(LIMITS);
        let room = || {
            let by_name = usages.by_name.lock().unwrap();
            by_name.capacity() - by_name.len()
        };
        usages.of("unused");
        let mut used = Vec::new();
        while used.len() < 1000 || room() > 0 {
            used.push(usages.of(&used.len().to_string()));
        }
        advance(QUOTA_WINDOW).await;
        used.push(usages.of("new"));
        assert!(!usages.by_name.lock().unwrap().contains_key("unused"));
        assert!(room() >= used.len() - 1, "{} for {}", room(), used.len());
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_of_subjects_that_have_left_are_forgotten() {
        let usages = SubjectUsages::new(LIMITS);
        for n in 0..10_000 {
            let usage = usages.of(&n.to_string());
            usage.count_submit().unwrap();
            let job = format!("j{n}").parse().unwrap();
            usage.begin_job().unwrap().queued(&job);
            advance(SUBJECT_KEPT / 100).await;
        }
        let known = usages.by_name.lock().unwrap().len();
        assert!(known < 1000, "{known}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_tickets_of_one_subject_are_limited_for_as_long_as_they_are_valid() {
        let usages = SubjectUsages::new(LIMITS);
        let issued = (0..TICKETS_PER_SUBJECT + 1)
            .filter(|_| usages.of("a").count_ticket().is_ok())
            .count();
        assert_eq!(issued, TICKETS_PER_SUBJECT);
        assert_eq!(usages.of("b").count_ticket(), Ok(()));
        advance(Duration::from_millis(TICKET_TTL_MS)).await;
        assert_eq!(usages.of("a").count_ticket(), Ok(()));
    }
}
