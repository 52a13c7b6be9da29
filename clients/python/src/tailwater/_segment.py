"""Segments: copies of consecutive events of a job in one message, so that a late reader needs few messages. `Segment` in Rust
(src/wire/segment.rs) has the same form, and tests/cases/segments.json the cases that both are tested with. No I/O."""

from __future__ import annotations

import hashlib

#: How many events a segment has, unless the job ends before.
EVENTS = 64
#: The largest segment, in bytes. The events of a larger one are read from the log.
BYTES_MAX = 128 * 1024
#: Room for everything before the events, and for the numbers between them.
HEAD_MAX = 64 + 20 * EVENTS
VERSION = b"\x01"
#: The digest of a segment that is not known.
UNKNOWN = bytes(32)


class Segment:
    """A segment that is being written, after the one whose digest is `base` and whose last event is at the stream sequence `base_at`."""

    def __init__(self, job: str, first: int = 1, base: bytes = UNKNOWN, base_at: int = 0) -> None:
        self.job, self.first, self.base, self.base_at = job, first, base, base_at
        self.count = self.last_at = 0
        # The stored form of the events. None if they are too large.
        self.events: bytearray | None = bytearray()
        name = job.encode()
        self.hash = hashlib.sha256(VERSION + u64(len(name)) + name + base + u64(base_at) + u64(first))

    @property
    def number(self) -> int:
        """Counts from 0."""
        return (self.first - 1) // EVENTS

    @property
    def next_seq(self) -> int:
        """The sequence number of the next event."""
        return self.first + self.count

    def digest_with(self, data: bytes) -> bytes:
        """The digest, if the next event is this one and completes the segment."""
        # Without the stream sequence, which is not known when the event is published with the digest.
        hash = self.hash.copy()
        hash.update(u64(len(data)) + data)
        return hash.digest()

    def push(self, at: int, data: bytes) -> None:
        """Adds the next event, as stored at this stream sequence."""
        self.hash.update(u64(len(data)) + data + u64(at))
        if self.events is not None and len(self.events) + len(data) <= BYTES_MAX - HEAD_MAX:
            self.events += varint(at - self.last_at) + varint(len(data)) + data
        else:
            self.events = None
        self.count += 1
        self.last_at = at

    def complete(self, at: int, data: bytes) -> tuple[bytes | None, Segment]:
        """Adds the last event. Returns the segment's stored form, unless it is too large, and the next segment."""
        digest = self.digest_with(data)
        self.push(at, data)
        stored = None
        if self.events is not None:
            stored = VERSION + self.base + varint(self.base_at) + varint(self.first) + varint(self.count) + self.events
        return stored, Segment(self.job, self.next_seq, digest, at)


def first_of_segment(seq: int) -> int:
    """The first event of the segment that an event belongs to."""
    return (seq - 1) // EVENTS * EVENTS + 1


def completes_segment(seq: int, is_end: bool) -> bool:
    """Whether an event is the last one of its segment: the 64th, or the job's final event."""
    return is_end or seq % EVENTS == 0


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def varint(number: int) -> bytes:
    """LEB128, as in Protocol Buffers."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


__all__ = ["UNKNOWN", "Segment", "completes_segment", "first_of_segment"]
