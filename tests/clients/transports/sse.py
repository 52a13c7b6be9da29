"""Follows a job with the PyPI package `httpx-sse`: sse.py URL JOB. Prints each event as a line of JSON, and ends with the
job. The package leaves coming back to its user and gives what that takes: the last id, and when.
"""

import json, os, sys, time

import httpx
from httpx_sse import connect_sse

URL, JOB = sys.argv[1:3]
last, pause = None, 0.5
QUERY = "?compact=1" if os.environ.get("COMPACT") else ""

with httpx.Client(timeout=httpx.Timeout(10, read=60)) as client:
    while True:
        try:
            headers = {"Last-Event-ID": last} if last else {}
            with connect_sse(client, "GET", f"{URL}/api/jobs/{JOB}/events{QUERY}", headers=headers) as source:
                if source.response.status_code == 204:
                    print(json.dumps({"op": "end", "job": JOB}), flush=True)
                    break
                if source.response.status_code == 410:
                    last = None
                    print(json.dumps({"op": "anew", "job": JOB}), flush=True)
                elif source.response.status_code != 503:
                    source.response.raise_for_status()
                    for sse in source.iter_sse():
                        pause = pause if sse.retry is None else sse.retry / 1000
                        last = sse.id or last
                        print(sse.data, flush=True)
        except httpx.TransportError:
            pass
        time.sleep(pause)
