//! Real `nats-server` processes: one node, or a cluster of three, each with its own store and
//! ports. They end with the test process, however that ends.

use std::collections::HashMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tailwater::process_group::{Signal, kill_group};
use tempfile::TempDir;

use super::link::{Flow, Link};
use super::{free_port, roles, root};

/// A broker of one or three nodes.
pub struct Broker {
    nodes: Vec<Node>,
    _dir: TempDir,
}

struct Node {
    name: String,
    dir: PathBuf,
    port: u16,
    /// The port for routes, and the ports of all nodes.
    cluster: Option<(u16, Vec<u16>)>,
    /// Who may do what, and additional configuration.
    extra: String,
    max_payload: &'static str,
    child: Option<Child>,
}

/// Where the `nats-server` program is; `scripts/nats-server.sh` fetches it when it has to.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let script = root().join("scripts/nats-server.sh");
        let found = Command::new(script)
            .stderr(Stdio::inherit())
            .output()
            .expect("scripts/nats-server.sh runs");
        assert!(
            found.status.success(),
            "scripts/nats-server.sh found no nats-server"
        );
        String::from_utf8(found.stdout)
            .expect("a path")
            .trim()
            .into()
    })
}

impl Broker {
    /// A separate node, for a test that disturbs it.
    pub fn one() -> Self {
        let dir = TempDir::new().unwrap();
        let node = Node::new(dir.path(), "n1", free_port(), None);
        Self::start(vec![node], dir)
    }

    /// A separate node with this configuration instead of a user per role.
    pub fn with_config(extra: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let mut node = Node::new(dir.path(), "n1", free_port(), None);
        extra.clone_into(&mut node.extra);
        Self::start(vec![node], dir)
    }

    /// A separate node with this limit for messages.
    pub fn with_max_payload(max_payload: &'static str) -> Self {
        let dir = TempDir::new().unwrap();
        let mut node = Node::new(dir.path(), "n1", free_port(), None);
        node.max_payload = max_payload;
        Self::start(vec![node], dir)
    }

    /// Three separate nodes.
    pub fn three() -> Self {
        let dir = TempDir::new().unwrap();
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let nodes = (0..3)
            .map(|i| {
                Node::new(
                    dir.path(),
                    &format!("n{}", i + 1),
                    free_port(),
                    Some((routes[i], routes.clone())),
                )
            })
            .collect();
        Self::start(nodes, dir)
    }

    /// Three separate nodes that reach each other over links only.
    pub async fn three_linked() -> (Self, Routes) {
        let dir = TempDir::new().unwrap();
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let mut nodes = Vec::new();
        let mut links = HashMap::new();
        for (from, own) in ports.iter().enumerate() {
            let mut routes = Vec::new();
            for (to, port) in ports.iter().enumerate().filter(|(to, _)| *to != from) {
                let link = Link::to(&format!("127.0.0.1:{port}")).await;
                routes.push(link.addr.rsplit(':').next().unwrap().parse().unwrap());
                links.insert((from, to), link);
            }
            nodes.push(Node::new(
                dir.path(),
                &format!("n{}", from + 1),
                free_port(),
                Some((*own, routes)),
            ));
        }
        (Self::start(nodes, dir), Routes(links))
    }

    /// The node that all tests share that do not disturb it.
    pub fn shared_one() -> &'static Self {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(Self::one)
    }

    /// The cluster that all tests share that do not disturb it.
    pub fn shared_three() -> &'static Self {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(Self::three)
    }

    fn start(nodes: Vec<Node>, dir: TempDir) -> Self {
        let mut broker = Self { nodes, _dir: dir };
        for index in 0..broker.nodes.len() {
            broker.restart(index);
        }
        broker
    }

    /// The URL for clients.
    pub fn url(&self) -> String {
        let urls: Vec<_> = self
            .nodes
            .iter()
            .map(|node| format!("nats://127.0.0.1:{}", node.port))
            .collect();
        urls.join(",")
    }

    /// Host and port of one node.
    pub fn addr(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[index].port)
    }

    /// A copy of one node's store on disk.
    pub fn copy_store(&self, index: usize) -> TempDir {
        let copy = TempDir::new().unwrap();
        copy_all(&self.nodes[index].dir.join("jetstream"), copy.path());
        copy
    }

    /// Puts a copy of the store back under a node that was killed.
    pub fn restore(&self, index: usize, copy: &TempDir) {
        let store = self.nodes[index].dir.join("jetstream");
        fs::remove_dir_all(&store).unwrap();
        copy_all(copy.path(), &store);
    }

    /// Whether it has the users of [`roles`].
    pub fn has_roles(&self) -> bool {
        self.nodes[0].extra == roles::accounts()
    }

    /// The logs of the nodes.
    pub fn logs(&self) -> Vec<PathBuf> {
        self.nodes.iter().map(|node| node.dir.join("log")).collect()
    }

    /// The number of nodes that keep a message.
    pub fn replicas(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap()
    }

    /// The node of this name.
    pub fn index_of(&self, name: &str) -> usize {
        self.nodes
            .iter()
            .position(|node| node.name == name)
            .expect("a node of this broker")
    }

    /// `kill -9` of one node.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].kill();
    }

    /// Freezes or continues one node, by SIGSTOP and SIGCONT.
    pub fn signal(&self, index: usize, signal: Signal) {
        let child = self.nodes[index].child.as_ref().expect("a node that runs");
        kill_group(child.id(), signal).unwrap();
    }

    /// Starts a node again, on the same ports and the same store, and waits until it listens.
    pub fn restart(&mut self, index: usize) {
        self.nodes[index].start();
    }
}

impl Node {
    fn new(dir: &Path, name: &str, port: u16, cluster: Option<(u16, Vec<u16>)>) -> Self {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        Self {
            name: name.to_owned(),
            dir,
            port,
            cluster,
            extra: roles::accounts(),
            max_payload: "1MB",
            child: None,
        }
    }

    fn start(&mut self) {
        self.kill();
        let config = self.dir.join("server.conf");
        let shared = root().join("nats/server.conf");
        let shared = fs::read_to_string(shared).unwrap();
        // Streams reserve their size. Those of all tests together reserve more than a small disk
        // has, but use little.
        let shared = shared.replacen("jetstream {", "jetstream {\n  max_file_store: 1TB", 1);
        let shared = shared.replacen(
            "max_payload: 1MB",
            &format!("max_payload: {}", self.max_payload),
            1,
        );
        let has_both = shared.contains("max_file_store: 1TB") && shared.contains(self.max_payload);
        assert!(has_both, "nats/server.conf has no place for it");
        let mut text = format!("server_name: {}\n{shared}\n{}\n", self.name, self.extra);
        if let Some((port, routes)) = &self.cluster {
            // Clients and nodes use only the addresses that the test gives them, not those that
            // nodes advertise.
            let routes: Vec<_> = routes
                .iter()
                .map(|port| format!("nats://127.0.0.1:{port}"))
                .collect();
            let routes = routes.join(", ");
            text += &format!(
                "cluster {{ name: T, listen: 127.0.0.1:{port}, routes: [{routes}], no_advertise: true, advertise: '127.0.0.1:1' }}\n"
            );
        }
        fs::write(&config, text).unwrap();
        let log = fs::File::create(self.dir.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tailwater"))
            .args(["guard", "--parent", &std::process::id().to_string(), "--"])
            .arg(program())
            .arg("-c")
            .arg(config)
            .args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-sd"])
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("the guard starts");
        self.child = Some(child);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = || fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(
                tokio::time::Instant::now() < deadline,
                "nats-server {} does not listen:\n{}",
                self.name,
                log()
            );
            assert!(
                self.child.as_mut().unwrap().try_wait().unwrap().is_none(),
                "it ended:\n{}",
                log()
            );
            pause_thread(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_group(child.id(), Signal::KILL);
            child.wait().expect("a child of this process");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The links between nodes, by connecting node and target.
pub struct Routes(HashMap<(usize, usize), Link>);

impl Routes {
    /// Cuts one node off from the others, without a reset, or joins it again.
    pub fn cut_off(&self, node: usize, cut: bool) {
        let flow = if cut { Flow::Silent } else { Flow::Open };
        for (_, link) in self
            .0
            .iter()
            .filter(|((from, to), _)| *from == node || *to == node)
        {
            link.set(flow);
        }
    }
}

/// Copies a folder. Files that are removed meanwhile are skipped.
fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            let _ = fs::copy(entry.path(), target);
        }
    }
}

/// Without the core that the node needs to start.
#[expect(
    clippy::disallowed_methods,
    reason = "a node starts outside of any runtime, too"
)]
fn pause_thread(time: Duration) {
    std::thread::sleep(time);
}
