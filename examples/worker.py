"""A Tailwater worker in Python: gives its input, a text, back in capitals, word by word.

    pip install nats-py msgpack
    python3 examples/worker.py [nats-url] [kind]      # nats://127.0.0.1:4222 and shout when left out
    tailwater submit --kind shout --input '"any text"' --watch
"""

import asyncio, json, sys, time, zlib
import msgpack, nats
from nats.errors import Error
from nats.js.api import ConsumerConfig
from nats.js.errors import APIError, NotFoundError

URL, KIND = (sys.argv[1:] + ["nats://127.0.0.1:4222", "shout"][len(sys.argv) - 1 :])[:2]


async def work(text):  # The work itself: yields pieces of output, none of them empty.
    for word in str(text).split():
        await asyncio.sleep(0.05)
        yield word.upper() + " "


async def run(js, shards, job, input, limits):
    shard = zlib.crc32(job.encode()) % shards
    subject, pos, seq, attempt, last = f"tw.chunks.{shard}.{job}", 0, 0, 0, None

    async def append(type, **fields):  # Awaited each time, so never more than one is in flight.
        nonlocal pos, seq
        event = {"type": type, "job": job, "seq": seq + 1, "attempt": attempt, "ts": time.time_ns() // 10**6, **fields}
        fence = {"Nats-Expected-Last-Subject-Sequence": str(pos)}  # Refused unless the log still ends where we left it.
        pos, seq = (await js.publish(subject, json.dumps(event).encode(), headers=fence)).seq, seq + 1

    async def read_last():  # From the stream's leader: a replica may be behind.
        nonlocal pos, seq, attempt, last
        message = await js.get_last_msg(f"TW_CHUNKS_{shard}", subject)
        last = json.loads(message.data) if message.data[:1] == b"{" else msgpack.unpackb(message.data)
        pos, seq, attempt, last = message.seq, last["seq"], last["attempt"], last["type"]

    try:
        await read_last()
    except NotFoundError:  # We are faster than the submitter, so we begin the log; it may still come first.
        try:
            await append("job:queued:v1", kind=KIND, input=input, **limits)
        except APIError:
            await read_last()
    if last in ("job:done:v1", "job:failed:v1", "job:cancelled:v1"):
        return
    if last == "job:cancel-requested:v1":
        return await append("job:cancelled:v1")
    if attempt >= 5:
        return await append("job:failed:v1", code="attempts_exhausted", message="5 attempts failed", retryable=False)
    attempt += 1
    await append("job:started:v1", kind=KIND, worker="python", continues=False)  # Whoever had the job is refused now.
    async for text in work(input):
        await append("model:chunk:v1", text=text, channel="output")
    await append("job:done:v1", finish_reason="stop")


async def keep(message):  # Else the queue hands the job to another worker after 8 s.
    while True:
        await asyncio.sleep(2.5)
        await message.in_progress()


async def main():
    js = (await nats.connect(URL, max_reconnect_attempts=-1)).jetstream()
    shards = int((await js.stream_info("TW_JOBS")).config.metadata["tailwater.shards"])
    try:
        await js.consumer_info("TW_JOBS", KIND)
    except NotFoundError:  # As nats/consumers/kind.json declares it; times in seconds.
        filter = f"tw.jobs.{KIND}.*"
        config = ConsumerConfig(name=KIND, durable_name=KIND, filter_subject=filter, ack_wait=8, max_deliver=-1)
        await js.add_consumer("TW_JOBS", config, max_ack_pending=20000, max_waiting=4096)
    queue = await js.pull_subscribe_bind(KIND, "TW_JOBS")
    print("serves", KIND, flush=True)
    while True:
        try:
            [message] = await queue.fetch(1, timeout=5)
        except Error:  # Nothing to do, or the broker is away.
            await asyncio.sleep(0.1)
            continue
        job, heartbeat = json.loads(message.data), asyncio.create_task(keep(message))
        try:
            limits = {name: value for name, value in job.items() if name in ("timeout_ms", "silence_timeout_ms")}
            await run(js, shards, job["job"], job["input"], limits)
            await message.ack_sync()  # Only now: the end is in the log.
        except Error as error:  # Another worker has the job, or no answer came: stop, and ack nothing.
            print("gave up", job["job"], error, file=sys.stderr)
        finally:
            heartbeat.cancel()


asyncio.run(main())
