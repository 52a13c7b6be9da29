"""Runs the attacks one after the other, each on its own edge, and checks what they cost."""

import argparse
import asyncio
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter

import http2  # noqa: F401 - it registers its attacks
import protocol  # noqa: F401 - it registers its attacks
from attacks import ATTACKS
from rig import MEMORY, Rig

# During an attack, an edge may use `MEMORY` and `Attack.kib_each` for each connection more than when it is idle. This is how
# many MiB more it may still use after it: what the allocator keeps.
LEFT_MAX = 24
# How many times later than before an event may reach the honest clients during an attack, for 99 of 100 events.
DELAY_TIMES = 2
# A delay of fewer milliseconds counts as this many: the attackers, the clients and the edge share the processor, and Linux lets
# each of them run for several milliseconds at a time.
DELAY_MIN = 50
# The same for a short run, whose program is not optimized: 1500 upgrades take it most of a second.
DELAY_MIN_SHORT = 500
# How many seconds after an attack the memory must be free again.
RECOVERY_WAIT = 30
# How many seconds an attack may take.
ATTACK_MAX = 240
# How many words per second the jobs of the honest clients write, and for how many seconds: for longer than an attack and what is
# measured before it. The end of a job ends its event streams, as if they were lost.
RATE = 20
WATCHED_FOR = ATTACK_MAX + 60


def arguments():
    parser = argparse.ArgumentParser(prog="hostile.sh", description=__doc__)
    parser.add_argument("--program")
    parser.add_argument("--nats-server")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("names", nargs="*", choices=[[], *(attack.name for attack in ATTACKS)])
    return parser.parse_args()


async def prepare(rig, attacks):
    """Starts the workers, and the jobs that the attacks read."""
    rig.start_broker()
    rig.start_edge()
    rig.start_worker("demo", "demo", concurrency=128)
    rig.start_worker("big", "exec", "--", "sh", "-c", f"head -c {rig.big_bytes} /dev/zero | tr '\\0' x")
    # A state has at most 8 MiB of output.
    rig.start_worker("whole", "exec", "--", "sh", "-c", "head -c 8000000 /dev/zero | tr '\\0' x")
    rig.start_worker("finished", "exec", "--", "sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x", concurrency=8)
    rig.start_worker("flood", "exec", "--", "sh", "-c", "head -c 400000000 /dev/zero | tr '\\0' x")
    # A kind whose jobs stay queued: its worker declares it and is then stopped.
    parked = rig.start_worker("parked", "demo")
    rig.parked = await rig.submit("parked")
    rig.end(parked)
    rig.big = await rig.submit("big")
    rig.whole = await rig.submit("whole")
    wanted = max([size for attack, size in attacks if attack.name in ("ws-watches", "ws-compact")], default=0)
    rig.finished = [await rig.submit("finished") for _ in range(wanted)]
    await rig.until_done("big", 1)
    await rig.until_done("whole", 1)
    await rig.until_done("finished", wanted)
    rig.end(rig.edge)


async def settle(rig, quiet):
    """The edge's memory while the honest clients are served, and their delays."""
    await asyncio.sleep(quiet)
    rig.delays()
    await asyncio.sleep(quiet)
    return rig.memory(), rig.delays()


def behind_others(attack):
    """Runs an attack in this thread. Real attackers have processors of their own: these must not take the time of the edge and of
    the honest clients."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    return asyncio.run(asyncio.wait_for(attack, ATTACK_MAX))


async def measure(rig, attack, size, quiet, delay_min):
    """Runs one attack. Returns its row, and whether it stayed within the bounds."""
    rig.start_edge(attack.tls)
    # New jobs, so that the honest clients have no backlog.
    watched = [await rig.submit("demo", {"words": RATE * WATCHED_FOR, "rate": RATE, "seed": n}) for n in range(10)]
    rig.start_watchers(watched)
    idle, before = await settle(rig, quiet)
    peak, files = idle, rig.files()
    files_idle, running = files, True
    seen, violations = Counter(), []

    async def look():
        nonlocal peak, files
        while running:
            peak, files = max(peak, rig.memory()), max(files, rig.files())
            await asyncio.sleep(0.05)

    looking = asyncio.create_task(look())
    begun = time.monotonic()
    try:
        seen = await asyncio.to_thread(behind_others, attack.run(rig, size))
    except Exception as error:  # noqa: BLE001 - what it cost until then is shown, too
        violations.append(f"failed: {error!r}")
    took = time.monotonic() - begun
    running = False
    await looking
    during = rig.delays()
    # The attack has closed everything that it opened.
    begun = time.monotonic()
    while (left := rig.memory()) > idle + LEFT_MAX and time.monotonic() < begun + RECOVERY_WAIT:
        await asyncio.sleep(0.2)
    recovery = time.monotonic() - begun
    # An attack may end before the next event is due.
    while attack.honest and not (during["events"] or during["lost"]) and time.monotonic() < begun + RECOVERY_WAIT:
        await asyncio.sleep(0.2)
        during = rig.delays()
    died = rig.edge.poll() is not None
    rig.end(rig.watchers)
    for job in watched:
        await rig.cancel(job)
    rig.end(rig.edge)
    if died:
        violations.append("the edge died")
    bound = MEMORY + attack.kib_each * (files - files_idle) / 1024
    if attack.reads:
        bound += 32 * os.cpu_count()
    if peak > idle + bound:
        violations.append(f"{peak - idle:.0f} MiB more than idle instead of {bound:.0f} MiB")
    if left > idle + LEFT_MAX:
        violations.append(f"{left - idle:.0f} MiB left after {RECOVERY_WAIT} s")
    if attack.honest and (during["lost"] or not during["events"]):
        violations.append(f"{during['lost']} honest clients lost their connection, {during['events']} events arrived")
    if attack.honest and during["events"]:
        bound = DELAY_TIMES * max(before["p99"] or 0, delay_min)
        if during["p99"] > bound:
            violations.append(f"p99 of {during['p99']:.0f} ms instead of {bound:.0f} ms")
    p99 = [f"{delays['p99']:.0f}" if delays["events"] else "-" for delays in (before, during)]
    outcomes = ", ".join(f"{what}: {times}" for what, times in seen.most_common(5) if times)
    measured = (f"{took:.0f} s", f"{idle:.0f}", f"{peak:.0f}", f"{left:.0f} in {recovery:.0f} s", *p99)
    return (attack.name, *measured, outcomes, "; ".join(violations) or "ok"), not violations


def show(row):
    widths = (18, 7, 6, 6, 13, 7, 7)
    print("".join(f"{cell:<{width}}" for cell, width in zip(row, widths)), f"{row[7]}  [{row[8]}]", flush=True)


async def run(options):
    sizes = [(attack, attack.short if options.short else attack.full) for attack in ATTACKS]
    chosen = [(a, size) for a, size in sizes if size and (not options.names or a.name in options.names)]
    rig = Rig(options.program, options.nats_server, clients=30 if options.short else 200)
    rig.is_short = options.short
    rig.hold = 2 if options.short else 5
    rig.big_bytes = 8_000_000 if options.short else 50_000_000
    passed = 0
    try:
        await prepare(rig, chosen)
        show(("attack", "took", "idle", "peak", "left", "p99 ms", "during", "outcomes", "within bounds"))
        for attack, size in chosen:
            try:
                row, good = await measure(rig, attack, size, *((0.7, DELAY_MIN_SHORT) if options.short else (2, DELAY_MIN)))
            except Exception as error:  # noqa: BLE001 - the other attacks still run
                row, good = (attack.name, *["-"] * 6, "", f"did not run: {error!r}"), False
                rig.end(rig.watchers)
                rig.end(rig.edge)
            show(row)
            passed += good
    finally:
        rig.stop()
    print(f"{passed} passed, {len(chosen) - passed} failed")
    return passed == len(chosen)


def main():
    options = arguments()
    if options.list:
        for attack in ATTACKS:
            print(f"{attack.name:<18}{attack.about}")
        return 0
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536) if most > 0 else 65536, most))
    # So that `rig.stop` runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return 0 if asyncio.run(run(options)) else 1


if __name__ == "__main__":
    sys.exit(main())
