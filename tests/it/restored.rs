use futures_util::future::join_all;
use tailwater::nats::EventWriter;
use tailwater::wire::{Body, Channel};

use crate::support::broker::Broker;
use crate::support::client::follow_through;
use crate::support::client::{Client, Frame, Seen};
use crate::support::link::{Flow, Link};
use crate::support::sse::{Item, Sse};
use crate::support::system::{System, text, words};
use crate::support::transports::Follower;
use crate::support::{eventually, within};

/// The job continues from the copy, and the next worker runs it again.
#[tokio::test]
async fn watchers_start_over_after_a_restored_store() {
    let mut broker = Broker::one();
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    let [copied, restored] = system.parts().await;
    let edge = system.edge().await;
    let input = words(150, 50, 5);
    let job = system.submit("restored", input.clone()).await;
    let mut followers = Follower::all(&edge.addr, "restored");
    // Its first fifty words, each of which is two events.
    system.reaches("restored", 102).await;
    let copy = broker.copy_store(0);
    copied.cancel();
    // Everyone has events that the copy lacks.
    join_all(followers.iter_mut().map(|follower| follower.reaches(202))).await;
    broker.kill(0);
    broker.restore(0, &copy);
    broker.restart(0);
    restored.cancel();
    let ended = join_all(followers.into_iter().map(|follower| async {
        let name = follower.name();
        (name, follower.ends().await)
    }));
    let (all, state) = Box::pin(within(
        "the end",
        futures_util::future::join(ended, system.ended(&job)),
    ))
    .await;
    let found = (state.output.as_str(), state.attempt);
    assert_eq!(found, (text(&input).as_str(), 2));
    for (name, mut seen) in all {
        assert_eq!(std::mem::take(&mut seen.restarts), 1, "{name}");
        seen.assert_whole();
        let found = (seen.text(), seen.last);
        assert_eq!(found, (text(&input), state.seq.0), "{name}");
    }
    system.end().await;
}

async fn append(system: &System, job: &str, words: &[&str]) {
    let job = job.parse().unwrap();
    let last = eventually("the log", || async { system.log.last(&job).await.ok() }).await;
    let mut writer = EventWriter::new(system.log.clone(), job, 1, last.as_ref());
    for word in words {
        let chunk = Body::Chunk {
            text: (*word).into(),
            channel: Channel::Output,
        };
        within("an append", writer.append(chunk)).await.unwrap();
    }
}

async fn end(system: &System, job: &str) {
    let job = job.parse().unwrap();
    let done = Body::Done {
        usage: None,
        finish_reason: None,
    };
    system.writer(&job, 1).await.append(done).await.unwrap();
}

async fn assert_ends_with_cursor_not_in_log(client: &mut Client) {
    loop {
        match client.next().await {
            Frame::Json(frame) if frame["op"] == "live" => {}
            Frame::Json(frame) => {
                let error = (&frame["op"], &frame["code"], &frame["job"]);
                let expected = ["error", "cursor_not_in_log", "grown"].map(serde_json::Value::from);
                assert_eq!(error, (&expected[0], &expected[1], &expected[2]), "{frame}");
                return;
            }
            gone @ (Frame::Closed(_) | Frame::Cut) => panic!("{gone:?}"),
        }
    }
}

async fn assert_ends_with_old_events(sse: &mut Sse) {
    loop {
        match sse.event().await {
            Item::End => return,
            Item::Event(event, last) => {
                assert!(event["text"].as_str().unwrap().starts_with("old") && !last.is_empty());
            }
            Item::Named(..) | Item::Retry(_) | Item::Comment => {}
        }
    }
}

/// The new log has the same sequence numbers as the old one; only the events differ.
#[tokio::test]
async fn a_rebuilt_log_is_not_joined_to_the_old_one() {
    for copied in [0, 2] {
        let mut broker = Broker::one();
        let system = System::with(&broker, |settings| settings.shards = 1).await;
        let link = Link::to(&broker.addr(0)).await;
        let edge = system
            .reached_at(&format!("nats://{}", link.addr))
            .edge()
            .await;
        append(&system, "grown", &["old 1 ", "old 2 "][..copied]).await;
        let copy = broker.copy_store(0);
        append(&system, "grown", &["old 3 ", "old 4 ", "old 5 "]).await;
        let (mut client, mut seen) = edge.watch("grown").await;
        let mut sse = Sse::open(&edge.addr, "/api/jobs/grown/events", "").await;
        let mut id = String::new();
        while seen.last < copied as u64 + 3 {
            seen.step(&mut client).await;
        }
        for _ in 0..copied + 3 {
            let Item::Event(_, last) = sse.event().await else {
                panic!("no event")
            };
            id = last;
        }
        broker.kill(0);
        // The edge is disconnected until the log is longer than before.
        link.set(Flow::Silent);
        broker.restore(0, &copy);
        broker.restart(0);
        append(
            &system,
            "grown",
            &["new ", "new ", "new ", "new ", "new ", "new "],
        )
        .await;
        link.set(Flow::Open);
        append(&system, "grown", &["newest "]).await;
        assert_ends_with_cursor_not_in_log(&mut client).await;
        assert_ends_with_old_events(&mut sse).await;
        // The edge reads the log over another connection, which may be re-established later.
        let last = format!("Last-Event-ID: {id}\r\n");
        let status = eventually("an answer", || async {
            let again = Sse::open(&edge.addr, "/api/jobs/grown/events", &last).await;
            (again.status != 503).then_some(again.status)
        })
        .await;
        assert_eq!(status, 410);
        end(&system, "grown").await;
        // The same connection can watch the job again.
        let mut seen = Seen::of("grown");
        client.watch(&seen).await;
        seen.follow(&mut client).await;
        seen.assert_whole();
        assert_eq!(
            seen.text(),
            "old 1 old 2 ".get(..6 * copied).unwrap().to_owned() + &"new ".repeat(6) + "newest "
        );
        system.end().await;
    }
}

/// The counterpart: the log of the restarted broker is unchanged.
#[tokio::test]
async fn a_broker_restart_ends_no_watch() {
    let mut broker = Broker::one();
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    let edge = system.edge().await;
    append(&system, "same", &["one ", "two "]).await;
    let mut client = Client::connect(&edge.addr).await;
    let mut seen = Seen::of("same");
    client.watch(&seen).await;
    while seen.live == 0 {
        seen.step(&mut client).await;
    }
    for _ in 0..3 {
        broker.kill(0);
        broker.restart(0);
        let before = seen.last;
        append(&system, "same", &["more "]).await;
        while seen.last == before {
            seen.step(&mut client).await;
        }
    }
    end(&system, "same").await;
    within("the end", seen.follow(&mut client)).await;
    seen.assert_text("one two more more more ");
    let mut late = Seen::of("same");
    follow_through(&edge.addr, &mut late).await;
    assert_eq!(late.text(), seen.text());
    system.end().await;
}
