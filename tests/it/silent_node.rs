use std::time::Duration;

use futures_util::future::join_all;
use tailwater::config::{BROKER_PING, LEADER_READS_PER_SHARD, REQUEST_WAIT};
use tailwater::nats::{Log, Nats, Reader};
use tailwater::runtime::Tasks;
use tailwater::source::{EventSource as _, Replay as _, Replica, Span};
use tailwater::wire::Seq;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::broker::Broker;
use crate::support::client::follow_through;
use crate::support::client::{Client, Seen};
use crate::support::http::exchange;
use crate::support::link::{Flow, Link};
use crate::support::process::Process;
use crate::support::system::{System, text, words};
use crate::support::{assert_within, eventually, timed, until, within};

/// How soon a node that went silent without a reset must be noticed.
const NOTICED: Duration = Duration::from_secs(10);
/// The longest time that a watcher may wait for the next event.
const WAIT: Duration = Duration::from_secs(15);

async fn is_ready(addr: &str) -> bool {
    exchange(addr, "GET", "/readyz", "", b"")
        .await
        .0
        .starts_with("HTTP/1.1 200")
}

#[tokio::test]
async fn a_silent_node_delays_watchers_by_less_than_15_s() {
    let broker = Broker::three();
    let mut system = System::on(&broker).await;
    // The client library connects to a random server of the list; the edge must start with the one
    // that goes silent.
    let [silent, other] = [
        Link::to(&broker.addr(0)).await,
        Link::to(&broker.addr(1)).await,
    ];
    system.demo().await;
    other.set(Flow::Silent);
    let direct = std::mem::replace(
        &mut system.options.url,
        format!("nats://{},nats://{}", silent.addr, other.addr).into(),
    );
    let edge = system.edge().await;
    system.options.url = direct;
    other.set(Flow::Open);
    let inputs: Vec<_> = (0..10).map(|n| words(600, 30, n)).collect();
    let mut watchers = Vec::new();
    for (n, input) in inputs.iter().enumerate() {
        let job = format!("silent-{n}");
        system.submit(&job, input.clone()).await;
        let (mut client, mut seen) = edge.watch(&job).await;
        while seen.last < 5 {
            seen.step(&mut client).await;
        }
        watchers.push((client, seen));
    }
    assert!(is_ready(&edge.addr).await);
    silent.set(Flow::Silent);
    let silenced = Instant::now();
    let waits = join_all(watchers.iter_mut().map(|(client, seen)| async move {
        let mut longest = Duration::ZERO;
        let mut last = Instant::now();
        while !seen.ended {
            let frame = timeout(WAIT, client.frame())
                .await
                .expect("an event in time");
            longest = longest.max(last.elapsed());
            last = Instant::now();
            seen.record(&frame);
        }
        longest
    }));
    let readiness = async {
        // The edge and the silent link are in this process.
        let not_ready = until("an edge that is not ready", async || {
            !is_ready(&edge.addr).await
        });
        let ((), noticed) = timed(not_ready).await;
        until("an edge that is ready again", async || {
            is_ready(&edge.addr).await
        })
        .await;
        (noticed, silenced.elapsed())
    };
    let (waits, (noticed, ready)) =
        within("the jobs", futures_util::future::join(waits, readiness)).await;
    let longest = waits.into_iter().max().unwrap();
    println!("not ready after {noticed:?}, ready after {ready:?}, longest wait {longest:?}");
    // The client library notices by itself, when a third ping is due: after two intervals or more.
    assert!(noticed < BROKER_PING * 2, "{noticed:?}");
    assert!(ready < WAIT, "{ready:?}");
    for ((_, seen), input) in watchers.iter().zip(&inputs) {
        seen.assert_text(text(input));
    }
    system.end().await;
}

#[tokio::test]
async fn readiness_follows_a_node_that_hangs() {
    let broker = Broker::one();
    let mut system = System::on(&broker).await;
    let link = Link::to(&broker.addr(0)).await;
    system.demo().await;
    system.options.url = format!("nats://{}", link.addr).into();
    let edge = system.edge().await;
    let input = words(100, 20, 1);
    system.submit("hang", input.clone()).await;
    let mut seen = Seen::of("hang");
    assert!(is_ready(&edge.addr).await);
    link.set(Flow::Silent);
    let silenced = Instant::now();
    until("an edge that is not ready", async || {
        !is_ready(&edge.addr).await
    })
    .await;
    assert_within(silenced, NOTICED);
    // Longer than the client library takes to close the connections.
    sleep(NOTICED).await;
    assert!(!is_ready(&edge.addr).await);
    link.set(Flow::Open);
    until("an edge that is ready again", async || {
        is_ready(&edge.addr).await
    })
    .await;
    Box::pin(within("the job", follow_through(&edge.addr, &mut seen))).await;
    seen.assert_text(text(&input));
    system.options.url = broker.url().into();
    system.end().await;
}

/// A connection to a broker, and the link that it goes through.
async fn connect_through_link(broker: &Broker, system: &System) -> (Link, Nats) {
    let link = Link::to(&broker.addr(0)).await;
    let far = system.reached_at(&format!("nats://{}", link.addr));
    let nats = within("a connection", Nats::connect(&far.options)).await;
    (link, nats.unwrap())
}

/// All of them need the same proof that the leader has a quorum.
#[tokio::test]
async fn reads_that_wait_for_a_silent_leader_fail_together() {
    let broker = Broker::shared_one();
    let system = System::on(broker).await;
    let job = system.submit("silent", words(1, 0, 1)).await;
    let (link, nats) = connect_through_link(broker, &system).await;
    let log = Log::open(&nats).await.unwrap();
    link.set(Flow::Silent);
    let begun = Instant::now();
    let reads = within("reads", join_all((0..20).map(|_| log.last(&job)))).await;
    assert!(reads.iter().all(Result::is_err));
    assert_within(begun, REQUEST_WAIT * 3);
    link.set(Flow::Open);
    nats.close().await;
    system.end().await;
}

#[tokio::test]
async fn few_replays_at_a_time_wait_for_a_leader() {
    const REPLAYS: usize = 50;
    let broker = Broker::shared_one();
    let system = System::on(broker).await;
    let job = system.submit("silent", words(1, 0, 1)).await;
    let (link, nats) = connect_through_link(broker, &system).await;
    let tasks = Tasks::new(CancellationToken::new());
    let log = Log::open(&nats).await.unwrap();
    let reader = Reader::open(log, &tasks).await.unwrap();
    link.set(Flow::Silent);
    let span = Span {
        from: Seq::FIRST,
        stream_seq: None,
        until: None,
        replica: Replica::Leader,
    };
    let mut replays: Vec<_> = (0..REPLAYS).map(|_| reader.replay(&job, span)).collect();
    let reads = join_all(replays.iter_mut().map(|replay| replay.next()));
    let waiting = until("replays that wait", async || {
        reader.waiting_replays() == REPLAYS - LEADER_READS_PER_SHARD
    });
    tokio::select! {
        _ = reads => panic!("the leader does not answer"),
        () = waiting => {}
    }
    // Once it answers, all are served.
    link.set(Flow::Open);
    let events = eventually("an event", async || {
        let events = reader.replay(&job, span).next().await;
        events.and_then(Result::ok)
    });
    assert_eq!(events.await.len(), 1);
    tasks.end(Duration::ZERO).await;
    nats.close().await;
    system.end().await;
}

/// Every answer of the broker is 3.5 s late, longer than one request may take.
#[tokio::test]
async fn programs_wait_for_a_slow_broker_as_long_as_configured() {
    let broker = Broker::one();
    let system = System::on(&broker).await;
    let link = Link::to(&broker.addr(0)).await;
    let flags = [
        "--nats",
        &format!("nats://{}", link.addr),
        "--prefix",
        system.options.prefix.as_str(),
    ];
    let flags: Vec<_> = [&flags[..], &["--nats-wait", "60s"]]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
    link.set(Flow::Late(Duration::from_millis(3500)));
    let edge_flags = ["edge", "--listen", "127.0.0.1:0"].map(str::to_owned);
    let mut edge = Process::start([edge_flags.to_vec(), flags.clone()].concat());
    let worker_flags = ["worker", "--kind", "demo"].map(str::to_owned);
    let mut worker =
        Process::start([worker_flags.to_vec(), flags, vec!["demo".to_owned()]].concat());
    // Long enough for two connections that time out, one that succeeds, and requests that time out.
    sleep(Duration::from_secs(24)).await;
    assert!(edge.is_running() && worker.is_running());
    link.set(Flow::Open);
    let addr = edge.says("ready http://").await;
    eventually("the edge", || async { Client::try_connect(&addr).await }).await;
    let input = words(20, 50, 3);
    let kind = "demo".parse().unwrap();
    eventually("the kind", || async {
        system.queue.usage(&kind).await.ok().flatten()
    })
    .await;
    system.submit("slow", input.clone()).await;
    let mut seen = Seen::of("slow");
    Box::pin(within("the job", follow_through(&addr, &mut seen))).await;
    assert_eq!(seen.text(), text(&input));
    edge.kill().await;
    worker.kill().await;
    system.end().await;
}
