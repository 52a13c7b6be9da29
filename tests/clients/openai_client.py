"""The unmodified client of OpenAI for Python against a real edge: the scenarios of openai.mjs."""

import json
import sys
import time

import openai

# src/config/edge.rs
CANCEL_ANSWER_WAIT = 5
given = json.loads(sys.argv[1])
body = given.get("body", {})
requests = 0


def count(_):
    global requests
    requests += 1


client = openai.OpenAI(
    base_url=given["url"] + "/v1", api_key="any", http_client=openai.DefaultHttpxClient(event_hooks={"request": [count]})
)
chat = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "extra_body": body}
answer = {"model": "demo", "input": "hi", "extra_body": body}


def say(value):
    print(json.dumps(value), flush=True)


def text_of(stream, on_text=lambda text: None):
    text = ""
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            on_text(text)
    return text


def complete():
    raw = client.chat.completions.with_raw_response.create(**chat)
    data = raw.parse()
    again = client.chat.completions.retrieve(data.id)
    choice = data.choices[0]
    return {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "isSame": again.choices[0].message.content == choice.message.content,
        "isJob": raw.headers["x-tailwater-job"] == data.id,
        "models": [model.id for model in client.models.list()],
    }


def stream():
    return {"text": text_of(client.chat.completions.create(stream=True, **chat))}


def resume():
    with client.chat.completions.with_streaming_response.create(stream=True, **chat) as response:
        job = response.headers["x-tailwater-job"]
        blocks = [[]]
        for line in response.iter_lines():
            if line:
                blocks[-1].append(line)
            else:
                blocks.append([])
            if len(blocks) > 6:
                break
    blocks = [dict(line.split(": ", 1) for line in block) for block in blocks if block]
    first = "".join(json.loads(block["data"])["choices"][0]["delta"].get("content", "") for block in blocks)
    last = [block["id"] for block in blocks if "id" in block][-1]
    kind = openai.Stream[openai.types.chat.ChatCompletionChunk]
    path = f"/chat/completions/{job}"
    get = {"cast_to": openai.types.chat.ChatCompletionChunk, "stream": True, "stream_cls": kind}
    rest = text_of(client.get(path, options={"headers": {"Last-Event-ID": last}}, **get))
    whole = text_of(client.get(path, options={"params": {"stream": "true"}}, **get))
    return {"text": first + rest, "isSame": whole == first + rest, "hasBoth": first != "" and rest != ""}


def superseded():
    begun = []

    def on_text(text):
        if len(text) >= 40 and not begun:
            begun.append(True)
            say({"begun": True})

    return {"text": text_of(client.chat.completions.create(stream=True, **chat), on_text)}


def refused():
    errors = []

    def attempt(request):
        before = requests
        try:
            request()
            errors.append(None)
        except openai.APIError as error:
            errors.append([type(error).__name__, getattr(error, "status_code", None), error.code, requests - before])

    bad = {**chat, "extra_body": {**body, "words": -1}}
    attempt(lambda: client.chat.completions.create(**{**chat, "model": "unknown"}))
    attempt(lambda: client.chat.completions.create(**bad))
    attempt(lambda: text_of(client.chat.completions.create(stream=True, **bad)))
    attempt(lambda: client.responses.retrieve("resp_unknown"))
    attempt(lambda: client.responses.create(previous_response_id="resp_1", **answer))
    attempt(lambda: client.models.retrieve("unknown"))
    return {"errors": errors}


def background():
    response = client.responses.create(background=True, **answer)
    first = response.status
    while response.status in ("queued", "in_progress"):
        time.sleep(0.05)
        response = client.responses.retrieve(response.id)
    whole = client.responses.create(**answer)
    return {
        "first": first in ("queued", "in_progress"),
        "status": response.status,
        "text": response.output_text,
        "isSame": whole.output_text == response.output_text,
    }


def starting_after():
    events = []
    with client.responses.create(background=True, stream=True, **answer) as stream:
        for event in stream:
            events.append(event)
            if len(events) == 9:
                break
    response_id = events[0].response.id
    events.extend(client.responses.retrieve(response_id, stream=True, starting_after=events[-1].sequence_number))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    last = events[-1]
    return {
        "text": "".join(deltas),
        "isDense": [event.sequence_number for event in events] == list(range(len(events))),
        "last": last.type,
        "isSame": client.responses.retrieve(response_id).output_text == last.response.output_text,
    }


def cancel():
    response = client.responses.create(background=True, **answer)
    asked = time.monotonic()
    cancelled = client.responses.cancel(response.id)
    # After that long the edge answers even if the worker has not stopped the job.
    is_late = time.monotonic() - asked >= CANCEL_ANSWER_WAIT
    while is_late and cancelled.status in ("queued", "in_progress"):
        time.sleep(0.05)
        cancelled = client.responses.retrieve(response.id)
    return {"status": cancelled.status, "again": client.responses.cancel(response.id).status}


say(globals()[given["scenario"]]())
