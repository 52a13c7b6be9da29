#!/usr/bin/env bash
# A job of the kind `exec` that a test ends: it prints words until the file that its input names exists, at most three
# minutes.
set -euo pipefail
gate=$(sed -n 's/.*"gate": *"\([^"]*\)".*/\1/p')
for ((n = 1; n <= 3600; n++)); do
  printf 'word-%d ' "$n"
  # At least this many, so that there is something to lose.
  if ((n > 30)) && [[ -e $gate ]]; then break; fi
  sleep 0.05
done
printf 'over.\n'
