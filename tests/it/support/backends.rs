//! Backends for workers inside the test process.

use std::sync::Arc;

use tailwater::backend::{Backend, Channel, Failure, Finish, Job, Output, Retry};
use tokio::sync::Notify;

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
