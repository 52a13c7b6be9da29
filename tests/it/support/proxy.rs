//! A TCP proxy between clients and edges: it cuts connections, at once, after a while or at any
//! byte, stalls them, switches to another edge, and spreads them over several.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tailwater::runtime::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Listens on a free port until it is dropped.
pub struct Proxy {
    pub addr: String,
    shared: Arc<Mutex<Shared>>,
    stalled: watch::Sender<bool>,
    cuts: Arc<AtomicUsize>,
    tasks: Tasks,
}

struct Shared {
    /// Connections go to these in turn.
    targets: Vec<String>,
    /// Cancelled to cut the present connections.
    cut: CancellationToken,
}

/// How long a connection lasts unless it is cut: this time, and this many bytes to the client.
#[derive(Clone, Copy)]
struct Life {
    time: Duration,
    bytes: u64,
}

const FOREVER: Life = Life {
    time: Duration::from_secs(1 << 32),
    bytes: u64::MAX,
};

impl Proxy {
    /// A proxy to `target`, host and port.
    pub async fn to(target: &str) -> Self {
        Self::with(&[target], |_| FOREVER).await
    }

    /// A proxy that connects clients to `targets` in turn, as a load balancer does.
    pub async fn between(targets: &[&str]) -> Self {
        Self::with(targets, |_| FOREVER).await
    }

    /// The first `cuts` connections end at some byte: scattered, and the same in every run.
    pub async fn cutting_at_bytes(target: &str, cuts: u64) -> Self {
        Self::with(&[target], move |count| {
            if count < cuts {
                Life {
                    bytes: 300 + count * 1237 % 2000,
                    ..FOREVER
                }
            } else {
                FOREVER
            }
        })
        .await
    }

    /// The first 14 connections end early: after 30 bytes, and each 50 bytes later than the one before.
    /// Some of them end within the response to a Socket.IO handshake, which has about 640 bytes.
    pub async fn cutting_handshakes(target: &str) -> Self {
        Self::with(&[target], |count| {
            if count < 14 {
                Life {
                    bytes: 30 + count * 50,
                    ..FOREVER
                }
            } else {
                FOREVER
            }
        })
        .await
    }

    /// Each connection ends after a time between these two, which are scattered evenly.
    pub async fn cutting_after(target: &str, shortest: Duration, longest: Duration) -> Self {
        Self::with(&[target], move |count| {
            let place = (count as f64 * 0.618_034).fract();
            Life {
                time: shortest + (longest - shortest).mul_f64(place),
                ..FOREVER
            }
        })
        .await
    }

    async fn with(targets: &[&str], life: impl Fn(u64) -> Life + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let targets = targets.iter().map(|&target| target.to_owned()).collect();
        let shared = Arc::new(Mutex::new(Shared {
            targets,
            cut: CancellationToken::new(),
        }));
        let tasks = Tasks::new(CancellationToken::new());
        let cuts = Arc::<AtomicUsize>::default();
        let inner = Arc::clone(&shared);
        let counted = Arc::clone(&cuts);
        let connections = tasks.clone();
        let (stalled, stall) = watch::channel(false);
        tasks.spawn_until_stop(async move {
            for count in 0_u64.. {
                let Ok((client, _)) = listener.accept().await else {
                    return;
                };
                let (target, cut) = {
                    let shared = inner.lock().unwrap();
                    let target = &shared.targets[count as usize % shared.targets.len()];
                    (target.clone(), shared.cut.clone())
                };
                let life = life(count);
                let stall = stall.clone();
                let cuts = Arc::clone(&counted);
                connections.spawn_until_stop(async move {
                    let carried = carry(client, &target, stall, life.bytes);
                    let ended = timeout(life.time, cut.run_until_cancelled(carried)).await;
                    let was_cut = !matches!(ended, Ok(Some(false)));
                    cuts.fetch_add(usize::from(was_cut), Ordering::Relaxed);
                });
            }
        });
        Self {
            addr,
            shared,
            stalled,
            cuts,
            tasks,
        }
    }

    /// Stops or continues reading from the edge: the edge sees clients that do not read.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// Cuts every present connection.
    pub fn cut(&self) {
        std::mem::take(&mut self.shared.lock().unwrap().cut).cancel();
    }

    /// How many connections it has cut.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }

    /// Sends future connections to another edge.
    pub fn lead_to(&self, target: &str) {
        self.shared.lock().unwrap().targets = vec![target.to_owned()];
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.stop().cancel();
    }
}

/// Forwards bytes until one side ends, or until the client got this many: then it returns true.
async fn carry(
    client: TcpStream,
    target: &str,
    mut stall: watch::Receiver<bool>,
    bytes: u64,
) -> bool {
    // If the edge is gone, the connection closes.
    let Ok(edge) = TcpStream::connect(target).await else {
        return false;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_edge, mut to_edge) = edge.into_split();
    let down = async {
        let mut buffer = vec![0; 16 * 1024];
        let mut left = bytes;
        loop {
            let _ = stall.wait_for(|stalled| !stalled).await;
            let room = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            if room == 0 {
                return true;
            }
            match from_edge.read(&mut buffer[..room]).await {
                Ok(read) if read > 0 && to_client.write_all(&buffer[..read]).await.is_ok() => {
                    left -= read as u64;
                }
                _ => return false,
            }
        }
    };
    // The connection ends when either side does.
    tokio::select! {
        cut = down => cut,
        _ = copy(&mut from_client, &mut to_edge) => false,
    }
}
