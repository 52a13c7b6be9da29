"""Verifies callbacks with the reference library of Standard Webhooks.

Reads [{"headers": {...}, "body": "..."}] from stdin; the argument is the secret. Exits with 0 only if every signature is
valid, and none is once a byte of what it signs has changed.
"""

import json, sys
from standardwebhooks import Webhook, WebhookVerificationError

webhook = Webhook(sys.argv[1])
requests = json.load(sys.stdin)
assert requests, "nothing to verify"
for request in requests:
    headers, body = request["headers"], request["body"]
    assert webhook.verify(body, headers) == json.loads(body)
    for changed_body, changed in [
        (body + " ", {}),
        (body, {"webhook-id": headers["webhook-id"] + "x"}),
        (body, {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}),
    ]:
        try:
            webhook.verify(changed_body, {**headers, **changed})
        except WebhookVerificationError:
            continue
        raise SystemExit(f"valid though changed: {changed}")
print(len(requests), "valid")
