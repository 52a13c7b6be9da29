//! A TCP connection that can go silent, as a network that drops every packet: nothing is forwarded,
//! nothing is closed, and a new connection gets no answer. It can also be slow.

use std::time::Duration;

use tailwater::runtime::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// What a link does with bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Flow {
    /// Forwards them.
    Open,
    /// Holds them, in both directions, until it is open again.
    Silent,
    /// Delays what the target sends.
    Late(Duration),
}

/// Listens on a free port until it is dropped, and connects each client to one target.
pub struct Link {
    pub addr: String,
    flow: watch::Sender<Flow>,
    tasks: Tasks,
}

impl Link {
    /// An open link to `target`, host and port.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let tasks = Tasks::new(CancellationToken::new());
        let (flow, watched) = watch::channel(Flow::Open);
        let target = target.to_owned();
        let connections = tasks.clone();
        tasks.spawn_until_stop(async move {
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn_until_stop(carry(client, target.clone(), watched.clone()));
            }
        });
        Self { addr, flow, tasks }
    }

    /// Changes the flow of present and future connections.
    pub fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.stop().cancel();
    }
}

async fn carry(client: TcpStream, target: String, mut flow: watch::Receiver<Flow>) {
    if flow.wait_for(|flow| *flow != Flow::Silent).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // The connection ends when either side does.
    tokio::select! {
        () = pump(from_client, to_server, flow.clone(), false) => {}
        () = pump(from_server, to_client, flow, true) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    flow: watch::Receiver<Flow>,
    may_be_late: bool,
) {
    // As much as a slow network buffers.
    let (held, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(256);
    let mut read_flow = flow.clone();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if read_flow
                .wait_for(|flow| *flow != Flow::Silent)
                .await
                .is_err()
            {
                return;
            }
            let Ok(read @ 1..) = from.read(&mut buffer).await else {
                return;
            };
            let late = match *read_flow.borrow() {
                Flow::Late(late) if may_be_late => late,
                Flow::Late(_) | Flow::Open | Flow::Silent => Duration::ZERO,
            };
            if held
                .send((Instant::now() + late, buffer[..read].to_vec()))
                .await
                .is_err()
            {
                return;
            }
        }
    };
    let mut write_flow = flow;
    let write = async move {
        while let Some((at, bytes)) = due.recv().await {
            sleep_until(at).await;
            if write_flow
                .wait_for(|flow| *flow != Flow::Silent)
                .await
                .is_err()
                || to.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
