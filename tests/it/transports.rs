use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tailwater::backend::{Backend, Failure, Finish, Job, Output, Retry};
use tailwater::wire::{Kind, Submission};
use tokio::time::sleep;

use crate::support::backends::Flaky;
use crate::support::broker::Broker;
use crate::support::client::{Client, Frame, Seen};
use crate::support::http::stats;
use crate::support::proxy::Proxy;
use crate::support::system::{System, text, words};
use crate::support::transports::{Follower, end_whole};
use crate::support::{eventually, random};

#[tokio::test]
async fn random_cuts_lose_and_repeat_nothing() {
    let system = System::on(Broker::shared_three()).await;
    system.demo().await;
    let edges = [system.edge().await, system.edge().await];
    let proxy = Proxy::to(&edges[0].addr).await;
    let input = words(400, 60, 5);
    // The other tests use plain ids.
    system.submit("demo:cut", input.clone()).await;
    let mut followers = Follower::all(&proxy.addr, "demo:cut");
    for follower in &mut followers {
        follower.reaches(3).await;
    }
    let cuts = async {
        let mut random = random();
        for n in 0..25 {
            sleep(Duration::from_millis(random.u64(40..340))).await;
            proxy.lead_to(&edges[n % 2].addr);
            proxy.cut();
        }
    };
    let expected = text(&input);
    futures_util::future::join(cuts, end_whole(followers, &expected)).await;
    system.end().await;
}

#[tokio::test]
async fn socketio_clients_recover_from_incomplete_handshakes() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let input = words(60, 40, 10);
    system.submit("handshakes", input.clone()).await;
    // Each client has a proxy, so that it meets every cut.
    let proxies = [
        Proxy::cutting_handshakes(&edge.addr).await,
        Proxy::cutting_handshakes(&edge.addr).await,
        Proxy::cutting_handshakes(&edge.addr).await,
    ];
    let addrs = proxies.iter().map(|proxy| proxy.addr.as_str());
    let followers = Follower::all_socketio(addrs, "handshakes");
    assert_eq!(followers.len(), proxies.len());
    end_whole(followers, &text(&input)).await;
    for proxy in &proxies {
        assert!(proxy.cuts() > 10, "{}", proxy.cuts());
    }
    system.end().await;
}

#[tokio::test]
async fn a_job_can_be_watched_at_any_time() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let input = words(60, 40, 6);
    let early = Follower::all(&edge.addr, "when");
    eventually("clients that wait for the job", || async {
        let clients = &stats(&edge.addr, "/api/stats").await["connections"];
        (clients == &json!({"websocket": 2, "socketio": 3, "sse": 2})).then_some(())
    })
    .await;
    let job = system.submit("when", input.clone()).await;
    system.reaches("when", 10).await;
    let middle = Follower::all(&edge.addr, "when");
    system.ended(&job).await;
    let late = Follower::all(&edge.addr, "when");
    for followers in [early, middle, late] {
        end_whole(followers, &text(&input)).await;
    }
    system.end().await;
}

#[tokio::test]
async fn a_compacted_watch_has_the_text_of_all_attempts_in_few_events() {
    let system = System::on(Broker::shared_one()).await;
    let flaky: Kind = "flaky".parse().unwrap();
    let backend = Flaky(Retry::After(Duration::ZERO));
    system
        .worker(backend, |settings| settings.kind = flaky.clone())
        .await;
    let tried = Submission::new(flaky.clone(), json!({"failures": 1}));
    let tried = system.submit_with("tried", tried).await;
    system.demo().await;
    let words = words(400, 100, 9);
    let long = system.submit("compact", words.clone()).await;
    system.reaches("compact", 20).await;
    let edges = [system.edge().await, system.edge().await];
    let proxy = Proxy::to(&edges[0].addr).await;
    let early = Follower::all_compact(&proxy.addr, "compact");
    let cuts = async {
        for n in 0..6 {
            sleep(Duration::from_millis(500)).await;
            proxy.lead_to(&edges[n % 2].addr);
            proxy.cut();
        }
    };
    let ended = join_all(early.into_iter().map(Follower::ends));
    let (early, ()) = futures_util::future::join(ended, cuts).await;
    let end = system.ended(&long).await.seq.0;
    let late = Follower::all_compact(&edges[1].addr, "compact");
    let late = join_all(late.into_iter().map(Follower::ends)).await;
    assert!(late.iter().all(|seen| seen.events.len() < 8), "{late:?}");
    for seen in early.into_iter().chain(late) {
        assert_eq!((seen.last, seen.text()), (end, text(&words)));
        assert_eq!(
            (seen.repeated, &seen.gaps, &seen.missing),
            (0, &vec![], &vec![])
        );
        assert!((seen.events.len() as u64) < end, "{:?}", seen.events);
    }
    system.ended(&tried).await;
    for follower in Follower::all_compact(&edges[1].addr, "tried") {
        let seen = follower.ends().await;
        let superseded = &seen.events[&3];
        assert_eq!(
            (&superseded["from_seq"], &superseded["text"]),
            (&json!(3), &json!(""))
        );
        assert_eq!(seen.text(), "half a sentence");
    }
    system.end().await;
}

#[tokio::test]
async fn clients_reconnect_after_an_edge_is_killed() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let (mut first, first_addr) = system.edge_process(&[]).await;
    let (_second, second_addr) = system.edge_process(&[]).await;
    let proxy = Proxy::to(&first_addr).await;
    let input = words(150, 40, 7);
    system.submit("killed", input.clone()).await;
    let mut followers = Follower::all(&proxy.addr, "killed");
    for follower in &mut followers {
        follower.reaches(8).await;
    }
    first.kill().await;
    proxy.lead_to(&second_addr);
    end_whole(followers, &text(&input)).await;
    system.end().await;
}

#[tokio::test]
async fn every_client_sees_which_attempt_counts() {
    let system = System::on(Broker::shared_one()).await;
    let backend = Flaky(Retry::After(Duration::from_secs(1)));
    system.worker(backend, |_| {}).await;
    let edge = system.edge().await;
    let followers = Follower::all(&edge.addr, "again");
    system.submit("again", json!({"failures": 2})).await;
    end_whole(followers, "half a sentence").await;
    system.end().await;
}

#[tokio::test]
async fn expired_events_are_reported_as_missing() {
    let system = System::with(Broker::shared_one(), |settings| {
        settings.shards = 1;
        settings.max_bytes = Some(64 << 10);
    })
    .await;
    system.pieces(1500).await;
    let job = system.submit("old", Value::Null).await;
    let state = system.ended(&job).await;
    let edge = system.edge().await;
    for follower in Follower::all(&edge.addr, "old") {
        let door = follower.name();
        let seen = follower.ends().await;
        let first = seen.events.keys().next().copied().unwrap();
        assert!(first > 500, "{door}: {first}");
        let found = (&seen.gaps, seen.repeated, seen.last);
        assert_eq!(found, (&vec![], 0, state.seq.0), "{door}");
        assert_eq!(seen.missing, [(1, first - 1)], "{door}");
    }
    system.end().await;
}

/// Produces 16 KiB fifty times a second.
struct Torrent;

impl Torrent {
    const PIECES: usize = 1800;

    fn piece(n: usize) -> String {
        format!("{n:015}\n").repeat(1024)
    }
}

impl Backend for Torrent {
    async fn run(&self, _job: Job, out: Output) -> Result<Finish, Failure> {
        for n in 0..Self::PIECES {
            out.text(&Self::piece(n)).await?;
            sleep(Duration::from_millis(20)).await;
        }
        Ok(Finish::default())
    }
}

#[tokio::test]
async fn stalled_readers_cost_no_memory_and_delay_no_one() {
    let system = System::on(Broker::shared_one()).await;
    system
        .worker(Torrent, |settings| {
            settings.kind = "torrent".parse().unwrap()
        })
        .await;
    system.demo().await;
    let (edge, addr) = system.edge_process(&[]).await;
    system
        .submit_with(
            "torrent",
            Submission::new("torrent".parse().unwrap(), Value::Null),
        )
        .await;
    let proxy = Proxy::to(&addr).await;
    let mut followers = Follower::all(&proxy.addr, "torrent");
    for follower in &mut followers {
        follower.reaches(8).await;
    }
    let expected: String = (0..Torrent::PIECES).map(Torrent::piece).collect();
    let others = async {
        let before = edge.memory();
        proxy.stall(true);
        let input = words(300, 10, 8);
        system.submit("live", input).await;
        let latest = join_all((0..100).map(|_| latest(&addr, "live")))
            .await
            .into_iter()
            .max()
            .unwrap();
        let after = edge.memory();
        proxy.stall(false);
        println!("memory {before} to {after} KiB, another client waited {latest:?}");
        assert!(latest < Duration::from_secs(5), "{latest:?}");
        // The stalled readers are about 24 MiB behind, each of them.
        assert!(after < before + 64 * 1024, "{before} to {after} KiB");
    };
    futures_util::future::join(end_whole(followers, &expected), others).await;
    system.end().await;
}

/// Follows a job to its end; returns the largest delay of an event.
async fn latest(addr: &str, job: &str) -> Duration {
    let mut client = Client::connect(addr).await;
    let mut seen = Seen::of(job);
    client.watch(&seen).await;
    let mut latest = Duration::ZERO;
    while !seen.ended {
        let Frame::Json(frame) = client.next().await else {
            panic!("cut off")
        };
        if let Some(ts) = frame["ts"].as_u64() {
            let now = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap();
            latest = latest.max(now.saturating_sub(Duration::from_millis(ts)));
        }
        seen.record(&frame);
    }
    seen.assert_whole();
    latest
}
