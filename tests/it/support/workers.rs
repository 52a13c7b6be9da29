//! Workers as processes: one that logs, and one that uses the Python library.

use std::fs::{self, File};
use std::process::Stdio;

use secrecy::ExposeSecret as _;
use serde_json::Value;
use tailwater::nats::Role;
use tempfile::{NamedTempFile, TempDir};

use super::process::Process;
use super::system::System;
use super::{eventually, python};

/// Where the Python library is.
pub const LIBRARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/python/src");

/// A worker of the kind `demo` that uses the Python library.
pub struct PythonWorker {
    pub process: Process,
    _dir: TempDir,
}

impl PythonWorker {
    /// Starts a worker that runs this many jobs at a time. `work` is the body of its function.
    pub async fn start(system: &System, work: &str, jobs: u32) -> Self {
        Self::start_with(system, work, &format!("concurrency={jobs}")).await
    }

    /// Starts a worker with these settings.
    pub async fn start_with(system: &System, work: &str, settings: &str) -> Self {
        Self::start_logging(system, work, settings, Stdio::inherit()).await
    }

    /// Starts a worker with these settings, its log to `stderr`.
    pub async fn start_logging(
        system: &System,
        work: &str,
        settings: &str,
        stderr: impl Into<Stdio>,
    ) -> Self {
        let options = system.as_role(Role::Worker(None));
        let env = [
            ("TAILWATER_NATS", options.url.expose_secret()),
            ("TAILWATER_PREFIX", system.options.prefix.as_str()),
        ];
        Self::launch(&env, work, settings, stderr.into()).await
    }

    /// Starts a worker that finds NATS by these variables.
    pub async fn start_as(env: &[(&str, &str)], work: &str, settings: &str) -> Self {
        Self::launch(env, work, settings, Stdio::inherit()).await
    }

    async fn launch(env: &[(&str, &str)], work: &str, settings: &str, stderr: Stdio) -> Self {
        let dir = TempDir::new().unwrap();
        let text = format!(
            "import asyncio, sys, time\nfrom tailwater import *\n\n@worker(kind=\"demo\", {settings})\n\
            async def run(job):\n{work}\n\nserve(run)\n"
        );
        let file = dir.path().join("worker.py");
        fs::write(&file, text).unwrap();
        let env = [env, &[("PYTHONPATH", LIBRARY)]].concat();
        let args = [file.display().to_string()];
        let mut process = Process::start_program(&python("python"), args, &env, stderr);
        process.says("serves demo").await;
        Self { process, _dir: dir }
    }
}

/// A worker of the kind `demo` that runs a shell script for each job, and its log as JSON.
pub struct LoggingWorker {
    pub process: Process,
    log: NamedTempFile,
}

impl LoggingWorker {
    /// Starts it with this script and these flags.
    pub fn start(system: &System, script: &str, flags: &[&str]) -> Self {
        Self::start_with(system, script, flags, &[])
    }

    /// Starts it with this script and these flags, and these of `exec`.
    pub fn start_with(system: &System, script: &str, flags: &[&str], of_exec: &[&str]) -> Self {
        let log = NamedTempFile::new().unwrap();
        let flags = [
            &["--kind", "demo", "--retry-delay", "20ms", "--log-json"],
            flags,
        ]
        .concat();
        let mut args = system.command(&["worker"], &flags);
        let exec = [&["exec"], of_exec, &["--", "sh", "-c", script]].concat();
        args.extend(exec.into_iter().map(str::to_owned));
        let process = Process::start_with(args, &[], File::create(log.path()).unwrap());
        Self { process, log }
    }

    /// Its whole log.
    pub fn text(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap()
    }

    /// The lines about a job with this message.
    pub fn lines(&self, job: &str, message: &str) -> Vec<Value> {
        let text = self.text();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines
            .filter(|line: &Value| {
                let fields = &line["fields"];
                let said = fields["message"].as_str().unwrap_or_default();
                fields["job"] == job && said.starts_with(message)
            })
            .collect()
    }

    /// Waits for the one line about a job with this message.
    pub async fn line(&self, job: &str, message: &str) -> Value {
        let what = format!("{message:?} in the log");
        let lines = eventually(&what, || async {
            let lines = self.lines(job, message);
            (!lines.is_empty()).then_some(lines)
        })
        .await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.into_iter().next().unwrap()
    }
}
