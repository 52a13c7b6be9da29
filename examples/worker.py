"""A worker in Python: returns its input, a text, in capitals, word by word.

    pip install ./clients/python
    python3 examples/worker.py  # TAILWATER_NATS names the broker; nats://127.0.0.1:4222 by default
    tailwater submit --kind shout --input '"any text"' --watch
"""

import asyncio
from tailwater import serve, worker


@worker(kind="shout", concurrency=4)
async def shout(job):
    for word in job.input.split():
        await asyncio.sleep(0.05)
        yield word.upper() + " "


if __name__ == "__main__":
    serve(shout)
