#!/usr/bin/env bash
# A job of the kind `exec` that prints a step whenever a test allows it: step N once the file GATE.N exists, five in all.
set -euo pipefail
gate=$(sed -n 's/.*"gate": *"\([^"]*\)".*/\1/p')
for step in 1 2 3 4 5; do
  for ((waited = 0; waited < 600; waited++)); do
    [[ ! -e $gate.$step ]] || break
    sleep 0.05
  done
  printf 'step-%d ' "$step"
done
