"""One delivery of a job: claims it in the log, runs the worker's function, publishes what it yields, and writes how it ended."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from collections import deque
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

from ._broker import NO_ANSWER, Broker, ask, digest, log
from ._job import Data, Failed, Job, Reasoning, Retry
from ._log import ENDS, Cancelled, JobLog, Lost, TooLarge, previous_output
from ._settings import Worker

#: How many bytes of output are held for a log that is slower than the function.
PENDING_MAX = 1 << 20
#: The longest text of one event, in characters.
TEXT_MAX = 30_000
#: The longest message of a failure, in characters.
MESSAGE_MAX = 1000
#: How long a function may take to end after it was cancelled, in seconds.
STOP_WAIT = 5
#: The longest pause before another attempt, in seconds: of the worker's own, and of `Retry`.
PAUSE_MAX = 60
RETRY_AFTER_MAX = 3600
FOREVER = 1e15
#: How long after its submission a job's log may lack its first event without asking the queue whether it still has the job, in seconds.
FIRST_EVENT_LAG = 0.5

#: An event's type, and its fields.
End = tuple[str, dict[str, Any]]


class OwnerLives(Exception):
    """The job's owner has written since we looked: it is alive."""


class GiveBack(Exception):
    """The queue should deliver the job again after this many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def failed(code: str, message: str) -> End:
    return "job:failed:v1", {"code": code, "message": message[:MESSAGE_MAX], "retryable": False}


def retrying(code: str, message: str, delay: float | None = None) -> End:
    fields: dict[str, Any] = {"code": code, "message": message[:MESSAGE_MAX]}
    if delay is not None:
        fields["delay_ms"] = round(delay * 1000)
    return "job:retrying:v1", fields


LATE = failed("timed_out", "the job exceeded its time limit")
SILENT = failed("timed_out", "the job produced no output for too long")
STOPPED = retrying("handed_back", "the worker was stopped", 0)
CANCELLED: End = ("job:cancelled:v1", {})
#: What the log says about an attempt that ended with an event of this type.
OUTCOMES = {"job:done:v1": "done", "job:failed:v1": "failed", "job:cancelled:v1": "cancelled", "job:retrying:v1": "to be retried"}


class Attempt:
    """A job that the queue delivered, until it is acked or given back."""

    def __init__(self, broker: Broker, worker: Worker, message: Any, ack_wait: float, name: str, threads: Executor) -> None:
        self.broker, self.worker, self.message, self.ack_wait, self.name = broker, worker, message, ack_wait, name
        self.threads = threads
        self.submission = json.loads(message.data)
        self.id: str = self.submission["job"]
        kind, colon, _ = self.id.rpartition(":")
        if colon and kind != worker.kind:
            raise ValueError("the id names another kind")
        self.log = JobLog(broker, self.id)
        self.submitted = message.metadata.timestamp.timestamp()
        self.end = self.submitted + min(self._limit("timeout_ms"), worker.timeout or FOREVER)
        self.silence = min(self._limit("silence_timeout_ms"), worker.silence_timeout or FOREVER)
        self.kept = time.time()
        self.began = time.monotonic()
        self.stopping = False
        # Output that is not published yet.
        self.pieces: deque[tuple[str, Any]] = deque()
        self.pending = 0
        self.room = asyncio.Event()
        self.result: End | None = None
        self.heard = time.time()
        # Somebody asks to look at the log.
        self.look = False
        self.asked: list[str] = []
        self.news = asyncio.Event()

    def _limit(self, name: str) -> float:
        limit = self.submission.get(name)
        return limit / 1000 if limit else FOREVER

    # -- Claim.

    async def claim(self) -> Job | None:
        """Makes this worker the job's owner. None: the job has ended or was purged."""
        seen = None
        while True:
            try:
                if not await self.log.open():
                    if await self._is_removed() or await self._append_queued():
                        return None
                    continue
                if (ended := await self._next(seen)) is not None:
                    if ended[0]:
                        await self.log.append(ended[0], **ended[1])
                        self._report(ended)
                    return None
                previous = await self._previous_output()
                self.log.attempt, seen = self.log.attempt + 1, self.log.stream_seq
                continues = previous is not None
                await self.log.append("job:started:v1", kind=self.worker.kind, worker=self.name, continues=continues)
                # The previous owner is refused from now on.
                return Job(self.id, self.worker.kind, self.submission.get("input"), self.log.attempt, previous)
            except (Lost, Cancelled):
                pass  # Another client wrote first: look again.

    async def _is_removed(self) -> bool:
        """Whether the queue has lost a job without a log: it was purged after this delivery was sent."""
        # The first delivery of a new job often arrives before the first event of its log. One that comes late may be of a job
        # that was cancelled while it waited, which ended it without a worker.
        is_first = self.message.metadata.num_delivered <= 1 and self.owns_delivery()
        if is_first and time.time() - self.submitted < FIRST_EVENT_LAG:
            return False
        removed = await self.broker.has_removed(self.id, self.message.metadata.sequence.stream)
        if removed is None:
            raise GiveBack(self.ack_wait / 3)
        return removed

    async def _previous_output(self) -> str | None:
        if not self.worker.continues or not self.log.attempt:
            return None
        return previous_output(await ask(self.log.events) or []) or None

    async def _append_queued(self) -> bool:
        """The submitter has not written the first event yet; both write the same one. True: the job has ended."""
        fields = {name: self.submission[name] for name in ("timeout_ms", "silence_timeout_ms") if self.submission.get(name)}
        if self.submission.get("callback"):
            fields["callback_digest"] = digest(self.submission["callback"])
        kind = self.worker.kind
        try:
            await self.log.append("job:queued:v1", kind=kind, input=self.submission.get("input"), **fields)
            return False
        except TooLarge as error:
            await self.log.append("job:queued:v1", kind=kind, input=None, **fields)
            end = failed("bad_output", str(error))
            await self.log.append(end[0], **end[1])
            self._report(end)
            return True

    async def _next(self, seen: int | None) -> tuple[str, dict[str, Any]] | None:
        """Why the job does not start: with the event that ends it, or without one if it has ended. None: it starts."""
        last, now = self.log.last or {}, time.time()
        type = last["type"]
        wait = (last["ts"] + last.get("delay_ms", 0)) / 1000 - now
        if type in ENDS:
            return "", {}
        restarted = seen not in (None, self.log.stream_seq)
        if restarted and self.log.attempt and type not in ("job:retrying:v1", "job:cancel-requested:v1"):
            raise OwnerLives
        if type == "job:cancel-requested:v1":
            return CANCELLED
        if now >= self.end:
            return LATE
        if type == "job:retrying:v1" and wait > 0:  # Its worker died before it gave the job back.
            raise GiveBack(min(wait, self.end - now))
        if await ask(self._is_exhausted):
            return failed("attempts_exhausted", f"{self.worker.max_attempts} attempts ended without a result")
        return None

    async def _is_exhausted(self) -> bool:
        """Attempts that a stopping worker handed back do not count."""
        if self.log.attempt < self.worker.max_attempts:
            return False
        handed_back: int = sum(event.get("code") == "handed_back" for event in await self.log.events())
        return self.log.attempt - handed_back >= self.worker.max_attempts

    # -- Run.

    async def run(self) -> None:
        """Runs the job until its end is in the log."""
        if (job := await self.claim()) is None:
            return
        log.info("started job=%s kind=%s attempt=%d continues=%s", self.id, job.kind, job.attempt, job.previous_output is not None)
        producer = asyncio.create_task(self._produce(job))
        try:
            end = await self._publish(job)
        except Cancelled:
            end = CANCELLED
        except TooLarge as error:
            end = failed("bad_output", str(error))
        finally:
            job._stopped.set()
            self.room.set()
            producer.cancel()
            await asyncio.wait({producer}, timeout=STOP_WAIT)
        if end[0] == "job:retrying:v1" and end is not STOPPED:
            end = await self._after_failure(end)
        try:
            await self.log.append(end[0], **end[1])
        except Cancelled:
            end = CANCELLED
            await self.log.append(end[0])
        except TooLarge as error:
            end = failed("bad_output", str(error))
            await self.log.append(end[0], **end[1])
        self._report(end)
        if end[0] == "job:retrying:v1":
            raise GiveBack(end[1]["delay_ms"] / 1000)

    async def _after_failure(self, end: End) -> End:
        """How an attempt ends that asks for another one."""
        fields = end[1]
        if await ask(self._is_exhausted):
            return failed("attempts_exhausted", f"no attempt succeeded; the last one: {fields['message']}")
        pause = min(self.worker.retry_delay * 2 ** (self.log.attempt - 1), PAUSE_MAX)
        pause = min(fields.get("delay_ms", pause * 1000) / 1000, RETRY_AFTER_MAX, max(0, self.end - time.time()))
        return retrying(fields["code"], fields["message"], pause)

    def _report(self, end: End) -> None:
        type, fields = end
        what, code, reason = OUTCOMES[type], fields.get("code"), fields.get("message")
        if type == "job:retrying:v1" and code == "handed_back":
            what = "handed back"
        elif end == CANCELLED:
            code, reason = "cancelled", "the job was cancelled"
        self.report(what, code, reason)

    def report(self, what: str, code: str | None, reason: str | None) -> None:
        """One line that says how the attempt ended, and why."""
        level = logging.WARNING if what in ("failed", "to be retried", "superseded") else logging.INFO
        log.log(
            level,
            "%s job=%s kind=%s attempt=%d code=%s reason=%r duration=%.3fs",
            *(what, self.id, self.worker.kind, self.log.attempt, code, reason),
            time.monotonic() - self.began,
        )

    async def _produce(self, job: Job) -> None:
        """Runs the function to its end, and queues what it yields."""
        try:
            made = await self._call(job)
            if inspect.isasyncgen(made):
                async for piece in made:
                    await self._put(piece)
            elif inspect.isgenerator(made):
                await self._produce_in_thread(job, made)
            else:
                whole = await made if inspect.isawaitable(made) else made
                if whole is not None:
                    await self._put(whole)
            fields = {"finish_reason": job.finish_reason}
            if job.usage is not None:
                fields["usage"] = job.usage
            json.dumps(fields, allow_nan=False)  # Fails here, in the function, if the usage is not JSON.
            self.result = "job:done:v1", fields
        except Retry as error:
            self.result = retrying(error.code, str(error), error.after)
        except Failed as error:
            self.result = failed(error.code, str(error))
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            self.result = failed("exception", f"{type(error).__name__}: {error}")
        self.news.set()

    async def _call(self, job: Job) -> Any:
        """Calls the function. One that is neither asynchronous nor a generator runs here to its end, and may block."""
        run = self.worker.run
        if any(is_such(run) for is_such in (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)):
            return run(job)
        return await asyncio.get_running_loop().run_in_executor(self.threads, run, job)

    async def _produce_in_thread(self, job: Job, made: Any) -> None:
        """Runs a generator that blocks its thread, piece by piece. Once the attempt is over, the generator is closed in its thread:
        GeneratorExit is raised at its `yield`."""
        loop, done = asyncio.get_running_loop(), object()

        def step() -> Any:
            piece = next(made, done)
            if job.cancelled:
                made.close()
            return piece

        def close() -> None:
            with suppress(ValueError):  # It still runs, and is closed after its next piece.
                made.close()

        try:
            while (piece := await loop.run_in_executor(self.threads, step)) is not done:
                await self._put(piece)
        except asyncio.CancelledError:
            self.threads.submit(close)
            raise

    async def _put(self, piece: Any) -> None:
        if isinstance(piece, str):
            self._queue("output", piece)
        elif isinstance(piece, Reasoning):
            self._queue("reasoning", piece.text)
        elif isinstance(piece, Data):
            # As text: the function may change the value later. Fails here, in the function, if it is not JSON.
            text = json.dumps(piece.value, allow_nan=False)
            self.pieces.append(("data", text))
            self.pending += len(text)
        else:
            raise TypeError(f"yield a str, Reasoning or Data, not {type(piece).__name__}")
        self.heard = time.time()
        self.news.set()
        while self.pending > PENDING_MAX:  # The log is slower than the function.
            self.room.clear()
            await self.room.wait()

    def _queue(self, channel: str, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        if self.pieces and self.pieces[-1][0] == channel and len(self.pieces[-1][1]) < TEXT_MAX:
            self.pieces[-1] = channel, self.pieces[-1][1] + text
        elif text:
            self.pieces.append((channel, text))
        self.pending += len(text.encode("utf-8", "surrogatepass"))

    # -- Publish.

    async def _publish(self, job: Job) -> End:
        """Publishes what the function yields. Returns the attempt's last event."""
        looked = self.heard = time.time()
        flushed = 0.0
        while True:
            self.news.clear()
            now, look_at, silent_at = time.time(), looked + self.ack_wait * 2 / 3, self.heard + self.silence
            if not self.result and (self.stopping or now >= min(self.end, silent_at)):
                return STOPPED if self.stopping else LATE if now >= self.end else SILENT
            is_urgent = self.result or self.pending >= self.worker.flush_bytes or any(kind == "data" for kind, _ in self.pieces)
            flush_at = flushed if is_urgent else flushed + self.worker.flush_interval
            if self.pieces and now >= flush_at:
                await self._flush()
                flushed = looked = self.heard = time.time()
            elif self.result and not self.pieces:
                return self.result
            elif self.look or now >= look_at:  # A control signal says "look at the log". It can be lost.
                self.look = False
                asked, self.asked = self.asked, []
                await self.log.check()
                looked = now
                for reply in asked:  # Another process asks whether we are alive.
                    with suppress(*NO_ANSWER):
                        await self.broker.client.publish(reply, json.dumps({"attempt": self.log.attempt}).encode())
            else:
                wake_at = min(self.end, silent_at, look_at, flush_at if self.pieces else FOREVER)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.news.wait(), wake_at - now)

    async def _flush(self) -> None:
        """Publishes the first piece."""
        kind, piece = self.pieces.popleft()
        if kind == "data":
            self.pending -= len(piece)
            await self.log.append("job:data:v1", data=json.loads(piece))
        else:
            text, rest = split(piece)
            if rest:
                self.pieces.appendleft((kind, rest))
            self.pending -= len(text.encode("utf-8", "surrogatepass"))
            await self.log.append("model:chunk:v1", text=text, channel=kind)
        if self.pending <= PENDING_MAX:
            self.room.set()

    # -- The queue, and other workers.

    async def keep(self) -> None:
        """Reports progress; otherwise the queue delivers the job to another worker."""
        while True:
            await asyncio.sleep(self.ack_wait / 3)
            sent = time.time()
            with suppress(*NO_ANSWER):
                await self.broker.client.request(self.message.reply, b"+WPI", timeout=self.ack_wait / 3)
                self.kept = sent if sent - self.kept < self.ack_wait else 0

    def redelivered(self, message: Any) -> None:
        """The queue has not heard from us for too long, and delivers a job that we still run."""
        self.message, self.kept = message, time.time()

    def owns_delivery(self) -> bool:
        """Whether the queue cannot have delivered the job to another worker yet."""
        return time.time() - self.kept < self.ack_wait * 3 / 4

    async def signal(self, message: Any) -> None:
        """Looks at the log soon."""
        self.look = True
        # The sender chooses the reply subject, and may not publish everywhere where this worker may, for example to the job's log.
        if message.reply == f"{self.broker.prefix}.alive.{self.id}":
            self.asked.append(message.reply)
        self.news.set()

    def stop(self) -> None:
        """Hands the job back."""
        self.stopping = True
        self.news.set()


def split(text: str) -> tuple[str, str]:
    """The first part of a text that fits into an event, and the rest. A surrogate pair is not split."""
    at = TEXT_MAX
    if len(text) > at and "\ud800" <= text[at - 1] <= "\udbff":
        at -= 1
    # The other half may still come.
    if len(text) <= at and len(text) > 1 and "\ud800" <= text[-1] <= "\udbff":
        at = len(text) - 1
    return text[:at], text[at:]
