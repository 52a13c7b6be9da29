//! Connects the clients of a run and follows them until a deadline. A client that does not get that
//! far is counted as failed, each by itself.

use std::io;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use tokio::time::{Instant, timeout_at};

use super::plan::Plan;
use super::system::System;
use super::watcher::{Account, Goal, WatchedJob, Watcher};
use crate::config::{BENCH_AT_ONCE, BENCH_GRACE};
use crate::wire::JobId;

/// Connects all watchers of all jobs; failures are counted.
pub(super) async fn connect_all(
    plan: &Plan,
    system: &System,
    jobs: &[JobId],
    account: &Account,
) -> Vec<Watcher> {
    let jobs = (0..plan.watchers).flat_map(|_| jobs.iter().enumerate());
    let watched = jobs.map(|(index, job)| WatchedJob::new(job.clone(), index));
    connect(plan, system, watched.collect(), BENCH_AT_ONCE, account).await
}

/// Connects these watchers; failures are counted.
pub(super) async fn connect(
    plan: &Plan,
    system: &System,
    watched: Vec<WatchedJob>,
    at_once: usize,
    account: &Account,
) -> Vec<Watcher> {
    let connecting = futures_util::stream::iter(watched)
        .map(|watched| Watcher::connect(system.edge, plan.transport, watched))
        .buffer_unordered(at_once);
    within(connecting, grace(), account).await
}

/// Follows until all watchers reach `goal`; failures are counted.
pub(super) async fn follow(
    watchers: Vec<Watcher>,
    goal: Goal,
    account: &Account,
    until: Instant,
) -> Vec<Watcher> {
    let following: FuturesUnordered<_> = watchers
        .into_iter()
        .map(async |mut watcher: Watcher| {
            watcher.follow(goal, account).await?;
            Ok(watcher)
        })
        .collect();
    within(following, until, account).await
}

/// Keeps the watchers connected until `until`: reads, so that the edge's pings are answered, and
/// counts those whose connection ends before as failed.
pub(super) async fn hold(watchers: &mut [Watcher], account: &Account, until: Instant) {
    let holding: FuturesUnordered<_> = watchers
        .iter_mut()
        .map(async |watcher| watcher.follow(Goal::Hold, account).await)
        .collect();
    collect(holding, until, account).await;
}

/// Collects what succeeds before `until`, and counts the rest as failed.
pub(super) async fn within<T>(
    work: impl Stream<Item = io::Result<T>>,
    until: Instant,
    account: &Account,
) -> Vec<T> {
    let (done, unfinished) = collect(work, until, account).await;
    if unfinished > 0 {
        let reason = "a client was not done in time".to_owned();
        account.tally().fail(unfinished, reason);
    }
    done
}

/// Collects what succeeds before `until`, counts errors as failed, and returns also how many clients
/// are not done.
async fn collect<T>(
    work: impl Stream<Item = io::Result<T>>,
    until: Instant,
    account: &Account,
) -> (Vec<T>, usize) {
    let mut work = std::pin::pin!(work);
    let mut done = Vec::new();
    loop {
        match timeout_at(until, work.next()).await {
            Ok(Some(Ok(client))) => done.push(client),
            Ok(Some(Err(error))) => account.tally().fail(1, error.to_string()),
            Ok(None) => return (done, 0),
            // Streams of futures know exactly how many remain.
            Err(_) => return (done, work.size_hint().0),
        }
    }
}

/// By when clients must be connected or done, if nothing else bounds them.
pub(super) fn grace() -> Instant {
    Instant::now() + BENCH_GRACE
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::net::SocketAddr;

    use futures_util::stream;
    use memchr::memmem;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::frames::{PONG, client_frame};
    use super::super::transport::ClientTransport;
    use super::*;

    /// Accepts a client that connects over WebSocket, and sends it these frames.
    async fn accept(edge: &TcpListener, frames: &[u8]) -> TcpStream {
        let (mut stream, _) = edge.accept().await.unwrap();
        let head: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        stream.write_all(&[head, frames].concat()).await.unwrap();
        stream
    }

    async fn connected(edge: SocketAddr) -> Vec<Watcher> {
        let watched = WatchedJob::new("j1".parse().unwrap(), 0);
        let watcher = Watcher::connect(edge, ClientTransport::Ws, watched).await;
        vec![watcher.unwrap()]
    }

    #[tokio::test]
    async fn each_client_that_fails_or_is_not_done_in_time_counts() {
        let account = Account::new().unwrap();
        let clients = || {
            stream::iter(0..6).map(async |client| match client {
                0 => Ok(client),
                1 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                _ => pending().await,
            })
        };
        let done = within(clients().buffer_unordered(3), Instant::now(), &account).await;
        assert_eq!(done, [0]);
        assert_eq!(account.tally().failed, 5);
        let all: FuturesUnordered<_> = clients().collect().await;
        within(all, Instant::now(), &account).await;
        assert_eq!(account.tally().failed, 10);
    }

    #[tokio::test]
    async fn a_held_client_answers_pings_and_has_failed_if_its_connection_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let edge = listener.local_addr().unwrap();
        let account = Account::new().unwrap();
        let serving = async {
            let mut stream = accept(&listener, b"\x89\x01p").await;
            let pong = client_frame(PONG, b"p");
            let mut received = Vec::new();
            while memmem::find(&received, &pong).is_none() {
                let read = stream.read_buf(&mut received).await.unwrap();
                assert!(read > 0, "it ended without a pong");
            }
        };
        let holding = async {
            let mut watchers = connected(edge).await;
            hold(&mut watchers, &account, grace()).await;
        };
        tokio::join!(serving, holding);
        assert_eq!(account.tally().failed, 1);
    }

    #[tokio::test]
    async fn a_client_that_is_held_to_the_end_has_not_failed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let edge = listener.local_addr().unwrap();
        let account = Account::new().unwrap();
        let (_stream, mut watchers) = tokio::join!(accept(&listener, b""), connected(edge));
        hold(&mut watchers, &account, Instant::now()).await;
        assert_eq!(account.tally().failed, 0);
    }
}
