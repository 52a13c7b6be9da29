"""Follows a job with the PyPI package `python-socketio`: socketio_client.py URL JOB. Prints each event as a line of JSON, and
ends with the job. The package reconnects by itself; the script watches the job again from its last event.
"""

import asyncio, json, os, sys

import socketio

URL, JOB = sys.argv[1:3]
COMPACT = bool(os.environ.get("COMPACT"))


async def main():
    client = socketio.AsyncClient(reconnection_delay=0.05, reconnection_delay_max=0.4)
    ended, cursor = asyncio.Event(), None

    async def watch():
        try:
            answer = await client.call("watch", {"job": JOB, "compact": COMPACT} | ({"cursor": cursor} if cursor else {}), timeout=20)
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
        print(json.dumps(frame), flush=True)
        ended.set()

    await client.connect(URL, auth={"token": "test-token"}, retry=True)
    await ended.wait()
    await client.disconnect()


asyncio.run(main())
