"""A client of an edge: submits and cancels jobs, and follows them, over WebSocket.

Each watch has a connection of its own, so that a slow reader of one job delays no other. A connection that breaks is opened again
and resumes after the last event: each event arrives once and in order."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

#: Close codes after which a client should connect again.
RECONNECT = {1000, 1001, 1006, 1011, 1012, 1013}
#: Codes that the same request may not meet again.
TEMPORARY = {"unavailable", "overloaded", "restarting", "queue_full", "rate_limited", "too_many_requests", "timeout", "internal"}
#: The final events of a job, and the status that they mean.
ENDS = {"job:done:v1": "done", "job:failed:v1": "failed", "job:cancelled:v1": "cancelled"}
#: The pauses before another try, in seconds; doubled each time.
PAUSE_FIRST, PAUSE_MAX = 0.02, 2.0
#: The largest message of an edge is an event of about 1 MiB, which JSON may lengthen.
MESSAGE_MAX = 1 << 24
#: How often the connection is checked, in seconds, and how long its answer may take.
PING_EVERY, PING_WAIT = 20, 20


class ClientError(Exception):
    """An edge refused a request. `code` is stable: see the table in PROTOCOL.md."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code, self.message = code, message

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in TEMPORARY


@dataclass(frozen=True)
class Event:
    """An event of a job's log."""

    type: str
    job: str
    #: The event's number in the job's log, from 1, without gaps.
    seq: int
    attempt: int
    #: When it was written, in milliseconds since the Unix epoch.
    ts: int
    #: Names this event: pass it to `watch` to continue after it.
    cursor: str
    #: All fields of the event.
    fields: dict[str, Any] = field(repr=False)

    @property
    def text(self) -> str:
        """The text of a chunk; empty for any other event."""
        text: str = self.fields.get("text", "") if self.type == "model:chunk:v1" else ""
        return text

    @property
    def channel(self) -> str:
        """`output` or `reasoning`, for a chunk."""
        channel: str = self.fields.get("channel", "output")
        return channel

    @property
    def data(self) -> Any:
        """The value of an event with data."""
        return self.fields.get("data")

    @property
    def is_end(self) -> bool:
        """Whether no event follows."""
        return self.type in ENDS


@dataclass(frozen=True)
class Missing:
    """Events of a job that have expired: all numbers from `first` to `last`."""

    job: str
    first: int
    last: int
    reason: str


@dataclass
class Result:
    """How a job ended, and its output."""

    job: str
    status: str
    output: str = ""
    reasoning: str = ""
    data: list[Any] = field(default_factory=list)
    attempt: int = 0
    #: The code and the message of a failed job.
    code: str | None = None
    message: str | None = None
    usage: Any = None
    finish_reason: str | None = None
    #: Whether some of the output has expired.
    truncated: bool = False


class Client:
    """A client of the edge at `url`. `token` identifies it, if the edge requires that; `patience` is how long, in seconds, it keeps
    trying to reach an edge."""

    def __init__(self, url: str = "http://127.0.0.1:4000", *, token: str | None = None, patience: float = 60.0) -> None:
        self._address, self._token, self._patience = _address(url), token, patience
        self._requests: _Requests | None = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection of requests. Watches close their own."""
        if self._requests:
            await self._requests.close()
            self._requests = None

    async def submit(
        self,
        kind: str,
        input: Any = None,
        *,
        id: str | None = None,
        timeout: float | None = None,
        silence_timeout: float | None = None,
        callback: str | None = None,
    ) -> str:
        """Submits a job; returns its id. Without an `id` one is made, so that a submission that is repeated after a broken connection
        is the same job. The times are in seconds."""
        frame: dict[str, Any] = {"op": "submit", "kind": kind, "input": input, "id": id or f"{kind}:{uuid.uuid4().hex}"}
        for name, seconds in (("timeout_ms", timeout), ("silence_timeout_ms", silence_timeout)):
            if seconds is not None:
                frame[name] = round(seconds * 1000)
        if callback is not None:
            frame["callback"] = callback
        job: str = (await self._request(frame))["job"]
        return job

    async def cancel(self, job: str) -> int:
        """Requests that a job is cancelled; returns the number of the event that requests it. Raises `ClientError` with the code
        `job_ended` or `job_not_found` if it cannot be."""
        seq: int = (await self._request({"op": "cancel", "job": job}))["seq"]
        return seq

    async def wait(self, job: str) -> Result:
        """Waits until a job has ended, and returns its output."""
        result = Result(job, "running")
        async for event in self.watch(job):
            if isinstance(event, Missing):
                result.truncated = True
            elif event.type == "job:started:v1":
                result.attempt = event.attempt
                if not event.fields.get("continues"):
                    result.output, result.reasoning, result.data = "", "", []
                    result.truncated = False
            elif event.type == "model:chunk:v1" and event.channel == "reasoning":
                result.reasoning += event.text
            elif event.type == "model:chunk:v1":
                result.output += event.text
            elif event.type == "job:data:v1":
                result.data.append(event.data)
            elif event.is_end:
                result.status = ENDS[event.type]
                for name in ("code", "message", "usage", "finish_reason"):
                    setattr(result, name, event.fields.get(name))
        return result

    async def watch(self, job: str, *, cursor: str | None = None, after: int | None = None) -> AsyncIterator[Event | Missing]:
        """The events of a job, stored and new, until it has ended; from the first one, or after a `cursor` or number. The job need
        not exist yet. Raises `ClientError` with the code `cursor_not_in_log` if the log was lost: then start from the first event."""
        retries = _Retries(self._patience)
        while True:
            try:
                async with self._connect() as connection:
                    start = {"cursor": cursor} if cursor else {"after": after or 0}
                    await connection.send(json.dumps({"op": "watch", "job": job, **start}))
                    async for message in connection:
                        frame = json.loads(message)
                        op = frame.get("op")
                        if op == "end":
                            return
                        if op == "missing":
                            after, cursor = frame["to"], None
                            yield Missing(job, frame["from"], frame["to"], frame["reason"])
                        elif op == "error":
                            raise ClientError(frame["code"], frame["message"])
                        elif op is None:
                            retries.reset()
                            cursor = frame["cursor"]
                            yield _event(frame)
                        elif op in ("watching", "live"):
                            retries.reset()
                    retries.closed(connection)
            except (ClientError, OSError, InvalidHandshake, ConnectionClosed) as error:
                retries.failed(error)
            await retries.pause()

    def _connect(self) -> connect:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
        return connect(
            self._address,
            additional_headers=headers,
            max_size=MESSAGE_MAX,
            ping_interval=PING_EVERY,
            ping_timeout=PING_WAIT,
            open_timeout=self._patience,
            # The library would try again by itself only when it iterates.
            process_exception=lambda error: error,
        )

    async def _request(self, frame: dict[str, Any]) -> dict[str, Any]:
        retries = _Retries(self._patience)
        while True:
            try:
                async with self._lock:
                    if self._requests is None or self._requests.is_closed:
                        self._requests = await _Requests.open(self._connect())
                    requests = self._requests
                return await requests.ask(frame)
            except (ClientError, OSError, InvalidHandshake, ConnectionClosed) as error:
                retries.failed(error)
            await retries.pause()


class _Requests:
    """A connection for requests. Answers carry the `ref` of their request."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, connecting: connect) -> _Requests:
        return cls(await connecting)

    @property
    def is_closed(self) -> bool:
        return self.reader.done()

    async def ask(self, frame: dict[str, Any]) -> dict[str, Any]:
        ref = uuid.uuid4().hex
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.waiting[ref] = answer
        try:
            await self.connection.send(json.dumps({**frame, "ref": ref}))
            found = await answer
        finally:
            self.waiting.pop(ref, None)
        if found["op"] == "error":
            raise ClientError(found["code"], found["message"])
        return found

    async def close(self) -> None:
        await self.connection.close()
        await asyncio.wait({self.reader})

    async def _read(self) -> None:
        try:
            async for message in self.connection:
                frame = json.loads(message)
                answer = self.waiting.get(frame.get("ref", ""))
                if answer and not answer.done():
                    answer.set_result(frame)
        except ConnectionClosed:
            pass
        finally:
            for answer in self.waiting.values():
                if not answer.done():
                    answer.set_exception(ConnectionError("the connection was closed before the answer"))


class _Retries:
    """When to try again."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.reset()

    def reset(self) -> None:
        """The last try succeeded."""
        self.wait, self.since = PAUSE_FIRST, asyncio.get_running_loop().time()

    def closed(self, connection: ClientConnection) -> None:
        """Raises if the edge closed the connection for good."""
        if connection.close_code not in RECONNECT:
            raise ClientError(connection.close_reason or "closed", f"the edge closed the connection with {connection.close_code}")

    def failed(self, error: Exception) -> None:
        """Raises if trying again is useless, or was tried for long enough."""
        if isinstance(error, InvalidStatus):
            error = _problem(error)
        elif isinstance(error, InvalidHandshake):  # It broke meanwhile, or a proxy answered.
            error = ConnectionError(str(error))
        if isinstance(error, ConnectionClosed) and (error.rcvd is None or error.rcvd.code in RECONNECT):
            error = ConnectionError("the connection broke")
        is_final = not (error.is_temporary if isinstance(error, ClientError) else isinstance(error, OSError))
        if is_final or asyncio.get_running_loop().time() - self.since > self.patience:
            raise error

    async def pause(self) -> None:
        await asyncio.sleep(self.wait * random.uniform(0.5, 1))
        self.wait = min(self.wait * 2, PAUSE_MAX)


def _event(frame: dict[str, Any]) -> Event:
    own = {name: frame[name] for name in ("type", "job", "seq", "attempt", "ts", "cursor")}
    return Event(**own, fields=frame)


def _problem(error: InvalidStatus) -> Exception:
    """The error of a refused connection."""
    status = error.response.status_code
    try:
        problem = json.loads(error.response.body or b"")
        return ClientError(problem["code"], problem.get("detail") or problem["title"])
    except (ValueError, KeyError, TypeError):  # Not from an edge, but from a proxy.
        message = f"HTTP status {status}"
        return ConnectionError(message) if status >= 500 else ClientError("http_status", message)


def _address(url: str) -> str:
    """The WebSocket address of an edge."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path.rstrip("/")
    return urlunsplit((scheme, parts.netloc, path if path.endswith("/ws") else f"{path}/ws", parts.query, ""))
