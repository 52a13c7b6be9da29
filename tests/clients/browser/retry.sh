#!/usr/bin/env bash
# A job whose first attempt fails, for a worker with `--format ndjson`: it thinks, writes, is silent for longer than the
# console takes for normal, and asks to be run again. The second attempt succeeds. What it writes looks like markup.
set -euo pipefail
cat >/dev/null
say() { printf '{"channel":"%s","text":"%s"}\n' "$1" "$2"; }
say reasoning "<i>thought-$TAILWATER_ATTEMPT</i>"
say output "<img src=x>text-$TAILWATER_ATTEMPT"
printf '{"markup":"<script>alert(1)</script>"}\n'
if [[ $TAILWATER_ATTEMPT == 1 ]]; then
  sleep 3
  say output " late"
  printf '<u>again</u>' >&2
  exit 75
fi
