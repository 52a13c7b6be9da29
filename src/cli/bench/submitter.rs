//! Submits jobs of the demo backend to an edge, as any HTTP client would.

use std::net::SocketAddr;

use anyhow::bail;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::plan::Plan;
use crate::config::BENCH_AT_ONCE;
use crate::wire::{JobId, Kind};

/// Submits all jobs; each outputs `--rate` words per second for `--seconds`.
pub(super) async fn submit(edge: SocketAddr, jobs: &[JobId], plan: &Plan) -> anyhow::Result<()> {
    let words = plan.events_by_rate().ceil();
    let input = json!({"words": words as u64, "rate": plan.rate});
    futures_util::stream::iter(jobs)
        .map(|job| submit_one(edge, &plan.kind, job, &input))
        .buffer_unordered(BENCH_AT_ONCE)
        .try_collect::<()>()
        .await
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
    let mut stream = TcpStream::connect(edge).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    if response.split(' ').nth(1) != Some("202") {
        bail!("a submit was refused: {response}");
    }
    Ok(())
}
