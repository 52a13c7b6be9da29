"""Follows a job with the PyPI package `python-socketio`: socketio_client.py URL JOB. Prints each event as a line of JSON, and
ends with the job.

The package can reconnect by itself, but not after every failure. If the connection breaks while it joins, it may consider itself
connected. If a response is incomplete, the task that reads or reconnects ends with an error that the package does not report. So
the script makes a client for each connection, and watches the job again from the last event.
"""

import asyncio, json, os, sys
from contextlib import suppress

import socketio

URL, JOB = sys.argv[1:3]
COMPACT = bool(os.environ.get("COMPACT"))


async def main():
    ended, cursor = False, None

    def made():
        client = socketio.AsyncClient(reconnection=False)

        async def watch():
            request = {"job": JOB, "compact": COMPACT} | ({"cursor": cursor} if cursor else {})
            try:
                answer = await client.call("watch", request, timeout=20)
            except (socketio.exceptions.SocketIOError, asyncio.TimeoutError):
                return  # The connection is gone; the next one watches the job again.
            if answer["op"] != "watching":
                await refused(answer)

        @client.on("tailwater:error")
        async def refused(answer):
            nonlocal cursor
            if answer["code"] == "unavailable":
                await asyncio.sleep(0.1)
            elif answer["code"] == "cursor_not_in_log":
                cursor = None
                print(json.dumps({"op": "anew", "job": JOB}), flush=True)
            else:
                sys.exit(f"refused: {answer}")
            asyncio.create_task(watch())

        # As a task: the caller must go on and read the answer.
        @client.event
        async def connect():
            asyncio.create_task(watch())

        @client.on("*")
        async def other(name, frame):
            nonlocal cursor
            if frame.get("type") == name:
                cursor = frame["cursor"]
                print(json.dumps(frame), flush=True)

        @client.on("missing")
        async def missing(frame):
            print(json.dumps(frame), flush=True)

        @client.on("end")
        async def end(frame):
            nonlocal ended
            ended = True
            print(json.dumps(frame), flush=True)
            await client.disconnect()

        return client

    while not ended:
        client = made()
        # Not only errors of this package: those of its HTTP client pass through it.
        with suppress(Exception):
            await client.connect(URL, auth={"token": "test-token"})
            # Not `client.wait`, which takes a second to notice the end.
            await client.eio.wait()
        with suppress(Exception):
            await client.disconnect()
        await asyncio.sleep(0.05)


asyncio.run(main())
