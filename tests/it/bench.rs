use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::process_group::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::broker::{self, Broker};
use crate::support::http::get_json;
use crate::support::process::{Process, at_a_terminal, run_program, runs, tailwater};
use crate::support::system::{Edge, System};
use crate::support::up::up;
use crate::support::{eventually, python, root, until};

/// Runs `tailwater bench` with these arguments, and returns its report.
async fn bench(args: &str) -> Value {
    let server = broker::program().display().to_string();
    let ran = tailwater(&format!("bench --json --nats-server {server} {args}")).await;
    serde_json::from_str(&ran.prints()).unwrap()
}

/// Asserts that this many events were measured, and that none was lost or doubled.
fn assert_deliveries(report: &Value, deliveries: u64) {
    assert_eq!(report["deliveries"], deliveries, "{report}");
    assert_eq!(report["lost"], 0, "{report}");
    assert_eq!(report["doubled"], 0, "{report}");
    assert_eq!(report["failed"], 0, "{report}");
}

/// Asserts that the report has the costs of these processes, and what a connection added to their
/// memory.
fn assert_costs(report: &Value, processes: &[&str]) {
    for process in processes {
        let figure = |name: &str| {
            let figure = report["cost"][format!("{process}_{name}")].as_f64();
            figure.unwrap_or_else(|| panic!("no {name} of the {process}: {report}"))
        };
        assert!(figure("cpu_s") >= 0.0, "{process}: {report}");
        assert!(figure("end_mib") > 1.0, "{process}: {report}");
        let added = (figure("connected_mib") - figure("idle_mib")) * 1024.0;
        let each = added / report["connections"].as_f64().unwrap();
        let reported = figure("per_connection_kib");
        assert!((reported - each).abs() < 0.001, "{process}: {report}");
    }
}

#[tokio::test]
async fn a_bench_counts_every_delivery_on_every_transport() {
    for transport in ["ws", "ws-msgpack", "sse", "socketio"] {
        let plan = "--jobs 3 --watchers 2 --rate 20 --seconds 1 --transport";
        let report = bench(&format!("{plan} {transport}")).await;
        assert_deliveries(&report, 3 * 2 * 20);
        for figure in ["p50", "p99", "p999", "max"] {
            assert!(
                report["delay_ms"][figure].as_f64().unwrap() > 0.0,
                "{report}"
            );
            assert!(
                report["append_ms"][figure].as_f64().unwrap() > 0.0,
                "{report}"
            );
        }
        assert!(
            report["cost"]["edge_connected_mib"].as_f64().unwrap() > 1.0,
            "{report}"
        );
    }
}

#[tokio::test]
async fn a_bench_counts_what_clients_of_a_storm_missed() {
    for restart in ["", " --cold"] {
        let plan = "--jobs 4 --watchers 3 --storm 50";
        assert_deliveries(&bench(&format!("{plan}{restart}")).await, 4 * 3 * 50);
    }
}

#[tokio::test]
async fn a_bench_measures_appends_before_and_while_clients_of_a_storm_return() {
    let report = bench("--jobs 4 --watchers 3 --storm 50 --cold --appends 100").await;
    assert_deliveries(&report, 4 * 3 * 50);
    for measured in ["append_before_ms", "append_ms"] {
        let p99 = report[measured]["p99"].as_f64().unwrap();
        assert!(p99 > 0.0, "{measured}: {report}");
    }
}

#[tokio::test]
async fn a_bench_measures_late_clients_idle_ones_and_a_real_worker() {
    let report = bench("--jobs 10 --late 4000 --watchers 2 --rate 5 --seconds 2").await;
    assert!(
        report["deliveries"].as_u64().unwrap() >= 2 * 2002,
        "{report}"
    );
    let found = (&report["lost"], &report["failed"]);
    assert_eq!(found, (&0.into(), &0.into()), "{report}");
    let report = bench("--jobs 4 --idle --seconds 1").await;
    assert_deliveries(&report, 0);
    assert_eq!(report["connections"], 4, "{report}");
    let report = bench("--jobs 3 --watchers 2 --worker --rate 20 --seconds 1").await;
    assert!(
        report["deliveries"].as_u64().unwrap() > 3 * 2 * 3,
        "{report}"
    );
    assert_costs(&report, &["edge", "broker", "worker"]);
}

#[tokio::test]
async fn a_bench_measures_the_processes_that_up_names() {
    let up = up(TempDir::new().unwrap(), &[]).await;
    assert_eq!(up.edge_pid, up.process.program().to_string());
    let broker = std::fs::read_to_string(format!("/proc/{}/comm", up.broker_pid)).unwrap();
    assert_eq!(broker.trim(), "nats-server");
    let plan = "--jobs 3 --watchers 2 --rate 20 --seconds 1";
    let report = bench(&format!(
        "{plan} --nats {} --edge http://{} --edge-pid {} --broker-pid {}",
        up.nats, up.addr, up.edge_pid, up.broker_pid
    ))
    .await;
    assert_deliveries(&report, 3 * 2 * 20);
    assert_costs(&report, &["edge", "broker"]);
}

#[tokio::test]
async fn a_bench_drives_running_workers_through_a_running_edge() {
    let system = System::on(Broker::shared_one()).await;
    let (edge, addr) = system.edge_process(&[]).await;
    let (first, _) = system.measured_worker(&[], &["demo"]).await;
    let (second, _) = system.measured_worker(&[], &["demo"]).await;
    let edge_api = Edge::at(&addr);
    until("a worker of the kind demo", async || {
        get_json(&edge_api, "/api/kinds").await["kinds"][0]["kind"] == "demo"
    })
    .await;
    let bench = format!("bench --json --jobs 4 --watchers 3 --seconds 1 --worker --edge {addr}");
    let pids = format!(
        "--edge-pid {} --worker-pid {} --worker-pid {}",
        edge.program(),
        first.program(),
        second.program()
    );
    let ran = system
        .run(&format!("{bench} --rate 20 --kind demo {pids}"))
        .await;
    let report: Value = serde_json::from_str(&ran.prints()).unwrap();
    let deliveries = report["deliveries"].as_u64().unwrap();
    assert!(deliveries > 4 * 3 * 3, "{report}");
    assert_deliveries(&report, deliveries);
    assert_costs(&report, &["edge", "worker"]);
    let both_end = report["cost"]["worker_end_mib"].as_f64().unwrap();
    let one = first.memory() as f64 / 1024.0;
    assert!(both_end > one * 1.5, "{one} MiB of one worker: {report}");
    // It does not wait for events of jobs that the edge refused.
    let refused = system.run(&format!("{bench} --kind nothing")).await;
    refused.fails(2, "unknown_kind");
    system.end().await;
}

#[tokio::test]
async fn a_bench_shows_its_progress_at_a_terminal() {
    let server = broker::program().display().to_string();
    let plan = "--jobs 3 --watchers 2 --rate 20 --seconds 1";
    let shown = at_a_terminal(&format!("bench --nats-server {server} {plan}")).await;
    assert!(shown.contains(" of 120 deliveries, "), "{shown}");
    assert!(shown.contains("deliveries/s "), "{shown}");
    // How many events a worker makes of its words is not known before.
    let shown = at_a_terminal(&format!("bench --nats-server {server} {plan} --worker")).await;
    assert!(shown.contains(" deliveries, "), "{shown}");
    assert!(!shown.contains(" of 0 deliveries"), "{shown}");
}

#[tokio::test]
async fn a_bench_writes_a_page_that_needs_nothing_else() {
    let dir = TempDir::new().unwrap();
    let page = dir.path().join("bench.html");
    bench(&format!(
        "--jobs 2 --rate 20 --seconds 1 --html {}",
        page.display()
    ))
    .await;
    let page = std::fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(!page.contains("http"), "it loads nothing: {page}");
    for process in ["edge", "broker"] {
        let row = format!("{process} memory per connection<td>");
        assert!(page.contains(&row), "{row} in {page}");
    }
}

#[tokio::test]
async fn a_bench_that_is_interrupted_leaves_nothing_running() {
    let server = broker::program().display().to_string();
    let args = ["bench", "--seconds", "60", "--nats-server", &server];
    let program = Path::new(env!("CARGO_BIN_EXE_tailwater"));
    let mut bench = Process::start_program(program, args, &[], Stdio::null());
    let children = eventually("a NATS server and an edge of the benchmark", async || {
        Some(descendants(bench.guard())).filter(|children| children.len() >= 5)
    })
    .await;
    bench.signal(Signal::INT);
    bench.ends_within(Duration::from_secs(20)).await;
    until("the end of all that the benchmark started", async || {
        children.iter().all(|child| !runs(*child))
    })
    .await;
}

/// Whether this process was started with this argument.
fn has_argument(process: u32, argument: &str) -> bool {
    let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .any(|given| given == argument.as_bytes())
}

/// Its children, and theirs: guards and what they guard.
fn descendants(process: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    let children = children.unwrap_or_default();
    let children = children
        .split_whitespace()
        .map(|child| child.parse().unwrap());
    children
        .flat_map(|child| [vec![child], descendants(child)].concat())
        .collect()
}

#[tokio::test]
async fn a_plan_that_cannot_be_run_is_refused_before_anything_starts() {
    for (args, code, reason) in [
        ("--jobs 0", 2, "--jobs"),
        ("--jobs 300 --watchers 300", 2, "--watchers"),
        ("--rate 0", 2, "--rate"),
        ("--rate 0.1 --seconds 1", 2, "--seconds"),
        ("--jobs 1 --late 5", 2, "--jobs"),
        ("--storm 1000000000", 2, "events"),
        ("--storm 5 --appends 0", 2, "--appends"),
        ("--kind demo --worker", 64, "--edge"),
        ("--worker-pid 1 --edge 127.0.0.1:1", 64, "--worker"),
    ] {
        let ran = tailwater(&format!("bench {args}")).await;
        ran.fails(code, reason);
    }
}

/// Starts `scripts/bench.sh` with this program.
fn compare(args: &[&str]) -> Process {
    let program = env!("CARGO_BIN_EXE_tailwater");
    let script = root().join("scripts/bench.sh");
    let server = broker::program().display().to_string();
    let variables = [
        ("TAILWATER_PROGRAM", program),
        ("NATS_SERVER", server.as_str()),
    ];
    Process::start_program(&script, args, &variables, Stdio::inherit())
}

#[tokio::test]
async fn a_comparison_shows_ratios_to_the_floor_and_names_what_is_missing() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("bench.json").display().to_string();
    let mut comparison = compare(&[
        "--quick",
        "--seconds",
        "1",
        "--servers",
        "floor,tailwater,socketio",
        "--missing",
        "redis=not for this test",
        "--json",
        file.as_str(),
        "one-to-one",
    ]);
    comparison
        .says("not measured: Socket.IO + Redis: not for this test")
        .await;
    let ended = comparison.ends_within(Duration::from_secs(60)).await;
    assert!(ended.success());
    let report: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for run in report["runs"].as_array().unwrap() {
        assert_deliveries(run, 167 * 30);
    }
    let title = &report["rows"][0][0];
    let row = &report["rows"][0][1];
    assert_eq!(title, "167 jobs × 1 client, 30/s: µs of CPU per delivery");
    let ratio = row["tailwater"].as_str().unwrap().split_once('(').unwrap();
    assert!(
        ratio.1.trim_end_matches(')').parse::<f64>().unwrap() > 0.5,
        "{row}"
    );
    assert!(
        row["floor"].as_str().unwrap().parse::<f64>().unwrap() > 0.0,
        "{row}"
    );
}

/// Looks for the most that a server holds, in full and with `--quick`; reports take the place of runs.
const SEARCH: &str = r#"
import json, sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from cells import CELLS

def run(load):
    rate = float(load[load.index("--rate") + 1])
    plan = {"jobs": 1000, "watchers": 1, "rate": rate}
    delays = {"p99": 90 if rate < 45 else 110}
    # Less than the rate: a run also lasts until its last event has arrived.
    return {"plan": plan, "delay_ms": delays, "per_second": 1, "lost": 0, "doubled": 0, "failed": 0}

search = CELLS["most-one-to-one"].measured
print(json.dumps([search(SimpleNamespace(quick=quick, seconds=None), run) for quick in (False, True)]))
"#;

/// Runs a script that uses `scripts/bench`, and returns the JSON that it prints.
async fn with_comparison(script: &str) -> Value {
    let mut command = Command::new(python("python"));
    command
        .args(["-c", script])
        .arg(root().join("scripts/bench"));
    let printed = run_program(&mut command).await.prints();
    serde_json::from_str(&printed).unwrap()
}

#[tokio::test]
async fn the_most_that_a_server_holds_is_the_last_load_without_late_events() {
    let found = with_comparison(SEARCH).await;
    assert_eq!(found, json!([[40_000.0], [30_000.0]]));
}

/// What a comparison shows of three runs, and of one.
const MIDDLES: &str = r#"
import json, sys
sys.path.insert(0, sys.argv[1])
from run import middle
runs = [3, 1, 2], [1, 3, "failed"], ["failed", 3, "failed"], ["lost events"]
print(json.dumps([middle(values) for values in runs]))
"#;

#[tokio::test]
async fn a_median_needs_a_number_of_most_runs() {
    let found = with_comparison(MIDDLES).await;
    assert_eq!(found, json!([2, 2.0, "failed", "lost events"]));
}

/// How long each load lasts with `--seconds 1`; each run fails.
const SECONDS: &str = r#"
import json, sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from cells import CELLS

loads = {}
for name, cell in CELLS.items():
    cell.measured(SimpleNamespace(quick=False, seconds=1), lambda load: loads.update({name: load}))
print(json.dumps({
    name: int(load[load.index("--seconds") + 1]) for name, load in loads.items() if "--seconds" in load
}))
"#;

#[tokio::test]
async fn another_duration_applies_to_live_cells_alone() {
    let seconds = with_comparison(SECONDS).await;
    for live in ["fan-out", "one-to-one", "many-jobs", "busy-jobs"] {
        assert_eq!(seconds[live], 1, "{live}");
    }
    for (other, unchanged) in [("memory", 10), ("growth-jobs", 20), ("worker", 20)] {
        assert_eq!(seconds[other], unchanged, "{other}");
    }
}

#[tokio::test]
async fn a_comparison_that_is_interrupted_writes_its_report_and_leaves_nothing_running() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("bench.json").display().to_string();
    let mut comparison = compare(&[
        "--servers",
        "floor",
        "--seconds",
        "60",
        "--json",
        file.as_str(),
        "one-to-one",
    ]);
    let children = eventually("a run of the benchmark on the floor", async || {
        let children = descendants(comparison.guard());
        let measures = children
            .iter()
            .any(|child| has_argument(*child, "--edge-pid"));
        measures.then_some(children)
    })
    .await;
    comparison.signal(Signal::INT);
    let ended = comparison.ends_within(Duration::from_secs(20)).await;
    assert_eq!(ended.code(), Some(1));
    let report: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(report["runs"], json!([]));
    until("the end of all that the comparison started", async || {
        children.iter().all(|child| !runs(*child))
    })
    .await;
}
