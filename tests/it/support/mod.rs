//! What the tests stand on: real brokers, edges and workers in or out of this process, and clients. It tests nothing.

pub mod broker;
pub mod client;
pub mod foreign;
pub mod http;
pub mod link;
pub mod process;
pub mod proxy;
pub mod sse;
pub mod system;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest that one wait of a test may take. Longer than an election, shorter than a person's patience.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program of the virtual environment that `scripts/test.sh` makes.
pub fn python(program: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(".tools/venv/bin")
        .join(program);
    assert!(
        path.exists(),
        "{} is missing: scripts/test.sh installs it",
        path.display()
    );
    path
}

/// Waits for `what`, or fails by its name.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Asks again and again until there is an answer.
pub async fn eventually<T, W: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> W,
) -> T {
    within(what, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}
