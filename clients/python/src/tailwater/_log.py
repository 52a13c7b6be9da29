"""A job's log, of which this worker is or becomes the only writer: the broker refuses every other one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from nats.js.errors import NotFoundError

from ._broker import NO_ANSWER, Broker, Event, ask, decode, encode

#: The error of a cluster that is still storing an earlier publish to the subject.
IN_FLIGHT = 10164


class Lost(Exception):
    """Another worker has the job, or it has ended: stop, and ack nothing."""


class Cancelled(Exception):
    """The log ends with a request to cancel the job."""


class TooLarge(Exception):
    """The event is too large for any log."""


class JobLog:
    """A job's log, and where it ends."""

    def __init__(self, broker: Broker, job: str) -> None:
        self.broker, self.job = broker, job
        self.stream, self.subject = broker.of_job(job)
        self.stream_seq = 0
        self.seq = 0
        self.attempt = 0
        self.last: Event | None = None

    async def append(self, type: str, **fields: Any) -> None:
        """Appends an event. Every call is awaited, so at most one is in flight."""
        ts, pause = time.time_ns() // 10**6, 0.01
        event = {"type": type, "job": self.job, "seq": self.seq + 1, "attempt": self.attempt, "ts": ts, **fields}
        data = encode(event)
        if len(data) > self.broker.event_max():
            raise TooLarge(f"the event {type} is too large: it has {len(data)} bytes")
        while True:
            # Refused unless the log still ends there.
            fence = {"Nats-Expected-Last-Subject-Sequence": str(self.stream_seq)}
            try:
                stored = await self.broker.js.publish(self.subject, data, headers=fence)
                return self.advance(stored.seq, event)
            except NO_ANSWER as error:  # Refused, or it is unknown whether it was stored: the log shows it.
                if getattr(error, "err_code", None) != IN_FLIGHT and await self.check(data):
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    def advance(self, stream_seq: int, event: Event) -> None:
        """The log ends with this event, at this stream sequence."""
        self.stream_seq, self.seq, self.attempt, self.last = stream_seq, event["seq"], event["attempt"], event

    async def read_last(self) -> Any:
        """The last message, from the stream's leader: a replica may be behind."""
        return await ask(self.broker.js.get_last_msg, self.stream, self.subject)

    async def check(self, data: bytes | None = None) -> bool:
        """Whether the log ends with `data`, which we published. Raises if another client has written."""
        message = await self.read_last()
        if message is None or message.seq == self.stream_seq:
            # All events have expired; sequence numbers continue.
            self.stream_seq = message.seq if message else 0
            return False
        event = decode(message.data)
        cancelled = event["type"] == "job:cancel-requested:v1" and event["attempt"] == self.attempt
        if message.data != data and not cancelled:
            raise Lost
        self.advance(message.seq, event)
        if cancelled:
            raise Cancelled
        return True

    async def events(self) -> list[Event]:
        """All events that the log holds."""
        return [event async for event in self._read()]

    async def _read(self) -> AsyncIterator[Event]:
        # Single reads, because a worker's user in NATS may not create a consumer of its own choice.
        stream_seq = 0
        while True:
            try:
                message = await self.broker.js.get_msg(self.stream, stream_seq + 1, self.subject, next=True)
            except NotFoundError:  # After the last event.
                return
            stream_seq = message.seq or 0
            yield decode(message.data or b"")


def previous_output(events: list[Event]) -> str | None:
    """The output of the attempts so far, as clients show it. None if the log does not hold all of it."""
    text: list[str] = []
    is_whole = bool(events) and events[0]["seq"] == 1
    for event in events:
        if event["type"] == "job:started:v1" and not event.get("continues"):
            text.clear()
            is_whole = True
        elif event["type"] == "model:chunk:v1" and event.get("channel", "output") == "output":
            text.append(event["text"])
    return "".join(text) if is_whole else None


__all__ = ["Cancelled", "JobLog", "Lost", "TooLarge", "previous_output"]
