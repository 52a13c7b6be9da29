"""Follows jobs over Socket.IO with an unmodified python-socketio. Argument and output are those of socketio.mjs; options that
only that one has, `cuts` and `slow`, are ignored."""

import asyncio
import hashlib
import json
import os
import sys

import socketio


async def follow(url, patience, job, resume, transports=None, via=None, **_):
    seen = {"job": job, "doubled": 0, "repeated": 0, "gaps": 0, "missing": 0, "text": "", "errors": [], "transports": []}
    seen |= {"connected": 0, "disconnects": [], "live": 0, "events": 0, "stray": [], "last": 0}
    cursor, ended, again = None, asyncio.Event(), set()
    client = None

    def auth():
        return {"token": "test-token", **({"cursors": {job: cursor}} if resume == "auth" else {})}

    async def watch(own, pause=0.0):
        await asyncio.sleep(pause)
        if "/" not in own.namespaces:
            return

        def answered(answer):
            if answer["op"] == "watching":
                return
            seen["errors"].append(answer["code"])
            if answer["code"] == "unavailable":
                later(watch(own, 0.2))

        await own.emit("watch", {"job": job, **({"cursor": cursor} if cursor else {})}, callback=answered)

    def later(work):
        task = asyncio.ensure_future(work)
        again.add(task)
        task.add_done_callback(again.discard)

    def made():
        own = socketio.AsyncClient(reconnection_delay=0.05, reconnection_delay_max=0.4)

        @own.on("connect")
        async def connect():
            if own is not client:
                # It was abandoned, and reconnected nevertheless.
                return later(own.disconnect())
            if own.transport() not in seen["transports"]:
                seen["transports"].append(own.transport())
            if resume == "watch":
                await watch(own)

        @own.on("connected")
        async def connected(data):
            if own is client:
                seen["connected"] += bool(data["version"] and data["protocol"])

        @own.on("disconnect")
        async def disconnect(reason):
            if own is client:
                seen["disconnects"].append(reason)

        @own.on("tailwater:error")
        async def error(data):
            seen["errors"].append(data["code"])
            if data["code"] == "unavailable":
                later(watch(own, 0.2))

        @own.on("live")
        async def live(_):
            seen["live"] += 1

        @own.on("missing")
        async def missing(data):
            seen["missing"] += data["to"] - data["from"] + 1
            seen["last"] = data["to"]

        @own.on("watching")
        async def watching(_):
            pass

        @own.on("end")
        async def end(_):
            ended.set()

        @own.on("*")
        async def event(name, data):
            nonlocal cursor
            if own is not client:
                return
            if name != data["type"] or data["job"] != job:
                seen["stray"].append(name)
                return
            if data["seq"] <= seen["last"] and resume == "auth":
                seen["repeated"] += 1
                return
            if data["seq"] <= seen["last"]:
                seen["doubled"] += 1
            elif data["seq"] > seen["last"] + 1:
                seen["gaps"] += 1
            seen["last"] = max(seen["last"], data["seq"])
            seen["events"] += 1
            cursor = data["cursor"]
            if name == "job:started:v1" and not data.get("continues"):
                seen["text"] = ""
            if name == "model:chunk:v1":
                seen["text"] += data["text"]

        return own

    async def stay():
        nonlocal client
        # The library gives up when a connection breaks while it waits to join, and sometimes does not notice; then another
        # client is made.
        while not ended.is_set():
            client = made()
            try:
                connecting = client.connect(via or url, auth=auth, transports=transports, retry=True)
                await asyncio.wait_for(connecting, 20)
                waiting = asyncio.ensure_future(client.wait())
                lost = 0
                while not waiting.done() and lost < 5:
                    await asyncio.sleep(0.2)
                    lost = lost + 1 if client.connected and client.eio.state == "disconnected" else 0
            except (socketio.exceptions.ConnectionError, TimeoutError, ValueError):
                pass
            if not ended.is_set():
                await leave()
                await asyncio.sleep(0.1)

    async def leave():
        try:
            await asyncio.wait_for(client.disconnect(), 3)
        except TimeoutError:
            pass

    later(stay())
    try:
        await asyncio.wait_for(ended.wait(), patience / 1000)
        seen["stuck"] = False
    except TimeoutError:
        seen["stuck"] = {"connected": client.connected, "engine": client.eio.state}
    seen["transports"] += [client.transport()] if client.transport() not in seen["transports"] else []
    disconnects = list(seen["disconnects"])
    ended.set()
    await leave()
    sha256 = hashlib.sha256(seen.pop("text").encode()).hexdigest()
    print(json.dumps(seen | {"disconnects": disconnects, "sha256": sha256}), flush=True)


async def main():
    given = json.loads(sys.argv[1])
    patience = given.get("patience", 50_000)
    await asyncio.gather(*(follow(given["url"], patience, **client) for client in given["clients"]))
    # What the library has not cleaned up no longer matters.
    os._exit(0)


asyncio.run(main())
