"""Follows a job's events with the PyPI package `httpx-sse`, unmodified, until the stream ends. Prints one line of JSON.

Usage: sse_client.py URL [DROPS]: the connection is dropped at random that many times. The package does not reconnect by
itself; it provides the last id and the reconnect time, with which this script reconnects.
"""

import json
import random
import sys
import time

import httpx
from httpx_sse import connect_sse

url, drops = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
seen = {"events": [], "ids": [], "missing": [], "opened": 0, "asked": [], "statuses": []}
last, pause = None, 1.0

with httpx.Client(timeout=httpx.Timeout(10, read=60)) as client:
    while True:
        headers = {"Last-Event-ID": last} if last else {}
        seen["asked"].append(last)
        until = random.randrange(6) if drops > 0 else None
        drops -= 1
        try:
            with connect_sse(client, "GET", url, headers=headers) as source:
                seen["statuses"].append(source.response.status_code)
                if source.response.status_code == 204:
                    break
                source.response.raise_for_status()
                seen["opened"] += 1
                for sse in source.iter_sse():
                    if sse.retry is not None:
                        pause = sse.retry / 1000
                    if sse.event == "missing":
                        seen["missing"].append(sse.json())
                        continue
                    assert sse.event == "message", sse
                    last = sse.id
                    seen["events"].append(sse.json())
                    seen["ids"].append(sse.id)
                    if until == 0:
                        break
                    until = until and until - 1
        except httpx.TransportError:
            pass
        time.sleep(pause)

print(json.dumps(seen))
