"""A job's log, of which this worker is or becomes the only writer: the broker refuses every other one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from ._broker import FENCE, NO_ANSWER, Broker, Event, ask, encode, event_of, expected_last
from ._segment_writer import SegmentWriter

#: The error of a cluster that is still storing an earlier publish to the subject.
IN_FLIGHT = 10164
#: How long a server may answer with less than we know to be stored, in seconds: a leader that was cut off steps down within this
#: time. Later the log was restored from a backup, or has expired.
OLD_LEADER_WAIT = 30
#: The types of a job's final event.
ENDS = ("job:done:v1", "job:failed:v1", "job:cancelled:v1")


class Lost(Exception):
    """Another worker has the job, or it has ended or was purged: stop, and ack nothing."""


class Cancelled(Exception):
    """The log ends with a request to cancel the job."""


class TooLarge(Exception):
    """The event is too large for any log."""


class JobLog:
    """A job's log, and where it ends."""

    def __init__(self, broker: Broker, job: str) -> None:
        self.broker, self.job = broker, job
        self.stream, self.subject = broker.of_job(job)
        # Of the last message, which may be after the last event.
        self.stream_seq = 0
        self.seq = 0
        self.attempt = 0
        self.last: Event | None = None
        # The stream sequence of the last event.
        self.last_at = 0
        self.segments = SegmentWriter(broker, job)
        # Since when servers have answered with less than we know to be stored.
        self.behind_since: float | None = None

    async def append(self, type: str, **fields: Any) -> None:
        """Appends an event. Every call is awaited, so at most one is in flight."""
        ts, pause = time.time_ns() // 10**6, 0.01
        event = {"type": type, "job": self.job, "seq": self.seq + 1, "attempt": self.attempt, "ts": ts, **fields}
        data = encode(event)
        if len(data) > self.broker.event_max():
            raise TooLarge(f"the event {type} is too large: it has {len(data)} bytes")
        headers = await self.segments.headers(self.seq, self.last_at, data, type in ENDS)
        while True:
            # Refused unless the log still ends there.
            headers[FENCE] = str(self.stream_seq)
            try:
                stored = await self.broker.js.publish(self.subject, data, headers=headers)
                return await self._advance(stored.seq, stored.seq, event, data)
            except NO_ANSWER as error:  # Refused, or it is unknown whether it was stored: the log shows it.
                if getattr(error, "err_code", None) != IN_FLIGHT and await self.check(data):
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    async def _advance(self, stream_seq: int, at: int, event: Event, data: bytes) -> None:
        """This event was appended."""
        self._ends_with(stream_seq, at, event)
        await self.segments.stored(self.seq, at, data, event["type"] in ENDS)

    def _ends_with(self, stream_seq: int, at: int, event: Event) -> None:
        """The last event is this one, stored at the stream sequence `at`. The last message has the other one."""
        self.behind_since = None
        self.stream_seq, self.last_at = stream_seq, at
        self.seq, self.attempt, self.last = event["seq"], event["attempt"], event

    async def read_last(self) -> Any:
        """The last message, from the stream's leader: a replica may be behind."""
        return await ask(self.broker.js.get_last_msg, self.stream, self.subject)

    async def open(self) -> bool:
        """Finds the end of the log. False: it has no event yet."""
        message = await self.read_last()
        if message is None:
            return False
        last, event = message, event_of(self.job, message.data)
        if event is None or not await self._is_proven(message, event):
            # Any publisher may store a message that is not an event.
            event = None
            async for last, event in self._read(0, None):
                pass
        if event is None:
            self.stream_seq = message.seq
            return False
        self._ends_with(message.seq, last.seq, event)
        self.segments = SegmentWriter(self.broker, self.job, self.seq, last.seq, last.data)
        return True

    async def check(self, data: bytes | None = None) -> bool:
        """Whether the log ends with `data`, which we published. Raises if another client has written."""
        message = await self.read_last()
        found = message.seq if message else 0
        if found == self.stream_seq:
            self.behind_since = None
            return False
        if found < self.stream_seq:
            # The server may not know yet that it leads no more. Its answer must not end the attempt.
            now = time.monotonic()
            self.behind_since = self.behind_since or now
            if now - self.behind_since < OLD_LEADER_WAIT:
                return False
            # The log of a purged job is as empty as one whose events have all expired.
            if message or not await self.broker.is_queued(self.job):
                raise Lost
            # All events have expired; sequence numbers continue.
            self.stream_seq = 0
            return False
        self.behind_since = None
        last = None
        stored = message
        if message.data == data:
            last = event_of(self.job, message.data)
        else:
            async for stored, last in self._read(self.stream_seq, self.seq):
                pass
        if last is None:  # Other publishers have stored messages that are not events.
            self.stream_seq = found
            return False
        is_ours = data is not None and last == event_of(self.job, data)
        cancelled = last["type"] == "job:cancel-requested:v1" and last["attempt"] == self.attempt
        if not is_ours and not cancelled:
            raise Lost
        await self._advance(found, stored.seq, last, stored.data)
        if cancelled:
            raise Cancelled
        return True

    async def events(self) -> list[Event]:
        """All events that the log holds."""
        return [event async for _, event in self._read(0, None)]

    async def _read(self, stream_seq: int, seq: int | None) -> AsyncIterator[tuple[Any, Event]]:
        """The events after this stream sequence and this sequence number, if that is known. Other messages are skipped."""
        # Single reads, because a worker's user in NATS may not create a consumer of its own choice.
        has_ended = False
        while True:
            message = await ask(self.broker.js.get_msg, self.stream, stream_seq + 1, self.subject, next=True)
            if message is None:  # After the last event.
                return
            stream_seq = message.seq or 0
            event = event_of(self.job, message.data or b"")
            if event is None or has_ended:
                continue
            # The first events may have expired.
            if event["seq"] == (1 if seq is None else seq + 1) or seq is None and expected_last(message):
                seq, has_ended = event["seq"], event["type"] in ENDS
                yield message, event

    async def _is_proven(self, message: Any, event: Event) -> bool:
        """Whether the last message follows the event before it: its publisher expected that one."""
        before = expected_last(message)
        if before is None:
            return False
        if before == 0:
            return bool(event["seq"] == 1)
        previous = await ask(self.broker.js.get_msg, self.stream, before)
        if previous is None:  # It has expired.
            return bool(event["seq"] > 1)
        known = event_of(self.job, previous.data or b"") if previous.subject == self.subject else None
        return known is not None and known["type"] not in ENDS and event["seq"] == known["seq"] + 1


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


__all__ = ["ENDS", "Cancelled", "JobLog", "Lost", "TooLarge", "previous_output"]
