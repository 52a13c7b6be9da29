//! The last report of the queue, which all clients of an edge thread share: any number of them cost the
//! broker one read at a time. A read belongs to no client: the others go on with it when one leaves.
//! A failure is remembered like a report.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::Instant;

use super::kinds::QueueReport;
use super::queue::Queue;
use crate::config::QUEUE_REPORT_WAIT;
use crate::source::Unavailable;

/// A report, or why there is none, and when it was read.
type ReportAnswer = (Instant, Result<Arc<QueueReport>, Unavailable>);

/// The last read of the report.
#[derive(Default)]
pub struct ReportCache(Mutex<Option<ReportRead>>);

struct ReportRead {
    begun: Instant,
    answer: Shared<BoxFuture<'static, ReportAnswer>>,
}

impl fmt::Debug for ReportCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportCache").finish_non_exhaustive()
    }
}

impl ReportRead {
    /// Whether a client may use it that wants a report which is at most this old.
    fn is_current(&self, age_max: Duration) -> bool {
        match self.answer.peek() {
            Some((read_at, _)) => read_at.elapsed() < age_max,
            // Nobody has waited for an older one.
            None => self.begun.elapsed() < QUEUE_REPORT_WAIT,
        }
    }
}

impl ReportCache {
    /// A report that is at most this old.
    ///
    /// # Errors
    /// [`Unavailable`], at most this long after the broker did not answer.
    pub async fn of(
        &self,
        queue: &Queue,
        age_max: Duration,
    ) -> Result<Arc<QueueReport>, Unavailable> {
        let queue = queue.clone();
        self.answer(age_max, async move { queue.report().await })
            .await
    }

    async fn answer(
        &self,
        age_max: Duration,
        read: impl Future<Output = Result<QueueReport, Unavailable>> + Send + 'static,
    ) -> Result<Arc<QueueReport>, Unavailable> {
        let answer = {
            let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match &*last {
                Some(last) if last.is_current(age_max) => last.answer.clone(),
                _ => {
                    let read = async move {
                        let report = read.await;
                        (Instant::now(), report.map(Arc::new))
                    };
                    let begun = Instant::now();
                    let answer = read.boxed().shared();
                    // Recorded before it is answered.
                    *last = Some(ReportRead {
                        begun,
                        answer: answer.clone(),
                    });
                    answer
                }
            }
        };
        answer.await.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::QueueSize;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::time::{sleep, timeout};

    const AGE: Duration = Duration::from_secs(5);

    /// A cache, and how many reads were made.
    #[derive(Clone, Default)]
    struct Reads {
        cache: Arc<ReportCache>,
        count: Arc<AtomicUsize>,
    }

    impl Reads {
        /// Asks for a report; a read takes this long and succeeds or not.
        async fn ask(&self, takes: Duration, succeeds: bool) -> Result<(), Unavailable> {
            let count = Arc::clone(&self.count);
            let read = async move {
                count.fetch_add(1, Ordering::Relaxed);
                sleep(takes).await;
                let size = QueueSize {
                    bytes: 0,
                    bytes_max: 1,
                };
                let report = QueueReport {
                    kinds: Vec::new(),
                    size,
                };
                succeeds
                    .then_some(report)
                    .ok_or_else(|| Unavailable("silent".into()))
            };
            self.cache.answer(AGE, read).await.map(|_| ())
        }

        fn count(&self) -> usize {
            self.count.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_share_one_read_and_a_failure_is_remembered() {
        for succeeds in [true, false] {
            let reads = Reads::default();
            let begun = Instant::now();
            let second = Duration::from_secs(1);
            let asked =
                futures_util::future::join_all((0..10).map(|_| reads.ask(second, succeeds)));
            let answers = asked.await;
            assert!(answers.iter().all(|answer| answer.is_ok() == succeeds));
            assert_eq!((begun.elapsed(), reads.count()), (second, 1));
            assert_eq!(reads.ask(second, succeeds).await.is_ok(), succeeds);
            assert_eq!((begun.elapsed(), reads.count()), (second, 1));
            sleep(AGE).await;
            assert_eq!(reads.ask(second, succeeds).await.is_ok(), succeeds);
            assert_eq!(reads.count(), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_leave_during_a_read_do_not_cause_another() {
        let reads = Reads::default();
        let takes = QUEUE_REPORT_WAIT / 2;
        for _ in 0..10 {
            let left = timeout(takes / 20, reads.ask(takes, true)).await;
            assert!(left.is_err());
        }
        assert!(reads.ask(takes, true).await.is_ok());
        assert_eq!(reads.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_all_clients_have_left_is_not_used_later() {
        let reads = Reads::default();
        let left = timeout(AGE / 100, reads.ask(AGE, true)).await;
        assert!(left.is_err());
        sleep(QUEUE_REPORT_WAIT).await;
        assert!(reads.ask(AGE, true).await.is_ok());
        assert_eq!(reads.count(), 2);
    }
}
