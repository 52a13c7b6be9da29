//! `tailwater doctor`: checks a deployment, and says what to do about what it finds.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::args::{NatsArgs, block_on};
use crate::config::{
    DOCTOR_CLOCK_FAIL, DOCTOR_CLOCK_WARN, DOCTOR_FULL_PERCENT, DOCTOR_WAIT, KIND_JOBS_MAX,
};
use crate::nats::{
    BrokerReport, ClockReport, FoundStream, KindStatus, KindUsage, Log, MIN_VERSION, Nats,
    NatsError, Queue, QueueReport, Reader, Role, StorageReport, StreamReport,
};
use crate::runtime::Tasks;
use crate::wire::limits::{MESSAGE_HEADERS_MAX, STREAM_MESSAGE_MAX};

/// Check a deployment: the server, its streams, replicas, permissions, clock and limits, kinds
/// without workers, and jobs that wait too long. Each problem comes with what to do. Exits with 1 if
/// something is broken; warnings do not count.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  tailwater doctor --nats nats://127.0.0.1:4222")]
pub(super) struct DoctorCommand {
    /// Print one JSON object with all checks.
    #[arg(long)]
    json: bool,
    /// How long a job may wait for a worker before that is a warning.
    #[arg(long, value_name = "TIME", default_value_t = DOCTOR_WAIT.into())]
    wait: humantime::Duration,
    #[command(flatten)]
    nats: NatsArgs,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum CheckState {
    Ok,
    /// It works, but may not for long, or not as well as it could.
    Warn,
    /// It does not work.
    Fail,
}

/// One check.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    check: String,
    state: CheckState,
    found: String,
    /// What to do; absent if there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// All checks.
#[derive(Debug, Serialize)]
struct Diagnosis {
    /// Whether no check failed.
    ok: bool,
    checks: Vec<Check>,
}

fn ok(check: impl Into<String>, found: impl Into<String>) -> Check {
    Check {
        check: check.into(),
        state: CheckState::Ok,
        found: found.into(),
        advice: None,
    }
}

impl Check {
    fn warn(self, advice: impl Into<String>) -> Self {
        Self {
            state: CheckState::Warn,
            advice: Some(advice.into()),
            ..self
        }
    }

    fn fail(self, advice: impl Into<String>) -> Self {
        Self {
            state: CheckState::Fail,
            advice: Some(advice.into()),
            ..self
        }
    }
}

impl DoctorCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            let checks = match self.nats.connect("doctor", Role::Observer).await {
                Ok(nats) => {
                    let checks = Box::pin(examine(&nats, self.wait.into())).await;
                    nats.close().await;
                    checks
                }
                Err(error) => vec![unreachable(&error)],
            };
            let diagnosis = Diagnosis {
                ok: checks.iter().all(|check| check.state != CheckState::Fail),
                checks,
            };
            print(&diagnosis, self.json)?;
            Ok(if diagnosis.ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        })
    }
}

fn print(diagnosis: &Diagnosis, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, diagnosis)?;
        writeln!(out)?;
        return out.flush();
    }
    for Check {
        check,
        state,
        found,
        advice,
    } in &diagnosis.checks
    {
        let state = match state {
            CheckState::Ok => "ok",
            CheckState::Warn => "warn",
            CheckState::Fail => "FAIL",
        };
        writeln!(out, "{state:4}  {check}: {found}")?;
        for line in advice.iter().flat_map(|advice| advice.lines()) {
            writeln!(out, "      {line}")?;
        }
    }
    out.flush()
}

/// The check of a broker that cannot be used.
fn unreachable(error: &NatsError) -> Check {
    let advice = match error {
        NatsError::TooOld { .. } => "Upgrade nats-server.",
        NatsError::Unauthorized { .. } => {
            "Give the credentials of a user: --nats-creds, --nats-nkey, or user:password@ in --nats."
        }
        NatsError::Tls { .. } => {
            "Use tls:// in --nats, and --nats-ca for an authority of your own."
        }
        NatsError::BadAddress { .. } | NatsError::BadCredentials { .. } => {
            "Correct the flag, or its variable."
        }
        NatsError::Unreachable { .. }
        | NatsError::NotSetUp { .. }
        | NatsError::Drifted(_)
        | NatsError::NoSpace { .. }
        | NatsError::Api { .. }
        | NatsError::Unavailable(_) => "Start nats-server with JetStream (-js), or correct --nats.",
    };
    ok("server", error.to_string()).fail(advice)
}

/// Runs all checks on a broker that answers.
async fn examine(nats: &Nats, wait: Duration) -> Vec<Check> {
    let report = match nats.inspect().await {
        Ok(report) => report,
        Err(error) => {
            // The server does not answer a request that it refuses.
            if let Some(refusal) = nats.refusal().await {
                return vec![ok("permissions", refusal).fail(PERMISSIONS)];
            }
            let advice = "Enable JetStream in the server's configuration. If it is enabled, allow this user \
                to publish on $JS.API.> and to subscribe to its inbox.";
            return vec![ok("server", error.to_string()).fail(advice)];
        }
    };
    let mut checks = of_broker(&report);
    let is_set_up = report.streams.iter().all(|stream| stream.found.is_some());
    if is_set_up {
        checks.extend(of_queue(nats, wait).await);
    }
    checks
}

/// The checks of what the broker reports about itself.
fn of_broker(report: &BrokerReport) -> Vec<Check> {
    let BrokerReport {
        version,
        cluster,
        max_payload,
        storage,
        streams,
        clock,
    } = report;
    let cluster = cluster
        .as_ref()
        .map_or_else(|| "no cluster".to_owned(), |name| format!("cluster {name}"));
    let mut checks = vec![ok(
        "server",
        format!("nats-server {version} (at least {MIN_VERSION}), {cluster}"),
    )];
    let payload = ok("max_payload", format!("{max_payload} bytes"));
    checks.push(if *max_payload < STREAM_MESSAGE_MAX {
        let room = max_payload.saturating_sub(MESSAGE_HEADERS_MAX);
        payload.warn(format!(
            "Jobs and events may have only {room} bytes. Set max_payload to 1MB or more in the server's configuration."
        ))
    } else {
        payload
    });
    checks.push(of_storage(*storage));
    checks.extend(clock.map(of_clock));
    checks.extend(streams.iter().map(of_stream));
    checks.push(of_durability(streams));
    checks
}

fn of_storage(StorageReport { used, limit }: StorageReport) -> Check {
    let mib = |bytes: u64| bytes >> 20;
    let Some(limit) = limit else {
        return ok(
            "storage",
            format!("{} MiB used, without a limit", mib(used)),
        );
    };
    let check = ok(
        "storage",
        format!("{} of {} MiB used", mib(used), mib(limit)),
    );
    if used.saturating_mul(100) < limit.saturating_mul(DOCTOR_FULL_PERCENT) {
        return check;
    }
    check.warn("Raise the account's limit, or keep less: tailwater setup --max-bytes.")
}

fn of_clock(clock: ClockReport) -> Check {
    let ClockReport {
        difference,
        is_ahead,
        within,
    } = clock;
    let millis = difference.as_millis();
    let side = if is_ahead { "ahead of" } else { "behind" };
    let check = ok(
        "clock",
        format!(
            "the server is {millis} ms {side} this machine (measured within {} ms)",
            within.as_millis()
        ),
    );
    let advice = "Synchronise the clocks (NTP). Time limits and ages of jobs compare them.";
    let certain = difference.saturating_sub(within);
    if certain >= DOCTOR_CLOCK_FAIL {
        check.fail(advice)
    } else if certain >= DOCTOR_CLOCK_WARN {
        check.warn(advice)
    } else {
        check
    }
}

fn of_stream(StreamReport { name, found }: &StreamReport) -> Check {
    let Some(FoundStream {
        drift,
        replicas,
        behind,
        has_leader,
        bytes,
        bytes_max,
    }) = found
    else {
        return ok(format!("stream {name}"), "it does not exist").fail("Run tailwater setup.");
    };
    let size = bytes_max.map_or_else(
        || format!("{} MiB", bytes >> 20),
        |max| format!("{} of {} MiB", bytes >> 20, max >> 20),
    );
    let check = ok(
        format!("stream {name}"),
        format!("as declared, {replicas} replicas, {size}"),
    );
    if let Some(drift) = drift {
        let drift = drift.to_string();
        let (_, fields) = drift.split_once('\n').unwrap_or_default();
        return Check {
            found: "it differs from its declaration".to_owned(),
            ..check
        }
        .fail(format!("Change it back with the nats tool:\n{fields}"));
    }
    if !has_leader {
        return check.fail("No server leads it: a majority of its servers must be up.");
    }
    if !behind.is_empty() {
        let behind = behind.join(", ");
        return check.warn(format!(
            "These servers are offline or behind: {behind}. Another loss may stop the stream."
        ));
    }
    check
}

fn of_durability(streams: &[StreamReport]) -> Check {
    let replicas = streams.iter().filter_map(|stream| stream.found.as_ref());
    let fewest = replicas.map(|found| found.replicas).min().unwrap_or(1);
    let check = ok(
        "durability",
        format!(
            "each event on {fewest} servers; whether it is synced at once is not visible from here"
        ),
    );
    let advice = "A power cut may lose up to two minutes of events, unless the server's configuration has \
        `sync_interval: always` in its jetstream block";
    if fewest < 3 {
        return check.warn(format!(
            "{advice}; the loss of the disk loses all of them. Three servers (--replicas 3) survive both."
        ));
    }
    check
}

const PERMISSIONS: &str =
    "Allow this user to subscribe to and publish on what nats/README.md lists.";

/// The checks of the queue, and of what this user may do.
async fn of_queue(nats: &Nats, wait: Duration) -> Vec<Check> {
    let log = match Log::open(nats).await {
        Ok(log) => log,
        Err(error) => return vec![ok("setup", error.to_string()).fail("Run tailwater setup.")],
    };
    let tasks = Tasks::new(tokio_util::sync::CancellationToken::new());
    let permissions = match Reader::open(log.clone(), &tasks).await {
        Ok(_) if nats.is_answering().await => match nats.refusal().await {
            None => ok("permissions", "requests and subscriptions work"),
            Some(refusal) => ok("permissions", refusal).fail(PERMISSIONS),
        },
        Ok(_) => ok("permissions", "a subscription receives nothing").fail(PERMISSIONS),
        Err(error) => ok("permissions", error.to_string())
            .fail("Allow this user to subscribe to $JS.EVENT.ADVISORY.>."),
    };
    let mut checks = vec![permissions];
    match Queue::new(log).report().await {
        Ok(QueueReport { kinds, size }) => {
            let check = ok(
                "queue",
                format!("{} of {} MiB", size.bytes >> 20, size.bytes_max >> 20),
            );
            let is_half_full = size.bytes > size.bytes_max / 2;
            checks.push(if is_half_full {
                check.fail("Jobs with large inputs are refused (queue_full). Start more workers.")
            } else {
                check
            });
            checks.extend(kinds.iter().map(|kind| of_kind(kind, wait)));
        }
        Err(error) => checks.push(
            ok("queue", error.to_string())
                .fail("Allow this user to request $JS.API.CONSUMER.LIST.>."),
        ),
    }
    checks
}

fn of_kind(kind: &KindStatus, wait: Duration) -> Check {
    let KindUsage {
        kind: name,
        waiting,
        running,
        idle_workers,
    } = &kind.usage;
    let check = ok(
        format!("kind {name}"),
        format!("{waiting} jobs wait, {running} run"),
    );
    if waiting + running >= KIND_JOBS_MAX {
        return check.fail("Its queue is full: jobs are refused. Start more workers.");
    }
    if *idle_workers == 0 && *running == 0 {
        return if *waiting > 0 {
            check.fail(format!(
                "No worker runs them: start tailwater worker --kind {name}."
            ))
        } else {
            check.warn(format!(
                "It has no worker: a job would wait until tailwater worker --kind {name} runs."
            ))
        };
    }
    if let Some(oldest) = kind.oldest.filter(|oldest| *oldest > wait) {
        let age = humantime::format_duration(Duration::from_secs(oldest.as_secs()));
        return check.warn(format!(
            "The oldest has been waiting for {age}: start more workers, or raise their --concurrency."
        ));
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::Features;

    fn kind(waiting: u64, running: u64, idle_workers: u64, oldest: Option<u64>) -> KindStatus {
        KindStatus {
            usage: KindUsage {
                kind: "demo".parse().unwrap(),
                waiting,
                running,
                idle_workers,
            },
            oldest: oldest.map(Duration::from_secs),
            ack_wait: Duration::from_secs(8),
            features: Features::ALL,
        }
    }

    #[test]
    fn a_kind_is_judged_by_its_workers_and_its_oldest_job() {
        let state = |kind: &KindStatus| of_kind(kind, Duration::from_secs(60)).state;
        for (waiting, running, idle_workers, oldest, expected) in [
            (0, 0, 1, None, CheckState::Ok),
            (5, 16, 0, Some(10), CheckState::Ok),
            (5, 16, 0, Some(61), CheckState::Warn),
            (0, 0, 0, None, CheckState::Warn),
            (1, 0, 0, Some(1), CheckState::Fail),
            (KIND_JOBS_MAX, 0, 1, Some(1), CheckState::Fail),
        ] {
            let kind = kind(waiting, running, idle_workers, oldest);
            assert_eq!(state(&kind), expected, "{kind:?}");
        }
    }

    #[test]
    fn clocks_may_differ_by_as_much_as_the_measurement_is_inexact() {
        let clock = |difference, within| {
            let report = ClockReport {
                difference: Duration::from_millis(difference),
                is_ahead: true,
                within: Duration::from_millis(within),
            };
            of_clock(report).state
        };
        assert_eq!(clock(1500, 600), CheckState::Ok);
        assert_eq!(clock(1500, 10), CheckState::Warn);
        assert_eq!(clock(60_000, 10), CheckState::Fail);
    }

    #[test]
    fn little_space_and_few_replicas_are_warnings_that_say_what_to_do() {
        let storage = |used, limit| of_storage(StorageReport { used, limit });
        let durability = |replicas| {
            let found = FoundStream {
                drift: None,
                replicas,
                behind: Vec::new(),
                has_leader: true,
                bytes: 0,
                bytes_max: None,
            };
            of_durability(&[StreamReport {
                name: "TW_JOBS".to_owned(),
                found: Some(found),
            }])
        };
        for (check, expected, advice) in [
            (storage(500, None), CheckState::Ok, None),
            (
                storage(DOCTOR_FULL_PERCENT - 1, Some(100)),
                CheckState::Ok,
                None,
            ),
            (
                storage(DOCTOR_FULL_PERCENT, Some(100)),
                CheckState::Warn,
                Some("--max-bytes"),
            ),
            (durability(3), CheckState::Ok, None),
            (durability(1), CheckState::Warn, Some("sync_interval")),
        ] {
            assert_eq!(check.state, expected, "{check:?}");
            let said = check.advice.as_deref();
            let is_expected = match advice {
                Some(advice) => said.is_some_and(|said| said.contains(advice)),
                None => said.is_none(),
            };
            assert!(is_expected, "{check:?}");
        }
    }

    #[test]
    fn a_missing_or_changed_stream_fails() {
        let report = |found| StreamReport {
            name: "TW_JOBS".to_owned(),
            found,
        };
        assert_eq!(of_stream(&report(None)).state, CheckState::Fail);
        let found = |behind: &[&str], has_leader| FoundStream {
            drift: None,
            replicas: 3,
            behind: behind.iter().map(|&name| name.to_owned()).collect(),
            has_leader,
            bytes: 0,
            bytes_max: None,
        };
        assert_eq!(
            of_stream(&report(Some(found(&[], true)))).state,
            CheckState::Ok
        );
        assert_eq!(
            of_stream(&report(Some(found(&["n2"], true)))).state,
            CheckState::Warn
        );
        assert_eq!(
            of_stream(&report(Some(found(&[], false)))).state,
            CheckState::Fail
        );
    }
}
