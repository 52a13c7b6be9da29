"""What is compared: servers, and cells. A cell is one load, with the figures that are reported of it."""

from dataclasses import dataclass
from typing import Callable, NamedTuple

import servers


class Compared(NamedTuple):
    title: str
    # Starts it; None for Tailwater, which its own benchmark starts.
    start: Callable | None
    # What must have been installed.
    needs: str = ""
    # How clients reach it if it is Tailwater.
    transport: str = ""
    # Whether it keeps events for clients that come back.
    keeps: bool = True


FLOOR = "floor"
SERVERS = {
    FLOOR: Compared("floor", servers.floor, "cc"),
    "tailwater": Compared("**Tailwater**", None, transport="ws"),
    "tailwater-sse": Compared("**Tailwater, SSE**", None, transport="sse"),
    "durable-streams": Compared("Durable Streams", lambda at: servers.durable_streams(at, "wal"), "durable-streams"),
    "durable-streams-memory": Compared(
        "same, not durable", lambda at: servers.durable_streams(at, "memory"), "durable-streams"
    ),
    "socketio": Compared("Socket.IO + Redis", lambda at: servers.socketio(at, "pubsub"), "redis", keeps=False),
    "socketio-streams": Compared("Socket.IO + Redis Streams", lambda at: servers.socketio(at, "streams"), "redis"),
    "resumable-stream": Compared("resumable-stream + Redis", servers.resumable_stream, "redis"),
}
TAILWATER = ("tailwater", "tailwater-sse")
# For loads that say little more about the others.
MAIN = (FLOOR, "tailwater", "durable-streams", "socketio")
# A load is held if every event arrives, and 99 of 100 within this time.
HELD_MS = 100
# An edge has a thread for each core by default. The most that it holds is measured so.
BOTH_CORES = ("--threads", "2")
# What the title of such a cell says: the floor has one thread, and the other servers have as many as by default.
ON_BOTH_CORES = "Tailwater with two threads"
# What is shown of a run that has no report.
FAILED = "failed"


@dataclass
class Figure:
    title: str
    of: Callable
    digits: int = 1
    ratio: bool = True
    # What is shown of a run without this number.
    otherwise: str = FAILED
    # The title with `--quick`, if its load makes another one.
    quick_title: str = ""

    def value(self, report):
        """The number, or the text that is shown instead of one."""
        if report is None:
            return FAILED
        number = self.of(report)
        return self.otherwise if number is None else number


@dataclass
class Cell:
    name: str
    # The load as arguments of `tailwater bench`, in full and with `--quick`.
    load: str
    quick: str
    figures: list
    # Flags for Tailwater alone.
    tailwater: tuple = ()
    only: tuple = ()
    needs_history: bool = False
    # Measured once even without `--quick`: it takes long.
    once: bool = False
    # Rates to try, lowest first, until one is not held.
    rates: tuple = ()
    # Loads to measure one after another, each with the figure of its place.
    steps: tuple = ()
    # Measured only if it is named: it answers a question of its own.
    only_named: bool = False
    # Whether `--seconds` applies. The other loads need the events that they name, or enough of them.
    is_live: bool = False

    def covers(self, name):
        return (not self.only or name in self.only) and (SERVERS[name].keeps or not self.needs_history)

    def measured(self, options, run):
        """The value of each figure. `run` makes a report of a load, or None if that failed."""
        load = (self.quick if options.quick else self.load).split()
        if options.seconds and self.is_live:
            load[load.index("--seconds") + 1] = str(options.seconds)
        if self.steps:
            reports = [run([*load, *step.split()]) for step in self.steps]
            return [figure.value(report) for figure, report in zip(self.figures, reports)]
        if not self.rates:
            report = run(load)
            return [figure.value(report) for figure in self.figures]
        best = None
        for rate in self.rates[::3] if options.quick else self.rates:
            report = run([*load, "--rate", str(rate)])
            values = [figure.value(report) for figure in self.figures]
            if report is None or not is_held(report):
                return best or values
            best = values
        return best


def is_held(report):
    return not (report["lost"] or report["doubled"] or report["failed"]) and report["delay_ms"]["p99"] <= HELD_MS


def is_complete(report):
    return not (report["lost"] or report["doubled"] or report["failed"])


def cpu(report, *more):
    return cpu_of(report, "edge_cpu_s", *more)


def cpu_of(report, *processes):
    used = sum(report["cost"][name] or 0 for name in processes)
    return used * 1e6 / max(report["deliveries"], 1)


def offered(report):
    """How many deliveries a second the load asks for. A load that is held has no others."""
    plan = report["plan"]
    return plan["jobs"] * plan["watchers"] * plan["rate"]


def per_connection(report):
    return report["cost"]["edge_per_connection_kib"]


def if_held(of):
    return lambda report: of(report) if is_held(report) else None


def if_complete(of):
    return lambda report: of(report) if is_complete(report) else None


def delay(figure):
    return lambda report: report["delay_ms"][figure] if is_complete(report) else None


def live(name, text, load, delays=True, **more):
    figures = [
        Figure(f"{text}: µs of CPU per delivery", if_complete(cpu), otherwise="lost events"),
        Figure("with its broker", if_complete(lambda report: cpu(report, "broker_cpu_s")), otherwise=""),
    ]
    if delays:
        figures += [
            Figure(f"delay {figure}, ms", delay(key), 2, ratio=False, otherwise="")
            for figure, key in (("p50", "p50"), ("p99", "p99"), ("p99.9", "p999"))
        ]
    return Cell(name, f"{load} --seconds 5", f"{load} --seconds 2", figures, is_live=True, **more)


def most(name, text, load, rates):
    title = f"{text}, {ON_BOTH_CORES}: most held, events/s"
    figure = Figure(title, if_held(offered), 0, ratio=False, otherwise="none")
    more = {"rates": rates, "once": True, "only": MAIN, "tailwater": BOTH_CORES}
    return Cell(name, f"{load} --seconds 3", f"{load} --seconds 2", [figure], **more)


def idle(name, text, jobs, watchers, **more):
    figure = Figure(f"{text}: KiB per connection", if_complete(per_connection), ratio=False)
    load = "--jobs {} --watchers {} --idle --seconds 1"
    return Cell(name, load.format(jobs, watchers), load.format(jobs // 9, watchers), [figure], **more)


def storm(name, text, load, appends=(), **more):
    load += " --storm 200"
    figures = [
        Figure(f"{text}: s", if_complete(lambda report: report["delay_ms"]["max"] / 1000), 2, otherwise="lost events"),
        Figure("its CPU, s", if_complete(lambda report: report["cost"]["edge_cpu_s"]), 2, otherwise=""),
        *appends,
    ]
    return Cell(name, load, load, figures, needs_history=True, **more)


def append_p99(title, of):
    return Figure(title, if_complete(lambda report: report[of]["p99"]), 2, ratio=False, otherwise="")


def growth(name, *steps):
    """The same number of deliveries a second, of ever more jobs or clients: titles and loads."""
    figures = [Figure(f"{title}: µs of CPU per delivery", if_complete(cpu), otherwise="lost events") for title, _ in steps]
    loads = tuple(load for _, load in steps)
    only = (FLOOR, *TAILWATER)
    return Cell(name, "--seconds 20", "--seconds 10", figures, only=only, once=True, steps=loads, only_named=True)


CELLS = {
    cell.name: cell
    for cell in (
        live("fan-out", "1 job × 1000 clients, 30/s", "--jobs 1 --watchers 1000 --rate 30"),
        live("one-to-one", "167 jobs × 1 client, 30/s", "--jobs 167 --watchers 1 --rate 30"),
        live("many-jobs", "1000 jobs × 1 client, 10/s", "--jobs 1000 --watchers 1 --rate 10"),
        live(
            "busy-jobs",
            f"1000 jobs × 1 client, 30/s, {ON_BOTH_CORES}",
            "--jobs 1000 --watchers 1 --rate 30",
            tailwater=BOTH_CORES,
            only=(*MAIN, "durable-streams-memory"),
        ),
        most("most-fan-out", "1 job × 1000 clients", "--jobs 1 --watchers 1000", (40, 80, 120, 160, 320, 480, 640, 800, 1000)),
        most("most-one-to-one", "1000 jobs × 1 client", "--jobs 1000 --watchers 1", (2.5, 5, 7.5, 10, 15, 20, 30, 40, 50)),
        idle("idle-shared", "idle clients, 100 of each job", 90, 100),
        idle("idle-own", "idle clients, a job each", 9000, 1, only=(*MAIN, "tailwater-sse")),
        storm("resume-one", "1000 clients of 1 job get 200 missed events", "--jobs 1 --watchers 1000"),
        storm("resume-many", "1000 clients of 1000 jobs", "--jobs 1000 --watchers 1"),
        storm(
            "resume-cold",
            "same, edge restarted",
            "--jobs 1000 --watchers 1 --cold --appends 200",
            appends=(
                append_p99("append before, p99 in ms", "append_before_ms"),
                append_p99("append meanwhile, p99 in ms", "append_ms"),
            ),
            only=TAILWATER,
        ),
        Cell(
            "late",
            "--jobs 1000 --watchers 9 --late 1000000 --rate 1 --seconds 6",
            "--jobs 1000 --watchers 5 --late 100000 --rate 1 --seconds 4",
            [
                Figure(
                    "late client reads 2000 events among 1,000,000 others: ms",
                    delay("p50"),
                    quick_title="late client reads 2000 events among 100,000 others: ms",
                ),
                Figure("slowest append before, ms", lambda report: report["append_before_ms"]["max"]),
                Figure("slowest append meanwhile, ms", lambda report: report["append_ms"]["max"]),
            ],
            only=("tailwater",),
            once=True,
        ),
        Cell(
            "memory",
            # With this text, an event has 160 bytes.
            "--jobs 1000 --watchers 1 --rate 22 --seconds 10 --text 66",
            "--jobs 1000 --watchers 1 --rate 44 --seconds 5 --text 66",
            [
                Figure(
                    "1000 jobs × 220 events of 160 B in memory, MiB",
                    if_complete(lambda report: report["cost"]["edge_end_mib"] - report["cost"]["edge_connected_mib"]),
                )
            ],
            once=True,
            only=MAIN,
        ),
        growth(
            "growth-jobs",
            ("10 jobs × 1 client, 200/s", "--jobs 10 --watchers 1 --rate 200"),
            ("100 jobs × 1 client, 20/s", "--jobs 100 --watchers 1 --rate 20"),
            ("1000 jobs × 1 client, 2/s", "--jobs 1000 --watchers 1 --rate 2"),
            ("10,000 jobs × 1 client, 0.2/s", "--jobs 10000 --watchers 1 --rate 0.2"),
        ),
        growth(
            "growth-watchers",
            ("1000 jobs × 1 client, 10/s", "--jobs 1000 --watchers 1 --rate 10"),
            ("100 jobs × 10 clients, 10/s", "--jobs 100 --watchers 10 --rate 10"),
            ("10 jobs × 100 clients, 10/s", "--jobs 10 --watchers 100 --rate 10"),
            ("1 job × 1000 clients, 10/s", "--jobs 1 --watchers 1000 --rate 10"),
            ("1 job × 10,000 clients, 1/s", "--jobs 1 --watchers 10000 --rate 1"),
        ),
        # What a second thread adds.
        Cell(
            "threads",
            "--jobs 1000 --watchers 1 --rate 30 --seconds 5",
            "--jobs 1000 --watchers 1 --rate 30 --seconds 2",
            [
                Figure("1000 jobs × 1 client, 30/s, one thread: delay p99, ms", delay("p99"), ratio=False, otherwise="lost events"),
                Figure("two threads: delay p99, ms", delay("p99"), ratio=False, otherwise="lost events"),
            ],
            only=("tailwater",),
            once=True,
            steps=("--threads 1", "--threads 2"),
            only_named=True,
        ),
        Cell(
            "worker",
            # A worker gathers text for a tenth of a second, so each job has ten events a second.
            "--jobs 1000 --watchers 1 --worker --rate 20 --seconds 20",
            "--jobs 1000 --watchers 1 --worker --rate 20 --seconds 10",
            [
                Figure("1000 jobs of a worker: µs of its CPU per event", if_complete(lambda report: cpu_of(report, "worker_cpu_s"))),
                Figure("its events/s", lambda report: report["per_second"], 0),
            ],
            only=("tailwater",),
            only_named=True,
        ),
    )
}
