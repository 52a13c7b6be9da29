"""What a worker's function gets, yields and raises. No I/O."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import Any, Union


@dataclass(frozen=True)
class Reasoning:
    """Text of the channel `reasoning`."""

    text: str


@dataclass(frozen=True)
class Data:
    """Output that is not text: any JSON value."""

    value: Any


#: What a worker's function yields. A `str` is text of the answer.
Output = Union[str, Reasoning, Data]


class Retry(Exception):
    """Raised by a worker's function: another attempt may succeed, after this many seconds.

    Without `after`, the worker waits 1 s after the first attempt, then 2, 4, … up to a minute."""

    def __init__(self, message: str = "try again", *, after: float | None = None, code: str = "retry") -> None:
        super().__init__(message)
        if after is not None and not 0 <= after < math.inf:
            raise ValueError(f"a pause has 0 or more seconds, not {after}")
        self.after, self.code = after, _free(code)


class Failed(Exception):
    """Raised by a worker's function: the job fails with this message and code.

    Any other exception does the same, with the code `exception` and its own text."""

    def __init__(self, message: str, *, code: str = "failed") -> None:
        super().__init__(message)
        self.code = _free(code)


def _free(code: str) -> str:
    """A code that a function may choose."""
    if code == "handed_back":
        raise ValueError("the code handed_back is the worker's own: such an attempt would not count")
    return code


@dataclass
class Job:
    """A job, as a worker's function gets it."""

    id: str
    kind: str
    input: Any
    #: Counts from 1.
    attempt: int
    #: The output of earlier attempts, which this one continues. Only for a worker with `continues=True`, and only if the log still
    #: holds all of it.
    previous_output: str | None = None
    #: What the job cost, in any form. Set it before the function returns; it is part of the job's final event.
    usage: Any = None
    #: Why the function stopped, for example `stop` or `length`.
    finish_reason: str = "stop"
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def cancelled(self) -> bool:
        """Whether the attempt is over: the job was cancelled, exceeded a time limit, or another worker has it.

        An asynchronous function need not ask: its `await` raises `asyncio.CancelledError` then."""
        return self._stopped.is_set()
