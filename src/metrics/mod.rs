//! Metrics: which there are, how they are added up over threads, and how they are written for
//! Prometheus. What they count is in the modules that count it; a scrape reads plain atomics, so
//! that counting costs next to nothing. Pure. It serves nothing over HTTP.

pub mod catalog;
mod exposition;
mod histogram;
mod wait_count;

pub use exposition::{Exposition, MetricsFormat};
pub use histogram::{Histogram, HistogramValues};
pub use wait_count::{WaitCount, Waits};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// A number that only grows.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// How many values were at most each bound.
    Histogram,
}

/// What a metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricUnit {
    /// Things.
    None,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

/// A metric: its name, and what it means.
#[derive(Debug)]
pub struct Metric {
    /// Without its unit and without `_total`, which every counter has at its end.
    name: &'static str,
    kind: MetricKind,
    unit: MetricUnit,
    /// The names of its labels, whose values are bounded: never ids of jobs or clients.
    labels: &'static [&'static str],
    /// Which processes serve it: `edge`, `worker` or both.
    served_by: &'static str,
    /// What it means, for people.
    help: &'static str,
}

impl Metric {
    /// Its full name.
    pub fn full_name(&self) -> String {
        let unit = match self.unit {
            MetricUnit::None => "",
            MetricUnit::Bytes => "_bytes",
            MetricUnit::Seconds => "_seconds",
        };
        let end = match self.kind {
            MetricKind::Counter => "_total",
            MetricKind::Gauge | MetricKind::Histogram => "",
        };
        format!("{}{unit}{end}", self.name)
    }

    /// Its row in `docs/metrics.md`.
    pub fn row(&self) -> String {
        let kind = match self.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let labels: Vec<_> = self
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        format!(
            "| `{}` | {kind} | {} | {} | {} |",
            self.full_name(),
            labels.join(", "),
            self.served_by,
            self.help
        )
    }

    /// Whether an edge, or a worker, serves it.
    pub fn is_served_by(&self, process: &str) -> bool {
        self.served_by.split(", ").any(|name| name == process)
    }
}
