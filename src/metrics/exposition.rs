//! The metrics of one scrape, and their text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::catalog::BUILD;
use super::{HistogramValues, Metric, MetricKind, MetricUnit};

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsFormat {
    /// The text format of Prometheus, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl MetricsFormat {
    /// The format that an `Accept` header prefers. Prometheus lists what it knows with weights; any
    /// other client gets the older format, which people read more easily.
    pub fn accepted(accept: &str) -> Self {
        let weight = |wanted: &str| {
            let ranges = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                (parts.next()? == wanted).then(|| {
                    let quality = parts.find_map(|part| part.strip_prefix("q="));
                    quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0))
                })
            });
            ranges.fold(0.0_f64, f64::max)
        };
        let open = weight("application/openmetrics-text");
        if open > 0.0 && open >= weight("text/plain") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The metrics of one scrape. Numbers of a metric with the same labels are added up.
#[derive(Debug, Default)]
pub struct Exposition {
    families: Vec<MetricFamily>,
}

#[derive(Debug)]
struct MetricFamily {
    metric: &'static Metric,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    labels: Vec<String>,
    value: SampleValue,
}

#[derive(Debug)]
enum SampleValue {
    Counter(u64),
    Gauge(f64),
    Histogram(HistogramValues),
}

impl Exposition {
    /// The version, and nothing else yet.
    pub fn new() -> Self {
        let mut all = Self::default();
        all.gauge(&BUILD, &[env!("CARGO_PKG_VERSION")], 1.0);
        all
    }

    /// Adds to a counter.
    pub fn counter(&mut self, metric: &'static Metric, labels: &[&str], value: u64) {
        if let SampleValue::Counter(sum) = self.sample(metric, labels, SampleValue::Counter(0)) {
            *sum += value;
        }
    }

    /// Adds to a gauge.
    pub fn gauge(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        if let SampleValue::Gauge(sum) = self.sample(metric, labels, SampleValue::Gauge(0.0)) {
            *sum += value;
        }
    }

    /// Raises a gauge to a value, if it is lower.
    pub fn gauge_max(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        if let SampleValue::Gauge(highest) = self.sample(metric, labels, SampleValue::Gauge(0.0)) {
            *highest = highest.max(value);
        }
    }

    /// Adds to a histogram.
    pub fn histogram(
        &mut self,
        metric: &'static Metric,
        labels: &[&str],
        values: &HistogramValues,
    ) {
        let none = SampleValue::Histogram(HistogramValues::default());
        if let SampleValue::Histogram(sum) = self.sample(metric, labels, none) {
            sum.add(values);
        }
    }

    /// The value of a metric with these labels, which is `none` if it has none yet.
    fn sample(
        &mut self,
        metric: &'static Metric,
        labels: &[&str],
        none: SampleValue,
    ) -> &mut SampleValue {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let family = self
            .families
            .iter()
            .position(|family| std::ptr::eq(family.metric, metric));
        let family = family.unwrap_or_else(|| {
            self.families.push(MetricFamily {
                metric,
                samples: Vec::new(),
            });
            self.families.len() - 1
        });
        let samples = &mut self.families[family].samples;
        let sample = samples.iter().position(|sample| sample.labels == labels);
        let sample = sample.unwrap_or_else(|| {
            samples.push(Sample {
                labels: labels.iter().map(|&label| label.to_owned()).collect(),
                value: none,
            });
            samples.len() - 1
        });
        &mut samples[sample].value
    }

    /// The metrics as text.
    ///
    /// # Errors
    /// Never: text is written to memory.
    pub fn encode(self, format: MetricsFormat) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        match format {
            MetricsFormat::Prometheus => prometheus_text::encode(&mut out, &registry)?,
            MetricsFormat::OpenMetrics => text::encode(&mut out, &registry)?,
        }
        Ok(out)
    }
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for MetricFamily { metric, samples } in &self.families {
            let unit = match metric.unit {
                MetricUnit::None => None,
                MetricUnit::Bytes => Some(Unit::Bytes),
                MetricUnit::Seconds => Some(Unit::Seconds),
            };
            let metric_type = match metric.kind {
                MetricKind::Counter => MetricType::Counter,
                MetricKind::Gauge => MetricType::Gauge,
                MetricKind::Histogram => MetricType::Histogram,
            };
            let help = metric.help.replace('`', "");
            let mut family =
                encoder.encode_descriptor(metric.name, &help, unit.as_ref(), metric_type)?;
            for Sample { labels, value } in samples {
                let names = metric.labels.iter().copied();
                let labels: Vec<_> = names.zip(labels.iter().map(String::as_str)).collect();
                value.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// No exemplars have labels.
type NoLabels = Vec<(String, String)>;

impl SampleValue {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Self::Counter(value) => encoder.encode_counter::<NoLabels, _, u64>(value, None),
            Self::Gauge(value) => encoder.encode_gauge(value),
            Self::Histogram(values) => encoder.encode_histogram::<NoLabels>(
                values.sum(),
                values.count(),
                &values.buckets(),
                None,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Histogram;
    use crate::metrics::catalog::{EDGE_CONNECTIONS, EDGE_SENT, WORKER_PUBLISH};
    use std::time::Duration;

    fn exposition() -> Exposition {
        let mut all = Exposition::new();
        all.counter(&EDGE_SENT, &["sse"], 3);
        all.counter(&EDGE_SENT, &["sse"], 4);
        all.gauge(&EDGE_CONNECTIONS, &["sse"], 2.0);
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(2));
        all.histogram(&WORKER_PUBLISH, &["a\"b"], &histogram.values());
        all
    }

    #[test]
    fn both_formats_have_all_numbers() {
        let prometheus = exposition().encode(MetricsFormat::Prometheus).unwrap();
        let open = exposition().encode(MetricsFormat::OpenMetrics).unwrap();
        for text in [&prometheus, &open] {
            for line in [
                concat!(
                    "tailwater_build_info{version=\"",
                    env!("CARGO_PKG_VERSION"),
                    "\"} 1"
                ),
                "tailwater_edge_sent_bytes_total{transport=\"sse\"} 7",
                "tailwater_edge_connections{transport=\"sse\"} 2",
                "tailwater_worker_publish_seconds_count{kind=\"a\\\"b\"} 1",
            ] {
                let found = text.lines().any(|found| found.starts_with(line));
                assert!(found, "{line} is not in\n{text}");
            }
        }
        // The formats put the labels in another order.
        let bucket = "tailwater_worker_publish_seconds_bucket";
        let of_kind = r#"kind="a\"b""#;
        let le = r#"le="0.0025""#;
        let line = format!("{bucket}{{{of_kind},{le}}} 1");
        assert!(prometheus.contains(&line), "{line} is not in\n{prometheus}");
        let line = format!("{bucket}{{{le},{of_kind}}} 1");
        assert!(open.contains(&line), "{line} is not in\n{open}");
        assert!(open.ends_with("# EOF\n"), "{open}");
        assert!(
            open.contains("# UNIT tailwater_edge_sent_bytes bytes"),
            "{open}"
        );
        assert!(prometheus.contains("# TYPE tailwater_edge_sent_bytes_total counter"));
    }

    #[test]
    fn the_accept_header_chooses_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for (accept, format) in [
            ("", MetricsFormat::Prometheus),
            ("*/*", MetricsFormat::Prometheus),
            ("text/html", MetricsFormat::Prometheus),
            ("application/openmetrics-text", MetricsFormat::OpenMetrics),
            (prometheus, MetricsFormat::OpenMetrics),
            (
                "application/openmetrics-text;q=0.2, text/plain",
                MetricsFormat::Prometheus,
            ),
            (
                "application/openmetrics-text;q=0",
                MetricsFormat::Prometheus,
            ),
        ] {
            assert_eq!(MetricsFormat::accepted(accept), format, "{accept}");
        }
    }
}
