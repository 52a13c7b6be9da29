//! The kinds of runs, from the first connection to the report.

use std::future::Future;
use std::io::IsTerminal as _;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, interval, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::cost_meter::CostMeter;
use super::job_writer::PublishTarget;
use super::plan::Plan;
use super::publisher::{self, Order, Publisher};
use super::report::BenchReport;
use super::submitter;
use super::system::System;
use super::tally::Schedule;
use super::transport::ClientTransport;
use super::watcher::{Account, Goal, Timing, WatchedJob, Watcher};
use crate::cli::args::NatsArgs;
use crate::config::{
    BENCH_APPENDS_BEFORE, BENCH_AT_ONCE, BENCH_GRACE, BENCH_IDLE_SETTLE, BENCH_LATE_EVENTS,
    BENCH_REDRAW, BENCH_SETTLE,
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
    let watchers = follow(watchers, Goal::Event(FIRST_EVENTS), &account, grace()).await;
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
        sleep(Duration::from_secs(plan.seconds)).await;
    } else {
        let schedule = schedule(plan);
        started = schedule.start;
        account.tally().restart(started);
        let account = account.timed(Timing::Scheduled(schedule));
        let until = schedule.start + Duration::from_secs(plan.seconds) + BENCH_GRACE;
        let following = follow(watchers, Goal::Event(schedule.last()), &account, until);
        let total = schedule.events * connections as u64;
        let (published, _) = with_progress(&account, total, async {
            tokio::join!(publisher.order(Order::Scheduled(schedule)), following)
        })
        .await;
        published?;
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
    let all = with_progress(&account, total, all);
    let returned = match plan.appends {
        Some(rate) => appended_while(publisher, rate, all).await?,
        None => all.await,
    };
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
    let meter = CostMeter::start(&system.processes)?;
    let started = Instant::now();
    account.tally().restart(started);
    let reading = async {
        for _ in 0..plan.watchers {
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
    };
    let (published, ()) = tokio::join!(publisher.order(Order::Scheduled(schedule(plan))), reading);
    published?;
    meter.report(
        plan,
        plan.watchers,
        &account,
        started,
        "a late client has all events, from its connect",
    )
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
    with_progress(&account, 0, async {
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

/// Connects all watchers of all jobs.
async fn connect_all(
    plan: &Plan,
    system: &System,
    jobs: &[JobId],
    account: &Account,
) -> Vec<Watcher> {
    let jobs = (0..plan.watchers).flat_map(|_| jobs.iter().enumerate());
    let watched = jobs.map(|(index, job)| WatchedJob::new(job.clone(), index));
    connect(plan, system, watched.collect(), BENCH_AT_ONCE, account).await
}

fn grace() -> Instant {
    Instant::now() + BENCH_GRACE
}

fn schedule(plan: &Plan) -> Schedule {
    Schedule {
        start: Instant::now() + BENCH_SETTLE,
        jobs: plan.jobs,
        interval: publisher::interval(plan.rate),
        events: plan.events_by_rate() as u64,
    }
}

/// Connects all watchers; failures are counted.
async fn connect(
    plan: &Plan,
    system: &System,
    watched: Vec<WatchedJob>,
    at_once: usize,
    account: &Account,
) -> Vec<Watcher> {
    let connecting = futures_util::stream::iter(watched)
        .map(|watched| Watcher::connect(system.edge, plan.transport, watched))
        .buffer_unordered(at_once);
    within(connecting, grace(), account).await
}

/// Follows until all watchers reach `goal`; failures are counted.
async fn follow(
    watchers: Vec<Watcher>,
    goal: Goal,
    account: &Account,
    until: Instant,
) -> Vec<Watcher> {
    let following: FuturesUnordered<_> = watchers
        .into_iter()
        .map(async |mut watcher: Watcher| {
            watcher.follow(goal, account).await?;
            Ok(watcher)
        })
        .collect();
    within(following, until, account).await
}

/// Collects what succeeds before `until`, and counts the rest as failed.
async fn within(
    work: impl futures_util::Stream<Item = std::io::Result<Watcher>>,
    until: Instant,
    account: &Account,
) -> Vec<Watcher> {
    let mut work = std::pin::pin!(work);
    let mut done = Vec::new();
    loop {
        match timeout_at(until, work.next()).await {
            Ok(Some(Ok(watcher))) => done.push(watcher),
            Ok(Some(Err(error))) => account.tally().fail(error.to_string()),
            Ok(None) => return done,
            Err(_) => {
                let unfinished = work.size_hint().0;
                account
                    .tally()
                    .fail(format!("{unfinished} not done in time"));
                return done;
            }
        }
    }
}

/// Shows on a terminal how many of `total` deliveries have arrived.
async fn with_progress<T>(account: &Account, total: u64, work: impl Future<Output = T>) -> T {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
    } else {
        ProgressBar::hidden()
    };
    let style = "{bar:40} {human_pos} of {human_len} deliveries, {per_sec}";
    bar.set_style(
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let drawing = async {
        let mut redraw = interval(BENCH_REDRAW);
        loop {
            redraw.tick().await;
            bar.set_position(account.tally().deliveries);
        }
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = drawing => unreachable!("it never ends"),
    };
    bar.finish_and_clear();
    outcome
}
