use std::process::Stdio;

use futures_util::future::{join, join_all};
use serde_json::Value;
use tailwater::wire::Submission;
use tokio::process::{Child, Command};
use tokio::time::Duration;

use crate::support::backends::Pieces;
use crate::support::broker::Broker;
use crate::support::client::{Seen, follow};
use crate::support::proxy::Proxy;
use crate::support::system::{System, text, words};
use crate::support::{python, root, timed, within};

/// A program that follows a job with a third-party library.
struct Follower {
    name: &'static str,
    child: Child,
}

/// What the program prints at its end.
struct Report {
    seen: Seen,
    /// The `Last-Event-ID` of each request.
    asked: Vec<Option<String>>,
    /// The status of each answer.
    statuses: Vec<u64>,
}

/// `eventsource` and `event-source-polyfill` for Node.js, and `httpx-sse` for Python.
fn all(addr: &str, job: &str, drops: u32) -> [Follower; 3] {
    let clients = root().join("tests/clients");
    let url = format!("http://{addr}/api/jobs/{job}/events");
    let start = |name, mut command: Command, url: &str| {
        command
            .args([url, &drops.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        Follower {
            name,
            child: command.kill_on_drop(true).spawn().unwrap(),
        }
    };
    let node = |package| {
        let mut node = Command::new("node");
        node.arg(clients.join("sse.mjs")).arg(package);
        node
    };
    let mut py = Command::new(python("python"));
    py.arg(clients.join("sse_client.py"));
    [
        start("eventsource", node("eventsource"), &url),
        // This client keeps the query and adds the id to it.
        start(
            "event-source-polyfill",
            node("event-source-polyfill"),
            &format!("{url}?after=0"),
        ),
        start("httpx-sse", py, &url),
    ]
}

impl Follower {
    /// Waits until it stops, which it does after a 204.
    async fn report(self, job: &str) -> Report {
        let out = within(self.name, self.child.wait_with_output())
            .await
            .unwrap();
        assert!(out.status.success(), "{}", self.name);
        let said: Value = serde_json::from_slice(&out.stdout).unwrap();
        let list = |name: &str| said[name].as_array().unwrap().clone();
        let mut seen = Seen::of(job);
        // The program reports gaps apart from events; only the first event can follow a gap.
        list("missing")
            .iter()
            .for_each(|missing| seen.record(missing));
        for (event, id) in list("events").iter().zip(list("ids")) {
            assert_eq!(event["cursor"], id, "{}", self.name);
            seen.record(event);
        }
        let statuses: Vec<_> = list("statuses")
            .iter()
            .map(|status| status.as_u64().unwrap())
            .collect();
        assert_eq!(statuses.last(), Some(&204), "{}", self.name);
        seen.ended = true;
        let asked = list("asked")
            .iter()
            .map(|id| id.as_str().map(str::to_owned))
            .collect();
        Report {
            seen,
            asked,
            statuses,
        }
    }
}

impl Report {
    fn assert_whole(&self, expected: &str) {
        self.seen.assert_whole();
        assert_eq!(self.seen.text(), expected);
        // Only the last request, which names the job's end, gets a 204.
        assert_eq!(self.asked.last().unwrap(), &self.seen.cursor);
        assert_eq!(
            self.statuses
                .iter()
                .filter(|status| **status == 204)
                .count(),
            1
        );
    }
}

#[tokio::test]
async fn a_client_that_drops_at_random_gets_the_exact_text() {
    let system = System::on(Broker::shared_one()).await;
    system.wordy().await;
    let edge = system.edge().await;
    let input = words(150, 15, 5);
    system.submit("drops", input.clone()).await;
    // Another client follows the same job over a WebSocket.
    let reports = all(&edge.addr, "drops", 6).map(|follower| follower.report("drops"));
    let (reports, socket) = join(join_all(reports), follow(&edge.addr, "drops")).await;
    for report in reports {
        report.assert_whole(&text(&input));
        assert!(report.asked.len() >= 8, "{:?}", report.asked);
        assert_eq!(report.seen.events, socket.events);
    }
    system.end().await;
}

#[tokio::test]
async fn a_client_survives_cuts_at_any_byte() {
    let system = System::on(Broker::shared_three()).await;
    system.wordy().await;
    let edge = system.edge().await;
    let input = words(150, 15, 6);
    system.submit("cuts", input.clone()).await;
    let proxy = Proxy::cutting_at_bytes(&edge.addr, 12).await;
    let reports =
        join_all(all(&proxy.addr, "cuts", 0).map(|follower| follower.report("cuts"))).await;
    let asked: usize = reports.iter().map(|report| report.asked.len()).sum();
    assert!(asked >= 15, "{asked}");
    for report in reports {
        report.assert_whole(&text(&input));
    }
    system.end().await;
}

#[tokio::test]
async fn a_slow_curl_gets_everything_and_delays_no_other_client() {
    let system = System::on(Broker::shared_one()).await;
    system
        .worker(Pieces { count: 5000 }, |settings| {
            settings.kind = "pieces".parse().unwrap()
        })
        .await;
    system.demo().await;
    let edge = system.edge().await;
    let submission = Submission::new("pieces".parse().unwrap(), Value::Null);
    let job = system.submit_with("slow", submission).await;
    let state = system.ended(&job).await;
    // It reads as slowly as its output is read.
    let mut curl = Command::new("curl")
        .args([
            "-sSN",
            &format!("http://{}/api/jobs/slow/events", edge.addr),
        ])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    system.submit("beside", words(30, 20, 1)).await;
    let (seen, took) = Box::pin(timed(follow(&edge.addr, "beside"))).await;
    seen.assert_whole();
    assert!(took < Duration::from_secs(4), "{took:?}");
    let ended = curl.try_wait().unwrap();
    assert_eq!(ended, None, "nobody has read what curl received");
    let out = within("curl", curl.wait_with_output()).await.unwrap();
    assert!(out.status.success());
    let stream = String::from_utf8(out.stdout).unwrap();
    let mut seen = Seen::of("slow");
    for data in stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
    {
        seen.record(&serde_json::from_str(data).unwrap());
    }
    seen.ended = true;
    seen.assert_whole();
    assert_eq!((seen.text(), seen.last), (state.output, state.seq.0));
    assert!(seen.last > 4000, "{} events", seen.last);
    system.end().await;
}
