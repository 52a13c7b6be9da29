//! Submits jobs of the demo backend to an edge, as any HTTP client would.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::plan::Plan;
use crate::config::{BENCH_AT_ONCE, BENCH_CONNECT_WAIT, BENCH_ORDER_WAIT};
use crate::wire::{JobId, Kind};

/// Submits all jobs; each outputs `--rate` words per second for `--seconds`.
pub(super) async fn submit(edge: SocketAddr, jobs: &[JobId], plan: &Plan) -> anyhow::Result<()> {
    let words = plan.events_by_rate().ceil();
    let input = json!({"words": words as u64, "rate": plan.rate});
    let submitting = futures_util::stream::iter(jobs)
        .map(|job| submit_one(edge, &plan.kind, job, &input))
        .buffer_unordered(BENCH_AT_ONCE)
        .try_collect::<()>();
    timeout(BENCH_ORDER_WAIT, submitting)
        .await
        .context("the edge does not accept all jobs in time")?
}

async fn submit_one(
    edge: SocketAddr,
    kind: &Kind,
    job: &JobId,
    input: &serde_json::Value,
) -> anyhow::Result<()> {
    let body = json!({"kind": kind, "id": job, "input": input}).to_string();
    let request = format!(
        "POST /api/jobs HTTP/1.1\r\nHost: {edge}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let response = timeout(BENCH_CONNECT_WAIT, send(edge, &request))
        .await
        .context("a submit was not answered in time")??;
    if response.split(' ').nth(1) != Some("202") {
        bail!("a submit was refused: {response}");
    }
    Ok(())
}

/// Sends a request on a connection of its own, and returns the whole response.
async fn send(edge: SocketAddr, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(edge).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_edge_that_never_answers_a_submit_ends_the_run() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let edge = silent.local_addr().unwrap();
        let kind: Kind = "demo".parse().unwrap();
        let job: JobId = "j1".parse().unwrap();
        let submitted = submit_one(edge, &kind, &job, &json!({})).await;
        let error = submitted.unwrap_err().to_string();
        assert_eq!(error, "a submit was not answered in time");
    }
}
