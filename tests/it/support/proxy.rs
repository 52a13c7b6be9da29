//! A TCP proxy between a client and an edge: cuts connections, stalls them, and leads to another edge.

use std::sync::{Arc, Mutex};

use tailwater::runtime::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Listens on a free port until it is dropped.
pub struct Proxy {
    pub addr: String,
    shared: Arc<Mutex<Shared>>,
    stalled: watch::Sender<bool>,
    tasks: Tasks,
}

struct Shared {
    target: String,
    /// Cancelled when the connections of now are to be cut.
    cut: CancellationToken,
}

impl Proxy {
    /// A proxy to `target`, host and port.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let shared =
            Arc::new(Mutex::new(Shared { target: target.to_owned(), cut: CancellationToken::new() }));
        let tasks = Tasks::new(CancellationToken::new());
        let (inner, connections) = (Arc::clone(&shared), tasks.clone());
        let (stalled, stall) = watch::channel(false);
        tasks.spawn_until_stop(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, cut) = {
                    let shared = inner.lock().unwrap();
                    (shared.target.clone(), shared.cut.clone())
                };
                let stall = stall.clone();
                connections.spawn_until_stop(async move {
                    cut.run_until_cancelled(carry(client, &target, stall)).await;
                });
            }
        });
        Self { addr, shared, stalled, tasks }
    }

    /// Takes nothing more from the edge, or goes on: to the edge, clients that do not read.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// Cuts every connection that stands.
    pub fn cut(&self) {
        std::mem::take(&mut self.shared.lock().unwrap().cut).cancel();
    }

    /// Leads connections to come to another edge.
    pub fn lead_to(&self, target: &str) {
        target.clone_into(&mut self.shared.lock().unwrap().target);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.stop().cancel();
    }
}

async fn carry(client: TcpStream, target: &str, mut stall: watch::Receiver<bool>) {
    let Ok(edge) = TcpStream::connect(target).await else { return };
    let ((mut from_client, mut to_client), (mut from_edge, mut to_edge)) =
        (client.into_split(), edge.into_split());
    let down = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let _ = stall.wait_for(|stalled| !stalled).await;
            match from_edge.read(&mut buffer).await {
                Ok(read) if read > 0 && to_client.write_all(&buffer[..read]).await.is_ok() => {}
                _ => return,
            }
        }
    };
    // Whichever side ends, the connection does.
    tokio::select! {
        () = down => {}
        _ = copy(&mut from_client, &mut to_edge) => {}
    }
}
