"""The broker: requests that are repeated until they are answered, and events as the log stores them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import nats
from nats.errors import Error
from nats.js.errors import NotFoundError

from ._settings import Nats

log = logging.getLogger("tailwater")

#: The header with the stream sequence of the last message: the broker refuses the message unless the subject still ends there.
FENCE = "Nats-Expected-Last-Subject-Sequence"
#: The broker refused a request, or did not answer.
NO_ANSWER = (Error, OSError, asyncio.TimeoutError)
#: A message of the log, headers included, has at most 1 MiB.
EVENT_MAX = (1 << 20) - 1024
#: Room for the headers of a message, in bytes.
HEADERS_MAX = 1024
#: How long a request waits for its answer, in seconds.
REQUEST_WAIT = 3
#: How often the connection is checked, in seconds.
PING_EVERY = 4

Event = dict[str, Any]


class Broker:
    """A connection, and the names of streams and subjects."""

    def __init__(self, client: Any, prefix: str, shards: int) -> None:
        self.client, self.js, self.prefix, self.shards = client, client.jetstream(timeout=REQUEST_WAIT), prefix, shards
        self.queue = f"{prefix.upper()}_JOBS"

    @classmethod
    async def connect(cls, settings: Nats, kinds: list[str]) -> Broker:
        async def report(error: Exception) -> None:
            log.warning("NATS: %r", error)

        options = settings.options()
        client = await nats.connect(
            **options,
            # A user in NATS for workers of one kind may read no other inbox.
            inbox_prefix=".".join(["_INBOX", settings.prefix, "worker", *(kinds if len(kinds) == 1 else [])]),
            max_reconnect_attempts=-1,
            ping_interval=PING_EVERY,
            error_cb=report,
            name="tailwater python",
        )
        try:
            info = await ask(client.jetstream(timeout=REQUEST_WAIT).stream_info, f"{settings.prefix.upper()}_JOBS")
            if info is None:
                raise RuntimeError("NATS is not set up. Run `tailwater setup`.")
            return cls(client, settings.prefix, int(info.config.metadata["tailwater.shards"]))
        except BaseException:
            await client.close()
            raise

    def of_job(self, job: str) -> tuple[str, str]:
        """The stream and the subject of a job's log. An id that names its kind, `kind:name`, is two tokens there, so that permissions
        can name the kind."""
        shard = self._shard(job)
        return f"{self.prefix.upper()}_CHUNKS_{shard}", f"{self.prefix}.chunks.{shard}.{job.replace(':', '.')}"

    def segment(self, job: str, number: int) -> str:
        """The subject of a segment of a job's log."""
        return f"{self.prefix}.segments.{self._shard(job)}.{job.replace(':', '.')}.{number}"

    def _shard(self, job: str) -> int:
        return zlib.crc32(job.encode()) % self.shards

    def queued(self, job: str) -> str:
        """The subject of a job in the queue. A plain id may be of any kind; workers may publish to the queue of callbacks under any id."""
        kind, colon, _ = job.partition(":")
        return f"{self.prefix}.jobs.{kind if colon else '*'}.{job}"

    async def is_queued(self, job: str) -> bool:
        """Whether the job waits in the queue or runs: the queue holds a job until it has ended."""
        return await ask(self.js.get_last_msg, self.queue, self.queued(job)) is not None

    async def has_removed(self, job: str, stream_seq: int) -> bool | None:
        """Whether the queue has removed the job that it stored with this stream sequence. None: the server that answered has not
        stored it yet. Followers may be ahead of a slow leader, and deliver jobs before it has them."""
        # One answer for both: two could come from two servers, or from before and after a server stored the job.
        info = await ask(self.js.stream_info, self.queue, self.queued(job))
        if info is None or info.state.last_seq < stream_seq:
            return None
        return not info.state.subjects

    def event_max(self) -> int:
        """The largest event that the log accepts, in bytes."""
        return int(min(EVENT_MAX, self.client.max_payload - HEADERS_MAX))


async def ask(request: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    """Repeats a request until it is answered: a cluster that elects a leader does not answer for some seconds. None means not
    found."""
    pause = 0.05
    while True:
        try:
            return await request(*args, **kwargs)
        except NotFoundError:
            return None
        except NO_ANSWER as error:
            if pause > 1:
                log.warning("NATS has not answered: %r", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2)


def encode(value: Any) -> bytes:
    """A value as JSON. Half a surrogate pair is not a character, and becomes U+FFFD. NaN is refused."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def decode(data: bytes) -> Event:
    event: Event = json.loads(data) if data[:1] == b"{" else msgpack.unpackb(data)
    return event


def event_of(job: str, data: bytes) -> Event | None:
    """A message as an event of this job. None if it is not one."""
    try:
        event = decode(data)
        has_numbers = all(isinstance(event[name], int) for name in ("seq", "attempt", "ts"))
        is_event = has_numbers and event["seq"] > 0 and event["job"] == job and isinstance(event["type"], str)
        return event if is_event else None
    except Exception:  # Whatever another publisher has stored.
        return None


def expected_last(message: Any) -> int | None:
    """The stream sequence that the publisher of a message expected before it, as the broker confirmed. None if it expected none."""
    headers = message.headers or {}
    value = headers.get(FENCE) if f"{FENCE}-Subject" not in headers else None  # Otherwise it is of another subject.
    return int(value) if value is not None and str(value).isdigit() else None


def digest(text: str) -> str:
    return base64url(hashlib.sha256(text.encode()).digest())


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
