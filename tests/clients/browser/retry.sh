#!/usr/bin/env bash
# A job whose first attempt fails, for a worker with `--format ndjson`: it thinks, writes, is silent until the file that
# its input names exists, at most three minutes, and asks to be run again. The second attempt succeeds. What it writes
# looks like markup.
set -euo pipefail
gate=$(sed -n 's/.*"gate": *"\([^"]*\)".*/\1/p')
say() { printf '{"channel":"%s","text":"%s"}\n' "$1" "$2"; }
say reasoning "<i>thought-$TAILWATER_ATTEMPT</i>"
say output "<img src=x>text-$TAILWATER_ATTEMPT"
printf '{"markup":"<script>alert(1)</script>"}\n'
if [[ $TAILWATER_ATTEMPT == 1 ]]; then
  for ((n = 1; n <= 3600; n++)); do
    [[ -n $gate && ! -e $gate ]] || break
    sleep 0.05
  done
  say output " late"
  printf '<u>again</u>' >&2
  exit 75
fi
