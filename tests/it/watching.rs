use serde_json::{Value, json};

use crate::support::broker::Broker;
use crate::support::client::{Encoding, Seen, follow};
use crate::support::random;
use crate::support::scenarios::{in_both_encodings, on_one_and_three};
use crate::support::system::{System, text, words};

in_both_encodings!(
    a_client_that_drops_fifty_times_gets_the_exact_text,
    a_late_watcher_gets_the_same_events_as_an_early_one,
);

on_one_and_three!(
    a_watch_can_start_before_its_job,
    a_late_watcher_gets_the_whole_job,
    a_cursor_at_the_end_gets_the_end_at_once,
    a_job_of_twenty_thousand_chunks_arrives_whole,
    one_connection_watches_many_jobs,
    unwatch_ends_only_one_watch,
);

async fn a_client_that_drops_fifty_times_gets_the_exact_text(broker: &Broker, encoding: Encoding) {
    let system = System::on(broker).await;
    system.demo().await;
    let edges = [system.edge().await, system.edge().await];
    let input = words(600, 200, 7);
    let mut seen = Seen::of("drops");
    // One client resumes by cursor, the other one by sequence number.
    let mut by_number = Seen::of("drops");
    system.submit("drops", input.clone()).await;
    let mut random = random();
    for round in 0..50 {
        let edge = &edges[round % 2];
        let frames = random.u64(..12);
        let mut clients = [
            edge.client_in(encoding).await,
            edge.client_in(encoding).await,
        ];
        clients[0].watch(&seen).await;
        let frame = json!({"op": "watch", "job": "drops", "after": by_number.last});
        clients[1].send(frame).await;
        for _ in 0..frames {
            if !seen.ended {
                seen.step(&mut clients[0]).await;
            }
            if !by_number.ended {
                by_number.step(&mut clients[1]).await;
            }
        }
    }
    for seen in [&mut seen, &mut by_number] {
        let mut client = edges[0].client_in(encoding).await;
        client.watch(seen).await;
        seen.follow(&mut client).await;
        seen.ended = true;
        seen.assert_text(text(&input));
    }
    system.end().await;
}

async fn a_late_watcher_gets_the_same_events_as_an_early_one(broker: &Broker, encoding: Encoding) {
    let system = System::on(broker).await;
    let [rest] = system.parts().await;
    let edge = system.edge().await;
    let input = words(60, 60, 3);
    system.submit("both", input.clone()).await;
    let early = follow(&edge.addr, "both");
    let late = async {
        system.reaches("both", 10).await;
        let mut client = edge.client_in(encoding).await;
        let mut seen = Seen::of("both");
        client.watch(&seen).await;
        // The replay ends before the job does.
        while seen.live == 0 {
            seen.step(&mut client).await;
        }
        rest.cancel();
        seen.follow(&mut client).await;
        seen
    };
    let (early, late) = tokio::join!(early, late);
    early.assert_whole();
    assert_eq!(early.events, late.events);
    assert_eq!(late.text(), text(&input));
    assert_eq!(late.live, 1);
    system.end().await;
}

async fn a_watch_can_start_before_its_job(broker: &Broker) {
    let system = System::on(broker).await;
    let edge = system.edge().await;
    let (mut client, mut seen) = edge.watch("early").await;
    let watching = client.op().await;
    assert_eq!(watching, json!({"op": "watching", "job": "early"}));
    assert_eq!(client.op().await, json!({"op": "live", "job": "early"}));
    system.demo().await;
    let input = words(20, 0, 1);
    system.submit("early", input.clone()).await;
    seen.follow(&mut client).await;
    seen.assert_text(text(&input));
    system.end().await;
}

async fn a_late_watcher_gets_the_whole_job(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let input = words(300, 0, 9);
    let job = system.submit("over", input.clone()).await;
    let state = system.ended(&job).await;
    let edge = system.edge().await;
    let (mut client, mut seen) = edge.watch("over").await;
    let expected = json!({"op": "watching", "job": "over", "status": "done"});
    assert_eq!(client.op().await, expected);
    seen.follow(&mut client).await;
    seen.assert_whole();
    assert_eq!((seen.text(), seen.last), (text(&input), state.seq.0));
    assert_eq!(state.output, text(&input));
    system.end().await;
}

async fn a_cursor_at_the_end_gets_the_end_at_once(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let job = system.submit("done", words(3, 0, 9)).await;
    let state = system.ended(&job).await;
    let edge = system.edge().await;
    for at_end in [json!({"cursor": state.cursor}), json!({"after": state.seq})] {
        let mut client = edge.client().await;
        let mut watch = json!({"op": "watch", "job": "done"});
        watch
            .as_object_mut()
            .unwrap()
            .extend(at_end.as_object().unwrap().clone());
        client.send(watch).await;
        assert_eq!(client.op().await["op"], "watching");
        assert_eq!(client.op().await, json!({"op": "end", "job": "done"}));
    }
    system.end().await;
}

async fn a_job_of_twenty_thousand_chunks_arrives_whole(broker: &Broker) {
    let system = System::on(broker).await;
    system.pieces(20_000).await;
    let edge = system.edge().await;
    system.submit("long", Value::Null).await;
    let (live, late) = tokio::join!(follow(&edge.addr, "long"), async {
        let job = "long".parse().unwrap();
        // Each wait has a limit of its own, and a log of this length takes a busy machine long.
        for part in [5_000, 10_000, 15_000] {
            system.reaches("long", part).await;
        }
        system.ended(&job).await;
        // An edge without a feed reads the whole job from the log.
        let cold = system.edge().await;
        follow(&cold.addr, "long").await
    });
    let expected: String = (0..20_000).step_by(2).map(|n| format!("{n} ")).collect();
    for seen in [live, late] {
        seen.assert_text(&expected);
        assert_eq!(seen.last, 20_003);
    }
    system.end().await;
}

async fn one_connection_watches_many_jobs(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut client = edge.client().await;
    let mut all: Vec<Seen> = (0..20).map(|n| Seen::of(&format!("many-{n}"))).collect();
    for (n, seen) in all.iter().enumerate() {
        client.watch(seen).await;
        system.submit(&seen.job, words(30, 100, n as u64)).await;
    }
    while all.iter().any(|seen| !seen.ended) {
        let frame = client.frame().await;
        let seen = all
            .iter_mut()
            .find(|seen| frame["job"] == seen.job.as_str())
            .unwrap();
        seen.record(&frame);
    }
    for (n, seen) in all.iter().enumerate() {
        seen.assert_text(text(&words(30, 100, n as u64)));
    }
    system.end().await;
}

async fn unwatch_ends_only_one_watch(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut client = edge.client().await;
    let stays = Seen::of("stays");
    let goes = Seen::of("goes");
    client.watch(&stays).await;
    client.watch(&goes).await;
    for seen in [&stays, &goes] {
        system.submit(&seen.job, words(40, 40, 1)).await;
    }
    client.send(json!({"op": "unwatch", "job": "goes"})).await;
    let mut stays = stays;
    let mut gone = false;
    while !stays.ended {
        let frame = client.frame().await;
        if frame["job"] == "stays" {
            stays.record(&frame);
        } else if frame["op"] == "unwatched" {
            gone = true;
        } else {
            assert!(!gone, "a frame after unwatched: {frame}");
        }
    }
    assert!(gone);
    stays.assert_whole();
    // It can be watched again.
    let mut again = Seen::of("goes");
    client.watch(&again).await;
    again.follow(&mut client).await;
    again.assert_whole();
    system.end().await;
}
