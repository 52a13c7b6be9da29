//! A worker with its own backend, which counts down. While `tailwater up` runs:
//!
//! ```text
//! cargo run --example backend                      # or `-- nats://host:4222`
//! tailwater submit --kind countdown --input 10 --watch
//! ```

use std::time::Duration;

use tailwater::backend::{Backend, Failure, Finish, Job, Output, Stopped};
use tailwater::nats::Options;
use tailwater::worker::{self, WorkerSettings};

struct Countdown;

/// The only error. Clients see its code and message.
#[derive(Debug, thiserror::Error)]
#[error("the input must be a number from 1 to 1000")]
struct BadInput;

impl From<BadInput> for Failure {
    fn from(bad: BadInput) -> Self {
        Self::fatal("bad_input", bad.to_string()) // Another attempt would fail, too; otherwise `retryable`.
    }
}

impl Backend for Countdown {
    fn continues(&self) -> bool {
        true // `previous_output` is then the output of earlier attempts, which clients keep.
    }

    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        let from = job
            .input
            .as_u64()
            .filter(|from| (1..=1000).contains(from))
            .ok_or(BadInput)?;
        let counted = job.previous_output.map_or(0, |text| text.lines().count());
        for number in (1..=from).rev().skip(counted) {
            out.text(&format!("{number}\n")).await?; // Waits while the log is slow.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                () = job.stop.cancelled() => return Err(Stopped.into()), // Cancelled, or another worker has the job.
            }
        }
        Ok(Finish::default())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "nats://127.0.0.1:4222".into());
    let nats = Options {
        url: url.into(),
        name: "countdown".into(),
        ..Options::default()
    };
    worker::serve(&nats, Countdown, WorkerSettings::new("countdown".parse()?)).await?;
    Ok(())
}
