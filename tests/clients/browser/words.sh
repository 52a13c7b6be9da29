#!/usr/bin/env bash
# A job of the kind `exec` that a test ends: it prints words until the file that its input names exists, at most a minute.
set -euo pipefail
gate=$(sed -n 's/.*"gate": *"\([^"]*\)".*/\1/p')
for ((n = 1; n <= 1200; n++)); do
  printf 'word-%d ' "$n"
  # At least this many, so that there is something to lose.
  if ((n > 30)) && [[ -e $gate ]]; then break; fi
  sleep 0.05
done
printf 'over.\n'
