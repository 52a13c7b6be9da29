//! Backends for workers inside the test process.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tailwater::backend::demo::{self, DemoSettings};
use tailwater::backend::{Backend, Channel, Failure, Finish, Job, Output, Retry};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Fails as often as its input says, and then succeeds.
pub struct Flaky(pub Retry);

impl Backend for Flaky {
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        out.text("half a ").await?;
        if u64::from(job.attempt) <= job.input["failures"].as_u64().unwrap_or(0) {
            return Err(Failure {
                code: "flaky".into(),
                message: format!("attempt {} failed", job.attempt),
                retry: self.0,
            });
        }
        out.text("sentence").await?;
        Ok(Finish::default())
    }
}

/// Produces one word, then another one when it is notified.
pub struct TwoWords(pub Arc<Notify>);

impl Backend for TwoWords {
    async fn run(&self, _job: Job, out: Output) -> Result<Finish, Failure> {
        out.text("one ").await?;
        self.0.notified().await;
        out.text("two").await?;
        Ok(Finish::default())
    }
}

/// Produces the text of a demo job at its rate, which is not 0, in parts of about the same length:
/// each but the first waits for its token. After each word comes data, which separates it from the
/// next one, so that each of the two is an event, however busy the machine is.
pub struct Parts(pub Vec<CancellationToken>);

impl Backend for Parts {
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        let settings = DemoSettings::from_input(&job.input)?;
        let words: Vec<String> = demo::words(&settings).collect();
        let length = words.len().div_ceil(self.0.len() + 1);
        for (index, word) in words.iter().enumerate() {
            if index > 0 && index.is_multiple_of(length) {
                self.0[index / length - 1].cancelled().await;
            }
            out.text(word).await?;
            out.data(json!(index)).await?;
            sleep(Duration::from_secs_f64(1.0 / settings.rate)).await;
        }
        Ok(Finish::default())
    }
}

/// Numbers, alternating between two channels: neighbours never join, so each is a separate chunk.
pub struct Pieces {
    pub count: u32,
}

impl Backend for Pieces {
    async fn run(&self, _job: Job, out: Output) -> Result<Finish, Failure> {
        for n in 0..self.count {
            let channel = if n % 2 == 0 {
                Channel::Output
            } else {
                Channel::Reasoning
            };
            out.text_on(channel, &format!("{n} ")).await?;
        }
        Ok(Finish::default())
    }
}

/// Produces this many megabytes as fast as possible.
pub struct Flood {
    pub megabytes: usize,
}

impl Backend for Flood {
    async fn run(&self, _job: Job, out: Output) -> Result<Finish, Failure> {
        let kilobyte = "0123456789abcde\n".repeat(64);
        for _ in 0..self.megabytes * 1024 {
            out.text(&kilobyte).await?;
        }
        Ok(Finish::default())
    }
}
