use serde_json::{Value, json};
use tailwater::backend::demo::Demo;

use crate::support::broker::Broker;
use crate::support::process::{Ran, tailwater};
use crate::support::system::{System, words};
use crate::support::{eventually, until};

/// The checks that `doctor` prints as JSON, and its exit code.
async fn diagnosis(system: &System) -> (i32, Value) {
    let Ran { code, out, err } = system.run("doctor --json").await;
    let found: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    (code, found)
}

fn state(found: &Value, check: &str) -> String {
    let checks = found["checks"].as_array().unwrap();
    let check = checks.iter().find(|found| found["check"] == check);
    check.unwrap_or_else(|| panic!("{found}"))["state"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn doctor_finds_a_kind_without_workers_and_is_content_once_there_is_one() {
    let system = System::on(Broker::shared_one()).await;
    system
        .run("setup --shards 2 --replicas 1 --kind demo")
        .await;
    let (code, found) = diagnosis(&system).await;
    assert_eq!(code, 0, "{found}");
    assert_eq!(state(&found, "kind demo"), "warn");
    system.submit("waits", words(3, 0, 1)).await;
    let (code, found) = diagnosis(&system).await;
    assert_eq!((code, &found["ok"]), (1, &json!(false)), "{found}");
    assert_eq!(state(&found, "kind demo"), "fail");
    let printed = system.run("doctor").await;
    assert_eq!(printed.code, 1);
    let advice = "FAIL  kind demo: 1 jobs wait, 0 run\n      No worker runs them: start tailwater worker --kind demo.\n";
    assert!(printed.out.contains(advice), "{}", printed.out);
    system.worker(Demo, |_| {}).await;
    system.ended(&"waits".parse().unwrap()).await;
    until("doctor to be content", async || {
        diagnosis(&system).await.0 == 0
    })
    .await;
    let (_, found) = diagnosis(&system).await;
    for check in [
        "server",
        "max_payload",
        "storage",
        "clock",
        "permissions",
        "queue",
        "kind demo",
    ] {
        assert_eq!(state(&found, check), "ok", "{check} of {found}");
    }
    assert_eq!(state(&found, &format!("stream {}", system.shard())), "ok");
    system.end().await;
}

#[tokio::test]
async fn doctor_finds_streams_that_are_missing_or_changed() {
    let broker = Broker::one();
    let doctor = || tailwater_doctor(&broker);
    let ran = doctor().await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.out
            .contains("FAIL  stream TW_JOBS: it does not exist\n      Run tailwater setup.\n"),
        "{ran:?}"
    );
    tailwater(&format!(
        "setup --max-bytes 1048576 --nats {}",
        broker.url()
    ))
    .await
    .prints();
    assert_eq!(doctor().await.code, 0);
    let client = async_nats::connect(broker.url()).await.unwrap();
    let ask = async |subject: &str, body: String| {
        let answer = client
            .request(subject.to_owned(), body.into())
            .await
            .unwrap();
        serde_json::from_slice::<Value>(&answer.payload).unwrap()
    };
    let mut config = ask("$JS.API.STREAM.INFO.TW_CHUNKS_1", String::new()).await["config"].take();
    config["duplicate_window"] = json!(60_000_000_000_u64);
    config["allow_direct"] = json!(false);
    let answer = ask("$JS.API.STREAM.UPDATE.TW_CHUNKS_1", config.to_string()).await;
    assert!(answer["error"].is_null(), "{answer}");
    let ran = doctor().await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.out
            .contains("stream TW_CHUNKS_1: it differs from its declaration"),
        "{ran:?}"
    );
    assert!(
        ran.out.contains("allow_direct: there false, declared true"),
        "{ran:?}"
    );
}

async fn tailwater_doctor(broker: &Broker) -> Ran {
    tailwater(&format!("doctor --nats {}", broker.url())).await
}

#[tokio::test]
async fn doctor_finds_a_user_who_lacks_a_permission() {
    let broker = Broker::with_config(
        r#"authorization { users: [
            { user: "all", password: "all" }
            { user: "mute", password: "mute", permissions: { publish: { deny: ["tw.ready"] } } }
            { user: "unasked", password: "unasked", permissions: { publish: { deny: ["$JS.API.INFO"] } } }
            { user: "deaf", password: "deaf", permissions: { subscribe: { deny: ["$JS.EVENT.ADVISORY.>"] } } }
        ] }"#,
    );
    let addr = broker.addr(0);
    let run = async |user: &str, command: &str| {
        tailwater(&format!("{command} --nats nats://{user}:{user}@{addr}")).await
    };
    run("all", "setup --max-bytes 1048576").await.prints();
    let ran = run("all", "doctor").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let advice = "Allow this user to subscribe to and publish on what nats/README.md lists.";
    for (user, found) in [
        ("mute", "a subscription receives nothing\n"),
        // The server refuses these without answering them.
        (
            "unasked",
            "Permissions Violation for Publish to \"$JS.API.INFO\"\n",
        ),
        (
            "deaf",
            "Permissions Violation for Subscription to \"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.TW_CHUNKS_",
        ),
    ] {
        let ran = run(user, "doctor").await;
        assert_eq!(ran.code, 1, "{ran:?}");
        let found = format!("FAIL  permissions: {found}");
        assert!(ran.out.contains(&found), "{ran:?}");
        assert!(ran.out.contains(advice), "{ran:?}");
    }
}

#[tokio::test]
async fn doctor_says_what_to_do_about_a_broker_that_it_cannot_reach() {
    let ran = tailwater("doctor --nats nats://127.0.0.1:1 --nats-wait 100ms").await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.out.starts_with("FAIL  server: cannot reach NATS"),
        "{ran:?}"
    );
    assert!(
        ran.out.contains("Start nats-server with JetStream"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn kinds_lists_what_waits_and_runs() {
    let system = System::on(Broker::shared_one()).await;
    system
        .run("setup --shards 2 --replicas 1 --kind idle")
        .await
        .prints();
    let stop = system.demo().await;
    system.submit("runs", words(10_000, 5, 1)).await;
    system.reaches("runs", 3).await;
    let kinds = || async {
        let printed = system.run("kinds --json").await.prints();
        let lines = printed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines.collect::<Vec<Value>>()
    };
    let found = eventually("the kinds", || async {
        let found = kinds().await;
        (found.len() == 2 && found[0]["workers"] == "free").then_some(found)
    })
    .await;
    let of = |kind: &Value| {
        (
            kind["kind"].clone(),
            kind["running"].clone(),
            kind["waiting"].clone(),
        )
    };
    assert_eq!(of(&found[0]), (json!("demo"), json!(1), json!(0)));
    assert_eq!(of(&found[1]), (json!("idle"), json!(0), json!(0)));
    assert_eq!(found[1]["workers"], "none");
    stop.cancel();
    let submit = "submit --kind idle --id waits";
    system.run(submit).await.prints();
    let printed = system.run("kinds").await.prints();
    let idle = printed
        .lines()
        .find(|line| line.starts_with("idle"))
        .unwrap();
    let cells: Vec<_> = idle.split_whitespace().collect();
    assert_eq!(
        (cells[1], cells[2], *cells.last().unwrap()),
        ("1", "0", "none"),
        "{printed}"
    );
    system.end().await;
}
