//! Asks the queue, the log, edges and workers for what `top` shows. What does not answer is shown as
//! that.

use std::collections::HashMap;

use futures_util::future::join_all;
use serde::Deserialize;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::backend::fetch::Fetcher;
use crate::cli::client_token::ClientTokenArgs;
use crate::config::{TOP_ANSWER_MAX, TOP_WAIT};
use crate::metrics::catalog;
use crate::nats::{JobQuery, Log, Nats, Queue, QueueReport, Reader};
use crate::runtime::Tasks;
use crate::wire::{JobRow, Kind};

/// What to ask for, and where.
pub(super) struct AskedSources {
    /// How many jobs to list.
    pub(super) jobs: usize,
    /// The token for the edges.
    pub(super) token: ClientTokenArgs,
    pub(super) edges: Vec<String>,
    pub(super) workers: Vec<String>,
}

/// What is asked.
pub(super) struct Sources {
    queue: Queue,
    reader: Reader,
    fetcher: Fetcher,
    asked: AskedSources,
    /// How many events with output each worker had stored, and when it was asked.
    before: HashMap<(String, String), (Instant, f64)>,
}

/// Everything that is shown at one time.
pub(super) struct Picture {
    pub(super) queue: Result<QueueReport, String>,
    pub(super) jobs: Result<Vec<JobRow>, String>,
    pub(super) edges: Vec<(String, Result<EdgeNumbers, String>)>,
    pub(super) workers: Vec<(String, Result<Vec<WorkerNumbers>, String>)>,
}

/// What an edge says about itself, at `/api/stats`.
#[derive(Debug, Deserialize)]
pub(super) struct EdgeNumbers {
    pub(super) connections: HashMap<String, u64>,
    pub(super) watched_jobs: u64,
    pub(super) events_per_second: f64,
    pub(super) lag: u64,
    pub(super) memory: EdgeMemory,
}

#[derive(Debug, Deserialize)]
pub(super) struct EdgeMemory {
    pub(super) used: u64,
    pub(super) limit: u64,
}

/// What a worker's metrics say about one of its kinds.
#[derive(Debug, PartialEq)]
pub(super) struct WorkerNumbers {
    pub(super) kind: String,
    pub(super) running: f64,
    pub(super) slots: f64,
    pub(super) attempts: f64,
    pub(super) events: f64,
    /// `None` for the first picture.
    pub(super) events_per_second: Option<f64>,
}

impl Sources {
    pub(super) async fn open(
        nats: &Nats,
        asked: AskedSources,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let log = Log::open(nats).await?;
        Ok(Self {
            queue: Queue::new(log.clone()),
            reader: Reader::open(log, &Tasks::new(stop.clone())).await?,
            fetcher: Fetcher::new()?,
            asked,
            before: HashMap::new(),
        })
    }

    /// Asks all of them at once.
    pub(super) async fn picture(&mut self) -> Picture {
        let asked = tokio::join!(
            self.report(),
            self.rows(),
            join_all(self.asked.edges.iter().map(|edge| self.edge(edge))),
            join_all(self.asked.workers.iter().map(|worker| self.worker(worker))),
        );
        let (queue, jobs, edges, workers) = asked;
        let edges = self.asked.edges.iter().cloned().zip(edges).collect();
        let mut workers: Vec<_> = self.asked.workers.iter().cloned().zip(workers).collect();
        let now = Instant::now();
        for (name, numbers) in &mut workers {
            for numbers in numbers.iter_mut().flatten() {
                let key = (name.clone(), numbers.kind.clone());
                let before = self.before.insert(key, (now, numbers.events));
                numbers.events_per_second = before.map(|(at, events)| {
                    (numbers.events - events).max(0.0) / (now - at).as_secs_f64()
                });
            }
        }
        Picture {
            queue,
            jobs,
            edges,
            workers,
        }
    }

    async fn report(&self) -> Result<QueueReport, String> {
        let report = timeout(TOP_WAIT, self.queue.report()).await;
        report
            .map_err(|_| NO_ANSWER.to_owned())?
            .map_err(|error| error.to_string())
    }

    async fn rows(&self) -> Result<Vec<JobRow>, String> {
        if self.asked.jobs == 0 {
            return Ok(Vec::new());
        }
        let query = JobQuery {
            status: None,
            kind: None,
            limit: self.asked.jobs,
            page: None,
            visible: None,
        };
        // Boxed, since it is far larger than the others.
        let listed = timeout(TOP_WAIT, Box::pin(self.reader.list(&query))).await;
        let page = listed
            .map_err(|_| NO_ANSWER.to_owned())?
            .map_err(|error| error.to_string())?;
        Ok(page.jobs)
    }

    async fn edge(&self, url: &str) -> Result<EdgeNumbers, String> {
        let token = self.asked.token.authorization();
        let token = token.map_err(|error| error.to_string())?;
        let json = self.get(&format!("{}/api/stats", base(url)), token).await?;
        serde_json::from_slice(&json).map_err(|error| error.to_string())
    }

    async fn worker(&self, address: &str) -> Result<Vec<WorkerNumbers>, String> {
        let text = self
            .get(&format!("{}/metrics", base(address)), None)
            .await?;
        Ok(worker_numbers(&String::from_utf8_lossy(&text)))
    }

    async fn get(&self, url: &str, token: Option<String>) -> Result<Vec<u8>, String> {
        timeout(TOP_WAIT, self.fetcher.get(url, token, TOP_ANSWER_MAX))
            .await
            .map_err(|_| NO_ANSWER.to_owned())?
    }
}

const NO_ANSWER: &str = "no answer";

/// The address with its scheme, and without a slash or a path of its metrics.
fn base(address: &str) -> String {
    let address = address.trim_end_matches('/');
    let address = address.strip_suffix("/metrics").unwrap_or(address);
    if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    }
}

/// What a worker's metrics say about each of its kinds.
fn worker_numbers(text: &str) -> Vec<WorkerNumbers> {
    let value = |metric: &str, kind: &str| {
        let sample = format!("{metric}{{kind=\"{kind}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&sample));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or(0.0)
    };
    let slots = catalog::WORKER_SLOTS.full_name();
    let kinds = text.lines().filter_map(|line| {
        let labels = line.strip_prefix(&slots)?.strip_prefix("{kind=\"")?;
        labels.split_once('"').map(|(kind, _)| kind)
    });
    // The text is another program's. What is not the name of a kind is not shown: it could hold
    // control characters.
    kinds
        .filter(|kind| kind.parse::<Kind>().is_ok())
        .map(|kind| WorkerNumbers {
            kind: kind.to_owned(),
            running: value(&catalog::WORKER_RUNNING.full_name(), kind),
            slots: value(&slots, kind),
            attempts: value(&catalog::WORKER_ATTEMPTS.full_name(), kind),
            events: value(&catalog::WORKER_CHUNKS.full_name(), kind),
            events_per_second: None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_each_kind_are_found_in_metrics() {
        let text = "# TYPE tailwater_worker_slots gauge\ntailwater_worker_slots{kind=\"a\"} 16\n\
            tailwater_worker_slots{kind=\"b\"} 2\ntailwater_worker_running_jobs{kind=\"b\"} 1\n\
            tailwater_worker_output_events_total{kind=\"b\"} 70\n";
        let found = worker_numbers(text);
        let numbers: Vec<_> = found
            .iter()
            .map(|found| (&*found.kind, found.slots, found.running, found.events))
            .collect();
        assert_eq!(numbers, [("a", 16.0, 0.0, 0.0), ("b", 2.0, 1.0, 70.0)]);
    }

    #[test]
    fn a_worker_cannot_send_control_characters_to_the_terminal() {
        for kind in ["\x1b[2J", "a\rb", "a\x07", "a\u{9b}m", ""] {
            let text = format!("tailwater_worker_slots{{kind=\"{kind}\"}} 1\n");
            assert!(worker_numbers(&text).is_empty(), "{kind:?}");
        }
    }

    #[test]
    fn an_address_may_have_a_scheme_or_the_path_of_its_metrics() {
        for (given, expected) in [
            ("127.0.0.1:1", "http://127.0.0.1:1"),
            ("http://h:1/metrics", "http://h:1"),
            ("https://h/", "https://h"),
        ] {
            assert_eq!(base(given), expected);
        }
    }
}
