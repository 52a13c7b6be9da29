"""Follows a job page by page over plain HTTP with the PyPI package `httpx`: pages.py URL JOB. Prints each event as a line of
JSON, and ends with the job.
"""

import json, os, sys, time

import httpx

URL, JOB = sys.argv[1:3]
cursor = None
COMPACT = {"compact": "1"} if os.environ.get("COMPACT") else {}

with httpx.Client(timeout=60, headers={"Accept": "application/json"}) as client:
    while True:
        try:
            query = {"wait": "10s"} | COMPACT | ({"cursor": cursor} if cursor else {})
            answer = client.get(f"{URL}/api/jobs/{JOB}/events", params=query)
            if answer.status_code == 410:
                cursor = None
                print(json.dumps({"op": "anew", "job": JOB}), flush=True)
            elif answer.status_code != 503:
                page = answer.raise_for_status().json()
                if "missing" in page:
                    print(json.dumps({"op": "missing", "job": JOB} | page["missing"]), flush=True)
                for event in page["events"]:
                    print(json.dumps(event), flush=True)
                cursor = page["next"]
                if cursor is None:
                    print(json.dumps({"op": "end", "job": JOB}), flush=True)
                    break
                continue
        except httpx.TransportError:
            pass
        time.sleep(0.1)
