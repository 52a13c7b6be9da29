"""One job over WebSocket with the PyPI package `websockets`: handshake.py ADDR JOB json|msgpack.

Offers a subprotocol that no edge knows before the real one, watches, loses the connection after ten events, goes on behind
the last of them, and closes as RFC 6455 wants it. Prints each frame about the job as a line of JSON.
"""

import asyncio, json, sys

import msgpack
from websockets.asyncio.client import connect

ADDR, JOB, CODEC = sys.argv[1:]
LOADS, DUMPS = (json.loads, json.dumps) if CODEC == "json" else (msgpack.unpackb, msgpack.packb)
NAME = f"tailwater.v1.{CODEC}"


async def frames(socket):
    hello = LOADS(await socket.recv())
    assert (socket.subprotocol, hello["op"], hello["protocol"]) == (NAME, "hello", NAME), hello
    async for message in socket:
        assert isinstance(message, str if CODEC == "json" else bytes)
        frame = LOADS(message)
        if isinstance(frame, list):  # MessagePack: the cursor, and the event as it is stored.
            frame = frame[1] | {"cursor": frame[0]}
        print(json.dumps(frame), flush=True)
        yield frame


async def main():
    start, events = {}, 0
    for lost in (True, False):
        async with connect(f"ws://{ADDR}/ws", subprotocols=["soap", NAME], open_timeout=None) as socket:
            await socket.send(DUMPS({"op": "watch", "job": JOB} | start))
            async for frame in frames(socket):
                if "cursor" in frame:
                    start, events = {"cursor": frame["cursor"]}, events + 1
                if lost and events == 10:
                    socket.transport.abort()
                    break
                if frame.get("op") == "end":
                    break
            if not lost:
                await socket.close()
                assert socket.close_code == 1000, socket.close_code


asyncio.run(asyncio.wait_for(main(), 60))
