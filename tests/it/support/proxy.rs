//! A TCP proxy between clients and edges: it can lead to another edge, and cut connections in the middle of anything.

use std::sync::{Arc, Mutex};

use tailwater::runtime::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What clients connect to.
pub struct Proxy {
    pub addr: String,
    target: Arc<Mutex<String>>,
}

impl Proxy {
    /// Leads to `target`. With `cuts`, the first so many connections end after a while, at any byte.
    pub async fn to(target: &str, cuts: u64, tasks: &Tasks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let target = Arc::new(Mutex::new(target.to_owned()));
        let proxy = Self { addr, target: Arc::clone(&target) };
        let every = tasks.clone();
        tasks.spawn_until_stop(async move {
            for count in 0_u64.. {
                let (client, _) = listener.accept().await.unwrap();
                let target = target.lock().unwrap().clone();
                // Scattered, and the same in every run.
                let after = if count < cuts { 300 + count * 1237 % 2000 } else { u64::MAX };
                every.spawn_until_stop(pipe(client, target, after));
            }
        });
        proxy
    }

    /// New connections lead there.
    pub fn switch(&self, target: &str) {
        target.clone_into(&mut self.target.lock().unwrap());
    }
}

/// Carries bytes both ways until one side ends, or so many have come back.
async fn pipe(client: TcpStream, target: String, after: u64) {
    // An edge that is gone is one that hangs up.
    let Ok(edge) = TcpStream::connect(target).await else { return };
    let ((mut from_client, mut to_client), (from_edge, mut to_edge)) =
        (client.into_split(), edge.into_split());
    let back = async {
        let mut from_edge = from_edge.take(after);
        let _ = tokio::io::copy(&mut from_edge, &mut to_client).await;
    };
    let there = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_edge).await;
        let _ = to_edge.shutdown().await;
    };
    tokio::select! {
        () = back => {}
        () = there => {}
    }
}
