use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tailwater::nats::{Log, Nats, Queue, SubmitOutcome};
use tailwater::wire::{JobId, Submission};

use crate::support::broker::Broker;
use crate::support::link::{Flow, Link};
use crate::support::system::System;
use crate::support::{until, within};

/// A system without a recorder.
async fn unrecorded() -> (Broker, System) {
    let broker = Broker::with_config("");
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    (broker, system)
}

/// Otherwise the client library would send it as soon as the broker is back.
#[tokio::test]
async fn a_request_that_was_given_up_during_an_outage_is_not_made_after_it() {
    let (broker, system) = unrecorded().await;
    let prefix = &system.options.prefix;
    let link = Link::to(&broker.addr(0)).await;
    let far = system.reached_at(&format!("nats://{}", link.addr));
    let nats = Nats::connect(&far.options).await.unwrap();
    let queue = Queue::through_recorders(Log::open(&nats).await.unwrap());
    let client = system.client().await;
    let mut requests = client
        .subscribe(format!("{prefix}.record.*"))
        .await
        .unwrap();
    link.set(Flow::Silent);
    until("lost connections", async || nats.connections().up == 0).await;
    let submission = Submission::new("demo".parse().unwrap(), json!(1));
    let submit = async |id: &str| {
        let job: JobId = id.parse().unwrap();
        queue.submit(&job, &submission).await
    };
    assert!(submit("demo:during").now_or_never().is_none());
    link.set(Flow::Open);
    until("connections", async || nats.is_connected()).await;
    let answered = async {
        let request = within("a request", requests.next()).await.unwrap();
        let asked: Value = serde_json::from_slice(&request.payload).unwrap();
        assert_eq!(asked["job"], "demo:after");
        let answer = json!({"outcome": "new"}).to_string();
        let sent = client.publish(request.reply.unwrap(), answer.into());
        sent.await.unwrap();
    };
    let (outcome, ()) = tokio::join!(submit("demo:after"), answered);
    assert_eq!(outcome.unwrap(), SubmitOutcome::New);
    nats.close().await;
    system.end().await;
}
