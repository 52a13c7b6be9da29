use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::{join_all, join4};
use serde_json::{Value, json};
use tailwater::nats::{EventWriter, Log, Nats, Options, Tip};
use tailwater::process_group::Signal;
use tailwater::wire::{JobId, Seq};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::broker::{Broker, Routes};
use crate::support::client::{Client, Encoding, Frame, Seen};
use crate::support::http::{http, post};
use crate::support::proxy::Proxy;
use crate::support::system::{Edge, System, started, text, words};
use crate::support::{assert_within, eventually, within};

/// How long each partition lasts: longer than an election, and longer than an old leader answers
/// without a quorum.
const PARTITIONS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(20)];

/// Asks one node for its view of a stream.
async fn info(addr: &str, stream: &str) -> Option<Value> {
    let client = async_nats::connect(addr).await.ok()?;
    let answer = client
        .request(format!("$JS.API.STREAM.INFO.{stream}"), "".into())
        .await
        .ok()?;
    serde_json::from_slice(&answer.payload).ok()
}

/// All streams of a system.
fn streams(system: &System) -> Vec<String> {
    let names = system.names();
    (0..system.log.shards())
        .map(|shard| names.chunks_stream(shard))
        .chain([names.jobs_stream()])
        .collect()
}

/// Makes one node the leader of all streams.
async fn lead(system: &System, broker: &Broker, node: usize) {
    let name = format!("n{}", node + 1);
    let client = async_nats::connect(broker.addr(node)).await.unwrap();
    for stream in streams(system) {
        eventually("the leader", || async {
            let info = info(&broker.addr(node), &stream).await?;
            if info["cluster"]["leader"] == name.as_str() {
                return Some(());
            }
            let body = json!({"placement": {"preferred": name}}).to_string();
            let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
            let _ = client.request(subject, body.into()).await;
            sleep(Duration::from_millis(300)).await;
            None
        })
        .await;
    }
}

/// An edge whose connections are at these nodes only.
async fn edge_at(system: &System, broker: &Broker, nodes: &[usize]) -> Edge {
    let urls: Vec<_> = nodes
        .iter()
        .map(|&node| format!("nats://{}", broker.addr(node)))
        .collect();
    system.reached_at(&urls.join(",")).edge().await
}

/// The answers that clients got.
#[derive(Debug, Default)]
struct Answers {
    /// Refusals by code.
    refused: BTreeMap<String, u32>,
    accepted: u32,
}

impl Answers {
    fn refused(&mut self, code: &str) {
        *self.refused.entry(code.to_owned()).or_default() += 1;
    }

    /// Requires that every refusal asks the client to retry.
    #[expect(clippy::print_stdout, reason = "the figures help to judge a failure")]
    fn assert_passing(&self, what: &str) {
        println!("{what}: {self:?}");
        let codes: Vec<_> = self.refused.keys().map(String::as_str).collect();
        assert!(
            codes.iter().all(|&code| code == "unavailable"),
            "{what}: {self:?}"
        );
    }
}

/// Follows a job to its end over the edges in turn, and reconnects after each drop and each
/// `unavailable`. It drops its connection now and then, so that it has to resume.
async fn follow(edges: &[&Edge], job: &str, nth: usize) -> (Seen, Answers) {
    let mut seen = Seen::of(job);
    let mut answers = Answers::default();
    for turn in nth.. {
        if seen.ended {
            break;
        }
        let encoding = Encoding::ALL[turn % 2];
        let mut client = Client::connect_in(&edges[turn % edges.len()].addr, encoding).await;
        client.watch(&seen).await;
        let dropped = Instant::now() + Duration::from_millis(700 + (turn as u64 * 379) % 900);
        loop {
            let frame = tokio::select! {
                frame = client.next() => frame,
                () = tokio::time::sleep_until(dropped) => break,
            };
            match frame {
                Frame::Json(frame) if frame["op"] == "error" => {
                    answers.refused(frame["code"].as_str().unwrap());
                    sleep(Duration::from_millis(200)).await;
                    break;
                }
                Frame::Json(frame) => seen.record(&frame),
                Frame::Closed(_) | Frame::Cut => break,
            }
            if seen.ended {
                break;
            }
        }
        answers.accepted += 1;
    }
    (seen, answers)
}

/// Polls the state of a job: it never goes back compared with an earlier answer of the same edge.
async fn states(edge: &Edge, job: &str, over: &CancellationToken) -> Answers {
    let mut answers = Answers::default();
    let mut last = 0;
    while !over.is_cancelled() {
        let (status, _, body) = http(edge, "GET", &format!("/api/jobs/{job}/state"), "", b"").await;
        if status == 200 {
            let seq = body["seq"].as_u64().unwrap();
            assert!(seq >= last, "a state went back from {last} to {seq}");
            (answers.accepted, last) = (answers.accepted + 1, seq);
        } else {
            answers.refused(body["code"].as_str().unwrap());
        }
        sleep(Duration::from_millis(150)).await;
    }
    answers
}

/// Submits jobs; for each, asks the other edge for its state, cancels it, and submits it again.
async fn submits(edges: &[&Edge], over: &CancellationToken) -> (Answers, Vec<JobId>) {
    let mut answers = Answers::default();
    let mut jobs = Vec::new();
    for n in 0.. {
        if over.is_cancelled() {
            break;
        }
        let one = edges[n % edges.len()];
        let other = edges[(n + 1) % edges.len()];
        let id = format!("sub-{n}");
        let job = json!({"kind": "demo", "id": id, "input": words(5, 50, n as u64)});
        let (status, body) = post(one, &job).await;
        if status == 503 {
            answers.refused(body["code"].as_str().unwrap());
            sleep(Duration::from_millis(100)).await;
            continue;
        }
        // The first answer may have been lost, but the job exists.
        assert!(status == 202 || status == 200, "{status} {body}");
        jobs.push(id.parse().unwrap());
        for (method, path) in [("GET", "/state"), ("POST", "/cancel")] {
            let (status, _, body) =
                http(other, method, &format!("/api/jobs/{id}{path}"), "", b"").await;
            match status {
                // Ended before it could be cancelled.
                200 | 202 | 409 if status != 409 || body["code"] == "job_ended" => {
                    answers.accepted += 1
                }
                _ => answers.refused(body["code"].as_str().unwrap()),
            }
        }
        let (status, body) = post(other, &job).await;
        assert!(
            status == 200 || status == 503,
            "the same job again: {status} {body}"
        );
        sleep(Duration::from_millis(100)).await;
    }
    (answers, jobs)
}

#[tokio::test]
async fn an_edge_gives_no_final_answer_without_a_quorum() {
    let (broker, routes) = Broker::three_linked().await;
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    system.demo().await;
    system.kind_is_known().await;
    lead(&system, &broker, 0).await;
    // Connected to the old leader, to the other side, and to both.
    let edges = [
        edge_at(&system, &broker, &[0]).await,
        edge_at(&system, &broker, &[1, 2]).await,
        edge_at(&system, &broker, &[0, 1, 2]).await,
        edge_at(&system, &broker, &[0, 1, 2]).await,
    ];
    let edges: Vec<_> = edges.iter().collect();
    let inputs: Vec<_> = (0..8).map(|n| words(900, 15, n)).collect();
    for (n, input) in inputs.iter().enumerate() {
        system.submit(&format!("part-{n}"), input.clone()).await;
    }
    let over = CancellationToken::new();
    let chaos = async {
        system.reaches("part-0", 20).await;
        for how_long in PARTITIONS {
            routes.cut_off(0, true);
            sleep(how_long).await;
            routes.cut_off(0, false);
            sleep(Duration::from_secs(5)).await;
            Box::pin(within("the leader of all", lead(&system, &broker, 0))).await;
        }
        over.cancel();
    };
    let followers = join_all((0..inputs.len()).map(|n| {
        let edges = &edges;
        async move { follow(edges, &format!("part-{n}"), n).await }
    }));
    let states = join_all(edges.iter().map(|edge| states(edge, "part-0", &over)));
    let all = join4(chaos, followers, states, submits(&edges, &over));
    let ((), followers, states, (submitted, jobs)) =
        timeout(Duration::from_secs(240), Box::pin(all))
            .await
            .expect("all in time");
    for (n, (seen, answers)) in followers.iter().enumerate() {
        answers.assert_passing(&format!("resumes of part-{n}"));
        let found = (&seen.missing, &seen.gaps, seen.repeated);
        assert_eq!(found, (&vec![], &vec![], 0));
        seen.assert_text(text(&inputs[n]));
    }
    for answers in &states {
        answers.assert_passing("states");
    }
    submitted.assert_passing("submits, states, cancels");
    for job in jobs {
        system.ended(&job).await;
    }
    system.end().await;
}

#[tokio::test]
async fn final_answers_wait_for_hanging_followers() {
    let (broker, _routes) = Broker::three_linked().await;
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    system.submit("there", words(1, 1, 1)).await;
    lead(&system, &broker, 0).await;
    let edge = edge_at(&system, &broker, &[0]).await;
    let asks = [
        ("GET", "nowhere/state", 404),
        ("POST", "nowhere/cancel", 404),
        ("GET", "there/events?after=9", 409),
    ];
    for (method, path, refused) in asks {
        let (status, _, body) = http(&edge, method, &format!("/api/jobs/{path}"), "", b"").await;
        assert_eq!(status, refused, "{body}");
    }
    for follower in [1, 2] {
        broker.signal(follower, Signal::STOP);
    }
    let stopped = Instant::now();
    for (method, path, refused) in asks {
        let path = format!("/api/jobs/{path}");
        // Until a follower can call an election, no other leader exists.
        eventually("an answer that asks to come back", || async {
            let (status, _, body) = http(&edge, method, &path, "", b"").await;
            assert!(status == 503 || status == refused, "{body}");
            (status == 503).then_some(())
        })
        .await;
        // A leader steps down after 10 s without a quorum.
        assert_within(stopped, Duration::from_secs(9));
        let (status, _, body) = http(&edge, method, &path, "", b"").await;
        assert_eq!(status, 503, "{body}");
    }
    let (_, _, body) = http(&edge, "GET", "/readyz", "", b"").await;
    assert_eq!(body["status"], "ready", "the connections answer");
    for follower in [1, 2] {
        broker.signal(follower, Signal::CONT);
    }
    for (method, path, refused) in asks {
        eventually("the final answer", || async {
            let (status, _, _) = http(&edge, method, &format!("/api/jobs/{path}"), "", b"").await;
            (status == refused).then_some(())
        })
        .await;
    }
    system.end().await;
}

/// A worker stores an event on one side of a partition, reconnects to the other, and reads the log.
/// `None` when the old leader had stepped down by then.
async fn move_worker_to_an_old_leader(
    system: &System,
    broker: &Broker,
    routes: &Routes,
    job: &JobId,
) -> Option<()> {
    lead(system, broker, 0).await;
    let proxy = Proxy::to(&broker.addr(1)).await;
    let options = Options {
        url: format!("nats://{}", proxy.addr).into(),
        ..system.options.clone()
    };
    let nats = Nats::connect(&options).await.unwrap();
    let log = Log::open(&nats).await.unwrap();
    let queued = log.last(job).await.unwrap().unwrap();
    routes.cut_off(0, true);
    let stream = system.names().chunks_stream(0);
    eventually("a leader of the other two", || async {
        let info = timeout(Duration::from_millis(300), info(&broker.addr(1), &stream))
            .await
            .ok()??;
        ["n2", "n3"]
            .contains(&info["cluster"]["leader"].as_str()?)
            .then_some(())
    })
    .await;
    let mut writer = EventWriter::new(log.clone(), job.clone(), 1, Some(&queued));
    writer.append(started("w")).await.unwrap();
    proxy.lead_to(&broker.addr(0));
    proxy.cut();
    let old = async {
        loop {
            if let Ok(Tip::At {
                last: Some(last), ..
            }) = log.tip(job).await
            {
                break last;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let caught = timeout(Duration::from_secs(6), old).await.ok().map(|last| {
        assert_eq!(last.seq, Seq(1), "it lacks what the worker has stored");
    });
    let mut check = std::pin::pin!(writer.check());
    let early = timeout(Duration::from_secs(1), &mut check).await;
    assert!(early.is_err(), "{early:?}");
    routes.cut_off(0, false);
    within("the word of the leader", check).await.unwrap();
    nats.close().await;
    caught
}

#[tokio::test]
async fn an_old_leader_takes_no_job_from_its_worker() {
    let (broker, routes) = Broker::three_linked().await;
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    let mut caught = None;
    // The old leader steps down after 10 s, and an election may take as long.
    for round in 0..4 {
        let job = system
            .submit(&format!("moved-{round}"), words(1, 1, 1))
            .await;
        caught = Box::pin(move_worker_to_an_old_leader(
            &system, &broker, &routes, &job,
        ))
        .await;
        if caught.is_some() {
            break;
        }
    }
    assert!(caught.is_some(), "no old leader answered");
    system.end().await;
}
