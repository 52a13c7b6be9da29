//! What a process costs: CPU time and memory, as Linux counts them under `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// How many clock ticks `/proc` counts in a second; 100 on every Linux (`USER_HZ`, proc(5)).
const TICKS: u64 = 100;

/// A process that a measurement watches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process(pub(super) u32);

impl Process {
    /// The CPU time that it has used since it began, in user and system mode.
    pub(super) fn cpu(self) -> anyhow::Result<Duration> {
        let stat = self.read("stat")?;
        // The second field is a name in parentheses, which may contain any character.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let mut fields = fields.split(' ').skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        let (user, system) = ticks().zip(ticks()).context("unexpected format in /proc")?;
        Ok(Duration::from_millis((user + system) * 1000 / TICKS))
    }

    /// Its resident memory, in bytes.
    pub(super) fn memory(self) -> anyhow::Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kilobytes.context("unexpected format in /proc")? * 1024)
    }

    fn read(self, file: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{file}", self.0);
        fs::read_to_string(&path)
            .with_context(|| format!("cannot read {path}: the measured process must run here"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_measured_and_an_unknown_one_is_an_error() {
        let this = Process(std::process::id());
        assert!(this.memory().unwrap() > 100_000);
        assert!(this.cpu().is_ok());
        assert!(Process(u32::MAX).cpu().is_err());
    }
}
