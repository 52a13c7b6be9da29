"""Attacks over HTTP/2, on edges with TLS: floods of frames that cost their sender nothing, headers that are large once they are
decoded, and responses that their client does not read.

Frames are written as bytes; header blocks use the static table and literals. See `attacks.py` for how to add an attack.
"""

import asyncio
import time

from attacks import attack, flood, gather, hold
from protocol import require
from wire import Client

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 4, 5
WINDOW_MAX = (1 << 31) - 1
# How many requests of one connection an edge accepts at a time.
STREAMS_MAX = 128


def frame(kind, flags=0, stream=0, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def settings(**values):
    numbers = {"window": INITIAL_WINDOW_SIZE, "frame": MAX_FRAME_SIZE}
    pairs = (numbers[name].to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values.items())
    return frame(SETTINGS, payload=b"".join(pairs))


def window(bytes_, stream=0):
    return frame(WINDOW_UPDATE, stream=stream, payload=bytes_.to_bytes(4, "big"))


def literal(name, value):
    """A field that is not indexed. Its name has this number in the static table."""
    return bytes([name, len(value)]) + value


def fields(path):
    """The header block of a GET over `https`: method, scheme, path and authority."""
    return b"\x82\x87" + literal(4, path.encode()) + literal(1, b"localhost")


def get(path, stream):
    return frame(HEADERS, END_STREAM | END_HEADERS, stream, fields(path))


START = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


async def ended(client, seconds=20):
    """How the edge ends a connection: the code of its GOAWAY, if that arrives."""
    buffer, until = bytearray(), time.monotonic() + seconds
    while time.monotonic() < until:
        piece = await client.read(seconds=2)
        if piece == b"":
            return "cut"
        buffer += piece or b""
        while len(buffer) >= 9 and len(buffer) >= (size := 9 + int.from_bytes(buffer[:3], "big")):
            kind, payload = buffer[3], bytes(buffer[9:size])
            del buffer[:size]
            if kind == GOAWAY and (code := int.from_bytes(payload[4:8], "big")):
                return f"goaway {code}"
    return "open"


async def connections(rig, count, one, at_once=100, first=settings()):
    """Runs `one(client, number)` for this many connections, which stay open until all have ended."""
    held = []

    async def opened(number):
        client = await Client.connect(rig.port, tls=rig.http2)
        held.append(client)
        # An edge that speaks HTTP/1 only would end every connection, as most attacks expect.
        require(client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2", "the edge does not speak HTTP/2")
        await client.send(START + first)
        return await one(client, number)

    try:
        seen = await gather(count, opened, at_once)
        await hold(rig)
        return seen
    finally:
        for client in held:
            client.close()
        # A connection is closed in the next turn of the loop.
        await asyncio.sleep(0.1)


async def until_ended(client, pieces):
    """Sends these, and requires that the edge ends the connection."""
    for piece in pieces:
        if not await client.send(piece, 5):
            break
    return await ended(client)


@attack("h2-resets", "requests over HTTP/2 that are reset at once", full=200, short=20, tls=True)
async def resets(rig, count):
    cancel = (8).to_bytes(4, "big")

    async def one(client, _):
        streams = range(1, 20_000, 2)
        pairs = [get("/api/jobs", stream) + frame(RST_STREAM, 0, stream, cancel) for stream in streams]
        outcome = await until_ended(client, (b"".join(pairs[at : at + 100]) for at in range(0, len(pairs), 100)))
        require(outcome != "open", "10,000 requests were reset")
        return outcome

    return await connections(rig, count, one, at_once=20)


@attack("h2-endless", "headers over HTTP/2 that never end", full=200, short=20, tls=True)
async def continuations(rig, count):
    async def one(client, number):
        # Fields without a name and a value, and frames without any field.
        more = frame(CONTINUATION, 0, 1, [b"\0" * 16_383, b""][number % 2])
        outcome = await until_ended(client, [frame(HEADERS, END_STREAM, 1, b"\x82\x87"), *[more] * 1000])
        require(outcome != "open", "1000 continuations were accepted")
        return outcome

    return await connections(rig, count, one, at_once=20)


# Frames that are allowed, and that a client may send forever.
FLOODS = {
    "pings": frame(PING, payload=b"x" * 8),
    "settings": settings(window=1 << 16),
    "windows": window(1),
    "priorities": frame(PRIORITY, 0, 1, b"\0\0\0\0\0"),
    "unknown": frame(0xFA, payload=b"x" * 100),
}


@attack("h2-floods", "frames over HTTP/2 that cost only the edge, from clients that never read", full=20, short=3, tls=True)
async def floods(rig, seconds):
    async def one(client, number):
        name, data = list(FLOODS.items())[number]
        return f"{name} {await flood(client, data * 200, seconds)}"

    return await connections(rig, len(FLOODS), one)


# What no client may send after its settings. Each ends the connection.
BAD = {
    "data of no request": frame(DATA, 0, 1, b"x"),
    "data on stream 0": frame(DATA, 0, 0, b"x"),
    "headers on stream 0": frame(HEADERS, 5, 0, fields("/")),
    "headers on an even stream": frame(HEADERS, 5, 2, fields("/")),
    "a continuation of nothing": frame(CONTINUATION, END_HEADERS, 1),
    "a ping within headers": frame(HEADERS, END_STREAM, 1, b"\x82") + frame(PING, payload=b"x" * 8),
    "an unknown field": frame(HEADERS, 5, 1, b"\xff\xff\xff\x7f"),
    "a reset of no request": frame(RST_STREAM, 0, 1, b"\0\0\0\x08"),
    "a frame of 16 MB": b"\xff\xff\xff\0\0\0\0\0\1",
    "a window of 0": window(0),
    "a window that overflows": window(WINDOW_MAX),
    "an initial window that overflows": settings(window=1 << 31),
    "frames of 0 bytes": settings(frame=0),
    "half a setting": frame(SETTINGS, payload=b"x" * 5),
    "settings of a stream": frame(SETTINGS, 0, 1),
    "a ping of 7 bytes": frame(PING, payload=b"x" * 7),
}


@attack("h2-bad-frames", "frames that clients of HTTP/2 must not send", full=50, short=3, tls=True)
async def bad_frames(rig, count):
    every = list(BAD.items())

    async def one(client, number):
        name, data = every[number % len(every)]
        outcome = await until_ended(client, [data])
        require(outcome != "open", f"{name}: accepted")
        return outcome

    return await connections(rig, count * len(every), one, at_once=20)


@attack("h2-bombs", "headers over HTTP/2 that are 3000 times as large once they are decoded", full=100, short=10, tls=True)
async def bombs(rig, count):
    async def one(client, _):
        # The first request adds a field of 3 KB to the table of the connection. The others have nothing but that field.
        bomb = b"\x40" + b"\x01a" + b"\x7f" + b"\xb9\x16" + b"x" * 3000
        await client.send(frame(HEADERS, 5, 1, fields("/healthz") + bomb), 5)
        for stream in range(3, 203, 2):
            if not await client.send(frame(HEADERS, 5, stream, fields("/healthz") + b"\xbe" * 16_000), 5):
                break
        return await ended(client, 3)

    return await connections(rig, count, one, at_once=20)


@attack("h2-unread", "event streams of a job of 50 MB over HTTP/2, unread", full=20, short=3, kib_each=32 * STREAMS_MAX, tls=True)
async def unread(rig, count):
    async def one(client, _):
        streams = range(1, 2 * STREAMS_MAX, 2)
        await client.send(window(WINDOW_MAX - 65_535))
        await client.send(b"".join(get(f"/api/jobs/{rig.big}/events", stream) for stream in streams))
        # Some of the responses, so that the requests have arrived.
        return "answered" if await client.read(4096) else "cut"

    return await connections(rig, count, one, first=settings(window=1 << 20))


@attack("h2-windows", "states of a job of 8 MB over HTTP/2, read a byte a second", full=20, short=3, kib_each=32 * STREAMS_MAX, tls=True)
async def windows(rig, count):
    async def one(client, _):
        streams = range(1, 2 * STREAMS_MAX, 2)
        await client.send(b"".join(get(f"/api/jobs/{rig.whole}/state", stream) for stream in streams))
        for _ in range(2 if rig.is_short else 15):
            if not await client.send(b"".join(window(1, stream) for stream in streams), 5):
                return "cut"
            await asyncio.sleep(1)
        return "held"

    return await connections(rig, count, one, first=settings(window=0))
