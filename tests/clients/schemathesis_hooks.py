"""What schemathesis cannot know: which cursors and pages there are, which kind somebody serves, and that a test has no
time."""

import schemathesis
from hypothesis import strategies

# Text that looks like a cursor and is none is refused, rightly. Numbers are always good, if the log is as long.
schemathesis.openapi.format("cursor", strategies.integers(0, 12).map(str))


# The pages that listings have given out.
pages = []


@schemathesis.hook
def after_call(context, case, response):
    listed = case.method == "GET" and case.path == "/api/jobs" and response.status_code == 200
    if listed and response.json().get("next"):
        pages.append(response.json()["next"])


@schemathesis.hook
def before_call(context, case, kwargs):
    # Text that is no page is refused, rightly; one of another listing is not.
    if "page" in (case.query or {}) and (case.meta is None or case.meta.generation.mode.is_positive):
        del case.query["page"]
        if pages:
            case.query["page"] = pages[-1]
    wait = (case.query or {}).get("wait")
    if isinstance(wait, str) and wait.rstrip("s").isdigit() and 1 < int(wait.rstrip("s")) <= 60:
        case.query["wait"] = "1s"
    # Every other kind is one that is served, so that there are jobs to ask about.
    if isinstance(case.body, dict) and isinstance(case.body.get("kind"), str) and len(case.body["kind"]) % 2:
        if case.meta is None or case.meta.generation.mode.is_positive:
            case.body["kind"] = "demo"
