//! A TCP proxy that cuts its connections at random, as bad networks do: in the middle of whatever is under way, without a
//! word to either side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tailwater::runtime::Tasks;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A proxy before one address.
pub struct Proxy {
    pub addr: SocketAddr,
    cuts: Arc<AtomicUsize>,
}

impl Proxy {
    /// Forwards to `to`, and cuts each connection after a time between these two.
    pub async fn start(tasks: &Tasks, to: String, shortest: Duration, longest: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let cuts = Arc::new(AtomicUsize::new(0));
        let (counted, spawning) = (Arc::clone(&cuts), tasks.clone());
        tasks.spawn_until_stop(async move {
            // Not random, but spread evenly, and another one for each connection.
            let mut place = 0.0_f64;
            while let Ok((mut client, _)) = listener.accept().await {
                place = (place + 0.618_034).fract();
                let life = shortest + (longest - shortest).mul_f64(place);
                let (to, cuts) = (to.clone(), Arc::clone(&counted));
                spawning.spawn_until_stop(async move {
                    // An edge that is down refuses; so does its proxy, by closing.
                    let Ok(mut edge) = TcpStream::connect(&to).await else { return };
                    if timeout(life, copy_bidirectional(&mut client, &mut edge)).await.is_err() {
                        cuts.fetch_add(1, Ordering::Relaxed);
                        // A reset, not a polite end.
                        let _ = client.set_zero_linger();
                        let _ = edge.set_zero_linger();
                    }
                });
            }
        });
        Self { addr, cuts }
    }

    /// How many connections it has cut.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}
