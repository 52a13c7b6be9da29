"""The attacks. Each is a coroutine that gets the rig and its size, and returns counts of its outcomes.

To add one, write a coroutine under `@attack(...)`. `full` and `short` are its size in the full and in the short run; without
`short` the short run omits it. It should run for as long as it has an effect, and then call `hold()`, so that the memory is
measured while everything is open.
"""

import asyncio
import base64
import json
import os
import re
import secrets
import signal
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable

from wire import JSON, Client, ask, mask, request

ATTACKS = []
BODY = 1 << 20
POLLING = "/socket.io/?EIO=4&transport=polling"
SOCKET = "/socket.io/?EIO=4&transport=websocket"
PLAIN = "Content-Type: text/plain\r\n"


@dataclass
class Attack:
    name: str
    about: str
    run: Callable
    full: int
    short: int | None
    # Whether the honest clients must be served during the attack.
    honest: bool
    # How many KiB each connection may cost outside of the memory budget.
    kib_each: int
    # Whether the edge, and therefore the honest clients, use TLS.
    tls: bool
    # Whether the edge reads much of the log for it: its connections to NATS then have 32 MiB on each thread.
    reads: bool


def attack(name, about, full, short=None, honest=True, kib_each=32, tls=False, reads=False):
    def add(run):
        ATTACKS.append(Attack(name, about, run, full, short, honest, kib_each, tls, reads))
        return run

    return add


async def gather(count, one, at_once=100):
    """Runs `one(number)` for each number, `at_once` at a time, and counts the results."""
    gate, seen = asyncio.Semaphore(at_once), Counter()

    async def gated(number):
        async with gate:
            try:
                seen[await one(number)] += 1
            except (OSError, asyncio.TimeoutError):
                seen["refused"] += 1

    await asyncio.gather(*map(gated, range(count)))
    return seen


async def hold(rig):
    """Keeps everything open while the memory is measured."""
    await asyncio.sleep(rig.hold)


@contextmanager
def silent_broker(rig):
    """Stops the broker, so that it answers nothing."""
    os.kill(rig.broker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(rig.broker.pid, signal.SIGCONT)


async def flood(client, data, seconds):
    """Sends the same data repeatedly for `seconds` or until the connection ends. Returns how it ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not await client.send(data, until - time.monotonic() + 0.1):
            return "not read" if time.monotonic() >= until else "cut"
    return "read all the time"


async def pings(rig, seconds, path, *first):
    client = await Client.connect(rig.port)
    await client.websocket(path)
    for frame in first:
        await client.send(frame)
    return Counter([await flood(client, mask(0x89, b"x" * 125) * 200, seconds)])


@attack("ws-pings", "one WebSocket that pings and never reads", full=20, short=3)
async def ws_pings(rig, seconds):
    return await pings(rig, seconds, "/ws")


@attack("sio-pings", "one Socket.IO WebSocket that pings and never reads", full=20, short=3)
async def sio_pings(rig, seconds):
    return await pings(rig, seconds, SOCKET, mask(0x81, b"40"))


async def unread(rig, count, path, headers="", at_once=100, job=None):
    """Sends requests about a job, by default the big one, and leaves the rest of each response unread after its head."""
    held = []

    async def one(_):
        client = await Client.connect(rig.port)
        held.append(client)
        await client.send(request("GET", f"/api/jobs/{job or rig.big}/{path}", headers=headers))
        return await client.head()

    seen = await gather(count, one, at_once)
    await hold(rig)
    return seen


@attack("states", "states of a job of 8 MB, unread", full=300, short=60)
async def states(rig, count):
    return await unread(rig, count, "state", at_once=count, job=rig.whole)


@attack("pages", "pages of a job of 50 MB, unread", full=300, short=40)
async def pages(rig, count):
    return await unread(rig, count, "events?limit=1000", "Accept: application/json\r\n", at_once=count)


@attack("sse-unread", "event streams of a job of 50 MB, unread", full=1000, short=60)
async def sse_unread(rig, count):
    return await unread(rig, count, "events")


async def unread_watches(rig, count, path, watch, *first):
    """WebSockets that watch a job and read no more than they must before."""
    held = []

    async def one(_):
        client = await Client.connect(rig.port)
        held.append(client)
        await client.websocket(path)
        for packet in first:
            await client.send(mask(0x81, packet), 1)
            await client.read(seconds=5)
        await client.send(mask(0x81, watch), 1)
        return "held"

    seen = await gather(count, one)
    await hold(rig)
    return seen


@attack("ws-unread", "WebSockets that each watch a job of 50 MB, unread", full=1000, short=60)
async def ws_unread(rig, count):
    watch = json.dumps({"op": "watch", "job": rig.big}).encode()
    return await unread_watches(rig, count, "/ws", watch)


@attack("sio-unread", "Socket.IO WebSockets that each watch a job of 50 MB, unread", full=1000, short=60)
async def sio_unread(rig, count):
    watch = b"42" + json.dumps(["watch", {"job": rig.big}]).encode()
    return await unread_watches(rig, count, SOCKET, watch, b"40")


@attack("poll-unread", "Socket.IO clients that watch a job of 50 MB and leave their polls unread", full=500, short=40)
async def poll_unread(rig, count):
    held = []
    watch = b"42" + json.dumps(["watch", {"job": rig.big}]).encode()

    async def one(_):
        path = await session(rig)
        sender = await Client.connect(rig.port, rcvbuf=None)
        await sender.send(request("POST", path, watch, PLAIN))
        await sender.whole()
        sender.close()
        client = await Client.connect(rig.port)
        held.append(client)
        await client.send(request("GET", path))
        return await client.head()

    seen = await gather(count, one)
    await hold(rig)
    return seen


@attack("ws-watches", "one WebSocket that watches many finished jobs and never reads", full=300, short=16)
async def ws_watches(rig, count):
    client = await Client.connect(rig.port)
    await client.websocket()
    for job in rig.finished[:count]:
        await client.send(mask(0x81, json.dumps({"op": "watch", "job": job}).encode()), 1)
    await hold(rig)
    return Counter(["stalled"])


def heavy_input():
    """An input that takes the most memory that an edge accepts: 500 KiB of text, about 16 MiB in memory."""
    return "[" + ",".join(['{"number":1234567890}'] * 23_000) + "]"


@attack("ws-submits", "submissions over WebSocket while the broker does not answer", full=160, short=32, honest=False)
async def ws_submits(rig, count):
    clients = [await Client.connect(rig.port) for _ in range(max(1, count // 32))]
    for client in clients:
        await client.websocket()
    frame = '{"op":"submit","ref":"r","kind":"parked","input":' + heavy_input() + "}"
    with silent_broker(rig):
        sent = await gather(count, lambda n: clients[n % len(clients)].send(mask(0x81, frame.encode()), 5))
        await asyncio.sleep(3)
    refused = Counter()
    for client in clients:
        while (data := await client.read(seconds=1)):
            for code in ("overloaded", "too_many_requests", "too_large", "unavailable"):
                refused[code] += data.count(f'"{code}"'.encode())
    return refused + Counter({"sent": sent[True]})


@attack("rest-submits", "submissions over HTTP while the broker does not answer", full=160, short=32, honest=False)
async def rest_submits(rig, count):
    body = '{"kind":"parked","input":' + heavy_input() + "}"
    return await silent_submits(rig, count, "/api/jobs", lambda number: body)


@attack("chat-submits", "turns of chats while the broker does not answer", full=160, short=32, honest=False)
async def chat_submits(rig, count):
    said = '"messages":[{"role":"user","parts":[{"type":"text","text":"hello"}]}]'
    fields = said + ',"more":' + heavy_input() + "}"
    return await silent_submits(rig, count, "/api/chat", lambda number: f'{{"id":"{number}",' + fields)


@attack("openai-submits", "completions while the broker does not answer", full=160, short=32, honest=False)
async def openai_submits(rig, count):
    said = '"messages":[{"role":"user","content":"hello"}]'
    body = '{"model":"parked",' + said + ',"more":' + heavy_input() + "}"
    return await silent_submits(rig, count, "/v1/chat/completions", lambda number: body)


async def silent_submits(rig, count, path, body_of):
    """Requests whose answers need the broker, all at once, while it is stopped."""
    clients = []

    async def one(number):
        client = await Client.connect(rig.port)
        clients.append(client)
        await client.send(request("POST", path, body_of(number).encode(), JSON))
        return await client.head(3)

    with silent_broker(rig):
        return await gather(count, one, at_once=count)


@attack("sio-sids", "requests for a million sessions that do not exist", full=1_000_000, short=10_000)
async def sio_sids(rig, count):
    start, end = request("GET", f"{POLLING}&sid=SID").split(b"SID")
    seen = Counter()

    async def one(_):
        client = await Client.connect(rig.port, rcvbuf=None)
        for _ in range(count // 2000):
            sids = (base64.urlsafe_b64encode(secrets.token_bytes(12)) for _ in range(100))
            await client.send(b"".join(start + sid + end for sid in sids))
            seen.update(await statuses(client, 100))
        client.close()

    await gather(20, one)
    if seen != Counter({"400": count}):
        raise AssertionError(f"not all of {count} requests were answered with 400: {dict(seen)}")
    return seen


async def statuses(client, count):
    """The statuses of this many pipelined responses, or of fewer if the connection ends or is silent."""
    data, seen = b"", Counter()
    while seen.total() < count and (piece := await client.read(1 << 18)):
        data += piece
        seen.update(status.decode() for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", data))
        # Too short for a status line that was counted.
        data = data[-12:]
    return seen


@attack("sio-handshakes", "Socket.IO clients that never join", full=30_000, short=6_000)
async def sio_handshakes(rig, count):
    seen = Counter()

    async def one(_):
        client, left = await Client.connect(rig.port, rcvbuf=None), count // 20
        while left > 0:
            batch = min(left, 20)
            await client.send(request("GET", POLLING) * batch)
            got, answers = b"", 0
            while answers < batch:
                piece = await client.read(1 << 18, 10)
                if not piece:
                    return "cut"
                got += piece
                answers = got.count(b"HTTP/1.1 ")
            seen["200"] += got.count(b"HTTP/1.1 200")
            seen["503"] += got.count(b"HTTP/1.1 503")
            left -= batch
        return "all sent"

    await gather(20, one)
    await hold(rig)
    return seen


async def session(rig):
    """Joins a Socket.IO client by polling. Returns the address of its session."""
    client = await Client.connect(rig.port, rcvbuf=None)
    await client.send(request("GET", POLLING))
    _, body = await client.whole()
    sid = json.loads(body[1:])["sid"]
    await client.send(request("POST", f"{POLLING}&sid={sid}", b"40", PLAIN))
    await client.whole()
    client.close()
    return f"{POLLING}&sid={sid}"


async def drips(rig, count, path_of, headers):
    """Sends bodies of a megabyte without their last byte."""
    held = []

    async def one(_):
        path = await path_of()
        client = await Client.connect(rig.port)
        held.append(client)
        await client.send(request("POST", path, b" " * (BODY - 1), headers, BODY))
        # Longer than a body may stall, except in a short run.
        return await client.head(4 if rig.is_short else 15)

    return await gather(count, one, at_once=count)


@attack("sio-bodies", "Socket.IO bodies of a megabyte without their last byte", full=200, short=40)
async def sio_bodies(rig, count):
    return await drips(rig, count, lambda: session(rig), PLAIN)


@attack("rest-bodies", "bodies of a megabyte without their last byte", full=300, short=80)
async def rest_bodies(rig, count):
    async def path():
        return "/api/jobs"

    return await drips(rig, count, path, JSON)


@attack("ws-bodies", "WebSocket messages of a megabyte without their last byte", full=300, short=80)
async def ws_bodies(rig, count):
    held = []

    async def one(_):
        client = await Client.connect(rig.port)
        held.append(client)
        await client.websocket()
        whole = await client.send(mask(0x81, b" " * BODY)[:-1], 10)
        rest = await client.read(seconds=2)
        while rest and b"\x88" not in rest:
            rest = await client.read(seconds=2)
        return "held" if whole and rest is None else "closed" if rest else "cut"

    seen = await gather(count, one, at_once=count)
    await hold(rig)
    return seen


@attack("sio-quotes", "Socket.IO requests whose errors would quote 900 KB", full=400, short=80)
async def sio_quotes(rig, count):
    clients = [await Client.connect(rig.port) for _ in range(20)]
    for client in clients:
        await client.websocket(SOCKET)
        await client.send(mask(0x81, b"40"))
    field = "f" * 900_000
    frame = mask(0x81, f'42["watch",{{"job":"j","{field}":1}}]'.encode())
    sent = await gather(count, lambda n: clients[n % 20].send(frame, 5))
    await hold(rig)
    return Counter({"sent": sent[True], "cut": sent[False]})


@attack("small-events", "small events beside a flood of large ones", full=15, short=4)
async def small_events(rig, seconds):
    # The buffers of the flood must be freed although small events are kept.
    jobs = [await rig.submit("demo", {"words": 3000, "rate": 100, "seed": n}) for n in range(40)]
    flooding = await rig.submit("flood")
    client = await Client.connect(rig.port, rcvbuf=None)
    await client.websocket()
    for job in [*jobs, flooding]:
        await client.send(mask(0x81, json.dumps({"op": "watch", "job": job}).encode()))
    until, got = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        got += len(await client.read(1 << 20, 1) or b"")
    # They would take the time of the next attacks.
    for job in [*jobs, flooding]:
        await rig.cancel(job)
    return Counter({"MiB read": got >> 20})


@attack("large-frames", "endless frames of a megabyte over one WebSocket", full=15, short=4)
async def large_frames(rig, seconds):
    client = await Client.connect(rig.port, rcvbuf=None)
    await client.websocket()
    frame = '{"op":"dance","input":[' + "0," * 500_000 + "0]}"
    return Counter([await flood(client, mask(0x81, frame.encode()), seconds)])


@attack("listings", "a hundred clients that keep listing jobs", full=10, short=3)
async def listings(rig, seconds):
    until, seen = time.monotonic() + seconds, Counter()

    async def one(_):
        while time.monotonic() < until:
            client = await Client.connect(rig.port, rcvbuf=None)
            await client.send(request("GET", "/api/jobs?limit=100"))
            seen[await client.head(15)] += 1
            client.close()

    await gather(100, one, at_once=100)
    return seen


@attack("sio-attachments", "Socket.IO clients that post 900 KB whose attachments never come, and poll on", full=300, short=60)
async def sio_attachments(rig, count):
    held = []
    body = b'451-["x",{"_placeholder":true,"num":0},"' + b"x" * 900_000 + b'"]'

    async def one(_):
        path = await session(rig)
        client = await Client.connect(rig.port, rcvbuf=None)
        held.append(client)
        await client.send(request("POST", path, body, PLAIN))
        status, _ = await client.whole()
        await client.send(request("GET", path))
        await client.whole()
        await client.send(request("GET", path))
        return str(status)

    # No more at a time than there is room for.
    seen = await gather(count, one, at_once=12)
    await hold(rig)
    return seen


@attack(
    "ws-compact",
    "WebSockets that each watch many finished jobs, with their text merged, and never read",
    full=300,
    short=16,
    reads=True,
)
async def ws_compact(rig, count):
    held = []
    watches = ({"op": "watch", "job": job, "compact": True} for job in rig.finished[:count])
    frames = b"".join(mask(0x81, json.dumps(watch).encode()) for watch in watches)

    async def one(_):
        client = await Client.connect(rig.port)
        held.append(client)
        await client.websocket()
        return "sent" if await client.send(frames, 5) else "cut"

    # Enough watches in all that their text alone would exceed the bound.
    connections = min(64, 4800 // count)
    seen = await gather(connections, one, at_once=connections)
    await hold(rig)
    return seen


@attack("sio-namespaces", "Socket.IO clients that never poll and join namespaces whose names have 900 KB", full=20, short=6)
async def sio_namespaces(rig, count):
    held = []

    async def one(_):
        path = await session(rig)
        client = await Client.connect(rig.port, rcvbuf=None)
        held.append(client)
        for _ in range(30):
            await client.send(request("POST", path, b"40/" + b"x" * 900_000, PLAIN))
            status, _ = await client.whole()
        return str(status)

    seen = await gather(count, one, at_once=10)
    await hold(rig)
    return seen


@attack("sio-queued-tokens", "Socket.IO clients that queue 4 MB of tokens and poll no answer", full=64, short=32)
async def sio_queued_tokens(rig, count):
    paths = [await session(rig) for _ in range(count)]
    # Once answers wait that no poll takes, further requests stay in the queue.
    unanswered = "\x1e".join(['42["unwatch",{"job":"j"}]'] * 200).encode()
    token = '42["auth",{"token":"' + "x" * 16_000 + '"}]'
    tokens = "\x1e".join([token] * 30).encode()

    async def one(number):
        client = await Client.connect(rig.port, rcvbuf=None)
        for body in [unanswered, *[tokens] * 8]:
            await client.send(request("POST", paths[number], body, PLAIN))
            status, _ = await client.whole()
            if status != 200:
                return "disconnected"
        client.close()
        return "queued"

    # Few at a time, so that the memory for bodies does not limit them.
    seen = await gather(count, one, at_once=8)
    await hold(rig)
    return seen


@attack("sio-join-compact", "Socket.IO clients that join with a megabyte of JSON for each of many jobs", full=60, short=10)
async def sio_join_compact(rig, count):
    objects = "[" + '{"":0},' * 140_000 + "0]"
    jobs = ",".join(f'"j{number}":null' for number in range(1024))
    joins = [f'40{{"cursors":{{{jobs}}},"compact":{objects}}}', f'40{{"cursors":{objects}}}']
    joins = [mask(0x81, join.encode()) for join in joins]

    async def one(number):
        client = await Client.connect(rig.port, rcvbuf=None)
        await client.websocket(SOCKET)
        await client.send(joins[number % 2])
        data = b""
        while b'"bad_request"' not in data:
            if not (piece := await client.read(seconds=60)):
                return "no answer"
            data += piece
        client.close()
        return "refused"

    seen = await gather(count, one, at_once=4)
    if seen != Counter({"refused": count}):
        raise AssertionError(f"not all of {count} clients were refused: {dict(seen)}")
    return seen


@attack("ws-heavy-feeds", "one WebSocket that watches many queued jobs, each with an input of a megabyte as it is stored", full=200, short=32)
async def ws_heavy_feeds(rig, count):
    # A number with a fraction takes 4 bytes as JSON and 9 in the log.
    heavy, jobs = [1.5] * 115_000, []

    async def submit(_):
        jobs.append(await rig.submit("parked", heavy))
        return "submitted"

    seen = await gather(count, submit, at_once=4)
    client = await Client.connect(rig.port, rcvbuf=None)
    await client.websocket()
    # Each feed keeps the newest event, although the client does not want it. Not all at once: those who open a watch may
    # read the event at the same moment, and the jobs whose events come first leave no room for other feeds.
    for start in range(0, count, 10):
        for job in jobs[start : start + 10]:
            await client.send(mask(0x81, json.dumps({"op": "watch", "job": job, "after": 1}).encode()))
        await asyncio.sleep(0.1)
    await hold(rig)
    answers = b""
    while piece := await client.read(1 << 16, 1):
        answers += piece
    for answer in ("watching", "unavailable", "overloaded"):
        seen[answer] = answers.count(f'"{answer}"'.encode())
    client.close()
    for job in jobs:
        await rig.cancel(job)
    return seen


def cursor_at(job, position):
    """A cursor of a job that names the event at this position: the sequence numbers at the end of another cursor."""
    raw = b"\x01" + zlib.crc32(job.encode()).to_bytes(4, "little") + bytes(4) + position
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


async def position_of_first(rig, job):
    """The position of a job's first event, once it has one."""
    for _ in range(100):
        client = await Client.connect(rig.port, rcvbuf=None)
        await client.send(request("GET", f"/api/jobs/{job}/events?limit=1", headers="Accept: application/json\r\n"))
        _, body = await client.whole()
        client.close()
        if body and (events := json.loads(body).get("events")):
            cursor = events[0]["cursor"]
            return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))[9:]
        await asyncio.sleep(0.1)
    raise AssertionError(f"{job} has no event")


@attack("ws-forged-cursors", "one WebSocket that never reads, with many cursors of a large event", full=1000, short=200)
async def ws_forged_cursors(rig, count):
    large = await rig.submit("finished", "x" * 500_000)
    position = await position_of_first(rig, large)
    # Its shard is the only one that has the event; `Rig.start_broker` makes four.
    shard = zlib.crc32(large.encode()) % 4
    names = (f"forged-{secrets.token_hex(8)}" for _ in range(100 * count))
    jobs = [name for name, _ in zip((name for name in names if zlib.crc32(name.encode()) % 4 == shard), range(count))]
    for job in jobs:
        await rig.submit("parked", job=job)
    # It keeps their feeds open, so that nothing delays the look-ups.
    watcher = await Client.connect(rig.port, rcvbuf=None)
    await watcher.websocket()
    for job in jobs:
        await watcher.send(mask(0x81, json.dumps({"op": "watch", "job": job}).encode()))
    got = b""
    while got.count(b'"op":"live"') < count and (piece := await watcher.read(1 << 18, 5)):
        got += piece
    client = await Client.connect(rig.port)
    await client.websocket()
    watches = ({"op": "watch", "job": job, "cursor": cursor_at(job, position)} for job in jobs)
    frames = b"".join(mask(0x81, json.dumps(watch).encode()) for watch in watches)
    # The answers to the pings fill the socket.
    whole = await client.send(frames + mask(0x89, b"x" * 125) * 32_000, 3)
    await hold(rig)
    for job in jobs:
        await rig.cancel(job)
    return Counter({"watched": got.count(b'"op":"live"'), "all sent" if whole else "not read": 1})


@attack("silent-stops", "bodies of a megabyte that stop a chat while the broker does not answer", full=64, short=24, honest=False)
async def silent_stops(rig, count):
    body = b'{"activeStreamId":"j"' + b" " * (BODY - 100) + b"}"
    clients, seen, at_once = [], Counter(), 8

    async def memory(holds):
        """Waits until this holds for the memory that the edge has given to clients."""
        while True:
            _, stats = await ask(rig.port, "GET", "/api/stats")
            if holds(stats["memory"]["used"]):
                return stats["memory"]["used"]
            await asyncio.sleep(0.02)

    async def begin(number):
        client = await Client.connect(rig.port)
        clients.append(client)
        await client.send(request("POST", f"/api/chat/{number}/stop", body[:-1], JSON, len(body)))

    with silent_broker(rig):
        idle = await memory(lambda used: True)
        for start in range(0, count, at_once):
            await asyncio.gather(*map(begin, range(start, start + at_once)))
            # Until it reads all of these bodies, the edge would refuse more of them for their number.
            await asyncio.wait_for(memory(lambda used: used > idle + (at_once - 1) * BODY), 30)
            for client in clients[-at_once:]:
                await client.send(body[-1:])
            await asyncio.wait_for(memory(lambda used: used < idle + BODY), 30)
            # The answers wait for the broker, for seconds.
            answers = Counter(await asyncio.gather(*(client.head(0.1) for client in clients[-at_once:])))
            if not answers["no response"]:
                raise AssertionError(f"bodies that were read kept their room until the answers: {dict(answers)}")
            seen += answers
    if seen["503 overloaded"]:
        raise AssertionError(f"bodies that were read took the room of others: {dict(seen)}")
    return seen


@attack("responses-stream", "responses of a job of 8 MB, unread: streams from their last events on, and whole ones", full=60, short=16)
async def responses_stream(rig, count):
    held = []

    async def stream():
        client = await Client.connect(rig.port, rcvbuf=1 << 18)
        held.append(client)
        await client.send(request("GET", f"/v1/responses/{rig.whole}?stream=true"))
        last = b""
        while piece := await client.read(1 << 18):
            last = last[-100:] + piece
            if b"event: response.output_text.done" in last:
                return "held at its last events"
            if b"event: error" in last:
                return "broken off"
        return "cut" if piece == b"" else "silent"

    async def whole(path):
        client = await Client.connect(rig.port)
        held.append(client)
        await client.send(request("GET", path + rig.whole))
        return await client.head()

    async def one(number):
        paths = [None, "/v1/responses/", None, "/v1/chat/completions/"]
        path = paths[number % 4]
        return await (whole(path) if path else stream())

    # Alone, so that it finds the room for the whole response.
    first = await stream()
    if first != "held at its last events":
        raise AssertionError(f"the first stream was {first}")
    seen = await gather(count, one, at_once=count)
    await hold(rig)
    return seen + Counter([first])
