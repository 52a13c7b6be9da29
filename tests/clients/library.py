"""Uses the client of clients/python, and prints what it got, one JSON object a line.

The argument is {"library": folder, "url": edge, "do": "requests" | "watch" | "unreachable", "job": id}.
"""

import asyncio, dataclasses, json, sys

given = json.loads(sys.argv[1])
sys.path.insert(0, given["library"])

from tailwater import Client, ClientError


def say(value):
    print(json.dumps(value), flush=True)


async def requests(client):
    async def run(input, **limits):
        job = await client.submit("demo", input, **limits)
        say(dataclasses.asdict(await client.wait(job)))
        return job

    await run("parts")
    await run("raise")
    hanging = await client.submit("demo", "hang")
    async for event in client.watch(hanging):
        if event.text:
            assert await client.cancel(hanging) == event.seq + 1
    say(dataclasses.asdict(await client.wait(hanging)))
    ended = await run("hang", timeout=1)
    for refused in (client.cancel(ended), client.submit("nobody", None)):
        try:
            await refused
        except ClientError as error:
            say({"error": error.code, "is_temporary": error.is_temporary})
    twice = [await client.submit("demo", "x", id="twice") for _ in range(2)]
    say({"same": twice == ["twice", "twice"]})


async def main():
    patience = 0.3 if given["do"] == "unreachable" else 60
    async with Client(given["url"], patience=patience) as client:
        if given["do"] == "requests":
            await requests(client)
        elif given["do"] == "watch":
            async for event in client.watch(given["job"]):
                say({"seq": event.seq, "text": event.text})
        else:
            try:
                await client.submit("demo", None)
            except OSError as error:
                say({"error": type(error).__name__})


asyncio.run(main())
