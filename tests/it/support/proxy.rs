//! A TCP proxy between a client and an edge: cuts connections, and leads to another edge.

use std::sync::{Arc, Mutex};

use tailwater::runtime::Tasks;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Listens on a free port until it is dropped.
pub struct Proxy {
    pub addr: String,
    shared: Arc<Mutex<Shared>>,
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
        tasks.spawn_until_stop(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, cut) = {
                    let shared = inner.lock().unwrap();
                    (shared.target.clone(), shared.cut.clone())
                };
                connections.spawn_until_stop(async move {
                    cut.run_until_cancelled(carry(client, &target)).await;
                });
            }
        });
        Self { addr, shared, tasks }
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

async fn carry(mut client: TcpStream, target: &str) {
    if let Ok(mut edge) = TcpStream::connect(target).await {
        let _ = copy_bidirectional(&mut client, &mut edge).await;
    }
}
