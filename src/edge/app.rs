//! What the handlers and clients of one edge thread share. It does nothing by itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::alarm::Alarms;
use super::browser::BrowserPolicy;
use super::drain::Clients;
use super::forwarded::TrustedProxies;
use super::gate::Gate;
use super::shared::EdgeShared;
use super::thread::EdgeThread;
use super::tls::Tls;
use crate::config::DRAIN_WINDOW;
use crate::hub::Hub;
use crate::nats::{Log, Queue, Reader, ReportCache, UsageCache};
use crate::runtime::Tasks;
use crate::wire::Kind;

/// The state of one edge thread.
pub(super) struct App {
    pub(super) log: Log,
    pub(super) queue: Queue,
    pub(super) hub: Arc<Hub<Reader>>,
    /// The tasks that serve clients. They are stopped after the clients have been asked to
    /// reconnect.
    pub(super) tasks: Tasks,
    pub(super) clients: Clients,
    /// Wakes the clients of open connections.
    pub(super) alarms: Alarms,
    pub(super) usage_cache: UsageCache,
    pub(super) report_cache: ReportCache,
    /// Permits to fold a state.
    pub(super) folds: Semaphore,
    pub(super) settings: EdgeSettings,
    pub(super) shared: EdgeShared,
    /// What the other threads see of this one.
    pub(super) thread: Arc<EdgeThread>,
    /// The thread's own runtime.
    pub(super) runtime: Handle,
}

/// The settings of an edge.
#[derive(Clone, Debug)]
pub struct EdgeSettings {
    /// The hosts that jobs may call back to, each `name` or `name:port`.
    pub callback_hosts: Vec<String>,
    /// The kind of the jobs that answer chats of the AI SDK.
    pub chat_kind: Option<Kind>,
    /// Whether `/` is the console.
    pub console: bool,
    /// Whether clients may choose job ids that name no kind.
    pub plain_ids: bool,
    /// The time over which clients are asked to reconnect when the edge stops.
    pub drain: Duration,
    /// Whether recorders submit, cancel and purge jobs for the edge, whose user may then not do so.
    pub recorder: bool,
    /// Whether clients need a token. All threads of an edge have clones of the same.
    pub gate: Gate,
    /// Which host names are served, and to which pages.
    pub browsers: BrowserPolicy,
    /// The proxies that report their clients' addresses.
    pub proxies: TrustedProxies,
    /// The certificate; without one, clients connect without TLS.
    pub tls: Option<Tls>,
}

impl EdgeSettings {
    /// The queue, as the edge may write to it.
    pub(super) fn queue(&self, log: Log) -> Queue {
        if self.recorder {
            Queue::through_recorders(log)
        } else {
            Queue::new(log)
        }
    }

    /// The address of an edge that listens at `addr`.
    pub fn url(&self, addr: SocketAddr) -> String {
        match self.tls {
            Some(_) => format!("https://{addr}"),
            None => format!("http://{addr}"),
        }
    }
}

impl Default for EdgeSettings {
    fn default() -> Self {
        Self {
            callback_hosts: Vec::new(),
            chat_kind: None,
            console: true,
            plain_ids: true,
            recorder: false,
            drain: DRAIN_WINDOW,
            gate: Gate::open(),
            browsers: BrowserPolicy::default(),
            proxies: TrustedProxies::default(),
            tls: None,
        }
    }
}
