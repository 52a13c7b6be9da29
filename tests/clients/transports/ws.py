"""Follows a job over WebSocket with the PyPI package `websockets`: ws.py URL JOB [json|msgpack].

Prints each frame about the job as a line of JSON, and ends with the job. Whatever breaks the connection, it connects
again and goes on behind the last event that it printed, or anew when the log does not hold that event.
"""

import asyncio, json, os, sys

import msgpack
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

URL, JOB, CODEC = (sys.argv[1:] + ["json"])[:3]
COMPACT = bool(os.environ.get("COMPACT"))
LOADS, DUMPS = (json.loads, json.dumps) if CODEC == "json" else (msgpack.unpackb, msgpack.packb)


async def main():
    cursor = None
    while True:
        try:
            address = URL.replace("http", "ws", 1) + "/ws"
            async with connect(address, subprotocols=[f"tailwater.v1.{CODEC}"], max_size=None) as socket:
                await socket.send(DUMPS({"op": "watch", "job": JOB, "compact": COMPACT} | ({"cursor": cursor} if cursor else {})))
                async for message in socket:
                    frame = LOADS(message)
                    if isinstance(frame, list):  # MessagePack: the cursor, and the event as it is stored.
                        frame = frame[1] | {"cursor": frame[0]}
                    if frame.get("op") == "hello":
                        continue
                    if frame.get("op") == "error":
                        if frame["code"] == "cursor_not_in_log":
                            cursor = None
                            print(json.dumps({"op": "anew", "job": JOB}), flush=True)
                        elif frame["code"] != "unavailable":
                            sys.exit(f"refused: {frame}")
                        break
                    cursor = frame.get("cursor", cursor)
                    print(json.dumps(frame), flush=True)
                    if frame.get("op") == "end":
                        return
        except (OSError, EOFError, TimeoutError, ConnectionClosed, InvalidHandshake, InvalidMessage):
            pass
        await asyncio.sleep(0.05)


asyncio.run(main())
