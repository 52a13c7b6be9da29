"""A client in Python: submits a job, shows its text as it arrives, and resumes by itself when the connection breaks.

    pip install ./clients/python
    python3 examples/client.py http://127.0.0.1:4000 demo '{"words": 20, "rate": 20}'
"""

import asyncio, json, sys
from tailwater import Client, Missing


async def main(url, kind, input):
    async with Client(url) as client:
        job = await client.submit(kind, input)
        async for event in client.watch(job):
            if isinstance(event, Missing):
                print(f"\n[events {event.first} to {event.last} have expired]")
            elif event.type == "job:started:v1" and event.attempt > 1 and not event.fields.get("continues"):
                print("\n[another attempt]")
            else:
                print(event.text, end="", flush=True)
        result = await client.wait(job)
        print(f"\n{result.status}", result.message or "")


asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
