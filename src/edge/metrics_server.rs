//! A small server for the metrics of a process that is not an edge.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::HeaderMap;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::connection_slots::ConnectionSlots;
use super::counters::SentBytes;
use super::forwarded::TrustedProxies;
use super::memory::Memory;
use super::metrics::response;
use super::serve;
use crate::budget::Budget;
use crate::config::{METRICS_CONNECTIONS, METRICS_MEMORY};
use crate::fair_slots::FairSlots;
use crate::metrics::Exposition;
use crate::runtime::Tasks;

/// Serves `GET /metrics`, with the numbers that `scrape` returns, and `GET /healthz`, until `stop`
/// is cancelled.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve_metrics(
    listener: TcpListener,
    scrape: impl Fn() -> Exposition + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = Router::new()
        .route(
            "/metrics",
            get(move |headers: HeaderMap| async move { response(scrape(), &headers) }),
        )
        .route("/healthz", get(async || Json(json!({"status": "ok"}))))
        .layer(DefaultBodyLimit::max(0));
    let memory = Memory::new(Budget::new(METRICS_MEMORY));
    let slots = FairSlots::new(METRICS_CONNECTIONS);
    let slots = ConnectionSlots::new(slots, TrustedProxies::default());
    let tasks = Tasks::new(stop);
    serve::serve(
        listener,
        None,
        router,
        &memory.bodies,
        &slots,
        &Arc::<SentBytes>::default(),
        &tasks,
    )
    .await;
    Ok(())
}
