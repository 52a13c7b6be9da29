"""Serves kinds: claims jobs from the queue, runs them, and stops in order."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from nats.js.api import ConsumerConfig

from ._attempt import Attempt, GiveBack, OwnerLives
from ._broker import NO_ANSWER, Broker, ask, encode, log
from ._log import Lost
from ._settings import Nats, Run, Worker

#: How many callbacks may wait. More are dropped.
CALLBACKS_MAX = 20_000
#: The longest id whose callback is named after it, in characters.
CALLBACK_OF_MAX = 63
#: How long one request for a job waits, in seconds.
CLAIM_WAIT = 2
#: How much longer than its grace a worker waits for jobs that it hands back, in seconds.
HAND_BACK_WAIT = 7
#: What these workers do besides running jobs.
FEATURES = "callbacks,limits"


def worker(kind: str, **settings: Any) -> Callable[[Run], Worker]:
    """Makes a worker of a function. The settings are the fields of `Worker`."""
    return lambda run: Worker(run, kind, **settings)


def serve(*workers: Worker, nats: Nats | None = None) -> None:
    """Runs jobs until SIGINT or SIGTERM. `nats` is `Nats.from_env()` by default. Prints a line once each kind is served, and logs to
    stderr unless the program has set up logging."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve_until(stop, *workers, nats=nats, on_ready=lambda kind: print("serves", kind, flush=True))

    asyncio.run(run())


async def serve_until(
    stop: asyncio.Event, *workers: Worker, nats: Nats | None = None, on_ready: Callable[[str], object] | None = None
) -> None:
    """Runs jobs until `stop` is set. Running jobs may go on for the worker's `grace`; then they are handed to another worker.
    `on_ready` is called with each kind that is served."""
    if not workers:
        raise ValueError("no workers are given")
    broker = await Broker.connect(nats or Nats.from_env(), [worker.kind for worker in workers])
    try:
        await asyncio.gather(*(_Server(broker, of).serve(stop, on_ready) for of in workers))
    finally:
        await broker.client.close()


class _Server:
    """Serves one kind."""

    def __init__(self, broker: Broker, of: Worker) -> None:
        self.broker, self.worker = broker, of
        self.ack_wait = of.ack_wait
        self.name = f"python-{os.getpid()}"
        self.running: dict[str, Attempt] = {}
        self.is_stopping = False
        self.threads = ThreadPoolExecutor(of.concurrency, thread_name_prefix=of.kind)

    async def serve(self, stop: asyncio.Event, on_ready: Callable[[str], object] | None) -> None:
        await self._declare()
        slots = {asyncio.create_task(self._serve_one_after_another()) for _ in range(self.worker.concurrency)}
        if on_ready:
            on_ready(self.worker.kind)
        await stop.wait()
        self.is_stopping = True
        _, slots = await asyncio.wait(slots, timeout=self.worker.grace)
        for attempt in self.running.values():
            attempt.stop()
        if slots:
            _, slots = await asyncio.wait(slots, timeout=HAND_BACK_WAIT)
        for slot in slots:  # The queue delivers these jobs again after the ack wait.
            slot.cancel()
        self.threads.shutdown(wait=False, cancel_futures=True)

    async def _declare(self) -> None:
        """Creates the kind as nats/consumers/kind.json declares it, or adds to an existing one what it lacks."""
        queue, kind = self.broker.queue, self.worker.kind
        found = await ask(self.broker.js.consumer_info, queue, kind)
        config = found.config if found else ConsumerConfig(
            name=kind, durable_name=kind, filter_subject=f"{self.broker.prefix}.jobs.{kind}.*",
            ack_wait=self.worker.ack_wait, max_deliver=-1, max_ack_pending=20_000, max_waiting=4096,
        )
        self.ack_wait = config.ack_wait or self.worker.ack_wait
        metadata = config.metadata or {}
        if "tailwater.features" not in metadata:
            metadata["tailwater.features"] = FEATURES
            await ask(self.broker.js.add_consumer, queue, config, metadata=metadata)

    async def _serve_one_after_another(self) -> None:
        jobs = await ask(self.broker.js.pull_subscribe_bind, self.worker.kind, self.broker.queue)
        while not self.is_stopping:
            try:
                [message] = await jobs.fetch(1, timeout=CLAIM_WAIT)
            except NO_ANSWER:  # Nothing to do, or the broker cannot be reached.
                await asyncio.sleep(0.1)
                continue
            try:
                await self._run(message)
            except Exception as error:  # The queue delivers the job again after the ack wait.
                log.warning("abandoned %s after %r", message.subject, error)

    async def _run(self, message: Any) -> None:
        if self.is_stopping:
            await message.nak()
            return
        try:
            attempt = Attempt(self.broker, self.worker, message, self.ack_wait, self.name, self.threads)
        except (ValueError, KeyError, TypeError, AttributeError):
            await message.term()  # Not a job.
            return
        if attempt.id in self.running:
            return self.running[attempt.id].redelivered(message)
        control = await self.broker.client.subscribe(f"{self.broker.prefix}.control.{attempt.id}", cb=attempt.signal)
        self.running[attempt.id] = attempt
        heartbeat = asyncio.create_task(attempt.keep())
        try:
            await attempt.run()
            await self._call_back(attempt)
            await attempt.message.ack_sync()  # Only now: the end is in the log.
        except GiveBack as back:
            if attempt.owns_delivery():  # Otherwise this would give back another worker's delivery.
                await attempt.message.nak(delay=back.seconds)
        except Lost:
            attempt.report("superseded", "superseded", "another worker has the job, or it was purged")
        except OwnerLives:
            log.info("left to its owner, which is alive job=%s kind=%s", attempt.id, self.worker.kind)
        finally:
            heartbeat.cancel()
            del self.running[attempt.id]
            with suppress(*NO_ANSWER):
                await control.unsubscribe()

    async def _call_back(self, attempt: Attempt) -> None:
        """Submits the job that reports the end of this one to the callback address."""
        url, end = attempt.submission.get("callback"), attempt.log.last
        if not url or not end:  # A job that was purged has no end.
            return
        kind = await ask(self.broker.js.consumer_info, self.broker.queue, "callback")
        if kind is None or kind.num_pending + kind.num_ack_pending >= CALLBACKS_MAX:
            log.warning("callback abandoned job=%s: no worker has served the kind callback, or too many wait", attempt.id)
            return
        status = {"job:done:v1": "done", "job:failed:v1": "failed"}.get(end["type"], "cancelled")
        error = {name: end[name] for name in ("code", "message", "retryable")} if status == "failed" else None
        data = {"id": attempt.id, "kind": self.worker.kind, "status": status, "error": error, "ended_at": end["ts"]}
        data.update({name: end.get(name) for name in ("attempt", "seq", "usage", "finish_reason")})
        is_name = ":" not in attempt.id and len(attempt.id) <= CALLBACK_OF_MAX
        id = f"callback:{attempt.id if is_name else hashlib.sha256(attempt.id.encode()).hexdigest()}"
        job = {"job": id, "kind": "callback", "input": {"url": url, "type": f"job.{status}", "data": data}}
        subject = f"{self.broker.prefix}.jobs.callback.{id}"
        try:
            await self.broker.js.publish(subject, encode(job), headers={"Nats-Msg-Id": id})
        except NO_ANSWER:
            if await ask(self.broker.js.get_last_msg, self.broker.queue, subject) is None:  # Otherwise it is queued already.
                raise


__all__ = ["serve", "serve_until", "worker"]
