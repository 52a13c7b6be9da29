"""Durable job streams over NATS: run jobs, and follow them.

A worker is one function. It gets a job and yields the job's output in pieces::

    from tailwater import serve, worker

    @worker(kind="shout", concurrency=8)
    async def shout(job):
        for word in job.input.split():
            yield word.upper() + " "

    serve(shout)

A client submits jobs and follows them through an edge::

    from tailwater import Client

    async with Client("http://127.0.0.1:4000") as client:
        job = await client.submit("shout", "any text")
        async for event in client.watch(job):
            print(event.type, event.text)
"""

from ._client import Client, ClientError, Event, Missing, Result
from ._job import Data, Failed, Job, Output, Reasoning, Retry
from ._serve import serve, serve_until, worker
from ._settings import Nats, Worker

__all__ = [
    "Client",
    "ClientError",
    "Data",
    "Event",
    "Failed",
    "Job",
    "Missing",
    "Nats",
    "Output",
    "Reasoning",
    "Result",
    "Retry",
    "Worker",
    "serve",
    "serve_until",
    "worker",
]
