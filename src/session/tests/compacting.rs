//! What a session returns if the text that was stored before it is merged.

use super::*;

/// The state of a client that only sees these events.
async fn compacted(hub: &Arc<Hub<MemoryLog>>, start: Start) -> (Vec<Arc<Stored>>, Client) {
    let mut client = Client::open(hub, start).await.unwrap();
    client.session.compact_stored(&Budget::unlimited());
    let events = until_live(&mut client).await;
    (events, client)
}

/// What a client receives until it is live, or the job has ended.
async fn until_live(client: &mut Client) -> Vec<Arc<Stored>> {
    let mut events = Vec::new();
    while !client.live && !client.ended {
        let step = timeout(FOREVER, client.session.next()).await.unwrap();
        if let Step::Events(step) = &step {
            events.extend_from_slice(step);
        }
        client.apply(step);
    }
    events
}

/// The text of events, which are all chunks.
fn text_of(events: &[Arc<Stored>]) -> String {
    let text = |event: &Arc<Stored>| {
        let Body::Chunk { text, .. } = event.event().unwrap().body else {
            panic!("{event:?}")
        };
        text
    };
    events.iter().map(text).collect()
}

fn started(continues: bool) -> Body {
    Body::Started {
        kind: "k".parse().unwrap(),
        worker: "w".into(),
        continues,
    }
}

fn ranges(events: &[Arc<Stored>]) -> Vec<(u64, u64)> {
    let range = |event: &Arc<Stored>| (event.first_seq().0, event.seq.0);
    events.iter().map(range).collect()
}

#[tokio::test(start_paused = true)]
async fn stored_text_is_merged_and_live_events_come_one_by_one() {
    let memory = log_of(500);
    memory.page(64);
    let hub = edge(&memory);
    let (events, mut client) = compacted(&hub, FROM_START).await;
    assert_eq!(ranges(&events), [(1, 500)]);
    let cursor = memory.events(&job())[499].cursor();
    assert_eq!(events[0].cursor(), cursor);
    append(&memory, 3);
    let step = client.session.next().await;
    assert!(matches!(&step, Step::Events(events) if events[0].first_seq() == Seq(501)));
    client.apply(step);
    client.reach(503).await;
    let (events, _) = compacted(&hub, Start::Cursor(cursor)).await;
    assert_eq!(ranges(&events), [(501, 503)]);
}

#[tokio::test(start_paused = true)]
async fn merged_events_are_bounded_and_any_of_them_can_be_resumed_from() {
    let memory = MemoryLog::default();
    for n in 0..100 {
        memory.append(&job(), chunk(format!("{n:05}").repeat(1000)));
    }
    memory.append(&job(), done());
    let hub = edge(&memory);
    let (events, client) = compacted(&hub, FROM_START).await;
    assert!(client.ended);
    assert_eq!(ranges(&events)[..2], [(1, 13), (14, 26)]);
    for (n, event) in events.iter().enumerate() {
        assert!(event.payload().len() < 70_000);
        let start = Start::Cursor(event.cursor());
        let (rest, _) = compacted(&hub, start).await;
        assert_eq!(ranges(&rest), ranges(&events[n + 1..]));
    }
}

#[tokio::test(start_paused = true)]
async fn the_text_of_superseded_attempts_is_left_out() {
    let memory = MemoryLog::default();
    for body in [
        started(false),
        chunk("old "),
        chunk("text"),
        started(false),
        chunk("new "),
        started(true),
        chunk("text"),
    ] {
        memory.append(&job(), body);
    }
    let (events, _) = compacted(&edge(&memory), FROM_START).await;
    assert_eq!(
        ranges(&events),
        [(1, 1), (2, 3), (4, 4), (5, 5), (6, 6), (7, 7)]
    );
    let Body::Chunk { text, .. } = events[1].event().unwrap().body else {
        panic!("{:?}", events[1])
    };
    assert_eq!(text, "");
}

#[tokio::test(start_paused = true)]
async fn expired_text_is_reported_between_merged_events() {
    let memory = log_of(200);
    memory.page(16);
    let hub = edge(&memory);
    let mut client = Client::open(&hub, FROM_START).await.unwrap();
    client.session.compact_stored(&Budget::unlimited());
    memory.latency(Duration::from_millis(100));
    // Two pages are read before the rest of the middle expires.
    let early = timeout(Duration::from_millis(250), client.session.next()).await;
    assert!(early.is_err(), "{early:?}");
    memory.expire(&job(), Seq(150));
    while !client.live {
        client.step().await;
    }
    let [(from, to)] = client.gaps[..] else {
        panic!("{:?}", client.gaps)
    };
    assert!(from > 1 && to == 150);
    assert_eq!(
        (client.received, client.next),
        (200 - (to - from + 1), Seq(201))
    );
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_not_taken_is_read_again() {
    let memory = log_of(300);
    memory.page(64);
    let hub = edge(&memory);
    let mut client = Client::open(&hub, Start::After(Seq(7))).await.unwrap();
    client.session.compact_stored(&Budget::unlimited());
    let start = client.session.position();
    for _ in 0..3 {
        let Step::Events(events) = client.session.next().await else {
            panic!("no events")
        };
        assert_eq!(ranges(&events), [(8, 300)]);
        client.session.rewind(start);
    }
    memory.latency(Duration::from_millis(100));
    let waited = timeout(Duration::from_millis(250), client.session.next()).await;
    assert!(waited.is_err());
    let held = client.session.position();
    client.session.rewind(held);
    client.until_live().await;
    assert_eq!((client.received, client.next), (293, Seq(301)));
}

#[tokio::test(start_paused = true)]
async fn text_that_finds_no_room_is_sent_in_more_events() {
    let memory = log_of(500);
    memory.page(64);
    let hub = edge(&memory);
    let mut client = Client::from_start(&hub).await;
    let room = Budget::new(1);
    client.session.compact_stored(&room);
    let events = until_live(&mut client).await;
    assert!((2..100).contains(&events.len()), "{}", events.len());
    let (whole, _) = compacted(&hub, FROM_START).await;
    assert_eq!(text_of(&events), text_of(&whole));
    assert_eq!((client.received, room.used()), (500, 0));
}

/// A client that merges the text of 300 events, of which each page takes a moment, in this room.
async fn slow_merge() -> (Arc<Hub<MemoryLog>>, Client, Budget) {
    let memory = log_of(300);
    memory.page(64);
    let hub = edge(&memory);
    let mut client = Client::from_start(&hub).await;
    let room = Budget::new(1 << 20);
    client.session.compact_stored(&room);
    memory.latency(Duration::from_millis(100));
    (hub, client, room)
}

/// Waits until some of the pages are read.
async fn holds_text(client: &mut Client, room: &Budget) {
    let waited = timeout(Duration::from_millis(250), client.session.next()).await;
    assert!(waited.is_err(), "{waited:?}");
    assert!(room.used() > 0);
}

#[tokio::test(start_paused = true)]
async fn text_takes_room_until_it_is_returned_or_forgotten_and_is_returned_once() {
    let (hub, mut client, room) = slow_merge().await;
    for _ in 0..2 {
        holds_text(&mut client, &room).await;
        let held = client.session.position();
        client.session.rewind(held);
        assert_eq!(room.used(), 0);
    }
    let events = until_live(&mut client).await;
    let (whole, _) = compacted(&hub, FROM_START).await;
    assert_eq!(text_of(&events), text_of(&whole));
    assert_eq!((client.received, room.used()), (300, 0));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_dropped_releases_the_room_of_its_text() {
    let (_hub, mut client, room) = slow_merge().await;
    holds_text(&mut client, &room).await;
    drop(client);
    assert_eq!(room.used(), 0);
}
