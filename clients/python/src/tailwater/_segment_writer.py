"""Writes the segments of a job's log beside it: the owner of the job does, after each 64th event and after the last one. Losing a
segment loses nothing, so no error here fails a job."""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress
from typing import Any

from nats.js.errors import NotFoundError

from ._broker import FENCE, NO_ANSWER, REQUEST_WAIT, Broker, base64url, event_of, expected_last
from ._segment import UNKNOWN, Segment, completes_segment, first_of_segment

#: The header of an event that completes a segment: the segment's digest. It proves the segment.
DIGEST = "Tailwater-Segment"


class SegmentWriter:
    """Follows the events that the owner of a job appends, after the log's last one: `data`, at the stream sequence `at`."""

    def __init__(self, broker: Broker, job: str, seq: int = 0, at: int = 0, data: bytes = b"") -> None:
        self.broker, self.job = broker, job
        self.stream, self.subject = broker.of_job(job)
        # None while earlier events of the current segment are not known.
        self.segment: Segment | None = Segment(job) if seq <= 1 else None
        if self.segment and seq == 1:
            self.segment.push(at, data)

    async def headers(self, seq: int, at: int, data: bytes, is_end: bool) -> dict[str, str]:
        """The headers of the event after the last one, which is `seq`, at `at`: the digest of a segment that it completes."""
        if not completes_segment(seq + 1, is_end):
            return {}
        if self.segment is None:
            with suppress(*NO_ANSWER):
                self.segment = await asyncio.wait_for(self._read_back(seq, at), REQUEST_WAIT)
        return {DIGEST: base64url(self.segment.digest_with(data))} if self.segment else {}

    async def stored(self, seq: int, at: int, data: bytes, is_end: bool) -> None:
        """Adds an event that was stored. Publishes the segment that it completes."""
        completes = completes_segment(seq, is_end)
        if self.segment is None or self.segment.next_seq != seq:
            self.segment = Segment(self.job, seq + 1) if completes else None
        elif completes:
            number = self.segment.number
            segment, self.segment = self.segment.complete(at, data)
            if segment is not None:
                await self._publish(number, segment)
        else:
            self.segment.push(at, data)

    async def _publish(self, number: int, segment: bytes) -> None:
        """Publishes a segment, unless there is one with its number. Waits for no answer: if it is lost, readers read the log."""
        with suppress(*NO_ANSWER):
            await self.broker.client.publish(self.broker.segment(self.job, number), segment, headers={FENCE: "0"})

    async def _read_back(self, seq: int, at: int) -> Segment | None:
        """The segment that the next event belongs to, with its events up to the last one, which is `seq` at `at`. None if the broker
        did not confirm what precedes one of them."""
        first = first_of_segment(seq + 1)
        events: list[tuple[int, bytes]] = []
        while seq >= first:
            message = await self._event_at(seq, at)
            before = expected_last(message) if message else None
            if before is None:
                return None
            events.append((at, message.data))
            seq, at = seq - 1, before
        segment = Segment(self.job, first, *await self._base(seq, at))
        for at, data in reversed(events):
            segment.push(at, data)
        return segment

    async def _base(self, seq: int, at: int) -> tuple[bytes, int]:
        """The digest of the segment that ends with this event, if it is known, and the event's stream sequence."""
        message = await self._event_at(seq, at) if seq and at else None
        text = ((message.headers or {}) if message else {}).get(DIGEST, "")
        with suppress(ValueError):  # Whatever another publisher has stored.
            digest = base64.urlsafe_b64decode(text + "=")
            if len(digest) == len(UNKNOWN):
                return digest, at
        return UNKNOWN, 0

    async def _event_at(self, seq: int, at: int) -> Any:
        """The message with an event of the job. None if it is not there."""
        try:
            message = await self.broker.js.get_msg(self.stream, at)
        except NotFoundError:
            return None
        event = event_of(self.job, message.data or b"") if message.subject == self.subject else None
        return message if event and event["seq"] == seq else None


__all__ = ["SegmentWriter"]
