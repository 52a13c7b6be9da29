"""Sends requests that an edge refuses, with an unmodified python-socketio. Argument and output are those of
socketio_refused.mjs."""

import asyncio
import json
import os
import sys

import socketio


async def main():
    given = json.loads(sys.argv[1])
    client = socketio.AsyncClient(reconnection=False)
    seen = {"disconnects": []}
    error, refused = asyncio.Future(), asyncio.Future()

    @client.on("disconnect")
    async def disconnect(reason):
        seen["disconnects"].append(reason)

    @client.on("tailwater:error")
    async def tailwater_error(data):
        error.set_result(data)

    @client.on("connect_error", namespace="/admin")
    async def connect_error(data):
        refused.set_result(data["message"] if isinstance(data, dict) else data)

    await client.connect(given["url"], transports=given["transports"], namespaces=["/"])
    seen["argument"] = await client.call("watch", b"abc")
    parts = [bytes(100_000), bytes(3), b""]
    seen["field"] = await client.call("submit", {"kind": "demo", "ref": "r", "input": {"parts": parts}})
    seen["beside"] = await client.call("unwatch", ({"job": "j"}, b"abc"))
    await client.emit("cancel", {"job": "j", "reason": b"abc"})
    seen["event"] = await error
    # The library joins namespaces only when it connects.
    await client._send_packet(socketio.packet.Packet(socketio.packet.CONNECT, namespace="/admin"))
    seen["namespace"] = await refused
    seen["after"] = await client.call("watch", {"job": "after"})
    seen["disconnected"] = len(seen["disconnects"])
    print(json.dumps(seen), flush=True)
    os._exit(0)


asyncio.run(asyncio.wait_for(main(), 50))
