"""Settings of a worker and of its connection. No I/O."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from ._job import Job, Output

#: A worker's function: an asynchronous generator, a generator, or a function that returns the whole output.
Run = Callable[[Job], Union[AsyncIterator[Output], Iterator[Output], Awaitable[Union[Output, None]], Output, None]]


@dataclass(frozen=True)
class Worker:
    """A function that runs jobs of one kind, and how. Times are in seconds. `@worker` makes it."""

    run: Run
    kind: str
    #: How many jobs to run at a time.
    concurrency: int = 16
    #: How many attempts a job has before it fails.
    max_attempts: int = 5
    #: The pause after the first failed attempt; doubles up to a minute.
    retry_delay: float = 1.0
    #: Time limits of all jobs of this worker; a job can ask for less.
    timeout: float | None = None
    silence_timeout: float | None = None
    #: Whether the function can continue the output of an earlier attempt.
    continues: bool = False
    #: The shortest time between two chunks of a job; the first goes out at once.
    flush_interval: float = 0.1
    #: How many bytes of text are published without waiting for the interval.
    flush_bytes: int = 4096
    #: How long a worker may be silent before its jobs go to another one. The kind's first worker fixes it.
    ack_wait: float = 8.0
    #: How long running jobs may go on after SIGTERM, before they are handed to another worker.
    grace: float = 10.0

    def __call__(self, job: Job) -> Any:
        return self.run(job)


@dataclass(frozen=True)
class Nats:
    """How to reach the broker. `Nats.from_env()` reads the same variables as `tailwater worker`."""

    url: str = "nats://127.0.0.1:4222"
    prefix: str = "tw"
    #: A credentials file as `nsc` writes it, or a file with the seed of an nkey. Both need `pip install tailwater[nkeys]`.
    creds: str | None = None
    nkey: str | None = None
    #: A file with `user:password`, or a token.
    login: str | None = None
    #: A certificate authority, and a client certificate with its key, in PEM.
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @classmethod
    def from_env(cls) -> Nats:
        """The settings of the variables TAILWATER_NATS, TAILWATER_PREFIX, TAILWATER_NATS_CREDS and so on."""

        def of(name: str) -> str | None:
            return os.environ.get(f"TAILWATER_{name}") or None

        return cls(
            url=of("NATS") or cls.url,
            prefix=of("PREFIX") or cls.prefix,
            creds=of("NATS_CREDS"),
            nkey=of("NATS_NKEY"),
            login=of("NATS_LOGIN"),
            ca=of("NATS_CA"),
            cert=of("NATS_CERT"),
            key=of("NATS_KEY"),
        )

    def options(self) -> dict[str, Any]:
        """The options of `nats.connect`."""
        options: dict[str, Any] = {"servers": self.url.split(",")}
        if self.creds:
            options["user_credentials"] = self.creds
        if self.nkey:
            options["nkeys_seed"] = self.nkey
        if self.login:
            user, has_password, password = Path(self.login).read_text().strip().partition(":")
            options.update({"user": user, "password": password} if has_password else {"token": user})
        if self.ca or self.cert:
            tls = ssl.create_default_context(cafile=self.ca)
            if self.cert:
                tls.load_cert_chain(self.cert, self.key)
            options["tls"] = tls
        return options
