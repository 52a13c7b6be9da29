use std::collections::{BTreeMap, HashMap};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tailwater::nats::Nats;
use tailwater::process_group::Signal;
use tailwater::wire::JobId;

use crate::support::broker::Broker;
use crate::support::http::{get_json, refused};
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{Edge, System, words};
use crate::support::{assert_fields, eventually, within};

on_one_and_three!(
    jobs_are_listed_newest_first_with_their_state,
    a_submitted_job_is_listed_at_once,
    each_job_is_on_exactly_one_page,
    filters_select_exactly_the_matching_jobs,
    expired_fields_are_null_and_expired_jobs_are_not_listed,
    undecodable_messages_hide_no_job,
);

/// `GET /api/jobs` with a query.
async fn list(edge: &Edge, query: &str) -> Value {
    get_json(edge, &format!("/api/jobs?{query}")).await
}

/// The jobs of all pages, and how many pages there were.
async fn turn(edge: &Edge, filter: &str, limit: usize) -> (Vec<Value>, usize) {
    let mut jobs = Vec::new();
    let mut pages = 0;
    let mut query = format!("{filter}&limit={limit}");
    loop {
        let page = list(edge, query.trim_start_matches('&')).await;
        let rows = page["jobs"].as_array().unwrap();
        assert!(rows.len() <= limit);
        jobs.extend(rows.iter().cloned());
        pages += 1;
        assert!(pages <= 1000, "the pages do not end");
        let Some(next) = page["next"].as_str() else {
            break;
        };
        query = format!("{filter}&limit={limit}&page={next}");
    }
    assert!(
        jobs.is_sorted_by_key(|job| std::cmp::Reverse(job["updated_at"].as_u64().unwrap())),
        "{jobs:?}"
    );
    (jobs, pages)
}

fn ids(jobs: &[Value]) -> Vec<&str> {
    jobs.iter().map(|job| job["id"].as_str().unwrap()).collect()
}

/// Writes job logs without a worker.
struct Pen<'a> {
    system: &'a System,
    client: async_nats::Client,
    seqs: HashMap<String, u64>,
}

impl<'a> Pen<'a> {
    async fn of(system: &'a System) -> Self {
        let client = system.client().await;
        Self {
            system,
            client,
            seqs: HashMap::new(),
        }
    }

    fn subject(&self, job: &str) -> String {
        let shard = job
            .parse::<JobId>()
            .unwrap()
            .shard(self.system.log.shards());
        format!("{}.chunks.{shard}.{job}", self.system.options.prefix)
    }

    fn event(&mut self, job: &str, event_type: &str) -> String {
        let seq = self
            .seqs
            .entry(job.to_owned())
            .and_modify(|seq| *seq += 1)
            .or_insert(1);
        let kind = job.split('-').next().unwrap();
        json!({"type": event_type, "job": job, "seq": seq, "attempt": 1, "ts": 1000 + *seq, "kind": kind, "text": "some words "})
            .to_string()
    }

    /// Stores one event.
    async fn write(&mut self, job: &str, of: &str) {
        let event = self.event(job, of);
        self.write_raw(job, event).await;
    }

    /// Queues six jobs.
    async fn queue_six(&mut self) {
        for n in 0..6 {
            self.write(&format!("x-{n}"), "job:queued:v1").await;
        }
    }

    async fn write_raw(&self, job: &str, payload: String) {
        let acked = self.client.request(self.subject(job), payload.into());
        let ack: Value =
            serde_json::from_slice(&within("an ack", acked).await.unwrap().payload).unwrap();
        assert!(ack["seq"].is_u64(), "{ack}");
    }

    /// Stores many events, round-robin over the jobs.
    async fn write_many(&mut self, jobs: &[&str], count: usize) {
        for n in 0..count {
            let job = jobs[n % jobs.len()];
            let subject = self.subject(job);
            let event = self.event(job, "model:chunk:v1");
            self.client.publish(subject, event.into()).await.unwrap();
        }
        for job in jobs {
            self.write(job, "model:chunk:v1").await;
        }
    }
}

async fn jobs_are_listed_newest_first_with_their_state(broker: &Broker) {
    let system = System::on(broker).await;
    let edge = system.edge().await;
    assert_eq!(list(&edge, "").await, json!({"jobs": [], "next": null}));
    let waits = system.submit("waits", words(2, 0, 1)).await;
    let page = list(&edge, "").await;
    let row = &page["jobs"][0];
    let state = system.state(&waits).await.unwrap();
    let expected = json!({"id": "waits", "job": "waits", "kind": "demo", "status": "queued", "attempt": 0, "seq": 1,
        "created_at": state.created_at, "updated_at": row["updated_at"]});
    assert_eq!(page, json!({"jobs": [expected], "next": null}));
    system.demo().await;
    system.ended(&waits).await;
    for id in ["first", "second", "third"] {
        let job = system.submit(id, words(3, 0, 1)).await;
        system.ended(&job).await;
    }
    let page = list(&edge, "").await;
    let found = ids(page["jobs"].as_array().unwrap());
    assert_eq!(found, ["third", "second", "first", "waits"]);
    assert_eq!(page["next"], Value::Null);
    for row in page["jobs"].as_array().unwrap() {
        let state = system
            .state(&row["id"].as_str().unwrap().parse().unwrap())
            .await
            .unwrap();
        let same = json!({"kind": state.kind, "status": "done", "attempt": 1, "seq": state.seq, "created_at": state.created_at});
        for (field, value) in same.as_object().unwrap() {
            assert_eq!(&row[field], value, "{field} of {row}");
        }
        // Both times come from the same clock.
        let updated = row["updated_at"].as_u64().unwrap();
        assert!(
            state.ended_at.unwrap() <= updated && updated < state.ended_at.unwrap() + 60_000,
            "{row}"
        );
    }
    // A job with new events moves to the front, also with pages of one job.
    system.submit("runs", words(100_000, 50, 1)).await;
    eventually("the job at work", || async {
        let page = list(&edge, "limit=1").await;
        (page["jobs"][0]["id"] == "runs" && page["jobs"][0]["status"] == "running").then_some(())
    })
    .await;
    let (jobs, pages) = turn(&edge, "", 1).await;
    let expected = (vec!["runs", "third", "second", "first", "waits"], 5);
    assert_eq!((ids(&jobs), pages), expected);
    system.end().await;
}

async fn a_submitted_job_is_listed_at_once(broker: &Broker) {
    let system = System::on(broker).await;
    let nodes = system.url().split(',').count();
    let mut edges = Vec::new();
    for node in 0..nodes {
        edges.push(edge_at(&system, node).await);
    }
    let mut pen = Pen::of(&system).await;
    for n in 0..120 {
        // Jobs of one or two events; no replica may lag behind.
        let id = format!("demo-{n}");
        if n % 2 == 0 {
            system.submit(&id, Value::Null).await;
        } else {
            pen.write(&id, "job:queued:v1").await;
            pen.write(&id, "job:started:v1").await;
        }
        let page = list(&edges[n % edges.len()], "limit=2").await;
        let row = &page["jobs"][0];
        assert_fields!(row, {"id": id, "kind": "demo"});
        assert!(row["created_at"].is_u64(), "{page}");
    }
    system.end().await;
}

/// An edge that uses one node only: the node that gets a direct get answers it.
async fn edge_at(system: &System, node: usize) -> Edge {
    let url = system.url().split(',').nth(node).unwrap().to_owned();
    system.reached_at(&url).edge().await
}

#[tokio::test]
async fn a_lagging_replica_neither_hides_nor_repeats_jobs() {
    let broker = Broker::three();
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    let mut pen = Pen::of(&system).await;
    pen.write("old-1", "job:queued:v1").await;
    let leader = system.leader(&broker).await;
    // The pen uses the leader, the edge another node.
    pen.client = async_nats::connect(system.url().split(',').nth(leader).unwrap())
        .await
        .unwrap();
    let behind = (leader + 1) % 3;
    let edge = edge_at(&system, behind).await;
    for round in 0..6 {
        let job = format!("new-{round}");
        broker.signal(behind, Signal::STOP);
        pen.write(&job, "job:queued:v1").await;
        pen.write_many(&["busy-1"], 4000).await;
        pen.write(&job, "job:started:v1").await;
        broker.signal(behind, Signal::CONT);
        let page = list(&edge, "limit=1").await;
        let row = &page["jobs"][0];
        assert_fields!(row, {"id": job, "kind": "new"});
        assert!(row["created_at"].is_u64(), "{page}");
        let (jobs, _) = turn(&edge, "", 1).await;
        let older = (0..round).rev().map(|round| format!("new-{round}"));
        let mut expected = vec![job.clone(), "busy-1".to_owned()];
        expected.extend(older);
        expected.push("old-1".to_owned());
        assert_eq!(ids(&jobs), expected);
    }
    system.end().await;
}

async fn each_job_is_on_exactly_one_page(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let edges = [system.edge().await, system.edge().await];
    let mut expected = BTreeMap::new();
    let mut running = Vec::new();
    for n in 0..30 {
        let job = system.submit(&format!("over-{n}"), words(3, 0, n)).await;
        expected.insert(job.to_string(), 0);
        running.push(
            system
                .submit(&format!("runs-{n}"), words(1_000_000, 40, n))
                .await,
        );
    }
    for job in &running {
        system
            .last_event("a job at work", job, |last| last.seq.0 > 3)
            .await;
        expected.insert(job.to_string(), 0);
    }
    for round in 0..3 {
        let mut seen = expected.clone();
        let mut query = "limit=7".to_owned();
        let mut page = 0;
        loop {
            let answer = list(&edges[page % 2], &query).await;
            for row in answer["jobs"].as_array().unwrap() {
                let count = seen.get_mut(row["id"].as_str().unwrap());
                *count.unwrap_or_else(|| panic!("{row} came after the listing began")) += 1;
            }
            // Jobs that are submitted meanwhile are on the first page of the next listing.
            system
                .submit(&format!("late-{round}-{page}"), words(2, 0, 1))
                .await;
            page += 1;
            let Some(next) = answer["next"].as_str() else {
                break;
            };
            query = format!("limit=7&page={next}");
        }
        assert!(seen.values().all(|&count| count == 1), "{seen:?}");
        for late in 0..page {
            expected.insert(format!("late-{round}-{late}"), 0);
        }
    }
    // All running jobs and no others.
    let (jobs, _) = turn(&edges[0], "status=running", 4).await;
    let running_now: Vec<&str> = ids(&jobs)
        .into_iter()
        .filter(|id| id.starts_with("runs-"))
        .collect();
    assert_eq!(running_now.len(), 30, "{running_now:?}");
    assert!(ids(&jobs).iter().all(|id| !id.starts_with("over-")));
    system.end().await;
}

async fn filters_select_exactly_the_matching_jobs(broker: &Broker) {
    let system = System::on(broker).await;
    let edge = system.edge().await;
    let mut pen = Pen::of(&system).await;
    let mut expected: Vec<(String, &str, &str)> = Vec::new();
    for n in 0..24 {
        let kind = ["red", "green"][n % 2];
        let (of, status) = [
            ("job:queued:v1", "queued"),
            ("job:started:v1", "running"),
            ("model:chunk:v1", "running"),
            ("job:done:v1", "done"),
            ("job:failed:v1", "failed"),
            ("job:cancelled:v1", "cancelled"),
        ][n / 2 % 6];
        let job = format!("{kind}-{n}");
        pen.write(&job, "job:queued:v1").await;
        if of != "job:queued:v1" {
            pen.write(&job, of).await;
        }
        expected.insert(0, (job, kind, status));
    }
    for status in ["", "queued", "running", "done", "failed", "cancelled"] {
        for kind in ["", "red", "green", "blue"] {
            let fits = |is: &str, filter: &str| filter.is_empty() || is == filter;
            let expected: Vec<&str> = expected
                .iter()
                .filter(|(_, of, is)| fits(of, kind) && fits(is, status))
                .map(|(job, ..)| job.as_str())
                .collect();
            let mut filter = String::new();
            for (name, value) in [("status", status), ("kind", kind)] {
                if !value.is_empty() {
                    filter += &format!("&{name}={value}");
                }
            }
            for limit in [1, 100] {
                let (jobs, _) = turn(&edge, &filter, limit).await;
                assert_eq!(ids(&jobs), expected, "{filter} by {limit}");
            }
        }
    }
    system.end().await;
}

async fn expired_fields_are_null_and_expired_jobs_are_not_listed(broker: &Broker) {
    // A shard that keeps a few dozen kilobytes.
    let system = System::with(broker, |settings| {
        settings.shards = 1;
        settings.max_bytes = Some(64 << 10);
    })
    .await;
    let edge = system.edge().await;
    let mut pen = Pen::of(&system).await;
    pen.write("gone-1", "job:queued:v1").await;
    pen.write("gone-1", "job:done:v1").await;
    pen.write("old-1", "job:queued:v1").await;
    let page = list(&edge, "").await;
    assert_eq!(page["jobs"][0]["created_at"], 1001);
    pen.write_many(&["old-1"], 1500).await;
    pen.write("new-1", "job:queued:v1").await;
    let (jobs, _) = turn(&edge, "", 1).await;
    assert_eq!(ids(&jobs), ["new-1", "old-1"]);
    assert_fields!(jobs[0], {"kind": "new", "created_at": 1001});
    let old = &jobs[1];
    let nothing = &Value::Null;
    let found = (&old["kind"], &old["created_at"], &old["status"]);
    assert_eq!(found, (nothing, nothing, &json!("running")));
    assert_eq!(old["seq"], 1502);
    assert_eq!(ids(&turn(&edge, "kind=old", 5).await.0), Vec::<&str>::new());
    system.end().await;
}

async fn undecodable_messages_hide_no_job(broker: &Broker) {
    let system = System::with(broker, |settings| settings.shards = 1).await;
    let edge = system.edge().await;
    let mut pen = Pen::of(&system).await;
    for job in ["a-1", "b-1", "c-1", "stays-1"] {
        pen.write(job, "job:queued:v1").await;
    }
    // After the last event, before the first, and under an invalid job id.
    pen.write_raw("b-1", "junk".into()).await;
    pen.write_raw("stays-1", "junk".into()).await;
    pen.write_raw("d-1", "junk".into()).await;
    pen.write("d-1", "job:started:v1").await;
    let strange = format!("{}.chunks.0.ä", system.options.prefix);
    pen.client.request(strange, "junk".into()).await.unwrap();
    let first = list(&edge, "limit=1").await;
    assert_eq!(ids(first["jobs"].as_array().unwrap()), ["d-1"]);
    // All jobs but one get new events between the pages; the listing shows the state when it
    // started.
    for job in ["a-1", "b-1", "c-1", "d-1", "e-1"] {
        pen.write(job, "job:started:v1").await;
    }
    let mut jobs = Vec::new();
    let mut next = first["next"].clone();
    while let Some(page) = next.as_str() {
        let page = list(&edge, &format!("limit=1&page={page}")).await;
        jobs.extend(page["jobs"].as_array().unwrap().clone());
        next = page["next"].clone();
    }
    assert_eq!(ids(&jobs), ["stays-1", "c-1", "b-1", "a-1"]);
    assert!(
        jobs.iter()
            .all(|job| job["status"] == "queued" && job["seq"] == 1),
        "{jobs:?}"
    );
    let (jobs, _) = turn(&edge, "", 2).await;
    assert_eq!(ids(&jobs), ["e-1", "d-1", "c-1", "b-1", "a-1", "stays-1"]);
    system.end().await;
}

#[tokio::test]
async fn bad_parameters_and_foreign_page_tokens_are_refused() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let other = System::on(Broker::shared_one()).await;
    let mut pages = Vec::new();
    for system in [&system, &other] {
        Pen::of(system).await.queue_six().await;
        let page = list(&system.edge().await, "limit=2").await;
        pages.push(page["next"].as_str().unwrap().to_owned());
    }
    let [page, foreign] = pages.try_into().unwrap();
    let cut = &page[..page.len() - 1];
    let turned = page.chars().rev().collect::<String>();
    let bad_request = "status=asleep status= status=Done status=done&status=done limit=0 limit=101 \
        limit=-1 limit=many limit=99999999999999999999 offset=3 limit=3&x";
    let bad_kind = "kind=de.mo kind=";
    let bad_page =
        format!("page= page=1 page=%00 page={cut} page={page}{page} page={turned} page={foreign}");
    for (queries, code) in [
        (bad_request, "bad_request"),
        (bad_kind, "bad_kind"),
        (&bad_page, "bad_page"),
    ] {
        for query in queries.split_whitespace() {
            let request = format!("GET /api/jobs?{query}");
            refused(&edge, &request, "", 400, code).await;
        }
    }
    let page = format!("limit=100&page={page}");
    let found = list(&edge, &page).await["jobs"].as_array().unwrap().len();
    assert_eq!(found, 4);
    // The streams are recreated with the same content.
    let client = system.client().await;
    let prefix = system.options.prefix.as_str().to_uppercase();
    for shard in 0..2 {
        let delete = format!("$JS.API.STREAM.DELETE.{prefix}_CHUNKS_{shard}");
        client.request(delete, "".into()).await.unwrap();
    }
    let nats = Nats::connect(&system.options).await.unwrap();
    let settings = tailwater::nats::StreamSettings {
        shards: 2,
        replicas: 1,
        max_age: Some(std::time::Duration::from_secs(3600)),
        max_bytes: Some(256 << 20),
    };
    nats.set_up(&settings).await.unwrap();
    Pen::of(&system).await.queue_six().await;
    let request = format!("GET /api/jobs?{page}");
    refused(&edge, &request, "", 400, "bad_page").await;
    other.end().await;
    system.end().await;
}

#[tokio::test]
async fn a_page_costs_a_bounded_number_of_broker_requests() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let mut pen = Pen::of(&system).await;
    pen.write("old-1", "job:queued:v1").await;
    pen.write("old-1", "job:done:v1").await;
    let others = ["a-1", "a-2", "a-3", "a-4", "a-5", "a-6"];
    pen.write_many(&others, 20_000).await;
    // Every API request for these streams.
    let mut asked = pen.client.subscribe("$JS.API.>").await.unwrap();
    pen.client.publish("$JS.API.mark", "".into()).await.unwrap();
    while within("the mark", asked.next())
        .await
        .unwrap()
        .subject
        .as_str()
        != "$JS.API.mark"
    {}
    let prefix = system.options.prefix.as_str().to_uppercase();
    let mut jobs = Vec::new();
    let mut pages = 0;
    let mut query = "limit=20".to_owned();
    loop {
        let page = list(&edge, &query).await;
        jobs.extend(page["jobs"].as_array().unwrap().clone());
        pages += 1;
        // The subscriber has received every request that came before this mark.
        pen.client.publish("$JS.API.mark", "".into()).await.unwrap();
        let mut reads = 0;
        let mut bounds = 0;
        let mut others = 0;
        loop {
            let question = within("a question", asked.next()).await.unwrap();
            let subject = question.subject.as_str();
            if subject == "$JS.API.mark" {
                break;
            }
            if !subject.contains(&format!("{prefix}_")) {
                continue;
            }
            let body: Value = serde_json::from_slice(&question.payload).unwrap_or_default();
            if subject.contains("STREAM.INFO") {
                bounds += 1;
            } else if let Some(batch) = body["batch"].as_u64() {
                assert!(batch <= 256, "{body}");
                assert!(body.get("next_by_subj").is_none(), "{body}");
                reads += 1;
            } else {
                others += 1;
            }
        }
        // Two shards. The first page looks up its jobs; the others find only listed jobs and
        // `old-1`.
        assert_eq!(bounds, 2);
        assert!((1..=32).contains(&reads), "{reads} reads");
        assert!(others <= 8, "{others} look-ups");
        let Some(next) = page["next"].as_str() else {
            break;
        };
        query = format!("limit=20&page={next}");
    }
    assert_eq!(ids(&jobs)[6..], ["old-1"]);
    let mut first: Vec<&str> = ids(&jobs)[..6].to_vec();
    first.sort_unstable();
    assert_eq!(first, others);
    assert!((3..=6).contains(&pages), "{pages} pages");
    system.end().await;
}

#[tokio::test]
async fn the_cli_lists_jobs_as_a_table_and_as_json() {
    let system = System::on(Broker::shared_one()).await;
    let mut pen = Pen::of(&system).await;
    for n in 0..130 {
        pen.write(&format!("x-{n}"), "job:queued:v1").await;
    }
    pen.write("longer-name", "job:queued:v1").await;
    pen.write("longer-name", "job:done:v1").await;
    let jobs = async |flags: &str| system.run(&format!("jobs {flags}")).await;
    let out = jobs("--limit 2").await.prints();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    for (line, begin) in [
        "JOB          KIND    STATUS  ATTEMPT  EVENTS  CREATED",
        "longer-name  longer  done    1        2       1970-01-01T00:00:01Z  20",
        "x-129        x       queued  1        1 ",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(lines[line].starts_with(begin), "{out}");
    }
    // More than one page.
    let out = jobs("--limit 125 --json --kind x").await.prints();
    let rows: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let expected: Vec<String> = (5..130).rev().map(|n| format!("x-{n}")).collect();
    assert_eq!(ids(&rows), expected);
    assert_eq!(jobs("--json").await.out.lines().count(), 20);
    let out = jobs("--status done --limit 1000").await.prints();
    assert_eq!(out.lines().count(), 2, "{out}");
    assert_eq!(jobs("--status asleep").await.code, 64);
    assert_eq!(jobs("--limit 0").await.code, 64);
    system.end().await;
}
