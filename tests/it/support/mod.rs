//! Real brokers, edges and workers inside or outside the test process, and clients. It contains no
//! tests.

/// Backends for workers inside the test process.
pub mod backends;
/// Real `nats-server` processes: one node or three.
pub mod broker;
/// Workers for callbacks, and jobs that call back.
pub mod callbacks;
/// A WebSocket client that records what it received.
pub mod client;
/// HTTP requests over a bare socket.
pub mod http;
/// An HTTP server whose answers a test decides byte by byte.
pub mod http_server;
/// A TCP connection that can go silent or be slow.
pub mod link;
/// The `tailwater` program as processes.
pub mod process;
/// A TCP proxy that cuts and stalls connections.
pub mod proxy;
/// The users of the test brokers.
pub mod roles;
/// Runs a scenario on several brokers and in several encodings.
pub mod scenarios;
/// Verifies signed requests.
pub mod signatures;
/// A Socket.IO client by hand.
pub mod socketio;
/// A client of server-sent events by hand.
pub mod sse;
/// Streams, edges and workers inside the test process.
pub mod system;
/// Clients that others wrote, as processes.
pub mod third_party;
/// Certificates, and connections with TLS.
pub mod tls;
/// Tokens, and clients that send them.
pub mod tokens;
/// Every transport, each with an independent client.
pub mod transports;
/// `tailwater up` as a process.
pub mod up;
/// Workers as processes.
pub mod workers;

use std::future::Future;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

/// The longest that one wait of a test may take. Longer than an election.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program of the virtual environment that `scripts/test.sh` makes.
pub fn python(program: &str) -> PathBuf {
    let path = root().join(".tools/venv/bin").join(program);
    assert!(
        path.exists(),
        "{} is missing: scripts/test.sh installs it",
        path.display()
    );
    path
}

/// A program of `examples/`. `cargo test` without a choice of targets and scripts/test.sh build it
/// beside the tests.
pub fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let example = tests
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        example.exists(),
        "no {}: cargo build --example {name}",
        example.display()
    );
    example
}

/// A port on which nothing listens, for a program that may also end and start again: it is outside the
/// ephemeral range of Linux, 32768 to 60999, so that no connection and no other listener takes it
/// meanwhile.
pub fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Processes that start one after another begin far from each other.
    let begin = std::process::id().wrapping_mul(997) % COUNT;
    let mut ports = (0..COUNT).map(|_| {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        u16::try_from(FIRST + (begin + given) % COUNT).unwrap()
    });
    let free = ports.find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    free.expect("a free port")
}

/// Random numbers. A test that fails shows their seed; `TEST_SEED` repeats it.
#[expect(
    clippy::disallowed_methods,
    reason = "a test has no command line of its own"
)]
#[expect(clippy::print_stdout, reason = "shown when the test fails")]
pub fn random() -> fastrand::Rng {
    let given = std::env::var("TEST_SEED").ok();
    let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Requires that less than `limit` has passed since then.
#[track_caller]
pub fn assert_within(since: Instant, limit: Duration) {
    let passed = since.elapsed();
    assert!(passed < limit, "{passed:?}, not less than {limit:?}");
}

/// Waits for `work`; returns how long this process ran meanwhile. What runs in this process took no
/// longer: the time in which a busy machine runs only others counts as one tick.
pub async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    const TICK: Duration = Duration::from_millis(10);
    let mut clock = interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // The first one is due at once.
    clock.tick().await;
    let mut work = Box::pin(work);
    let mut ran = Duration::ZERO;
    loop {
        tokio::select! {
            biased;
            result = &mut work => return (result, ran),
            _ = clock.tick() => ran += TICK,
        }
    }
}

/// Waits for `what`, or fails with its name.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Waits until `condition` holds, or fails with the name of what it waited for.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    eventually(what, async || condition().await.then_some(())).await;
}

/// The rows of a table: each line is split at white space.
pub fn table<const COLUMNS: usize>(text: &str) -> Vec<[&str; COLUMNS]> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .map(|row| row.try_into().unwrap_or_else(|row| panic!("{row:?}")))
        .collect()
}

/// Requires that a JSON object has these fields. A field of `null` may be absent.
macro_rules! assert_fields {
    ($value:expr, $fields:tt) => {
        assert_fields!($value, $fields, "")
    };
    ($value:expr, $fields:tt, $($context:tt)+) => {
        let value = &$value;
        let expected = serde_json::json!($fields);
        for (field, expected) in expected.as_object().unwrap() {
            assert_eq!(&value[field], expected, "{field} of {value}; {}", format!($($context)+));
        }
    };
}
pub(crate) use assert_fields;

/// Asks until there is an answer.
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
