"""Measures Tailwater and the servers that it is compared with in one run. scripts/bench.sh says how to call it."""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import servers
from cells import CELLS, FLOOR, SERVERS
from servers import Server

# A run that takes longer is ended and has no result.
RUN_LIMIT = 150
# How long `tailwater bench` may take to end its processes. scripts/bench.sh kills a comparison 20 s after it has asked
# it to end, and until then it also writes what it has measured.
END_WAIT = 10
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Bench:
    """Runs `tailwater bench`, and collects its reports."""

    def __init__(self, options):
        self.options, self.reports, self.failures = options, [], []

    def measure(self, cell, name, load):
        """The report of one run; None, with the reason in `failures`, if there is none."""
        start, transport = SERVERS[name].start, SERVERS[name].transport
        server = Server(self.options)
        try:
            if start:
                where = start(server)
            else:
                where = ["--nats-server", self.options.nats_server, "--transport", transport, *cell.tailwater]
            report = self.run(server, [*load, *where])
        except (OSError, RuntimeError, ValueError) as error:
            self.failures.append(f"{cell.name}, {name}: {error}")
            return None
        finally:
            have_ended = server.stop()
        if not have_ended:
            self.failures.append(f"{cell.name}, {name}: its processes did not end")
            return None
        self.reports.append({"cell": cell.name, "server": name, **report})
        return report

    def run(self, server, arguments):
        command = [self.options.tailwater, "bench", "--json", *map(str, arguments)]
        child, _ = server.spawn(*command, stdout=subprocess.PIPE)
        try:
            out, _ = child.communicate(timeout=RUN_LIMIT)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done within {RUN_LIMIT} s") from None
        finally:
            if child.poll() is None:
                # It ends its processes and removes its files.
                os.killpg(child.pid, signal.SIGINT)
                # If it does not, stopping the server kills it.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(END_WAIT)
        if not out:
            raise RuntimeError(server.last_words())
        return json.loads(out)

    def fill(self, cell):
        """What each server shows in this cell: for each repetition, the values of the figures."""
        names = [name for name in self.options.servers if cell.covers(name)]
        results = {name: [] for name in names}
        for _ in range(1 if self.options.quick or cell.once else 3):
            for name in names:
                say(f"{cell.name}: {SERVERS[name].title}")
                values = cell.measured(self.options, lambda load, name=name: self.measure(cell, name, load))
                results[name].append(values)
        return results


def say(text):
    """Shows what is being measured: on a terminal, one line that changes."""
    start, end = ("\r\033[K", "") if sys.stderr.isatty() else ("", "\n" if text else "")
    print(f"{start}{text}", end=end, file=sys.stderr, flush=True)


def rows(cell, results, is_quick):
    """The lines of the table: for each figure of the cell, the medians with their ratios to the floor."""
    for index, figure in enumerate(cell.figures):
        middles = {name: middle([values[index] for values in runs]) for name, runs in results.items()}
        floor = middles.get(FLOOR)
        title = figure.quick_title if is_quick and figure.quick_title else figure.title
        yield title, {
            name: shown(figure, value, None if name == FLOOR else floor) for name, value in middles.items()
        }


def middle(values):
    """The median of a figure's values in all runs; if at least half of them have no number, the most frequent text."""
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) * 2 > len(values):
        return statistics.median(numbers)
    return statistics.mode(value for value in values if isinstance(value, str))


def shown(figure, value, floor):
    if isinstance(value, str):
        return value
    number = f"{value:.{figure.digits}f}" if value < 1000 else f"{value:,.0f}"
    has_ratio = figure.ratio and floor and not isinstance(floor, str)
    return f"{number} ({value / floor:.2f})" if has_ratio else number


def table(names, lines):
    head = ["", *(SERVERS[name].title for name in names)]
    body = [[title, *(cells.get(name, "–") for name in names)] for title, cells in lines]
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    for row in [head, ["-" * width for width in widths], *body]:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(row, widths)) + " |")


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return f"{os.cpu_count()} cores of {cpu}, Linux {platform.release().split('-')[0]}"


def versions(options):
    """The versions of what is measured."""
    def of(*command):
        try:
            out = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.TimeoutExpired):
            return None
        return (re.search(r"\d+\.\d+\.\d+", out) or ["?"])[0]

    covered = [name for name in options.servers if any(CELLS[cell].covers(name) for cell in options.cells)]
    needs = {SERVERS[name].needs for name in covered}
    found = {"tailwater": of(options.tailwater, "--version"), "nats-server": of(options.nats_server, "--version")}
    if "durable-streams" in needs:
        found["durable-streams"] = options.durable_streams_version
    if "redis" in needs:
        found["redis-server"] = of(options.redis, "--version")
        found["node"] = of("node", "--version")
        lock = json.loads((Path(__file__).parent / "peers" / "package-lock.json").read_text())["packages"]
        packages = lock[""]["dependencies"]
        found |= {name: lock[f"node_modules/{name}"]["version"] for name in packages}
    return {name: version for name, version in found.items() if version}


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("cells", nargs="*", metavar="CELL")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--json", default="target/bench.json")
    # Prints what the servers need, and ends.
    parser.add_argument("--needs", action="store_true")
    # NAME=REASON: what they need, but is not there.
    parser.add_argument("--missing", action="append", default=[])
    for program in ("tailwater", "nats-server", "floor", "redis", "peers", "durable-streams", "durable-streams-version"):
        parser.add_argument(f"--{program}", default="")
    options = parser.parse_args()
    options.cells = options.cells or [name for name, cell in CELLS.items() if not cell.only_named]
    options.servers = options.servers.split(",")
    for given, known in ((options.cells, CELLS), (options.servers, SERVERS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{unknown[0]} is not one of {', '.join(known)}")
    return options


def interrupt(*_):
    """Ends the comparison. A terminal and `timeout` may both send the signal: the second must not end what follows."""
    ignore_signals()
    raise KeyboardInterrupt


def ignore_signals():
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def repetitions(options):
    once = [name for name in options.cells if CELLS[name].once]
    if options.quick or len(once) == len(options.cells):
        return "one run each"
    return "medians of three runs" + (f"; one run of {', '.join(once)}" if once else "")


def write_and_show(bench, asked, missing, lines, found):
    """Writes what was measured to the file of `--json`, and prints its table. `found` says on what and of what."""
    options = bench.options
    Path(options.json).parent.mkdir(parents=True, exist_ok=True)
    everything = found | {"rows": lines, "failures": bench.failures, "missing": missing, "runs": bench.reports}
    Path(options.json).write_text(json.dumps(everything, indent=1))
    table(options.servers, lines)
    for name in asked:
        if name not in options.servers:
            print(f"not measured: {SERVERS[name].title}: {missing[SERVERS[name].needs]}")
    for failure in bench.failures:
        print(f"failed: {failure}")
    print(f"\n{found['machine']}; {', '.join(f'{name} {version}' for name, version in found['versions'].items())}")
    print(f"{repetitions(options)}, in {found['seconds']} s")


def main():
    options = parsed()
    missing = dict(entry.split("=", 1) for entry in options.missing)
    if options.needs:
        print(*{SERVERS[name].needs for name in options.servers} - missing.keys())
        return
    # Set also because a shell that starts this in the background has switched SIGINT off.
    for number in ENDING_SIGNALS:
        signal.signal(number, interrupt)
    asked = options.servers
    options.servers = [name for name in asked if SERVERS[name].needs not in missing]
    # Before the runs: nothing that may hang stands between their end and what is written.
    found = {"machine": machine(), "versions": versions(options)}
    bench = Bench(options)
    begin = time.monotonic()
    lines = []
    is_interrupted = False
    try:
        for name in options.cells:
            lines += rows(CELLS[name], bench.fill(CELLS[name]), options.quick)
    except KeyboardInterrupt:
        is_interrupted = True
    finally:
        # What was measured so far is kept, whatever ended the comparison.
        ignore_signals()
        say("")
        found["seconds"] = round(time.monotonic() - begin)
        write_and_show(bench, asked, missing, lines, found)
    if is_interrupted:
        sys.exit("interrupted")
    sys.exit(1 if bench.failures else 0)


if __name__ == "__main__":
    main()
