//! `tailwater up` as a process.

use tempfile::TempDir;

use super::broker;
use super::process::Process;

/// `tailwater up` in a directory of its own, and where it serves.
pub struct Up {
    pub process: Process,
    pub nats: String,
    pub broker_pid: String,
    pub edge_pid: String,
    pub addr: String,
    pub dir: TempDir,
}

pub async fn up(dir: TempDir, command: &[&str]) -> Up {
    up_with(dir, &[], command).await
}

/// With these flags.
pub async fn up_with(dir: TempDir, flags: &[&str], command: &[&str]) -> Up {
    let mut args: Vec<String> = ["up", "--listen", "127.0.0.1:0", "--data-dir"]
        .map(str::to_owned)
        .to_vec();
    args.push(dir.path().display().to_string());
    args.extend([
        "--nats-server".to_owned(),
        broker::program().display().to_string(),
    ]);
    args.extend(flags.iter().map(|&flag| flag.to_owned()));
    if !command.is_empty() {
        args.push("--".to_owned());
        args.extend(command.iter().map(|&arg| arg.to_owned()));
    }
    let mut process = Process::start(args);
    let nats = process.says("nats ").await;
    let broker_pid = process.says("broker-pid ").await;
    let edge_pid = process.says("edge-pid ").await;
    let addr = process.says("ready http://").await;
    Up {
        process,
        nats,
        broker_pid,
        edge_pid,
        addr,
        dir,
    }
}
