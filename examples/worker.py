"""A Tailwater worker in Python: returns its input, a text, in capitals, word by word.

    pip install nats-py msgpack
    python3 examples/worker.py [nats-url] [kind] [jobs]  # defaults: nats://127.0.0.1:4222, shout, 4 at a time
    tailwater submit --kind shout --input '"any text"' --watch

Put your own work into `work`. The rest is the same for every worker.
"""

import asyncio, base64, hashlib, json, os, signal, sys, time, zlib
from contextlib import suppress
import msgpack, nats
from nats.errors import Error
from nats.js.api import ConsumerConfig
from nats.js.errors import NotFoundError

URL, KIND, JOBS = (sys.argv[1:] + ["nats://127.0.0.1:4222", "shout", "4"][len(sys.argv) - 1 :])[:3]
PREFIX, NAME = os.environ.get("TAILWATER_PREFIX", "tw"), f"python-{os.getpid()}"
QUEUE, ATTEMPTS = f"{PREFIX.upper()}_JOBS", 5


class Retry(Exception):
    """Raised by `work`: another attempt may succeed. Any other exception fails the job at once."""


async def work(job):
    """Yields the output for `job["input"]` in pieces of text; `job["attempt"]` counts from 1. When the job is cancelled or exceeds a
    time limit, the `await` raises CancelledError. Run blocking code with `asyncio.to_thread`, so that other jobs do not wait."""
    for word in str(job["input"]).split():
        await asyncio.sleep(0.05)
        yield word.upper() + " "


# ---- NATS.

NO_ANSWER = (Error, OSError, asyncio.TimeoutError)
EVENT_MAX = (1 << 20) - 1024  # A message of the log, headers included, has at most 1 MiB.
IN_FLIGHT = 10164  # The error of a cluster that is still storing an earlier publish to the subject.


class Lost(Exception): """Another worker has the job, or it has ended: stop, and ack nothing."""
class Cancelled(Exception): """The log ends with a request to cancel the job."""
class TooLarge(Exception): """The event is too large for any log."""
class GiveBack(Exception): """The queue should deliver the job again after this many seconds."""


async def ask(request, *args, **kwargs):
    """Repeats a request until it is answered: a cluster that elects a leader does not answer for some seconds. None means not found."""
    pause = 0.05
    while True:
        try:
            return await request(*args, **kwargs)
        except NotFoundError:
            return None
        except NO_ANSWER as error:
            if pause > 1:
                print("NATS has not answered:", repr(error), file=sys.stderr)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2)


def encode(value):  # Half a surrogate pair is not a character, and cannot be decoded.
    text = json.dumps(value, ensure_ascii=False)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def decode(data):
    return json.loads(data) if data[:1] == b"{" else msgpack.unpackb(data)


def digest(text):
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def failed(code, message):
    return "job:failed:v1", {"code": code, "message": message[:1000], "retryable": False}


LATE = failed("timed_out", "the job exceeded its time limit")
SILENT = failed("timed_out", "the job produced no output for too long")
STOPPED = "job:retrying:v1", {"code": "handed_back", "message": "the worker was stopped", "delay_ms": 0}


class Job:
    """A job from the queue, until it is acked or given back."""

    def __init__(self, message):
        self.message, self.job = message, json.loads(message.data)
        self.id = self.job["job"]
        shard = zlib.crc32(self.id.encode()) % shards
        self.stream, self.subject = f"{PREFIX.upper()}_CHUNKS_{shard}", f"{PREFIX}.chunks.{shard}.{self.id}"
        self.stream_seq, self.seq, self.attempt, self.last = 0, 0, 0, None  # Where the log ends, and with which event.
        self.text, self.result, self.look, self.news = "", None, False, asyncio.Event()
        self.end = message.metadata.timestamp.timestamp() + (self.job.get("timeout_ms") or 1e15) / 1000
        self.silence, self.kept = (self.job.get("silence_timeout_ms") or 1e15) / 1000, time.time()

    # -- The log. Only the owner of the job can write to it: the broker refuses others.

    async def append(self, type, **fields):  # Every call is awaited, so at most one is in flight.
        ts, pause = time.time_ns() // 10**6, 0.01
        event = {"type": type, "job": self.id, "seq": self.seq + 1, "attempt": self.attempt, "ts": ts, **fields}
        data = encode(event)
        if len(data) > min(EVENT_MAX, nc.max_payload - 1024):
            raise TooLarge(f"the event {type} is too large: it has {len(data)} bytes")
        while True:
            fence = {"Nats-Expected-Last-Subject-Sequence": str(self.stream_seq)}  # Refused unless the log still ends there.
            try:
                return self.advance((await js.publish(self.subject, data, headers=fence)).seq, event)
            except NO_ANSWER as error:  # Refused, or it is unknown whether it was stored: the log shows it.
                if getattr(error, "err_code", None) != IN_FLIGHT and await self.check(data):
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    def advance(self, stream_seq, event):  # The log ends with this event, at this stream sequence.
        self.stream_seq, self.seq, self.attempt, self.last = stream_seq, event["seq"], event["attempt"], event

    async def read(self):  # From the stream's leader: a replica may be behind.
        return await ask(js.get_last_msg, self.stream, self.subject)

    async def check(self, data=None):
        """Whether the log ends with `data`, which we published. Raises if another client has written."""
        message = await self.read()
        if message is None or message.seq == self.stream_seq:
            self.stream_seq = message.seq if message else 0  # All events have expired; sequence numbers continue.
            return False
        event = decode(message.data)
        cancelled = event["type"] == "job:cancel-requested:v1" and event["attempt"] == self.attempt
        if message.data != data and not cancelled:
            raise Lost
        self.advance(message.seq, event)
        if cancelled:
            raise Cancelled
        return True

    async def is_exhausted(self):  # Attempts that a stopping worker handed back do not count.
        if self.attempt < ATTEMPTS:
            return False
        events, handed_back, remaining = await js.subscribe(self.subject, stream=self.stream, ordered_consumer=True), 0, 1
        try:
            while remaining:
                message = await events.next_msg(timeout=5)
                handed_back += decode(message.data).get("code") == "handed_back"
                remaining = message.metadata.num_pending
        finally:
            await events.unsubscribe()
        return self.attempt - handed_back >= ATTEMPTS

    # -- Claim, run, end.

    async def claim(self):
        """Makes this worker the job's owner. False: the job has ended."""
        seen = None
        while True:
            message = await self.read()
            try:
                if message is None:  # The submitter has not written it yet; both write the same event.
                    fields = {name: self.job[name] for name in ("timeout_ms", "silence_timeout_ms") if self.job.get(name)}
                    if self.job.get("callback"):
                        fields["callback_digest"] = digest(self.job["callback"])
                    try:
                        await self.append("job:queued:v1", kind=KIND, input=self.job.get("input"), **fields)
                    except TooLarge as error:
                        await self.append("job:queued:v1", kind=KIND, input=None, **fields)
                        type, fields = failed("bad_output", str(error))
                        await self.append(type, **fields)
                        return False
                    continue
                self.advance(message.seq, decode(message.data))
                type, end, restarted = self.last["type"], None, seen not in (None, self.stream_seq)
                wait = (self.last["ts"] + self.last.get("delay_ms", 0)) / 1000 - time.time()
                if type in ("job:done:v1", "job:failed:v1", "job:cancelled:v1"):
                    return False
                if restarted and self.attempt and type not in ("job:retrying:v1", "job:cancel-requested:v1"):
                    break  # Its owner is alive: it has written meanwhile.
                if type == "job:cancel-requested:v1":
                    end = "job:cancelled:v1", {}
                elif time.time() >= self.end:
                    end = LATE
                elif type == "job:retrying:v1" and wait > 0:  # Its worker died before it gave the job back.
                    raise GiveBack(min(wait, self.end - time.time()))
                elif await ask(self.is_exhausted):
                    end = failed("attempts_exhausted", f"{ATTEMPTS} attempts ended without a result")
                if end:
                    await self.append(end[0], **end[1])
                    return False
                self.attempt, seen = self.attempt + 1, self.stream_seq
                await self.append("job:started:v1", kind=KIND, worker=NAME, continues=False)  # The previous owner is refused from now on.
                return True
            except (Lost, Cancelled):
                pass  # Another client wrote first: look again.
        raise Lost

    async def produce(self):
        try:
            async for piece in work({**self.job, "attempt": self.attempt}):
                self.text, self.heard = self.text + piece, time.time()
                self.news.set()
                while len(self.text) > 100_000:  # The log is slower than the work.
                    await asyncio.sleep(0.05)
            self.result = "job:done:v1", {"finish_reason": "stop"}
        except Retry as error:
            self.result = "job:retrying:v1", {"code": "retry", "message": str(error)[:1000]}
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            self.result = failed("exception", f"{type(error).__name__}: {error}")
        self.news.set()

    async def publish(self):
        """Publishes what `work` yields. Returns the attempt's last event."""
        looked = self.heard = time.time()
        while True:
            self.news.clear()
            now, look_at, silent_at = time.time(), looked + ack_wait * 2 / 3, self.heard + self.silence
            if not self.result and (stopping.is_set() or now >= min(self.end, silent_at)):
                return STOPPED if stopping.is_set() else LATE if now >= self.end else SILENT
            if self.text:
                text, self.text = self.text[:30_000], self.text[30_000:]
                await self.append("model:chunk:v1", text=text, channel="output")
                looked = self.heard = time.time()
            elif self.result:
                return self.result
            elif self.look or now >= look_at:  # A control signal says "look at the log". It can be lost.
                self.look = False
                await self.check()
                looked = now
            else:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.news.wait(), min(self.end, silent_at, look_at) - now)

    async def run(self):
        """Runs the job until its end is in the log."""
        if not await self.claim():
            return
        producer = asyncio.create_task(self.produce())
        try:
            type, fields = await self.publish()
        except Cancelled:
            type, fields = "job:cancelled:v1", {}
        except TooLarge as error:
            type, fields = failed("bad_output", str(error))
        finally:
            producer.cancel()
            await asyncio.wait({producer}, timeout=5)
        if type == "job:retrying:v1" and "delay_ms" not in fields:
            if await ask(self.is_exhausted):
                type, fields = failed("attempts_exhausted", f"no attempt succeeded; the last one: {fields['message']}")
            else:
                remaining = max(0, int((self.end - time.time()) * 1000))
                fields["delay_ms"] = min(1000 * 2 ** (self.attempt - 1), 60_000, remaining)
        try:
            await self.append(type, **fields)
        except Cancelled:
            await self.append("job:cancelled:v1")
        if self.last["type"] == "job:retrying:v1":
            raise GiveBack(fields["delay_ms"] / 1000)

    async def call_back(self):
        """Submits the job that reports the end of this one to the callback address."""
        end, url = self.last, self.job.get("callback")
        if not url:
            return
        kind = await ask(js.consumer_info, QUEUE, "callback")
        if kind is None or kind.num_pending + kind.num_ack_pending >= 20_000:
            return print("callback abandoned: no worker has served the kind callback, or too many callbacks wait", self.id, file=sys.stderr)
        status = {"job:done:v1": "done", "job:failed:v1": "failed"}.get(end["type"], "cancelled")
        error = {name: end[name] for name in ("code", "message", "retryable")} if status == "failed" else None
        data = {"id": self.id, "kind": KIND, "status": status, "error": error, "ended_at": end["ts"]}
        data.update({name: end.get(name) for name in ("attempt", "seq", "usage", "finish_reason")})
        id = f"callback-{self.id}" if len(self.id) <= 55 else f"callback-{digest(self.id)}"
        job = {"job": id, "kind": "callback", "input": {"url": url, "type": f"job.{status}", "data": data}}
        subject = f"{PREFIX}.jobs.callback.{id}"
        try:
            await js.publish(subject, encode(job), headers={"Nats-Msg-Id": id})
        except Error:
            if await ask(js.get_last_msg, QUEUE, subject) is None:  # Otherwise it is in the queue already.
                raise

    async def keep(self):  # Otherwise the queue delivers the job to another worker.
        while True:
            await asyncio.sleep(ack_wait / 3)
            sent = time.time()
            with suppress(*NO_ANSWER):
                await nc.request(self.message.reply, b"+WPI", timeout=ack_wait / 3)
                self.kept = sent if sent - self.kept < ack_wait else 0

    async def signal(self, _):
        self.look = True
        self.news.set()


# ---- The worker.


async def serve(message):
    if stopping.is_set():
        return await message.nak()
    try:
        job = Job(message)
    except (ValueError, KeyError, TypeError, AttributeError):
        return await message.term()  # Not a job.
    if job.id in running:  # The queue has not heard from us for too long, and delivers a job that we still run.
        running[job.id].message, running[job.id].kept = message, time.time()
        return
    control = await nc.subscribe(f"{PREFIX}.control.{job.id}", cb=job.signal)
    running[job.id], heartbeat = job, asyncio.create_task(job.keep())
    try:
        await job.run()
        await job.call_back()
        await job.message.ack_sync()  # Only now: the end is in the log.
    except GiveBack as seconds:
        if time.time() - job.kept < ack_wait * 3 / 4:  # Otherwise another worker may have the job, and this would give back that delivery.
            await job.message.nak(delay=seconds.args[0])
    except Lost:
        print("lost to another worker:", job.id, file=sys.stderr)
    finally:
        heartbeat.cancel()
        del running[job.id]
        await control.unsubscribe()


async def serve_one_after_another():
    jobs = await ask(js.pull_subscribe_bind, KIND, QUEUE)
    while not stopping.is_set():
        try:
            [message] = await jobs.fetch(1, timeout=2)
        except NO_ANSWER:  # Nothing to do, or the broker cannot be reached.
            await asyncio.sleep(0.1)
            continue
        try:
            await serve(message)
        except Exception as error:  # The queue delivers the job again after the ack wait.
            print("abandoned", message.subject, "after", repr(error), file=sys.stderr)


def stop():
    stopping.set()
    for job in running.values():
        job.news.set()


async def report(error):
    print("NATS:", repr(error), file=sys.stderr)


async def main():
    global nc, js, shards, ack_wait, running, stopping
    running, stopping = {}, asyncio.Event()
    nc = await nats.connect(URL.split(","), max_reconnect_attempts=-1, ping_interval=4, error_cb=report)
    js = nc.jetstream(timeout=3)
    queue = await ask(js.stream_info, QUEUE) or sys.exit("NATS is not set up: run tailwater setup")
    shards = int(queue.config.metadata["tailwater.shards"])
    kind = await ask(js.consumer_info, QUEUE, KIND)
    # A new kind is as nats/consumers/kind.json declares it; times in seconds.
    new = ConsumerConfig(name=KIND, durable_name=KIND, filter_subject=f"{PREFIX}.jobs.{KIND}.*", ack_wait=8, max_deliver=-1)
    config = kind.config if kind else new.evolve(max_ack_pending=20_000, max_waiting=4096)
    metadata, ack_wait = config.metadata or {}, config.ack_wait
    if "tailwater.features" not in metadata:  # An edge refuses jobs that need a feature which is not in this list.
        metadata["tailwater.features"] = "callbacks,limits"
        await ask(js.add_consumer, QUEUE, config, metadata=metadata)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    slots = [asyncio.create_task(serve_one_after_another()) for _ in range(int(JOBS))]
    print("serves", KIND, flush=True)
    await stopping.wait()
    await asyncio.wait(slots, timeout=10)  # The queue delivers other jobs again after the ack wait.
    await nc.close()


asyncio.run(main())
