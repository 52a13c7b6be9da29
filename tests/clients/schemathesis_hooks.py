"""What schemathesis cannot know: which cursors and pages exist, which kind has a worker, and that a test has no
time."""

from itertools import count
from urllib.parse import unquote

import schemathesis
from hypothesis import strategies

# Text that only looks like a cursor is rightly refused. Numbers within the log are always valid.
schemathesis.openapi.format("cursor", strategies.integers(0, 12).map(str))


# What may answer with a stream that never ends. It is read for so many seconds.
STREAMS = {
    "/api/jobs/{id}/events", "/api/chat", "/api/chat/{id}/stream",
    "/v1/chat/completions", "/v1/chat/completions/{id}", "/v1/responses", "/v1/responses/{id}",
}
STREAM_READ = 2

# The page tokens of earlier listings.
pages = []
# The broker refuses their ids for two minutes.
purged = set()
numbers = count()


@schemathesis.hook
def after_call(context, case, response):
    listed = case.method == "GET" and case.path == "/api/jobs" and response.status_code == 200
    if listed and response.json().get("next"):
        pages.append(response.json()["next"])
    if case.method == "DELETE" and case.path == "/api/jobs/{id}" and response.status_code == 204:
        purged.add(unquote(case.path_parameters["id"]))


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.path in STREAMS:
        kwargs["timeout"] = STREAM_READ
    # Text that is not a page token is rightly refused; a token of another listing is not.
    if "page" in (case.query or {}) and (case.meta is None or case.meta.generation.mode.is_positive):
        del case.query["page"]
        if pages:
            case.query["page"] = pages[-1]
    wait = (case.query or {}).get("wait")
    if isinstance(wait, str) and wait.rstrip("s").isdigit() and 1 < int(wait.rstrip("s")) <= 60:
        case.query["wait"] = "1s"
    # Kinds of odd length are replaced by one that has a worker, so that some jobs exist.
    if isinstance(case.body, dict) and isinstance(case.body.get("kind"), str) and len(case.body["kind"]) % 2:
        if case.meta is None or case.meta.generation.mode.is_positive:
            case.body["kind"] = "demo"
    if not isinstance(case.body, dict):
        return
    # Only a text can be an id: a number must be refused, whatever was purged.
    if isinstance(case.body.get("id"), str) and case.body["id"] in purged:
        case.body["id"] = f"again-{next(numbers)}"
    if not (case.meta is None or case.meta.generation.mode.is_positive):
        return
    # A schema cannot say that a qualified id names the kind of its job.
    if "kind" in case.body and ":" in str(case.body.get("id")):
        case.body["id"] = f"{case.body['kind']}:{next(numbers)}"
    # The whole output of the demonstration takes five seconds.
    if case.path in ("/v1/chat/completions", "/v1/responses"):
        case.body["stream"] = True
