//! What a run costs: the CPU time and the memory of the processes.

use tokio::time::Instant;

use super::plan::Plan;
use super::process::Process;
use super::report::{BenchReport, Costs, ProcessCost};
use super::system::Processes;
use super::watcher::Account;

/// Measures what the processes use.
pub(super) struct CostMeter {
    edge: ProcessMeter,
    broker: ProcessMeter,
    worker: ProcessMeter,
}

impl CostMeter {
    /// Starts to measure.
    pub(super) fn start(processes: &Processes) -> anyhow::Result<Self> {
        Ok(Self {
            edge: ProcessMeter::start(processes.edge.as_slice())?,
            broker: ProcessMeter::start(processes.broker.as_slice())?,
            worker: ProcessMeter::start(&processes.workers)?,
        })
    }

    /// All watchers are connected and wait for events: notes the memory, and measures CPU time from
    /// now on. Not for clients that connect while events arrive.
    pub(super) fn connected(&mut self) -> anyhow::Result<()> {
        self.edge.connected()?;
        self.broker.connected()?;
        self.worker.connected()
    }

    /// Measures the end, and reports the run since `started`.
    pub(super) fn report(
        self,
        plan: &Plan,
        connections: usize,
        account: &Account,
        started: Instant,
        delay_of: &'static str,
    ) -> anyhow::Result<BenchReport> {
        let tally = account.tally();
        let mut report = BenchReport::new(plan, connections, &tally, started.elapsed(), delay_of);
        report.cost = Costs {
            edge: self.edge.end(connections)?,
            broker: self.broker.end(connections)?,
            worker: self.worker.end(connections)?,
        };
        Ok(report)
    }
}

/// Measures one process, or several together.
struct ProcessMeter {
    processes: Vec<Process>,
    cost: ProcessCost,
    /// CPU seconds at the start.
    cpu_at_start: Option<f64>,
}

impl ProcessMeter {
    fn start(processes: &[Process]) -> anyhow::Result<Self> {
        let mut meter = Self {
            processes: processes.to_vec(),
            cost: ProcessCost::default(),
            cpu_at_start: None,
        };
        meter.cost.idle_mib = meter.memory()?;
        meter.cpu_at_start = meter.cpu()?;
        Ok(meter)
    }

    fn connected(&mut self) -> anyhow::Result<()> {
        self.cost.connected_mib = self.memory()?;
        self.cpu_at_start = self.cpu()?;
        Ok(())
    }

    fn end(mut self, connections: usize) -> anyhow::Result<ProcessCost> {
        let cpu = self.cpu()?.zip(self.cpu_at_start);
        self.cost.cpu_s = cpu.map(|(end, start)| end - start);
        self.cost.end_mib = self.memory()?;
        let memory = self.cost.connected_mib.zip(self.cost.idle_mib);
        self.cost.per_connection_kib = memory.map(|(connected, idle)| {
            let added = (connected - idle) * 1024.0;
            added / connections.max(1) as f64
        });
        Ok(self.cost)
    }

    /// CPU seconds since the processes began.
    fn cpu(&self) -> anyhow::Result<Option<f64>> {
        self.sum(|process| Ok(process.cpu()?.as_secs_f64()))
    }

    /// Resident memory, in MiB.
    fn memory(&self) -> anyhow::Result<Option<f64>> {
        self.sum(|process| Ok(process.memory()? as f64 / f64::from(1 << 20)))
    }

    /// The sum of a figure; `None` without a process.
    fn sum(&self, figure: impl Fn(Process) -> anyhow::Result<f64>) -> anyhow::Result<Option<f64>> {
        let mut sum: Option<f64> = None;
        for &process in &self.processes {
            sum = Some(sum.unwrap_or(0.0) + figure(process)?);
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_are_measured_together_are_added_up() {
        let this = Process(std::process::id());
        let memory = |processes: &[Process]| ProcessMeter::start(processes).unwrap().cost.idle_mib;
        let one = memory(&[this]).unwrap();
        let two = memory(&[this, this]).unwrap();
        assert!(two > one * 1.5, "{one}, {two}");
        assert_eq!(memory(&[]), None, "it is unknown");
    }

    #[test]
    fn the_memory_per_connection_is_what_the_connections_have_added() {
        let meter = ProcessMeter {
            processes: Vec::new(),
            cost: ProcessCost {
                idle_mib: Some(1.0),
                connected_mib: Some(3.0),
                ..ProcessCost::default()
            },
            cpu_at_start: None,
        };
        let cost = meter.end(4).unwrap();
        assert_eq!(cost.per_connection_kib, Some(512.0));
    }
}
