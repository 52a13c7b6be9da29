//! What a run measured, as a table, as JSON, and as one HTML page with plots.

use std::fmt::Write as _;
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::plan::Plan;
use super::tally::Tally;
use crate::config::BENCH_SLICE;

/// The result of one run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BenchReport {
    pub(super) plan: Plan,
    pub(super) version: &'static str,
    pub(super) connections: usize,
    /// Events that arrived in order during the measurement.
    pub(super) deliveries: u64,
    /// Events that a connected client did not receive. In live runs and storms this includes those
    /// after the last that it received; in the others such a client counts only as failed.
    pub(super) lost: u64,
    pub(super) doubled: u64,
    /// Clients that were refused, disconnected early or not done in time, and the first reason.
    pub(super) failed: u64,
    pub(super) failure: Option<String>,
    pub(super) seconds: f64,
    pub(super) per_second: f64,
    /// What `delay_ms` measures: from when to when.
    pub(super) delay_of: &'static str,
    pub(super) delay_ms: Delays,
    /// How long the broker took for an append of the publisher.
    pub(super) append_ms: Option<Delays>,
    /// The same before the clients of a storm reconnected, or before the first late client.
    pub(super) append_before_ms: Option<Delays>,
    pub(super) cost: Costs,
    #[serde(skip)]
    curve: Vec<(f64, f64)>,
    /// For each quarter of a second: deliveries, and the worst delay in milliseconds.
    pub(super) timeline: Vec<(u64, f64)>,
}

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Delays {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
}

impl Delays {
    /// The percentiles of a histogram of microseconds; `None` when it is empty.
    pub(super) fn of(histogram: &hdrhistogram::Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        (!histogram.is_empty()).then(|| Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1000.0,
        })
    }
}

/// What the processes used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    pub(super) edge: ProcessCost,
    pub(super) broker: ProcessCost,
    /// All workers together.
    pub(super) worker: ProcessCost,
}

/// What a process used. An unknown process has no figures. Storms and late clients have none of
/// `connected_mib` and `per_connection_kib`: their clients connect while events arrive, so the memory
/// of connections cannot be told from that of events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProcessCost {
    pub(super) cpu_s: Option<f64>,
    /// Resident memory before the first connection that is measured.
    pub(super) idle_mib: Option<f64>,
    /// Resident memory with all connections, before the first measured event.
    pub(super) connected_mib: Option<f64>,
    pub(super) end_mib: Option<f64>,
    /// What each connection added to the memory, from `idle_mib` to `connected_mib`.
    pub(super) per_connection_kib: Option<f64>,
}

impl Costs {
    fn named(&self) -> [(&'static str, ProcessCost); 3] {
        [
            ("edge", self.edge),
            ("broker", self.broker),
            ("worker", self.worker),
        ]
    }
}

/// One object without levels: `edge_cpu_s` is the figure `cpu_s` of the edge.
impl Serialize for Costs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut figures = serializer.serialize_map(None)?;
        for (process, cost) in self.named() {
            for (name, figure) in [
                ("cpu_s", cost.cpu_s),
                ("idle_mib", cost.idle_mib),
                ("connected_mib", cost.connected_mib),
                ("end_mib", cost.end_mib),
                ("per_connection_kib", cost.per_connection_kib),
            ] {
                figures.serialize_entry(&format!("{process}_{name}"), &figure)?;
            }
        }
        figures.end()
    }
}

impl BenchReport {
    pub(super) fn new(
        plan: &Plan,
        connections: usize,
        tally: &Tally,
        elapsed: Duration,
        delay_of: &'static str,
    ) -> Self {
        let seconds = elapsed.as_secs_f64();
        let curve = tally.delays.iter_quantiles(4);
        let curve = curve.map(|step| {
            let quantile = step.quantile_iterated_to();
            (quantile, step.value_iterated_to() as f64 / 1000.0)
        });
        let timeline = tally.timeline.iter();
        Self {
            plan: plan.clone(),
            version: env!("CARGO_PKG_VERSION"),
            connections,
            deliveries: tally.deliveries,
            lost: tally.lost,
            doubled: tally.doubled,
            failed: tally.failed,
            failure: tally.failure.clone(),
            seconds,
            per_second: tally.deliveries as f64 / seconds.max(f64::MIN_POSITIVE),
            delay_of,
            delay_ms: Delays::of(&tally.delays).unwrap_or_default(),
            append_ms: None,
            append_before_ms: None,
            cost: Costs::default(),
            curve: curve.collect(),
            timeline: timeline
                .map(|slice| (slice.deliveries, slice.worst_us as f64 / 1000.0))
                .collect(),
        }
    }

    /// Whether every event arrived once, in order, on every connection.
    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.failed == 0
    }

    /// The rows of the table: names and values.
    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
        row("connections", self.connections.to_string());
        row(
            "deliveries",
            format!("{} in {:.1} s", self.deliveries, self.seconds),
        );
        row("deliveries/s", format!("{:.0}", self.per_second));
        row("lost, doubled", format!("{}, {}", self.lost, self.doubled));
        let reason = self
            .failure
            .as_deref()
            .map_or(String::new(), |reason| format!(": {reason}"));
        row("connections failed", format!("{}{reason}", self.failed));
        let delays = |delays: &Delays| {
            let Delays {
                p50,
                p99,
                p999,
                max,
            } = delays;
            format!("p50 {p50:.2}, p99 {p99:.2}, p99.9 {p999:.2}, max {max:.2} ms")
        };
        row(self.delay_of, delays(&self.delay_ms));
        if let Some(append) = &self.append_before_ms {
            row("append at the broker before", delays(append));
        }
        if let Some(append) = &self.append_ms {
            row("append at the broker", delays(append));
        }
        let costs = self.cost.named();
        for (process, cost) in costs {
            if let Some(cpu) = cost.cpu_s {
                let each = cpu * 1e6 / self.deliveries.max(1) as f64;
                let value = format!("{cpu:.2} s, {each:.1} µs per delivery");
                row(&format!("{process} CPU"), value);
            }
        }
        for (process, cost) in costs {
            for (when, mib) in [
                ("idle", cost.idle_mib),
                ("all connected", cost.connected_mib),
                ("at the end", cost.end_mib),
            ] {
                if let Some(mib) = mib {
                    row(
                        &format!("{process} memory, {when}"),
                        format!("{mib:.1} MiB"),
                    );
                }
            }
        }
        for (process, cost) in costs {
            if let Some(kib) = cost.per_connection_kib {
                let name = format!("{process} memory per connection");
                row(&name, format!("{kib:.1} KiB"));
            }
        }
        rows
    }

    /// The table for a terminal.
    pub(super) fn table(&self) -> String {
        let rows = self.rows();
        let width = rows
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        rows.iter().fold(String::new(), |mut out, (name, value)| {
            let _ = writeln!(out, "{name:<width$}  {value}");
            out
        })
    }

    /// A self-contained page.
    pub(super) fn html(&self) -> anyhow::Result<String> {
        let rows = self
            .rows()
            .iter()
            .fold(String::new(), |mut out, (name, value)| {
                let _ = write!(out, "<tr><th>{}<td>{}", escaped(name), escaped(value));
                out
            });
        // Quantile 1 is infinitely far to the right.
        let curve = self.curve.iter().filter(|(quantile, _)| *quantile < 1.0);
        let curve: Vec<_> = curve
            .map(|&(quantile, ms)| (-(1.0 - quantile).log10(), ms))
            .collect();
        let slice = BENCH_SLICE.as_secs_f64();
        let per_slice = |value: fn(&(u64, f64)) -> f64, scale: f64| -> Vec<(f64, f64)> {
            let points = self.timeline.iter().enumerate();
            points
                .map(|(index, point)| (index as f64 * slice, value(point) * scale))
                .collect()
        };
        let plan = serde_json::to_string(&self.plan)?;
        Ok(format!(
            "<!doctype html><html lang=en><meta charset=utf-8><title>tailwater bench</title>\
             <style>body{{font:15px/1.5 system-ui;margin:2em;max-width:60em}}th{{text-align:left;\
             font-weight:400;padding-right:2em}}svg{{width:100%;height:auto}}</style>\
             <h1>tailwater bench</h1><p><code>{}</code><table>{rows}</table>{}{}{}",
            escaped(&plan),
            plot(
                "delay in ms by percentile (1: 90 %, 2: 99 %, 3: 99.9 %)",
                &curve
            ),
            plot(
                "deliveries per second over time in s",
                &per_slice(|point| point.0 as f64, 1.0 / slice)
            ),
            plot(
                "worst delay in ms over time in s",
                &per_slice(|point| point.1, 1.0)
            ),
        ))
    }
}

/// A line through the points, with the largest values on the axes.
fn plot(title: &str, points: &[(f64, f64)]) -> String {
    const WIDTH: f64 = 800.0;
    const HEIGHT: f64 = 200.0;
    let most = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let x_max = most(|point| point.0);
    let y_max = most(|point| point.1);
    let line = points.iter().fold(String::new(), |mut out, (x, y)| {
        let _ = write!(
            out,
            "{:.1},{:.1} ",
            x / x_max * WIDTH,
            HEIGHT - y / y_max * HEIGHT
        );
        out
    });
    format!(
        "<h2>{}</h2><svg viewBox='-60 -15 880 240' role=img><path d='M0 0V{HEIGHT}H{WIDTH}' fill=none stroke=gray />\
         <polyline points='{line}' fill=none stroke=steelblue stroke-width=2 />\
         <text x=-8 y=10 text-anchor=end>{y_max:.1}</text><text x=-8 y={HEIGHT} text-anchor=end>0</text>\
         <text x={WIDTH} y=218 text-anchor=end>{x_max:.1}</text></svg>",
        escaped(title)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_scales_its_points_to_its_axes() {
        let svg = plot("a < b", &[(0.0, 0.0), (5.0, 20.0), (10.0, 10.0)]);
        assert!(
            svg.contains("points='0.0,200.0 400.0,0.0 800.0,100.0 '"),
            "{svg}"
        );
        assert!(svg.contains("a &lt; b"));
        assert!(plot("empty", &[]).contains("points=''"));
    }
}
