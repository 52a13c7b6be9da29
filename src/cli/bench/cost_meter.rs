//! What a run costs: the CPU time and the memory of the processes.

use tokio::time::Instant;

use super::plan::Plan;
use super::process::Process;
use super::report::{BenchReport, Costs};
use super::system::Processes;
use super::watcher::Account;

/// Measures what the processes use.
pub(super) struct CostMeter {
    processes: Processes,
    cost: Costs,
    /// CPU seconds of edge, broker and worker at the start.
    cpu_at_start: [Option<f64>; 3],
}

impl CostMeter {
    /// Starts to measure.
    pub(super) fn start(processes: Processes) -> anyhow::Result<Self> {
        let mut meter = Self {
            processes,
            cost: Costs::default(),
            cpu_at_start: [None; 3],
        };
        meter.cost.edge_idle_mib = meter.edge_memory()?;
        meter.cpu_at_start = meter.cpu()?;
        Ok(meter)
    }

    /// All watchers are connected: notes the memory, and measures CPU time from now on.
    pub(super) fn connected(&mut self) -> anyhow::Result<()> {
        self.cost.edge_connected_mib = self.edge_memory()?;
        self.cpu_at_start = self.cpu()?;
        Ok(())
    }

    /// Measures the end, and reports the run since `started`.
    pub(super) fn report(
        mut self,
        plan: &Plan,
        connections: usize,
        account: &Account,
        started: Instant,
        delay_of: &'static str,
    ) -> anyhow::Result<BenchReport> {
        let tally = account.tally();
        let mut report = BenchReport::new(plan, connections, &tally, started.elapsed(), delay_of);
        let end = self.cpu()?;
        let used = |index: usize| Some(end[index]? - self.cpu_at_start[index]?);
        self.cost.edge_cpu_s = used(0);
        self.cost.broker_cpu_s = used(1);
        self.cost.worker_cpu_s = used(2);
        self.cost.edge_end_mib = self.edge_memory()?;
        self.cost.broker_end_mib = memory(self.processes.broker)?;
        self.cost.worker_end_mib = memory(self.processes.worker)?;
        report.cost = self.cost;
        Ok(report)
    }

    fn cpu(&self) -> anyhow::Result<[Option<f64>; 3]> {
        let Processes {
            edge,
            broker,
            worker,
        } = self.processes;
        let seconds = |process: Option<Process>| -> anyhow::Result<Option<f64>> {
            Ok(process
                .map(Process::cpu)
                .transpose()?
                .map(|cpu| cpu.as_secs_f64()))
        };
        Ok([seconds(edge)?, seconds(broker)?, seconds(worker)?])
    }

    fn edge_memory(&self) -> anyhow::Result<Option<f64>> {
        memory(self.processes.edge)
    }
}

/// The resident memory of a process, in MiB.
fn memory(process: Option<Process>) -> anyhow::Result<Option<f64>> {
    let bytes = process.map(Process::memory).transpose()?;
    Ok(bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)))
}
