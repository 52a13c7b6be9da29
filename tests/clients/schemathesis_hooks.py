"""What schemathesis cannot know: which cursors there are, which kind somebody serves, and that a test has no time."""

import schemathesis
from hypothesis import strategies

# Text that looks like a cursor and is none is refused, rightly. Numbers are always good, if the log is as long.
schemathesis.openapi.format("cursor", strategies.integers(0, 12).map(str))


@schemathesis.hook
def before_call(context, case, kwargs):
    wait = (case.query or {}).get("wait")
    if isinstance(wait, str) and wait.rstrip("s").isdigit() and 1 < int(wait.rstrip("s")) <= 60:
        case.query["wait"] = "1s"
    # Every other kind is one that is served, so that there are jobs to ask about.
    if isinstance(case.body, dict) and isinstance(case.body.get("kind"), str) and len(case.body["kind"]) % 2:
        if case.meta is None or case.meta.generation.mode.is_positive:
            case.body["kind"] = "demo"
