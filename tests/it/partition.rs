use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::{join_all, join4};
use serde_json::{Value, json};
use tailwater::nats::{Log, LogWriter, Names, Nats, Options, Tip};
use tailwater::process_group::Signal;
use tailwater::wire::{Body, JobId, Seq};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::broker::{Broker, Routes};
use crate::support::client::{Client, Encoding, Frame, Seen};
use crate::support::http::{http, post};
use crate::support::proxy::Proxy;
use crate::support::system::{Edge, System, text, words};
use crate::support::{eventually, within};

/// How long each partition lasts: longer than an election, and than an old leader goes on without a quorum.
const PARTITIONS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(20)];

/// Asks one node for what it knows of a stream, and gives who leads it and who is heard by it.
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
    let names = Names::new(&system.options.prefix);
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
    let options = Options {
        url: urls.join(",").into(),
        ..system.options.clone()
    };
    System {
        options,
        log: system.log.clone(),
        queue: system.queue.clone(),
        tasks: system.tasks.clone(),
    }
    .edge()
    .await
}

/// What clients were told that must not be false.
#[derive(Debug, Default)]
struct Told {
    /// Refusals by code.
    refused: BTreeMap<String, u32>,
    answered: u32,
}

impl Told {
    fn refused(&mut self, code: &str) {
        *self.refused.entry(code.to_owned()).or_default() += 1;
    }

    /// Demands that nothing but "come back" was said.
    #[expect(
        clippy::print_stdout,
        reason = "the figures are worth reading when somebody looks"
    )]
    fn assert_passing(&self, what: &str) {
        println!("{what}: {self:?}");
        let codes: Vec<_> = self.refused.keys().map(String::as_str).collect();
        assert!(
            codes.iter().all(|&code| code == "unavailable"),
            "{what}: {self:?}"
        );
    }
}

/// Follows a job to its end over whichever edge comes next, and comes back after each drop and each `unavailable`. It is
/// dropped every now and then, so that it has to resume.
async fn follow(edges: &[&Edge], job: &str, nth: usize) -> (Seen, Told) {
    let (mut seen, mut told) = (Seen::of(job), Told::default());
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
                    told.refused(frame["code"].as_str().unwrap());
                    sleep(Duration::from_millis(200)).await;
                    break;
                }
                Frame::Json(frame) => seen.take(&frame),
                Frame::Closed(_) | Frame::Cut => break,
            }
            if seen.ended {
                break;
            }
        }
        told.answered += 1;
    }
    (seen, told)
}

/// Asks for the state of a job again and again: it is there, and never behind what this edge has said before.
async fn states(edge: &Edge, job: &str, over: &CancellationToken) -> Told {
    let (mut told, mut last) = (Told::default(), 0);
    while !over.is_cancelled() {
        let (status, _, body) = http(edge, "GET", &format!("/api/jobs/{job}/state"), "", b"").await;
        if status == 200 {
            let seq = body["seq"].as_u64().unwrap();
            assert!(seq >= last, "a state went back from {last} to {seq}");
            (told.answered, last) = (told.answered + 1, seq);
        } else {
            told.refused(body["code"].as_str().unwrap());
        }
        sleep(Duration::from_millis(150)).await;
    }
    told
}

/// Submits jobs, asks for each at once over the other edge, submits it again, and cancels it.
async fn submits(edges: &[&Edge], over: &CancellationToken) -> (Told, Vec<JobId>) {
    let (mut told, mut jobs) = (Told::default(), Vec::new());
    for n in 0.. {
        if over.is_cancelled() {
            break;
        }
        let (one, other) = (edges[n % edges.len()], edges[(n + 1) % edges.len()]);
        let id = format!("sub-{n}");
        let job = json!({"kind": "demo", "id": id, "input": words(5, 50, n as u64)});
        let (status, body) = post(one, &job).await;
        if status == 503 {
            told.refused(body["code"].as_str().unwrap());
            sleep(Duration::from_millis(100)).await;
            continue;
        }
        // The first answer may have been lost, but not the job.
        assert!(status == 202 || status == 200, "{status} {body}");
        jobs.push(id.parse().unwrap());
        for (method, path) in [("GET", "/state"), ("POST", "/cancel")] {
            let (status, _, body) =
                http(other, method, &format!("/api/jobs/{id}{path}"), "", b"").await;
            match status {
                // Ended before it could be cancelled.
                200 | 202 | 409 if status != 409 || body["code"] == "job_ended" => {
                    told.answered += 1
                }
                _ => told.refused(body["code"].as_str().unwrap()),
            }
        }
        let (status, body) = post(other, &job).await;
        assert!(
            status == 200 || status == 503,
            "the same job again: {status} {body}"
        );
        sleep(Duration::from_millis(100)).await;
    }
    (told, jobs)
}

#[tokio::test]
async fn an_old_leader_without_a_quorum_makes_no_edge_say_anything_final() {
    let (broker, routes) = Broker::three_linked().await;
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    system.demo().await;
    system.kind_is_known().await;
    lead(&system, &broker, 0).await;
    // At the old leader, on the other side, and on both.
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
        sleep(Duration::from_secs(3)).await;
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
    for (n, (seen, told)) in followers.iter().enumerate() {
        told.assert_passing(&format!("resumes of part-{n}"));
        assert_eq!(
            (&seen.missing, &seen.holes, seen.doubled),
            (&vec![], &vec![], 0)
        );
        seen.assert_whole();
        assert_eq!(seen.text(), text(&inputs[n]));
    }
    for told in &states {
        told.assert_passing("states");
    }
    submitted.assert_passing("submits, states, cancels");
    for job in jobs {
        system.ended(&job).await;
    }
    system.end().await;
}

#[tokio::test]
async fn a_leader_whose_followers_hang_says_nothing_final_until_they_go_on() {
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
        // Until a follower could call an election, there is no other leader whose word could differ.
        eventually("an answer that asks to come back", || async {
            let (status, _, body) = http(&edge, method, &path, "", b"").await;
            assert!(status == 503 || status == refused, "{body}");
            (status == 503).then_some(())
        })
        .await;
        // A leader gives up by itself when it has had no quorum for 10 s.
        assert!(
            stopped.elapsed() < Duration::from_secs(9),
            "{:?}",
            stopped.elapsed()
        );
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

/// A worker stores an event on one side of a partition, comes back on the other, and looks at the log. `None` when the old
/// leader had given up by then.
async fn a_worker_that_moves_to_an_old_leader(
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
    let stream = Names::new(&system.options.prefix).chunks_stream(0);
    eventually("a leader of the other two", || async {
        let info = timeout(Duration::from_millis(300), info(&broker.addr(1), &stream))
            .await
            .ok()??;
        ["n2", "n3"]
            .contains(&info["cluster"]["leader"].as_str()?)
            .then_some(())
    })
    .await;
    let mut writer = LogWriter::new(log.clone(), job.clone(), 1, Some(&queued));
    let (kind, worker) = ("demo".parse().unwrap(), "w".into());
    writer
        .append(Body::Started {
            kind,
            worker,
            continues: false,
        })
        .await
        .unwrap();
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
async fn an_old_leader_without_a_quorum_takes_a_job_from_no_worker() {
    let (broker, routes) = Broker::three_linked().await;
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    let mut caught = None;
    // It gives up after 10 s by itself, and an election may take as long.
    for round in 0..4 {
        let job = system
            .submit(&format!("moved-{round}"), words(1, 1, 1))
            .await;
        caught = Box::pin(a_worker_that_moves_to_an_old_leader(
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
