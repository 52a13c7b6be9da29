//! The kinds of runs, from the first connection to the report.

use std::future::Future;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::clients::{connect, connect_all, follow, grace, hold, within};
use super::cost_meter::CostMeter;
use super::job_writer::PublishTarget;
use super::plan::Plan;
use super::progress::with_progress;
use super::publisher::{self, Order, Publisher};
use super::report::BenchReport;
use super::submitter;
use super::system::System;
use super::tally::Schedule;
use super::transport::ClientTransport;
use super::watcher::{Account, Goal, Timing, WatchedJob, Watcher};
use crate::cli::args::NatsArgs;
use crate::config::{
    BENCH_APPENDS_BEFORE, BENCH_GRACE, BENCH_IDLE_SETTLE, BENCH_LATE_EVENTS, BENCH_SETTLE,
};
use crate::nats::Role;
use crate::wire::JobId;
/// The events of a job before its first scheduled one.
const FIRST_EVENTS: u64 = 2;

/// Runs the plan.
pub(super) async fn run(
    plan: &Plan,
    system: &mut System,
    nats: &NatsArgs,
) -> anyhow::Result<BenchReport> {
    let run = nuid::next();
    let is_compared =
        system.publisher.is_some() || plan.transport == ClientTransport::DurableStreams;
    // Compared servers give a colon another meaning. Both ids have the same length.
    let separator = if is_compared { '-' } else { ':' };
    let kind = &plan.kind;
    let jobs = (0..plan.jobs).map(|index| format!("{kind}{separator}{run}-{index}").parse());
    let jobs: Vec<JobId> = jobs.collect::<Result<_, _>>()?;
    if plan.worker {
        return with_worker(plan, system, &jobs).await;
    }
    let target = target(plan, system, nats);
    let mut published = jobs.clone();
    if plan.appends.is_some() {
        published.push(format!("{kind}{separator}{run}-unwatched").parse()?);
    }
    let publisher = Publisher::start(target, published, plan.text)?;
    publisher.order(Order::Begin).await?;
    let mut report = if let Some(missed) = plan.storm {
        storm(plan, system, &jobs, &publisher, missed).await?
    } else if let Some(others) = plan.late {
        late(plan, system, &jobs, &publisher, others).await?
    } else {
        live(plan, system, &jobs, &publisher).await?
    };
    report.append_ms = publisher.appends();
    publisher.order(Order::End).await?;
    publisher.stop().await?;
    Ok(report)
}

fn target(plan: &Plan, system: &System, nats: &NatsArgs) -> PublishTarget {
    if let Some(publisher) = system.publisher {
        return PublishTarget::Lines(publisher);
    }
    if plan.transport == ClientTransport::DurableStreams {
        return PublishTarget::DurableStreams(system.edge);
    }
    let mut options = nats.options("bench", Role::All);
    options.url = system.nats.clone();
    PublishTarget::Log(Box::new(options))
}

/// Events at a fixed rate, or none at all, to clients that stay connected.
async fn live(
    plan: &Plan,
    system: &System,
    jobs: &[JobId],
    publisher: &Publisher,
) -> anyhow::Result<BenchReport> {
    let account = Account::new()?;
    let mut meter = CostMeter::start(&system.processes)?;
    let watchers = connect_all(plan, system, jobs, &account).await;
    let mut watchers = follow(watchers, Goal::Event(FIRST_EVENTS), &account, grace()).await;
    let connections = watchers.len();
    let settle = if plan.idle {
        BENCH_IDLE_SETTLE
    } else {
        BENCH_SETTLE
    };
    sleep(settle).await;
    meter.connected()?;
    let mut started = Instant::now();
    if plan.idle {
        account.tally().restart(started);
        let until = started + Duration::from_secs(plan.seconds);
        hold(&mut watchers, &account, until).await;
    } else {
        let schedule = schedule(plan);
        started = schedule.start;
        account.tally().restart(started);
        let account = account.timed(Timing::Scheduled(schedule));
        let until = schedule.start + Duration::from_secs(plan.seconds) + BENCH_GRACE;
        let goal = Goal::Event(schedule.last());
        let following = async { anyhow::Ok(follow(watchers, goal, &account, until).await) };
        let total = schedule.events * connections as u64;
        // Events that cannot be published never arrive.
        with_progress(&account, Some(total), async {
            tokio::try_join!(publisher.order(Order::Scheduled(schedule)), following)
        })
        .await?;
        account.tally().lose_missing(total);
    }
    meter.report(
        plan,
        connections,
        &account,
        started,
        "delay from when an event was due",
    )
}

/// All clients disconnect for a while and reconnect at the same moment.
async fn storm(
    plan: &Plan,
    system: &mut System,
    jobs: &[JobId],
    publisher: &Publisher,
    missed: u64,
) -> anyhow::Result<BenchReport> {
    let account = Account::new()?;
    let watchers = connect_all(plan, system, jobs, &account).await;
    let watchers = follow(watchers, Goal::Event(FIRST_EVENTS), &account, grace()).await;
    let disconnected: Vec<_> = watchers
        .into_iter()
        .map(|watcher| watcher.watched)
        .collect();
    let burst = Order::Burst {
        jobs: jobs.len(),
        events: missed,
    };
    publisher.order(burst).await?;
    if plan.cold {
        system.restart_edge().await?;
    }
    sleep(BENCH_SETTLE).await;
    let before = match plan.appends {
        Some(rate) => {
            appended_while(publisher, rate, sleep(BENCH_APPENDS_BEFORE)).await?;
            publisher.appends()
        }
        None => None,
    };
    let meter = CostMeter::start(&system.processes)?;
    let started = Instant::now();
    account.tally().restart(started);
    let edge = system.edge;
    let transport = plan.transport;
    let goal = Goal::Event(FIRST_EVENTS + missed);
    let total = missed * disconnected.len() as u64;
    let returning: FuturesUnordered<_> = disconnected
        .into_iter()
        .map(async |watched| {
            let mut watcher = Watcher::connect(edge, transport, watched).await?;
            watcher.follow(goal, &account).await?;
            account.tally().delayed(Instant::now(), started.elapsed());
            Ok::<_, std::io::Error>(watcher)
        })
        .collect();
    let all = within(returning, started + BENCH_GRACE, &account);
    let all = with_progress(&account, Some(total), all);
    let returned = match plan.appends {
        Some(rate) => appended_while(publisher, rate, all).await?,
        None => all.await,
    };
    account.tally().lose_missing(total);
    let mut report = meter.report(
        plan,
        returned.len(),
        &account,
        started,
        "a client has all events, from the first connect",
    )?;
    report.append_before_ms = before;
    Ok(report)
}

/// Does `work`, while events are appended to the last job at this rate.
async fn appended_while<T>(
    publisher: &Publisher,
    rate: f64,
    work: impl Future<Output = T>,
) -> anyhow::Result<T> {
    let until = CancellationToken::new();
    let steady = Order::Steady {
        interval: publisher::interval(rate),
        until: until.clone(),
    };
    let (appended, done) = tokio::join!(publisher.order(steady), async {
        let done = work.await;
        until.cancel();
        done
    });
    appended?;
    Ok(done)
}

/// Clients that start late on a job whose events are far apart in the log.
async fn late(
    plan: &Plan,
    system: &System,
    jobs: &[JobId],
    publisher: &Publisher,
    others: u64,
) -> anyhow::Result<BenchReport> {
    let account = Account::new()?;
    let events = BENCH_LATE_EVENTS;
    publisher
        .order(Order::Interleaved { events, others })
        .await?;
    // The same appends without a late client: some take long whatever is read.
    publisher.order(Order::Scheduled(schedule(plan))).await?;
    let before = publisher.appends();
    let meter = CostMeter::start(&system.processes)?;
    let started = Instant::now();
    account.tally().restart(started);
    let schedule = schedule(plan);
    let deadline = schedule.last_due() + BENCH_GRACE;
    let reading = async {
        for client in 0..plan.watchers {
            if Instant::now() > deadline {
                let reason = "a client did not begin in time".to_owned();
                account.tally().fail(plan.watchers - client, reason);
                break;
            }
            sleep(BENCH_SETTLE).await;
            let started = Instant::now();
            let watched = vec![WatchedJob::new(jobs[0].clone(), 0)];
            let watchers = connect(plan, system, watched, 1, &account).await;
            let until = started + BENCH_GRACE;
            let read = follow(
                watchers,
                Goal::Event(FIRST_EVENTS + events),
                &account,
                until,
            )
            .await;
            if !read.is_empty() {
                account.tally().delayed(Instant::now(), started.elapsed());
            }
        }
        anyhow::Ok(())
    };
    tokio::try_join!(publisher.order(Order::Scheduled(schedule)), reading)?;
    let mut report = meter.report(
        plan,
        plan.watchers,
        &account,
        started,
        "a late client has all events, from its connect",
    )?;
    report.append_before_ms = before;
    Ok(report)
}

/// Jobs that a real worker runs.
async fn with_worker(
    plan: &Plan,
    system: &mut System,
    jobs: &[JobId],
) -> anyhow::Result<BenchReport> {
    system.start_worker(plan.jobs).await?;
    // What a worker allocates while it starts is not memory of the connections.
    sleep(BENCH_SETTLE).await;
    let account = Account::new()?.timed(Timing::Stamped);
    let mut meter = CostMeter::start(&system.processes)?;
    let watchers = connect_all(plan, system, jobs, &account).await;
    let connections = watchers.len();
    sleep(BENCH_SETTLE).await;
    meter.connected()?;
    let started = Instant::now();
    account.tally().restart(started);
    let until = started + Duration::from_secs(plan.seconds) + BENCH_GRACE;
    let following = async { anyhow::Ok(follow(watchers, Goal::JobEnd, &account, until).await) };
    // Jobs that were refused have no events to wait for.
    with_progress(&account, None, async {
        tokio::try_join!(submitter::submit(system.edge, jobs, plan), following)
    })
    .await?;
    meter.report(
        plan,
        connections,
        &account,
        started,
        "delay from the event's time stamp",
    )
}

fn schedule(plan: &Plan) -> Schedule {
    Schedule {
        start: Instant::now() + BENCH_SETTLE,
        jobs: plan.jobs,
        interval: publisher::interval(plan.rate),
        events: plan.events_by_rate() as u64,
    }
}
